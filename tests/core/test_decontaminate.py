"""Decontamination: planted contamination goes with evidence, the rest stays."""

import ast
import gzip
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hornbook as hb
from hornbook import corpus
from hornbook.decontaminate import (
    ast_match,
    benchmark_path,
    load_problems,
    scan,
    similarity,
)
from hornbook.errors import ConfigError, InputError

DATA = os.environ.get("HORNBOOK_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="HORNBOOK_DATA is not set")

PROBLEM = {
    "task_id": "Test/0",
    "prompt": (
        "def longest_run(values, limit):\n"
        '    """Return the length of the longest run of neighbouring values that are all strictly\n'
        '    below the given limit, or zero if there is no such value at all."""\n'
    ),
    "canonical_solution": (
        "    best = current = 0\n"
        "    for value in values:\n"
        "        if value < limit:\n"
        "            current += 1\n"
        "            best = max(best, current)\n"
        "        else:\n"
        "            current = 0\n"
        "    return best\n"
    ),
    "entry_point": "longest_run",
    "test": "def check(candidate):\n    assert candidate([1, 5, 2, 2], 3) == 2\n",
}
TINY = {
    "task_id": "Test/1",
    "prompt": "def add(a, b):\n",
    "canonical_solution": "    return a + b\n",
    "entry_point": "add",
}
RENAMED = (
    "import os\n\nclass Tool:\n"
    "    def m(xs: list, k: int):  # another name for everything\n"
    "        a = b = 7\n"
    "        for q in xs:\n"
    "            if (q < k):\n"
    "                b += 2\n"
    "                a = min(a, b)\n"
    "            else:\n"
    "                b = 9\n"
    "        return a\n"
)
CLEAN = (
    "def mean(values):\n    'Arithmetic mean of some values.'\n"
    "    total = sum(values)\n    count = len(values)\n"
    "    if not count:\n        raise ValueError('no values')\n    return total / count\n"
)
NEITHER = "def plus(first, second):\n    return first + second\n"


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def evidence(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "evidence" / "removed.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def run(tmp: Path, texts: list[str], **options: Any) -> tuple[hb.Report, Path]:
    rows = [{"id": str(i), "text": text, "n": i} for i, text in enumerate(texts)]
    if "benchmarks" not in options:
        options["benchmarks"] = [save(tmp / "problems.jsonl", [PROBLEM, TINY])]
    out = tmp / "out"
    return hb.decontaminate(save(tmp / "in.jsonl", rows), out, **options), out


def kept(folder: Path) -> list[int]:
    return [row["n"] for row in corpus.read([folder])]


COPIED = (
    "# Notes\n\nSome day: return the LENGTH of the longest run -- of neighbouring values that are "
    "all strictly below the given limit!\n"
)


def test_copied_text_goes_by_ngram(tmp_path: Path) -> None:
    report, out = run(tmp_path, [COPIED, RENAMED, CLEAN, NEITHER])
    assert kept(out) == [1, 2, 3]
    counts = report["counts"]
    assert counts == {"in": 4, "kept": 3, "dropped": {"ngram": 1}, "rejected": 0}
    assert evidence(out) == [
        {
            "id": "0",
            "row": 0,
            "item": "Test/0",
            "rule": "ngram",
            "field": "docstring",
            "ngram": "return the length of the longest run of neighbouring values that are all",
            "words": 18,
            "grams": 6,
            "line": 3,
            "context": COPIED,
        }
    ]
    assert report["details"]["items_without_ngram"] == 1


def test_renamed_code_goes_by_ast(tmp_path: Path) -> None:
    in_prose = f"# Runs\n\nIt's what we want (see below:\n\n```python\n{RENAMED}```\n\nDone.\n"
    texts = [COPIED, RENAMED, CLEAN, NEITHER, in_prose]
    report, out = run(tmp_path, texts, ast_threshold=0.95)
    assert kept(out) == [2, 3], "the tiny reference matches `plus`, but is not used"
    assert report["counts"]["dropped"] == {"ngram": 1, "ast": 2}
    assert report["details"]["items_without_reference"] == 1
    found = [(row["id"], row["item"], row["rule"], row.get("rate")) for row in evidence(out)]
    assert found == [
        ("0", "Test/0", "ngram", None),
        ("1", "Test/0", "ast", 1.0),
        ("4", "Test/0", "ast", 1.0),
    ]


def test_small_references_on_request(tmp_path: Path) -> None:
    report, out = run(tmp_path, [NEITHER, CLEAN], ast_threshold=0.95, min_nodes=1)
    assert kept(out) == [1]
    assert report["details"]["items_without_reference"] == 0


def test_the_threshold_decides(tmp_path: Path) -> None:
    edited = RENAMED.replace("a = min(a, b)", "a = min(a, b, q)\n                print(q)")
    solution = PROBLEM["prompt"] + PROBLEM["canonical_solution"]
    body = edited.split("class Tool:\n")[1].replace("\n    ", "\n").removeprefix("    ")
    rate = ast_match(body, solution)
    assert 0.8 < rate < 0.95
    for threshold, left in ((rate, []), (rate + 1e-9, [0])):
        folder = tmp_path / str(threshold)
        folder.mkdir()
        _, out = run(folder, [edited], ast_threshold=threshold)
        assert kept(out) == left


def test_ignored_phrases_do_not_count(tmp_path: Path) -> None:
    _, out = run(tmp_path, [COPIED], ignore=["is of no use"])
    assert kept(out) == []
    other = tmp_path / "other"
    other.mkdir()
    _, out = run(other, [COPIED], ignore=[str(PROBLEM["prompt"])])
    assert kept(out) == [0]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ngrams_agree_with_a_plain_search(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    words = st.lists(st.sampled_from(["a", "B", "é", "x_1", "42"]), max_size=9)
    documents = data.draw(st.lists(words, max_size=6))
    problems = data.draw(st.lists(st.tuples(words, words), min_size=1, max_size=3))
    n = data.draw(st.integers(1, 4))
    folder = tmp_path_factory.mktemp("ngram")
    path = save(
        folder / "problems.jsonl",
        [
            {"text": " ".join(a), "code": "-".join(b), "task_id": i}
            for i, (a, b) in enumerate(problems)
        ],
    )
    texts = [", ".join(words) for words in documents]
    _, out = run(folder, texts, ngram=n, benchmarks=[path], trivial=True)

    def grams(list_: list[str]) -> set[tuple[str, ...]]:
        lower = [word.lower() for word in list_]
        return {tuple(lower[i : i + n]) for i in range(len(lower) - n + 1)}

    hits = {
        (str(i), f"MBPP/{k}")
        for i, document in enumerate(documents)
        for k, (text, code) in enumerate(problems)
        if grams(document) & (grams(text) | grams(code))
    }
    assert {(row["id"], row["item"]) for row in evidence(out)} == hits
    assert kept(out) == [i for i in range(len(documents)) if str(i) not in {d for d, _ in hits}]


def test_threads_never_change_a_byte(tmp_path: Path) -> None:
    source = save(
        tmp_path / "in.jsonl",
        [{"text": f"# {i}\n" + text} for i in range(300) for text in (RENAMED, CLEAN, COPIED)],
    )
    problems = save(tmp_path / "problems.jsonl", [PROBLEM, TINY])
    results = []
    for threads in (1, 2, 5):
        out = tmp_path / str(threads)
        report = hb.decontaminate(
            source, out, benchmarks=[problems], ast_threshold=0.5, threads=threads
        )
        contents = [
            path.read_bytes()
            for path in sorted(out.rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        ]
        split = similarity(source, problems, threads=threads)
        results.append((report["key"], report["counts"], report["details"], contents, split))
    assert len(results[0][3]) == 3
    assert results[0] == results[1] == results[2]


def test_similarity(tmp_path: Path) -> None:
    source = save(
        tmp_path / "in.jsonl",
        [{"id": i, "text": text} for i, text in (("c", CLEAN), ("r", RENAMED), ("again", RENAMED))],
    )
    problems = save(tmp_path / "problems.jsonl", [PROBLEM, TINY])
    first, second = similarity([source], problems)
    assert (first["task_id"], first["rate"], first["id"]) == ("Test/0", 1.0, "r")
    assert second["task_id"] == "Test/1"
    assert 0 < second["rate"] < 1
    assert second["nodes"] < 20 < first["nodes"]
    prose = save(tmp_path / "prose.jsonl", [{"text": "Nothing but words."}])
    assert [(row["rate"], row["id"]) for row in similarity(prose, problems)] == [(0, None)] * 2


def test_ast_match() -> None:
    code = "def f(x):\n    return x + 1\n"
    assert ast_match(code, "def g(y: int) -> int:\n  '''Doc.'''\n  # note\n  return (y + 2)\n") == 1
    assert 0 < ast_match(code, CLEAN) < 1
    assert ast_match(code, "") == 0
    assert ast_match("", "") == 1
    assert ast_match("def f(:", "\x00 é ((") >= 0


@settings(max_examples=50, deadline=None)
@given(a=st.text(max_size=60), b=st.text(max_size=60))
def test_ast_match_is_a_symmetric_rate(a: str, b: str) -> None:
    rate = ast_match(a, b)
    assert 0 <= rate <= 1
    assert rate == ast_match(b, a)
    assert ast_match(a, a) == 1


def test_empty_corpus(tmp_path: Path) -> None:
    report, out = run(tmp_path, [], ast_threshold=0.9)
    assert report["counts"]["in"] == 0
    assert list(corpus.read([out])) == []


def test_bad_rows_are_set_aside(tmp_path: Path) -> None:
    problems = save(tmp_path / "problems.jsonl", [PROBLEM])
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n{"no": "text"}\n')
    counts = hb.decontaminate(source, tmp_path / "out", benchmarks=[problems])["counts"]
    assert (counts["in"], counts["kept"], counts["rejected"]) == (1, 1, 1)


def test_changed_problems_are_another_result(tmp_path: Path) -> None:
    report, out = run(tmp_path, [COPIED])
    assert run(tmp_path, [COPIED])[0]["started"] == report["started"]
    again, _ = run(tmp_path, [COPIED], benchmarks=[save(tmp_path / "problems.jsonl", [TINY])])
    assert kept(out) == [0]
    assert again["key"] != report["key"]


def test_problem_files(tmp_path: Path) -> None:
    mbpp = {"text": "Add.", "code": "def h(x):\r\n  return x\r\ndef add(a):\r\n  return h(a)\r\n"}
    mbpp_tests = mbpp | {"task_id": 7, "test_list": ["assert set(add(1)) == {1}"]}
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(
        gzip.compress("\n".join(map(json.dumps, [PROBLEM, mbpp, mbpp_tests])).encode())
    )
    first, second, third = load_problems(path)
    assert first.program == str(PROBLEM["prompt"]) + str(PROBLEM["canonical_solution"])
    assert first.entry_point == "longest_run"
    assert (second.task_id, second.entry_point) == ("MBPP/2", None)
    assert (third.task_id, third.entry_point) == ("MBPP/7", "add")
    assert "\r" not in third.program


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no problem"),
        (b'{"prompt": "x"}\n', "line 1"),
        (b'{"prompt": "x", "canonical_solution": 3}\n', "line 1"),
        (b"\n[1]\n", "line 2"),
        (b"nonsense\n", "line 1 is not JSON"),
        (b"\xff\xfe", "not a readable problem file"),
        (b"\x1f\x8b torn", "not a readable problem file"),
        (gzip.compress(b"{}" * 500)[:-12], "not a readable problem file"),
    ],
)
def test_bad_problem_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_problems(path)


@pytest.mark.parametrize(
    "options",
    [
        {"benchmarks": []},
        {"benchmarks": "humaneval"},
        {"benchmarks": ["no such thing"]},
        {"ignore": "one text"},
        {"ngram": 0},
        {"ast_threshold": 0},
        {"ast_threshold": 1.01},
        {"min_nodes": 0},
        {"threads": 0},
    ],
)
def test_senseless_options(tmp_path: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        run(tmp_path, ["a"], **options)
    assert not (tmp_path / "out").exists()


def test_benchmarks_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HORNBOOK_DATA", raising=False)
    with pytest.raises(ConfigError, match="HORNBOOK_DATA"):
        run(tmp_path, ["a"], benchmarks=["humaneval"])
    monkeypatch.setenv("HORNBOOK_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"mbpp\.jsonl"):
        benchmark_path("mbpp")
    save(tmp_path / "mbpp.jsonl", [PROBLEM])
    assert benchmark_path("mbpp") == tmp_path / "mbpp.jsonl"


def renamed_without_docstring(program: str) -> str:
    """The program with every name of its own replaced and its docstrings and comments gone."""
    tree = ast.parse(program)
    own: dict[str, str] = {}
    for node in ast.walk(tree):
        names = {
            ast.FunctionDef: "name",
            ast.arg: "arg",
            ast.Name: "id" if isinstance(getattr(node, "ctx", None), ast.Store) else "",
        }.get(type(node))
        if names:
            own.setdefault(getattr(node, names), f"renamed_{len(own)}")
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    source = ast.unparse(tree)
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda match: own.get(match[0], match[0]), source)


@needs_data
def test_every_humaneval_solution_is_found(tmp_path: Path) -> None:
    problems = load_problems(benchmark_path("humaneval"))
    assert len(problems) == 164
    verbatim = save(
        tmp_path / "verbatim.jsonl", [{"id": p.task_id, "text": p.program} for p in problems]
    )
    report = hb.decontaminate(verbatim, tmp_path / "v", benchmarks=["humaneval"])
    assert report["counts"]["kept"] == 0
    renamed = save(
        tmp_path / "renamed.jsonl",
        [{"id": p.task_id, "text": renamed_without_docstring(p.program)} for p in problems],
    )
    by_ngram = hb.decontaminate(renamed, tmp_path / "n", benchmarks=["humaneval"])
    assert by_ngram["counts"]["dropped"]["ngram"] < 40
    by_ast = hb.decontaminate(renamed, tmp_path / "a", benchmarks=["humaneval"], ast_threshold=0.9)
    assert by_ast["counts"]["kept"] <= by_ast["details"]["items_without_reference"]
    rates = [row["rate"] for row in similarity(renamed, "humaneval")]
    assert min(rates) >= 0.9
    assert sum(rate == 1 for rate in rates) >= 150


@needs_data
def test_mbpp_against_humaneval(tmp_path: Path) -> None:
    problems = load_problems(benchmark_path("mbpp"))
    assert len(problems) == 974
    assert all(problem.entry_point for problem in problems)
    random.Random(0).shuffle(problems)
    source = save(
        tmp_path / "mbpp.jsonl",
        [{"id": p.task_id, "text": f"{p.docstring}\n{p.program}\n"} for p in problems],
    )
    report = hb.decontaminate(
        source, tmp_path / "out", benchmarks=["humaneval"], ast_threshold=0.95, trivial=True
    )
    # Known overlaps: one run of 13 words ("if a b c or a c b ..."), a few textbook functions.
    assert report["counts"]["dropped"]["ngram"] == 1
    assert 1 <= report["counts"]["dropped"]["ast"] < 15


def test_scan_reads_rows_as_the_stage_does(tmp_path: Path) -> None:
    """Rows count from 1 with those set aside; of a key that is there twice the last counts."""
    copied = COPIED.replace("\n", "\u2028\n")
    save(tmp_path / "problems.jsonl", [PROBLEM])
    table = pa.table({"text": [None, None, CLEAN, copied]})
    pq.write_table(table, tmp_path / "a.parquet")
    twice = [
        f'{{"text": "a", "text": {json.dumps(copied, ensure_ascii=False)}}}',
        f'{{"text": {json.dumps(copied)}, "text": "a"}}',
    ]
    lines = ['{"text": null}', "", json.dumps({"text": CLEAN, "more": [1, {"a": 2}]}), *twice]
    (tmp_path / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, rejected, row in (("a.parquet", [1, 2], 4), ("b.jsonl", [1], 4)):
        found = scan(tmp_path / name, benchmarks=[tmp_path / "problems.jsonl"])
        assert [reject[1] for reject in found["rejected"]] == rejected
        assert [(hit["row"], hit["context"]) for hit in found["hits"]] == [(row, copied)]
        stage = hb.decontaminate(
            tmp_path / name, tmp_path / f"{name}.out", benchmarks=[tmp_path / "problems.jsonl"]
        )
        assert found["contaminated"] == stage["counts"]["dropped"].get("ngram", 0) == 1
