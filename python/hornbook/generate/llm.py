"""Textbook sections and exercises from a teacher model: planned, asked, checked, counted, written.

Slots are planned in blocks (`steer.py`), answered in order (`client.py`), checked in batches
(`gate.py`), and every answer becomes a row or a rejection with a reason code. Plans, answers and
verdicts live in the ledger, outside the stage's folder: a run that was killed, a larger `count` or
a lost folder pays for nothing twice, and ends in the same bytes. What stops a run early (a budget,
Ctrl-C, an endpoint that is down) leaves a data set that is whole, with the rows up to there; the
same command goes on from it. Memory does not grow with the number of slots. Costs what the teacher
and the sandbox cost; here, about 2 ms of one core a row.

    generate_llm("exercises", "out/", count=1000, model="gpt-4o-mini", ledger="teacher.ledger",
                 prices={"gpt-4o-mini": (0.15, 0.60)}, budget_usd=2)
"""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hornbook import corpus
from hornbook.errors import ConfigError, HornbookError
from hornbook.files import StrPath, hash_json
from hornbook.generate import page
from hornbook.generate.client import Session, TeacherOptions
from hornbook.generate.gate import Gate, GateOptions, Run
from hornbook.generate.harvest import Harvest, InterruptedByUserError
from hornbook.generate.ledger import Ledger
from hornbook.generate.slots import Kind, Spec
from hornbook.generate.steer import SteerOptions
from hornbook.manifest import Outcome, Report, run_stage

_PARAMS: dict[Kind, dict[str, Any]] = {
    "textbooks": {"temperature": 1.0, "max_tokens": 3000},
    "exercises": {"temperature": 1.0, "max_tokens": 1200},
}
_SCHEMA = {
    "kind": "string",
    "topic": "string",
    "audience": "string",
    "concept": "string",
    "difficulty": "string",
    "cell": "int64",
    "shown": "bool",
    "avoided": "string",
    "signature": "string",
    "new": "bool",
    "teacher": "string",
    "model": "string",
    "served_model": "string",
    "prompt_id": "string",
    "slot": "string",
    "seed": "int64",
    "call": "string",
    "parent_call": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "cost_usd": "float64",
}
_EXTRA = {
    "textbooks": {"words": "string"},
    "exercises": {
        "prompt": "string",
        "solution": "string",
        "tests": "string",
        "entry_point": "string",
        "mutants": "int64",
        "killed": "int64",
    },
}


def generate_llm(
    kind: Kind,
    out: StrPath,
    *,
    model: str,
    ledger: StrPath,
    count: int | None = None,
    rows: int | None = None,
    seed: int = 0,
    spec: Spec | None = None,
    params: Mapping[str, Any] | None = None,
    steer: SteerOptions | None = None,
    gate: GateOptions | None = None,
    verify: Run | None = None,
    **teacher: Any,
) -> Report:
    """Asks a teacher for textbook sections or exercises and writes those that hold up.

    Args:
        kind: `textbooks` or `exercises`.
        out: The stage's folder: Parquet parts, `rejected/rows.jsonl`, `report.html`, `README.md`
            (the data set's card), `evidence/cells.json`, the manifest.
        model: The teacher.
        ledger: The file of plans, calls and verdicts, outside `out`.
        count: Slots asked for; rejected ones are not replaced.
        rows: Or rows to end with; slots are asked for until there are so many.
        seed: Decides cells, words and names.
        spec: The curriculum, and what is made of it (default: the built-in one for Python).
        params: Sampling parameters over the defaults; None takes one away.
        steer: How cells are chosen, and when to stop.
        gate: What is asked of a row.
        verify: Runs programs in a sandbox: `hornbook.evaluate.run_programs`. None: nothing is
            executed, no mutants are tried, and the manifest says `verified: false`.
        teacher: The other fields of `TeacherOptions`: endpoint, concurrency, budgets, prices.

    Returns:
        The manifest. Rows carry their cell, slot, seed, prompt_id, model, call, cost, signature
        and what the gate found.

    Raises:
        BudgetReachedError: The budget is spent. `out` holds what there is, as a data set that is
            whole (a finished result that was there before stays instead); run again with a larger
            budget to go on, or with `count` set to the error's `made` to finish with what there is.
        TeacherError: The endpoint is down, or some calls failed; likewise.
        KeyboardInterrupt: After Ctrl-C; likewise. A second Ctrl-C leaves `out` as it was before.
        ConfigError: An option makes no sense, or see `complete_all`.
    """
    spec = spec or Spec(kind=kind)
    steer, gate = steer or SteerOptions(), gate or GateOptions()
    try:
        options = TeacherOptions(model=model, **teacher)
    except TypeError as error:
        raise ConfigError(f"{error}") from error
    if spec.kind != kind:
        raise ConfigError(f"the spec is for {spec.kind}, not for {kind}")
    if (count is None) == (rows is None):
        raise ConfigError("give either `count` (slots) or `rows`, and only one of them")
    if (count or rows or 0) < 1:
        name = "count" if rows is None else "rows"
        raise ConfigError(f"{name} must be at least 1, not {count if rows is None else rows}")
    if Path(out).resolve() in Path(ledger).resolve().parents:
        raise ConfigError(f"{ledger}: keep the ledger outside the stage's folder {out}")
    asked = {
        name: value
        for name, value in {**_PARAMS[kind], **(params or {})}.items()
        if value is not None
    }
    if rows is not None:
        # Slots beyond the last row are paid for in vain: few rows, small blocks.
        steer = replace(steer, block=max(1, min(steer.block, rows // 32)))
    # What decides the prompts, and so what a plan in the ledger is good for.
    plan = hash_json([asdict(spec), spec.template.id, model, seed, asked, asdict(steer)])
    config = {
        "kind": kind,
        "model": model,
        "count": count,
        "rows": rows,
        "seed": seed,
        "params": asked,
        "spec": spec.hash,
        "curriculum": spec.curriculum.name,
        "prompt_id": spec.template.id,
        "steer": asdict(steer),
        "gate": asdict(gate),
        "verified": verify is not None,
    }
    stopped: HornbookError | None = None

    def work(folder: Path) -> Outcome:
        nonlocal stopped
        with Ledger(ledger) as book, Session(book, options) as session, _drained(session):
            run = Harvest(
                spec, book, session, plan, Gate(spec, gate, verify), gate, steer, asked, seed
            )
            schema = {**_SCHEMA, **_EXTRA[kind]}
            parts = corpus.write(folder, run.rows(count, rows, folder), schema)
            stopped = run.stopped
            kept = sum(part["rows"] for part in parts)
            details = run.details(model in (options.prices or {}), verify is not None)
            book.commit(plan, Path(out).resolve(), run.slots, kept)
            details["ledger"] = asdict(book.totals())
        page.write(folder, spec=spec, config=config, details=details, cells=run.cells())
        return Outcome(
            parts=parts,
            rows_in=run.slots,
            kept=kept,
            dropped=dict(sorted(run.reasons.items())),
            details=details,
            partial=stopped is not None,
        )

    # Not resumable in place: the ledger is what a run goes on from, and the folder is remade.
    report = run_stage(f"generate.{kind}", out, inputs=[], config=config, work=work, seed=seed)
    if stopped is not None:
        if isinstance(stopped, InterruptedByUserError):
            raise KeyboardInterrupt
        raise stopped
    return report


@contextmanager
def _drained(session: Session) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets calls under way finish and writes what there is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, frame: Any) -> None:
        for other, handler in before.items():
            if handler is not None:
                signal.signal(other, handler)
        session.stop(InterruptedByUserError, "stopped by the user")
        # Not by `print`, which may be what was interrupted.
        os.write(2, b"waiting for calls under way, which are paid for; again to drop them\n")

    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
