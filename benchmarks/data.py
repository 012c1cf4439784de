"""How fast are dedup and the tokenizer beside the peers that are installed?

Peers: datasketch and HF tokenizers. Input: the interpreter's standard library and installed
packages, as many files as --megabytes asks.
Each engine runs `--rounds` times in turn; CPU seconds of the process and its threads are compared,
and outputs are checked to agree before anything is printed.

    python benchmarks/data.py --megabytes 20
"""

import argparse
import json
import platform
import re
import sysconfig
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import hornbook as hb
from hornbook import corpus
from hornbook.source import standard_library

RESULTS = Path(__file__).parent / "results"


def documents(megabytes: float) -> list[str]:
    """Python files of this machine, the standard library first."""
    packages = Path(sysconfig.get_paths()["purelib"])
    texts, size = [], 0
    for path in [*standard_library(), *sorted(packages.rglob("*.py"))]:
        text = path.read_bytes().decode("utf-8", errors="ignore")
        texts.append(text)
        size += len(text)
        if size >= megabytes * 1e6:
            break
    return texts


def measure(engines: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict]:
    """Runs every engine in turn, `rounds` times; CPU and wall seconds of each run."""
    times: dict[str, dict[str, list[float]]] = {
        name: {"cpu_seconds": [], "wall_seconds": []} for name in engines
    }
    for _ in range(rounds):
        for name, engine in engines.items():
            wall, cpu = time.perf_counter(), time.process_time()
            engine()
            times[name]["cpu_seconds"].append(round(time.process_time() - cpu, 4))
            times[name]["wall_seconds"].append(round(time.perf_counter() - wall, 4))
    return times


def table(title: str, megabytes: float, times: dict[str, dict], ours: str) -> dict:
    """Prints medians and the ratio to ours; returns them for the results file."""
    base = median(times[ours]["cpu_seconds"])
    print(f"\n{title} ({megabytes:.1f} MB)")
    rows = {}
    for name, row in times.items():
        cpu = median(row["cpu_seconds"])
        ratio = cpu / base
        rows[name] = {**row, "mb_per_cpu_second": round(megabytes / cpu, 2), "times_ours": ratio}
        print(f"  {name:<28} {megabytes / cpu:9.1f} MB/CPU-s   {ratio:7.2f} x our CPU time")
    return rows


def bench_tokenizer(texts: list[str], rounds: int, folder: Path) -> dict:
    """Encode with one vocabulary; ids must be equal."""
    import tokenizers

    ours = hb.Tokenizer.codegen()
    ours.save(folder / "tokenizer.json")
    peer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    batch = ours.encode_batch(texts, threads=1)
    expected = [i for e in peer.encode_batch_fast(texts) for i in e.ids]
    assert batch.ids.tolist() == expected, "token ids differ"
    return measure(
        {
            "hornbook": lambda: ours.encode_batch(texts, threads=1),
            "tokenizers (HF)": lambda: peer.encode_batch_fast(texts),
        },
        rounds,
    )


def bench_dedup(texts: list[str], rounds: int, folder: Path) -> dict:
    """Near duplicates end to end, from a file; what ours removes must have a true duplicate."""
    path = folder / "documents"
    corpus.write(path, [{"id": str(i), "text": text} for i, text in enumerate(texts)], {})
    place = iter(range(10_000))

    def ours() -> object:
        return hb.dedup([path], folder / f"out-{next(place)}", threshold=0.7)

    engines: dict[str, Callable[[], object]] = {"hornbook": ours}
    try:
        import datasketch
    except ImportError:
        print("datasketch is not installed: pip install datasketch to compare dedup")
    else:
        word = re.compile(r"\w+")

        def peer() -> object:
            index = datasketch.MinHashLSH(threshold=0.7, num_perm=160, params=(32, 5))
            removed = 0
            for i, row in enumerate(corpus.read([path])):
                words = word.findall(row["text"].lower())
                grams = {" ".join(words[j : j + 5]).encode() for j in range(len(words) - 4)}
                sketch = datasketch.MinHash(num_perm=160)
                if grams:
                    sketch.update_batch(list(grams))
                if index.query(sketch):
                    removed += 1
                else:
                    index.insert(str(i), sketch)
            return removed

        engines["datasketch (unverified)"] = peer
    return measure(engines, rounds)


def main() -> None:
    """Runs both and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = documents(options.megabytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = table(
            "tokenizer, CodeGen vocabulary, one thread of ours",
            size,
            bench_tokenizer(texts, options.rounds, folder),
            "hornbook",
        )
        dedup = table(
            "dedup, file to file", size, bench_dedup(texts, options.rounds, folder), "hornbook"
        )
    versions: dict[str, str | None] = {"hornbook": hb.__version__}
    for package in ("tokenizers", "datasketch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    RESULTS.mkdir(exist_ok=True)
    data = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
        },
        "versions": versions,
        "megabytes": round(size, 3),
        "documents": len(texts),
        "tokenizer": tokenizer,
        "dedup": dedup,
    }
    (RESULTS / "data.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {RESULTS / 'data.json'}")


def processor() -> str:
    """The processor's name and how many of its cores are here."""
    import os

    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
