import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hornbook import _core, corpus
from hornbook.errors import ConfigError, InputError
from hornbook.manifest import verify
from hornbook.quality import Forest, annotate, embed, filter_documents
from hornbook.quality.stats import calibration, classification, rank_correlation

pytest.importorskip("sklearn")

MakeCorpus = Callable[..., Path]
PART = "part-00000.parquet"


@pytest.fixture
def labelled(make_corpus: MakeCorpus, tmp_path: Path) -> tuple[Path, Path]:
    """A corpus, and labels made on another one."""
    annotate([make_corpus(500, 1)], tmp_path / "labels", samples=400)
    return make_corpus(600, 2), tmp_path / "labels"


def test_keeps_what_is_truly_useful(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    path, labels = labelled
    report = filter_documents([path], tmp_path / "out", labels=labels)
    kept = list(corpus.read([tmp_path / "out"]))
    everything = list(corpus.read([path]))
    good = {row["id"] for row in everything if row["good"]}
    chosen = {row["id"] for row in kept}
    assert len(chosen & good) / len(chosen) > 0.95
    assert len(chosen & good) / len(good) > 0.95
    assert report["counts"]["in"] == 600
    assert report["counts"]["kept"] == len(kept)
    assert report["counts"]["dropped"] == {"low score": 600 - len(kept)}
    assert report["details"]["held_out"]["precision"] > 0.9
    assert len(report["details"]["held_out"]["calibration"]) == 5
    assert len(report["details"]["out_of_bag"]["calibration"]) == 5
    assert verify(tmp_path / "out")["checked"] == len(report["parts"]) == 5

    # Columns are carried through, and the score is what the stored forest gives.
    by_id = {row["id"]: row for row in everything}
    for row in kept:
        score = row.pop("quality_score")
        assert row == by_id[row["id"]]
        assert score >= 0.5
    again = list(corpus.read([tmp_path / "out"]))
    forest = Forest.load(tmp_path / "out" / "forest.bin")
    scores = forest.score(embed([row["text"] for row in again]))
    assert scores.tolist() == [row["quality_score"] for row in again]


def test_same_config_same_bytes(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    path, labels = labelled
    for name in ("a", "b"):
        filter_documents([path], tmp_path / name, labels=labels, trees=30, seed=4)
    for file in (PART, "forest.bin"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("share", [0.05, 0.17, 1.0])
def test_keeps_a_share_of_the_text(
    share: float, labelled: tuple[Path, Path], tmp_path: Path
) -> None:
    path, labels = labelled
    report = filter_documents([path], tmp_path / "out", labels=labels, keep_tokens=share)
    texts = [row["text"] for row in corpus.read([tmp_path / "out"])]
    everything = [row["text"] for row in corpus.read([path])]
    kept = sum(map(len, texts)) / sum(map(len, everything))
    assert report["details"]["kept_text_share"] == pytest.approx(kept)
    assert kept == pytest.approx(share, abs=0.08)


def test_keeps_from_a_wanted_precision(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    path, labels = labelled
    report = filter_documents([path], tmp_path / "out", labels=labels, keep_precision=0.9)
    assert report["details"]["held_out"]["precision"] >= 0.9


def test_an_old_score_is_replaced(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    path, labels = labelled
    filter_documents([path], tmp_path / "one", labels=labels, keep_tokens=0.8)
    filter_documents([tmp_path / "one"], tmp_path / "two", labels=labels)
    with_score = corpus.read([tmp_path / "two"])
    assert [name for name, _ in with_score.schema].count("quality_score") == 1


def write_labels(path: Path, scores: list[Any]) -> Path:
    rows = [{"text": f"x = {i}\n", "score": score} for i, score in enumerate(scores)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_degenerate_labels_are_refused(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    path = make_corpus(20)

    def run(labels: Path, **options: Any) -> None:
        filter_documents([path], tmp_path / "out", labels=labels, **options)

    with pytest.raises(InputError, match="0 of 50 labels"):
        run(write_labels(tmp_path / "a.jsonl", [1.0] * 50))
    with pytest.raises(InputError, match="47 of 50 labels"):
        run(write_labels(tmp_path / "b.jsonl", [1.0] * 3 + [9] * 47))
    with pytest.raises(InputError, match="too few"):
        run(write_labels(tmp_path / "c.jsonl", [1.0, 9.0] * 5))
    with pytest.raises(InputError, match="column `score`"):
        run(path)
    with pytest.raises(InputError, match="column `score`"):
        run(write_labels(tmp_path / "d.jsonl", ["high", "low"] * 30))
    with pytest.raises(InputError, match="no row has a `score`"):
        run(write_labels(tmp_path / "e.jsonl", [None] * 30))
    with pytest.raises(InputError):
        run(tmp_path / "nowhere")


def test_out_of_reach_precision_is_refused(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    def digit(i: int) -> int:
        return int(_core.hash_bytes(str(i).encode()), 16) % 16

    # Labels without any relation to the texts, most of them bad.
    labels = write_labels(tmp_path / "a.jsonl", [9.0 if digit(i) < 3 else 1.0 for i in range(140)])
    with pytest.raises(ConfigError, match="the best on 28 held-out"):
        filter_documents([make_corpus(20)], tmp_path / "o", labels=labels, keep_precision=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"trees": 0},
        {"threshold": 1.5},
        {"keep_tokens": 0.0},
        {"keep_precision": 2.0},
        {"keep_tokens": 0.5, "keep_precision": 0.5},
        {"seed": -1},
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        filter_documents([tmp_path], tmp_path / "out", labels=tmp_path, **options)


def test_nothing_kept_is_still_a_data_set(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    path, labels = labelled
    rows = tmp_path / "junk.jsonl"
    rows.write_text('{"text": "A = 1\\nB = 2\\n"}\n')
    filter_documents([rows], tmp_path / "out", labels=labels, threshold=1.0)
    assert list(corpus.read([tmp_path / "out"])) == []
    assert path.exists()


def test_statistics_equal_scipy_and_sklearn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    spearman = pytest.importorskip("scipy.stats").spearmanr
    rng = np.random.default_rng(0)
    scores, truth = rng.random(300), rng.random(300) < 0.4
    said = scores > 0.5
    mine = classification(said, truth)
    assert mine["precision"] == pytest.approx(metrics.precision_score(truth, said))
    assert mine["recall"] == pytest.approx(metrics.recall_score(truth, said))
    assert mine["f1"] == pytest.approx(metrics.f1_score(truth, said))
    assert mine["kappa"] == pytest.approx(metrics.cohen_kappa_score(truth, said))
    tied = rng.integers(0, 5, 300)
    assert rank_correlation(scores, tied) == pytest.approx(
        spearman(scores, tied).statistic, abs=1e-4
    )
    assert rank_correlation(scores, np.ones(300)) is None
    bins = calibration(scores, truth)
    assert sum(row["n"] for row in bins) == 300
    assert bins[0]["share_useful"] == pytest.approx(truth[scores < 0.2].mean())
