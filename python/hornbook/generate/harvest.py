"""From a teacher's answers to rows: plans blocks of slots, asks, checks, repairs, counts.

What is turned away goes to `rejected/rows.jsonl` with a reason code. Whatever an earlier run got
comes from the ledger: plans, answers and verdicts.
"""

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from string import Template
from typing import Any

from hornbook import _core, progress
from hornbook.errors import HornbookError
from hornbook.files import hash_json
from hornbook.generate.answers import (
    PYTHON_FENCES,
    RejectedError,
    parse_blocks,
    parse_exercise,
    parse_textbook,
)
from hornbook.generate.client import (
    BudgetReachedError,
    Request,
    Response,
    Session,
    TeacherError,
)
from hornbook.generate.gate import VERSION, Gate, GateOptions, code_of, gist
from hornbook.generate.ledger import Answer, Ledger
from hornbook.generate.slots import Spec, dealt, slot_request
from hornbook.generate.steer import Signatures, Steering, SteerOptions, Verdict

Row = dict[str, Any]

WARN_AFTER = 64
"""Answers turned away, with none kept, after which a run warns."""
_KEPT = ("signature", "mutants", "killed")
"""What the gate finds out about a row that the ledger keeps with the verdict."""


class InterruptedByUserError(HornbookError):
    """Ctrl-C."""

    exit_code = 3


def to_row(response: Response, spec: Spec) -> Row:
    """The row that a response makes.

    Raises:
        RejectedError: With the response's verdict, or what the parsers say.
    """
    if response.verdict != "ok" or response.answer is None:
        raise RejectedError(response.verdict, response.error or "the answer is not whole")
    row = dict(response.request.provenance)
    form = spec.form
    if spec.kind == "textbooks":
        row["text"] = parse_textbook(response.text, form.fences if form else PYTHON_FENCES)
    elif form is None:
        row |= parse_exercise(
            response.text, entry_point=row["entry_point"], libraries=spec.curriculum.libraries
        )
        row["text"] = row["prompt"] + row["solution"]
    else:
        blocks = parse_blocks(response.text, form.blocks, form.fences)
        values = {**blocks, "name": row["entry_point"]}
        row["blocks"] = blocks
        row["prompt"] = Template(form.prompt).substitute(values)
        row["tests"] = Template(form.tests).substitute(values)
        row["solution"] = blocks["solution"] + "\n"
        row["text"] = row["prompt"] + row["solution"]
    answer = response.answer
    return {
        **row,
        "model": response.model,
        "served_model": answer.served_model,
        "call": response.key,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "cost_usd": answer.cost_usd,
    }


class Harvest:
    """One run: plans slots, turns responses into rows that hold up, and counts the rest."""

    def __init__(
        self,
        spec: Spec,
        ledger: Ledger,
        session: Session,
        plan: str,
        gate: Gate,
        gate_options: GateOptions,
        steer: SteerOptions,
        params: Mapping[str, Any],
        seed: int,
    ) -> None:
        self._spec = spec
        self._ledger = ledger
        self._session = session
        asked = session.options.teacher
        self._teacher = asked if isinstance(asked, str) else "function"
        self._plan = plan
        self._gate = gate
        self._options = gate_options
        self._gate_id = hash_json([asdict(gate_options), gate._run is not None, VERSION, spec.hash])
        self._params = params
        self._seed = seed
        self._steer = steer
        self._steering = Steering(
            cells=spec.cells, seed=seed, options=steer, neighbours=spec.neighbours
        )
        self._texts = Signatures()
        self._structures = Signatures()
        self._began = time.monotonic()
        self.reasons: Counter[str] = Counter()
        self.stopped: HornbookError | None = None
        self.slots = 0
        self.kept = 0
        self.failed = 0
        self.last = ""
        self.stored = 0
        self.repaired = self.repairs = 0
        self.refused = 0
        self.warned = False
        self.unrepaired: BudgetReachedError | None = None
        self.usd = 0.0
        self.tokens = 0

    # Asking

    def _requests(self, count: int | None) -> Iterator[Request | None]:
        """The slots' requests; None while the next block waits for verdicts."""
        steer = self._steer
        for block in itertools.count():
            first = block * steer.block
            if count is not None and first >= count:
                return
            while not self._steering.settled(block):
                yield None
            slots = self._block(block)
            if not slots:
                return
            for place, (cell, avoid) in enumerate(slots):
                index = first + place
                if count is not None and index >= count:
                    return
                yield slot_request(
                    self._spec, index, self._seed, self._params, cell=cell, avoid=avoid
                )

    def _block(self, block: int) -> list[tuple[int, list[str]]]:
        """A block's plan: a cell and what is "not these" for each slot."""
        steer, first = self._steer, block * self._steer.block
        cells = self._steering.plan(block)
        if not cells:
            return []
        stored = self._ledger.plan(self._plan, block)
        if stored is None:
            if steer.enabled:
                stored = [
                    [cell, list(self._steering.nearest(cell, self._spec.axes))] for cell in cells
                ]
            else:
                indices = range(first, first + steer.block)
                stored = [[dealt(self._spec, index, self._seed), []] for index in indices]
            self._ledger.save_plan(self._plan, block, stored)
        return [(cell, avoid) for cell, avoid in stored]

    # Reading

    def rows(self, count: int | None, wanted: int | None, folder: Path) -> Iterator[Row]:
        """The rows, in the order of the slots; what is turned away goes to `rejected/`."""
        batch: list[Response] = []
        stream = self._session.stream(self._requests(count))
        (folder / "rejected").mkdir(exist_ok=True)
        path = folder / "rejected" / "rows.jsonl"
        with path.open("w", encoding="utf-8", newline="\n") as rejected:
            while self.stopped is None:
                ended = False
                try:
                    response = next(stream, _END)
                    ended = response is _END
                    if isinstance(response, Response):
                        batch.append(response)
                        if len(batch) < self._steer.block:
                            continue
                except (BudgetReachedError, TeacherError, InterruptedByUserError) as error:
                    self.stopped = error
                for row, why in self._judged(batch):
                    if why is None:
                        self.kept += 1
                        yield row
                        if self.kept == wanted:
                            ended = True
                            break
                    else:
                        rejected.write(json.dumps(_rejection(row, why)) + "\n")
                batch = []
                self._warn()
                self._show(count, wanted)
                if ended:
                    break
            # Before the ledger is closed, which the calls under way still have to reach.
            stream.close()
        if not path.stat().st_size:
            path.unlink()
            path.parent.rmdir()
        self._steering.finish()
        if self.stopped is None and self.unrepaired is not None and self.stored < self.slots:
            # Not where a run was asked again for just what earlier ones had got.
            self.stopped = self.unrepaired
        if isinstance(self.stopped, BudgetReachedError):
            self.stopped.made = self.slots
            if self.reasons:
                self.stopped.args = (f"{self.stopped}; {self._tally()}",)
        if self.refused and self.refused == self.slots and self.stopped is None:
            self.stopped = TeacherError(
                f"the endpoint refuses all of {self.slots:,} calls, the last with: {self.last}"
            )
        if self.failed and self.stopped is None:
            self.stopped = TeacherError(
                f"{self.failed:,} of {self.slots:,} calls failed, the last with: {self.last}; "
                f"the rest are kept in {self._ledger.path}: run again to send just those"
            )

    def _judged(self, batch: list[Response]) -> Iterator[tuple[Row, RejectedError | None]]:
        """Rows with why they are turned away, in order; tells the steering."""
        for response, row, why, repair in zip(batch, *self._checked(batch), strict=True):
            self.slots += 1
            about = response.request.provenance
            cell, usd = about["cell"], 0.0
            self.stored += response.stored
            self.repairs += repair is not None
            for answer in (response.answer, repair):
                if answer is not None:
                    usd += answer.cost_usd or 0.0
                    self.tokens += answer.charged_tokens
            self.usd += usd
            self.refused += response.verdict == "refused"
            self.failed += response.verdict == "failed"
            if response.verdict in ("refused", "failed"):
                self.last = response.error
            # What has failed has a reason already.
            why = why or self._repeated(row)
            if why is not None:
                self.reasons[why.code] += 1
                self._steering.record(about["index"], Verdict(cell=cell, accepted=False, usd=usd))
                yield row, why
                continue
            code = code_of(self._spec, row)
            lines = len([line for line in code.split("\n")[1:] if line.strip()])
            row["shown"] = self._spec.shows(cell, code, lines)
            row["new"] = self._structures.add(row["signature"]) == 0
            row["teacher"] = self._teacher
            verdict = Verdict(
                cell=cell,
                accepted=True,
                shown=row["shown"],
                new=row["new"],
                gist=gist(self._spec, row),
                usd=usd,
            )
            self._steering.record(about["index"], verdict)
            yield row, None

    def _repeated(self, row: Row) -> RejectedError | None:
        """Why a row is nothing new, if so."""
        if self._structures.count(row["signature"]) >= self._options.repeats:
            return RejectedError(
                "not_novel", f"{self._options.repeats} accepted rows have this structure"
            )
        if self._texts.add(_core.hash_bytes(row["text"].encode())):
            return RejectedError("duplicate", "the same text came from an earlier slot")
        return None

    def _checked(
        self, batch: list[Response]
    ) -> tuple[list[Row], list[RejectedError | None], list[Answer | None]]:
        """Each response as a row (or what is known of it), why the gate turns it away, and what
        came when it was asked to be put right."""
        rows, found = self._gated(batch)
        repairs: list[Answer | None] = [None] * len(batch)
        if not self._options.repair:
            return rows, found, repairs
        again = [
            place
            for place, why in enumerate(found)
            if why is not None and batch[place].verdict == "ok"
        ]
        requests = [_repair(batch[place], found[place]) for place in again]
        try:
            answers = list(self._session.complete(requests))
        except BudgetReachedError as error:
            # What cannot be repaired stays turned away; first answers may be there all the same.
            self.unrepaired = error
            return rows, found, repairs
        except (TeacherError, InterruptedByUserError) as error:
            self.stopped = self.stopped or error
            return rows, found, repairs
        for place, response, row, why in zip(again, answers, *self._gated(answers), strict=True):
            repairs[place] = response.answer
            if why is None:
                self.repaired += 1
                first = batch[place].answer
                assert first is not None
                rows[place], found[place] = {**row, **_both(first, row)}, None
                rows[place]["parent_call"] = batch[place].key
        return rows, found, repairs

    def _gated(self, batch: list[Response]) -> tuple[list[Row], list[RejectedError | None]]:
        rows: list[Row] = []
        found: list[RejectedError | None] = []
        unknown: list[int] = []
        for place, response in enumerate(batch):
            known = self._ledger.verdict(response.key, self._gate_id)
            try:
                row, why = to_row(response, self._spec), None
                if known is None:
                    unknown.append(place)
                elif known[0]:
                    why = RejectedError(known[0], known[1])
                else:
                    row |= known[2]
            except RejectedError as error:
                row, why = {**response.request.provenance, "call": response.key}, error
            rows.append(row)
            found.append(why)
        for place, why in zip(unknown, self._gate.check([rows[p] for p in unknown]), strict=True):
            found[place] = why
        self._ledger.save_verdicts(
            self._gate_id,
            self._plan,
            [
                (
                    rows[place]["call"],
                    rows[place]["index"],
                    getattr(found[place], "code", ""),
                    getattr(found[place], "detail", ""),
                    {name: rows[place][name] for name in _KEPT if name in rows[place]},
                )
                for place in unknown
            ],
        )
        return rows, found

    # Saying

    def _tally(self) -> str:
        """What became of the answers: `0 kept; turned away: 305 wrong_name`."""
        away = ", ".join(f"{n:,} {reason}" for reason, n in self.reasons.most_common())
        return f"{self.kept:,} kept; turned away: {away}"

    def _warn(self) -> None:
        """Says once, while there is budget left to save, that nothing is kept of many answers."""
        if not self.warned and not self.kept and self.reasons.total() >= WARN_AFTER:
            self.warned = True
            print(
                f"warning: {self._tally()}; rejected/ will have the answers' reasons in full. "
                "Ctrl-C stops here",
                file=sys.stderr,
            )

    def _show(self, count: int | None, wanted: int | None) -> None:
        seconds = max(time.monotonic() - self._began, 1e-9)
        filled = int((self._steering.filled > 0).sum())
        cost = f"${self.usd:.2f}" if self.usd else f"{self.tokens:,} tokens"
        note = (
            f"{self.kept:,} rows, yield {self.kept / max(self.slots, 1):.0%}, {cost}, "
            f"{self.kept / seconds:.1f} rows/s, {filled:,} of {self._spec.cells:,} cells"
        )
        done, total = (self.kept, wanted) if count is None else (self.slots, count)
        progress.advance(self._spec.kind, done, total, note)

    def details(self, priced: bool, verified: bool) -> dict[str, Any]:
        """What the manifest says beside the counts."""
        return {
            "verified": verified,
            "cost_usd": round(self.usd, 6) if priced else None,
            "tokens": self.tokens,
            "answers_from_ledger": self.stored,
            "repairs_answered": self.repairs,
            "repaired": self.repaired,
            "failed": self.failed,
            "complete": self.stopped is None,
            "stopped": "" if self.stopped is None else str(self.stopped) or "stopped",
            "dropped": dict(sorted(self.reasons.items())),
            "steering": self._steering.report(self._structures.frequencies()),
        }

    def cells(self) -> list[dict[str, Any]]:
        """Every cell that was tried: what it asks for, tries, rows, new structures, cost."""
        steering = self._steering
        return [
            {
                **self._spec.cell(cell),
                "tried": int(steering.tried[cell]),
                "rows": int(steering.accepted[cell]),
                "filled": int(steering.filled[cell]),
                "new": int(steering.new[cell]),
                "usd": round(float(steering.usd[cell]), 6),
            }
            for cell in map(int, steering.tried.nonzero()[0])
        ]


_END = object()


def _both(first: Answer, row: Row) -> Row:
    """What a row took whose first answer had to be put right; None where it is not known."""
    made = {}
    for name in ("prompt_tokens", "completion_tokens", "cost_usd"):
        parts = (getattr(first, name), row[name])
        made[name] = None if None in parts else sum(parts)
    return made


def _rejection(row: Row, why: RejectedError) -> dict[str, Any]:
    return {
        "slot": row["slot"],
        "call": row["call"],
        "reason": why.code,
        "detail": why.detail,
        "topic": row["topic"],
        "audience": row["audience"],
    }


def _repair(response: Response, why: RejectedError | None) -> Request:
    """The same question once more, with the answer and what was wrong with it."""
    assert why is not None
    before = response.request
    return replace(
        before,
        attempt=1,
        messages=[
            *before.messages,
            {"role": "assistant", "content": response.text},
            {
                "role": "user",
                "content": (
                    f"This was not accepted: {why.code} ({why.detail[:300]}). Reply again in full, "
                    "in the same form, with that put right."
                ),
            },
        ],
    )
