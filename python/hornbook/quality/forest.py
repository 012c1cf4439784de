"""A random forest (paper section 2.1): trained by scikit-learn, stored and scored by ourselves.

Scoring is in Rust. The file holds plain little-endian arrays and a JSON header, never a pickle; its
layout stands in `rust/core/src/features/forest.rs`. Scores equal scikit-learn's to the last bit.
Damaged files and indices out of range are refused when the file is read. Scoring costs about 6
microseconds of one core a document at 100 trees (`benchmarks/quality.py`).

    forest = Forest.load("runs/demo/filter/forest.bin"); forest.score(embed(texts))
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook import _core
from hornbook.errors import ConfigError, need
from hornbook.files import StrPath
from hornbook.quality.embed import DIMENSIONS, embedder_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Forest:
    """A trained forest. `header` says which features it wants and how it was trained."""

    def __init__(self, inner: _core.Forest) -> None:
        self._inner = inner

    @classmethod
    def from_sklearn(
        cls,
        model: Any,
        *,
        embedder: str = "",
        dimensions: int = DIMENSIONS,
        threshold: float = 0.5,
        training: str = "",
        settings: str = "",
    ) -> "Forest":
        """Takes over a fitted scikit-learn forest.

        Args:
            model: A `RandomForestClassifier` with two classes (scores are the probability of the
                second) or a `RandomForestRegressor` with one output.
            embedder: Name of the features it was trained on.
            dimensions: Hashed dimensions of those features.
            threshold: The score from which a document is kept.
            training: Hash of labels and settings.
            settings: How to make the features again, as JSON.

        Raises:
            ConfigError: If the model has another number of classes or outputs.
        """
        import numpy as np

        classes = getattr(model, "classes_", None)
        if model.n_outputs_ != 1 or (classes is not None and len(classes) != 2):
            raise ConfigError("forest: only two classes or one output can be scored")
        trees = [estimator.tree_ for estimator in model.estimators_]

        def joined(name: str, dtype: Any) -> Any:
            return np.concatenate([getattr(tree, name) for tree in trees]).astype(dtype)

        column = 0 if classes is None else 1
        values = np.concatenate([tree.value[:, 0, column] for tree in trees])
        return cls(
            _core.Forest.from_trees(
                [int(tree.node_count) for tree in trees],
                joined("children_left", np.int64),
                joined("children_right", np.int64),
                joined("feature", np.int64),
                joined("threshold", np.float64),
                values.astype(np.float64),
                embedder,
                dimensions,
                int(model.n_features_in_),
                "regressor" if classes is None else "classifier",
                threshold,
                training,
                settings,
            )
        )

    @classmethod
    def load(cls, path: StrPath) -> "Forest":
        """Reads a forest file.

        Raises:
            InputError: If it is missing, truncated, damaged or of another format.
        """
        return cls(_core.Forest.load(Path(path)))

    def save(self, path: StrPath) -> dict[str, Any]:
        """Writes the file, whole or not at all; returns its entry for a manifest.

        Raises:
            StorageError: If it cannot be written.
        """
        return self._inner.save(Path(path))

    @property
    def header(self) -> dict[str, Any]:
        """`embedder`, `settings`, `features`, `kind`, `threshold`, `training`, `trees`, ..."""
        return self._inner.header

    @property
    def inner(self) -> _core.Forest:
        """The forest as the core holds it."""
        return self._inner

    def with_threshold(self, threshold: float) -> "Forest":
        """The same trees with another threshold."""
        return Forest(self._inner.with_threshold(threshold))

    def score(self, features: "NDArray[np.float32]") -> "NDArray[np.float64]":
        """One score a row: scikit-learn's `predict_proba(...)[:, 1]` or `predict`.

        Args:
            features: float32 [n, header["features"]], finite.

        Raises:
            ConfigError: If the width is wrong or a value is not finite.
        """
        import numpy as np

        rows = np.ascontiguousarray(features, dtype=np.float32)
        if rows.ndim != 2:
            raise ConfigError(f"forest: features must be [n, columns], not {rows.shape}")
        return self._inner.score(rows)


def train_forest(
    features: "NDArray[np.float32]",
    useful: "NDArray[np.bool_]",
    *,
    trees: int = 100,
    seed: int = 0,
    dimensions: int = DIMENSIONS,
    threshold: float = 0.5,
    training: str = "",
    embedder: str = "",
    settings: str = "",
) -> "tuple[Forest, NDArray[np.float64] | None]":
    """Trains a classifier of useful documents.

    Args:
        features: float32 [n, columns] from an embedder.
        useful: bool [n], with both values in it.
        trees: How many.
        seed: Decides the forest; the number of threads does not.
        dimensions: Hashed dimensions of the features, for the embedder `hash`.
        threshold: Written into the forest's header.
        training: Written into the forest's header.
        embedder: The features' name (default: that of `hash` with `dimensions`).
        settings: How to make the features again, as JSON.

    Returns:
        The forest, and each document's score by the trees that did not see it (none below 30 trees,
        where some documents would have no such tree).

    Raises:
        MissingExtraError: If scikit-learn is not installed.
        ConfigError: If there is only one class.
    """
    need("sklearn", "quality")
    from sklearn.ensemble import RandomForestClassifier

    if useful.all() or not useful.any():
        raise ConfigError("forest: the labels have one class only, so there is nothing to learn")
    out_of_bag = trees >= 30
    model = RandomForestClassifier(
        n_estimators=trees,
        min_samples_leaf=2,
        oob_score=out_of_bag,
        random_state=seed,
        n_jobs=-1,
    ).fit(features, useful)
    forest = Forest.from_sklearn(
        model,
        embedder=embedder or embedder_id(dimensions),
        dimensions=dimensions,
        threshold=threshold,
        training=training,
        settings=settings,
    )
    return forest, model.oob_decision_function_[:, 1] if out_of_bag else None
