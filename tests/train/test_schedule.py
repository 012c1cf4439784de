"""Learning rates by value, options, and what a run is said to cost."""

from dataclasses import replace

import pytest

from hornbook.errors import ConfigError
from hornbook.model import Phi, PhiConfig
from hornbook.train import TrainConfig, estimate, learning_rate
from hornbook.train.plan import parameter_count

BASE = TrainConfig(steps=110, batch_size=4, learning_rate=2.0, warmup_steps=10)


def rates(schedule: str, *steps: int) -> list[float]:
    return [learning_rate(replace(BASE, schedule=schedule), step) for step in steps]


def test_values() -> None:
    assert rates("linear", 0, 4, 9, 10, 60, 109) == pytest.approx([0.2, 1, 2, 2, 1, 0.02])
    assert rates("cosine", 9, 10, 35, 60, 85) == pytest.approx([2, 2, 1.7071068, 1, 0.2928932])
    assert rates("wsd", 10, 60, 89, 90, 100, 109) == pytest.approx([2, 2, 2, 2, 1, 0.1])
    assert rates("constant", 0, 10, 109) == pytest.approx([0.2, 2, 2])


def test_the_paper_stops_before_its_schedule_ends() -> None:
    paper = TrainConfig.pretrain()
    assert paper.last_step == 24_000
    assert learning_rate(paper, 749) == pytest.approx(1e-3)
    assert learning_rate(paper, 24_000) == pytest.approx(1e-3 * 12_000 / 35_250)
    assert TrainConfig.finetune().last_step == 6_000


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"stop_step": 111},
        {"warmup_steps": 110},
        {"schedule": "step"},
        {"precision": "int8"},
        {"micro_batch_size": 3},
        {"dropout": 1.0},
        {"learning_rate": 0.0},
        {"betas": (0.9, 1.0)},
        {"method": "best"},
        {"weight_decay": -0.1},
        {"weight_decay": float("nan")},
    ],
)
def test_senseless_options_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        replace(BASE, **changes)  # type: ignore[arg-type]


def test_estimate_of_the_paper_s_run() -> None:
    cost = estimate(PhiConfig.phi_1(), TrainConfig.pretrain())
    assert cost["parameters"] == 1_418_270_720
    assert cost["tokens"] == 24_000 * 1024 * 2048
    assert cost["flops_per_token"] == pytest.approx(9.09e9, rel=0.002)
    # The paper: under 4 days on 8 A100.
    assert 600 < cost["gpu_hours"]["A100"] < 900
    memory = cost["memory_bytes"]
    assert memory["total"] == sum(memory.values()) - memory["total"]
    assert estimate(PhiConfig.phi_1_small(), TrainConfig.pretrain())["flops_per_token"] == (
        pytest.approx(2.33e9, rel=0.002)
    )


def test_parameters_are_counted_without_a_model() -> None:
    for shape in (
        PhiConfig.phi_1_small(),
        PhiConfig(vocab_size=7, hidden_size=8, intermediate_size=5, num_attention_heads=2),
    ):
        model = Phi(shape, device="meta")
        assert parameter_count(shape) == sum(p.numel() for p in model.parameters())
