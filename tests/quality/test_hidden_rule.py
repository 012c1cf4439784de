"""Learning a rule that nobody told: real files, a tenth of the labels wrong."""

import ast
import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from hornbook import _core
from hornbook.quality import embed, train_forest
from hornbook.quality.stats import classification

ensemble = pytest.importorskip("sklearn.ensemble")


def hidden(tree: ast.Module) -> bool:
    """Mostly functions that compute: at least one loop or branch in a function of each 25 lines."""
    lines = max((getattr(node, "end_lineno", 0) or 0 for node in tree.body), default=0)
    inside = sum(
        isinstance(node, ast.For | ast.While | ast.If | ast.comprehension)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    )
    return inside * 12 >= max(1, lines)


def real_files() -> list[tuple[str, bool]]:
    """Of the standard library and the installed packages, 2,000 by the hashes of their texts."""
    paths = sysconfig.get_paths()
    found: dict[str, str] = {}
    for root in (paths["stdlib"], paths["purelib"]):
        for path in Path(root).rglob("*.py"):
            if len(found) > 5_000:
                break
            if 400 < path.stat().st_size < 60_000:
                try:
                    text = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue
                found[_core.hash_bytes(text.encode())] = text
    rows = []
    for name in sorted(found):
        try:
            rows.append((found[name], hidden(ast.parse(found[name]))))
        except (SyntaxError, ValueError, RecursionError):
            continue
        if len(rows) == 2_000:
            break
    return rows


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_a_hidden_rule_is_learned_through_noise() -> None:
    rows = real_files()
    truth = np.array([value for _, value in rows])
    assert 0.15 < truth.mean() < 0.85
    rng = random.Random(0)
    noisy = np.array([value != (rng.random() < 0.1) for value in truth])
    features = embed([text for text, _ in rows])
    held = np.arange(len(rows)) % 4 == 0
    forest, _ = train_forest(features[~held], noisy[~held], trees=100, seed=0)
    ours = classification(forest.score(features[held]) >= 0.5, truth[held])
    model = ensemble.RandomForestClassifier(100, random_state=0, n_jobs=-1)
    model.fit(features[~held], noisy[~held])
    theirs = classification(model.predict_proba(features[held])[:, 1] >= 0.5, truth[held])
    assert ours["f1"] >= 0.85
    assert abs(ours["f1"] - theirs["f1"]) <= 0.02
