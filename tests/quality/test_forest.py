from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hornbook import _core
from hornbook.errors import ConfigError, InputError
from hornbook.quality import Forest, embedder_id, train_forest

ensemble = pytest.importorskip("sklearn.ensemble")


def random_data(
    seed: int, rows: int, columns: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, columns)).astype(np.float32)
    features[:, 0] = rng.integers(0, 3, rows)  # ties at thresholds
    noise = rng.normal(size=rows)
    labels = features[:, 0] + features[:, -1] + noise > 1
    labels[:2] = [True, False]
    return features, labels


def small_forest() -> Forest:
    features, labels = random_data(0, 200, 5)
    model = ensemble.RandomForestClassifier(5, random_state=0).fit(features, labels)
    return Forest.from_sklearn(model, embedder="test", dimensions=3, training="t")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(10, 300), columns=st.integers(1, 12))
def test_classifier_scores_equal_sklearn_bit_for_bit(seed: int, rows: int, columns: int) -> None:
    features, labels = random_data(seed, rows, columns)
    model = ensemble.RandomForestClassifier(17, random_state=seed).fit(features, labels)
    fresh, _ = random_data(seed + 1, 200, columns)
    both = np.concatenate([features, fresh])
    mine = Forest.from_sklearn(model).score(both)
    assert mine.tobytes() == np.ascontiguousarray(model.predict_proba(both)[:, 1]).tobytes()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.sampled_from([1, 4, None]))
def test_regressor_scores_equal_sklearn_bit_for_bit(seed: int, depth: int | None) -> None:
    features, labels = random_data(seed, 150, 6)
    target = labels * 7.3 + features[:, 1]
    model = ensemble.RandomForestRegressor(11, max_depth=depth, random_state=seed)
    model.fit(features, target)
    forest = Forest.from_sklearn(model)
    assert forest.header["kind"] == "regressor"
    assert forest.score(features).tobytes() == model.predict(features).tobytes()


def test_best_first_trees_are_put_in_order() -> None:
    features, labels = random_data(3, 300, 6)
    model = ensemble.RandomForestClassifier(9, max_leaf_nodes=12, random_state=1)
    model.fit(features, labels)
    mine = Forest.from_sklearn(model).score(features)
    assert mine.tobytes() == np.ascontiguousarray(model.predict_proba(features)[:, 1]).tobytes()


def test_training_repeats_and_reports_out_of_bag() -> None:
    features, labels = random_data(5, 300, 8)
    one, out_of_bag = train_forest(features, labels, trees=40, seed=3)
    two, _ = train_forest(features, labels, trees=40, seed=3)
    other, _ = train_forest(features, labels, trees=40, seed=4)
    assert one.score(features).tobytes() == two.score(features).tobytes()
    assert one.score(features).tobytes() != other.score(features).tobytes()
    assert out_of_bag is not None
    model = ensemble.RandomForestClassifier(
        40, min_samples_leaf=2, oob_score=True, random_state=3
    ).fit(features, labels)
    np.testing.assert_array_equal(out_of_bag, model.oob_decision_function_[:, 1])
    assert one.header["embedder"] == embedder_id()
    assert train_forest(features, labels, trees=3)[1] is None


def test_one_class_is_refused() -> None:
    features, labels = random_data(5, 30, 4)
    with pytest.raises(ConfigError, match="one class"):
        train_forest(features, np.ones_like(labels))
    model = ensemble.RandomForestClassifier(3).fit(features, np.arange(30) % 3)
    with pytest.raises(ConfigError, match="two classes"):
        Forest.from_sklearn(model)


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    forest = small_forest().with_threshold(0.25)
    entry = forest.save(tmp_path / "forest.bin")
    again = Forest.load(tmp_path / "forest.bin")
    assert again.header == forest.header
    assert again.header["threshold"] == 0.25
    features, _ = random_data(9, 100, 5)
    assert again.score(features).tobytes() == forest.score(features).tobytes()
    assert entry["xxh3"] == _core.hash_file(tmp_path / "forest.bin")
    again.save(tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "forest.bin").read_bytes()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "forest.bin"
    small_forest().save(path)
    whole = path.read_bytes()

    def refused(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"forest\.bin") as caught:
            Forest.load(path)
        return str(caught.value)

    assert "not a forest file" in refused(b"")
    assert "not a forest file" in refused(b"\x80\x04pickle" + whole)
    assert "forest format 2" in refused(whole[:8] + b"\x02" + whole[9:])
    assert "header is damaged" in refused(whole.replace(b'"trees"', b'"trees', 1))
    assert "truncated" in refused(whole.replace(b'"trees":5', b'"trees":6', 1))
    assert "truncated" in refused(whole[:-1])
    assert "truncated" in refused(whole + b"\0")
    assert "checksum" in refused(whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:])
    for cut in range(0, len(whole), 97):
        refused(whole[:cut])
    with pytest.raises(InputError):
        Forest.load(tmp_path / "none.bin")


def test_features_that_do_not_fit_are_refused() -> None:
    forest = small_forest()
    with pytest.raises(ConfigError, match="4 columns"):
        forest.score(np.zeros((2, 4), np.float32))
    with pytest.raises(ConfigError, match="row 1"):
        forest.score(np.array([[0] * 5, [0, 0, np.nan, 0, 0]], np.float32))
    with pytest.raises(ConfigError, match=r"\[n, columns\]"):
        forest.score(np.zeros(5, np.float32))
    assert forest.score(np.zeros((0, 5), np.float32)).shape == (0,)


def test_trees_that_are_none_are_refused() -> None:
    def make(left: list[int], right: list[int], feature: int = 0) -> None:
        n = len(left)
        ints = [np.array(values, np.int64) for values in (left, right, [feature] * n)]
        floats = np.zeros(n)
        _core.Forest.from_trees([n], *ints, floats, floats, "e", 1, 2, "classifier", 0.5, "t", "")

    make([1, -1, -1], [2, -1, -1])
    for left, right in ([0, -1, -1], [2, -1, -1]), ([1, -1, -1], [9, -1, -1]):
        with pytest.raises(ConfigError, match="not a tree"):
            make(left, right)
    with pytest.raises(ConfigError, match="feature 2 of 2"):
        make([1, -1, -1], [2, -1, -1], feature=2)
