"""The recipe as steps: what stands on what, what is done already, and running the rest.

Each step is a stage with a folder of its own and runs in a process of its own, so that its memory
is measured, its end frees it, and a crash in it is only its crash. Steps that train or evaluate run
side by side (`jobs`), all others one at a time. A step whose result is there is skipped; a run that
was killed goes on where it was.

    hornbook run demo --dry-run
"""

import json
import multiprocessing
import os
import queue
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hornbook import progress
from hornbook.errors import ConfigError, HornbookError, StorageError
from hornbook.manifest import Report, read_json, write_text
from hornbook.recipe import Recipe, from_dict

HELDOUT = "problems/problems.jsonl"
"""The held-out problems, in a run's folder."""

Work = Callable[[Recipe, Path], Report]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a run."""

    name: str
    """Also its folder, under the run's."""
    needs: tuple[str, ...]
    """Steps whose folders it reads."""
    work: Work
    """`(recipe, run's folder) -> report`; does nothing where its result is there."""
    alone: bool = True
    """Uses every core, so nothing runs beside it."""


# How each step is done. A step's work imports what it needs, so that planning stays light.


def _pool(recipe: Recipe, root: Path) -> Report:
    from hornbook.generate import pool

    return pool(root / "pool", files=recipe.source.pool_files, seed=recipe.seed)


def _source(recipe: Recipe, root: Path) -> Report:
    from hornbook.source import gather

    return gather(root / "source", recipe.source, seed=recipe.seed, pool=root / "pool")


def _problems(recipe: Recipe, root: Path) -> Report:
    from hornbook.generate import heldout

    config = recipe.evaluate
    return heldout(
        root / "problems",
        count=config.heldout,
        levels=config.heldout_levels,
        split=config.heldout_split,
        seed=recipe.seed,
    )


def _dedup(recipe: Recipe, root: Path) -> Report:
    from hornbook.dedup import dedup

    return dedup([root / "source"], root / "dedup", **asdict(recipe.dedup))


def _clean(recipe: Recipe) -> str:
    """The folder of the pool after deduplication, which may be left out."""
    return "source" if "dedup" in recipe.skip else "dedup"


def _annotate(recipe: Recipe, root: Path) -> Report:
    from hornbook.quality.annotate import annotate

    config = recipe.annotate
    annotator: Any = "rubric"
    if config.annotator == "openai":
        from functools import partial

        from hornbook.generate.client import complete_all
        from hornbook.generate.llm import annotator as llm_annotator

        options = _teacher(recipe, root, config.model)
        annotator = llm_annotator(partial(complete_all, **options), model=options["model"])
    return annotate(
        [root / _clean(recipe)],
        root / "annotate",
        samples=config.samples,
        annotator=annotator,
        seed=recipe.seed,
    )


def _filter(recipe: Recipe, root: Path) -> Report:
    from hornbook.quality.filter import filter_documents

    return filter_documents(
        [root / _clean(recipe)],
        root / "filter",
        labels=root / "annotate",
        **{**asdict(recipe.filter), "seed": recipe.seed},
    )


def _teacher(recipe: Recipe, root: Path, model: str = "") -> dict[str, Any]:
    """How to ask the LLM; all calls of a run share one ledger, and so one budget."""
    config = recipe.generate
    model = model or config.model
    if not model:
        raise ConfigError("no teacher: --set generate.model=NAME (and generate.base_url if local)")
    prices = None
    if config.price_in is not None and config.price_out is not None:
        prices = {model: (config.price_in, config.price_out)}
    return {
        "model": model,
        "base_url": config.base_url or None,
        "api_key_env": config.api_key_env,
        "concurrency": config.concurrency,
        "budget_usd": config.budget_usd,
        "budget_tokens": config.budget_tokens,
        "prices": prices,
        "ledger": root / "ledger.sqlite",
    }


def _from_llm(kind: Any, count: int, recipe: Recipe, root: Path) -> Report:
    from hornbook.evaluate import run_programs
    from hornbook.generate.llm import generate_llm

    options = _teacher(recipe, root)
    return generate_llm(
        kind, root / kind, count=count, seed=recipe.seed, verify=run_programs, **options
    )


def _textbooks(recipe: Recipe, root: Path) -> Report:
    options = recipe.generate.textbooks
    if recipe.generate.teacher == "openai":
        return _from_llm("textbooks", options.sections, recipe, root)
    from hornbook.generate import textbooks

    return textbooks(
        root / "textbooks",
        characters=options.characters,
        levels=options.levels,
        seed=recipe.seed,
    )


def _exercises(recipe: Recipe, root: Path) -> Report:
    options = recipe.generate.exercises
    if recipe.generate.teacher == "openai":
        return _from_llm("exercises", options.count, recipe, root)
    from hornbook.generate import exercises

    return exercises(
        root / "exercises", count=options.count, levels=options.levels, seed=recipe.seed
    )


def data_folder(recipe: Recipe, name: str) -> str:
    """Where a data set stands before decontamination."""
    return {"raw": _clean(recipe), "filtered": "filter"}.get(name, name)


def packed_from(recipe: Recipe, name: str) -> str:
    """Where a data set stands when it is packed."""
    skipped = "decontaminate" in recipe.skip
    return data_folder(recipe, name) if skipped else f"decontaminate/{name}"


def benchmarks(recipe: Recipe, root: Path) -> list[str]:
    """What to decontaminate against: the held-out problems, and public sets that are there."""
    config = recipe.decontaminate
    found = [*config.benchmarks]
    if os.environ.get("HORNBOOK_DATA"):
        found += [name for name in config.if_present if name not in found]
    if recipe.evaluate.heldout:
        found.append(str(root / HELDOUT))
    return found


def _decontaminate(name: str) -> Work:
    def work(recipe: Recipe, root: Path) -> Report:
        from hornbook.decontaminate import decontaminate

        config = recipe.decontaminate
        return decontaminate(
            [root / data_folder(recipe, name)],
            root / "decontaminate" / name,
            benchmarks=benchmarks(recipe, root),
            ngram=config.ngram,
            ast_threshold=config.ast_threshold,
        )

    return work


def data_sets(recipe: Recipe) -> list[str]:
    """The data sets that some arm is trained on."""
    used = {name for arm in recipe.arms.values() for name in arm.data}
    if any(arm.finetune for arm in recipe.arms.values()):
        used.add("exercises")
    return [name for name in ("raw", "filtered", "textbooks", "exercises") if name in used]


def _tokenizer(recipe: Recipe, root: Path) -> Report:
    from hornbook.vocabulary import build

    return build(
        root / "tokenizer",
        recipe.tokenizer.name,
        inputs=[root / packed_from(recipe, name) for name in data_sets(recipe)],
        vocab_size=recipe.tokenizer.vocab_size,
        characters=recipe.tokenizer.characters,
    )


def _pack(name: str) -> Work:
    def work(recipe: Recipe, root: Path) -> Report:
        from hornbook.packing import pack

        return pack(
            [root / packed_from(recipe, name)],
            root / "pack" / name,
            tokenizer=root / "tokenizer" / "tokenizer.json",
        )

    return work


def _base(arm: str, seed: int) -> Work:
    def work(recipe: Recipe, root: Path) -> Report:
        from hornbook.train import train_stage

        data = {str(root / "pack" / name): w for name, w in recipe.arms[arm].data.items()}
        return train_stage(
            recipe.pretrain, recipe.model, data, root / base_folder(arm, seed), seed=seed
        )

    return work


def _finetuned(arm: str, seed: int) -> Work:
    def work(recipe: Recipe, root: Path) -> Report:
        from hornbook.train import train_stage

        start: Any = recipe.model
        if recipe.arms[arm].data:
            start = root / base_folder(arm, seed) / "final"
        data = {str(root / "pack" / "exercises"): 1.0}
        return train_stage(recipe.finetune, start, data, root / tuned_folder(arm, seed), seed=seed)

    return work


def base_folder(arm: str, seed: int) -> str:
    """The folder of an arm's base model."""
    return f"train/{arm}/seed-{seed}/base"


def tuned_folder(arm: str, seed: int) -> str:
    """The folder of an arm's finetuned model."""
    return f"train/{arm}/seed-{seed}/finetuned"


def benchmark_names(recipe: Recipe) -> dict[str, str]:
    """Label -> what `evaluate` loads (relative to the run for held-out problems)."""
    names = {Path(name).stem: name for name in recipe.evaluate.benchmarks}
    return {"heldout": HELDOUT, **names} if recipe.evaluate.heldout else names


def _evaluate(model: str, label: str) -> Work:
    def work(recipe: Recipe, root: Path) -> Report:
        from hornbook.evaluate import evaluate_model

        config = recipe.evaluate
        name = benchmark_names(recipe)[label]
        return evaluate_model(
            root / name if label == "heldout" else name,
            root / model / "final",
            root / "evaluate" / model.removeprefix("train/") / label,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            samples=config.samples,
            batch_size=config.batch_size,
            timeout_s=config.timeout_s,
            workers=1,
            seed=recipe.seed,
        )

    return work


def _study(recipe: Recipe, root: Path) -> Report:
    from hornbook.study.contamination import split_study

    return split_study(recipe, root)


def _report(recipe: Recipe, root: Path) -> Report:
    from hornbook.report import build_report

    return build_report(recipe, root)


def plan(recipe: Recipe) -> list[Step]:
    """The steps of a recipe, each after those it needs."""
    steps: list[Step] = []

    def add(name: str, needs: list[str], work: Work, alone: bool = True) -> None:
        known = {step.name for step in steps}
        wanted = tuple(need for need in dict.fromkeys(needs) if need in known)
        steps.append(Step(name=name, needs=wanted, work=work, alone=alone))

    sets = data_sets(recipe)
    if "raw" in sets or "filtered" in sets:
        if "pool" in recipe.source.raw:
            add("pool", [], _pool)
        add("source", ["pool"], _source)
        if "dedup" not in recipe.skip:
            add("dedup", ["source"], _dedup)
    if "filtered" in sets:
        add("annotate", ["source", "dedup"], _annotate)
        add("filter", ["source", "dedup", "annotate"], _filter)
    if recipe.evaluate.heldout:
        add("problems", [], _problems)
    if "textbooks" in sets:
        add("textbooks", [], _textbooks)
    if "exercises" in sets:
        add("exercises", [], _exercises)
    if "decontaminate" not in recipe.skip:
        for name in sets:
            needs = [data_folder(recipe, name), "problems"]
            add(f"decontaminate/{name}", needs, _decontaminate(name))
    add("tokenizer", [packed_from(recipe, name) for name in sets], _tokenizer)
    for name in sets:
        add(f"pack/{name}", [packed_from(recipe, name), "tokenizer"], _pack(name))
    models = []
    seeds = range(recipe.seed, recipe.seed + recipe.seeds)
    runs = [(arm, config, seed) for seed in seeds for arm, config in recipe.arms.items()]
    # Bases first: they are the long ones, and short finetunings then fill the gaps beside them.
    for arm, config, seed in runs:
        if config.data:
            base = base_folder(arm, seed)
            add(base, [f"pack/{name}" for name in config.data], _base(arm, seed), alone=False)
            models.append(("base", base))
    for arm, config, seed in runs:
        if config.finetune:
            tuned = tuned_folder(arm, seed)
            needs = [base_folder(arm, seed), "pack/exercises"]
            add(tuned, needs, _finetuned(arm, seed), alone=False)
            models.append(("finetuned", tuned))
    for stage, model in models:
        if stage not in recipe.evaluate.stages:
            continue
        for label in benchmark_names(recipe):
            name = f"evaluate/{model.removeprefix('train/')}/{label}"
            add(name, [model, "problems"], _evaluate(model, label), alone=False)
    done = [step.name for step in steps]
    if recipe.study.contamination and recipe.evaluate.heldout and "study" not in recipe.skip:
        add("study/contamination", done, _study)
    if "report" not in recipe.skip:
        add("report", [step.name for step in steps], _report)
    return steps


# Running.


def run(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    only: tuple[str, ...] = (),
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> Report:
    """Runs every step of a recipe that is not done yet.

    Args:
        recipe: The resolved recipe.
        out: The run's folder. It keeps `recipe.json`, `log.jsonl` and one folder for each step.
        jobs: Training and evaluation steps side by side; by default one for each core, at most 8.
        only: Names or prefixes of steps to run, with what they need; empty means all.
        on_event: Called with each entry of the run's log.

    Returns:
        `steps` (done now), `skipped` (were done already), `seconds`.

    Raises:
        ConfigError: If `only` names no step, or no raw code is named where some is needed.
        StorageError: If the disk has less than 1 GiB left.
        HornbookError: The first error of a step, after the steps beside it came to an end.
        KeyboardInterrupt: After Ctrl-C; what is done stays, and the same command goes on.
    """
    root = Path(out).absolute()
    steps = select_steps(plan(recipe), only)
    if not recipe.source.raw and any(step.name == "source" for step in steps):
        raise ConfigError(
            "source.raw is empty, but an arm uses raw or filtered code: "
            "--set source.raw=/path/to/code"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise StorageError(f"{root}: {error.strerror}") from error
    if free < 1 << 30:
        raise StorageError(f"{root}: {free / 2**20:,.0f} MiB left on this disk; 1 GiB is needed")
    _check_owner(recipe, root)
    write_text(root / "recipe.json", json.dumps(asdict(recipe), indent=1) + "\n")
    log = _Log(root / "log.jsonl", on_event)
    start = time.monotonic()
    log({"event": "run", "recipe": recipe.name, "steps": len(steps), "cpus": os.cpu_count()})
    tally = {"done": 0, "skipped": 0}
    for entry in _execute(recipe, root, steps, jobs or min(os.cpu_count() or 1, 8)):
        log(entry)
        if entry["event"] == "step":
            tally["skipped" if entry["skipped"] else "done"] += 1
    seconds = round(time.monotonic() - start, 2)
    log({"event": "end", "seconds": seconds, **tally})
    return Report({"run": str(root), **tally, "seconds": seconds})


def select_steps(steps: list[Step], only: tuple[str, ...]) -> list[Step]:
    """The named steps (or every step under a named prefix) and all that they need."""
    if not only:
        return steps
    by_name = {step.name: step for step in steps}
    for name in only:
        if not any(s == name or s.startswith(name + "/") for s in by_name):
            raise ConfigError(f"no step `{name}`; steps: {', '.join(by_name)}")
    pending = [s for s in by_name if any(s == o or s.startswith(o + "/") for o in only)]
    wanted: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending.extend(by_name[name].needs)
    return [step for step in steps if step.name in wanted]


def _check_owner(recipe: Recipe, root: Path) -> None:
    """One folder, one recipe: results of another would be mixed into its report."""
    path = root / "recipe.json"
    if path.is_file():
        found = read_json(path).get("name")
        if found != recipe.name:
            raise ConfigError(
                f"{root}: holds a run of the recipe `{found}`, not `{recipe.name}`; name another "
                "folder with --out"
            )


class _Log:
    """Appends entries to the run's JSON-lines log."""

    def __init__(self, path: Path, on_event: Callable[[dict[str, Any]], None] | None) -> None:
        self._path = path
        self._on_event = on_event

    def __call__(self, entry: dict[str, Any]) -> None:
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._on_event is not None:
            self._on_event(entry)


def _execute(recipe: Recipe, root: Path, steps: list[Step], jobs: int) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["hornbook.pipeline"])
    messages = context.Queue()
    table = asdict(recipe)
    pending = {step.name: step for step in steps}
    running: dict[str, Any] = {}
    finished: set[str] = set()
    failure: HornbookError | None = None
    with progress.bars() as display:
        shown = progress.Bars(display)
        try:
            while running or (pending and failure is None):
                if failure is None:
                    for step in _startable(pending, running, finished, jobs):
                        del pending[step.name]
                        child = context.Process(
                            target=_child, args=(table, str(root), step.name, messages)
                        )
                        child.start()
                        running[step.name] = (child, step)
                        shown(step.name, 0, None, "")
                try:
                    kind, name, payload = messages.get(timeout=0.5)
                except queue.Empty:
                    kind, name, payload = _find_crashed(running)
                if kind == "progress":
                    shown(name, *payload)
                elif kind in ("done", "failed"):
                    child, _ = running.pop(name)
                    child.join()
                    shown.drop(name)
                    if kind == "failed":
                        error, details = payload
                        failure = failure or error
                        yield {"event": "failed", "name": name, "error": str(error), **details}
                    else:
                        finished.add(name)
                        yield {"event": "step", "name": name, **payload}
        finally:
            for child, _ in running.values():
                child.join(timeout=60)
                if child.is_alive():
                    child.kill()
                    child.join()
            messages.close()
    if failure is not None:
        raise failure


def _startable(
    pending: dict[str, Step], running: dict[str, Any], finished: set[str], jobs: int
) -> list[Step]:
    """Steps to start now: ready ones, as many as there is room for."""
    if any(step.alone for _, step in running.values()):
        return []
    chosen: list[Step] = []
    waiting = set(pending) | set(running)
    for step in pending.values():
        if any(need in waiting for need in step.needs):
            continue
        if step.alone:
            if not running and not chosen:
                return [step]
            continue
        if len(running) + len(chosen) < jobs:
            chosen.append(step)
    return chosen


def _find_crashed(running: dict[str, Any]) -> tuple[str, str, Any]:
    for name, (child, _) in running.items():
        if child.exitcode is not None and child.exitcode != 0:
            error = HornbookError(
                f"step {name} was ended by signal {-child.exitcode} (out of memory?); "
                "the same command goes on from here"
            )
            return "failed", name, (error, {"exit": child.exitcode})
    return "idle", "", None


def _child(table: dict[str, Any], root: str, name: str, messages: Any) -> None:
    """Runs one step in a process of its own."""
    recipe = from_dict(table)
    step = next(step for step in plan(recipe) if step.name == name)
    last = {"time": 0.0}

    def listener(label: str, done: int, total: int | None, note: str) -> None:
        now = time.monotonic()
        if now - last["time"] > 0.2 or done == total:
            last["time"] = now
            messages.put(("progress", name, (done, total, note or label)))

    start = time.monotonic()
    try:
        with progress.listen(listener):
            report = step.work(recipe, Path(root))
    except HornbookError as error:
        messages.put(("failed", name, (error, {"seconds": time.monotonic() - start})))
        return
    except KeyboardInterrupt:
        error = Stopped(f"step {name} was stopped; the same command goes on from here")
        messages.put(("failed", name, (error, {"seconds": time.monotonic() - start})))
        return
    except Exception as error:
        import traceback

        traceback.print_exc()
        wrapped = HornbookError(f"step {name} failed: {type(error).__name__}: {error}")
        messages.put(("failed", name, (wrapped, {"seconds": time.monotonic() - start})))
        return
    seconds = round(time.monotonic() - start, 3)
    payload = {"seconds": seconds, "skipped": report.reused, "peak_mb": _peak_mb()}
    messages.put(("done", name, payload))


class Stopped(HornbookError):
    """Ended by Ctrl-C or a signal; the same command goes on."""

    exit_code = 3


def _peak_mb() -> float:
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(max(peak, children) / (1024 if sys.platform != "darwin" else 2**20), 1)
