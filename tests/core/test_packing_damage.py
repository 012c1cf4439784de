"""Packing that is stopped, files that are damaged, documents of awkward sizes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hornbook import progress
from hornbook.errors import ConfigError, HornbookError, InputError
from hornbook.manifest import verify
from hornbook.packed import PackedDataset
from hornbook.packing import pack, pack_tokens
from hornbook.tokenizer import Tokenizer

END = 50_256


@cache
def codegen() -> Tokenizer:
    return Tokenizer.codegen()


def tokens_of(lengths: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random documents without end tokens: ids and offsets."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    rng = np.random.default_rng(seed)
    return rng.integers(0, END, int(offsets[-1]), dtype=np.uint16), offsets


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything but the manifest, which has times in it."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json"]
    return {path.name: path.read_bytes() for path in files}


# Stopped

ROWS = "".join(json.dumps({"text": f"x_{i} = {'y' * (i % 97)}\n" * 20}) + "\n" for i in range(9000))
OPTIONS: dict[str, Any] = {"part_bytes": 200_000, "threads": 1}


def test_killed_anywhere_packing_goes_on_with_the_next_part(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROWS, encoding="utf-8")
    pack(rows, tmp_path / "whole", tokenizer=codegen(), **OPTIONS)
    expected = files_of(tmp_path / "whole")
    out = tmp_path / "out"
    program = (
        "import sys; from hornbook.packing import pack; from hornbook.tokenizer import Tokenizer; "
        f"pack(sys.argv[1], sys.argv[2], tokenizer=Tokenizer.codegen(), **{OPTIONS})"
    )
    command = [sys.executable, "-c", program, str(rows), str(out)]
    kills, first = 0, None
    for wanted in (1, 5, 9):
        child = subprocess.Popen(command)
        while child.poll() is None and not (out / f"part-{wanted:05}.bin").exists():
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL) if child.poll() is None else None
        kills += child.wait() == -signal.SIGKILL
        first = first or (out / "part-00000.bin").stat().st_mtime_ns
    assert kills > 0
    assert subprocess.run(command, check=False).returncode == 0
    assert files_of(out) == expected
    # Made once, by the first of them, and kept.
    assert (out / "part-00000.bin").stat().st_mtime_ns == first
    assert verify(out)["ok"]


def test_interrupted_after_every_batch(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROWS + '{"text": 5}\n', encoding="utf-8")
    whole = pack(rows, tmp_path / "whole", tokenizer=codegen(), **OPTIONS)
    out = tmp_path / "out"
    for batches in range(9):
        calls = iter(range(batches))

        def stop(*_: Any, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), progress.listen(stop):
            pack(rows, out, tokenizer=codegen(), **OPTIONS)
        if batches == 4:
            # A torn line of the journal, and a part that somebody removed.
            with (out / "journal.jsonl").open("a") as journal:
                journal.write('{"parts": [{"na')
        if batches == 6:
            sorted(out.glob("part-*.idx"))[-1].unlink()
    again = pack(rows, out, tokenizer=codegen(), **OPTIONS)
    assert again["parts"] == whole["parts"]
    assert again["details"] == whole["details"]
    assert again["counts"] == whole["counts"]
    assert files_of(out) == files_of(tmp_path / "whole")


def test_tokens_go_on_too_and_are_refused_where_they_make_no_sense(tmp_path: Path) -> None:
    ids, offsets = tokens_of([30] * 400)
    batches = [
        (ids[offsets[i] : offsets[i + 40]], offsets[i : i + 41] - offsets[i])
        for i in range(0, 400, 40)
    ]
    options: dict[str, Any] = {"tokenizer": codegen(), "identity": "a", "part_bytes": 3000}
    whole = pack_tokens(batches, tmp_path / "whole", **options)

    def broken() -> Any:
        yield from batches[:7]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        pack_tokens(broken(), tmp_path / "out", **options)
    assert (tmp_path / "out/journal.jsonl").exists()
    with pytest.raises(ConfigError, match="fewer than when it was interrupted"):
        pack_tokens(batches[:2], tmp_path / "out", **options)
    assert pack_tokens(batches, tmp_path / "out", **options)["parts"] == whole["parts"]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")

    def untouched() -> Any:
        raise AssertionError("it is finished")
        yield

    assert pack_tokens(untouched(), tmp_path / "out", **options).reused
    for number, (batch, message) in enumerate(
        [
            ((np.array([1, END], np.uint16), [0, 2]), "token 1 is 50256"),
            ((np.array([60_000], np.uint16), [0, 1]), "token 0 is 60000, but ids go from 0 to"),
            ((np.array([1.5]), [0, 1]), "whole numbers"),
            ((np.array([-1]), [0, 1]), "ids from -1"),
            ((np.array([1, 2]), [0, 3]), "offsets 0 to 3 of 2"),
            ((np.array([1, 2]), [2, 1]), "offsets 2 to 1"),
            ((np.array([1, 2]), [0, 2], [1]), "batch of 3 arrays"),
        ]
    ):
        with pytest.raises(ConfigError, match=message):
            pack_tokens([batch], tmp_path / f"bad{number}", tokenizer=codegen(), identity="b")
    with pytest.raises(ConfigError, match="identity"):
        pack_tokens([], tmp_path / "bad", tokenizer=codegen(), identity="")


# Damaged


def read_all(folder: Path) -> None:
    """Everything that training would read of an epoch."""
    for method in ("concat", "best_fit"):
        data = PackedDataset(folder, sequence_length=64, method=method, seed=0)  # type: ignore[arg-type]
        data.batch(0, data.samples_per_epoch)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts with prompts, blocks beyond the first in each kind of file."""
    folder = tmp_path_factory.mktemp("sound") / "packed"
    lengths = [int(n) for n in np.random.default_rng(1).integers(0, 9, 70_000)]
    ids, offsets = tokens_of(lengths)
    prompts = np.minimum(lengths, 3)
    options: dict[str, Any] = {"identity": "a", "part_bytes": 600_000, "prompts": True}
    pack_tokens([(ids, offsets, prompts)], folder, tokenizer=codegen(), **options)
    assert len(list(folder.glob("*.bin"))) == 2
    read_all(folder)
    return folder


def test_a_flipped_bit_in_every_region_is_found(sound: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    read = {".bin", ".bin.index", ".prompt", ".xxh3"}
    seen = set()
    names = sorted(path.name for path in sound.glob("part-*") if ".ds" not in path.name)
    for name in names:
        suffix = name.removeprefix(name[:10])
        original = (sound / name).read_bytes()
        # The first and last bits, one in the middle of every block, and some at random.
        edges = [0, len(original) * 8 - 1, *range(65_536 * 8, len(original) * 8, 131_072 * 8)]
        for bit in [*edges, *rng.integers(0, len(original) * 8, 3).tolist()]:
            damaged = tmp_path / "damaged"
            shutil.copytree(sound, damaged, ignore=shutil.ignore_patterns("*.ds*", "plans"))
            data = bytearray(original)
            data[bit // 8] ^= 1 << bit % 8
            (damaged / name).write_bytes(data)
            with pytest.raises(InputError, match=name):
                verify(damaged)
            if suffix in read:
                with pytest.raises(InputError, match=name.replace(".", r"\.")):
                    read_all(damaged)
            seen.add(suffix)
            shutil.rmtree(damaged)
    assert seen == {*read, ".idx"}


def test_a_flipped_bit_in_the_manifest_is_found_or_changes_no_sample(
    sound: Path, tmp_path: Path
) -> None:
    def everything(folder: Path) -> list[bytes]:
        found = []
        for method in ("concat", "best_fit"):
            data = PackedDataset(folder, sequence_length=512, method=method, seed=0)  # type: ignore[arg-type]
            batch = data.batch(0, data.samples_per_epoch)
            found += [value.tobytes() for name, value in batch.items() if name != "cu_seqlens"]
        return found

    expected = everything(sound)
    shutil.copytree(sound, tmp_path / "a")
    manifest = tmp_path / "a/manifest.json"
    original = manifest.read_bytes()
    refused = harmless = 0
    for bit in np.random.default_rng(5).integers(0, len(original) * 8, 250).tolist():
        data = bytearray(original)
        data[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(data)
        try:
            found = everything(tmp_path / "a")
        except HornbookError:
            refused += 1
        else:
            harmless += 1
            assert found == expected
    assert refused
    assert harmless


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("eot_id", END + 1, "ends with token 50256, but the manifest says that 50257"),
        ("dtype", "uint32", "do not add up"),
        ("dtype", "uint17", "not a manifest"),
        ("documents", 5, "do not add up to 5 documents"),
        ("prompts", False, "do not add up"),
    ],
)
def test_a_manifest_of_other_files_is_refused(
    sound: Path, tmp_path: Path, field: str, value: Any, message: str
) -> None:
    shutil.copytree(sound, tmp_path / "a")
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    manifest["details"][field] = value
    (tmp_path / "a/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        PackedDataset(tmp_path / "a", seed=0)


def test_another_tokenizer_is_refused(sound: Path) -> None:
    with pytest.raises(ConfigError, match=f"{sound}: packed with another tokenizer"):
        PackedDataset(sound, seed=0, tokenizer=Tokenizer.train([], vocab_size=257))
    assert PackedDataset(sound, seed=0, tokenizer=codegen()).tokens > 0


def test_parts_swapped_or_cut_anywhere_are_refused(sound: Path, tmp_path: Path) -> None:
    for name in ("part-00000.bin", "part-00000.bin.index", "part-00001.xxh3", "part-00001.prompt"):
        size = (sound / name).stat().st_size
        for keep in (0, size // 3, size - 1):
            shutil.copytree(sound, tmp_path / "a", dirs_exist_ok=True)
            os.truncate(tmp_path / "a" / name, keep)
            with pytest.raises(InputError, match=name):
                PackedDataset(tmp_path / "a", seed=0)
            (tmp_path / "a" / name).unlink()
            with pytest.raises(HornbookError, match=name):
                PackedDataset(tmp_path / "a", seed=0)
        shutil.rmtree(tmp_path / "a")


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(
    sound: Path, tmp_path: Path
) -> None:
    shutil.copytree(sound, tmp_path / "a", ignore=shutil.ignore_patterns("plans"))
    # A file where the folder of plans would be: even root cannot write there.
    (tmp_path / "a/plans").touch()
    data = PackedDataset(tmp_path / "a", sequence_length=64, method="best_fit", seed=0)
    other = PackedDataset(sound, sequence_length=64, method="best_fit", seed=0)
    assert (data[5]["input_ids"] == other[5]["input_ids"]).all()


# Sizes


@pytest.mark.parametrize("method", ["concat", "best_fit"])
def test_documents_of_awkward_sizes(tmp_path: Path, method: Any) -> None:
    sizes = [0, 1, 2046, 2047, 2048, 2049, 50_000_000, 0, 4096]
    ids, offsets = tokens_of(sizes)
    pack_tokens([(ids, offsets)], tmp_path / "a", tokenizer=codegen(), identity="a")
    stream = np.insert(ids, offsets[1:], END)
    assert (np.fromfile(tmp_path / "a/part-00000.bin", "<u2") == stream).all()
    data = PackedDataset(tmp_path / "a", method=method, seed=0)
    seen = np.zeros(1 << 16, np.int64)
    labels = np.zeros(1 << 16, np.int64)
    padding = 0
    for first in range(0, data.samples_per_epoch, 1024):
        count = min(1024, data.samples_per_epoch - first)
        out = {name: np.empty((count, 2048), np.int32) for name in ("input_ids", "labels")}
        data.fill(first, count, out)
        seen += np.bincount(out["input_ids"].reshape(-1), minlength=1 << 16)
        learned = out["labels"][out["labels"] >= 0]
        labels += np.bincount(learned, minlength=1 << 16)
        padding += int((out["labels"] < 0).sum())
    expected = np.bincount(stream, minlength=1 << 16)
    firsts = [0, *(np.flatnonzero(stream == END) + 1).tolist()][:-1]
    heads = np.bincount(stream[firsts if method == "best_fit" else [0]], minlength=1 << 16)
    assert (labels == expected - heads).all()
    places = data.samples_per_epoch * 2048
    seen[END] -= places - (len(stream) if method == "best_fit" else len(stream) - 1)
    expected[END] -= method == "concat"
    assert (seen == expected).all()
    assert padding == places - int(labels.sum())
