"""The peers of `packing.py`, each behind one function; one that is not installed is left out.

An engine is called again and again and returns the number of tokens it has handled. Writers get the
documents as one array with an end token after each, and their ends; readers get a folder that
`write` of the same tool, or ours, has made, and read for some seconds in shuffled order.
"""

import importlib
import itertools
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Engine = Callable[[], int]
LENGTH = 2048
BATCH = 16

warnings.filterwarnings("ignore")


def load(name: str) -> ModuleType | None:
    """A module, or None with a line that says why not."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a peer that cannot be imported is not there
        print(f"{name} is left out: {error}")
        return None


class Documents:
    """The benchmark's input."""

    def __init__(self, ids: npt.NDArray[np.uint16], ends: npt.NDArray[np.int64], end: int) -> None:
        self.ids, self.ends, self.end_of_text = ids, ends, end

    def each(self, share: float = 1.0) -> Iterator[npt.NDArray[np.uint16]]:
        """Every document of the first `share` of them, its end token included."""
        start = 0
        for end in self.ends[: int(len(self.ends) * share)].tolist():
            yield self.ids[start:end]
            start = end


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def megatron_write(documents: Documents, folder: Path) -> Engine | None:
    """`IndexedDatasetBuilder` with one tensor a document; no hashes."""
    module = load("megatron.core.datasets.indexed_dataset")
    if module is None:
        return None
    import torch

    def run() -> int:
        stem = fresh(folder) / "data"
        builder = module.IndexedDatasetBuilder(f"{stem}.bin", dtype=np.uint16)
        for document in documents.each():
            builder.add_document(torch.from_numpy(document), [len(document)])
        builder.finalize(f"{stem}.idx")
        return len(documents.ids)

    return run


def datatrove_write(documents: Documents, folder: Path) -> Engine | None:
    """`TokenizedFile.write_bytes`, its fastest way; no hashes."""
    module = load("datatrove.pipeline.tokens.tokenizer")
    if module is None:
        return None

    def run() -> int:
        file = module.TokenizedFile(str(fresh(folder)), "data.ds")
        for document in documents.each():
            file.write_bytes(document.tobytes())
        file.close()
        return len(documents.ids)

    return run


def mds_write(documents: Documents, folder: Path, share: float) -> Engine | None:
    """`MDSWriter` of rows of 2,048 tokens, with its hashes."""
    module = load("streaming")
    if module is None:
        return None
    rows = int(len(documents.ids) * share) // LENGTH

    def run() -> int:
        columns = {"tokens": f"ndarray:uint16:{LENGTH}"}
        out = str(fresh(folder) / "mds")
        with module.MDSWriter(out=out, columns=columns, hashes=["xxh3_64"]) as writer:
            for row in range(rows):
                writer.write({"tokens": documents.ids[row * LENGTH : (row + 1) * LENGTH]})
        return rows * LENGTH

    return run


class LitdataSource:
    """Documents for litdata's worker process, which must be able to unpickle them."""

    def __init__(self, path: str, ends: list[int]) -> None:
        self.path, self.ends = path, ends

    def __call__(self, group: int) -> Iterator[Any]:
        """The documents of a thousand."""
        import torch

        ids = np.memmap(self.path, np.uint16, "r")
        for i in range(group * 1000, min(group * 1000 + 1000, len(self.ends) - 1)):
            yield torch.from_numpy(np.array(ids[self.ends[i] : self.ends[i + 1]]))


def litdata_write(documents: Documents, folder: Path, share: float) -> Engine | None:
    """`optimize` with a `TokensLoader` and one worker."""
    module = load("litdata")
    if module is None:
        return None
    ends = [0, *documents.ends[: int(len(documents.ends) * share)].tolist()]

    def run() -> int:
        out = fresh(folder)
        raw = out.parent / "litdata.u16"
        documents.ids[: ends[-1]].tofile(raw)
        module.optimize(
            fn=LitdataSource(str(raw), ends),
            inputs=list(range(-(-(len(ends) - 1) // 1000))),
            output_dir=str(out),
            chunk_bytes="64MB",
            num_workers=1,
            item_loader=module.TokensLoader(block_size=LENGTH),
        )
        return int(ends[-1])

    return run


def for_seconds(seconds: float, step: Callable[[int], int]) -> int:
    """Calls `step(k)` until the time is over; the tokens in all."""
    stop, tokens, k = time.perf_counter() + seconds, 0, 0
    while time.perf_counter() < stop:
        tokens += step(k)
        k += 1
    return tokens


def memmap_read(path: Path, seconds: float) -> Engine:
    """Rows gathered from a numpy memmap with a shuffled list, as int64 tensors."""
    import torch

    ids = np.memmap(path, np.uint16, "r")
    rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    order = np.random.default_rng(0).permutation(len(rows))

    def step(k: int) -> int:
        chosen = order[np.arange(k * BATCH, k * BATCH + BATCH) % len(order)]
        return torch.from_numpy(rows[chosen].astype(np.int64)).numel()

    return lambda: for_seconds(seconds, step)


def datatrove_read(path: Path, seconds: float, end: int | None) -> Engine | None:
    """Its file data set at shuffled places; `end`: with positions, made from this token."""
    module = load("datatrove.utils.dataset")
    if module is None:
        return None
    data = module.DatatroveFileDataset(
        str(path),
        LENGTH - 1,
        token_size=2,
        return_positions=end is not None,
        positions_from_eos_token_id=end,
    )
    order = np.random.default_rng(0).permutation(len(data)).tolist()

    def step(k: int) -> int:
        return data[order[k % len(order)]]["input_ids"].numel()

    return lambda: for_seconds(seconds, step)


def megatron_read(stem: Path, cache: Path, seconds: float, positions: bool, end: int) -> Any:
    """`GPTDataset` at shuffled places; with `positions`, restarting at every document."""
    gpt = load("megatron.core.datasets.gpt_dataset")
    if gpt is None:
        return None
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        eod = pad = end
        vocab_size = end + 1
        unique_identifiers: ClassVar[dict[str, str]] = {}

    try:
        config = gpt.GPTDatasetConfig(
            random_seed=0,
            sequence_length=LENGTH,
            blend=([str(stem)], None),
            split="1,0,0",
            path_to_cache=str(cache),
            reset_position_ids=positions,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            tokenizer=Tokenizer(),
        )
        source = IndexedDataset(str(stem), mmap=True)
        documents = np.arange(len(source.document_indices) - 1, dtype=np.int32)
        data = gpt.GPTDataset(source, str(stem), documents, None, Split.train, config)
        order = np.random.default_rng(0).permutation(len(data)).tolist()
    except Exception as error:
        print(f"Megatron-LM's GPTDataset is left out: {error!r}")
        return None

    def step(k: int) -> int:
        return data[order[k % len(order)]]["tokens"].numel()

    return lambda: for_seconds(seconds, step)


def litdata_read(folder: Path, seconds: float) -> Engine | None:
    """`StreamingDataset`, shuffled, as int64."""
    module = load("litdata")
    if module is None:
        return None
    import torch

    def run() -> int:
        data = module.StreamingDataset(
            str(folder), item_loader=module.TokensLoader(block_size=LENGTH), shuffle=True
        )
        rows = (row for _ in itertools.count() for row in data)
        return for_seconds(seconds, lambda k: next(rows).to(torch.int64).numel())

    return run


def mds_read(folder: Path, seconds: float) -> Engine | None:
    """`StreamingDataset` at shuffled places, as int64."""
    module = load("streaming")
    if module is None:
        return None
    module.base.util.clean_stale_shared_memory()
    data = module.StreamingDataset(local=str(folder / "mds"), batch_size=BATCH)
    order = np.random.default_rng(0).permutation(len(data)).tolist()

    def step(k: int) -> int:
        return data[order[k % len(order)]]["tokens"].astype(np.int64).size

    return lambda: for_seconds(seconds, step)


def olmo_read(path: Path, work: Path, seconds: float, lengths: bool, end: int) -> Any:
    """`NumpyFSLDataset` in its data loader, shuffled; with `lengths` of documents."""
    module = load("olmo_core.data")
    if module is None:
        return None
    try:
        array = work / "data.npy"  # raw ids, whatever the name says
        fresh(work)
        array.hardlink_to(path)
        data = module.NumpyFSLDataset(
            str(array),
            sequence_length=LENGTH,
            pad_token_id=end,
            eos_token_id=end,
            vocab_size=50_295,
            dtype=np.uint16,
            generate_doc_lengths=lengths,
        )
        data.work_dir = work
        data.prepare()
        loader = module.NumpyFSLDataLoader(
            data,
            collator=module.DataCollator(pad_token_id=end),
            global_batch_size=BATCH * LENGTH,
            work_dir=str(work),
        )

        def endless() -> Iterator[Any]:
            for epoch in itertools.count(1):
                loader.reshuffle(epoch=epoch)
                yield from loader
                loader.reset()

        batches = endless()
        next(batches)
    except Exception as error:
        print(f"OLMo-core's loader is left out: {error!r}")
        return None
    return lambda: for_seconds(seconds, lambda k: next(batches)["input_ids"].numel())


def olmo_plan(pieces: npt.NDArray[np.int64]) -> Callable[[], int] | None:
    """`InstancePacker` over pieces of at most 2,048 tokens; the number of rows."""
    module = load("olmo_core.data.utils")
    if module is None:
        return None
    ends = np.cumsum(pieces).astype(np.uint64)
    spans = np.stack([ends - pieces.astype(np.uint64), ends], axis=1)
    return lambda: len(module.InstancePacker(LENGTH).pack_documents(spans)[0])


def trl_pack(documents: Documents, group: int | None) -> Callable[[], int] | None:
    """TRL's best-fit packer on an Arrow table, long documents split; the number of rows.

    Over groups of documents, as `pack_dataset` does by default, or over all at once.
    """
    module = load("trl.data_utils")
    if module is None or not hasattr(module, "_pack_bfd"):
        return None
    import pyarrow as pa

    offsets = pa.array(np.concatenate([[0], documents.ends]))
    column = pa.LargeListArray.from_arrays(offsets, pa.array(documents.ids))
    table = pa.table({"input_ids": column})
    size = group or len(table)

    def run() -> int:
        starts = range(0, len(table), size)
        # A copy of the slice, as reading a data set gives it: the packer ignores offsets of slices.
        parts = (
            table.slice(start, size).take(np.arange(min(size, len(table) - start)))
            for start in starts
        )
        return sum(len(module._pack_bfd(part, LENGTH, "split")) for part in parts)

    return run
