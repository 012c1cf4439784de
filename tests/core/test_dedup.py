"""Dedup against brute force: every removal justified, planted copies found, threads irrelevant."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hornbook as hb
from hornbook import corpus
from hornbook.errors import ConfigError, InputError
from hornbook.manifest import input_hash


def words(text: str) -> list[str]:
    """The documented token rule, written again in Python."""
    found: list[str] = []
    for is_word, run in itertools.groupby(text, key=lambda c: c == "_" or c.isalnum()):
        if is_word:
            found.append("".join(c.lower() for c in run))
    return found


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    list_ = words(text)
    return {tuple(list_[i : i + n]) for i in range(len(list_) - n + 1)}


def jaccard(a: set[Any], b: set[Any]) -> float:
    return len(a & b) / len(a | b)


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts_in(folder: Path) -> list[str]:
    return [row["text"] for row in corpus.read([folder])]


def evidence(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "evidence" / "removed.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def run(tmp: Path, texts: list[str], **options: Any) -> tuple[hb.Report, Path]:
    source = save(tmp / "in.jsonl", [{"text": text} for text in texts])
    out = tmp / "out"
    return hb.dedup(source, out, **options), out


def planted(seed: int, n_words: int = 120) -> tuple[list[str], list[int]]:
    """Texts in which document i >= 40 is document `origin[i]` with a few words changed."""
    import random

    random_ = random.Random(seed)
    vocabulary = [f"word{i}" for i in range(3000)]
    base = [random_.choices(vocabulary, k=n_words) for _ in range(40)]
    texts, origin = [" ".join(list_) for list_ in base], list(range(40))
    for i in range(120):
        copy = list(base[i % 40])
        for _ in range(random_.randint(0, 5)):
            copy[random_.randrange(n_words)] = random_.choice(vocabulary)
        if i % 3 == 0:
            del copy[: random_.randint(1, 6)]
        texts.append("  ".join(copy).upper() if i % 2 else " ".join(copy))
        origin.append(i % 40)
    return texts, origin


def check(texts: list[str], report: hb.Report, out: Path, threshold: float, n: int) -> set[int]:
    """Holds the result against brute force; returns the rows removed."""
    removed: dict[int, int] = {}
    for row in evidence(out):
        removed[row["removed_row"]] = row["kept_row"]
        gone, kept = texts[row["removed_row"]], texts[row["kept_row"]]
        if gone == kept:
            assert row["jaccard"] == 1
        else:
            truth = jaccard(shingles(gone, n), shingles(kept, n))
            assert row["jaccard"] == pytest.approx(truth, abs=1e-12)
            assert truth >= threshold
    assert not set(removed.values()) & set(removed), "removed against a document that is not kept"
    assert texts_in(out) == [text for i, text in enumerate(texts) if i not in removed]
    counts = report["counts"]
    assert counts["in"] == len(texts)
    assert counts["kept"] == len(texts) - len(removed)
    assert counts["dropped"]["exact"] == len(texts) - len(set(texts))
    assert sum(counts["dropped"].values()) == len(removed)
    return set(removed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85])
def test_planted_copies(tmp_path: Path, seed: int, threshold: float) -> None:
    texts, _ = planted(seed)
    report, out = run(tmp_path, texts, threshold=threshold, seed=seed)
    removed = check(texts, report, out, threshold, 5)
    sets = [shingles(text, 5) for text in texts]
    kept = [i for i in range(len(texts)) if i not in removed]
    pairs = [
        (a, b) for a, b in itertools.combinations(kept, 2) if jaccard(sets[a], sets[b]) >= threshold
    ]
    # Candidates are found with high probability only; what stays unfound is rare.
    assert len(pairs) <= (0.08 if threshold < 0.6 else 0.02) * len(texts)
    assert len(removed) > 30


@pytest.mark.parametrize("keep", ["longest", "first"])
def test_equals_a_greedy_scan_when_bands_miss_nothing(tmp_path: Path, keep: str) -> None:
    texts, _ = planted(7, n_words=30)
    texts = texts[::-1]
    n, threshold = 3, 0.4
    # 300 bands of one row: a pair at 0.4 is missed with a probability of 1e-66.
    report, out = run(tmp_path, texts, ngram=n, threshold=threshold, bands=300, rows=1, keep=keep)
    removed = check(texts, report, out, threshold, n)
    order = list(range(len(texts)))
    if keep == "longest":
        order.sort(key=lambda i: -len(texts[i].encode()))
    sets = [shingles(text, n) for text in texts]
    expected: dict[int, int] = {}
    kept: list[int] = []
    for i in order:
        near = [k for k in kept if texts[k] == texts[i] or jaccard(sets[i], sets[k]) >= threshold]
        if near:
            expected[i] = near[0]
        else:
            kept.append(i)
    assert removed == set(expected)
    named = {row["removed_row"]: row["kept_row"] for row in evidence(out)}
    distinct = [i for i in expected if texts.index(texts[i]) == i]
    assert {i: named[i] for i in distinct} == {i: expected[i] for i in distinct}


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["a", "b", "C", "é", "ß", "東京", "x_1", "7"]), max_size=12).map(
            " ".join
        ),
        max_size=25,
    ),
    n=st.integers(1, 4),
    threshold=st.sampled_from([0.3, 0.5, 0.75, 1.0]),
    keep=st.sampled_from(["longest", "first"]),
)
def test_every_removal_is_justified(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], n: int, threshold: float, keep: Any
) -> None:
    folder = tmp_path_factory.mktemp("dedup")
    report, out = run(folder, texts, ngram=n, threshold=threshold, keep=keep, bands=16, rows=2)
    removed = check(texts, report, out, threshold, n)
    # Equal shingle sets share every band: only one document of each such set can stay.
    sets = [frozenset(shingles(text, n)) for i, text in enumerate(texts) if i not in removed]
    assert len([s for s in sets if s]) == len({s for s in sets if s})


def test_threads_never_change_a_byte(tmp_path: Path) -> None:
    texts, _ = planted(1)
    source = save(tmp_path / "in.jsonl", [{"text": text, "n": i} for i, text in enumerate(texts)])
    results = []
    for threads in (1, 2, 5):
        out = tmp_path / str(threads)
        report = hb.dedup(source, out, threads=threads, threshold=0.5)
        files = sorted(path for path in out.rglob("*") if path.is_file())
        contents = {
            str(path.relative_to(out)): path.read_bytes()
            for path in files
            if path.name != "manifest.json"
        }
        results.append((report["key"], report["counts"], report["details"], contents))
    assert len(results[0][3]) == 5
    assert results[0] == results[1] == results[2]


def test_no_transitive_closure(tmp_path: Path) -> None:
    line = [f"w{i}" for i in range(60)]
    a, b, c = (" ".join(line[i : i + 40]) for i in (0, 8, 16))
    # a ~ b and b ~ c, but not a ~ c.
    report, out = run(tmp_path, [a, b, c], threshold=0.6, keep="first", bands=64, rows=2)
    assert texts_in(out) == [a, c]
    assert report["counts"]["dropped"] == {"exact": 0, "near": 1}


def test_exact(tmp_path: Path) -> None:
    texts = ["x = 1\n", "x  = 1\n", "x = 1\n", "", "", "x = 1\n"]
    report, out = run(tmp_path, texts, method="exact")
    assert texts_in(out) == ["x = 1\n", "x  = 1\n", ""]
    assert report["counts"] == {"in": 6, "kept": 3, "dropped": {"exact": 3}, "rejected": 0}
    assert [(row["removed_row"], row["kept_row"]) for row in evidence(out)] == [
        (2, 0),
        (4, 3),
        (5, 0),
    ]
    assert (
        hb.dedup(tmp_path / "in.jsonl", out, method="exact", threshold=0.9)["key"]
        == (report["key"])
    ), "options of minhash do not change what exact is"


def test_short_documents_are_not_one_cluster(tmp_path: Path) -> None:
    texts = ["", "a", "b", "a b", "x = y", "a b c d", "a b c d", "# ---", "+++"]
    report, out = run(tmp_path, texts, threshold=0.1)
    assert texts_in(out) == ["", "a", "b", "a b", "x = y", "a b c d", "# ---", "+++"]
    assert report["details"]["documents_too_short"] == 8


def test_layout_and_case_do_not_matter_but_words_do(tmp_path: Path) -> None:
    code = "def f(x):\n    return g(x, y_1) + h(x)\n"
    texts = [code, code.replace("    ", "\t\t").upper(), code.replace("y_1", "y_2")]
    _, out = run(tmp_path, texts, threshold=0.9, keep="first")
    assert texts_in(out) == [texts[0], texts[2]]


def test_longest_is_kept_and_ties_go_to_the_first(tmp_path: Path) -> None:
    body = " ".join(f"w{i}" for i in range(50))
    texts = [body, body + " end", body + " fin", "quite another thing, all of it, you see"]
    _, out = run(tmp_path, texts)
    assert texts_in(out) == [texts[1], texts[3]]


def test_highest_compares_integers_as_integers(tmp_path: Path) -> None:
    low, high = 2**60, 2**60 + 1
    assert float(low) == float(high)
    rows = [{"id": str(i), "text": "same", "at": at} for i, at in enumerate([None, low, high, -1])]
    hb.dedup(save(tmp_path / "in.jsonl", rows), tmp_path / "out", keep="highest", column="at")
    assert [row["id"] for row in corpus.read([tmp_path / "out"])] == ["2"]


def test_output_inside_an_input_is_refused_at_once(tmp_path: Path) -> None:
    save(tmp_path / "in.jsonl", [{"text": "a"}])
    with pytest.raises(ConfigError, match="lies inside the input"):
        hb.dedup(tmp_path, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_columns_and_ids_are_carried(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "one", "score": 0.5, "lang": "en", "ok": True},
        {"id": "b", "text": "one", "score": 0.6, "lang": "en", "ok": False},
        {"id": "c", "text": "two", "score": None, "lang": "de", "ok": None},
    ]
    out = tmp_path / "out"
    hb.dedup([save(tmp_path / "in.jsonl", rows)], out)
    assert list(corpus.read([out])) == [rows[0], rows[2]]
    (row,) = evidence(out)
    assert (row["removed_id"], row["kept_id"], row["rule"]) == ("b", "a", "exact")


def test_several_inputs_keep_their_order(tmp_path: Path) -> None:
    first = save(tmp_path / "b.jsonl", [{"text": "p"}, {"text": "q"}])
    second = save(tmp_path / "a.jsonl", [{"text": "q"}, {"text": "r", "extra": 3}])
    out = tmp_path / "out"
    hb.dedup([first, second], out)
    rows = list(corpus.read([out]))
    assert [(row["text"], row["extra"]) for row in rows] == [("p", None), ("q", None), ("r", 3)]


def test_bad_rows_are_set_aside(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "a"}\nnot json\n{"text": 3}\n{"text": "\xff"}\n{"text": "a"}\n')
    out = tmp_path / "out"
    counts = hb.dedup(source, out)["counts"]
    assert counts == {"in": 2, "kept": 1, "dropped": {"exact": 1, "near": 0}, "rejected": 3}
    lines = (out / "rejected" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["row"] for line in lines] == [2, 3, 4]


@pytest.mark.parametrize("method", ["minhash", "exact"])
def test_empty_corpus(tmp_path: Path, method: Any) -> None:
    report, out = run(tmp_path, [], method=method)
    assert report["counts"]["in"] == report["counts"]["kept"] == 0
    assert texts_in(out) == []
    assert evidence(out) == []


def test_inputs_are_hashed_while_they_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [{"text": f"text {i} " + "word " * 30} for i in range(4000)]
    save(folder / "a.jsonl", rows[:2000])
    save(folder / "b.jsonl", rows[2000:])
    (folder / "notes.txt").write_text("not read, but part of the folder")
    for inputs in (folder, [folder / "b.jsonl", folder / "a.jsonl"]):
        out = tmp_path / ("one" if inputs is folder else "two")
        report = hb.dedup(inputs, out, method="exact")
        paths = inputs if isinstance(inputs, list) else [inputs]
        assert [one["hash"] for one in report["inputs"]] == [input_hash(path) for path in paths]
        assert hb.dedup(inputs, out, method="exact").reused
    (folder / "notes.txt").write_text("changed")
    assert not hb.dedup(folder, tmp_path / "one", method="exact").reused


def test_what_changes_while_it_is_read_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "a.jsonl", [{"text": f"text {i}"} for i in range(20)])
    hb.dedup(folder, tmp_path / "out", method="exact")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    late = folder / "b.jsonl"
    module = sys.modules["hornbook.dedup"]
    last = module.write_page

    def arrives(*arguments: Any) -> None:
        last(*arguments)
        save(late, [{"text": "late"}])

    monkeypatch.setattr(module, "write_page", arrives)
    for out in ("new", "out"):
        late.unlink(missing_ok=True)
        with pytest.raises(InputError, match="changed while it was being read"):
            hb.dedup(folder, tmp_path / out, method="exact", keep="first")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_done_is_done(tmp_path: Path) -> None:
    report, out = run(tmp_path, ["a", "b"])
    assert hb.dedup(tmp_path / "in.jsonl", out, threads=1)["started"] == report["started"]


@pytest.mark.parametrize(
    "options",
    [
        {"length": 0},
        {"ngram": 2**70},
        {"threads": 2**70},
        {"column": "score"},
        {"recall": 1.0},
        {"warn_share": 0},
        {"memory_mb": 1},
        {"method": "fuzzy"},
        {"keep": "best"},
        {"threshold": 0},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"ngram": 0},
        {"bands": 0},
        {"rows": 5000},
        {"seed": -1},
        {"threads": 0},
    ],
)
def test_senseless_options(tmp_path: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        run(tmp_path, ["a"], **options)
    assert not (tmp_path / "out").exists()


def test_missing_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        hb.dedup(tmp_path / "nowhere.jsonl", tmp_path / "out")
    with pytest.raises(ConfigError, match="inputs"):
        hb.dedup([], tmp_path / "out")
