"""How a run is put on its processes: what memory each way takes, and the fastest that fits.

Ways, fastest first: the whole model in each process (alone, or with gradients averaged); its
weights, gradients and optimizer in pieces over a machine's processes and repeated over machines, or
in pieces over all; then the same with activations computed again in the backward pass, which costs
a third more. A run that no way fits is refused, with what would fit. Activations are counted as
autograd keeps them (the tests compare), everything else as it is stored; on a CPU also the copy of
which checkpoints are written while training goes on, and what attention with dropout computes with.

    hornbook run phi-1 --dry-run
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hornbook.errors import ConfigError
from hornbook.model.config import PhiConfig
from hornbook.train.schedule import TrainConfig

USABLE = 0.92
"""Share of a device's memory that a plan may fill; the rest is torch's and the allocator's."""
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0}
"""Dense bf16 peaks of the cards."""
ASSUMED_MFU = {"A100": 0.50, "H100": 0.40}
HEAD_TOKENS = 4096
"""Most tokens whose logits are held at once."""
SCORES = 3
"""Matrices of all scores (heads by tokens by tokens, fp32) that are kept of each block where torch
computes attention in its plain form: on a CPU, with dropout. One more is at work."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to run."""

    parallel: str
    """"single", "ddp", "fsdp" or "hybrid"."""
    shards: int
    """Processes that hold one copy of the model together."""
    recompute: bool
    """Activations within blocks are computed again in the backward pass."""
    compile: bool
    """Blocks go through torch.compile."""
    memory: dict[str, int]
    """Estimated bytes of one process, by kind and in all."""


def make_plan(
    model: PhiConfig,
    config: TrainConfig,
    *,
    processes: int,
    per_machine: int,
    memory: int,
    gpu: bool,
    host: int | None = None,
) -> Plan:
    """The fastest way that fits.

    Args:
        model: The shape.
        config: The run; what it fixes (parallel, shards, recompute, compile, memory_gb) stays.
        processes: In all.
        per_machine: On one machine.
        memory: Bytes of a process's device, unless the config states them.
        gpu: Whether that is a GPU.
        host: Then, bytes of main memory for each process; not looked at unless given.

    Raises:
        ConfigError: If the options contradict each other or the processes; or if nothing fits, with
            what would.
    """
    if config.memory_gb is not None:
        memory = int(config.memory_gb * 2**30)
    limit = int(memory * USABLE)
    ways = list(_ways(model, config, processes=processes, per_machine=per_machine, gpu=gpu))
    for way in ways:
        if way.memory["total"] <= limit:
            _check_host(model, config, way, host if gpu else None)
            return way
    least = min(ways, key=lambda way: way.memory["total"])
    parts = ", ".join(
        f"{kind} {size / 2**30:.3g}" for kind, size in least.memory.items() if kind != "total"
    )
    raise ConfigError(
        f"does not fit: the least that {processes} process(es) need is about "
        f"{least.memory['total'] / 2**30:.3g} GiB each ({least.parallel}"
        f"{', recompute' if least.recompute else ''}: {parts}), and {limit / 2**30:.3g} GiB of "
        f"{memory / 2**30:.3g} may be used. "
        + _remedy(model, config, processes=processes, per_machine=per_machine, limit=limit, gpu=gpu)
    )


def _check_host(model: PhiConfig, config: TrainConfig, way: Plan, host: int | None) -> None:
    copy = _checkpoint_copy(model, config, shards=way.shards)
    if host is not None and copy > host * USABLE:
        raise ConfigError(
            f"does not fit: a checkpoint that is written while training goes on is copied to main "
            f"memory, {copy / 2**30:.3g} GiB a process, and there are {host / 2**30:.3g}. These "
            'would do: async_save = false; parallel = "fsdp"'
        )


def _checkpoint_copy(model: PhiConfig, config: TrainConfig, *, shards: int) -> int:
    """Bytes of weights and moments that a process copies to write them in the background."""
    return 12 * parameter_count(model) // shards if config.async_save else 0


def _ways(
    model: PhiConfig, config: TrainConfig, *, processes: int, per_machine: int, gpu: bool
) -> Iterator[Plan]:
    """All ways that the options allow, fastest first."""
    if config.parallel != "auto" and processes == 1 and config.parallel != "ddp":
        raise ConfigError(
            f'parallel = "{config.parallel}" needs several processes: start it under torchrun'
        )
    if config.shards is not None and processes % config.shards:
        raise ConfigError(f"shards {config.shards} must divide the {processes} process(es)")
    group = config.shards or per_machine
    grouped = 1 < group < processes and processes % group == 0
    if config.parallel == "hybrid" and not grouped:
        raise ConfigError(
            f'parallel = "hybrid" needs groups of more than one and fewer than all {processes} '
            f"processes that divide them, not of {group}; set shards"
        )
    kinds: list[tuple[str, int]] = [("single" if processes == 1 else "ddp", 1)]
    if grouped:
        kinds.append(("hybrid", group))
    if processes > 1:
        kinds.append(("fsdp", processes))
    if config.parallel != "auto" and processes > 1:
        kinds = [kind for kind in kinds if kind[0] == config.parallel]
    again = (False, True) if config.recompute is None else (config.recompute,)
    for recompute in again:
        for parallel, shards in kinds:
            yield Plan(
                parallel=parallel,
                shards=shards,
                recompute=recompute,
                compile=gpu if config.compile is None else config.compile,
                memory=memory_bytes(
                    model,
                    config,
                    processes=processes,
                    shards=shards,
                    recompute=recompute,
                    gpu=gpu,
                ),
            )


def _remedy(
    model: PhiConfig,
    config: TrainConfig,
    *,
    processes: int,
    per_machine: int,
    limit: int,
    gpu: bool,
) -> str:
    """What would fit, each tried by the same estimate."""
    found = []
    share = max(1, config.batch_size // processes)
    size = config.micro_batch_size or share
    free = replace(config, parallel="auto", shards=None, recompute=None)

    def fits(changed: TrainConfig, count: int) -> bool:
        ways = _ways(model, changed, processes=count, per_machine=count, gpu=gpu)
        return any(way.memory["total"] <= limit for way in ways)

    if fits(free, processes):
        found.append('parallel = "auto" without shards and recompute')
    smaller = [n for n in range(size - 1, 0, -1) if share % n == 0]
    for count in smaller:
        if fits(replace(free, micro_batch_size=count), processes):
            found.append(f"micro_batch_size = {count}")
            break
    if config.async_save and not gpu and fits(replace(free, async_save=False), processes):
        found.append("async_save = false")
    # More processes on a machine without GPUs would only share the same memory.
    shared = not gpu and config.memory_gb is None
    last = replace(free, micro_batch_size=1)
    for count in (2**power for power in range(1, 13)):
        possible = count > processes and config.batch_size % count == 0
        if shared and count % per_machine:
            possible = False
        if possible and fits(last, count):
            where = f" on {count // per_machine} machines" if shared else ""
            found.append(f"{count} processes{where} (with micro_batch_size = 1)")
            break
    return f"These would fit: {'; '.join(found)}" if found else "Take a smaller model"


def parameter_count(config: PhiConfig) -> int:
    """Parameters of a model, from its shape alone."""
    c, v = config.hidden_size, config.vocab_size
    return v * c + config.num_hidden_layers * _block_parameters(config) + 2 * c + v * c + v


def _block_parameters(config: PhiConfig) -> int:
    c, f = config.hidden_size, config.intermediate_size or 0
    return 4 * (c * c + c) + (c * f + f) + (f * c + c) + 2 * c


def memory_bytes(
    model: PhiConfig,
    config: TrainConfig,
    *,
    processes: int,
    shards: int = 1,
    recompute: bool,
    gpu: bool = True,
) -> dict[str, int]:
    """What one process holds at its fullest, estimated.

    Args:
        model: The shape.
        config: The run.
        processes: In all.
        shards: Processes that hold one copy of the model together.
        recompute: Whether blocks keep only what they were given.
        gpu: Whether it computes on one; a CPU holds the checkpoint being written too.

    Returns:
        Bytes of weights, gradients, adam, gathered (pieces put together for use), copies (weights
        in the precision of products), activations, scores (attention's, on a CPU with dropout),
        head, checkpoint, and the total.
    """
    n, block = parameter_count(model), _block_parameters(model)
    c, f = model.hidden_size, model.intermediate_size or 0
    half = config.precision != "fp32"
    width = 2 if half else 4
    rows = config.micro_batch_size or max(1, config.batch_size // processes)
    tokens = rows * config.sequence_length
    # What autograd keeps of a block for each token: its input in fp32, the normed one (in half
    # precision once for each product), q, k, v, attention's output, both sides of the GELU.
    kept = (16 * c + 4 * f) if half else (24 * c + 8 * f)
    if config.dropout > 0:
        kept += 2 * width * c
    layers = model.num_hidden_layers
    activations = tokens * (4 * c * layers + kept if recompute else kept * layers)
    if config.document_mask:
        activations += width * tokens * config.sequence_length
    # The products' own copies: q, k, v side by side, and in half precision every matrix.
    copy = width * (3 * c * c if not half else block)
    parts = {
        "weights": 4 * n // shards,
        "gradients": 4 * n // shards,
        "adam": 8 * n // shards,
        # The head's group and two blocks, with their gradients before they are cut up.
        "gathered": 0 if shards == 1 else (width + 4) * (n - layers * block + 2 * block),
        "copies": copy * (1 if recompute or shards > 1 else layers),
        "activations": activations,
        "scores": 0,
        "head": 2 * 4 * min(tokens, HEAD_TOKENS) * model.vocab_size
        + 4 * model.vocab_size * c
        + 4 * tokens * c,
        "checkpoint": 0,
    }
    if not gpu:
        parts["checkpoint"] = _checkpoint_copy(model, config, shards=shards)
        if config.dropout > 0:
            matrix = 4 * tokens * config.sequence_length * model.num_attention_heads
            parts["scores"] = matrix * (1 + SCORES * (1 if recompute else layers))
    return {**parts, "total": sum(parts.values())}


def flops_per_token(model: PhiConfig, sequence_length: int) -> int:
    """Floating-point operations of a training step for each token.

    6 N + 12 L d T: N parameters without the embedding (a look-up), L layers, width d, T tokens of a
    row; attention is counted whole though half of it is masked, and recomputing not at all.
    """
    n = parameter_count(model) - model.vocab_size * model.hidden_size
    return 6 * n + 12 * model.num_hidden_layers * model.hidden_size * sequence_length


def estimate(model: PhiConfig, config: TrainConfig, *, processes: int = 1) -> dict[str, Any]:
    """What a run takes, before it starts.

    Args:
        model: The shape.
        config: The run.
        processes: GPUs, each with the whole model.

    Returns:
        parameters; tokens; flops_per_token; flops; memory_bytes of one process by kind and in all;
        checkpoint_bytes of one; gpu_hours at the `mfu` assumed for each card's dense bf16 peak.
    """
    n = parameter_count(model)
    per_token = flops_per_token(model, config.sequence_length)
    tokens = config.last_step * config.batch_size * config.sequence_length
    recompute = bool(config.recompute)
    return {
        "parameters": n,
        "tokens": tokens,
        "flops_per_token": per_token,
        "flops": per_token * tokens,
        "memory_bytes": memory_bytes(model, config, processes=processes, recompute=recompute),
        "checkpoint_bytes": 12 * n,
        "mfu": dict(ASSUMED_MFU),
        "gpu_hours": {
            card: round(per_token * tokens / (peak * 1e12 * ASSUMED_MFU[card]) / 3600, 3)
            for card, peak in PEAK_TFLOPS.items()
        },
    }
