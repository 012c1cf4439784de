"""Rows for the loop: one process's share of every step, several steps fetched at once.

A step's rows are the samples `step * batch_size ...` of the data's global order, so the position in
the data is the step, whatever the number of processes. On a GPU the next rows are fetched by a
thread while the current ones are computed.

    hornbook train recipe.toml
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from hornbook.errors import ConfigError
from hornbook.manifest import hash_json, input_hash
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

        input_ids, labels (-100: no loss) `[B, T]` int64; prompt_mask `[B, T]` bool; cu_seqlens: for
        each row its documents' starts and its end.
        """


Data = StrPath | Sequence[StrPath] | Mapping[str, float] | Rows


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows that go through the model at once."""

    number: int
    """Its place among all the step's micro-batches, over all processes: dropout's key."""
    input_ids: Tensor
    """`[B, T]`."""
    labels: Tensor
    """`[B, T]`."""
    weights: Tensor | None
    """`[B, T]`, or None where all are 1."""
    cu_seqlens: list[Any] | None
    """Documents of each row, where they are to be kept apart."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A process's rows of one step."""

    micro: list[MicroBatch]
    """In order."""
    weight: float
    """Sum of these rows' loss weights."""


def open_rows(data: Data, config: TrainConfig) -> tuple[Rows, str]:
    """Opens the data of a run.

    Returns:
        The rows and the data's identity (a hash of its manifests), for resuming.

    Raises:
        InputError: If it is missing or no packed data.
    """
    if hasattr(data, "batch"):
        rows = cast(Rows, data)
        return rows, str(getattr(rows, "identity", rows.samples_per_epoch))
    from hornbook.packed import PackedDataset

    if isinstance(data, Mapping):
        sources: Any = {fspath(path): float(weight) for path, weight in data.items()}
    elif isinstance(data, str | PathLike):
        sources = fspath(data)
    else:
        sources = [fspath(path) for path in data]
    paths = [sources] if isinstance(sources, str) else list(sources)
    weights = list(sources.values()) if isinstance(sources, dict) else None
    identity = hash_json([[input_hash(Path(path)) for path in paths], weights])
    opened = PackedDataset(
        sources,
        sequence_length=config.sequence_length,
        method=config.method,
        seed=config.seed,
    )
    return cast(Rows, opened), identity


def steps(
    rows: Rows, config: TrainConfig, world: World, *, first: int, vocab_size: int
) -> Iterator[Step]:
    """This process's rows of every step from `first` to the last.

    Raises:
        ConfigError: If the batch cannot be shared out, or the rows do not fit the model.
    """
    if config.batch_size % world.size:
        raise ConfigError(
            f"batch_size {config.batch_size} must be a multiple of the {world.size} processes"
        )
    share = config.batch_size // world.size
    size = config.micro_batch_size or share
    if share % size:
        raise ConfigError(
            f"each of {world.size} processes has {share} rows a step, which is not a multiple of "
            f"micro_batch_size {size}"
        )
    # Several steps in one call: for small models the call would cost as much as the step.
    chunk = max(1, FETCH_ROWS // config.batch_size) if world.size == 1 else 1
    starts = range(first, config.last_step, chunk)

    def fetch(start: int) -> list[Step]:
        count = min(chunk, config.last_step - start)
        at = start * config.batch_size + world.rank * share
        batch = rows.batch(at, share * count)
        return _split(batch, config, world, share=share, size=size, vocab_size=vocab_size)

    if world.device.type == "cpu":
        for start in starts:
            yield from fetch(start)
        return
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(fetch, first) if starts else None
        for start in starts:
            assert pending is not None
            ready = pending.result()
            pending = pool.submit(fetch, start + chunk) if start + chunk in starts else None
            yield from ready


def _split(
    batch: Mapping[str, Any],
    config: TrainConfig,
    world: World,
    *,
    share: int,
    size: int,
    vocab_size: int,
) -> list[Step]:
    ids, labels = np.asarray(batch["input_ids"]), np.asarray(batch["labels"])
    if ids.shape[1] != config.sequence_length or labels.shape != ids.shape:
        raise ConfigError(
            f"rows have {ids.shape[1]} tokens and labels {labels.shape}, but sequence_length is "
            f"{config.sequence_length}"
        )
    top = int(max(ids.max(), labels.max()))
    if top >= vocab_size:
        raise ConfigError(f"the data holds token {top}, the model's vocabulary is {vocab_size}")
    weights = (labels != IGNORED).astype(np.float32)
    plain = config.prompt_loss_weight == 1.0
    if not plain:
        prompt = np.asarray(batch["prompt_mask"])
        weights *= np.where(prompt, np.float32(config.prompt_loss_weight), np.float32(1.0))
    on = world.device
    ids_t, labels_t = torch.from_numpy(ids).to(on), torch.from_numpy(labels).to(on)
    weights_t = None if plain else torch.from_numpy(weights).to(on)
    made = []
    for start in range(0, len(ids), share):
        micro = []
        for place, at in enumerate(range(start, start + share, size)):
            part = slice(at, at + size)
            micro.append(
                MicroBatch(
                    number=world.rank * (share // size) + place,
                    input_ids=ids_t[part],
                    labels=labels_t[part],
                    weights=None if weights_t is None else weights_t[part],
                    cu_seqlens=list(batch["cu_seqlens"][part]) if config.document_mask else None,
                )
            )
        total = float(weights[start : start + share].sum(dtype=np.float64))
        made.append(Step(micro=micro, weight=total))
    return made
