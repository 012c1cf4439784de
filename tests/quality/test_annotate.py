from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hornbook import corpus
from hornbook.errors import ConfigError, InputError
from hornbook.manifest import verify
from hornbook.quality import annotate
from hornbook.quality.stats import weighted_kappa

MakeCorpus = Callable[..., Path]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return list(corpus.read([folder]))


def test_sample_carries_columns_and_matches_the_report(
    make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    report = annotate([make_corpus()], tmp_path / "labels", samples=100)
    rows = rows_of(tmp_path / "labels")
    assert len(rows) == 100
    assert list(rows[0]) == ["id", "text", "good", "source", "score", "reason"]
    assert report["counts"]["in"] == 400
    assert report["counts"]["dropped"] == {"not sampled": 300}
    assert sum(report["details"]["histogram"].values()) == 100
    assert {row["id"] for row in rows if row["score"] >= 5} == {
        row["id"] for row in rows if row["good"]
    }
    assert verify(tmp_path / "labels")["ok"]


def test_sample_is_spread_like_the_corpus(tmp_path: Path) -> None:
    texts = [("x = 1\n" * (1 + i % 50), "a" if i % 10 else "b") for i in range(1000)]
    corpus.write(
        tmp_path / "in",
        [{"text": t + f"# {i}", "source": s, "n": i % 50} for i, (t, s) in enumerate(texts)],
        {"source": "string", "n": "int64"},
    )
    annotate([tmp_path / "in"], tmp_path / "labels", samples=200)
    rows = rows_of(tmp_path / "labels")
    assert sum(row["source"] == "b" for row in rows) == 20
    for fifth in range(5):
        inside = sum(10 * fifth <= row["n"] < 10 * fifth + 10 for row in rows)
        assert 30 <= inside <= 50


def test_same_seed_same_documents_in_any_order(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    path = make_corpus()
    lines = path.read_text().splitlines(keepends=True)
    halves = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    halves[0].write_text("".join(reversed(lines[200:])))
    halves[1].write_text("".join(lines[:200]))

    def chosen(name: str, inputs: list[Path], seed: int = 0) -> list[str]:
        annotate(inputs, tmp_path / name, samples=50, seed=seed)
        return sorted(row["id"] for row in rows_of(tmp_path / name))

    first = chosen("a", [path])
    assert first == chosen("b", halves)
    assert first != chosen("c", [path], seed=1)
    part = "part-00000.parquet"
    annotate([path], tmp_path / "d", samples=50)
    assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "d" / part).read_bytes()


def test_fewer_documents_than_samples(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    report = annotate([make_corpus(7)], tmp_path / "labels", samples=1000)
    assert report["counts"]["kept"] == 7


def test_many_sources_are_not_one_stratum_each(tmp_path: Path) -> None:
    rows = [{"text": f"x = {i}\n" * (1 + i % 9), "source": f"s{i}"} for i in range(600)]
    corpus.write(tmp_path / "in", rows, {"source": "string"})
    report = annotate([tmp_path / "in"], tmp_path / "labels", samples=60, clusters=0)
    assert report["counts"]["kept"] == 60
    assert report["details"]["strata"] <= 5


def test_own_annotator(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    def judge(text: str) -> tuple[float, str]:
        return len(text) % 11, "by length"

    path = make_corpus(50)
    report = annotate([path], tmp_path / "labels", annotator=judge)
    assert "judge" in report["config"]["annotator"]
    assert all(row["score"] == len(row["text"]) % 11 for row in rows_of(tmp_path / "labels"))
    judge.annotator_id = "by-length/v2"  # type: ignore[attr-defined]
    again = annotate([path], tmp_path / "labels", annotator=judge)
    assert again["config"]["annotator"] == "by-length/v2"
    assert again["key"] != report["key"]


@pytest.mark.parametrize("answer", [11.0, -0.1, float("nan"), "7", None, (1, 2, 3), ("x", "y")])
def test_answers_that_are_no_score_are_refused(
    answer: Any, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    given = (answer, "why") if isinstance(answer, float) else answer
    with pytest.raises(InputError, match="document 0-"):
        annotate([make_corpus(5)], tmp_path / "labels", annotator=lambda text: given)


def test_bad_options(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="samples"):
        annotate([make_corpus(5)], tmp_path / "labels", samples=0)
    with pytest.raises(ConfigError, match="gpt"):
        annotate([make_corpus(5)], tmp_path / "labels", annotator="gpt")


def test_nothing_to_annotate(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": 3}\nbroken\n')
    with pytest.raises(InputError, match="no usable document"):
        annotate([tmp_path / "d.jsonl"], tmp_path / "labels")


def test_bad_rows_are_set_aside(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    path = make_corpus(30)
    path.write_text(path.read_text() + "broken\n")
    report = annotate([path], tmp_path / "labels")
    assert report["counts"]["rejected"] == 1
    assert (tmp_path / "labels" / "rejected" / "rows.jsonl").is_file()


@pytest.mark.parametrize("scale", [1.0, 7.3])
def test_weighted_kappa_is_that_of_all_pairs(scale):
    draw = np.random.default_rng(0)
    first = scale * draw.integers(0, 11, 300).astype(float)
    second = np.where(draw.random(300) < 0.7, first, scale * draw.integers(0, 11, 300))
    every = np.mean([(a - b) ** 2 for a in first for b in second])
    assert weighted_kappa(first, second) == round(1 - np.mean((first - second) ** 2) / every, 4)
    assert weighted_kappa(np.full(300, scale), np.full(300, scale)) is None
    many = np.arange(200_000) % 11 * scale  # all pairs of which would be 320 GB
    assert weighted_kappa(many, many) == 1
