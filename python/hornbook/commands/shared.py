"""What every part of the command line shares: the app, option types, printing."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Group, Parameter
from rich.console import Console

import hornbook
from hornbook.errors import InputError

app = App(
    name="hornbook",
    help="Make textbook-quality data, train a small code model on it, measure what it learned.",
    version=hornbook.__version__,
    suppress_keyboard_interrupt=False,  # `main` gives it the exit code for resumable stops
)
RUN = Group("The whole recipe", sort_key=1)
DATA = Group("Data", sort_key=2)
MODEL = Group("Models", sort_key=3)
LOOK = Group("Looking at results", sort_key=4)

Out = Annotated[Path, Parameter(name=["--out", "-o"], help="The stage's folder.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for machines.")]
Settings = Annotated[
    list[str] | None,
    Parameter(name="--set", negative="", help="A recipe key: section.key=value. Repeatable."),
]
Accept = Annotated[
    bool,
    Parameter(
        name="--i-accept-unsafe-execution",
        negative="",
        help="Run model-written code with resource limits only, where isolation can't be had.",
    ),
]

console = Console()


def show(report: Mapping[str, Any], as_json: bool) -> None:
    """Prints a whole report, as a table or as JSON."""
    if as_json:
        print(json.dumps(dict(report), ensure_ascii=False))
    else:
        print(report)


def summary(report: Mapping[str, Any], as_json: bool) -> None:
    """A stage's manifest in one line, or whole as JSON."""
    if as_json:
        print(json.dumps(dict(report), ensure_ascii=False))
        return
    counts = report["counts"]
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in counts["dropped"].items() if n)
    parts = [f"{counts['kept']:,} kept of {counts['in']:,}"]
    if dropped:
        parts.append(f"dropped: {dropped}")
    if counts["rejected"]:
        parts.append(f"{counts['rejected']:,} unusable rows set aside in rejected/")
    parts.append(f"{report['seconds']:.1f} s")
    print(f"{report['stage']}: {'; '.join(parts)}")


def read_stdin() -> str:
    """Standard input, whatever the locale says of its encoding.

    Raises:
        InputError: If it is closed, or not UTF-8.
    """
    if sys.stdin is None:
        raise InputError("standard input is closed: give the text itself")
    try:
        return sys.stdin.buffer.read().decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8 at byte {error.start}") from error


def printable(text: str) -> str:
    """Text whose control characters are shown: a terminal must not obey names and rows."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
