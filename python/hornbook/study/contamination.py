"""The paper's split of test problems into similar and not similar to the exercises (Table 3).

A problem is similar at tau when the best AST match rate between its solution and any function of
the exercises is at least tau. Scores on both halves show what memory of the exercises explains.
Retraining on pruned exercises is not part of this first version.

    hornbook study contamination runs/demo
"""

import json
from pathlib import Path
from typing import Any

from hornbook.decontaminate import closest, sweep
from hornbook.evaluate.passk import mean_interval
from hornbook.evaluate.problems import read_objects
from hornbook.files import write_text
from hornbook.manifest import Outcome, Report, file_part, run_stage
from hornbook.recipe import Recipe
from hornbook.steps import HELDOUT, evaluations, packed_from


def split_study(recipe: Recipe, run_folder: Path) -> Report:
    """Scores each evaluated model on similar and non-similar held-out problems.

    Args:
        recipe: The run's recipe.
        run_folder: The run; its evaluation must be done.

    Returns:
        The manifest; `details.rows` has one entry for each model and threshold, `details.sweep` one
        for each threshold: similar and non-similar problems, and the exercises (`documents`) that
        pruning at it would take. All thresholds are counted in one pass over the exercises.
    """
    root = Path(run_folder).absolute()
    problems = root / HELDOUT
    exercises = root / packed_from(recipe, "exercises")
    results = list(evaluations(recipe, root, "heldout"))

    def work(folder: Path) -> Outcome:
        found = sweep([exercises], benchmarks=[problems], taus=recipe.study.thresholds, min_nodes=1)
        best = [closest(item) for item in found["problems"]]
        rates = {entry["task_id"]: entry["rate"] for entry in best}
        rows: list[dict[str, Any]] = []
        for result, arm, seed, stage in results:
            attempts: dict[str, list[bool]] = {}
            for _, entry in read_objects(result / "results.jsonl"):
                attempts.setdefault(entry["task_id"], []).append(bool(entry["passed"]))
            passed = {task: sum(found) / len(found) for task, found in attempts.items()}
            for tau in recipe.study.thresholds:
                row: dict[str, Any] = {"arm": arm, "seed": seed, "stage": stage, "tau": tau}
                for half in ("similar", "non-similar"):
                    wanted = half == "similar"
                    chosen = [
                        share for task, share in passed.items() if (rates[task] >= tau) == wanted
                    ]
                    row[half] = {"n": len(chosen), "pass@1": None}
                    if chosen:
                        row[half]["pass@1"], row[half]["stderr"], *_ = mean_interval(chosen)
                rows.append(row)
        text = "".join(json.dumps(entry) + "\n" for entry in best)
        write_text(folder / "similarity.json", text)
        return Outcome(
            parts=[file_part(folder, "similarity.json", len(best))],
            rows_in=len(best),
            kept=len(best),
            details={
                "rows": rows,
                "mean_rate": sum(rates.values()) / max(len(rates), 1),
                "exercises": found["documents"],
                "sweep": found["rows"],
            },
        )

    inputs = [problems, exercises, *(folder for folder, *_ in results)]
    config = {"thresholds": recipe.study.thresholds}
    out = root / "study" / "contamination"
    return run_stage("study contamination", out, inputs=inputs, config=config, work=work)
