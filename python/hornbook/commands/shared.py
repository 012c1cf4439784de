"""What every part of the command line shares: the app, option types, printing."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
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
SEVERAL = Parameter(negative="", consume_multiple=1)
"""An option of a list: `--k 1 10`, or `--k 1 --k 10`. Inputs stand before it, or before another."""
Settings = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        metavar="KEY=VALUE",
        help="A recipe key: section.key=value. Given again for each.",
    ),
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

_WIDTH = 76
"""Examples stand in a terminal of 80 columns without being folded."""


def commands_of(group: App, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """Every command below `group` with its words, a group before what stands in it."""
    for name in group:
        if not name.startswith("-"):
            yield (*path, name), group[name]
            yield from commands_of(group[name], (*path, name))


def show_examples(root: App) -> None:
    """Puts the examples of each command's docstring below its help; cyclopts leaves them out."""
    for _, command in commands_of(root):
        found = examples_of(command.default_command)
        # One without examples must not show its group's.
        command.help_epilogue = f"Examples:\n\n```text\n{found}\n```" if found else ""


def examples_of(function: Callable[..., Any] | None) -> str:
    """The `Examples:` of a command's docstring, as a shell takes them; empty if there are none."""
    text = inspect.getdoc(function) or "" if function else ""
    _, _, section = text.partition("\nExamples:\n")
    lines = inspect.cleandoc(section).split("\n")
    return "\n".join(
        f"{folded} \\" if following.startswith(" ") else folded
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        for folded in [_folded(line)]
    ).strip()


def _folded(line: str) -> str:
    """A long command, gone on with on the next line from an option on."""
    parts = re.split(r" (?=--|<)", line)
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) < _WIDTH - 2:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)


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
