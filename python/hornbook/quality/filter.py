"""Keeps the documents a forest finds worth learning from (paper section 2.1).

Trains on the scores of an `annotate` stage, reports how well that worked on labels it has not seen,
scores every document, and writes those above the threshold with a column `quality_score`; every
other column is carried through and `forest.bin` lies beside the parts. Reads the corpus twice.
Memory: the labelled texts, one batch, and 20 bytes a document. Costs about 0.2 s of one core for
each MB of text.

    hb.quality.filter_documents(["clean/"], "filtered/", labels="labels/", keep_tokens=0.17)
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hornbook import _core, corpus
from hornbook.errors import ConfigError, InputError, need
from hornbook.manifest import Outcome, Report, StrPath, hash_json, input_hash, run_stage
from hornbook.quality.embed import DIMENSIONS, embed, embedder_id, feature_names
from hornbook.quality.forest import train_forest
from hornbook.quality.stats import calibration, classification, rank_correlation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HOLD_OUT = 0.2
"""Share of the labels that the forest does not see."""
FEWEST_LABELS = 20
FEWEST_OF_A_CLASS = 5


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What decides a filter's bytes, besides its inputs and labels."""

    trees: int = 100
    """Trees of the forest."""
    min_score: float = 5.0
    """Labels of at least this score count as educational."""
    keep_tokens: float | None = None
    """Keep the best documents, about this share of the text (in bytes; the paper keeps 17%)."""
    keep_precision: float | None = None
    """Keep from the lowest score that gives this precision on the held-out labels."""
    threshold: float = 0.5
    """Keep from this probability, when neither of the two above is set."""
    dimensions: int = DIMENSIONS
    """Hashed dimensions of the features."""
    seed: int = 0
    """Decides the forest and which labels are held out."""

    def __post_init__(self) -> None:
        if self.trees < 1:
            raise ConfigError(f"trees = {self.trees}: must be at least 1")
        if self.keep_tokens is not None and self.keep_precision is not None:
            raise ConfigError("keep_tokens and keep_precision exclude each other: set one")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed = {self.seed}: must lie between 0 and 4,294,967,295")
        for name in ("keep_tokens", "keep_precision"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                raise ConfigError(f"{name} = {value}: must lie above 0 and at most at 1")
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold = {self.threshold}: must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """Labelled documents, each text once."""

    texts: list[str]
    scores: "NDArray[np.float64]"
    held_out: "NDArray[np.bool_]"


def filter_documents(
    inputs: Sequence[StrPath],
    out: StrPath,
    *,
    labels: StrPath,
    trees: int = 100,
    min_score: float = 5.0,
    keep_tokens: float | None = None,
    keep_precision: float | None = None,
    threshold: float = 0.5,
    dimensions: int = DIMENSIONS,
    seed: int = 0,
) -> Report:
    """Trains a forest on labels and keeps the documents it finds educational.

    Args:
        inputs: Documents.
        out: The stage's folder.
        labels: Folder of an `annotate` stage, or a file with columns `text` and `score`.
        trees: Trees of the forest.
        min_score: Labels of at least this score count as educational.
        keep_tokens: Keep the best documents, about this share of the text in bytes. Documents of
            equal score stay or go together, so the share can be missed; the manifest has it.
        keep_precision: Keep from the lowest score that gives this precision on held-out labels.
        threshold: Keep from this probability, when neither of the two above is set.
        dimensions: Hashed dimensions of the features.
        seed: Decides the forest and which labels are held out.

    Returns:
        The manifest; `details` has the threshold, the share of text kept, and under `held_out`
        what the forest's judgement of unseen labels is worth.

    Raises:
        ConfigError: If an option makes no sense or the wanted precision is out of reach.
        InputError: If the labels are too few, of one class only, or have no `score`.
        MissingExtraError: If scikit-learn is not installed.
    """
    config = FilterConfig(
        trees=trees,
        min_score=min_score,
        keep_tokens=keep_tokens,
        keep_precision=keep_precision,
        threshold=threshold,
        dimensions=dimensions,
        seed=seed,
    )
    need("sklearn", "quality")

    def work(folder: Path) -> Outcome:
        return _filter(inputs, labels, folder, config)

    return run_stage("filter", out, inputs=[*inputs, labels], config=config, work=work, seed=seed)


def _filter(
    inputs: Sequence[StrPath], labels: StrPath, folder: Path, config: FilterConfig
) -> Outcome:
    import numpy as np

    labelled = _read_labels(labels, config)
    features = embed(labelled.texts, dimensions=config.dimensions)
    useful = labelled.scores >= config.min_score
    training = hash_json([asdict(config), input_hash(labels), embedder_id(config.dimensions)])
    forest, out_of_bag = train_forest(
        features[~labelled.held_out],
        useful[~labelled.held_out],
        trees=config.trees,
        seed=config.seed,
        dimensions=config.dimensions,
        training=training,
    )
    predicted = forest.score(features[labelled.held_out])
    truth = useful[labelled.held_out]

    paths, extensions = [Path(path) for path in inputs], list(corpus.SOURCE_EXTENSIONS)
    scores, sizes, shares = _core.score_corpus(paths, extensions, forest.inner)
    threshold = _threshold(config, scores, sizes, predicted, truth)
    forest = forest.with_threshold(threshold)
    parts, rejected, kept = _core.write_scored(paths, extensions, folder, scores, threshold)
    forest_part = forest.save(folder / "forest.bin")

    keeps = scores >= threshold
    lengths = np.array([len(text) for text in labelled.texts])
    column = feature_names(config.dimensions).index("docstring_share")
    details = {
        "threshold": threshold,
        "text_bytes": int(sizes.sum()),
        "kept_text_bytes": int(sizes[keeps].sum()),
        "kept_text_share": float(sizes[keeps].sum() / max(1, sizes.sum())),
        "embedder": embedder_id(config.dimensions),
        "labels": len(labelled.texts),
        "useful_labels": int(useful.sum()),
        "out_of_bag_accuracy": out_of_bag,
        "held_out": {
            "n": len(truth),
            **classification(predicted >= threshold, truth),
            "calibration": calibration(predicted, truth),
            "correlation_with_annotator": rank_correlation(
                predicted, labelled.scores[labelled.held_out]
            ),
            "correlation_with_length": rank_correlation(predicted, lengths[labelled.held_out]),
            "correlation_with_docstring_share": rank_correlation(
                predicted, features[labelled.held_out, column]
            ),
        },
        "corpus": {
            "correlation_with_length": rank_correlation(scores, sizes),
            "correlation_with_docstring_share": rank_correlation(scores, shares),
        },
    }
    return Outcome(
        parts=[*parts, forest_part],
        rows_in=len(scores),
        kept=kept,
        dropped={"low score": len(scores) - kept},
        rejected=rejected,
        details=details,
    )


def _read_labels(path: StrPath, config: FilterConfig) -> _Labels:
    """Labels without repeated texts, a fifth of each class held out by hashes of the texts.

    A text that stood on both sides would make the report too good.
    """
    import numpy as np

    documents = corpus.read([path])
    kinds = dict(documents.schema)
    if kinds.get("score") not in ("float64", "int64"):
        raise InputError(f"{path}: labels need a number column `score`; run `annotate` first")
    scores: dict[str, float] = {}
    for row in documents:
        if row["score"] is not None:
            scores.setdefault(row["text"], float(row["score"]))
    texts = list(scores)
    values = np.array([scores[text] for text in texts], dtype=np.float64)
    useful = values >= config.min_score
    found = f"{int(useful.sum())} of {len(texts)} labels have a score of {config.min_score} or more"
    if len(texts) < FEWEST_LABELS:
        raise InputError(
            f"{path}: {len(texts)} different labelled texts are too few, {FEWEST_LABELS} are "
            "needed: annotate more samples"
        )
    if min(int(useful.sum()), int((~useful).sum())) < FEWEST_OF_A_CLASS:
        raise InputError(
            f"{path}: {found}, and {FEWEST_OF_A_CLASS} of either kind are needed: annotate more "
            "samples or change min_score"
        )
    held_out = np.zeros(len(texts), dtype=np.bool_)
    for group in (True, False):
        members = [i for i in range(len(texts)) if bool(useful[i]) is group]
        members.sort(key=lambda i: _core.hash_bytes(f"{config.seed}:{texts[i]}".encode()))
        held_out[members[: max(1, round(HOLD_OUT * len(members)))]] = True
    return _Labels(texts=texts, scores=values, held_out=held_out)


def _threshold(
    config: FilterConfig,
    scores: "NDArray[np.float64]",
    sizes: "NDArray[np.int64]",
    predicted: "NDArray[np.float64]",
    truth: "NDArray[np.bool_]",
) -> float:
    import numpy as np

    if config.keep_tokens is not None and len(scores):
        order = np.argsort(-scores, kind="stable")
        best, text = scores[order], np.cumsum(sizes[order])
        # Documents of one score stay or go together: the share at the end of each such run.
        ends = np.flatnonzero(np.append(best[:-1] != best[1:], True))
        wanted = config.keep_tokens * float(text[-1])
        return float(best[ends[np.argmin(np.abs(text[ends] - wanted))]])
    if config.keep_precision is not None:
        levels: list[float] = sorted(set(predicted.tolist()))
        precisions = {level: float(truth[predicted >= level].mean()) for level in levels}
        reached = [level for level in levels if precisions[level] >= config.keep_precision]
        if not reached:
            raise ConfigError(
                f"keep_precision = {config.keep_precision}: the best on {len(truth)} held-out "
                f"labels is {max(precisions.values()):.3f}; ask for less or annotate more samples"
            )
        return reached[0]
    return config.threshold
