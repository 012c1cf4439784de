"""Processes: what torchrun set up, and torch's own ways of sharing a model among them.

Without torchrun there is one process and nothing here costs anything. With it, each process takes
its share of every step's rows. The model is whole in each (`DistributedDataParallel`), in pieces
over all of them (`fully_shard`), or in pieces over each group of them (hybrid). Gradients travel by
gloo on CPUs and NCCL on GPUs.

    torchrun --nproc-per-node 2 -m hornbook train demo --data packed/ --out model/
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from hornbook.errors import ConfigError, HornbookError
from hornbook.model.phi import Phi
from hornbook.train.plan import Plan

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PATIENCE = timedelta(days=1)
"""How long the others wait for what the first process does alone: checking, sampling, choosing."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all."""

    rank: int
    """Its number."""
    size: int
    """Processes in all."""
    device: torch.device
    """What it computes on."""
    per_machine: int = 1
    """Processes on this machine."""
    background: Any = None
    """A gloo group of its own for what is saved while training goes on: on a shared one the
    messages of both would mix. It waits long for the first process."""
    talk: Any = None
    """Another for what processes tell each other meanwhile; it waits as long."""

    def memory(self) -> int:
        """Bytes of memory that this process may fill."""
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        return self.main_memory()

    def main_memory(self) -> int:
        """Bytes of this machine's memory, shared out among its processes."""
        if not hasattr(os, "sysconf"):  # Windows: not known
            return 1 << 62
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // self.per_machine

    def place(self, model: Phi, plan: Plan, *, precision: str = "fp32") -> nn.Module:
        """Puts a model on CPU where the plan wants it.

        Args:
            model: Changed: its blocks are compiled and recomputed as the plan says, and its
                parameters moved or cut into pieces.
            plan: How.
            precision: What pieces are gathered in.

        Returns:
            The module to call for training.
        """
        for block in model.model.layers:
            # In place of the method, so that names in the state dict stay and the hooks by which
            # pieces are gathered run outside.
            if plan.compile:
                block.forward = torch.compile(block.forward)
            if plan.recompute:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if plan.parallel in ("single", "ddp"):
            model.to(self.device)
            if plan.parallel == "single":
                return model
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        shape: tuple[int, ...] = (self.size,)
        names: tuple[str, ...] = ("shard",)
        if plan.parallel == "hybrid":
            shape = (self.size // plan.shards, plan.shards)
            names = ("replicate", "shard")
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        policy = MixedPrecisionPolicy(
            param_dtype=None if precision == "fp32" else DTYPES[precision],
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        for block in model.model.layers:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        return model

    def quiet(self, model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Holds gradients back from the other processes until a step's last micro-batch.

        Within a group that shares a model, pieces of gradients are added up after every micro-batch
        instead: whole ones would need the memory that cutting the model up has saved.
        """
        if isinstance(model, FSDPModule):
            # Between groups, which only the hybrid has.
            model.set_requires_all_reduce(last)
        if last or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()  # type: ignore[no-any-return, unused-ignore]

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.talk)
        return values

    def agree(self, value: Any) -> Any:
        """The first process's value, for all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.talk)
        return box[0]

    def first(self, work: Callable[[], Any]) -> Any:
        """What the first process makes, for all; the others wait.

        Raises:
            HornbookError: In all of them, if the work raises one.
        """
        made = None
        if self.rank == 0:
            try:
                made = work()
            except HornbookError as error:
                made = error
        made = self.agree(made)
        if isinstance(made, HornbookError):
            raise made
        return made

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.size > 1:
            dist.barrier(group=self.talk)


def whole(value: Tensor) -> Tensor:
    """A tensor of which processes may hold pieces, put together; all must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_weights(model: Phi) -> dict[str, Tensor]:
    """A model's weights, put together in the first process (elsewhere: none); all must ask."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return {name: parameter.detach() for name, parameter in model.named_parameters()}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options))  # type: ignore[arg-type]


def _meeting() -> dict[str, Any]:
    """Where processes find each other, if torchrun starts them again on one machine.

    It keeps its store from one start to the next, and with it the addresses of dead processes
    (pytorch issue 135712); here each start has names of its own. Machines count their starts each
    for itself, so with several set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun instead.
    """
    environment = os.environ
    one_machine = environment.get("LOCAL_WORLD_SIZE") == environment["WORLD_SIZE"]
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not one_machine:
        return {}
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    start = f"start-{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store = dist.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]
    return {
        "store": dist.PrefixStore(start, store),  # type: ignore[attr-defined]
        "rank": int(environment["RANK"]),
        "world_size": int(environment["WORLD_SIZE"]),
    }


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
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", **_meeting())
    size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    try:
        yield World(
            rank=dist.get_rank() if size > 1 else 0,
            size=size,
            device=place,
            per_machine=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
            background=dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None,
            talk=dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None,
        )
    finally:
        if ours:
            dist.destroy_process_group()
