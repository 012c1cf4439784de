"""Learning a rule that the features do not know: real files, a tenth of the labels wrong."""

import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from hornbook import _core
from hornbook.quality import embed, train_forest
from hornbook.quality.rubric import rubric
from hornbook.quality.stats import classification

ensemble = pytest.importorskip("sklearn.ensemble")


def real_files(count: int) -> list[str]:
    """Of the standard library and the installed packages, some by the hashes of their texts."""
    paths = sysconfig.get_paths()
    found: dict[str, str] = {}
    for root in (paths["stdlib"], paths["purelib"]):
        taken = 0
        for path in sorted(Path(root).rglob("*.py")):
            if taken == count:
                break
            if "test" not in path.parts and 400 < path.stat().st_size < 60_000:
                try:
                    text = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue
                found[_core.hash_bytes(text.encode())] = text
                taken += 1
    return [found[name] for name in sorted(found)][:count]


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_a_hidden_rule_is_learned_through_noise() -> None:
    """The rule is the offline rubric's verdict that a file computes (up to 3 points: it does not).

    It comes from a syntax tree, which the features never see.
    """
    texts = real_files(4000)
    scores = np.array([rubric(text)[0] for text in texts])
    truth = scores >= 3.5
    assert 0.3 < truth.mean() < 0.7
    rng = random.Random(0)
    noisy = np.array([bool(value) != (rng.random() < 0.1) for value in truth])
    features = embed(texts)
    held = np.arange(len(texts)) % 4 == 0
    forest, _ = train_forest(features[~held], noisy[~held], trees=100, seed=0)
    ours = classification(forest.score(features[held]) >= 0.5, truth[held])
    model = ensemble.RandomForestClassifier(100, random_state=0)
    model.fit(features[~held], noisy[~held])
    theirs = classification(model.predict_proba(features[held])[:, 1] >= 0.5, truth[held])
    assert ours["f1"] >= 0.85
    assert abs(ours["f1"] - theirs["f1"]) <= 0.02
