"""Processes: what torchrun set up, wrapped in torch's DistributedDataParallel. Nothing of our own.

Without torchrun there is one process and nothing here costs anything. With it, each process holds
the whole model, takes its share of every step's rows, and gradients are averaged by gloo on CPUs
and NCCL on GPUs.

    torchrun --nproc-per-node 2 -m hornbook train recipe.toml
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hornbook.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all."""

    rank: int
    """Its number."""
    size: int
    """Processes in all."""
    device: torch.device
    """What it computes on."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call for training."""
        if self.size == 1:
            return model
        ids = [self.device.index or 0] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def quiet(self, model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Holds gradients back from the other processes until a step's last micro-batch."""
        if last or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()  # type: ignore[no-any-return, unused-ignore]

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Joins the processes that torchrun started, if it did, and leaves them at the end.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: If "cuda" is asked for and there is none.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise ConfigError('device: "cuda", but torch sees no GPU here; use "cpu" or "auto"')
    place = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(place)
    ours = False
    if dist.is_available() and not dist.is_initialized() and "WORLD_SIZE" in os.environ:
        ours = int(os.environ["WORLD_SIZE"]) > 1
        if ours:
            dist.init_process_group("nccl" if gpu else "gloo")
    joined = dist.is_available() and dist.is_initialized()
    try:
        yield World(
            rank=dist.get_rank() if joined else 0,
            size=dist.get_world_size() if joined else 1,
            device=place,
        )
    finally:
        if ours:
            dist.destroy_process_group()
