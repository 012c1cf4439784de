"""How fast is dedup, end to end, beside the peers that are installed, and what does each find?

Input: a planted set of real Python (chunks of this machine's packages, 40 % of them with edited
copies) as JSON lines, or as Parquet for the engines that read it by themselves; every engine writes
the rows it keeps as Parquet. Each runs in a process of its own, in turn, `--rounds` times (once if
that takes over a minute); CPU seconds of the process and its children count, start-up included.
Recall is the share of documents with a true partner (Jaccard of word 5-grams at least 0.7, by our
exact join, which tests hold against brute force) that an engine puts beside another; precision the
share of removed documents of which some kept document is truly that similar.

    python benchmarks/dedup.py --megabytes 280 --rounds 3
    python benchmarks/dedup.py --format parquet
    python benchmarks/dedup.py --threads 2 --only "hornbook minhash" daft

Peers that are not importable are named and left out. dolma may stand in an environment of its own
if its command is linked beside this Python: it needs an older numpy than datatrove does. So may the
command of github.com/revbucket/minhash-rs, built by cargo.
"""

import argparse
import itertools
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"
THRESHOLD, NGRAM, BANDS, ROWS = 0.7, 5, 16, 8
WORD = re.compile(r"[a-z0-9_]+")


def planted(folders: list[Path], megabytes: float, out: Path) -> int:
    """Writes chunks of Python files and edited copies of 40 % of them; returns the documents."""
    rng = random.Random(7)
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    rng.shuffle(files)
    base: list[str] = []
    size, seen = 0, set()
    for path in files:
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if text in seen:
            continue
        seen.add(text)
        chunk, want = "", rng.lognormvariate(8, 0.8)
        for line in text.splitlines(keepends=True):
            chunk += line
            if len(chunk) >= want:
                base.append(chunk)
                size += len(chunk)
                chunk, want = "", rng.lognormvariate(8, 0.8)
        if size > megabytes * 1e6 / 1.9:
            break
    words = sorted({word for text in base[:300] for word in WORD.findall(text)})
    origins = rng.sample(range(len(base)), int(0.4 * len(base)))
    texts = list(base)
    while size < megabytes * 1e6:
        texts.append(edited(base[rng.choice(origins)], rng, words))
        size += len(texts[-1])
    rng.shuffle(texts)
    with out.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")
    return len(texts)


def edited(text: str, rng: random.Random, words: list[str]) -> str:
    """A copy: exact, spaced, substituted, inserted into, shortened, lengthened or renamed."""
    tokens = re.findall(r"\w+|\W+", text)
    rate = rng.random()
    match rng.randrange(7):
        case 0:
            return text
        case 1:
            return re.sub(r"[ \t]+", lambda run: run.group() * 2, text)
        case 2:
            return "".join(
                rng.choice(words) if t[0].isalnum() and rng.random() < 0.1 * rate else t
                for t in tokens
            )
        case 3:
            return "".join(
                f"{t} {rng.choice(words)} " if rng.random() < 0.04 * rate else t
                for t in tokens
                if rng.random() >= 0.04 * rate
            )
        case 4:
            cut = int(0.45 * rate * len(tokens))
            start = rng.randrange(max(1, len(tokens) - cut))
            return "".join(tokens[:start] + tokens[start + cut :])
        case 5:
            start = rng.randrange(max(1, len(tokens)))
            new = " ".join(rng.choices(words, k=int(0.3 * rate * len(tokens))))
            return "".join(tokens[:start]) + f" {new} " + "".join(tokens[start:])
    names = sorted({t for t in tokens if t[0].isalpha()})
    chosen = set(rng.sample(names, int(0.12 * rate * len(names))))
    return "".join(f"{t}_x" if t in chosen else t for t in tokens)


# Each engine: reads `source`, writes kept rows under `out`, returns the removed row numbers or the
# kept ids. They run in a process of their own, so everything they import is their cost.


def ours(method: str) -> Callable[[Path, Path, int], None]:
    """hornbook, JSON lines in and zstd Parquet out."""

    def run(source: Path, out: Path, threads: int) -> None:
        from hornbook.dedup import dedup

        dedup(source, out, method=method, threads=threads)

    return run


def read_rows(source: Path) -> tuple[list[str], list[str]]:
    """Ids and texts, by the fastest JSON that is common in Python."""
    import orjson

    rows = [orjson.loads(line) for line in source.open("rb")]
    return [row["id"] for row in rows], [row["text"] for row in rows]


def write_rows(out: Path, ids: list[str], texts: list[str], keep: list[int]) -> None:
    """Kept rows as Parquet, compressed by pyarrow's default (snappy)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True)
    table = pa.table({"id": [ids[i] for i in keep], "text": [texts[i] for i in keep]})
    pq.write_table(table, out / "part.parquet")


def shingles(text: str) -> set[str]:
    """Word 5-grams, as users of sketch libraries must make them."""
    words = WORD.findall(text.lower())
    return {" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def first_of_groups(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The first document of each connected component: what every peer below keeps."""
    parent = list(range(count))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for a, b in pairs:
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return [i for i in range(count) if root(i) == i]


def daft(source: Path, out: Path, threads: int) -> None:
    """Daft's minhash expression; bands, groups and components as in its own guide."""
    import daft
    import numpy as np
    from daft import col

    read = daft.read_parquet if source.suffix == ".parquet" else daft.read_json
    frame = read(str(source))
    normal = col("text").normalize(
        remove_punct=True, lowercase=True, nfd_unicode=True, white_space=True
    )
    sketch = normal.minhash(
        num_hashes=BANDS * ROWS, ngram_size=NGRAM, seed=1, hash_function="xxhash"
    )
    rows = frame.with_column("sketch", sketch).collect()
    sketches = np.array(rows.select("sketch").to_arrow()["sketch"].combine_chunks().flatten())
    sketches = sketches.reshape(-1, BANDS, ROWS)
    pairs: list[tuple[int, int]] = []
    for band in range(BANDS):
        keys = np.ascontiguousarray(sketches[:, band]).view(f"V{ROWS * sketches.itemsize}").ravel()
        order = np.argsort(keys, kind="stable")
        same = keys[order[1:]] == keys[order[:-1]]
        pairs += zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True)
    keep = first_of_groups(len(sketches), pairs)
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True)
    table = rows.select("id", "text").to_arrow().take(pa.array(keep))
    pq.write_table(table, out / "part.parquet")


def banded(signatures: "list[list[int]]") -> list[tuple[int, int]]:
    """Pairs of neighbours in each band of signatures."""
    import numpy as np

    matrix = np.asarray(signatures).reshape(len(signatures), BANDS, ROWS)
    pairs: list[tuple[int, int]] = []
    for band in range(BANDS):
        keys = np.ascontiguousarray(matrix[:, band]).view(f"V{ROWS * matrix.itemsize}").ravel()
        order = np.argsort(keys, kind="stable")
        same = keys[order[1:]] == keys[order[:-1]]
        pairs += zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True)
    return pairs


def rensa(source: Path, out: Path, threads: int) -> None:
    """rensa's R-MinHash over shingles made in Python."""
    from rensa import RMinHash

    ids, texts = read_rows(source)
    signatures = []
    for text in texts:
        sketch = RMinHash(num_perm=BANDS * ROWS, seed=1)
        sketch.update(list(shingles(text)))
        signatures.append(sketch.digest())
    write_rows(out, ids, texts, first_of_groups(len(ids), banded(signatures)))


def datasketch(source: Path, out: Path, threads: int) -> None:
    """datasketch's MinHash with xxh32, over shingles made in Python."""
    import xxhash
    from datasketch import MinHash

    ids, texts = read_rows(source)
    signatures = []
    for text in texts:
        sketch = MinHash(num_perm=BANDS * ROWS, hashfunc=xxhash.xxh32_intdigest)
        sketch.update_batch([gram.encode() for gram in shingles(text)])
        signatures.append(sketch.hashvalues)
    write_rows(out, ids, texts, first_of_groups(len(ids), banded(signatures)))


def gaoya(source: Path, out: Path, threads: int) -> None:
    """gaoya's index (Rust), with its own tokens: words after lower-casing, 5-grams."""
    from gaoya.minhash import MinHashStringIndex

    ids, texts = read_rows(source)
    index = MinHashStringIndex(
        hash_size=32, jaccard_threshold=THRESHOLD, num_bands=BANDS, band_size=ROWS,
        analyzer="word", lowercase=True, ngram_range=(NGRAM, NGRAM),
    )  # fmt: skip
    keep = []
    for number, text in enumerate(texts):
        if not index.query(text):
            index.insert_document(number, text)
            keep.append(number)
    write_rows(out, ids, texts, keep)


def text_dedup(source: Path, out: Path, threads: int) -> None:
    """text-dedup's MinHash command with xxh3, and its data set written as Parquet."""
    import datasets
    from text_dedup.minhash import main

    found = out / "found"
    main(
        ["--path", "json", "--data_files", str(source), "--split", "train", "--column", "text",
         "--cache_dir", str(out / "cache"), "--output", str(found), "--num_proc", str(threads),
         "--ngram", str(NGRAM), "--num_perm", str(BANDS * ROWS), "--b", str(BANDS),
         "--r", str(ROWS), "--hash_func", "xxh3", "--hash_bits", "32"],
        standalone_mode=False,
    )  # fmt: skip
    datasets.load_from_disk(str(found)).to_parquet(out / "part.parquet")


def datatrove(source: Path, out: Path, threads: int) -> None:
    """datatrove's four stages, words by its English tokenizer."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import ParquetWriter

    config = MinhashConfig(n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS)
    read = JsonlReader(str(source.parent), glob_pattern=source.name)
    signed, paired, removed = (str(out / name) for name in ("signatures", "buckets", "remove"))
    write = ParquetWriter(str(out), output_filename="${rank}.parquet")
    stages = (
        ([read, MinhashDedupSignature(signed, config=config)], 1),
        ([MinhashDedupBuckets(signed, paired, config=config)], BANDS),
        ([MinhashDedupCluster(paired, removed, config=config)], 1),
        ([read, MinhashDedupFilter(removed), write], 1),
    )
    for number, (stage, tasks) in enumerate(stages):
        LocalPipelineExecutor(
            stage, tasks=tasks, workers=threads, logging_dir=str(out / "logs" / str(number))
        ).run()


def minhash_rs(source: Path, out: Path, threads: int) -> None:
    """minhash-rs, of which duplodocus was made: words by Unicode; it writes JSON lines."""
    documents = out / "documents"
    documents.mkdir(parents=True)
    (documents / source.name).symlink_to(source)
    most = max(200_000, source.stat().st_size // 1000)
    settings = {
        "name": "benchmark", "num_bands": BANDS, "band_size": ROWS, "ngram_size": NGRAM,
        "tokenizer_str": "uniseg", "content_key": "text", "num_sig_chunks": 8,
        "num_docs": most, "max_lines_per_path": most, "local_input": str(documents),
        "working_dir": str(out / "work"), "output_dir": str(out / "kept"),
        "remote_input": "", "remote_working_dir": "", "remote_output": "",
        # Without it, the version of May 2025 compares whole texts instead of n-grams.
        "exact_override": True,
    }  # fmt: skip
    config = out / "config.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [str(Path(sys.executable).parent / "minhash-rs"), "min-hash", "--config", str(config)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"minhash-rs: {done.stderr.strip().splitlines()[-1]}")


def polars(source: Path, out: Path, threads: int) -> None:
    """polars: exact copies only."""
    import polars as pl

    out.mkdir(parents=True)
    read = pl.read_parquet if source.suffix == ".parquet" else pl.read_ndjson
    frame = read(source).unique("text", keep="first", maintain_order=True)
    frame.write_parquet(out / "part.parquet")


def dolma(source: Path, out: Path, threads: int) -> None:
    """dolma's Bloom filter over whole texts: exact copies only, marked; rows are not copied."""
    folder = out / "documents"
    folder.mkdir(parents=True)
    (folder / "in.jsonl").symlink_to(source)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "dolma"), "dedupe", "--documents", f"{folder}/*.jsonl",
         "--dedupe.documents.attribute_name", "copy", "--dedupe.documents.key", "$.text",
         "--dedupe.name", "copy", "--bloom_filter.file", f"{out}/bloom",
         "--bloom_filter.estimated_doc_count", "200000",
         "--bloom_filter.desired_false_positive_rate", "1e-9",
         "--no-bloom_filter.read_only", "--processes", str(threads)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"dolma: {done.stderr.strip().splitlines()[-1]}")


READ_PARQUET = ["hornbook minhash", "hornbook exact-join", "daft", "hornbook exact", "polars"]
SLOW_SECONDS = 60

ENGINES: dict[str, tuple[Callable[[Path, Path, int], None], str]] = {
    "hornbook minhash": (ours("minhash"), "near"),
    "hornbook exact-join": (ours("exact-join"), "near"),
    "daft": (daft, "near"),
    "rensa + Python shingles": (rensa, "near"),
    "datasketch": (datasketch, "near"),
    "gaoya": (gaoya, "near"),
    "text-dedup": (text_dedup, "near"),
    "datatrove": (datatrove, "near"),
    "minhash-rs": (minhash_rs, "near"),
    "hornbook exact": (ours("exact"), "exact"),
    "polars": (polars, "exact"),
    "dolma": (dolma, "exact"),
}
PACKAGES = ["hornbook", "daft", "rensa", "datasketch", "gaoya", "text-dedup", "datatrove"]
PACKAGES += ["minhash-rs", "polars", "dolma", "pyarrow"]


def engine_process(name: str, source: Path, out: Path, threads: int) -> dict[str, float] | str:
    """Runs one engine in a process of its own; CPU and wall seconds and peak memory, or why not."""
    import time

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    environment = {
        **os.environ, "DO_NOT_TRACK": "1", "POLARS_MAX_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads),
    }  # fmt: skip
    command = [sys.executable, __file__, "--engine", name, str(source), str(out), str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed"
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = float(done.stdout.split()[-1])
    return {"cpu_seconds": round(cpu, 3), "wall_seconds": round(wall, 3), "peak_mb": peak}


def kept_rows(out: Path) -> set[int]:
    """The rows an engine wrote: ids are row numbers."""
    import pyarrow.parquet as pq

    ids: set[int] = set()
    for part in out.glob("*.parquet"):
        ids.update(int(one) for one in pq.read_table(part, columns=["id"])["id"].to_pylist())
    for lines in out.glob("kept/*.jsonl"):
        ids.update(int(json.loads(line)["id"]) for line in lines.open())
    return ids


def truth(source: Path, folder: Path) -> list[tuple[int, int]]:
    """Every pair at the threshold, exact copies among them, by the exact join."""
    from hornbook.dedup import dedup

    dedup(source, folder, method="exact-join", keep="first", components=True)
    evidence = folder / "evidence"
    # Edges are between first copies: what holds for one holds for its other copies.
    copies: dict[int, list[int]] = {}
    for row in map(json.loads, (evidence / "removed.json").open()):
        if row["rule"] == "exact":
            copies.setdefault(row["kept_row"], [row["kept_row"]]).append(row["removed_row"])
    pairs = [pair for group in copies.values() for pair in itertools.combinations(group, 2)]
    for line in (evidence / "edges.json").open():
        a, b = json.loads(line)[:2]
        pairs += itertools.product(copies.get(a, [a]), copies.get(b, [b]))
    return pairs


def quality(kept: set[int], count: int, pairs: list[tuple[int, int]]) -> dict[str, float]:
    """Document recall: removed or kept beside a removed partner; precision: justified removals."""
    near: dict[int, set[int]] = {}
    for a, b in pairs:
        near.setdefault(a, set()).add(b)
        near.setdefault(b, set()).add(a)
    removed = set(range(count)) - kept
    found = sum(one in removed or not near[one].isdisjoint(removed) for one in near)
    justified = sum(not near.get(one, set()).isdisjoint(kept) for one in removed)
    return {
        "removed": len(removed),
        "document_recall": round(found / max(1, len(near)), 4),
        "precision": round(justified / max(1, len(removed)), 4),
    }


def kernel(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Nanoseconds a hashed shingle for 128 values, 350 shingles a document; ours and rensa's."""
    import time

    import numpy as np

    from hornbook import _core

    rng = np.random.default_rng(1)
    documents, each = 4000, 350
    hashes = rng.integers(0, 2**64, documents * each, dtype=np.uint64)
    offsets = np.arange(documents + 1, dtype=np.int64) * each
    engines: dict[str, Callable[[], object]] = {
        "hornbook": lambda: _core.signatures(hashes, offsets, 128, 1)
    }
    try:
        from rensa import RMinHash

        # What it takes without converting: arrays of u64. Lists cost it five times as much.
        flat, places = hashes, offsets.astype(np.uint64)
        engines["rensa"] = lambda: RMinHash.digest_matrix_from_flat_token_hashes(
            flat, places, 128, 1
        )
    except (ImportError, AttributeError):
        pass
    times: dict[str, dict[str, list[float]]] = {name: {"ns_per_shingle": []} for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            start = time.process_time()
            engine()
            spent = (time.process_time() - start) / (documents * each) * 1e9
            times[name]["ns_per_shingle"].append(round(spent, 2))
    return times


def installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            apart = (Path(sys.executable).parent / name).exists()
            found[name] = "in an environment of its own" if apart else "not installed"
    return found | {"hornbook": found["hornbook"].replace("not installed", "in place")}


def main() -> None:
    """Runs the benchmark and writes `results/dedup.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", nargs=4, metavar=("NAME", "SOURCE", "OUT", "THREADS"))
    parser.add_argument("--megabytes", type=float, default=280)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(ENGINES))
    parser.add_argument("--format", choices=["jsonl", "parquet"], default="jsonl")
    parser.add_argument("--folders", nargs="*", type=Path, default=[Path(p) for p in sys.path if p])
    args = parser.parse_args()
    if args.engine:
        name, source, out, threads = args.engine
        ENGINES[name][0](Path(source), Path(out), int(threads))
        # Not `ru_maxrss`: that also counts what the parent held when it forked this process.
        status = Path("/proc/self/status").read_text()
        print(round(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024, 1))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "planted.jsonl"
        count = planted(args.folders, args.megabytes, source)
        # Of the lines in either case, so that the figures can be compared.
        megabytes = source.stat().st_size / 1e6
        pairs = truth(source, folder / "truth")
        if args.format == "parquet":
            ids, texts = read_rows(source)
            write_rows(folder / "parquet", ids, texts, list(range(count)))
            source = folder / "parquet" / "part.parquet"
        print(f"{count:,} documents, {megabytes:.1f} MB, {len(pairs):,} pairs at {THRESHOLD}")
        rows: dict[str, dict] = {}
        engines = args.only or (READ_PARQUET if args.format == "parquet" else list(ENGINES))
        for turn in range(args.rounds):
            for number, name in enumerate(engines):
                row = rows.get(name, {})
                if "failed" in row or (turn and row["rounds"][0]["cpu_seconds"] > SLOW_SECONDS):
                    continue
                out = folder / f"{turn}-{number}"
                done = engine_process(name, source, out, args.threads)
                if isinstance(done, str):
                    rows[name] = {"failed": done}
                    continue
                row = rows.setdefault(name, {"kind": ENGINES[name][1], "rounds": []})
                row["rounds"].append(done)
                if turn == 0 and (kept := kept_rows(out)):
                    row |= quality(kept, count, pairs)
        signing = kernel(args.rounds * 3)
    for name, row in rows.items():
        if "failed" in row:
            print(f"  {name:<26} left out: {row['failed']}")
            continue
        row["mb_per_cpu_second"] = round(
            megabytes / median(one["cpu_seconds"] for one in row["rounds"]), 2
        )
        peak = median(one["peak_mb"] for one in row["rounds"])
        wall = median(one["wall_seconds"] for one in row["rounds"])
        print(
            f"  {name:<26} {row['mb_per_cpu_second']:8.1f} MB/CPU-s  {wall:6.2f} s"
            f"  {peak / megabytes:5.2f} x memory"
            f"  recall {row.get('document_recall', '-')}  precision {row.get('precision', '-')}"
        )
    print("  signing:", {name: median(t["ns_per_shingle"]) for name, t in signing.items()})
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": installed(),
        "documents": count,
        "megabytes": megabytes,
        "format": args.format,
        "threads": args.threads,
        "pairs": len(pairs),
        "engines": rows,
        "signing": signing,
    }
    RESULTS.mkdir(exist_ok=True)
    suffix = "_parquet" if args.format == "parquet" else ""
    suffix += f"_{args.threads}_threads" if args.threads > 1 else ""
    (RESULTS / f"dedup{suffix}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
