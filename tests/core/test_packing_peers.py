"""Our files, opened by the tools they are for; each test runs where that tool is installed."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hornbook.packed import PackedDataset
from hornbook.packing import pack_tokens
from hornbook.tokenizer import Tokenizer

LENGTH = 64


@contextmanager
def quiet() -> Iterator[None]:
    """Other packages' warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A folder of one part, and its documents with their end tokens."""
    rng = np.random.default_rng(0)
    tokenizer = Tokenizer.codegen()
    end = tokenizer.eot_id
    documents = [rng.integers(0, end, n, dtype=np.uint16) for n in rng.integers(0, 300, 500)]
    offsets = np.cumsum([0, *map(len, documents)])
    folder = tmp_path_factory.mktemp("peers") / "packed"
    pack_tokens(
        [(np.concatenate(documents), offsets)], folder, tokenizer=tokenizer, identity="peers"
    )
    return folder, [np.append(document, np.uint16(end)) for document in documents]


def test_a_plain_memmap(packed: tuple[Path, list[np.ndarray]]) -> None:
    folder, documents = packed
    stream = np.memmap(folder / "part-00000.bin", np.uint16, "r")
    assert (stream == np.concatenate(documents)).all()
    # The windows that nanoGPT draws are ours.
    data = PackedDataset(folder, sequence_length=LENGTH, seed=0)
    inputs = {tuple(row["input_ids"]): row["labels"] for row in map(data.__getitem__, range(100))}
    for start in range(0, len(stream) - LENGTH - 1, LENGTH):
        x, y = stream[start : start + LENGTH], stream[start + 1 : start + LENGTH + 1]
        if tuple(x) in inputs:
            assert (inputs.pop(tuple(x)) == y).all()
    assert len(inputs) <= 1  # the window with padding


def test_megatron(packed: tuple[Path, list[np.ndarray]]) -> None:
    with quiet():
        module = pytest.importorskip("megatron.core.datasets.indexed_dataset", exc_type=ImportError)
        folder, documents = packed
        data = module.IndexedDataset(str(folder / "part-00000"), mmap=True)
        assert len(data) == len(documents)
        assert (data.document_indices == np.arange(len(documents) + 1)).all()
        for ours, theirs in zip(documents, data, strict=False):
            assert theirs.dtype == np.uint16
            assert (ours == theirs).all()


@pytest.mark.parametrize("pattern", ["*.ds", "*.bin"])
def test_datatrove_and_nanotron(packed: tuple[Path, list[np.ndarray]], pattern: str) -> None:
    with quiet():
        module = pytest.importorskip("datatrove.utils.dataset", exc_type=ImportError)
        folder, documents = packed
        stream = np.concatenate(documents)
        end = int(stream[-1])
        # As nanotron's Nanoset opens a folder.
        data: Any = module.DatatroveFolderDataset(
            str(folder), LENGTH, filename_pattern=pattern, recursive=False, return_positions=True
        )
        rows = len(stream) // (LENGTH + 1)
        assert len(data) == rows
        places = np.concatenate([np.arange(len(document)) for document in documents])
        for row in range(rows):
            window = slice(row * (LENGTH + 1), (row + 1) * (LENGTH + 1))
            found = data[row]
            assert (found["input_ids"].numpy() == stream[window]).all()
            # Positions come from the index; in a window they begin at 0.
            expected = places[window].copy()
            ends = np.flatnonzero(stream[window] == end)
            head = ends[0] + 1 if len(ends) else LENGTH + 1
            expected[:head] = np.arange(head)
            assert (found["positions"].numpy() == expected).all()


def test_hard_links_are_no_second_copy(packed: tuple[Path, list[np.ndarray]]) -> None:
    folder, _ = packed
    for name in ("part-00000.bin", "part-00000.bin.index"):
        assert (folder / name).samefile(folder / name.replace(".bin", ".ds"))
