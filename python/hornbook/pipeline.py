"""Running a recipe: what is done already, and doing the rest.

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
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hornbook import progress
from hornbook.errors import ConfigError, HornbookError, StorageError
from hornbook.manifest import Report, read_json, write_text
from hornbook.recipe import Recipe, from_dict
from hornbook.steps import Step, plan


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
    method = "spawn" if sys.platform == "win32" else "forkserver"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
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
        stop = StoppedError(f"step {name} was stopped; the same command goes on from here")
        messages.put(("failed", name, (stop, {"seconds": time.monotonic() - start})))
        return
    except Exception as crash:
        traceback.print_exc()
        wrapped = HornbookError(f"step {name} failed: {type(crash).__name__}: {crash}")
        messages.put(("failed", name, (wrapped, {"seconds": time.monotonic() - start})))
        return
    seconds = round(time.monotonic() - start, 3)
    payload = {"seconds": seconds, "skipped": report.reused, "peak_mb": _peak_mb()}
    messages.put(("done", name, payload))


class StoppedError(HornbookError):
    """Ended by Ctrl-C or a signal; the same command goes on."""

    exit_code = 3


def _peak_mb() -> float:
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(max(peak, children) / (1024 if sys.platform != "darwin" else 2**20), 1)
