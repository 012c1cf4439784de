"""What watches over a run: signals, losses that are not finite, spikes, signs of life.

tail -f runs/demo/train/raw/seed-0/base/events.jsonl
"""

import json
import math
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hornbook.errors import HornbookError, StorageError

WINDOW = 100
"""Losses that a new one is compared with."""
FEWEST = 20
"""Fewer than that say nothing about what is usual."""
BEAT_S = 2.0
"""Seconds between two signs of life, at least."""


class Interrupted(HornbookError):  # noqa: N818
    """A signal stopped training; it was saved and goes on where it was when started again."""

    exit_code = 3


class Diverged(HornbookError):  # noqa: N818
    """Too many steps in a row had a loss or gradient that is not finite."""


class Spikes:
    """Finds losses far above the last ones.

    Args:
        threshold: How many standard deviations above their mean; 0 finds none.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.recent: deque[float] = deque(maxlen=WINDOW)

    def add(self, loss: float) -> float | None:
        """Notes a finite loss; returns by how many standard deviations it sticks out, if too far.

        A deviation below a thousandth of the mean counts as that much, so that a flat curve does
        not turn rounding into spikes.
        """
        score = 0.0
        if self.threshold and len(self.recent) >= FEWEST:
            mean = math.fsum(self.recent) / len(self.recent)
            spread = math.sqrt(math.fsum((x - mean) ** 2 for x in self.recent) / len(self.recent))
            score = (loss - mean) / max(spread, 1e-3 * abs(mean), 1e-12)
        self.recent.append(loss)
        return score if self.threshold and score > self.threshold else None


class Events:
    """`events.jsonl`: what happened beside ordinary steps, one JSON line each, never rewritten.

    Args:
        path: The file, or None for a process that keeps none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def add(self, event: str, **details: Any) -> None:
        """Adds a line, on disk when this returns."""
        if self.path is None:
            return
        entry = {"time": round(time.time(), 3), "event": event, **details}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error


class Heartbeat:
    """`heartbeat.json`: the step last done, when, and by whom; older than some steps means stuck.

    Args:
        path: The file, or None for a process that keeps none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.last = path, 0.0

    def beat(self, step: int) -> None:
        """Says that a step is done; written at most every two seconds."""
        now = time.monotonic()
        if self.path is None or now - self.last < BEAT_S:
            return
        self.last = now
        sign = {"step": step, "time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            temporary.write_text(json.dumps(sign) + "\n", encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error


def merged(spans: list[list[int]]) -> list[list[int]]:
    """Ranges (first and last) in order, those that touch as one."""
    made: list[list[int]] = []
    for first, last in sorted(spans):
        if made and first <= made[-1][1] + 1:
            made[-1][1] = max(made[-1][1], last)
        else:
            made.append([first, last])
    return made


@contextmanager
def signals() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGINT and SIGUSR1 set; a second one acts as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    names = [name for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
