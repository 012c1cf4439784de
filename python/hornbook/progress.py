"""Progress of long work, shown where there is a terminal and passed on where there is a parent.

Library code calls `advance` or wraps a loop in `track`; whoever runs it decides with `listen` where
that goes. Nobody listening costs one function call.

    with progress.shown(): hornbook.dedup(["data/"], "clean/")
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # rich costs more to import than small stages to run
    from rich.progress import Progress, TaskID

T = TypeVar("T")
Listener = Callable[[str, int, int | None, str], None]

_listener: Listener | None = None


def advance(label: str, done: int, total: int | None = None, note: str = "") -> None:
    """Says that `done` of `total` units of `label` are done; `note` is shown beside the bar."""
    if _listener is not None:
        _listener(label, done, total, note)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterates over `items`, saying how far it is at most ten times a second."""
    last = 0.0
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > 0.1:
            advance(label, done, total)
            last = now
    advance(label, done, total)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Sends progress to `listener` inside the block."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def bars() -> "Progress":
    """Bars on standard error: count, elapsed, time left; nothing where there is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Note(ProgressColumn):
        """What does not fit of it is cut, so that the numbers beside it stay whole."""

        def render(self, task: Task) -> Text:
            note = str(task.fields["note"])
            return Text(note, style="dim", no_wrap=True, overflow="ellipsis")

    def whole() -> Column:
        return Column(no_wrap=True)

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole()),
        BarColumn(bar_width=24),
        MofNCompleteColumn(table_column=whole()),
        TimeElapsedColumn(table_column=whole()),
        TimeRemainingColumn(table_column=whole()),
        Note(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


class Bars:
    """A listener that draws one bar for each label."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, label: str, done: int, total: int | None, note: str) -> None:
        """Draws how far `label` is."""
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total, note=note)
        self._progress.update(self._tasks[label], completed=done, total=total, note=note)

    def drop(self, label: str) -> None:
        """Removes a bar."""
        task = self._tasks.pop(label, None)
        if task is not None:
            self._progress.remove_task(task)


@contextmanager
def shown() -> Iterator[None]:
    """Draws the progress of the block on standard error."""
    with bars() as progress, listen(Bars(progress)):
        yield
