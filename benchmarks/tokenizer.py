"""How fast does the tokenizer encode beside every exact peer that is installed?

List of str in, numpy out. Peers: gigatoken, splintr-rs, fastokens, HF tokenizers (and its 1.0
release candidate, from a folder of its own: `pip install --no-deps --target DIR
tokenizers==1.0.0rc3`), tiktoken (GPT-2 only). Every measurement is a fresh process with one
tokenizer; engines take turns, `--rounds` times. "Cold" is the first pass of a new tokenizer (making
it is not counted), "warm" the fourth over the same text: where threads keep what each has seen, one
pass shows a thread half of it. CPU seconds are those of the process
and all its threads. Ids are compared with HF 0.23's on `--megabytes-slow` before anything is
printed; an engine that differs is named and left out of the ratios.

    python benchmarks/tokenizer.py --packages /path/to/site-packages --tokenizers-1 DIR
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "tokenizer.json"
ENGINES = (
    "hornbook",
    "gigatoken",
    "splintr",
    "fastokens",
    "tokenizers-1",
    "tokenizers",
    "tiktoken",
)
SLOW = ("tokenizers", "tiktoken")
SCALING_SECONDS = 3
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def documents(megabytes: float, packages: list[Path]) -> list[str]:
    """Distinct Python files of the standard library and of packages, in order of their names."""
    texts: dict[str, None] = {}
    size = 0
    library = Path(sysconfig.get_paths()["stdlib"])
    for root in [library, *packages]:
        for path in sorted(root.rglob("*.py")):
            if root == library and "site-packages" in path.parts:
                continue
            text = path.read_bytes().decode("utf-8", errors="ignore").replace("\0", "")
            if text not in texts:
                texts[text] = None
                size += len(text.encode())
            if size >= megabytes * 1e6:
                return list(texts)
    return list(texts)


def pathological() -> dict[str, list[str]]:
    """One text of a million bytes each, which some tokenizer has been known to choke on."""
    import random

    rng = random.Random(0)
    planes = [*range(0x20, 0xD800), *range(0xE000, 0x30000)]
    script = "!function(e,t){for(var n=0;n<e.length;n++)t[n]=e[n]||{};return t.exports=e}(this,0);"
    names = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 9))) for _ in range(500)
    ]
    minified = "".join(rng.choice(names) + rng.choice("()[]{};,.=+!?:") for _ in range(200_000))
    return {
        "one letter": ["a" * 1_000_000],
        "carets": ["^" * 1_000_000],
        "spaces": [" " * 1_000_000],
        "newlines": ["\n" * 1_000_000],
        "space and tab": [" \t" * 500_000],
        "emoji": ["🙂" * 250_000],
        "random letters": ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000))],
        "random digits": ["".join(rng.choices("0123456789", k=1_000_000))],
        "random base64": [
            "".join(rng.choices("ABCDEFGHabcdefghijklmnopqrstuvwxyz0123456789+/", k=1_000_000))
        ],
        "random CJK": ["".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(333_333))],
        "random Unicode": ["".join(map(chr, rng.choices(planes, k=333_333)))],
        "minified JS": [(script * 20 + minified)[:1_000_000]],
    }


def engine(name: str, vocabulary: Path, threads: int) -> Callable[[list[str]], Any]:
    """A new tokenizer's encoding of a list; `flat` makes its result one array of ids."""
    if name == "hornbook":
        import hornbook as hb

        ours = hb.Tokenizer.from_file(vocabulary)
        return lambda texts: ours.encode_batch(texts, threads=threads)
    if name == "gigatoken":
        import gigatoken

        giga = gigatoken.Tokenizer(vocabulary)
        return lambda texts: giga.encode_batch(texts, parallel=threads > 1)
    if name == "splintr":
        import splintr

        splint = splintr.from_json(str(vocabulary))
        return lambda texts: splint.encode_batch_flat(texts)
    if name == "fastokens":
        import fastokens

        fast = fastokens.Tokenizer.from_file(str(vocabulary))
        return lambda texts: fast.encode_batch_flat(texts)
    if name in ("tokenizers", "tokenizers-1"):
        import tokenizers

        hf = tokenizers.Tokenizer.from_file(str(vocabulary))
        batch = getattr(hf, "encode_batch_fast", hf.encode_batch)
        return lambda texts: batch(texts, add_special_tokens=False)
    if name == "tiktoken":
        import tiktoken

        import hornbook as hb

        ours = hb.Tokenizer.from_file(vocabulary)
        ranks = {ours.decode_bytes([i]): i for i in range(50_256)}
        special = {hb.tokenizer.END_OF_TEXT: 50_256}
        tik = tiktoken.Encoding(
            "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
        return lambda texts: tik.encode_batch(texts, num_threads=threads, allowed_special="all")
    raise SystemExit(f"{name}: one of {', '.join(ENGINES)}")


def flat(result: Any) -> Any:
    """Any engine's result as one array of uint32."""
    import numpy as np

    if hasattr(result, "offsets"):
        return result.ids.astype(np.uint32)
    if type(result).__module__.startswith("awkward"):
        import awkward

        return awkward.to_numpy(awkward.flatten(result)).astype(np.uint32)
    if isinstance(result, tuple):
        first = result[0]
        raw = isinstance(first, bytes | bytearray)
        return np.frombuffer(first, np.uint32) if raw else np.asarray(first, np.uint32)
    rows = [getattr(row, "ids", row) for row in result]
    return np.concatenate([np.asarray(row, dtype=np.uint32) for row in rows])


def work(name: str, vocabulary: Path, corpus: Path, threads: int, check: bool) -> None:
    """One measurement, in this process; prints JSON."""
    texts = corpus.read_bytes().decode().split("\0")
    encode = engine(name, vocabulary, threads)
    resident = peak_mb(reset=True)
    times = {}
    for phase in ("cold", "second", "third", "warm"):
        wall, cpu = time.perf_counter(), time.process_time()
        result = encode(texts)
        times[f"{phase}_cpu"] = time.process_time() - cpu
        times[f"{phase}_wall"] = time.perf_counter() - wall
        if check:
            ids = flat(result)
            break
        del result
    line: dict[str, Any] = {**times, "peak_growth_mb": round(peak_mb() - resident, 1)}
    if check:
        line |= {"tokens": len(ids), "sha256": hashlib.sha256(ids.tobytes()).hexdigest()[:16]}
    print(json.dumps(line))


def repeat(name: str, vocabulary: Path, corpus: Path, threads: int, start: float) -> None:
    """Encodes again and again for some seconds from `start` on; prints the seconds a pass takes."""
    texts = corpus.read_bytes().decode().split("\0")
    encode = engine(name, vocabulary, threads)
    for _ in range(4):
        encode(texts)
    if time.time() > start:
        raise SystemExit("not ready in time to work beside the other: give a later start")
    time.sleep(start - time.time())
    begun, passes = time.perf_counter(), 0
    while time.perf_counter() - begun < SCALING_SECONDS:
        encode(texts)
        passes += 1
    print((time.perf_counter() - begun) / passes)


def scaling(job: dict[str, Any], megabytes: float, rounds: int) -> dict[str, Any]:
    """How much faster two threads are than one, and what this machine has to give: two processes
    side by side, which share nothing."""

    def run(threads: list[int]) -> float:
        start = time.time() + 5 + megabytes / 40
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        commands = [
            {**job, "name": "hornbook", "threads": count, "start": start} for count in threads
        ]
        running = [
            subprocess.Popen(
                [sys.executable, __file__, "--work", json.dumps(command)],
                env=environment, stdout=subprocess.PIPE, text=True,
            )
            for command in commands
        ]  # fmt: skip
        passes = [float(process.communicate()[0]) for process in running]
        return megabytes * sum(1 / seconds for seconds in passes)

    rows: dict[str, list[float]] = {"one thread": [], "two threads": [], "two processes": []}
    for _ in range(rounds):
        for row, threads in zip(rows.values(), ([1], [2], [1, 1]), strict=True):
            row.append(round(run(threads), 1))
    one, two, processes = (median(row) for row in rows.values())
    print(f"  two threads over one: {two / one:.2f}; two processes: {processes / one:.2f}")
    return {
        "megabytes": megabytes,
        "wall_mb_per_second": rows,
        "two_threads_over_one": round(two / one, 2),
        "two_processes_over_one": round(processes / one, 2),
    }


def peak_mb(reset: bool = False) -> float:
    """Peak resident memory in MB since the last reset; 0 where the system does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def measure(name: str, options: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any] | None:
    """One measurement in a fresh process; `None` (and a line that says why) if it fails."""
    environment = dict(os.environ)
    environment |= {"RAYON_NUM_THREADS": str(job["threads"]), "OPENBLAS_NUM_THREADS": "1"}
    environment["TOKENIZERS_PARALLELISM"] = "true" if job["threads"] > 1 else "false"
    if name == "tokenizers-1":
        environment["PYTHONPATH"] = f"{options.tokenizers_1}:{environment.get('PYTHONPATH', '')}"
    command = [sys.executable, __file__, "--work", json.dumps({**job, "name": name})]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=options.timeout
        )
    except subprocess.TimeoutExpired:
        print(f"  {name}: over {options.timeout} s")
        return None
    if done.returncode:
        print(f"  {name}: {done.stderr.strip().splitlines()[-1]}")
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def series(
    title: str,
    options: argparse.Namespace,
    names: list[str],
    job: dict[str, Any],
    megabytes: float,
    rounds: int,
) -> dict[str, Any]:
    """All rounds of one table: medians, and ratios to ours within each round."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found = measure(name, options, job)
            if found is not None:
                runs[name].append(found)
    print(f"\n{title} ({megabytes:.1f} MB, {job['threads']} threads)")
    rows: dict[str, Any] = {}
    for name, done in runs.items():
        if not done:
            continue
        row: dict[str, Any] = {"peak_growth_mb": max(run["peak_growth_mb"] for run in done)}
        for phase in ("cold", "warm"):
            for kind in ("cpu", "wall"):
                key = f"{phase}_{kind}"
                seconds = [run[key] for run in done]
                row[f"{key}_seconds"] = [round(s, 4) for s in seconds]
                row[f"{key}_mb_per_second"] = round(megabytes / median(seconds), 2)
                pairs = zip(runs["hornbook"], done, strict=False)
                ratio = median(run[key] / own[key] for own, run in pairs)
                row[f"{key}_ours_is_faster_by"] = round(ratio, 2)
        rows[name] = row
        print(
            "  {:<14} cold {:7.1f}, warm {:7.1f} MB/CPU-s; ours is faster by {:6.2f}, {:6.2f}; "
            "wall {:7.1f}, {:7.1f} MB/s; {:+.0f} MB".format(
                name,
                row["cold_cpu_mb_per_second"],
                row["warm_cpu_mb_per_second"],
                row["cold_cpu_ours_is_faster_by"],
                row["warm_cpu_ours_is_faster_by"],
                row["cold_wall_mb_per_second"],
                row["warm_wall_mb_per_second"],
                row["peak_growth_mb"],
            )
        )
    return rows


def main() -> None:
    """Runs every series that was asked for and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=200, help="for the fast engines")
    parser.add_argument("--megabytes-slow", type=float, default=20, help="for all engines")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--packages", type=Path, nargs="*", default=[Path(sysconfig.get_paths()["purelib"])]
    )
    parser.add_argument("--tokenizers-1", type=Path, help="folder of HF tokenizers 1.0")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES))
    parser.add_argument("--series", nargs="*", default=["all", "large", "scaling", "pathological"])
    parser.add_argument("--vocabularies", nargs="*", default=["codegen", "gpt2"])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--timeout", type=float, default=120)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        job = json.loads(options.work)
        paths = Path(job["vocabulary"]), Path(job["corpus"])
        if "start" in job:
            repeat(job["name"], *paths, job["threads"], job["start"])
        else:
            work(job["name"], *paths, job["threads"], job["check"])
        return

    import hornbook as hb

    names = [n for n in options.engines if n != "tokenizers-1" or options.tokenizers_1]
    data: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        vocabularies = {}
        for name, tokenizer in (("codegen", hb.Tokenizer.codegen()), ("gpt2", hb.Tokenizer.gpt2())):
            vocabularies[name] = Path(folder) / f"{name}.json"
            tokenizer.save(vocabularies[name])
        corpora = {}
        for size in {options.megabytes, options.megabytes_slow}:
            corpora[size] = Path(folder) / f"{size}.txt"
            corpora[size].write_bytes("\0".join(documents(size, options.packages)).encode())
        for vocabulary in options.vocabularies:
            path = vocabularies[vocabulary]
            job: dict[str, Any] = {"vocabulary": str(path), "threads": 1, "check": True}
            job["corpus"] = str(corpora[options.megabytes_slow])
            able = [n for n in names if n != "tiktoken" or vocabulary == "gpt2"]
            checked = {name: measure(name, options, job) for name in able}
            sums = {name: found["sha256"] for name, found in checked.items() if found}
            wanted = sums.get("tokenizers", sums["hornbook"])
            data[f"{vocabulary}, ids"] = {
                name: "equal" if found == wanted else "DIFFERENT" for name, found in sums.items()
            }
            print(f"\n{vocabulary}, ids: {data[f'{vocabulary}, ids']}")
            exact = [name for name in able if sums.get(name) == wanted]
            job["check"] = False
            for threads in options.threads:
                for which, size in (("all", options.megabytes_slow), ("large", options.megabytes)):
                    if which not in options.series:
                        continue
                    chosen = exact if which == "all" else [n for n in exact if n not in SLOW]
                    job |= {"corpus": str(corpora[size]), "threads": threads}
                    title = f"{vocabulary}, {which}"
                    megabytes = corpora[size].stat().st_size / 1e6
                    rows = series(title, options, chosen, job, megabytes, options.rounds)
                    data[f"{title}, {threads} threads"] = {"megabytes": megabytes, "engines": rows}
            if "scaling" in options.series:
                job["corpus"] = str(corpora[options.megabytes])
                megabytes = corpora[options.megabytes].stat().st_size / 1e6
                print(f"\n{vocabulary}, scaling ({megabytes:.1f} MB, warm)")
                data[f"{vocabulary}, scaling"] = scaling(job, megabytes, options.rounds)
            if "pathological" in options.series:
                for title, texts in pathological().items():
                    corpus = Path(folder) / "pathological.txt"
                    corpus.write_bytes("\0".join(texts).encode())
                    job |= {"corpus": str(corpus), "threads": 1}
                    megabytes = corpus.stat().st_size / 1e6
                    rows = series(
                        f"{vocabulary}, {title}", options, exact, job, megabytes, options.rounds
                    )
                    data[f"{vocabulary}, pathological: {title}"] = {"engines": rows}
    write(data, options)


def write(data: dict[str, Any], options: argparse.Namespace) -> None:
    """Adds what was measured to the results file."""
    sys.path.insert(0, str(Path(__file__).parent))
    from data import processor

    import hornbook as hb

    versions: dict[str, str | None] = {"hornbook": hb.__version__}
    for package in ("gigatoken", "splintr-rs", "fastokens", "tokenizers", "tiktoken", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    if options.tokenizers_1:
        found = next(options.tokenizers_1.glob("tokenizers-*.dist-info"), None)
        versions["tokenizers-1"] = found.name.split("-")[1].removesuffix(".dist") if found else None
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    tokenizer = hb.Tokenizer.gpt2()
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "system": f"{os.uname().sysname} {os.uname().machine}",
            "processor": processor(),
            "instructions": tokenizer.instructions,
        },
        "versions": versions,
        "series": {**old.get("series", {}), **data},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {RESULTS}")


if __name__ == "__main__":
    main()
