"""How fast do files become packed tokens, and texts a vocabulary, beside HF and datatrove?

Files: Python sources as JSON lines and as Parquet into files of 16-bit tokens, each document ended
by the end token, in order. HF tokenizers: rows read by `json` or pyarrow, `encode_batch_fast` of
1,000 documents, `numpy.tofile`. datatrove: its reader and `DocumentTokenizer`, not shuffled.
Training: `BpeTrainer` with ByteLevel. Every measurement is a fresh process on one thread (imports
and opening the vocabulary are not counted); the tokens, and the merges, are checked to be equal.

    python benchmarks/tokenizer_files.py --peers /path/to/python
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "tokenizer_files.json"
END_OF_TEXT = "<|endoftext|>"
BATCH = 1000
TRAININGS = {"4,096 tokens on 12 MB": (12, 4096), "50,257 tokens on 200 MB": (200, 50_257)}


def texts_of(path: Path) -> Iterator[list[str]]:
    """A file's texts, a batch at a time, the way a script would read them."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=["text"]):
            yield batch.column(0).to_pylist()
        return
    texts = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            if len(texts) == BATCH:
                yield texts
                texts = []
    yield texts


def packs(engine: str, source: Path, vocabulary: Path, out: Path) -> Callable[[], object]:
    """An engine's work from a file to a folder of tokens."""
    if engine == "hornbook":
        import hornbook as hb

        ours = hb.Tokenizer.from_file(vocabulary)
        return lambda: hb.pack([source], out, tokenizer=ours, threads=1)
    if engine == "datatrove":
        from datatrove.executor import LocalPipelineExecutor
        from datatrove.pipeline.readers import JsonlReader, ParquetReader
        from datatrove.pipeline.tokens import DocumentTokenizer

        reader = ParquetReader if source.suffix == ".parquet" else JsonlReader
        read = reader(str(source.parent), glob_pattern=source.name)
        write = DocumentTokenizer(
            str(out), str(vocabulary), eos_token=END_OF_TEXT, shuffle_documents=False
        )
        logs = str(out.parent / "logs")
        return LocalPipelineExecutor([read, write], logging_dir=logs, skip_completed=False).run
    import numpy as np
    import tokenizers

    hf = tokenizers.Tokenizer.from_file(str(vocabulary))
    end = hf.token_to_id(END_OF_TEXT)

    def run() -> None:
        out.mkdir()
        with (out / "tokens.bin").open("wb") as file:
            for texts in texts_of(source):
                for row in hf.encode_batch_fast(texts, add_special_tokens=False):
                    np.array([*row.ids, end], dtype=np.uint16).tofile(file)

    return run


def trains(engine: str, texts: list[str], size: int) -> Callable[[], str]:
    """An engine's training; its result is the text of a `tokenizer.json`."""
    if engine == "hornbook":
        import hornbook as hb

        return lambda: hb.Tokenizer.train(texts, vocab_size=size).to_json()
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def run() -> str:
        hf = Tokenizer(models.BPE())
        hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[END_OF_TEXT],
            show_progress=False,
        )
        hf.train_from_iterator(texts, trainer)
        return hf.to_str()

    return run


def work(job: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in this process."""
    source = Path(job["source"])
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        out = Path(folder) / "out"
        if "size" in job:
            run = trains(job["engine"], source.read_bytes().decode().split("\0"), job["size"])
        else:
            run = packs(job["engine"], source, Path(job["vocabulary"]), out)
        wall, cpu = time.perf_counter(), cpu_seconds()
        result = run()
        times = {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}
        digest = hashlib.sha256()
        if "size" in job:
            digest.update(json.dumps(json.loads(str(result))["model"]["merges"]).encode())
        else:
            tokens = [*sorted(out.glob("*.bin")), *sorted(out.glob("*_*.ds"))]
            for path in tokens:
                digest.update(path.read_bytes())
    return {**times, "sha256": digest.hexdigest()[:16]}


def cpu_seconds() -> float:
    """Of this process, its threads and its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(job: dict[str, Any], python: str) -> dict[str, Any] | None:
    """One measurement in a fresh process; `None` (and a line that says why) if it fails."""
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [python, __file__, "--work", json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"  {job['engine']} is left out: {done.stderr.strip().splitlines()[-1]}")
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def series(title: str, job: dict[str, Any], engines: dict[str, str], rounds: int) -> dict[str, Any]:
    """All rounds of one table; medians, and ratios to ours within each round."""
    megabytes = Path(job["bytes"] if "bytes" in job else job["source"]).stat().st_size / 1e6
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine, python in engines.items():
            found = measure({**job, "engine": engine}, python)
            if found is not None:
                runs[engine].append(found)
    print(f"\n{title} ({megabytes:.1f} MB, one thread)")
    rows: dict[str, Any] = {"megabytes": round(megabytes, 3), "engines": {}}
    own = runs["hornbook"]
    for engine, done in runs.items():
        if not done:
            continue
        if {run["sha256"] for run in done} != {own[0]["sha256"]}:
            print(f"  {engine}: ANOTHER RESULT, not compared")
            continue
        row: dict[str, Any] = {}
        for kind in ("cpu", "wall"):
            seconds = [run[kind] for run in done]
            row[f"{kind}_seconds"] = [round(value, 3) for value in seconds]
            row[f"mb_per_{kind}_second"] = round(megabytes / median(seconds), 2)
            pairs = zip(own, done, strict=False)
            row[f"{kind}_ours_is_faster_by"] = round(
                median(theirs[kind] / ours[kind] for ours, theirs in pairs), 2
            )
        rows["engines"][engine] = row
        print(
            "  {:<11} {:8.2f} MB/CPU-s, {:8.2f} MB/s; ours is faster by {:6.2f}, {:6.2f}".format(
                engine,
                row["mb_per_cpu_second"],
                row["mb_per_wall_second"],
                row["cpu_ours_is_faster_by"],
                row["wall_ours_is_faster_by"],
            )
        )
    return rows


def main() -> None:
    """Runs every series and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=200, help="of the files to be packed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--packages", type=Path, nargs="*", default=[Path(sysconfig.get_paths()["purelib"])]
    )
    parser.add_argument("--peers", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--only", choices=["files", "train"], help="one half")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(json.loads(options.work))))
        return

    import pyarrow as pa
    import pyarrow.parquet as pq

    import hornbook as hb

    sys.path.insert(0, str(Path(__file__).parent))
    from data import processor
    from tokenizer import documents

    peers = dict.fromkeys(("tokenizers", "datatrove"), options.peers)
    data: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only != "train":
            vocabulary = folder / "tokenizer.json"
            hb.Tokenizer.codegen().save(vocabulary)
            # Peers read the end token in a text as the end of a document; datatrove leaves out
            # empty ones.
            found = documents(options.megabytes, options.packages)
            texts = [text for text in found if text and END_OF_TEXT not in text]
            ids = [str(number) for number in range(len(texts))]
            lines = folder / "texts.jsonl"
            rows = ({"id": id, "text": text} for id, text in zip(ids, texts, strict=True))
            lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            pq.write_table(pa.table({"id": ids, "text": texts}), folder / "texts.parquet")
            for source in (lines, folder / "texts.parquet"):
                # Rates are of the same bytes, those of the JSON lines.
                job = {"source": str(source), "vocabulary": str(vocabulary), "bytes": str(lines)}
                title = f"{source.suffix[1:]} to packed tokens"
                data[title] = series(
                    title, job, {"hornbook": sys.executable, **peers}, options.rounds
                )
        if options.only != "files":
            for title, (megabytes, size) in TRAININGS.items():
                corpus = folder / "train.txt"
                corpus.write_bytes("\0".join(documents(megabytes, options.packages)).encode())
                job = {"source": str(corpus), "size": size}
                engines = {"hornbook": sys.executable, "tokenizers": options.peers}
                data[f"train: {title}"] = series(f"train: {title}", job, engines, options.rounds)
    command = "from importlib.metadata import version as v; print(v('tokenizers'), v('datatrove'))"
    found = subprocess.run([options.peers, "-c", command], capture_output=True, text=True)
    versions = dict(zip(peers, found.stdout.split(), strict=False))
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "system": f"{os.uname().sysname} {os.uname().machine}",
            "processor": processor(),
            "instructions": hb.Tokenizer.codegen().instructions,
        },
        "versions": {"hornbook": hb.__version__, **versions},
        "series": {**old.get("series", {}), **data},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {RESULTS}")


if __name__ == "__main__":
    main()
