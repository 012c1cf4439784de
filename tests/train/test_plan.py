"""Memory as estimated against what autograd and the optimizer hold; which way is taken."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hornbook.errors import ConfigError
from hornbook.model import Phi, PhiConfig
from hornbook.train import TrainConfig, estimate
from hornbook.train.plan import Plan, flops_per_token, make_plan, memory_bytes, parameter_count

GB = 2**30
SHAPE = PhiConfig(
    vocab_size=64,
    hidden_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=128,
)


def saved_bytes(shape: PhiConfig, precision: str, *, recompute: bool = False) -> int:
    """What autograd keeps of two rows of 128 tokens, without the weights themselves."""
    model = Phi(replace(shape, resid_pdrop=0.0), seed=0).train()
    if recompute:
        for block in model.model.layers:
            inner = block.forward
            block.forward = lambda *a, inner=inner: checkpoint(inner, *a, use_reentrant=False)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    ids = torch.zeros(2, 128, dtype=torch.int64)
    model.rotary(128, torch.device("cpu"))
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        model(ids, labels=ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_keeps(precision: str) -> None:
    """Of one more layer, so that what is outside the blocks drops out."""
    config = TrainConfig(
        steps=1, batch_size=2, learning_rate=1.0, sequence_length=128, precision=precision
    )
    deep = replace(SHAPE, num_hidden_layers=5)
    measured = (saved_bytes(deep, precision) - saved_bytes(SHAPE, precision)) / 2
    parts = [memory_bytes(s, config, processes=1, recompute=False) for s in (SHAPE, deep)]
    estimated = sum(parts[1][k] - parts[0][k] for k in ("activations", "copies")) / 2
    assert estimated == pytest.approx(measured, rel=0.05)


def test_recomputed_blocks_keep_their_inputs() -> None:
    deep = replace(SHAPE, num_hidden_layers=5)
    measured = (
        saved_bytes(deep, "fp32", recompute=True) - saved_bytes(SHAPE, "fp32", recompute=True)
    ) / 2
    config = TrainConfig(steps=1, batch_size=2, learning_rate=1.0, sequence_length=128)
    parts = [memory_bytes(s, config, processes=1, recompute=True) for s in (SHAPE, deep)]
    assert (parts[1]["activations"] - parts[0]["activations"]) / 2 == pytest.approx(
        measured, rel=0.05
    )


def test_weights_gradients_and_moments() -> None:
    config = TrainConfig(steps=1, batch_size=2, learning_rate=1.0)
    n = parameter_count(SHAPE)
    whole = memory_bytes(SHAPE, config, processes=4, recompute=False)
    pieces = memory_bytes(SHAPE, config, processes=4, shards=4, recompute=False)
    assert (whole["weights"], whole["gradients"], whole["adam"]) == (4 * n, 4 * n, 8 * n)
    assert pieces["weights"] == n
    assert pieces["adam"] == 2 * n
    assert whole["total"] == sum(whole.values()) - whole["total"]


def plan(processes: int, gb: float, *, per_machine: int = 8, **changes: Any) -> Plan:
    return make_plan(
        PhiConfig.phi_1(),
        TrainConfig.pretrain(**changes),
        processes=processes,
        per_machine=min(per_machine, processes),
        memory=int(gb * GB),
        gpu=True,
    )


def test_the_fastest_way_that_fits() -> None:
    """phi-1 on eight cards of 80 GB as in the paper, and on fewer and smaller ones."""
    assert (plan(1, 80).parallel, plan(1, 80).recompute) == ("single", False)
    assert (plan(8, 80).parallel, plan(8, 80).shards) == ("ddp", 1)
    small = plan(8, 40)
    assert (small.parallel, small.shards, small.recompute) == ("fsdp", 8, False)
    assert plan(8, 12, micro_batch_size=4).recompute
    machines = plan(16, 40)
    assert (machines.parallel, machines.shards) == ("hybrid", 8)
    assert plan(16, 80).compile
    assert plan(8, 80, memory_gb=40).parallel == "fsdp"


def test_what_is_fixed_stays() -> None:
    fixed = plan(8, 80, parallel="fsdp", recompute=True, compile=False)
    assert (fixed.parallel, fixed.recompute, fixed.compile) == ("fsdp", True, False)
    assert plan(8, 80, parallel="hybrid", shards=4).shards == 4
    with pytest.raises(ConfigError, match="groups of more than one"):
        plan(8, 80, parallel="hybrid", shards=3)
    with pytest.raises(ConfigError, match="under torchrun"):
        plan(1, 80, parallel="fsdp")


def test_what_cannot_fit_is_refused_saying_what_would() -> None:
    with pytest.raises(ConfigError, match="does not fit") as caught:
        plan(2, 20)
    said = str(caught.value)
    assert "micro_batch_size = " in said
    assert "4 processes" in said
    count = int(said.split("micro_batch_size = ")[1].split(";")[0])
    assert plan(2, 20, micro_batch_size=count).memory["total"] <= 20 * GB
    assert plan(4, 20, micro_batch_size=1).memory["total"] <= 20 * GB
    with pytest.raises(ConfigError, match='parallel = "auto"'):
        plan(8, 40, parallel="ddp", recompute=False)
    with pytest.raises(ConfigError, match="smaller model"):
        plan(1, 0.5)


def test_flops() -> None:
    assert flops_per_token(PhiConfig.phi_1(), 2048) == pytest.approx(9.09e9, rel=0.002)
    again = estimate(PhiConfig.phi_1(), TrainConfig.pretrain(recompute=True))
    assert again["memory_bytes"]["activations"] < (
        estimate(PhiConfig.phi_1(), TrainConfig.pretrain())["memory_bytes"]["activations"] / 4
    )
