"""Measuring what a model learned: problems, a sandbox for its code, pass@k.

Importing this loads nothing else; names below are imported when first used.

    from hornbook.evaluate import run_programs, pass_at_k, evaluate
"""

from typing import TYPE_CHECKING

from hornbook._lazy import load_lazily

_HOMES = {
    "Outcome": "sandbox",
    "Problem": "problems",
    "ProblemSet": "problems",
    "evaluate": "run",
    "evaluate_model": "run",
    "load_problems": "problems",
    "mean_interval": "passk",
    "pass_at_k": "passk",
    "run_programs": "sandbox",
    "status": "sandbox",
}

__all__ = [
    "Outcome",
    "Problem",
    "ProblemSet",
    "evaluate",
    "evaluate_model",
    "load_problems",
    "mean_interval",
    "pass_at_k",
    "run_programs",
    "status",
]

if TYPE_CHECKING:
    from hornbook.evaluate.passk import mean_interval, pass_at_k
    from hornbook.evaluate.problems import Problem, ProblemSet, load_problems
    from hornbook.evaluate.run import evaluate, evaluate_model
    from hornbook.evaluate.sandbox import Outcome, run_programs, status

load_lazily(__name__, _HOMES)
