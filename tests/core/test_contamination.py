"""Decontamination measured: what each rule finds of edited problems, and what it must not find."""

import ast
import gzip
import json
import os
import random
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hornbook as hb
from hornbook import _core, corpus
from hornbook.contaminants import Contaminants, NgramRule, Problem, load
from hornbook.decontaminate import (
    STRIPPED,
    TAUS,
    SyntaxRule,
    _distances,
    ast_match,
    benchmark_path,
    load_problems,
    save_ngrams,
    scan,
    similarity,
    sweep,
)
from hornbook.errors import ConfigError, InputError
from hornbook.quality import embedder

DATA = os.environ.get("HORNBOOK_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="HORNBOOK_DATA is not set")

PROGRAM = (
    "def longest_run(values, limit):\n"
    '    """Return the length of the longest run of neighbouring values that are all strictly\n'
    '    below the given limit, or zero if there is no such value at all."""\n'
    "    best = current = 0\n"
    "    for value in values:\n"
    "        if value < limit:\n"
    "            current += 1\n"
    "            best = max(best, current)\n"
    "        else:\n"
    "            current = 0\n"
    "    return best\n"
)
OTHER = (
    "def merge(first, second):\n"
    "    '''Join two sorted lists into one sorted list, without calling sort.'''\n"
    "    merged = []\n    i = j = 0\n"
    "    while i < len(first) and j < len(second):\n"
    "        if first[i] <= second[j]:\n            merged.append(first[i])\n            i += 1\n"
    "        else:\n            merged.append(second[j])\n            j += 1\n"
    "    return merged + first[i:] + second[j:]\n"
)
PROBLEMS = [
    {"task_id": "T/0", "prompt": "", "canonical_solution": PROGRAM, "test": "assert f([1]) == 1"},
    {"task_id": "T/1", "prompt": "", "canonical_solution": OTHER},
]


def save(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def documents(path: Path, texts: Sequence[str]) -> Path:
    return save(path, [{"id": str(i), "text": text} for i, text in enumerate(texts)])


def kept(folder: Path) -> list[str]:
    return [row["id"] for row in corpus.read([folder])]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Recall on edited problems, precision on what only looks alike


def without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def reformatted(source: str) -> str:
    """Every statement line with a comment, in other white space."""
    words = iter(["alpha", "beta", "gamma", "delta", "kappa"] * 1000)
    out = [f"{line}  # {next(words)}" for line in without_docstrings(source).split("\n")]
    return "\n".join(out).replace("    ", "\t")


def renamed(source: str) -> str:
    tree = ast.parse(without_docstrings(source))
    own: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            own.setdefault(node.name, f"name_{len(own)}")
            own.update({a.arg: f"name_{len(own) + i}" for i, a in enumerate(node.args.args)})
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.setdefault(node.id, f"name_{len(own)}")
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda m: own.get(m[0], m[0]), ast.unparse(tree))


def reworded(text: str) -> str:
    """One word in eight replaced."""
    draw = random.Random(0)
    return re.sub(r"\w+", lambda m: "thing" if draw.random() < 0.12 else m[0], text)


@needs_data
@pytest.mark.parametrize(
    ("edit", "by_ngram", "by_ast"),
    [
        (lambda p: p.program, (0.99, 1.0), (1.0, 1.0)),
        (lambda p: p.docstring, (0.98, 1.0), (0.0, 0.0)),
        (lambda p: reworded(p.docstring), (0.6, 1.0), (0.0, 0.0)),
        (lambda p: without_docstrings(p.program), (0.7, 1.0), (1.0, 1.0)),
        (lambda p: reformatted(p.program), (0.0, 0.3), (1.0, 1.0)),
        (lambda p: renamed(p.program), (0.0, 0.2), (1.0, 1.0)),
    ],
    ids=["verbatim", "docstring", "reworded", "no docstring", "reformatted", "renamed"],
)
def test_recall_on_edited_problems(
    tmp_path: Path,
    edit: Callable[[Any], str],
    by_ngram: tuple[float, float],
    by_ast: tuple[float, float],
) -> None:
    problems = load_problems(benchmark_path("humaneval"))
    source = documents(tmp_path / "in.jsonl", [edit(problem) for problem in problems])
    own = {problem.task_id: str(place) for place, problem in enumerate(problems)}
    hits = scan(source, benchmarks=["humaneval"], most=10_000)["hits"]
    found = {hit["item"] for hit in hits if own[hit["item"]] == hit["id"]}
    assert by_ngram[0] <= len(found) / len(problems) <= by_ngram[1]
    table = sweep(source, benchmarks=["humaneval"], nearest=1)
    seen = [item for item in table["problems"] if item["nodes"]]
    assert len(seen) > 140
    recall = sum(item["similar"][0] for item in seen) / len(seen)
    assert by_ast[0] <= recall <= by_ast[1]


LICENCE = (
    'Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file\n'
    "except in compliance with the License. You may obtain a copy of the License at\n"
    "http://www.apache.org/licenses/LICENSE-2.0\n"
    "Unless required by applicable law or agreed to in\n"
    'writing, software distributed under the License is distributed on an "AS IS" BASIS, WITHOUT\n'
    "WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied."
)
IDIOMS = [
    "def main():\n    parser = argparse.ArgumentParser(description=__doc__)\n"
    "    parser.add_argument('--path', default='.')\n    args = parser.parse_args()\n"
    "    print(args.path)\n\n\nif __name__ == '__main__':\n    main()\n",
    "class Node:\n    def __init__(self, value, left=None, right=None):\n"
    "        self.value = value\n"
    "        self.left = left\n        self.right = right\n",
    "def matmul(a, b):\n    n = len(a)\n    out = [[0] * n for _ in range(n)]\n"
    "    for i in range(n):\n        for j in range(n):\n            for k in range(n):\n"
    "                out[i][j] += a[i][k] * b[k][j]\n    return out\n",
    "def binary_search(items, wanted):\n    low, high = 0, len(items) - 1\n    while low <= high:\n"
    "        middle = (low + high) // 2\n        if items[middle] == wanted:\n"
    "            return middle\n        if items[middle] < wanted:\n            low = middle + 1\n"
    "        else:\n            high = middle - 1\n    return -1\n",
    "with open(path, encoding='utf-8') as handle:\n    for line in handle:\n"
    "        line = line.strip()\n"
    "        if not line or line.startswith('#'):\n            continue\n",
]


def hard_negatives() -> list[str]:
    draw = random.Random(1)
    tables = [
        "DATA = [\n"
        + "".join(
            f"    [{', '.join(str(draw.randint(0, top)) for _ in range(12))}],\n" for _ in range(40)
        )
        + "]\n"
        for top in (1, 1, 9, 9, 99)
    ]
    runs = [
        " ".join(map(str, range(50))),
        "0123456789abcdef",
        ", ".join("0123456789abcdef"),
        "0 " * 100,
        "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3,
        '"1": "one", "2": "two"',
        "x y z " * 40,
    ]
    licences = [LICENCE, textwrap.indent(LICENCE, "# "), LICENCE.upper()]
    return [*tables, *runs, *licences, *IDIOMS]


@needs_data
def test_precision_on_hard_negatives(tmp_path: Path) -> None:
    texts = hard_negatives()
    source = documents(tmp_path / "in.jsonl", texts)
    every = ["humaneval", "humaneval+", "mbpp", "mbpp+"]
    found = scan(source, benchmarks=every)
    assert (found["rows"], found["contaminated"]) == (len(texts), 0), found["hits"]
    plain = scan(source, benchmarks=every, trivial=True)
    assert plain["contaminated"] > 0, "numbers are what the paper's rule trips over"
    out = tmp_path / "out"
    report = hb.decontaminate(source, out, benchmarks=["humaneval"], ast_threshold=0.9)
    assert report["counts"]["kept"] == len(texts), (out / "evidence/removed.json").read_text()


# The AST match rate against plain references


def levenshtein(a: Sequence[Any], b: Sequence[Any]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(above + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def rate(a: Sequence[Any], b: Sequence[Any]) -> float:
    longest = max(len(a), len(b))
    return 1 - levenshtein(a, b) / longest if longest else 1.0


def edited(source: str, draw: random.Random) -> str:
    """A source with some of its lines gone, doubled or swapped."""
    rows = source.splitlines()
    for _ in range(draw.randint(0, 4)):
        at = draw.randrange(len(rows))
        rows[at : at + 1] = draw.choice([[], [rows[at]] * 2, [rows[at], "    x = [1, 'a']  # b"]])
        rows = rows or [source]
    return "\n".join(rows)


@pytest.mark.parametrize("unit", ["node", "char"])
def test_rates_are_those_of_a_plain_reference(unit: Any) -> None:
    draw = random.Random(2)
    for _ in range(40 if unit == "node" else 6):
        strip = draw.sample(STRIPPED, draw.randint(0, len(STRIPPED)))
        a, b = draw.choice([PROGRAM, OTHER]), edited(draw.choice([PROGRAM, OTHER]), draw)
        reading = SyntaxRule(unit=unit, strip=tuple(strip)).reading()
        (first, _), (second, _) = (_core.syntax_symbols(text, reading) for text in (a, b))
        assert ast_match(a, b, unit=unit, strip=strip) == pytest.approx(rate(first, second))


def test_symbols_are_those_of_a_plain_walk() -> None:
    """The same grammar by its own Python binding, walked by recursion."""
    tree_sitter = pytest.importorskip("tree_sitter", reason="a peer, not a dependency")
    grammar = pytest.importorskip("tree_sitter_python", reason="a peer, not a dependency")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    same = {
        "typed_default_parameter": "default_parameter",
        "expression_list": "tuple",
        "pattern_list": "tuple_pattern",
        "false": "true",
    }
    gone = {"comment", "line_continuation", "type", "string_start", "string_content", "string_end"}
    through = {"module", "parenthesized_expression", "typed_parameter"}

    def walk(node: Any, is_body: bool) -> tuple[list[str], list[str]]:
        """Kinds in preorder, and the subtrees as text."""
        kinds, texts, first = [], [], is_body
        for place, child in enumerate(node.children):
            field = node.field_name_for_child(place) or ""
            if not (child.is_named or field.startswith("operator")) or child.type in gone:
                continue
            is_first, first = first and child.is_named, first and not child.is_named
            docstring = child.type == "expression_statement" and [
                c.type for c in child.named_children
            ] in (["string"], ["concatenated_string"])
            if is_first and docstring:
                continue
            defined = node.type in ("function_definition", "class_definition")
            below, inside = walk(child, defined and child.type == "block")
            if child.type in through:
                kinds += below
                texts += inside
                continue
            kind = same.get(child.type, child.type)
            kinds += [kind, *below]
            texts.append(f"{kind}({' '.join(inside)})" if inside else kind)
        return kinds, texts

    sources = [PROGRAM, OTHER, Path(__file__).read_text(encoding="utf-8")]
    sources += [Path(ast.__file__).read_text(encoding="utf-8")]
    numbers: dict[str, int] = {}
    for source in sources:
        kinds, texts = walk(parser.parse(source.encode()).root_node, True)
        chars, _ = _core.syntax_symbols(source, SyntaxRule(unit="char").reading())
        assert "".join(map(chr, chars)) == " ".join(texts)
        symbols, _ = _core.syntax_symbols(source, SyntaxRule().reading())
        assert len(symbols) == len(kinds)
        for kind, symbol in zip(kinds, symbols, strict=True):
            assert numbers.setdefault(kind, symbol) == symbol


def test_what_is_stripped_decides() -> None:
    a, b = "x = f(1)  # one\n", "y = f(2)\n"
    assert ast_match(a, b) == 1
    for part in ("names", "comments", "literals"):
        strip = [name for name in STRIPPED if name != part]
        assert ast_match(a, b, strip=strip) < 1
        assert ast_match(a, b, strip=strip, unit="char") < 1
    with pytest.raises(ConfigError, match="strip"):
        ast_match(a, b, strip=["layout"])
    with pytest.raises(ConfigError, match="unit"):
        ast_match(a, b, unit="word")  # type: ignore[arg-type]


# The sweep, embeddings, and both together


def corpus_of_edits(tmp_path: Path) -> tuple[Path, Path]:
    draw = random.Random(3)
    texts = [edited(draw.choice([PROGRAM, OTHER]), draw) for _ in range(60)]
    texts += ["def nothing():\n    pass\n", "No code."]
    return documents(tmp_path / "in.jsonl", texts), save(tmp_path / "problems.jsonl", PROBLEMS)


@pytest.mark.parametrize("unit", ["node", "char"])
def test_the_sweep_counts_what_single_runs_remove(tmp_path: Path, unit: Any) -> None:
    source, problems = corpus_of_edits(tmp_path)
    table = sweep(source, benchmarks=[problems], unit=unit)
    assert [row["tau"] for row in table["rows"]] == list(TAUS)
    taken = [row["documents"] for row in table["rows"]]
    assert taken == sorted(taken)
    assert taken[0] < taken[-1]
    for row in table["rows"]:
        out = tmp_path / f"{row['tau']}"
        report = hb.decontaminate(
            source, out, benchmarks=[problems], ngram=None, ast_threshold=row["tau"], unit=unit
        )
        assert report["counts"]["dropped"] == {"ast": row["documents"]}
        assert report["details"]["sweep"] == table["rows"]
        items = {entry["item"] for entry in lines(out / "evidence/removed.json")}
        assert len(items) == row["similar"] == 2 - row["non_similar"]
        assert row["share"] == row["documents"] / table["documents"]
    if unit == "node":
        rates = {row["task_id"]: row["rate"] for row in similarity(source, problems)}
        for item in table["problems"]:
            assert item["similar"] == [rates[item["item"]] >= tau for tau in TAUS]


def lengths(texts: Sequence[str]) -> Any:
    """An embedder whose distances anyone can check: an angle for each text's length."""
    angles = np.array([len(text) for text in texts]) / 1000
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3


def test_either_or_both_tests(tmp_path: Path) -> None:
    source, problems = corpus_of_edits(tmp_path)
    texts = [row["text"] for row in corpus.read([source])]
    programs = [PROGRAM, OTHER]
    limit = 0.05
    near = {
        (i, k)
        for i, text in enumerate(texts)
        for k, program in enumerate(programs)
        if 2 * np.sin(abs(len(text) - len(program)) / 2000) <= limit
    }
    index = _core.SyntaxIndex([("0", PROGRAM, None), ("1", OTHER, None)], SyntaxRule().reading(), 1)
    functions = index.functions(texts, None)
    alike = {(text, item) for text, item, *_ in index.matches(functions, 0.9, None)}
    for combine, expected in (("or", near | alike), ("and", near & alike)):
        out = tmp_path / combine
        report = hb.decontaminate(
            source,
            out,
            benchmarks=[problems],
            ngram=None,
            ast_threshold=0.9,
            embedder=lengths,
            embedding_threshold=limit,
            combine=combine,  # type: ignore[arg-type]
        )
        gone = {i for i, _ in expected}
        assert 0 < len(gone) < len(texts)
        assert kept(out) == [str(i) for i in range(len(texts)) if i not in gone]
        assert report["config"]["combine"] == combine
        pairs = {(e["row"], int(e["item"][2:])) for e in lines(out / "evidence/removed.json")}
        assert pairs == expected
        for item in lines(out / "problems.json"):
            k = int(item["item"][2:])
            assert item["removed"] == len({i for i, other in expected if other == k})
            distances = [n["value"] for n in item["nearest_embedding"]]
            assert distances == sorted(distances)
            assert all(n["removed"] == (n["row"] in gone) for n in item["nearest"])
        row = report["details"]["sweep"][1]
        assert (row["tau"], row["documents"]) == (0.9, len(gone))


def test_the_hash_embedder_finds_copies(tmp_path: Path) -> None:
    source = documents(tmp_path / "in.jsonl", [PROGRAM, "Some words about gardens.", OTHER + "\n"])
    problems = save(tmp_path / "problems.jsonl", PROBLEMS)
    report = hb.decontaminate(
        source, tmp_path / "out", benchmarks=[problems], ngram=None, embedder="hash"
    )
    assert kept(tmp_path / "out") == ["1"]
    assert report["counts"]["dropped"] == {"embedding": 2}


def test_a_neural_embedder_by_name(tmp_path: Path, codegen: Path) -> None:
    """The paper's kind, with random weights: what goes is what its own distances say."""
    texts = [PROGRAM, "Some words about gardens.", OTHER + "\n", "total = 1\n" * 8]
    source = documents(tmp_path / "in.jsonl", texts)
    problems = save(tmp_path / "problems.jsonl", PROBLEMS)
    embed = embedder("codegen", model=str(codegen)).embed

    def unit(texts: Sequence[str]) -> Any:
        rows = embed(texts)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    programs = unit([PROGRAM, OTHER])
    least = np.linalg.norm(unit(texts)[:, None] - programs[None], axis=2).min(axis=1)
    limit = float(np.sort(least)[1:3].mean())
    report = hb.decontaminate(
        source,
        tmp_path / "out",
        benchmarks=[problems],
        ngram=None,
        embedder="codegen",
        embedder_model=str(codegen),
        embedding_threshold=limit,
    )
    assert kept(tmp_path / "out") == [str(i) for i in range(4) if least[i] > limit]
    assert report["counts"]["dropped"] == {"embedding": 2}
    assert report["config"]["embedder"] == embedder("codegen", model=str(codegen)).id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedder": "codegen"}, "embedder"),
        ({"embedder": "code2vec"}, "unknown"),
        ({"embedder": "hash", "embedder_model": "m"}, "embedder_model"),
        ({"embedder": lambda texts: np.zeros((1, 2, 3))}, "embedder"),
        ({"embedder": lambda texts: np.full((len(texts), 2), np.nan)}, "finite"),
        ({"embedder": "hash", "embedding_threshold": -1}, "embedding_threshold"),
        ({"embedder": "hash", "combine": "and"}, "ast_threshold"),
        ({"combine": "xor"}, "combine"),
        ({"ngram": None}, "ngram"),
        ({"fields": ["prompt"]}, "fields"),
        ({"fields": []}, "fields"),
        ({"unit": "word"}, "unit"),
        ({"ast_threshold": 0.9, "sweep": [0]}, "sweep"),
        ({"nearest": -1}, "nearest"),
    ],
)
def test_senseless_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = documents(tmp_path / "in.jsonl", [PROGRAM])
    problems = save(tmp_path / "problems.jsonl", PROBLEMS)
    with pytest.raises(ConfigError, match=message):
        hb.decontaminate(source, tmp_path / "out", benchmarks=[problems], **options)


def test_an_embedder_may_fail_with_its_own_error(tmp_path: Path) -> None:
    def broken(texts: Sequence[str]) -> Any:
        if len(texts) != 2:
            raise KeyError("no such model")
        return lengths(texts)

    source = documents(tmp_path / "in.jsonl", [PROGRAM, OTHER, "x"])
    problems = save(tmp_path / "problems.jsonl", PROBLEMS)
    with pytest.raises(KeyError, match="no such model"):
        hb.decontaminate(source, tmp_path / "out", benchmarks=[problems], embedder=broken)


# Benchmarks, fields, and sets of hashes


@needs_data
@pytest.mark.parametrize(
    ("name", "count"), [("humaneval", 164), ("humaneval+", 164), ("mbpp", 974), ("mbpp+", 378)]
)
def test_benchmarks_are_whole(name: str, count: int) -> None:
    problems = load_problems(benchmark_path(name))
    assert len(problems) == count
    assert all(p.program and p.tests for p in problems)
    assert sum(not p.docstring for p in problems) <= 1
    assert all(f"def {p.entry_point}" in p.program for p in problems)


@needs_data
def test_a_json_list_is_a_problem_file() -> None:
    problems = load_problems(Path(str(DATA)) / "sanitized-mbpp.json")
    assert len(problems) == 427
    assert problems[0].task_id == "MBPP/2"


def test_fields_decide_what_is_found(tmp_path: Path) -> None:
    problems = save(tmp_path / "problems.jsonl", PROBLEMS)
    texts = [PROGRAM.split('"""')[1], PROGRAM.split('"""')[2]]
    source = documents(tmp_path / "in.jsonl", texts)

    def found(*fields: str) -> set[str]:
        return {hit["id"] for hit in scan(source, benchmarks=[problems], fields=fields)["hits"]}

    assert found("docstring") == {"0"}
    assert found("docstring", "program") == {"0", "1"}
    assert found("tests") == set()
    hits = scan(source, benchmarks=[problems])["hits"]
    assert [hit["field"] for hit in hits] == ["docstring", "program"]
    assert hits[0]["context"] == texts[0]


def test_hashed_sets_find_the_same_and_say_nothing(tmp_path: Path) -> None:
    problems = save(tmp_path / "problems.jsonl", PROBLEMS)
    saved = tmp_path / "set.gz"
    count = save_ngrams(saved, [problems])
    plain = gzip.decompress(saved.read_bytes()).decode()
    assert count == len(plain.splitlines()) - 1 > 30
    words = set(re.findall(r"[a-z]{5,}", (PROGRAM + OTHER).lower()))
    body = plain.split("\n", 1)[1]
    assert not [word for word in words if word in body and not re.fullmatch("[a-f]+", word)]
    source, _ = corpus_of_edits(tmp_path)
    assert scan(source, benchmarks=[saved]) == scan(source, benchmarks=[problems])
    assert save_ngrams(tmp_path / "again.gz", [saved]) == count
    with pytest.raises(ConfigError, match="13"):
        scan(source, benchmarks=[saved], ngram=10)
    head, _, rest = plain.partition("\n")
    for broken, message in [
        (plain[:-40], "damaged"),
        (head.replace('"version": 2', '"version": 1') + "\n" + rest, "another version"),
        ('{"format": "hornbook n-grams"}\n', "line 1"),
    ]:
        saved.write_bytes(gzip.compress(broken.encode()))
        with pytest.raises(InputError, match=message):
            scan(source, benchmarks=[saved])
    out = tmp_path / "out"
    save_ngrams(saved, [problems])
    report = hb.decontaminate(source, out, benchmarks=[saved, problems], ast_threshold=0.9)
    assert report["details"]["items_without_reference"] == 2


# Order, threads, shards, strange documents


def plain_hits(text: str, contaminants: Contaminants, n: int) -> set[str]:
    def grams(source: str) -> set[tuple[str, ...]]:
        found = [word.lower() for word in re.findall(r"[A-Za-z0-9_]+", source)]
        return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}

    own = grams(text)
    return {
        p.task_id for p in contaminants.problems if own & (grams(p.docstring) | grams(p.program))
    }


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_scan_agrees_with_the_stage_and_a_plain_search(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("scan")
    problems = save(folder / "problems.jsonl", PROBLEMS)
    pieces = st.sampled_from(
        [
            PROGRAM,
            OTHER,
            PROGRAM[100:300],
            PROGRAM[150:200],
            OTHER[60:260],
            "\\n",
            '"',
            "\u00e9 ",
            "",
        ]
    )
    texts = ["".join(parts) for parts in data.draw(st.lists(st.lists(pieces, max_size=3)))]
    n = data.draw(st.sampled_from([3, 8, 13]))
    options: dict[str, Any] = {
        "benchmarks": [problems],
        "ngram": n,
        "short": False,
        "trivial": True,
    }
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=2)))
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    shards = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    for place, shard in enumerate(shards):
        text = "".join(
            json.dumps(row, ensure_ascii=data.draw(st.booleans())) + "\n" for row in shard
        )
        (folder / f"{place}.jsonl").write_text(text, encoding="utf-8")
    corpus.write(folder / "parquet", rows, {})
    rule = NgramRule(ngram=n, short=False, trivial=True)
    contaminants = load([problems], rule)
    expected = {
        (row["id"], item) for row in rows for item in plain_hits(row["text"], contaminants, n)
    }
    order = [folder / f"{place}.jsonl" for place in range(len(shards))]
    for inputs in (order, order[::-1], [folder / "parquet"]):
        found = scan(inputs, **options, threads=data.draw(st.sampled_from([1, 2])))
        assert {(hit["id"], hit["item"]) for hit in found["hits"]} == expected
        assert found["rows"] == len(rows)
    out = folder / "out"
    hb.decontaminate(order, out, **options)
    assert {(e["id"], e["item"]) for e in lines(out / "evidence/removed.json")} == expected
    strip = {"path", "row"}
    shown = [
        {k: v for k, v in e.items() if k not in strip} for e in lines(out / "evidence/removed.json")
    ]
    assert shown == [
        {k: v for k, v in e.items() if k not in strip} for e in scan(order, **options)["hits"]
    ]


def test_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    problems = save(tmp_path / "problems.jsonl", PROBLEMS)
    source = tmp_path / "in.jsonl"
    good = json.dumps({"text": PROGRAM}).encode()
    bad = [b'{"text": "\xff"}', b"[1]", b"nonsense", b'{"text": 3}', b'{"no": "text"}', b""]
    source.write_bytes(b"\n".join([good, *bad, good]))
    found = scan(source, benchmarks=[problems])
    assert (found["rows"], found["contaminated"]) == (2, 2)
    assert [hit["row"] for hit in found["hits"]] == [1, 8]
    reasons = {row: reason for _, row, reason in found["rejected"]}
    assert list(reasons) == [2, 3, 4, 5, 6]
    assert "UTF-8" in reasons[2]
    assert all(Path(path) == source for path, _, _ in found["rejected"])
    out = tmp_path / "out"
    counts = hb.decontaminate(source, out, benchmarks=[problems])["counts"]
    assert (counts["in"], counts["kept"], counts["rejected"]) == (2, 0, 5)
    rejected = lines(out / "rejected/rows.jsonl")
    assert [(row["row"], Path(row["path"])) for row in rejected] == [(n, source) for n in reasons]


def test_a_huge_document(tmp_path: Path) -> None:
    problems = save(tmp_path / "problems.jsonl", PROBLEMS)
    huge = "word and number 42, é; \n" * 800_000 + PROGRAM + "end " * 100
    source = documents(tmp_path / "in.jsonl", [huge, "x", ""])
    found = scan(source, benchmarks=[problems])
    assert [(hit["id"], hit["line"]) for hit in found["hits"]] == [("0", 800_001)]
    hb.decontaminate(source, tmp_path / "out", benchmarks=[problems])
    assert kept(tmp_path / "out") == ["1", "2"]


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    problems = save(tmp_path / "problems.jsonl", PROBLEMS)
    filler = "some words that mean nothing at all, again and again\n" * 1_200_000
    texts = [PROGRAM, *(f"# {i}\n{filler}" for i in range(6)), OTHER, "last"]
    source = documents(tmp_path / "in.jsonl", texts)
    seen: list[int] = []
    stop = True

    def embed(batch: Sequence[str]) -> Any:
        seen.append(len(batch))
        if stop and any(text.startswith("# 5") for text in batch):
            raise KeyboardInterrupt
        return np.array([[0.0, 1.0] if "def " in text[:50] else [1.0, 0.0] for text in batch])

    options: dict[str, Any] = {
        "benchmarks": [problems],
        "embedder": embed,
        "embedding_threshold": 0,
    }
    whole = tmp_path / "whole"
    stop = False
    report = hb.decontaminate(source, whole, **{**options, "embedder": lambda b: embed(b)})
    calls = len(seen)
    seen.clear()
    stop = True
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        hb.decontaminate(source, out, **options)
    stop = False
    seen.clear()
    again = hb.decontaminate(source, out, **options)
    assert len(seen) < calls - 2, "what stood in the finished part is not judged again"
    assert again["counts"] == report["counts"]
    assert [p["xxh3"] for p in again["parts"]] == [p["xxh3"] for p in report["parts"]]
    for name in ("evidence/removed.json", "problems.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not list(out.rglob("*.tmp"))
    assert not (out / "checkpoint.json").exists()


def test_equal_vectors_are_at_distance_nothing() -> None:
    rows = np.random.default_rng(1).normal(size=(40, 384))
    rows[7] = 0
    programs = [Problem(task_id=str(i), program=str(i)) for i in range(len(rows))]
    distances = _distances(lambda texts: rows[[int(text) for text in texts]], "own", programs)
    found = distances([str(i) for i in range(len(rows))])
    assert (np.diag(found) == 0).all()
    assert found[7, 3] == pytest.approx(1)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    assert np.allclose(found, np.linalg.norm(unit[:, None] - unit[None], axis=2), atol=1e-6)
