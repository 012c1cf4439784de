"""How fast are the quality filter's features, its forest, and the scoring of a folder of code?

Against scikit-learn's HashingVectorizer (word 1-2-grams) on the Python standard library, one
thread; against scikit-learn and onnxruntime on the same forest and rows, one thread, where the
scores must be scikit-learn's bit for bit; and Parquet in to Parquet out on two cores, with start-up
apart and the peak memory of that process at two sizes. Needs scikit-learn, pyarrow; onnxruntime
and skl2onnx for that row.

    python benchmarks/quality.py --out benchmarks/results/quality.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TREES, DEPTH, COLUMNS, ROWS = 100, 25, 384, 20_000


def standard_library() -> list[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts:
            try:
                texts.append(path.read_text(encoding="utf-8"))
            except (UnicodeDecodeError, OSError):
                continue
    return texts


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """CPU seconds of each, the median of rounds in which they take turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            found[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def features(texts: list[str], rounds: int) -> dict[str, Any]:
    """The hashed columns do the peer's work (tokens, 1-2-grams, hashing, normalising) with another
    hash and tokens of code; `features` adds the syntax ratios, which the peer has not."""
    from sklearn.feature_extraction.text import HashingVectorizer

    from hornbook import _core

    size = sum(len(text.encode()) for text in texts) / 1e6
    peer = HashingVectorizer(analyzer="word", ngram_range=(1, 2))
    seconds = interleaved(
        {
            "hashed": lambda: _core.hashed(texts, 256),
            "features": lambda: _core.embed(texts, 256),
            "HashingVectorizer": lambda: peer.transform(texts),
        },
        rounds,
    )
    return {
        "files": len(texts),
        "megabytes": size,
        "megabytes_per_second": {name: size / value for name, value in seconds.items()},
        "hashed_ratio": seconds["HashingVectorizer"] / seconds["hashed"],
        "features_ratio": seconds["HashingVectorizer"] / seconds["features"],
    }


def forest(rounds: int) -> dict[str, Any]:
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier

    from hornbook.quality import Forest

    rng = np.random.default_rng(0)
    made = rng.random((ROWS, COLUMNS), dtype=np.float32)
    useful = made[:, 0] + made[:, 1] * made[:, 2] + rng.normal(0, 0.3, ROWS) > 0.8
    model = RandomForestClassifier(TREES, max_depth=DEPTH, n_jobs=-1, random_state=0)
    model.fit(made, useful)
    model.n_jobs = 1
    ours = Forest.from_sklearn(model)
    rows = rng.random((ROWS, COLUMNS), dtype=np.float32)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours.inner.score(rows, False),
        "scikit-learn": lambda: model.predict_proba(rows)[:, 1],
    }
    found: dict[str, Any] = {}
    session = onnx(model)
    if session is not None:
        name = session.get_inputs()[0].name
        runs["onnxruntime"] = lambda: session.run(None, {name: rows})[1][:, 1]
        found["onnxruntime_largest_difference"] = float(
            np.abs(runs["onnxruntime"]() - runs["ours"]()).max()
        )
    identical = runs["ours"]().tobytes() == np.ascontiguousarray(runs["scikit-learn"]()).tobytes()
    if not identical:
        raise SystemExit("the scores are not scikit-learn's: no speed to report")
    seconds = interleaved(runs, rounds)
    return {
        "trees": TREES,
        "depth": DEPTH,
        "columns": COLUMNS,
        "nodes": ours.header["nodes"],
        "bit_identical_to_scikit_learn": identical,
        "rows_per_second": {name: ROWS / value for name, value in seconds.items()},
        "ratios": {
            name: value / seconds["ours"] for name, value in seconds.items() if name != "ours"
        },
        **found,
    }


def onnx(model: Any) -> Any:
    try:
        import onnxruntime
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError:
        return None
    graph = to_onnx(
        model,
        initial_types=[("rows", FloatTensorType([None, COLUMNS]))],
        options={"zipmap": False},
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def write_folder(folder: Path, texts: list[str], copies: int) -> float:
    """The library so many times over, each file told apart by its first line; megabytes of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    size = 0
    for copy in range(copies):
        marked = [f"# copy {copy}\n{text}" for text in texts]
        size += sum(len(text.encode()) for text in marked)
        table = pa.table({"text": marked, "source": ["library"] * len(marked)})
        pq.write_table(
            table, folder / f"shard-{copy:04}.parquet", compression="zstd", row_group_size=1000
        )
    return size / 1e6


SCORING = """
import json, re, sys, time
begun = time.perf_counter()
from hornbook.quality import filter_documents
inputs, out, model, threads, options = json.loads(sys.argv[1])
start, cpu = time.perf_counter(), time.process_time()
report = filter_documents([inputs], out, model=model, threads=threads, **options)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
# Not `ru_maxrss`: that also counts what the parent held when it forked this process.
peak = int(re.findall(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[0]) / 1024
print(json.dumps({"import_seconds": start - begun, "seconds": seconds, "cpu_seconds": cpu,
                  "peak_megabytes": peak, "documents": report["counts"]["in"],
                  "kept": report["counts"]["kept"],
                  "kept_text_share": report["details"]["kept_text_share"]}))
"""
RULES: dict[str, dict[str, Any]] = {"threshold": {}, "keep_tokens": {"keep_tokens": 0.17}}


def score_folder(inputs: Path, out: Path, model: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One run in a process of its own, on two threads."""
    arguments = json.dumps([str(inputs), str(out), str(model), 2, options])
    done = subprocess.run(
        [sys.executable, "-c", SCORING, arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "RAYON_NUM_THREADS": "2"},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def scoring(texts: list[str], copies: list[int], rounds: int) -> dict[str, Any]:
    """`start_up` is the same run on one file of a line: what any size pays before and after."""
    from hornbook.quality import annotate, filter_documents

    found: dict[str, Any] = {"start_up": {}, "runs": []}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_folder(root / "one", texts, 1)
        write_folder(root / "line", ["x = 1\n"], 1)
        annotate([root / "one"], root / "labels", samples=400)
        filter_documents([root / "one"], root / "first", labels=root / "labels", keep_tokens=0.17)
        model = root / "first" / "forest.bin"
        for count in copies:
            size = write_folder(root / f"in-{count}", texts, count)
            for label, options in RULES.items():
                runs = [
                    score_folder(
                        root / f"in-{count}", root / f"{count}-{label}-{turn}", model, options
                    )
                    for turn in range(rounds)
                ]
                runs.sort(key=lambda run: run["seconds"])
                middle = runs[rounds // 2]
                found["runs"].append(
                    {
                        "rule": label,
                        "megabytes": size,
                        "megabytes_per_second": size / middle["seconds"],
                        "megabytes_per_cpu_second": size / middle["cpu_seconds"],
                        **middle,
                        "peak_megabytes": max(run["peak_megabytes"] for run in runs),
                    }
                )
        for label, options in RULES.items():
            runs = [
                score_folder(root / "line", root / f"line-{label}-{turn}", model, options)
                for turn in range(rounds)
            ]
            found["start_up"][label] = {
                key: statistics.median(run[key] for run in runs)
                for key in ("import_seconds", "seconds", "cpu_seconds", "peak_megabytes")
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--copies", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    # One thread for the comparisons: read by the Rust core and by numpy when they start.
    for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    import numpy
    import sklearn

    import hornbook

    texts = standard_library()
    results: dict[str, Any] = {
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "platform": platform.platform()},
        "versions": {
            "hornbook": hornbook.__version__,
            "python": platform.python_version(),
            "numpy": numpy.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "date": time.strftime("%Y-%m-%d"),
        "features": features(texts, arguments.rounds),
        "forest": forest(arguments.rounds),
        "scoring": scoring(texts, arguments.copies, arguments.rounds),
    }
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
