"""Runs the probes on several models side by side: `hornbook evaluate probes`.

Every model gets a folder with an evaluation for each kind of perturbation, each resumable by
itself; `probes.json` compares them. Nothing is run twice: a kind is scored on the problems that it
changes, and compared with the same problems as they are.

    hornbook evaluate probes --model base=runs/a/base/final --model tuned=runs/a/final --out probes/
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hornbook.errors import ConfigError
from hornbook.evaluate import probes
from hornbook.evaluate.journal import append_lines, read_journal
from hornbook.evaluate.models import Model
from hornbook.evaluate.problems import Problem, ProblemSet, read_rows
from hornbook.evaluate.run import RESULTS, SAMPLES, evaluate
from hornbook.files import StrPath, hash_json, write_text
from hornbook.manifest import Report

PROBES = "probes.json"
_LABEL = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def run_probes(
    models: Mapping[str, Model],
    out: StrPath,
    *,
    problems: ProblemSet,
    kinds: Sequence[str] = tuple(probes.KINDS),
    seed: int = 0,
    training: Iterable[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Report:
    """Probes models and compares them.

    Args:
        models: Label -> model, such as base, small and finetuned.
        out: The folder to write.
        problems: What is reworded, in HumanEval's form.
        kinds: Of `probes.KINDS`.
        seed: Of the perturbations.
        training: Texts of the training set, for the histogram of imports.
        progress: Called with (graded, all) in each evaluation.
        options: `timeout_s`, `memory_mb`, `workers`, `accept_unsafe`.

    Returns:
        `robustness` (label -> kind -> n, before, after, change, low, high), `items` (label ->
        counting and spatial), `side_by_side`, `imports`, and what the figures depend on.

    Raises:
        ConfigError: If a kind is unknown or a label cannot name a folder.
    """
    unknown = [kind for kind in kinds if kind not in probes.KINDS]
    if unknown:
        raise ConfigError(f"no perturbation `{unknown[0]}`: use {', '.join(probes.KINDS)}")
    if not models or any(set(label) - _LABEL or label[0] == "." for label in models):
        raise ConfigError("give each model a label of letters, digits, `-`, `_` and dots")
    root = Path(out)
    changed: dict[str, dict[str, Problem]] = {}
    for kind in kinds:
        pairs = ((one.task_id, probes.perturb(one, kind, seed=seed)) for one in problems)
        changed[kind] = {name: other for name, other in pairs if other is not None}
    report: dict[str, Any] = {
        "problems": problems.name,
        "problems_sha256": problems.sha256,
        "seed": seed,
        "kinds": {kind: probes.KINDS[kind] for kind in kinds},
        "models": {label: model.model_id for label, model in models.items()},
        "robustness": {},
        "items": {},
    }
    items = [*probes.counting_items(), *probes.spatial_items()]
    for label, model in models.items():

        def scored(
            some: Sequence[Problem], name: str, label: str = label, model: Model = model
        ) -> dict[str, list[bool]]:
            evaluate(
                replace(
                    problems,
                    name=name,
                    problems=tuple(some),
                    path=None,
                    sha256=hash_json(list(some)),
                ),
                model,
                root / label / name,
                progress=progress,
                **options,
            )
            return _passed(root / label / name / RESULTS)

        plain = scored(list(problems), "original")
        report["robustness"][label] = {}
        for kind in kinds:
            after = scored(list(changed[kind].values()), kind) if changed[kind] else {}
            names = list(changed[kind])
            report["robustness"][label][kind] = probes.change(
                [plain[name][0] for name in names], [after[name][0] for name in names]
            )
        answered = scored(items, "items")
        groups = {
            group: [i for i in items if i.group == group] for group in ("counting", "spatial")
        }
        report["items"][label] = {
            group: {
                "n": len(members),
                "passed": sum(answered[one.task_id][0] for one in members),
                "failed": [one.task_id for one in members if not answered[one.task_id][0]],
            }
            for group, members in groups.items()
        }
    report["side_by_side"] = _side_by_side(models, root)
    texts = [
        row["completion"]
        for label in models
        for _, row in read_rows(root / label / "original" / SAMPLES)
    ]
    asked = [text for one in report["side_by_side"] for text in one["answers"].values()]
    report["imports"] = probes.import_table(training or (), texts + asked)
    write_text(root / PROBES, json.dumps(report, indent=1) + "\n")
    return Report(report)


def _passed(path: Path) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for _, row in read_rows(path):
        found.setdefault(row["task_id"], []).append(row["passed"])
    return found


def _side_by_side(models: Mapping[str, Model], root: Path) -> list[dict[str, Any]]:
    asked = probes.side_by_side_problems()
    answers: dict[str, list[str]] = {}
    for label, model in models.items():
        identity = hash_json([model.model_id, dict(model.settings), [p.prompt for p in asked]])
        journal = root / label / "side_by_side.jsonl"
        stored = read_journal(journal)
        if not stored or stored[0].get("of") != identity or len(stored) != len(asked) + 1:
            journal.unlink(missing_ok=True)
            drawn = model.draw([(problem, 0) for problem in asked], range(len(asked)))
            append_lines(journal, [{"of": identity}, *({"answer": text} for text in drawn)])
            stored = read_journal(journal)
        answers[label] = [row["answer"] for row in stored[1:]]
    return [
        {
            "kind": problem.group,
            "prompt": problem.prompt,
            "answers": {label: answers[label][place] for label in models},
        }
        for place, problem in enumerate(asked)
    ]
