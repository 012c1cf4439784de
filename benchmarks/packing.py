"""How fast are packing and loading beside the tools that trainers use for it?

Peers: Megatron-LM (megatron-core), datatrove, litdata, mosaicml-streaming, TRL, OLMo-core, numpy,
whichever are installed. Input: 200 million random tokens in documents of log-normal lengths (mean
about 1,000, 11.6% longer than 2,048). Each engine runs `--rounds` times in turn; compared are
medians of tokens for each CPU second of the process and its children. Slow writers get a share of
the tokens. Outputs are checked to be equal where both write the same format.

    python benchmarks/packing.py --folder /tmp/bench
"""

import argparse
import json
import platform
import resource
import shutil
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import packing_peers as peers
from data import processor
from packing_peers import BATCH, LENGTH, Documents, Engine

import hornbook as hb
from hornbook import _core
from hornbook.files import write_text
from hornbook.manifest import MANIFEST
from hornbook.packed import PackedDataset
from hornbook.packing import STAGE, pack_tokens

RESULTS = Path(__file__).parent / "results"
BLOCK = 128 << 10
"""Bytes that one hash covers."""
PACKAGES = ["hornbook", "numpy", "torch", "megatron-core", "datatrove", "litdata"]
PACKAGES += ["mosaicml-streaming", "trl", "ai2-olmo-core"]


def documents(tokens: int, end: int) -> Documents:
    """Log-normal lengths, uniform ids."""
    rng = np.random.default_rng(0)
    count = int(tokens / 999) * 12 // 10
    lengths = np.maximum(rng.lognormal(6.189, 1.198, count).astype(np.int64), 1) + 1
    ends = np.cumsum(lengths)
    ends = ends[: int(np.searchsorted(ends, tokens)) + 1]
    ids = rng.integers(0, end, int(ends[-1]), dtype=np.uint16)
    ids[ends - 1] = end
    return Documents(ids, ends, end)


def cpu_seconds() -> float:
    """Of this process, its threads and its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(title: str, engines: dict[str, Engine | None], rounds: int) -> dict[str, Any]:
    """Runs every engine in turn; million tokens a CPU second and a second, ratios to the first."""
    present = {name: engine for name, engine in engines.items() if engine is not None}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in present}
    for _ in range(rounds):
        for name, engine in list(present.items()):
            wall, cpu = time.perf_counter(), cpu_seconds()
            try:
                tokens = engine() / 1e6
            except Exception as error:
                print(f"{name} is left out: {error!r}")
                del present[name], runs[name]
                continue
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            runs[name].append((tokens / cpu, tokens / wall))
    print(f"\n{title} (million tokens)")
    rows: dict[str, Any] = {}
    for name, row in runs.items():
        per_cpu, per_wall = (median(values) for values in zip(*row, strict=True))
        ours = next(iter(rows.values()), {"per_cpu_second": per_cpu})["per_cpu_second"]
        ratio = ours / per_cpu
        rows[name] = {
            "per_cpu_second": round(per_cpu, 1),
            "per_second": round(per_wall, 1),
            "ours_is_times_as_fast": round(ratio, 2),
            "rounds": [[round(value, 1) for value in pair] for pair in row],
        }
        print(f"  {name:<42} {per_cpu:9.1f} /CPU-s {per_wall:9.1f} /s   ours: {ratio:6.1f} x")
    return rows


def ours_write(given: Documents, folder: Path, tokenizer: hb.Tokenizer) -> Engine:
    """`pack_tokens` with every hash and sync; the documents come without end tokens."""
    keep = np.ones(len(given.ids), bool)
    keep[given.ends - 1] = False
    ids, ends = given.ids[keep], given.ends - np.arange(1, len(given.ends) + 1)
    starts = np.concatenate([[0], ends])

    def run() -> int:
        shutil.rmtree(folder, ignore_errors=True)
        batches = (
            (ids[starts[i] : starts[j]], starts[i : j + 1] - starts[i])
            for i, j in ((i, min(i + 1000, len(ends))) for i in range(0, len(ends), 1000))
        )
        pack_tokens(batches, folder, tokenizer=tokenizer, identity="benchmark")
        return len(given.ids)

    return run


def ours_read(folder: Path, seconds: float, fields: list[str], **options: Any) -> Engine:
    """Fresh torch tensors from the loader; `prefetch=0` makes them in the calling thread."""
    from hornbook.loading import Loader

    data = PackedDataset(folder, sequence_length=LENGTH, seed=0)
    batches = iter(Loader(data, BATCH, fields=fields, **{"prefetch": 0, **options}))
    return lambda: peers.for_seconds(seconds, lambda _: next(batches)["input_ids"].numel())


def ours_plan(folder: Path) -> Engine:
    """Opening with best-fit where no plan is yet: reads the index, plans, writes the plan."""

    def run() -> int:
        shutil.rmtree(folder / "plans", ignore_errors=True)
        return PackedDataset(folder, sequence_length=LENGTH, method="best_fit", seed=0).tokens

    return run


def ours_plan_and_move(folder: Path) -> Engine:
    """The same, and every row into one array."""

    def run() -> int:
        shutil.rmtree(folder / "plans", ignore_errors=True)
        data = PackedDataset(folder, sequence_length=LENGTH, method="best_fit", seed=0)
        rows = data.samples_per_epoch
        out = np.empty((rows, LENGTH), np.int32)
        for first in range(0, rows, 1024):
            part = out[first : first + 1024]
            data.fill(first, len(part), {"input_ids": part})
        return data.tokens

    return run


def hollow(folder: Path, ends: np.ndarray[Any, Any], tokenizer: hb.Tokenizer) -> Path:
    """A packed folder whose ids are a hole in a file: zeros up to the last one, no disk."""
    folder.mkdir(parents=True)
    size = int(ends[-1]) * 2
    with (folder / "part-00000.bin").open("wb") as file:
        file.truncate(size)
        file.seek(size - 2)
        file.write(np.uint16(tokenizer.eot_id).tobytes())
    index = ends.astype("<u8").tobytes()
    (folder / "part-00000.bin.index").write_bytes(index)
    whole, rest = divmod(size - 2, BLOCK)
    last = bytes(rest) + np.uint16(tokenizer.eot_id).tobytes()
    hashes = block_hashes(bytes(BLOCK)) * whole + block_hashes(last) + block_hashes(index)
    (folder / "part-00000.xxh3").write_bytes(hashes)
    sizes = {".bin": size, ".bin.index": len(index), ".xxh3": len(hashes)}
    xxh3 = _core.hash_bytes(hashes)
    parts = [
        {"name": f"part-00000{suffix}", "rows": len(ends), "bytes": count, "xxh3": xxh3}
        for suffix, count in sizes.items()
    ]
    details = {
        "tokenizer_hash": tokenizer.tokenizer_hash,
        "dtype": "uint16",
        "eot_id": tokenizer.eot_id,
        "vocab_size": tokenizer.vocab_size,
        "documents": len(ends),
        "tokens": int(ends[-1]),
        "prompts": False,
    }
    manifest = {"schema": 1, "stage": STAGE, "key": "", "parts": parts, "details": details}
    write_text(folder / MANIFEST, json.dumps(manifest))
    return folder


def block_hashes(data: bytes) -> bytes:
    """xxh3-64 of every block."""
    import xxhash

    blocks = (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))
    return b"".join(xxhash.xxh3_64_intdigest(block).to_bytes(8, "little") for block in blocks)


def latency(packed: Path, folder: Path, tokenizer: hb.Tokenizer, rounds: int) -> dict[str, Any]:
    """Seconds to a first batch, also at sample 10^9 of 10^10; the plan of 10^7 documents."""
    result: dict[str, Any] = {}

    def first(name: str, where: Path, start: int = 0, plan: bool = True, **options: Any) -> None:
        seconds = []
        for _ in range(rounds):
            if not plan:
                shutil.rmtree(where / "plans", ignore_errors=True)
            begun = time.perf_counter()
            PackedDataset(where, seed=0, **options).batch(start, BATCH)
            seconds.append(time.perf_counter() - begun)
        result[name] = {
            "seconds": round(median(seconds), 5),
            "rounds": [round(s, 5) for s in seconds],
        }
        print(f"  {name:<62} {1000 * median(seconds):10.2f} ms")

    print("\nfirst batch of 16, from nothing")
    first("concat", packed)
    first("best_fit, planning", packed, plan=False, method="best_fit")
    first("best_fit, plan kept", packed, method="best_fit")
    first("concat, at sample 10^9 (epoch 10,240)", packed, start=10**9)
    ends = np.array([10**10 + 1])
    large = hollow(folder / "large", ends, tokenizer)
    first("at sample 10^9 of an epoch of 10^10", large, start=10**9, sequence_length=1)
    rng = np.random.default_rng(1)
    lengths = np.maximum(rng.lognormal(6.189, 1.198, 10_000_000).astype(np.int64), 1) + 1
    many = hollow(folder / "many", np.cumsum(lengths), tokenizer)
    begun = time.perf_counter()
    data = PackedDataset(many, seed=0, method="best_fit")
    seconds = time.perf_counter() - begun
    padding = 1 - data.tokens / (data.samples_per_epoch * LENGTH)
    result["best_fit plan of 10 million documents"] = {
        "seconds": round(seconds, 2),
        "padding": padding,
    }
    print(
        f"  {'best_fit plan of 10 million documents':<62} {seconds:10.2f} s, padding {padding:.6%}"
    )
    begun = time.perf_counter()
    PackedDataset(many, seed=0, method="best_fit").batch(10**9, BATCH)
    seconds = time.perf_counter() - begun
    result["best_fit first batch of 10 million documents, plan kept"] = {
        "seconds": round(seconds, 5)
    }
    print(f"  {'the same with the plan kept, first batch':<62} {1000 * seconds:10.2f} ms")
    return result


def same_bytes(packed: Path, megatron: Path, datatrove: Path) -> None:
    """What two tools write for the same documents must be equal to the byte."""
    for ours, theirs in (
        (".bin", megatron / "data.bin"),
        (".idx", megatron / "data.idx"),
        (".ds", datatrove / "data.ds"),
        (".ds.index", datatrove / "data.ds.index"),
    ):
        if theirs.exists():
            assert (packed / f"part-00000{ours}").read_bytes() == theirs.read_bytes(), theirs
            print(f"equal to ours: {theirs.name}")


def write_and_read(given: Documents, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The sections `write`, `read` and `read with boundaries and positions`."""
    rounds, seconds, end = options.rounds, options.seconds, given.end_of_text
    packed, tokenizer = folder / "packed", hb.Tokenizer.codegen()
    sections: dict[str, Any] = {}
    sections["write"] = measure(
        "write tokenized documents",
        {
            "hornbook (hashes, synced to disk)": ours_write(given, packed, tokenizer),
            "datatrove, bytes": peers.datatrove_write(given, folder / "datatrove"),
            "Megatron-LM, tensors": peers.megatron_write(given, folder / "megatron"),
            "MDS, rows, hashes": peers.mds_write(given, folder / "mds", options.share),
            "litdata, one worker": peers.litdata_write(given, folder / "lit", options.share),
        },
        rounds,
    )
    same_bytes(packed, folder / "megatron", folder / "datatrove")
    binary, stem, cache = packed / "part-00000.bin", packed / "part-00000", folder / "cache"
    sections["read"] = measure(
        "read shuffled samples of 2,048 as int64 tensors",
        {
            "hornbook": ours_read(packed, seconds, ["input_ids"]),
            "hornbook, labels too": ours_read(packed, seconds, ["input_ids", "labels"]),
            "hornbook, made ahead": ours_read(packed, seconds, ["input_ids"], prefetch=2),
            "numpy memmap": peers.memmap_read(binary, seconds),
            "datatrove": peers.datatrove_read(binary, seconds, None),
            "litdata": peers.litdata_read(folder / "lit", seconds),
            "Megatron-LM GPTDataset": peers.megatron_read(stem, cache, seconds, False, end),
            "MDS": peers.mds_read(folder / "mds", seconds),
            "OLMo-core FSL loader": peers.olmo_read(binary, folder / "a", seconds, False, end),
        },
        rounds,
    )
    positions = peers.megatron_read(stem, cache, seconds, True, end)
    sections["read with boundaries and positions"] = measure(
        "the same with document boundaries and positions",
        {
            "hornbook": ours_read(packed, seconds, ["input_ids", "position_ids"]),
            "datatrove, positions": peers.datatrove_read(binary, seconds, end),
            "Megatron-LM GPTDataset, positions": positions,
            "OLMo-core, lengths": peers.olmo_read(binary, folder / "b", seconds, True, end),
        },
        rounds,
    )
    return sections


def plans(given: Documents, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The sections `plan`, `plan and move`, `latency`, with rows and padding."""
    packed, tokenizer = folder / "packed", hb.Tokenizer.codegen()
    ours_write(given, packed, tokenizer)()
    lengths = np.diff(given.ends, prepend=0)
    full, rest = lengths // LENGTH, lengths % LENGTH
    pieces = np.concatenate([np.full(full.sum(), LENGTH), rest[rest > 0]])
    best = PackedDataset(packed, sequence_length=LENGTH, method="best_fit", seed=0)
    rows: dict[str, int] = {"hornbook": best.samples_per_epoch}

    def counted(name: str, engine: Engine | None) -> dict[str, Engine | None]:
        def run() -> int:
            assert engine is not None
            rows[name] = engine()
            return len(given.ids)

        return {name: run if engine else None}

    sections: dict[str, Any] = {"rows": rows}
    sections["plan"] = measure(
        f"best-fit plan of {len(given.ends):,} documents",
        {
            "hornbook (from files, plan written)": ours_plan(packed),
            **counted("OLMo-core", peers.olmo_plan(pieces)),
        },
        options.rounds,
    )
    sections["plan and move"] = measure(
        "best-fit plan, and the tokens moved",
        {
            "hornbook (plan written, int32)": ours_plan_and_move(packed),
            **counted("TRL, groups of 1,000", peers.trl_pack(given, 1000)),
            **counted("TRL, all at once", peers.trl_pack(given, None)),
        },
        options.rounds,
    )
    assert rows["hornbook"] <= min(rows.values()), "a peer needs fewer rows"
    sections["padding"] = 1 - len(given.ids) / (rows["hornbook"] * LENGTH)
    print(f"\nrows: {rows}; padding of ours: {sections['padding']:.6%}, tokens dropped: 0")
    sections["latency"] = latency(packed, folder, tokenizer, options.rounds)
    return sections


def main() -> None:
    """Runs everything, or one half, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each reader in each round")
    parser.add_argument("--share", type=float, default=0.25, help="of tokens, for slow writers")
    parser.add_argument("--folder", type=Path, help="where files are written; a temporary one")
    halves = {"io": write_and_read, "plans": plans}
    parser.add_argument("--only", choices=halves, help="the results of the other half are kept")
    options = parser.parse_args()
    given = documents(options.tokens, hb.Tokenizer.codegen().eot_id)
    data = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
        },
        "versions": {name: installed(name) for name in PACKAGES},
        "tokens": len(given.ids),
        "documents": len(given.ends),
    }
    results = RESULTS / "packing.json"
    if options.only and results.exists():
        data = {**json.loads(results.read_text()), **data}
    for half in [options.only] if options.only else halves:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            data |= halves[half](given, Path(name), options)
    RESULTS.mkdir(exist_ok=True)
    results.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {results}")


def installed(package: str) -> str | None:
    """A package's version."""
    if package == "hornbook":
        return hb.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
