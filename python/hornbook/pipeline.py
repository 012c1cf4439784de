"""Running a recipe: what is done already, and doing the rest.

Each step is a stage with a folder of its own and runs in a process of its own, so that its memory
is measured, its end frees it, and a crash in it is only its crash. Steps that train or evaluate run
side by side (`jobs`), all others one at a time. A step whose result is there is skipped; a run that
was killed goes on where it was.

    hornbook run demo --dry-run
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hornbook import progress
from hornbook.errors import ConfigError, HornbookError, InputError, StorageError
from hornbook.files import locked, read_json, write_text
from hornbook.manifest import MANIFEST, Report
from hornbook.recipe import Recipe, from_dict
from hornbook.steps import (
    HELDOUT,
    Step,
    annotator_options,
    missing,
    plan,
    resolved,
    rounds,
    teacher,
)
from hornbook.train.schedule import TrainConfig


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
        ResumeError: If another run is at work in the folder.
        StepError: The first error of a step, after the steps beside it came to an end.
        KeyboardInterrupt: After Ctrl-C; what is done stays, and the same command goes on.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs: {jobs} is less than 1; leave it out to use every core")
    root = Path(out).absolute()
    lacking = missing(recipe)
    recipe = resolved(recipe)
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
    _check_owner(recipe, root, lacking)
    preflight(recipe, root, steps)
    with locked(root / "lock", root), _terminated_like_interrupted():
        write_text(root / "recipe.json", json.dumps(asdict(recipe), indent=1) + "\n")
        log = _Log(root / "log.jsonl", on_event)
        start = time.monotonic()
        if lacking and any(step.name.startswith("decontaminate/") for step in steps):
            log({"event": "missing", "benchmarks": lacking})
        log({"event": "run", "recipe": recipe.name, "steps": len(steps), "cpus": os.cpu_count()})
        tally = {"done": 0, "skipped": 0}
        for entry in _execute(recipe, root, steps, jobs or min(os.cpu_count() or 1, 8)):
            log(entry)
            if entry["event"] == "step":
                tally["skipped" if entry["skipped"] else "done"] += 1
        seconds = round(time.monotonic() - start, 2)
        log({"event": "end", "seconds": seconds, **tally})
    return Report({"run": str(root), **tally, "seconds": seconds})


def preflight(recipe: Recipe, root: Path, steps: list[Step]) -> None:
    """Finds, before anything runs, what would stop the run in the middle.

    Raises:
        ConfigError: If a benchmark's data, the teacher's name, prices or key is missing, or a
            curriculum, rubric or tokenizer that the recipe names.
        InputError: If one of these files is not readable, or not what it should be.
    """
    names = {step.name for step in steps}
    if "source" in names:
        from hornbook.source import BUILT_IN

        for name in recipe.source.raw:
            if name not in BUILT_IN and not Path(name).exists():
                raise InputError(f"source.raw: {name}: no such file or folder")
    if recipe.annotate.annotator == "openai" and "annotate" in names:
        annotator_options(recipe, root)
        from hornbook.generate.labels import load_rubric

        load_rubric(recipe.annotate.rubric)
    if recipe.generate.teacher != "procedural" and names & {"textbooks", "exercises"}:
        teacher(recipe, root)
        from hornbook.generate.curriculum import load

        load(recipe.generate.curriculum)
    if "tokenizer" in names:
        from hornbook.vocabulary import named

        size = recipe.tokenizer.vocab_size
        if recipe.tokenizer.name != "train":
            size = named(recipe.tokenizer.name).vocab_size
        if size > recipe.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size: {recipe.model.vocab_size:,} is less than the {size:,} tokens "
                f"of the tokenizer ({recipe.tokenizer.name})"
            )
    for section in ("pretrain", "finetune"):
        if any(name.startswith("train/") for name in names):
            _trainable(section, getattr(recipe, section), recipe.model.max_position_embeddings)
    if any(name.startswith("decontaminate/") for name in names):
        from hornbook.contaminants import benchmark_path

        for against in rounds(recipe).values():
            for name in against:
                if name != HELDOUT:
                    benchmark_path(name)
    from hornbook.evaluate.problems import load_problems

    if any(name.startswith("evaluate/") for name in names):
        for name in recipe.evaluate.benchmarks:
            load_problems(name)


def _trainable(section: str, config: TrainConfig, context: int) -> None:
    """Refuses what training would refuse once all its data is there."""
    if config.sequence_length > context:
        raise ConfigError(
            f"{section}.sequence_length: {config.sequence_length} is past the model's context of "
            f"{context} (model.max_position_embeddings)"
        )
    if config.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(f'{section}.device: "cuda", but torch sees no GPU here')


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


def _check_owner(recipe: Recipe, root: Path, lacking: list[str]) -> None:
    """One folder, one recipe: results of another would be mixed into its report."""
    path = root / "recipe.json"
    if not path.is_file():
        return
    found = read_json(path)
    if found.get("name") != recipe.name:
        raise ConfigError(
            f"{root}: holds a run of the recipe `{found.get('name')}`, not `{recipe.name}`; name "
            "another folder with --out"
        )
    lost = set(lacking) & set((found.get("decontaminate") or {}).get("benchmarks") or ())
    if lost and any((root / "decontaminate" / "public").glob(f"*/{MANIFEST}")):
        raise ConfigError(
            f"{root}: was decontaminated against {', '.join(sorted(lost))}, which is not found "
            "now: set HORNBOOK_DATA, or leave them out with --set decontaminate.if_present=[]"
        )


class _Log:
    """Appends entries to the run's JSON-lines log."""

    def __init__(self, path: Path, on_event: Callable[[dict[str, Any]], None] | None) -> None:
        self._path = path
        self._on_event = on_event
        # A line that a crash tore is ended first; readers skip what they cannot parse.
        if path.is_file() and not path.read_bytes().endswith(b"\n"):
            self._append("\n")

    def __call__(self, entry: dict[str, Any]) -> None:
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry}
        self._append(json.dumps(entry) + "\n")
        if self._on_event is not None:
            self._on_event(entry)

    def _append(self, text: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from error


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
    failure: StepError | None = None
    with progress.bars() as display:
        shown = progress.Bars(display)
        try:
            while running or (pending and failure is None):
                if failure is None:
                    for step in _startable(pending, running, finished, jobs):
                        del pending[step.name]
                        arguments = (table, str(root), step.name, messages)
                        child = context.Process(target=_child, args=arguments)
                        child.start()
                        running[step.name] = (child, step)
                        shown(step.name, 0, None, "")
                kind, name, payload = _next_message(messages, running)
                if kind == "progress":
                    shown(name, *payload)
                elif kind in ("done", "failed"):
                    running.pop(name)[0].join()
                    shown.drop(name)
                    if kind == "failed":
                        text, exit_code = payload
                        failure = failure or StepError(text, exit_code)
                        yield {"event": "failed", "name": name, "error": text}
                    else:
                        finished.add(name)
                        yield {"event": "step", "name": name, **payload}
        finally:
            _end(running)
            messages.close()
    if failure is not None:
        raise failure


def _next_message(messages: Any, running: dict[str, Any]) -> tuple[str, str, Any]:
    """What a step says next; that it failed, if it ended without saying anything."""
    ended = [name for name, (child, _) in running.items() if child.exitcode is not None]
    try:
        # What an ended child still said is in the queue before its end is seen.
        message: tuple[str, str, Any] = messages.get(timeout=0.5)
    except queue.Empty:
        for name in ended:
            code = running[name][0].exitcode
            how = f"was ended by signal {-code} (out of memory?)" if code < 0 else "ended early"
            return "failed", name, (f"step {name} {how}; the same command goes on from here", 1)
        return "idle", "", None
    return message


def _end(running: dict[str, Any]) -> None:
    """Ends steps that are still at work: asks first, so that a training saves itself."""
    for child, _ in running.values():
        child.terminate()
    try:
        for child, _ in running.values():
            child.join(timeout=60)
    finally:  # and at once, if Ctrl-C comes again
        for child, _ in running.values():
            if child.is_alive():
                child.kill()
                child.join()


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


def _child(table: dict[str, Any], root: str, name: str, messages: Any) -> None:
    """Runs one step in a process of its own."""
    # Ctrl-C reaches the whole group; the run's process then asks the others to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
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
        messages.put(("failed", name, (str(error), error.exit_code)))
    except KeyboardInterrupt:
        text = f"step {name} was stopped; the same command goes on from here"
        messages.put(("failed", name, (text, 3)))
    except BaseException as crash:
        traceback.print_exc()
        text = f"step {name} failed: {type(crash).__name__}: {crash}"
        messages.put(("failed", name, (text, 1)))
    else:
        payload = {
            "seconds": round(time.monotonic() - start, 3),
            "skipped": report.reused,
            "peak_mb": _peak_mb(),
        }
        messages.put(("done", name, payload))


def _end_with_parent() -> None:
    """Ends this process when the run's process is gone: no one else may write its folders then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


class StepError(HornbookError):
    """A step failed, or was stopped; `exit_code` is that of its own error."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: in order, with exit code 3."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _peak_mb() -> float:
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(max(peak, children) / (1024 if sys.platform != "darwin" else 2**20), 1)
