"""Dedup beyond one corpus in memory: exact join, references, index, limits, spans, pieces."""

import ast
import gzip
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hornbook as hb
from hornbook import corpus, dedup_pieces
from hornbook.dedup import MOST_MEMORY_MB, DedupConfig, recall_curve
from hornbook.errors import ConfigError, ResumeError

WORD = re.compile(r"[a-z0-9_]+")


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(folder: Path, name: str = "removed") -> list[dict[str, Any]]:
    text = (folder / "evidence" / f"{name}.json").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def texts_in(folder: Path) -> list[str]:
    return [row["text"] for row in corpus.read([folder])]


def grams(text: str, n: int) -> frozenset[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return frozenset(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def jaccard(a: frozenset[Any], b: frozenset[Any]) -> float:
    return len(a & b) / len(a | b) if a and b else 0.0


def planted(seed: int, count: int = 150) -> list[str]:
    """Documents of 5 to 90 words, half of them edited copies of others, some exact, some chains."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(400)]
    texts = [rng.choices(words, k=rng.randint(3, 90)) for _ in range(count // 2)]
    while len(texts) < count:
        copy = list(rng.choice(texts))
        for _ in range(rng.randint(0, 1 + len(copy) // 12)):
            copy[rng.randrange(len(copy))] = rng.choice(words)
        texts.append(copy)
    return [" ".join(text) for text in texts]


def greedy(texts: list[str], threshold: float, n: int, order: list[int]) -> dict[int, int]:
    """What goes and against what, by the definition: the first kept one that is similar."""
    sets = [grams(text, n) for text in texts]
    kept: list[int] = []
    removed: dict[int, int] = {}
    for row in order:
        for other in kept:
            if texts[row] == texts[other] or jaccard(sets[row], sets[other]) >= threshold:
                removed[row] = other
                break
        else:
            kept.append(row)
    return removed


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.85])
@pytest.mark.parametrize("memory_mb", [None, 16])
def test_the_join_misses_nothing(tmp_path: Path, threshold: float, memory_mb: int | None) -> None:
    for seed in range(3):
        texts = planted(seed)
        source = save(tmp_path / f"{seed}.jsonl", [{"text": text} for text in texts])
        out = tmp_path / f"out{seed}"
        hb.dedup(
            source, out, method="exact-join", threshold=threshold, ngram=2, keep="first",
            components=True, memory_mb=memory_mb,
        )  # fmt: skip
        found = {row["removed_row"] for row in lines(out)}
        assert found == set(greedy(texts, threshold, 2, list(range(len(texts)))))
        # Every pair of distinct texts, none missed and none extra.
        first = {text: row for row, text in reversed(list(enumerate(texts)))}
        sets = {row: grams(text, 2) for text, row in first.items()}
        truth = {
            (a, b) for a in sets for b in sets if a < b and jaccard(sets[a], sets[b]) >= threshold
        }
        edges = {(a, b) for a, b, _ in lines(out, "edges")}
        assert edges == truth


@pytest.fixture(scope="module")
def functions() -> list[str]:
    """Functions of the standard library, which holds many that resemble each other."""
    folder = Path(json.__file__).parents[1]
    names = ("asyncio", "multiprocessing", "unittest", "xml/dom", "xml/sax", "tkinter")
    paths = [path for name in names for path in sorted((folder / name).glob("*.py"))]
    found: list[str] = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        rows = text.splitlines(keepends=True)
        found += [
            "".join(rows[node.lineno - 1 : node.end_lineno])
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and text.isascii()
        ]
    return found[:1500]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.85])
def test_real_functions_against_brute_force(
    tmp_path: Path, functions: list[str], threshold: float
) -> None:
    texts = list(dict.fromkeys(functions))
    source = save(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    hb.dedup(
        source, tmp_path / "join", method="exact-join", threshold=threshold, ngram=3,
        keep="first", components=True,
    )  # fmt: skip
    sets = [grams(text, 3) for text in texts]
    truth = {
        (a, b)
        for a in range(len(texts))
        for b in range(a + 1, len(texts))
        if min(len(sets[a]), len(sets[b])) >= threshold * max(len(sets[a]), len(sets[b]))
        and jaccard(sets[a], sets[b]) >= threshold
    }
    assert len(truth) > 4
    assert {(a, b) for a, b, _ in lines(tmp_path / "join", "edges")} == truth
    removed = {row["removed_row"] for row in lines(tmp_path / "join")}
    assert removed == set(greedy(texts, threshold, 3, list(range(len(texts)))))
    if threshold < 0.7:
        return  # the default bands are for 0.7
    hb.dedup(source, tmp_path / "bands", threshold=threshold, ngram=3, keep="first")
    banded = lines(tmp_path / "bands")
    assert all(
        jaccard(sets[row["removed_row"]], sets[row["kept_row"]]) >= threshold for row in banded
    )
    assert len({row["removed_row"] for row in banded} & removed) >= 0.99 * len(removed)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_memory_never_changes_a_byte(tmp_path: Path, suffix: str) -> None:
    # A second column of long strings, with nulls in some stretches alone.
    notes = (None if i % 700 == 5 else f"{i:04x}" * 99 for i in itertools.count())
    rows = [{"text": text, "note": next(notes)} for text in planted(5, 3000)]
    source = save(tmp_path / "in.jsonl", rows)
    if suffix:
        source = source.with_name("in.jsonl.gz")
        source.write_bytes(gzip.compress((tmp_path / "in.jsonl").read_bytes()))
    for method in ("minhash", "exact-join", "exact"):
        outs = []
        for memory, threads in ((None, 1), (None, 4), (16, 1), (16, 4)):
            out = tmp_path / f"{method}{memory}{threads}"
            options: Any = {"method": method, "memory_mb": memory, "threads": threads}
            hb.dedup(source, out, ngram=2, **options)
            outs.append(out)
            assert not (out / "scratch").exists()
        parts = [[part.read_bytes() for part in sorted(out.glob("part-*"))] for out in outs]
        assert all(part == parts[0] for part in parts)
        assert all(lines(out) == lines(outs[0]) for out in outs)
        assert all(lines(out, "clusters") == lines(outs[0], "clusters") for out in outs)


@pytest.mark.parametrize("last", [{"stars": 3}, {"n": "many"}, {"n": 0.5}])
@pytest.mark.parametrize("memory_mb", [None, 16])
@pytest.mark.parametrize("normalize", [False, True])
def test_columns_that_appear_late_are_kept(
    tmp_path: Path, last: dict[str, Any], memory_mb: int | None, normalize: bool
) -> None:
    # More lines than those by which the columns are judged at first, then one that does not fit.
    rows = [{"text": f"{i} " + "word " * 2000, "n": i} for i in range(500)]
    rows += [dict(rows[7]), {"text": "the last row of all", "n": None} | last]
    source = save(tmp_path / "in.jsonl", rows)
    assert source.stat().st_size > 4 << 20
    out = tmp_path / "out"
    report = hb.dedup(source, out, method="exact", memory_mb=memory_mb, normalize=normalize)
    assert sorted(path.name for path in out.glob("part-*")) == ["part-00000.parquet"]
    assert report["counts"]["dropped"] == {"exact": 1}
    found = list(corpus.read([out]))
    assert len(found) == 501
    for name, value in last.items():
        assert found[-1][name] == value
        assert {type(row[name]) for row in found} <= {type(value), type(None)}


# Without normalising, what stays is known at once and there is no second reading.
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_the_second_reading_passes_over_what_goes_and_what_is_no_row(
    tmp_path: Path, suffix: str, normalize: bool
) -> None:
    texts = [f"text {i % 60} of some words" for i in range(100)]
    rows = [{"text": text, "n": i} for i, text in enumerate(texts)]
    source = tmp_path / f"in{suffix}"
    lost = 0
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{"text": None, "n": -1}, *rows]), source)
        lost = 1
    else:
        listed = [json.dumps(row) for row in rows]
        for at in (90, 50, 3, 0):
            listed[at:at] = ["", '{"text": 1}', "torn {"]
        lost = 8
        data = "\n".join(listed).encode()
        source.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    report = hb.dedup(source, tmp_path / "out", method="exact", normalize=normalize)
    assert report["counts"] == {"in": 100, "kept": 60, "dropped": {"exact": 40}, "rejected": lost}
    found = [(row["text"], row["n"]) for row in corpus.read([tmp_path / "out"])]
    assert found == [(row["text"], row["n"]) for row in rows[:60]]


def test_letters_of_any_script_tell_words_apart(tmp_path: Path) -> None:
    # Their bytes in UTF-8 differ in the bit that makes ASCII letters small, and in nothing else.
    ones = "一丁丂七丄丅丆万丈三上下"
    others = "".join(chr(ord(letter) + 0x20) for letter in ones)
    rows = [{"text": " ".join(letters * 5)} for letters in (ones, others)]
    source = save(tmp_path / "in.jsonl", rows)
    report = hb.dedup(source, tmp_path / "out", method="exact-join", ngram=2, threshold=0.5)
    assert report["counts"]["kept"] == 2


def test_shards_never_change_the_result(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": text} for i, text in enumerate(planted(6))]
    one = save(tmp_path / "all.jsonl", rows)
    shards = [save(tmp_path / f"{i}.jsonl", rows[i * 50 : i * 50 + 50]) for i in range(3)]
    hb.dedup(one, tmp_path / "a", ngram=2)
    hb.dedup(shards, tmp_path / "b", ngram=2)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    # With `longest` and no ties, the order of the input does not decide who stays.
    distinct = {len(row["text"]): row for row in rows}
    turned = list(distinct.values())
    hb.dedup(save(tmp_path / "c.jsonl", turned), tmp_path / "c", ngram=2, method="exact-join")
    turned.reverse()
    hb.dedup(save(tmp_path / "d.jsonl", turned), tmp_path / "d", ngram=2, method="exact-join")
    assert sorted(texts_in(tmp_path / "c")) == sorted(texts_in(tmp_path / "d"))


@pytest.mark.parametrize("method", ["minhash", "exact-join", "exact"])
@pytest.mark.parametrize("memory_mb", [None, 16])
def test_against_another_corpus(tmp_path: Path, method: Any, memory_mb: int | None) -> None:
    texts = planted(7)
    half = len(texts) // 2
    old = save(tmp_path / "old.jsonl", [{"text": text} for text in texts[:half]])
    new = save(tmp_path / "new.jsonl", [{"text": text} for text in texts[half:]])
    out = tmp_path / "out"
    options: dict[str, Any] = {"ngram": 2, "keep": "first", "bands": 100, "rows": 2}
    hb.dedup(new, out, against=old, method=method, memory_mb=memory_mb, **options)
    sets = [grams(text, 2) for text in texts]
    kept = list(range(half))
    gone = set()
    for row in range(half, len(texts)):
        if any(
            texts[row] == texts[k] or (method != "exact" and jaccard(sets[row], sets[k]) >= 0.7)
            for k in kept
        ):
            gone.add(row - half)
        else:
            kept.append(row)
    evidence = lines(out)
    assert {row["removed_row"] for row in evidence} == gone
    for row in evidence:
        where = row["kept_row"] if row.get("kept_in") == str(old) else row["kept_row"] + half
        similarity = jaccard(sets[row["removed_row"] + half], sets[where])
        same = texts[row["removed_row"] + half] == texts[where]
        assert same or similarity == pytest.approx(row["jaccard"])


def test_an_index_grows_and_remembers(tmp_path: Path) -> None:
    texts = planted(8)
    parts = [texts[:50], texts[50:100], texts[100:]]
    options: dict[str, Any] = {"ngram": 2, "keep": "first", "index": tmp_path / "index"}
    left: list[str] = []
    for number, part in enumerate(parts):
        source = save(tmp_path / f"{number}.jsonl", [{"text": text} for text in part])
        hb.dedup(source, tmp_path / f"out{number}", **options)
        left += texts_in(tmp_path / f"out{number}")
    every = save(tmp_path / "all.jsonl", [{"text": text} for text in texts])
    hb.dedup(every, tmp_path / "all", ngram=2, keep="first")
    assert left == texts_in(tmp_path / "all")
    # The same input again, its folder lost: its own segment does not count against it.
    hb.dedup(tmp_path / "1.jsonl", tmp_path / "again", **options)
    # What the third run kept is there too, so nothing more may stay than did before.
    assert set(texts_in(tmp_path / "again")) <= set(texts_in(tmp_path / "out1"))
    for change in ({"ngram": 3}, {"seed": 1}, {"bands": 16}, {"normalize": True}):
        with pytest.raises(ResumeError, match=next(iter(change))):
            hb.dedup(every, tmp_path / "refused", **{**options, **change})  # type: ignore[arg-type]
    listing = tmp_path / "index" / "index.json"
    listing.write_text(listing.read_text("utf-8").replace("maximal runs", "other runs"), "utf-8")
    with pytest.raises(ResumeError, match="token_rule"):
        hb.dedup(every, tmp_path / "refused", **options)


def test_keep_policies(tmp_path: Path) -> None:
    text = "a b c d e f g h i j k l"
    rows = [
        {"text": text, "q": 1.5},
        {"text": text, "q": 7.0},
        {"text": text + " m", "q": None},
        {"text": text + " n", "q": -3.0},
    ]
    source = save(tmp_path / "in.jsonl", rows)
    kept = {}
    for keep, column in (("first", None), ("longest", None), ("highest", "q")):
        out = tmp_path / keep
        hb.dedup(source, out, ngram=2, keep=keep, column=column)  # type: ignore[arg-type]
        kept[keep] = [row["kept_row"] for row in lines(out)]
        assert len(texts_in(out)) == 1
    assert kept == {"first": [0, 0, 0], "longest": [2, 2, 2], "highest": [1, 1, 1]}
    with pytest.raises(ConfigError, match="not a number"):
        hb.dedup(source, tmp_path / "x", keep="highest", column="text")
    with pytest.raises(ConfigError, match="no `z`"):
        hb.dedup(source, tmp_path / "x", keep="highest", column="z")


def test_white_space_when_normalised(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", [{"text": "a  b"}, {"text": " a\nb "}, {"text": "ab"}])
    assert hb.dedup(source, tmp_path / "a", method="exact")["counts"]["kept"] == 3
    report = hb.dedup(source, tmp_path / "b", method="exact", normalize=True)
    assert report["counts"]["kept"] == 2


def test_short_documents_are_only_compared_whole(tmp_path: Path) -> None:
    rows = [{"text": text} for text in ["a", "b", "a b", "", " ", "a", "A", "a b c d"]]
    source = save(tmp_path / "in.jsonl", rows)
    for method in ("minhash", "exact-join"):
        report = hb.dedup(source, tmp_path / method, method=method)  # type: ignore[arg-type]
        assert report["counts"]["dropped"] == {"exact": 1, "near": 0}
        assert report["details"]["documents_too_short"] == 7


def test_sources_and_warnings(tmp_path: Path) -> None:
    rows = [{"text": f"same text {i // 30}", "from": "copies"} for i in range(60)]
    rows += [{"text": f"text of its own {i}", "from": "own"} for i in range(30)]
    source = save(tmp_path / "in.jsonl", rows)
    report = hb.dedup(source, tmp_path / "out", source="from")
    assert report["details"]["sources"] == {
        "copies": {"rows": 60, "removed": 58},
        "own": {"rows": 30, "removed": 0},
    }
    assert report["details"]["warnings"] == ["copies lost 58 of 60 documents (97%)"]
    page = (tmp_path / "out/evidence/pairs.html").read_text("utf-8")
    assert "copies lost 58" in page


def test_the_page_shows_pairs_and_escapes_them(tmp_path: Path) -> None:
    text = "<script>one two</script> " + " ".join(f"w{i}" for i in range(30))
    source = save(tmp_path / "in.jsonl", [{"text": text}, {"text": text + " more"}])
    hb.dedup(source, tmp_path / "out")
    page = (tmp_path / "out/evidence/pairs.html").read_text("utf-8")
    assert "&lt;script&gt;one two" in page
    assert "<script>one" not in page
    assert " more" in page


def test_recall_is_wanted_measured_and_printed(tmp_path: Path) -> None:
    texts = planted(9, 600)
    source = save(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    report = hb.dedup(source, tmp_path / "out", ngram=2, recall=0.95)
    details = report["details"]
    assert details["expected_recall"] >= 0.95
    assert details["recall_curve"] == recall_curve(details["bands"], details["rows"])
    measured = details["measured_recall"]
    assert measured["similar_pairs"] > 50
    assert 0.8 < measured["low"] <= measured["recall"] <= 1
    poor = hb.dedup(source, tmp_path / "poor", ngram=2, bands=1, rows=12)
    assert poor["details"]["measured_recall"]["recall"] < 0.7
    with pytest.raises(ConfigError, match="exact-join"):
        DedupConfig(threshold=0.01, recall=0.999)


def test_document_recall_of_the_default(tmp_path: Path) -> None:
    texts = planted(10, 800)
    source = save(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    hb.dedup(source, tmp_path / "bands", ngram=3, keep="first")
    hb.dedup(source, tmp_path / "join", ngram=3, keep="first", method="exact-join")
    sets = [grams(text, 3) for text in texts]
    for row in lines(tmp_path / "bands"):
        a, b = row["removed_row"], row["kept_row"]
        assert texts[a] == texts[b] or jaccard(sets[a], sets[b]) >= 0.7
    found = {row["removed_row"] for row in lines(tmp_path / "bands")}
    truth = {row["removed_row"] for row in lines(tmp_path / "join")}
    assert len(truth) > 100
    assert len(found & truth) >= 0.99 * len(truth)


def test_rows_that_are_no_text_are_set_aside(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "a b"}\n{"text": "\xff"}\n{"text": "a b"}\n')
    report = hb.dedup(source, tmp_path / "out", memory_mb=16)
    assert report["counts"] == {
        "in": 2, "kept": 1, "dropped": {"exact": 1, "near": 0}, "rejected": 1,
    }  # fmt: skip


def words_of(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"\w+", text)]


def runs_of(text: str, length: int) -> list[tuple[str, ...]]:
    found = words_of(text)
    return [tuple(found[i : i + length]) for i in range(len(found) - length + 1)]


def cut_twin(texts: list[str], length: int) -> tuple[list[str | None], set[tuple[str, ...]]]:
    """The definition of `substring` in Python: texts, None if no word is left, and the repeats."""
    standing: set[tuple[str, ...]] = set()
    repeats = set()
    results: list[str | None] = []
    for text in texts:
        words = list(re.finditer(r"\w+", text))
        runs = runs_of(text, length)
        cut: set[int] = set()

        def uncut(i: int, cut: set[int] = cut) -> bool:
            return not cut & set(range(i, i + length))

        for i, run in enumerate(runs):
            before = range(i - length + 1)
            if run in standing or any(runs[p] == run and uncut(p) for p in before):
                cut.update(range(i, i + length))
                repeats.add(run)
        standing |= {run for i, run in enumerate(runs) if uncut(i)}
        if cut and len(cut) == len(words):
            results.append(None)
            continue
        left, end = "", 0
        for i, word in enumerate(words):
            if i in cut:
                if i - 1 not in cut:
                    left += text[end : word.start()]
                end = word.end()
        results.append(left + text[end:])
    return results, repeats


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["a", "b", "ü", "東京", "(", "\n"]), max_size=25).map(" ".join),
        min_size=1,
        max_size=8,
    ),
    length=st.integers(1, 6),
)
def test_spans_equal_their_twin(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], length: int
) -> None:
    folder = tmp_path_factory.mktemp("spans")
    source = save(folder / "in.jsonl", [{"text": text} for text in texts])
    report = hb.dedup(source, folder / "out", method="substring", length=length)
    results, repeats = cut_twin(texts, length)
    expected = [text for text in results if text is not None]
    assert texts_in(folder / "out") == expected
    assert repeats <= {run for text in expected for run in runs_of(text, length)}
    assert report["counts"]["kept"] == len(expected)
    for cut in lines(folder / "out"):
        span = texts[cut["row"]].encode()[cut["start"] : cut["end"]].decode()
        assert len(re.findall(r"\w+", span)) == cut["words"] >= length


def test_what_a_cut_touches_does_not_stand_there(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", [{"text": text} for text in ("a b", "a b c", "b c")])
    hb.dedup(source, tmp_path / "out", method="substring", length=2)
    assert texts_in(tmp_path / "out") == ["a b", " c", "b c"]


METHODS = ("exact", "exact-join", "minhash")


@pytest.mark.parametrize("first", METHODS)
@pytest.mark.parametrize("second", METHODS)
def test_an_index_serves_every_method(tmp_path: Path, first: Any, second: Any) -> None:
    text = " ".join(f"w{i}" for i in range(60))
    old = save(tmp_path / "old.jsonl", [{"text": text}])
    new = save(tmp_path / "new.jsonl", [{"text": text}, {"text": f"{text} more"}])
    hb.dedup(old, tmp_path / "one", method=first, index=tmp_path / "index")
    report = hb.dedup(new, tmp_path / "two", method=second, index=tmp_path / "index")
    dropped = report["counts"]["dropped"]
    assert (dropped["exact"], dropped.get("near", 0)) == (1, int(second != "exact"))


def test_an_index_keeps_what_it_lists_until_the_list_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [{"text": " ".join(f"w{i}{k}" for k in range(9))} for i in range(20)]
    old = save(tmp_path / "old.jsonl", texts)
    index = tmp_path / "index"
    hb.dedup(old, tmp_path / "a", index=index)

    def stop(label: str, done: int, total: int | None) -> None:
        if "index" in label:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hornbook.progress.advance", stop)
        with pytest.raises(KeyboardInterrupt):
            hb.dedup(old, tmp_path / "b", index=index)
    new = save(tmp_path / "new.jsonl", texts[:5])
    assert hb.dedup(new, tmp_path / "c", against=[index])["counts"]["kept"] == 0
    for name in ("d", "e", "f"):  # the same again takes the place of itself
        hb.dedup(old, tmp_path / name, index=index)
        assert hb.dedup(new, tmp_path / f"{name}2", against=[index])["counts"]["kept"] == 0
        assert len([path for path in index.iterdir() if path.is_dir()]) == 1


def test_what_an_index_has_lost_is_added_again(tmp_path: Path) -> None:
    old = save(tmp_path / "old.jsonl", [{"text": "a b c d e f g"}])
    index = tmp_path / "index"
    hb.dedup(old, tmp_path / "out", index=index)
    assert hb.dedup(old, tmp_path / "out", index=index).reused
    shutil.rmtree(index)
    assert not hb.dedup(old, tmp_path / "out", index=index).reused
    assert hb.dedup(old, tmp_path / "two", against=[index])["counts"]["kept"] == 0


def test_components_are_of_pairs_with_the_input(tmp_path: Path) -> None:
    text = " ".join(f"w{i}" for i in range(60))
    old = save(tmp_path / "old.jsonl", [{"text": f"{text} {i}"} for i in range(3)])
    new = save(tmp_path / "new.jsonl", [{"text": f"{text} new"}])
    hb.dedup(new, tmp_path / "out", against=old, components=True)
    assert [component["pairs"] for component in lines(tmp_path / "out", "components")] == [3]


def test_pieces_make_the_whole(tmp_path: Path) -> None:
    texts = list(dict.fromkeys(planted(11, 300)))
    config = DedupConfig(ngram=2, keep="first")
    ids = [str(i) for i in range(len(texts))]
    signed, records = [], []
    for start in range(0, len(texts), 64):
        part = slice(start, start + 64)
        batch = pa.record_batch({"id": ids[part], "text": texts[part]})
        signed.append(dedup_pieces.sign(batch, config))
        records.append(dedup_pieces.keys(signed[-1], start))
    key = np.concatenate([record[0] for record in records])
    document = np.concatenate([record[1] for record in records])
    # Two partitions, as a shuffle by key would make them.
    found = [dedup_pieces.pairs(key[key % 2 == p], document[key % 2 == p]) for p in (0, 1)]
    pairs = {pair for a, b in found for pair in zip(a.tolist(), b.tolist(), strict=True)}
    ordered = sorted(pairs)
    a, b = (np.array([pair[i] for pair in ordered], dtype=np.int64) for i in (0, 1))
    whole = pa.Table.from_batches(signed).combine_chunks().to_batches()[0]
    similarity = dedup_pieces.verify(whole, a, b, 0.7)
    edges = [
        (int(x), int(y), float(j))
        for x, y, j in zip(a, b, similarity, strict=True)
        if not np.isnan(j)
    ]
    source = save(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    hb.dedup(source, tmp_path / "out", ngram=2, keep="first", components=True)
    expected = [(r["removed_row"], r["kept_row"], r["jaccard"]) for r in lines(tmp_path / "out")]
    assert dedup_pieces.choose(edges) == expected
    shown = [component["rows"] for component in lines(tmp_path / "out", "components")]
    assert dedup_pieces.components(edges) == shown
    with pytest.raises(ConfigError, match="text"):
        dedup_pieces.sign(pa.record_batch({"id": ["a"], "text": pa.array([None], pa.string())}))


@pytest.mark.parametrize("method", ["minhash", "exact-join"])
def test_a_limit_beyond_all_memory_takes_none(tmp_path: Path, method: str) -> None:
    source = save(tmp_path / "in.jsonl", [{"text": f"a b c d e f {i // 2}"} for i in range(60)])
    report = hb.dedup(source, tmp_path / "out", method=method, memory_mb=MOST_MEMORY_MB)
    assert report["counts"]["dropped"]["exact"] == 30


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_huge_document(tmp_path: Path) -> None:
    rng = random.Random(1)
    words = [f"w{i}" for i in range(50_000)]
    text = " ".join(rng.choices(words, k=16_000_000))
    assert len(text) > 100e6
    source = save(tmp_path / "in.jsonl", [{"text": text}, {"text": text + " end"}, {"text": "a"}])
    del text
    report = hb.dedup(source, tmp_path / "out")
    assert report["counts"]["dropped"] == {"exact": 0, "near": 1}


PEAK = """
import pathlib, sys
from hornbook.dedup import dedup
report = dedup(sys.argv[1], sys.argv[2], memory_mb=16, threads=2)
status = pathlib.Path("/proc/self/status").read_text()
print(report["counts"]["dropped"]["near"], status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_gigabyte_goes_through_eighty_megabytes(tmp_path):
    """The whole process, Python and the tables of 250,000 documents included."""
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefghij", k=rng.randrange(3, 11))) for _ in range(20_000)]
    sentences = [" ".join(rng.choices(words, k=13)) + r".\n" for _ in range(100_000)]
    documents: list[list[str]] = []
    copies = size = 0
    source = tmp_path / "big.jsonl"
    with source.open("w") as file:
        while size < 1_000_000_000:
            if len(documents) % 4 == 3:
                parts = [*documents[rng.randrange(len(documents) - 1)]]
                parts[rng.randrange(len(parts))] = rng.choice(sentences)
                copies += 1
            else:
                parts = rng.choices(sentences, k=40)
            documents.append(parts)
            text = "".join(parts)
            size += file.write(f'{{"id": "{len(documents)}", "text": "{text}"}}\n')
    del documents
    command = [sys.executable, "-c", PEAK, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    removed, peak_kb = map(int, done.stdout.split())
    assert copies * 0.98 <= removed <= copies
    assert peak_kb * 1024 < 80e6


def test_ends_of_lines_by_unicode_are_text(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four " + " ".join(f"w{i}" for i in range(40))
    rows = [{"text": text, "id": "a\u2028"}, {"text": text + " more", "id": "b"}]
    source = save(tmp_path / "in.jsonl", rows)
    source.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    report = hb.dedup(source, tmp_path / "out", method="minhash")
    assert report["counts"]["dropped"] == {"exact": 0, "near": 1}
    assert "three" in (tmp_path / "out/evidence/pairs.html").read_text("utf-8")


def test_an_index_is_made_in_no_folder_of_others(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", [{"text": "a b c d e f"}])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    for index in (tmp_path / "mine", source):
        with pytest.raises(ResumeError, match="something else than an index"):
            hb.dedup(source, tmp_path / "out", index=index)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]
    # What a run leaves that was killed before its index was there.
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "lock").touch()
    (tmp_path / "new" / "index.json.tmp").write_text("{")
    hb.dedup(source, tmp_path / "out", index=tmp_path / "new")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "substring", "normalize": True},
        {"method": "substring", "keep": "first"},
        {"method": "exact", "recall": 0.9},
        {"method": "exact", "length": 9},
        {"method": "exact-join", "recall": 0.9},
        {"method": "minhash", "length": 9},
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does nothing with method"):
        DedupConfig(**options)
