"""Batches: any ranks, threads, workers, resume point, number type; mixtures; remote folders."""

import itertools
import json
import multiprocessing
import pickle
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.errors import ConfigError, InputError
from hornbook.packed import FIELDS, PackedDataset
from hornbook.packed_stats import info, peek, stats
from hornbook.packing import pack_tokens
from hornbook.tokenizer import Tokenizer

torch = pytest.importorskip("torch")

from hornbook.loading import Loader  # noqa: E402

END = 50_256
LENGTH = 32


@cache
def codegen() -> Tokenizer:
    return Tokenizer.codegen()


def make(folder: Path, lengths: list[int], seed: int = 0, prompts: bool = False) -> Path:
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ids = np.random.default_rng(seed).integers(0, END, int(offsets[-1]), dtype=np.uint16)
    batch = (ids, offsets, np.array(lengths) // 3) if prompts else (ids, offsets)
    options: dict[str, Any] = {"identity": f"{seed}", "part_bytes": 2000, "prompts": prompts}
    pack_tokens([batch], folder, tokenizer=codegen(), **options)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = np.random.default_rng(3).integers(0, 90, 150).tolist()
    return make(tmp_path_factory.mktemp("data") / "a", lengths, prompts=True)


def equal(batch: dict[str, Any], expected: dict[str, Any]) -> bool:
    """A loader's batch and the data set's."""
    same = all((batch[name].numpy() == expected[name]).all() for name in FIELDS)
    ends = [row[1:] + i * LENGTH for i, row in enumerate(expected["cu_seqlens"])]
    bounds = np.concatenate([[0], *ends])
    return same and batch["cu_seqlens"].tolist() == bounds.tolist()


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(["concat", "best_fit"]),
    seed=st.integers(0, (1 << 64) - 1),
    world=st.integers(1, 5),
    share=st.integers(1, 4),
    threads=st.integers(1, 7),
    prefetch=st.integers(0, 3),
    start=st.integers(0, 400),
    later=st.integers(1, 5),
    steps=st.integers(0, 4),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_any_ranks_threads_and_resume_point_give_one_stream(
    folder: Path,
    method: Any,
    seed: int,
    world: int,
    share: int,
    threads: int,
    prefetch: int,
    start: int,
    later: int,
    steps: int,
    dtype: Any,
) -> None:
    common: dict[str, Any] = {"sequence_length": LENGTH, "method": method, "seed": seed}
    whole = PackedDataset(folder, **common)
    options: dict[str, Any] = {"fields": FIELDS, "dtype": dtype, "pin_memory": False}
    options |= {"threads": threads, "prefetch": prefetch}
    states = set()
    for rank in range(world):
        data = PackedDataset(folder, rank=rank, world_size=world, start=start, **common)
        loader = Loader(data, share, **options)
        for step, batch in enumerate(itertools.islice(loader, steps)):
            first = start + (step * world + rank) * share
            assert equal(batch, whole.batch(first, share))
            assert batch["input_ids"].dtype == batch["position_ids"].dtype == dtype
        states.add(loader.state_dict()["samples"])
    assert states == {start + steps * world * share}
    # Gone on with on another number of ranks, the samples after those.
    for rank in range(later):
        loader = Loader(PackedDataset(folder, rank=rank, world_size=later, **common), 3, **options)
        loader.load_state_dict({"samples": states.copy().pop()})
        batch = next(iter(loader))
        assert equal(batch, whole.batch(start + steps * world * share + rank * 3, 3))


@pytest.mark.parametrize("method", ["concat", "best_fit"])
def test_positions_and_boundaries(folder: Path, method: Any) -> None:
    data = PackedDataset(folder, sequence_length=LENGTH, method=method, seed=4)
    count = data.samples_per_epoch
    batch = data.batch(count, count)
    for row in range(count):
        bounds = batch["cu_seqlens"][row]
        expected = np.concatenate([np.arange(n) for n in np.diff(bounds)])
        assert (batch["position_ids"][row] == expected).all()
        if method == "concat" and (batch["labels"][row] >= 0).all():
            ends = np.flatnonzero(batch["input_ids"][row][:-1] == END) + 1
            assert bounds.tolist() == [0, *ends.tolist(), LENGTH]


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_workers_of_a_torch_loader_give_the_same_order(folder: Path, start_method: str) -> None:
    if start_method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {start_method}")
    data = PackedDataset(folder, sequence_length=LENGTH, method="best_fit", seed=1, start=7)
    loader = torch.utils.data.DataLoader(
        Loader(data, 4, fields=FIELDS, threads=2),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start_method,
    )
    for number, batch in enumerate(itertools.islice(loader, 10)):
        assert equal(batch, data.batch(7 + 4 * number, 4))


def test_a_loader_says_what_is_wrong(folder: Path) -> None:
    data = PackedDataset(folder, sequence_length=LENGTH, seed=0)
    for options in (
        {"batch_size": 0},
        {"prefetch": -1},
        {"threads": 0},
        {"dtype": torch.int16},
        {"fields": ["tokens"]},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Loader(data, **{"batch_size": 2, **options})  # type: ignore[arg-type]
    batch = next(iter(Loader(data, 2, fields=["labels"], prefetch=0)))
    assert set(batch) == {"input_ids", "labels", "cu_seqlens"}
    with pytest.raises(ConfigError, match="buffers must hold"):
        data.fill(0, 2, {"input_ids": np.empty((2, LENGTH - 1), np.int64)})


def test_damage_reaches_the_caller_through_the_thread(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    part = tmp_path / "a/part-00001.bin"
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    shutil.copytree(folder, tmp_path / "b")
    with pytest.raises(InputError, match=r"part-00001\.bin"):
        list(itertools.islice(Loader(PackedDataset(tmp_path / "a", seed=0), 4), 3))


def test_another_process_gets_the_same(folder: Path) -> None:
    data = PackedDataset(folder, sequence_length=LENGTH, seed=9, rank=1, world_size=2, start=4)
    other = pickle.loads(pickle.dumps(data))
    assert (other.rank, other.world_size, other.start) == (1, 2, 4)
    assert (other[11]["input_ids"] == data[11]["input_ids"]).all()


# Mixtures


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    first=st.integers(0, 10**12),
    count=st.integers(1, 200),
)
def test_weights_hold_over_any_window(
    tmp_path_factory: pytest.TempPathFactory, weights: list[int], first: int, count: int
) -> None:
    folders = single_token_folders(tmp_path_factory)[: len(weights)]
    mixture = {folder: float(w) for folder, w in zip(folders, weights, strict=True)}
    data = PackedDataset(mixture, sequence_length=4, seed=0)
    ids = data.batch(first, count)["input_ids"][:, 0]
    for number, weight in enumerate(weights):
        share = count * weight / sum(weights)
        assert abs(int((ids == number + 1).sum()) - share) < 2
        before = data.epochs(first)[str(folders[number])]
        rows = PackedDataset(folders[number], sequence_length=4, seed=0).samples_per_epoch
        assert abs(before * rows - first * weight / sum(weights)) < 1 + 1e-3
    # A whole period is exact.
    ids = data.batch(first, sum(weights))["input_ids"][:, 0]
    assert [int((ids == n + 1).sum()) for n in range(len(weights))] == [
        w // np.gcd.reduce(weights) * np.gcd.reduce(weights) for w in weights
    ]


FOLDERS: list[Path] = []


def single_token_folders(factory: pytest.TempPathFactory) -> list[Path]:
    """Four folders, each of one long document of one token."""
    for number in range(len(FOLDERS), 4):
        ids, offsets = np.full(400, number + 1, np.uint16), np.array([0, 400])
        path = factory.mktemp("mix") / "a"
        pack_tokens([(ids, offsets)], path, tokenizer=codegen(), identity="a")
        FOLDERS.append(path)
    return FOLDERS


# Elsewhere


def test_a_remote_folder_is_copied_once_and_checked(folder: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        if path.is_file():
            memory.pipe_file(f"/bucket/a/{path.name}", path.read_bytes())
    options: dict[str, Any] = {"sequence_length": LENGTH, "seed": 0, "cache": tmp_path / "cache"}
    remote = PackedDataset("memory://bucket/a", **options)
    local = PackedDataset(folder, sequence_length=LENGTH, seed=0)
    assert (remote.batch(0, 50)["input_ids"] == local.batch(0, 50)["input_ids"]).all()
    assert list(remote.epochs(5)) == ["memory://bucket/a"]
    copies = list((tmp_path / "cache").rglob("part-*"))
    assert copies
    assert not any(path.suffix in (".idx", ".ds", ".tmp") for path in copies)
    # Only the manifest is fetched again.
    for name in ("part-00000.bin", "part-00001.bin"):
        memory.rm(f"/bucket/a/{name}")
    assert PackedDataset("memory://bucket/a", **options).tokens == local.tokens
    options["cache"] = tmp_path / "other"
    with pytest.raises(InputError, match=r"part-00000\.bin: missing"):
        PackedDataset("memory://bucket/a", **options)
    memory.pipe_file("/bucket/a/part-00000.bin", b"x" * 10)
    with pytest.raises(InputError, match=r"part-00000\.bin: not what the manifest says"):
        PackedDataset("memory://bucket/a", **options)
    manifest = json.loads(memory.cat_file("/bucket/a/manifest.json"))
    del manifest["parts"][0]["xxh3"]
    memory.pipe_file("/bucket/c/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(InputError, match="not a manifest of packed tokens"):
        PackedDataset("memory://bucket/c", **options)
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        PackedDataset("memory://bucket/b", **options)
    with pytest.raises(ConfigError, match="nosuch"):
        PackedDataset("nosuch://bucket/b", **options)


# Looking


def test_stats_count_what_a_plain_loop_counts(tmp_path: Path) -> None:
    lengths = [0, 5, 31, 32, 64, 100, 7, 7, 3]
    path = make(tmp_path / "a", lengths, prompts=True)
    told = stats([path], sequence_length=LENGTH)
    stored = [n + 1 for n in lengths]
    assert told["documents"] == len(lengths)
    assert told["tokens"] == sum(stored)
    assert told["length"]["max"] == 101
    assert told["length"]["mean"] == pytest.approx(np.mean(stored))
    assert told["prompt_tokens"] == sum(n // 3 for n in lengths)
    assert sum(told["histogram"].values()) == len(lengths)
    assert told["histogram"]["32-63"] == 2
    assert told["sources"] == {"0": sum(stored)}
    ends = np.cumsum(stored)
    cut = [(e - n) // LENGTH != (e - 1) // LENGTH for e, n in zip(ends, stored, strict=True)]
    assert told["concat"]["documents_cut"] == pytest.approx(np.mean(cut))
    short = [c for c, n in zip(cut, stored, strict=True) if n <= LENGTH]
    assert told["concat"]["short_documents_cut"] == pytest.approx(np.mean(short))
    assert told["best_fit"]["documents_cut"] == pytest.approx(3 / 9)
    assert told["best_fit"]["short_documents_cut"] == 0
    for method in ("concat", "best_fit"):
        data = PackedDataset(path, sequence_length=LENGTH, method=method, seed=0)  # type: ignore[arg-type]
        count = data.samples_per_epoch
        assert told[method]["samples"] == count
        places = count * LENGTH
        used = sum(stored) - (method == "concat")
        assert told[method]["padding"] == pytest.approx(1 - used / places)
    facts = info(path)
    assert (facts["documents"], facts["tokens"]) == (len(lengths), sum(stored))
    assert facts["sources"] == {"0": {"documents": len(lengths), "tokens": sum(stored)}}
    assert facts["prompts"] is True


def test_peek_shows_the_texts_that_training_sees(tmp_path: Path) -> None:
    texts = ["def f(x):\n    return x\n", "x = 1\n", "y = 2\n"]
    batch = codegen().encode_batch(texts)
    pack_tokens([batch], tmp_path / "a", tokenizer=codegen(), identity="a")
    shown = peek([tmp_path / "a"], samples=1, sequence_length=64, method="best_fit")
    assert sorted(shown[0]) == sorted(f"{text}<|endoftext|>" for text in texts)
