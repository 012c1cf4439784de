"""Everything a report says, as one JSON object read from a run's folder."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hornbook import __version__, corpus
from hornbook.errors import HornbookError, InputError
from hornbook.evaluate.problems import read_objects
from hornbook.files import json_lines, read_json
from hornbook.manifest import MANIFEST, read_manifest
from hornbook.recipe import Recipe
from hornbook.steps import (
    HELDOUT,
    base_folder,
    data_folder,
    data_sets,
    evaluations,
    packed_from,
    plan,
    rounds,
    tuned_folder,
)

Scored = tuple[Path, str, str, str]
"""A finished evaluation: folder, arm, seed, stage."""

RESULT = ("task_id", "completion", "passed", "result")
AGAIN = "the file is damaged: remove {folder} and run the recipe again"
STAGES = ("base", "finetuned")
LOSS_POINTS = 200
"""Points kept of each loss curve."""


def collect(recipe: Recipe, root: Path) -> dict[str, Any]:
    """Gathers the report's data (all of it but the diversity of the data sets).

    Args:
        recipe: The run's recipe.
        root: The run's folder.
    """
    planned = [step.name for step in plan(recipe)]
    scored = list(evaluations(recipe, root, "heldout"))
    seeds = [_arms(recipe, scored, recipe.seed + i) for i in range(recipe.seeds)]
    study = "study/contamination"
    return {
        "schema": 1,
        "name": recipe.name,
        "description": recipe.description,
        "seed": recipe.seed,
        "levels": _levels(recipe, planned),
        "lacking": [name for name in planned if not (root / name / MANIFEST).is_file()],
        "arms": seeds[0],
        "by_seed": [{"seed": recipe.seed + i, "arms": arms} for i, arms in enumerate(seeds)],
        "benchmarks": _benchmarks(recipe, root),
        "training": _training(recipe, root, planned),
        "sources": list(recipe.source.raw) if "source" in planned else [],
        "teacher": {
            "kind": recipe.generate.teacher,
            "model": recipe.generate.model,
            "spent": _spent(root / "ledger.sqlite"),
        },
        "stages": _stages(root, planned),
        "filter": _filter(recipe, root) if "filter" in planned else {},
        "decontamination": _decontamination(recipe, root),
        "contamination": _details(root / study) if study in planned else {},
        "coverage": _coverage(recipe, root) if "textbooks" in planned else {},
        "tokens": _tokens(recipe, root),
        "loss": _losses(recipe, root, planned),
        "samples": _samples(recipe, root, scored),
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "hornbook": __version__,
        },
    }


def _levels(recipe: Recipe, planned: Sequence[str]) -> dict[str, list[int]]:
    """Levels of the procedural functions that are trained on and tested on."""
    trained: set[int] = set()
    if "pool" in planned:
        trained |= set(recipe.source.pool_levels)
    if recipe.generate.teacher == "procedural":
        for name in ("textbooks", "exercises"):
            if name in planned:
                trained |= set(getattr(recipe.generate, name).levels)
    tested = recipe.evaluate.heldout_levels if "problems" in planned else ()
    return {"trained": sorted(trained), "tested": list(tested)}


def _spent(path: Path) -> dict[str, Any] | None:
    """What a run's LLM calls came to; None without any, or while some are being made."""
    if not path.is_file():
        return None
    from hornbook.generate.ledger import read_totals

    totals = read_totals(path)
    return None if totals is None else asdict(totals)


def _manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(folder) if (folder / MANIFEST).is_file() else {}


def _details(folder: Path) -> dict[str, Any]:
    details: dict[str, Any] = _manifest(folder).get("details", {})
    return details


def _score(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    if not path.is_file():
        return None
    summary = read_json(path)
    keys = ("pass@1", "n", "stderr", "low", "high", "status", "groups")
    return {key: summary[key] for key in keys if key in summary}


def _arms(recipe: Recipe, scored: Sequence[Scored], seed: int) -> dict[str, Any]:
    arms: dict[str, Any] = {arm: {} for arm in recipe.arms}
    for folder, arm, of_seed, stage in scored:
        score = _score(folder)
        if of_seed == f"seed-{seed}" and score:
            arms[arm][stage] = score
    return arms


def _benchmarks(recipe: Recipe, root: Path) -> list[dict[str, Any]]:
    rows = []
    for name in recipe.evaluate.benchmarks:
        label = Path(name).stem
        for path, arm, seed, stage in evaluations(recipe, root, label):
            score = _score(path)
            if score:
                rows.append({"benchmark": label, "arm": arm, "seed": seed, "stage": stage, **score})
    return rows


def _training(recipe: Recipe, root: Path, planned: Sequence[str]) -> dict[str, Any]:
    def tokens(config: Any) -> int:
        steps = config.stop_step or config.steps
        return int(steps * config.batch_size * config.sequence_length)

    trained = [name for name in planned if name.startswith("train/")]
    trained = [name for name in trained if (root / name / MANIFEST).is_file()]
    done = {kind: any(name.endswith(f"/{kind}") for name in trained) for kind in STAGES}
    return {
        "parameters": _details(root / trained[0]).get("parameters") if trained else None,
        "pretrain_tokens": tokens(recipe.pretrain) if done["base"] else None,
        "finetune_tokens": tokens(recipe.finetune) if done["finetuned"] else None,
        "pretrain_steps": recipe.pretrain.stop_step or recipe.pretrain.steps,
        "finetune_steps": recipe.finetune.stop_step or recipe.finetune.steps,
        "arms": {name: arm.data for name, arm in recipe.arms.items()},
        "finetuned_arms": [name for name, arm in recipe.arms.items() if arm.finetune],
    }


def _stages(root: Path, planned: Sequence[str]) -> list[dict[str, Any]]:
    measured: dict[str, dict[str, Any]] = {}
    log = root / "log.jsonl"
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    for entry in json_lines(text, torn=True):
        # What a crash left of a line may be JSON, and no entry.
        if not isinstance(entry, dict) or entry.get("event") != "step" or entry.get("skipped"):
            continue
        if "name" in entry and "seconds" in entry:
            measured[entry["name"]] = entry
    rows = []
    for name in planned:
        manifest = _manifest(root / name)
        if not manifest or name == "report":
            continue
        counts = manifest["counts"]
        run = measured.get(name, {})
        rows.append(
            {
                "name": name,
                "seconds": run.get("seconds", manifest["seconds"]),
                "peak_mb": run.get("peak_mb"),
                "in": counts["in"],
                "kept": counts["kept"],
                "dropped": counts["dropped"],
                "rejected": counts["rejected"],
            }
        )
    return rows


def _filter(recipe: Recipe, root: Path) -> dict[str, Any]:
    """The filter's own held-out report, and what it kept of the pool whose truth is known."""
    details = _details(root / "filter")
    if not details:
        return {}
    scored = root / data_folder(recipe, "raw")
    before, sources = _values(scored, "kind", "source")
    after, kept_sources = _values(root / "filter", "kind", "source")
    truth = None
    if before.get("useful"):
        kept = sum(after.values())
        truth = {
            "precision": after["useful"] / kept if kept else None,
            "recall": after["useful"] / before["useful"],
            "kept_by_kind": dict(after),
            "files_by_kind": dict(before),
        }
    counts = _manifest(root / "filter")["counts"]
    return {
        **details,
        "in": counts["in"],
        "kept": counts["kept"],
        "pool_truth": truth,
        "kept_by_source": {name: [kept_sources[name], n] for name, n in sorted(sources.items())},
    }


def _values(folder: Path, *columns: str) -> list[Counter[str]]:
    """How often each value stands in each column, in one pass."""
    found: list[Counter[str]] = [Counter() for _ in columns]
    for batch in corpus.read([folder]).batches():
        for counter, column in zip(found, columns, strict=True):
            counter.update(value for value in batch.get(column, []) if value)
    return found


def _decontamination(recipe: Recipe, root: Path) -> list[dict[str, Any]]:
    rows = []
    for label, against in rounds(recipe).items():
        for name in data_sets(recipe):
            manifest = _manifest(root / "decontaminate" / label / name)
            if manifest:
                counts = {key: manifest["counts"][key] for key in ("in", "kept", "dropped")}
                ngram = manifest["config"]["ngram"]
                names = [Path(str(name)).stem for name in against]
                rows.append({"against": names, "ngram": ngram, "data": name, **counts})
    return rows


def _coverage(recipe: Recipe, root: Path) -> dict[str, Any]:
    if not (root / "textbooks" / MANIFEST).is_file():
        return {}
    cells: Counter[tuple[str, str]] = Counter()
    for batch in corpus.read([root / "textbooks"]).batches():
        if "topic" in batch and "audience" in batch:
            pairs = zip(batch["topic"], batch["audience"], strict=True)
            cells.update((str(topic), str(audience)) for topic, audience in pairs)
    topics = sorted({topic for topic, _ in cells})
    audiences = sorted({audience for _, audience in cells})
    counts = [[cells[topic, audience] for audience in audiences] for topic in topics]
    possible = len(topics) * len(audiences)
    if recipe.generate.teacher != "procedural":
        from hornbook.generate.curriculum import load

        # Its file may be gone since.
        with suppress(HornbookError):
            curriculum = load(recipe.generate.curriculum)
            possible = len(curriculum.topics) * len(curriculum.audiences)
    return {"topics": topics, "audiences": audiences, "sections": counts, "pairs": possible}


def _tokens(recipe: Recipe, root: Path) -> dict[str, Any]:
    rows = {}
    for name in data_sets(recipe):
        details = _details(root / "pack" / name)
        if details:
            rows[name] = {key: details[key] for key in ("documents", "tokens")}
    return rows


def _losses(recipe: Recipe, root: Path, planned: Sequence[str]) -> dict[str, Any]:
    curves: dict[str, Any] = {}
    for arm in recipe.arms:
        folders = {
            "base": base_folder(arm, recipe.seed),
            "finetuned": tuned_folder(arm, recipe.seed),
        }
        for stage, folder in folders.items():
            path = root / folder / "metrics.jsonl"
            if folder not in planned or not path.is_file():
                continue
            metrics = json_lines(path.read_text(encoding="utf-8"), torn=True)
            points = [p for p in metrics if isinstance(p, dict) and p.get("loss") is not None]
            if not points:
                continue
            every = max(1, len(points) // LOSS_POINTS)
            groups = [points[i : i + every] for i in range(0, len(points), every)]
            curves.setdefault(arm, {})[stage] = [
                [group[-1]["step"], round(sum(p["loss"] for p in group) / len(group), 4)]
                for group in groups
            ]
    return curves


def _samples(
    recipe: Recipe, root: Path, scored: Sequence[Scored], count: int = 4
) -> list[dict[str, Any]]:
    """The same held-out problems through every model, chosen by position, not by outcome."""
    problems = root / HELDOUT
    if not problems.is_file():
        return []
    rows = [row for _, row in read_objects(problems)]
    step = max(1, len(rows) // count)
    chosen = {row["task_id"]: row for row in rows[::step][:count]}
    answers: dict[str, list[dict[str, Any]]] = {task: [] for task in chosen}
    for folder, arm, seed, stage in scored:
        if seed != f"seed-{recipe.seed}" or not (folder / "results.jsonl").is_file():
            continue
        path = folder / "results.jsonl"
        for where, entry in read_objects(path):
            lacking = [key for key in RESULT if key not in entry]
            if lacking:
                raise InputError(f"{where}: no `{lacking[0]}`; {AGAIN.format(folder=folder)}")
            if entry["task_id"] in answers:
                answers[entry["task_id"]].append(
                    {
                        "arm": arm,
                        "stage": stage,
                        "completion": entry["completion"][:600],
                        "passed": bool(entry["passed"]),
                        "result": entry["result"],
                    }
                )
    return [
        {
            "task_id": task,
            "prompt": row["prompt"],
            "reference": row["canonical_solution"],
            "answers": answers[task],
        }
        for task, row in chosen.items()
    ]


def measured_diversity(recipe: Recipe, root: Path) -> dict[str, Any]:
    """The diversity of each data set that is trained on."""
    from hornbook.diversity import diversity

    folders = {name: root / packed_from(recipe, name) for name in data_sets(recipe)}
    present = {name: f for name, f in folders.items() if (f / MANIFEST).is_file()}
    return {name: dict(diversity([folder])) for name, folder in present.items()}
