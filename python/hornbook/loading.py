"""Batches of packed samples as torch tensors, some of them made ahead.

`Loader` gives one rank's batches, in pinned memory where there is a GPU, filled by threads of the
Rust core while the model computes: no worker processes, nothing copied on the way. It is a torch
`IterableDataset` too, for programs built around a `DataLoader`: with any number of workers the
batches are the same, in the same order.

    for batch in Loader(hb.PackedDataset("packed/", seed=0), batch_size=16): ...
    DataLoader(Loader(data, batch_size=16), batch_size=None, num_workers=2)
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hornbook.errors import ConfigError
from hornbook.packed import FIELDS, PackedDataset

Batch = dict[str, Tensor]


class Loader(IterableDataset[Batch]):
    """An endless stream of batches: dicts of tensors [B, T], and `cu_seqlens`.

    Batch `k` of rank `r` among `w` holds samples `start + (k w + r) B ...`: all ranks together go
    through the stream in order, so that for one global batch size any number of ranks sees the same
    samples in every step. The tensors are the caller's to keep.

    `cu_seqlens` is of the batch laid end to end, as variable-length attention takes it: int32, from
    0 to B * T, with a bound at every sample.
    """

    def __init__(
        self,
        data: PackedDataset,
        batch_size: int,
        *,
        fields: Sequence[str] = ("input_ids", "labels", "position_ids"),
        dtype: torch.dtype = torch.int64,
        prefetch: int = 2,
        threads: int = 1,
        pin_memory: bool | None = None,
    ) -> None:
        """Prepares the stream; nothing is read before it is iterated over.

        Args:
            data: The samples; its rank, world_size and start are this loader's.
            batch_size: Samples of this rank in a batch (B).
            fields: What to make, of `hornbook.packed.FIELDS`; input_ids always is.
            dtype: Of ids, labels and positions: `torch.int64` or `torch.int32`.
            prefetch: Batches made ahead; 0 makes each when it is asked for.
            threads: Threads of the Rust core that fill a batch. No effect on its contents.
            pin_memory: Whether tensors lie in pinned memory, so that `to(device,
                non_blocking=True)` overlaps with computing; by default if there is a GPU.

        Raises:
            ConfigError: If an argument is out of range.
        """
        super().__init__()
        for name, value, low in (("batch_size", batch_size, 1), ("threads", threads, 1)):
            if value < low:
                raise ConfigError(f"{name} = {value}: give at least {low}")
        if prefetch < 0:
            raise ConfigError(f"prefetch = {prefetch}: give 0 or more")
        if dtype not in (torch.int64, torch.int32):
            raise ConfigError(f"dtype = {dtype}: give torch.int64 or torch.int32")
        unknown = set(fields) - set(FIELDS)
        if unknown:
            raise ConfigError(f"fields: no `{unknown.pop()}`; there are {', '.join(FIELDS)}")
        self.data = data
        self.batch_size = batch_size
        self.fields = tuple(name for name in FIELDS if name in {*fields, "input_ids"})
        self.dtype = dtype
        self.prefetch = prefetch
        self.threads = threads
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._next = data.start

    def state_dict(self) -> dict[str, int]:
        """How many samples all ranks together have been given: where any number of ranks goes on.

        In a `DataLoader` with workers, count there: its workers are ahead of it.
        """
        return {"samples": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on after so many samples; takes effect when it is next iterated over."""
        if state["samples"] < 0:
            raise ConfigError(f"samples = {state['samples']}: give 0 or more")
        self._next = state["samples"]

    def _make(self, first: int, pinned: bool) -> Batch:
        shape = (self.batch_size, self.data.sequence_length)
        batch = {
            name: torch.empty(
                shape,
                dtype=torch.bool if name == "prompt_mask" else self.dtype,
                pin_memory=pinned,
            )
            for name in self.fields
        }
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}
        bounds = self.data.fill(first, self.batch_size, arrays, threads=self.threads)
        batch["cu_seqlens"] = torch.from_numpy(bounds)
        return batch

    def __iter__(self) -> Iterator[Batch]:
        step = self.batch_size * self.data.world_size
        mine = self.batch_size * self.data.rank
        info = get_worker_info()
        if info is not None:
            # A DataLoader takes one batch from each worker in turn. CUDA is not to be touched here.
            first = self._next + info.id * step
            while True:
                yield self._make(first + mine, pinned=False)
                first += info.num_workers * step
        if self.prefetch == 0:
            while True:
                batch = self._make(self._next + mine, self.pin_memory)
                self._next += step
                yield batch
        pool = ThreadPoolExecutor(1, "hornbook-loader")
        try:
            first = self._next
            ready: deque[Future[Batch]] = deque()
            while True:
                while len(ready) < self.prefetch:
                    ready.append(pool.submit(self._make, first + mine, self.pin_memory))
                    first += step
                batch = ready.popleft().result()
                ready.append(pool.submit(self._make, first + mine, self.pin_memory))
                first += step
                self._next += step
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
