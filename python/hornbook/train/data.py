"""Rows for the loop: one process's share of every step.

A step's rows are the samples `step * batch_size ...` of the data's global order, so the position in
the data is one number, whatever the number of processes. Packed data comes through
`hornbook.loading.Loader`: filled by threads of the Rust core while the model computes, in pinned
memory where there is a GPU.

    hornbook train demo --data packed/ --out model/
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from hornbook.errors import ConfigError
from hornbook.files import hash_json
from hornbook.manifest import input_hash
from hornbook.train.parallel import World
from hornbook.train.schedule import TrainConfig

IGNORED = -100
FETCH_ROWS = 256
StrPath = str | PathLike[str]


class Rows(Protocol):
    """What training needs of a data set: `hornbook.PackedDataset`, or anything like it."""

    @property
    def samples_per_epoch(self) -> int:
        """Rows of an epoch."""

    def batch(self, first: int, count: int, /) -> Mapping[str, Any]:
        """Rows `first ... first + count` of the endless global order.

        input_ids, labels (-100: no loss) `[B, T]` int64; prompt_mask `[B, T]` bool; position_ids
        `[B, T]` int64 where they are reset; cu_seqlens: for each row its documents' starts and its
        end.
        """


Data = StrPath | Sequence[StrPath] | Mapping[str, float] | Rows


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows that go through the model at once."""

    number: int
    """Its place among all the step's micro-batches, over all processes: dropout's key."""
    samples: range
    """Which samples of the global order it holds."""
    input_ids: Tensor
    """`[B, T]`."""
    labels: Tensor
    """`[B, T]`."""
    weights: Tensor | None
    """`[B, T]`, or None where all are 1."""
    positions: Tensor | None
    """`[B, T]`, where they start again in every document."""
    cu_seqlens: list[Any] | None
    """Documents of each row, where they are to be kept apart."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A process's rows of one step."""

    micro: list[MicroBatch]
    """In order."""
    weight: float
    """Sum of these rows' loss weights."""


def identity(data: Data) -> str:
    """What data a run is of, for resuming: a hash of its manifests.

    Raises:
        InputError: If a folder is missing.
    """
    if hasattr(data, "batch"):
        rows = cast(Rows, data)
        return str(getattr(rows, "identity", rows.samples_per_epoch))
    weights = list(data.values()) if isinstance(data, Mapping) else None
    return hash_json([[input_hash(Path(path)) for path in _paths(data)], weights])


def _paths(data: Any) -> list[str]:
    return [fspath(data)] if isinstance(data, str | PathLike) else [fspath(path) for path in data]


def steps(
    data: Data, config: TrainConfig, world: World, *, first: int, vocab_size: int
) -> Generator[Step]:
    """This process's rows of every step from `first` to the last; closed, it stops reading.

    Raises:
        InputError: If a folder is missing or no packed data.
        ConfigError: If the batch cannot be shared out, or the rows do not fit the model.
    """
    share, size = shares(config, world.size)
    # Several steps in one call: for small models the call would cost as much as the step.
    chunk = max(1, FETCH_ROWS // config.batch_size) if world.size == 1 else 1
    batches = _batches(data, config, world, first=first, share=share, chunk=chunk)
    for start in range(first, config.last_step, chunk):
        batch = next(batches)
        _check(batch, config, vocab_size)
        for step in range(start, min(start + chunk, config.last_step)):
            rows = slice((step - start) * share, (step - start + 1) * share)
            at = step * config.batch_size + world.rank * share
            yield _split(batch, rows, at, config, world, size=size)


def shares(config: TrainConfig, processes: int) -> tuple[int, int]:
    """Rows of a process in a step, and of those how many at once.

    Raises:
        ConfigError: If the batch cannot be shared out so.
    """
    if config.batch_size % processes:
        raise ConfigError(
            f"batch_size {config.batch_size} must be a multiple of the {processes} processes"
        )
    share = config.batch_size // processes
    size = config.micro_batch_size or share
    if share % size:
        raise ConfigError(
            f"each of {processes} processes has {share} rows a step, which is not a multiple of "
            f"micro_batch_size {size}"
        )
    return share, size


def _batches(
    data: Data, config: TrainConfig, world: World, *, first: int, share: int, chunk: int
) -> Iterator[dict[str, Any]]:
    """Endless: this process's rows, `share * chunk` at once; tensors, and cu_seqlens by row."""
    start, count = first * config.batch_size, share * chunk
    if hasattr(data, "batch"):
        rows = cast(Rows, data)
        while True:
            made = dict(rows.batch(start + world.rank * share, count))
            yield {
                key: value if key == "cu_seqlens" else torch.from_numpy(np.asarray(value))
                for key, value in made.items()
            }
            start += chunk * config.batch_size
    from hornbook.loading import Loader
    from hornbook.packed import PackedDataset

    packed = PackedDataset(
        {fspath(path): weight for path, weight in data.items()}
        if isinstance(data, Mapping)
        else _paths(data),
        sequence_length=config.sequence_length,
        method=config.method,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        start=start,
    )
    fields = ["input_ids", "labels"]
    if config.prompt_loss_weight != 1.0:
        fields.append("prompt_mask")
    if config.reset_positions:
        fields.append("position_ids")
    gpu = world.device.type == "cuda"
    edges = np.arange(count + 1) * config.sequence_length
    for batch in Loader(packed, count, fields=fields, pin_memory=gpu):
        bounds = batch["cu_seqlens"].numpy()
        places = np.searchsorted(bounds, edges)
        cut = [bounds[a : b + 1] for a, b in pairwise(places)]
        yield {**batch, "cu_seqlens": [part - part[0] for part in cut]}


def _check(batch: Mapping[str, Any], config: TrainConfig, vocab_size: int) -> None:
    ids, labels = batch["input_ids"], batch["labels"]
    if ids.shape[1] != config.sequence_length or labels.shape != ids.shape:
        raise ConfigError(
            f"rows have {ids.shape[1]} tokens and labels {tuple(labels.shape)}, but "
            f"sequence_length is {config.sequence_length}"
        )
    top = int(max(ids.max(), labels.max()))
    if top >= vocab_size:
        raise ConfigError(
            f"the data holds token {top}, the model's vocabulary is {vocab_size}: set "
            "model.vocab_size, or pack with the tokenizer that the recipe names"
        )


def _split(
    batch: Mapping[str, Any],
    rows: slice,
    first: int,
    config: TrainConfig,
    world: World,
    *,
    size: int,
) -> Step:
    """A step's share cut into micro-batches, on the device."""
    labels = batch["labels"][rows]
    weights = None
    if config.prompt_loss_weight == 1.0:
        total = float((labels != IGNORED).sum())
    else:
        prompt = batch["prompt_mask"][rows]
        weights = (labels != IGNORED).float()
        weights = torch.where(prompt, weights * config.prompt_loss_weight, weights)
        total = float(weights.sum(dtype=torch.float64))
    tensors = {
        "input_ids": batch["input_ids"][rows],
        "labels": labels,
        "weights": weights,
        "positions": batch["position_ids"][rows] if config.reset_positions else None,
    }
    placed = {
        name: None if tensor is None else tensor.to(world.device, non_blocking=True)
        for name, tensor in tensors.items()
    }
    bounds = batch["cu_seqlens"][rows] if config.document_mask else None
    micro = []
    for at in range(0, len(labels), size):
        part = slice(at, at + size)
        micro.append(
            MicroBatch(
                number=(world.rank * len(labels) + at) // size,
                samples=range(first + at, first + at + size),
                cu_seqlens=None if bounds is None else list(bounds[part]),
                **{name: None if t is None else t[part] for name, t in placed.items()},  # type: ignore[arg-type]
            )
        )
    return Step(micro=micro, weight=total)
