"""`benchmarks/train.py`: what it says of several GPUs, and whether its arms are one model."""

import math
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "train.py"
    spec = spec_from_file_location("benchmark_train", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_modelled_scaling_does_not_depend_on_the_rows_that_were_measured(
    benchmark: ModuleType,
) -> None:
    """At the same tokens a second, a step of 1024 rows takes as long however it is cut."""
    made = [
        benchmark.modelled_scaling(1_418_270_720, rows * 2048 / 40_000, rows)
        for rows in (8, 16, 32)
    ]
    assert made[0] == made[1] == made[2]
    compute = 1024 // 8 * 2048 / 40_000
    exchange = 2 * 7 / 8 * 4 * 1_418_270_720 / 360e9
    wanted = compute / (compute + exchange)
    assert made[0][0]["modelled_efficiency"] == pytest.approx(wanted, abs=1e-4)


def arms(*losses: float | None) -> dict[str, Any]:
    return {f"arm {place}": {"check_loss": loss} for place, loss in enumerate(losses)}


def test_the_check_tells_models_apart(benchmark: ModuleType) -> None:
    pytest.importorskip("transformers")
    tiny = benchmark.SHAPES["tiny"]
    ours = benchmark.check_loss({"model": "tiny"})
    peer = benchmark.check_loss({"model": "tiny", "peer": "transformers", "dropout": 0.1})
    assert benchmark.same_model(arms(ours, peer, None))
    for name, value in (
        ("num_attention_heads", 1),
        ("partial_rotary_factor", 0.0),
        ("num_hidden_layers", 1),
        ("layer_norm_eps", 0.1),
    ):
        benchmark.SHAPES["other"] = {**tiny, name: value}
        other = benchmark.check_loss({"model": "other"})
        assert math.isfinite(other)
        assert not benchmark.same_model(arms(ours, peer, other)), name
