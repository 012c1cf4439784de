"""Where the next questions go: to cells that are empty and cells that still bring something new.

A cell is topic x audience x concept x difficulty. What counts is what was *accepted*, not what was
asked for: each accepted row has a structural signature, and a cell is filled by rows that show what
it asks for. Slots are planned in blocks. The plan of block b is a pure function of the seed and of
the verdicts on all slots before block b - `lag`, so neither concurrency nor a kill changes it.

For each slot, two draws from Beta posteriors (Thompson sampling): how likely the cell is to give a
row, and how likely that row is to have a new structure (its past counts for less and less, since
cells run dry). Their product decides, with a little more for cells that are behind; every fourth
slot goes to a cell without a row, the least tried first. A cell whose last accepted rows all
repeated known structures is stopped. Memory is 50 bytes a cell; signatures
are in a temporary file. Costs about 10 ms a block of 64.

    steering = Steering(cells=600, seed=0, options=SteerOptions()); steering.plan(0)
"""

import math
import re
import sqlite3
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hornbook.errors import ConfigError
from hornbook.generate.prompts import digest

MOST_CELLS = 4_000_000
_CANDIDATES = 1_024
_FADE = 0.9
"""What an accepted row's novelty counts for after one more accepted row of its cell."""
_CURVE = 200
_NEIGHBOURS = 160
"""Accepted rows of a topic whose gists are remembered."""
_COVER = 4
"""One slot in so many goes to a cell that has no row yet."""
_PULL = 0.25
"""How much a cell that is behind the others gains on one that is not."""
_GIVE_UP = 40
"""Tries after which a cell without a row gets no more of those: it gives less than one in 13."""
_STOP = re.compile(r"\s*marginal novelty( per dollar)?\s*<\s*(\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True, kw_only=True)
class SteerOptions:
    """How cells are chosen."""

    enabled: bool = True
    """Without it, cells are dealt in rounds, each once before any comes twice."""
    block: int = 64
    """Slots planned at a time."""
    lag: int = 4
    """Blocks that may be under way when one is planned: at most `block * lag` calls at once."""
    dry: int = 8
    """So many accepted rows in a row without a new structure stop a cell."""
    avoid: int = 10
    """Accepted rows of the neighbourhood that a prompt names as "not these"."""
    stop_when: str = ""
    """`marginal novelty < x`: ends the run when the last `window` rows brought fewer than x new
    structures per 1,000 rows; `marginal novelty per dollar < x` likewise. Empty: never."""
    window: int = 1_000
    """Accepted rows over which marginal novelty is measured."""

    def __post_init__(self) -> None:
        for name in ("block", "lag", "dry", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"steer.{name} must be at least 1, not {getattr(self, name)}")
        if self.avoid < 0:
            raise ConfigError(f"steer.avoid must be at least 0, not {self.avoid}")
        self.limit()

    def limit(self) -> tuple[bool, float] | None:
        """`stop_when` as (per dollar, least), if there is one.

        Raises:
            ConfigError: If it is not of that form.
        """
        if not self.stop_when:
            return None
        match = _STOP.fullmatch(self.stop_when)
        if match is None:
            raise ConfigError(
                f"stop_when = {self.stop_when!r}: write `marginal novelty < 50` (new structures "
                "per 1,000 rows) or `marginal novelty per dollar < 50`"
            )
        return bool(match[1]), float(match[2])


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a slot, as far as steering cares."""

    cell: int
    accepted: bool
    shown: bool = False
    """The row shows its cell's concept and difficulty, so it fills the cell."""
    new: bool = False
    """Its structure is one that no earlier row had."""
    gist: str = ""
    """One line that says what an accepted row is about."""
    usd: float = 0.0


class Signatures:
    """Counts of structural signatures, in a temporary file: memory does not grow with them."""

    def __init__(self) -> None:
        # An empty name is SQLite's own temporary database: on disk, gone when closed.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE seen (hash INTEGER PRIMARY KEY, rows INTEGER)")

    def add(self, signature: str) -> int:
        """Counts a row; returns how many had this signature before."""
        key = digest(signature) - 2**63
        row = self._database.execute(
            "INSERT INTO seen VALUES (?, 1) ON CONFLICT (hash) DO UPDATE SET rows = rows + 1 "
            "RETURNING rows",
            (key,),
        ).fetchone()
        return int(row[0]) - 1

    def count(self, signature: str) -> int:
        """How many rows had this signature."""
        key = digest(signature) - 2**63
        row = self._database.execute("SELECT rows FROM seen WHERE hash = ?", (key,)).fetchone()
        return int(row[0]) if row else 0

    def frequencies(self) -> list[tuple[int, int]]:
        """`[(rows of a signature, signatures with so many)]`."""
        return self._database.execute(
            "SELECT rows, count(*) FROM seen GROUP BY rows ORDER BY rows"
        ).fetchall()

    def close(self) -> None:
        """Frees the file."""
        self._database.close()


def effective_numbers(frequencies: Sequence[tuple[int, int]]) -> dict[str, float]:
    """How many distinct items a sample holds, counting them by how they are distributed.

    Args:
        frequencies: `[(rows of an item, items with so many)]`.

    Returns:
        `distinct` (Hill number 0), `effective` (exp of the Shannon entropy, Hill number 1),
        `inverse_simpson` (Hill number 2), `coverage` (Good-Turing: the estimated chance that the
        next row repeats an item).
    """
    total = sum(rows * items for rows, items in frequencies)
    if not total:
        return {"distinct": 0, "effective": 0.0, "inverse_simpson": 0.0, "coverage": 0.0}
    shares = [(rows / total, items) for rows, items in frequencies]
    singles = next((items for rows, items in frequencies if rows == 1), 0)
    return {
        "distinct": sum(items for _, items in frequencies),
        "effective": math.exp(-sum(items * p * math.log(p) for p, items in shares)),
        "inverse_simpson": 1 / sum(items * p * p for p, items in shares),
        "coverage": 1 - singles / total,
    }


class Steering:
    """Plans blocks of slots and learns from their verdicts, given in the order of the slots."""

    def __init__(
        self,
        *,
        cells: int,
        seed: int,
        options: SteerOptions,
        neighbours: int = 1,
    ) -> None:
        """Starts with nothing known.

        Args:
            cells: How many there are; cells of one neighbourhood (a topic) stand together.
            seed: Decides every draw.
            options: See there.
            neighbours: Cells in a neighbourhood: they share a prior and what is "not these".

        Raises:
            ConfigError: If there are more cells than can be kept track of.
        """
        if not 1 <= cells <= MOST_CELLS:
            raise ConfigError(
                f"the curriculum has {cells:,} cells; steering takes 1 to {MOST_CELLS:,}: use "
                "fewer topics, audiences, concepts or difficulties, or turn steering off"
            )
        self.options = options
        self.neighbours = neighbours
        self._seed = seed
        areas = -(-cells // neighbours)
        self.tried = np.zeros(cells, np.int32)
        self.accepted = np.zeros(cells, np.int32)
        self.filled = np.zeros(cells, np.int32)
        self.new = np.zeros(cells, np.int32)
        self.usd = np.zeros(cells, np.float64)
        self._old_fading = np.zeros(cells, np.float32)
        self._new_fading = np.zeros(cells, np.float32)
        self._dry = np.zeros(cells, np.int32)
        self._area = np.zeros((areas, 3), np.float64)  # tried, accepted, new
        self._gists: dict[int, deque[tuple[int, str]]] = {}
        self._waiting: deque[tuple[int, Verdict]] = deque()
        self._window: deque[tuple[int, float]] = deque(maxlen=options.window)
        self._window_new = 0
        self._window_usd = 0.0
        self._spent = 0.0
        self.rows = 0
        self.calls = 0
        self.distinct = 0
        self._curve: list[tuple[int, int, int]] = []
        self._stride = 1
        self.ended = ""
        """Why no further block is planned."""

    # Learning

    def record(self, index: int, verdict: Verdict) -> None:
        """Takes the verdict on a slot; slots come in order, without gaps."""
        self._waiting.append((index, verdict))

    def settled(self, block: int) -> bool:
        """Whether the verdicts that the plan of `block` needs are there."""
        needed = (block - self.options.lag) * self.options.block
        known = self._waiting[-1][0] + 1 if self._waiting else self.calls
        return known >= needed

    def _learn(self, before: float) -> None:
        """Applies the verdicts on slots before an index, and no others."""
        while self._waiting and self._waiting[0][0] < before:
            self._apply(self._waiting.popleft()[1])

    def finish(self) -> None:
        """Applies every verdict; after it, the counts are those of the whole run."""
        self._learn(math.inf)
        self._point(last=True)

    def _apply(self, verdict: Verdict) -> None:
        cell, area = verdict.cell, verdict.cell // self.neighbours
        self.calls += 1
        self._spent += verdict.usd
        self.tried[cell] += 1
        self.usd[cell] += verdict.usd
        self._area[area, 0] += 1
        if verdict.accepted:
            new = verdict.new
            self.rows += 1
            self.distinct += new
            self.accepted[cell] += 1
            self.filled[cell] += verdict.shown
            self.new[cell] += new
            self._dry[cell] = 0 if new else self._dry[cell] + 1
            self._new_fading[cell] = _FADE * self._new_fading[cell] + new
            self._old_fading[cell] = _FADE * self._old_fading[cell] + (not new)
            self._area[area, 1:] += (1, new)
            self._slide(new)
            if verdict.gist and self.options.avoid:
                gists = self._gists.setdefault(area, deque(maxlen=_NEIGHBOURS))
                gists.append((cell, verdict.gist))
        self._point()

    def _slide(self, new: bool) -> None:
        if len(self._window) == self._window.maxlen:
            old, usd = self._window.popleft()
            self._window_new -= old
            self._window_usd -= usd
        self._window.append((int(new), self._spent))
        self._window_new += new
        self._window_usd += self._spent
        self._spent = 0.0

    def _point(self, last: bool = False) -> None:
        """Adds to the curve, which keeps at most `_CURVE` points by dropping every other one."""
        if self._curve and self._curve[-1][0] == self.calls:
            return
        if self.calls % self._stride == 0 or last:
            self._curve.append((self.calls, self.rows, self.distinct))
        if len(self._curve) > _CURVE:
            self._curve = self._curve[1::2]
            self._stride *= 2

    # Planning

    def plan(self, block: int) -> list[int]:
        """The cells of a block's slots; empty when the run is to end, and `ended` says why.

        Without steering they mean nothing, and only `stop_when` ends the run.

        `settled(block)` must hold.
        """
        size = self.options.block
        self._learn((block - self.options.lag) * size)
        limit = self.options.limit()
        if limit is not None and len(self._window) == self._window.maxlen:
            per_dollar, least = limit
            now = self.marginal()["per_dollar" if per_dollar else "per_1000_rows"]
            if now is not None and now < least:
                self.ended = f"{self.options.stop_when} (it is {now:.1f})"
                return []
        if not self.options.enabled:
            return [0] * size  # cells are dealt by whoever asks
        rng = np.random.RandomState(digest("steer", self._seed, block) % 2**32)
        cells = self._candidates(rng)
        if not len(cells):
            self.ended = "every cell only repeats what is there"
            return []
        # Priors from the neighbourhood, worth two observations.
        tried, accepted, new = self._area[cells // self.neighbours].T
        gives = (accepted + 1) / (tried + 2)
        fresh = (new + 1) / (accepted + 2)
        failed = self.tried[cells] - self.accepted[cells]
        shape = (size, len(cells))
        # RandomState's streams are frozen for good, which `default_rng`'s are not.
        draws = rng.beta(2 * gives + self.accepted[cells], 2 * (1 - gives) + failed, shape)
        draws *= rng.beta(
            2 * fresh + self._new_fading[cells], 2 * (1 - fresh) + self._old_fading[cells], shape
        )
        expected = self.filled[cells].astype(np.float64)
        tries = self.tried[cells].astype(np.float64)
        mean = float(self.filled.sum()) / len(self.filled)
        chosen = []
        for place, draw in enumerate(draws):
            empty = np.flatnonzero((expected < 1) & (tries < _GIVE_UP))
            if place % _COVER == 0 and len(empty):
                # Fewest tries first, so that every cell gets its chance; draws break ties.
                best = int(empty[np.argmin(tries[empty] - draw[empty])])
            else:
                behind = np.clip(1.0 - expected / (1.0 + mean), 0.0, 1.0)
                best = int(np.argmax(draw * (1.0 + _PULL * behind)))
            # The slot's own row counts as there, as far as it is likely to come.
            expected[best] += gives[best]
            tries[best] += 1
            chosen.append(int(cells[best]))
        return chosen

    def _candidates(self, rng: np.random.RandomState) -> np.ndarray:
        """Cells that may be chosen: all, or a fair share of each sort where there are many."""
        alive = np.flatnonzero(self._dry < self.options.dry)
        if len(alive) <= _CANDIDATES:
            return alive
        seen = self.tried[alive] > 0
        half = _CANDIDATES // 2
        known, unknown = alive[seen], alive[~seen]
        if len(unknown) > _CANDIDATES - min(half, len(known)):
            unknown = rng.choice(unknown, _CANDIDATES - min(half, len(known)), replace=False)
        if len(known) > _CANDIDATES - len(unknown):
            known = rng.choice(known, _CANDIDATES - len(unknown), replace=False)
        return np.sort(np.concatenate([known, unknown]))

    def nearest(self, cell: int, axes: Sequence[int]) -> tuple[str, ...]:
        """What was accepted near a cell, nearest first: by how many of its axes agree.

        Args:
            cell: The cell.
            axes: Sizes of the axes inside a neighbourhood, outermost first.
        """
        gists = self._gists.get(cell // self.neighbours, ())
        here = _digits(cell % self.neighbours, axes)

        def apart(entry: tuple[int, tuple[int, str]]) -> tuple[int, int]:
            age, (other, _) = entry
            there = _digits(other % self.neighbours, axes)
            return sum(a != b for a, b in zip(here, there, strict=True)), -age

        ordered = sorted(enumerate(gists), key=apart)
        return tuple(gist for _, (_, gist) in ordered[: self.options.avoid])

    # Saying

    def marginal(self) -> dict[str, float | None]:
        """New structures per 1,000 accepted rows and per dollar, over the last `window` rows."""
        rows = len(self._window)
        usd = self._window_usd
        return {
            "per_1000_rows": 1_000 * self._window_new / rows if rows else None,
            "per_dollar": self._window_new / usd if usd > 0 else None,
        }

    def report(self, frequencies: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Coverage and novelty of what was accepted.

        Args:
            frequencies: Of its structures, as `Signatures.frequencies` gives them.
        """
        return {
            "cells": len(self.tried),
            "cells_tried": int((self.tried > 0).sum()),
            "cells_with_rows": int((self.accepted > 0).sum()),
            "cells_filled": int((self.filled > 0).sum()),
            "cells_stopped": int((self._dry >= self.options.dry).sum()),
            **{name: round(value, 3) for name, value in effective_numbers(frequencies).items()},
            "marginal_novelty": self.marginal(),
            "curve": [list(point) for point in self._curve],
            "ended": self.ended,
        }


def _digits(number: int, sizes: Sequence[int]) -> list[int]:
    """A number in the mixed radix of `sizes`."""
    digits = []
    for size in reversed(sizes):
        number, digit = divmod(number, size)
        digits.append(digit)
    return digits[::-1]
