"""Small statistics for the reports of annotation and filtering; none warns or divides by 0."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def ranks(values: "NDArray[Any]") -> "NDArray[np.float64]":
    """Ranks from 0, equal values sharing their mean rank."""
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse].astype(np.float64)


def rank_correlation(a: "NDArray[Any]", b: "NDArray[Any]") -> float | None:
    """Spearman's correlation, to four digits; none where either is constant."""
    import numpy as np

    if len(a) < 2:
        return None
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return round(float(x @ y) / norm, 4) if norm > 0 else None


def classification(said: "NDArray[np.bool_]", truth: "NDArray[np.bool_]") -> dict[str, Any]:
    """Precision, recall, F1, accuracy and Cohen's kappa of a yes-or-no judgement."""
    n = len(truth)
    hit = int((said & truth).sum())
    accuracy = float((said == truth).mean()) if n else 0.0
    precision = hit / int(said.sum()) if said.any() else None
    recall = hit / int(truth.sum()) if truth.any() else None
    both = (precision or 0.0) + (recall or 0.0)
    chance = 0.0
    if n:
        p, q = float(said.mean()), float(truth.mean())
        chance = p * q + (1 - p) * (1 - q)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * (precision or 0.0) * (recall or 0.0) / both if both else 0.0,
        "accuracy": accuracy,
        "kappa": (accuracy - chance) / (1 - chance) if chance < 1 else None,
    }


def weighted_kappa(first: "NDArray[Any]", second: "NDArray[Any]") -> float | None:
    """Cohen's kappa of two opinions on a scale, weighted by squared differences.

    1: the same; 0: as by chance; none where either there are no opinions or all are the same one.
    """
    import numpy as np

    if not len(first):
        return None
    # The mean over all pairs, without making them. Of opinions that are all one it is 0, but for
    # the rounding of their mean.
    expected = float(first.var() + second.var() + (first.mean() - second.mean()) ** 2)
    seen = float(np.mean((first - second) ** 2))
    return round(1 - seen / expected, 4) if expected > 1e-12 else None


def calibration(
    scores: "NDArray[np.float64]", truth: "NDArray[np.bool_]", bins: int = 5
) -> list[dict[str, Any]]:
    """For equal steps of the score: documents, their mean score, the share that is true."""
    import numpy as np

    step = np.minimum((scores * bins).astype(np.int64), bins - 1)
    rows = []
    for index in range(bins):
        inside = step == index
        count = int(inside.sum())
        rows.append(
            {
                "from": index / bins,
                "to": (index + 1) / bins,
                "n": count,
                "mean_score": float(scores[inside].mean()) if count else None,
                "share_useful": float(truth[inside].mean()) if count else None,
            }
        )
    return rows
