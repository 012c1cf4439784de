import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.errors import ConfigError, InputError
from hornbook.quality import embed, embedder_id, feature_names

CODE = '"""Words."""\nimport os\n\n\ndef f(a, b):\n    """Say."""\n    return [a + x for x in b]\n'
ODD = ["", "\0", "a\0b = 1\n", "größe = '\U0001f600'\n", "def f(:\n", "(" * 5000, "\r\n\t", CODE]
ODD.append("def f():\n" + "    # was: x = 1\n" * 20_000 + "    pass\n")  # quadratic in the grammar


def test_shape_names_and_unit_length() -> None:
    features = embed(ODD, dimensions=64)
    assert features.dtype == np.float32
    assert features.shape == (len(ODD), len(feature_names(64)))
    assert np.isfinite(features).all()
    norms = np.linalg.norm(features[:, :64], axis=1)
    assert norms[0] == norms[1] == 0
    np.testing.assert_allclose(norms[2:6], 1, rtol=1e-5)
    assert embed([], dimensions=64).shape == (0, len(feature_names(64)))


def test_ratios_say_what_their_names_say() -> None:
    row = dict(zip(feature_names(8), embed([CODE], dimensions=8)[0].tolist(), strict=True))
    assert row["docstring_share"] == pytest.approx(len('"""Words."""' + '"""Say."""') / len(CODE))
    assert row["documented_share"] == 1
    assert row["imports_per_statement"] == pytest.approx(1 / 5)
    assert row["blank_line_share"] == pytest.approx(2 / 7)
    assert row["broken_share"] == 0
    assert row["log_bytes"] == pytest.approx(np.log1p(len(CODE)), rel=1e-6)


def test_embedder_id_names_the_dimensions() -> None:
    assert embedder_id(64) != embedder_id(128)


@pytest.mark.parametrize("dimensions", [0, 1 << 17])
def test_senseless_dimensions_are_refused(dimensions: int) -> None:
    with pytest.raises(ConfigError, match="dimensions"):
        embed(["x"], dimensions=dimensions)


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InputError, match="Unicode"):
        embed(["\ud800"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=200), max_size=20))
def test_a_row_does_not_depend_on_its_neighbours(texts: list[str]) -> None:
    together = embed(texts, dimensions=32)
    for row, text in zip(together, texts, strict=True):
        assert embed([text], dimensions=32)[0].tobytes() == row.tobytes()


def test_thread_count_changes_nothing() -> None:
    program = (
        "import hashlib; from hornbook.quality import embed;"
        "texts = [f'def f{i}(x):\\n    return x ** {i}\\n' for i in range(500)];"
        "print(hashlib.sha256(embed(texts).tobytes()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                "RAYON_NUM_THREADS": threads,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "7")
    }
    assert len(found) == 1
