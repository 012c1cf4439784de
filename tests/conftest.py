"""Shared by every test: fixed seeds, Hypothesis profiles, the data folder."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fast", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "deep", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(scope="session")
def hornbook_data() -> Path:
    """The folder of benchmark problems and tokenizer files; skips where there is none."""
    folder = os.environ.get("HORNBOOK_DATA")
    if not folder:
        pytest.skip("HORNBOOK_DATA is not set")
    return Path(folder)
