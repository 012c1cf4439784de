"""From labels to a forest, and what that forest is worth on labels it has not seen.

The report holds what shows a filter that learned the wrong thing: agreement with the annotator,
calibration, how the score goes along with length and with docstrings, and how much of the forest's
judgement the rule "has a docstring" alone would give.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hornbook import _core, corpus
from hornbook.errors import ConfigError, InputError
from hornbook.files import StrPath
from hornbook.quality.embed import Embedder, docstring_shares
from hornbook.quality.forest import Forest, train_forest
from hornbook.quality.stats import calibration, classification, rank_correlation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HOLD_OUT = 0.2
"""Share of the labels that the forest does not see."""
FEWEST_LABELS = 20
FEWEST_OF_A_CLASS = 5


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labelled documents, each text once."""

    texts: list[str]
    scores: "NDArray[np.float64]"
    held_out: "NDArray[np.bool_]"


class TrainingOptions(Protocol):
    """The options of a filter that training reads."""

    @property
    def trees(self) -> int: ...  # noqa: D102
    @property
    def min_score(self) -> float: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def dimensions(self) -> int: ...  # noqa: D102
    @property
    def threshold(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A forest and what it says of labels that it has not seen."""

    forest: Forest
    labels: Labels
    predicted: "NDArray[np.float64]"
    """Scores of the held-out labels."""
    truth: "NDArray[np.bool_]"
    """Which of them are useful."""
    out_of_bag: "NDArray[np.float64] | None"
    """Scores of the other labels by the trees that did not see them."""

    def report(self, threshold: float, min_score: float) -> dict[str, Any]:
        """What the forest is worth at a threshold."""
        import numpy as np

        labels = self.labels
        held = labels.held_out
        useful = labels.scores >= min_score
        texts = [text for text, out in zip(labels.texts, held, strict=True) if out]
        shares = docstring_shares(texts)
        lengths = np.array([len(text) for text in texts])
        said = self.predicted >= threshold
        bag = self.out_of_bag
        return {
            "labels": len(labels.texts),
            "useful_labels": int(useful.sum()),
            "out_of_bag": None
            if bag is None
            else {
                "n": len(bag),
                **classification(bag >= threshold, useful[~held]),
                "calibration": calibration(bag, useful[~held]),
            },
            "held_out": {
                "n": len(self.truth),
                **classification(said, self.truth),
                "calibration": calibration(self.predicted, self.truth),
                "correlation_with_annotator": rank_correlation(self.predicted, labels.scores[held]),
                "correlation_with_length": rank_correlation(self.predicted, lengths),
                "correlation_with_docstring_share": rank_correlation(self.predicted, shares),
                "annotator_correlation_with_length": rank_correlation(labels.scores[held], lengths),
                "annotator_correlation_with_docstring_share": rank_correlation(
                    labels.scores[held], shares
                ),
                # A filter that learned "has a docstring" agrees with that rule, and is no better.
                "docstring_rule": {
                    "agreement_with_forest": classification(shares > 0, said)["kappa"],
                    "f1": classification(shares > 0, self.truth)["f1"],
                },
            },
        }


def train(
    path: StrPath, embedder: Embedder, settings: str, config: TrainingOptions, training: str
) -> Trained:
    """Trains on labels.

    Raises:
        InputError: If the labels are too few, of one class only, or have no `score`.
        MissingExtraError: If scikit-learn is not installed.
    """
    labels = read_labels(path, config.min_score, config.seed)
    features = embedder.embed(labels.texts)
    useful = labels.scores >= config.min_score
    held = labels.held_out
    forest, out_of_bag = train_forest(
        features[~held],
        useful[~held],
        trees=config.trees,
        seed=config.seed,
        dimensions=config.dimensions,
        threshold=config.threshold,
        training=training,
        embedder=embedder.id,
        settings=settings,
    )
    return Trained(
        forest=forest,
        labels=labels,
        predicted=forest.score(features[held]),
        truth=useful[held],
        out_of_bag=out_of_bag,
    )


def read_labels(path: StrPath, min_score: float, seed: int) -> Labels:
    """Labels without repeated texts, a fifth of each class held out by hashes of the texts.

    A text that stood on both sides would make the report too good.

    Raises:
        InputError: If they are too few, of one class only, or have no `score`.
    """
    import numpy as np

    documents = corpus.read([path])
    kinds = dict(documents.schema)
    scores: dict[str, float] = {}
    if kinds.get("score") not in ("float64", "int64"):
        if "score" in kinds and all(row["score"] is None for row in documents):
            raise InputError(f"{path}: no row has a `score`: annotate again, or fill them in")
        raise InputError(f"{path}: labels need a number column `score`; run `annotate` first")
    for row in documents:
        if row["score"] is not None:
            scores.setdefault(row["text"], float(row["score"]))
    texts = list(scores)
    values = np.array([scores[text] for text in texts], dtype=np.float64)
    useful = values >= min_score
    found = f"{int(useful.sum())} of {len(texts)} labels have a score of {min_score} or more"
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
        members.sort(key=lambda i: _core.hash_bytes(f"{seed}:{texts[i]}".encode()))
        held_out[members[: max(1, round(HOLD_OUT * len(members)))]] = True
    return Labels(texts=texts, scores=values, held_out=held_out)


def threshold_of_precision(trained: Trained, wanted: float) -> float:
    """The lowest score that gives a precision on the held-out labels.

    Raises:
        ConfigError: If it is out of reach.
    """
    levels: list[float] = sorted(set(trained.predicted.tolist()))
    precisions = {
        level: float(trained.truth[trained.predicted >= level].mean()) for level in levels
    }
    reached = [level for level in levels if precisions[level] >= wanted]
    if not reached:
        raise ConfigError(
            f"keep_precision = {wanted}: the best on {len(trained.truth)} held-out labels is "
            f"{max(precisions.values()):.3f}; ask for less or annotate more samples"
        )
    return reached[0]
