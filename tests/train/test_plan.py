"""Memory as estimated against what autograd and the optimizer hold; which way is taken."""

import json
import re
import subprocess
import sys
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
        plan(8, 80, parallel="hybrid", shards=8)
    for parallel in ("auto", "hybrid"):
        with pytest.raises(ConfigError, match="shards 3 must divide the 8"):
            plan(8, 80, parallel=parallel, shards=3)
    for parallel in ("ddp", "fsdp"):
        with pytest.raises(ConfigError, match="shards is for"):
            plan(8, 80, parallel=parallel, shards=4)
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


MEASURE = """
import json, re, sys, tempfile
from pathlib import Path
import numpy as np
from hornbook.model import PhiConfig
from hornbook.train import TrainConfig, train
class Rows:
    identity, samples_per_epoch = "r", 1 << 20
    def batch(self, first, count):
        ids = np.zeros((count, length + 1), dtype=np.int64)
        prompt, ends = np.zeros((count, length), bool), [np.array([0, length], np.int32)] * count
        return {"input_ids": ids[:, 1:], "labels": ids[:, 1:], "prompt_mask": prompt,
                "cu_seqlens": ends}
shape, options = json.loads(sys.argv[1])
length = options["sequence_length"]
for again in range(2):  # what is loaded on the way counts only the first time
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    with tempfile.TemporaryDirectory() as out:
        train(TrainConfig(**options), data=Rows(), out=out, model=PhiConfig(**shape))
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


def test_what_is_counted_on_a_cpu_besides() -> None:
    """Of three blocks three matrices of scores each, and one; computed again, of one block."""
    config = TrainConfig(steps=1, batch_size=2, learning_rate=1.0, sequence_length=128, dropout=0.1)
    options: dict[str, Any] = {"processes": 1, "gpu": False}
    parts = memory_bytes(SHAPE, config, recompute=False, **options)
    matrix = 4 * 2 * SHAPE.num_attention_heads * 128 * 128
    assert parts["scores"] == 10 * matrix
    assert memory_bytes(SHAPE, config, recompute=True, **options)["scores"] == 4 * matrix
    assert parts["checkpoint"] == 12 * parameter_count(SHAPE)
    assert (
        memory_bytes(SHAPE, replace(config, dropout=0.0), recompute=False, **options)["scores"] == 0
    )
    without = memory_bytes(SHAPE, config, processes=1, recompute=False)
    assert without["total"] == parts["total"] - parts["scores"] - parts["checkpoint"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    ("shape", "options", "change", "kind"),
    [
        (
            {"hidden_size": 128, "num_hidden_layers": 3},
            {"sequence_length": 512, "batch_size": 4, "save_every": 9, "async_save": False},
            {"dropout": 0.1},
            "scores",
        ),
        (
            {"hidden_size": 512, "num_hidden_layers": 8},
            {"sequence_length": 32, "batch_size": 1, "save_every": 1, "async_save": False},
            {"async_save": True},
            "checkpoint",
        ),
    ],
    ids=["scores", "checkpoint"],
)
def test_what_a_cpu_holds_besides(
    shape: dict[str, Any], options: dict[str, Any], change: dict[str, Any], kind: str
) -> None:
    """Attention's matrices under dropout, and the copy of a checkpoint that is being written."""
    shape = {"vocab_size": 64, "num_attention_heads": 8, **shape}
    options = {"steps": 3, "learning_rate": 1e-3, "threads": 1, **options}
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", MEASURE, json.dumps([shape, {**options, **changes}])],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()[-1]
        )
        for changes in ({}, change)
    ]
    config = TrainConfig(**{**options, **change})
    parts = memory_bytes(PhiConfig(**shape), config, processes=1, recompute=False, gpu=False)
    assert parts[kind] == pytest.approx(peaks[1] - peaks[0], rel=0.25)


def test_main_memory_holds_the_checkpoint_that_a_gpu_writes() -> None:
    options: dict[str, Any] = {"processes": 8, "per_machine": 8, "memory": 80 * GB, "gpu": True}
    copy = 12 * parameter_count(PhiConfig.phi_1())
    make_plan(PhiConfig.phi_1(), TrainConfig.pretrain(), host=2 * copy, **options)
    with pytest.raises(ConfigError, match="async_save = false"):
        make_plan(PhiConfig.phi_1(), TrainConfig.pretrain(), host=copy, **options)
    for changes in ({"async_save": False}, {"parallel": "fsdp"}):
        make_plan(PhiConfig.phi_1(), TrainConfig.pretrain(**changes), host=copy, **options)


def test_a_machine_without_gpus_is_not_told_to_share_its_memory_further() -> None:
    """More processes there would have as much less each; on more machines they would not."""
    memory = 24 * GB
    config = TrainConfig.pretrain(precision="fp32", batch_size=64, dropout=0.0, async_save=False)
    options: dict[str, Any] = {"gpu": False}
    with pytest.raises(ConfigError, match="does not fit") as caught:
        make_plan(
            PhiConfig.phi_1(), config, processes=2, per_machine=2, memory=memory // 2, **options
        )
    found = re.search(r"(\d+) processes on (\d+) machines", str(caught.value))
    assert found is not None
    processes, machines = map(int, found.groups())
    assert processes == 2 * machines
    small = replace(config, micro_batch_size=1)
    make_plan(
        PhiConfig.phi_1(),
        small,
        processes=processes,
        per_machine=2,
        memory=memory // 2,
        **options,
    )
    options["memory"] = memory // processes
    with pytest.raises(ConfigError, match="does not fit"):
        make_plan(PhiConfig.phi_1(), small, processes=processes, per_machine=processes, **options)


def test_flops() -> None:
    assert flops_per_token(PhiConfig.phi_1(), 2048) == pytest.approx(9.09e9, rel=0.002)
    again = estimate(PhiConfig.phi_1(), TrainConfig.pretrain(recompute=True))
    assert again["memory_bytes"]["activations"] < (
        estimate(PhiConfig.phi_1(), TrainConfig.pretrain())["memory_bytes"]["activations"] / 4
    )
