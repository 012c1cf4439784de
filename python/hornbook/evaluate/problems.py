"""Problems in HumanEval's form, and where an answer to one ends.

A problem is a prompt, which a model continues, and a test, which runs after the continuation. Rows
of a file hold `task_id`, `prompt`, `test` (defining `check(candidate)`), `entry_point` and, if
there is one, `canonical_solution`; a `group` or `level` is kept for scores by group.

    python -c "from hornbook.evaluate import load_problems; print(len(load_problems('humaneval')))"
"""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.errors import ConfigError, InputError
from hornbook.evaluate.sandbox import Program
from hornbook.manifest import StrPath

DATA_VARIABLE = "HORNBOOK_DATA"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem."""

    task_id: str
    """Its name in results."""
    prompt: str
    """What the model continues."""
    test: str
    """What runs after the answer; it fails by raising."""
    entry_point: str
    """The function that is asked for."""
    canonical_solution: str = ""
    """A continuation of the prompt that passes."""
    preamble: str = ""
    """What stands before the answer in the program, normally the prompt."""
    group: str | None = None
    """For scores by group."""
    trusted: bool = False
    """Whether the test is a known benchmark's own, checked by its hash: see `sandbox.Program`."""

    def program(self, completion: str) -> str:
        """The program that passes if the completion does."""
        return self.split(completion).whole

    def split(self, completion: str) -> Program:
        """The completion and its tests, for processes of their own."""
        return Program(
            source=f"{self.preamble}{completion}",
            tests=self.test,
            entry_point=self.entry_point,
            preamble=self.preamble,
            trusted=self.trusted,
        )

    def truncated(self, completion: str) -> str:
        """The completion without what follows the function that was asked for."""
        return truncate(self.preamble, completion, self.entry_point)


@dataclass(frozen=True, kw_only=True)
class ProblemSet(Sequence[Problem]):
    """Problems with what has to be known of them to compare scores."""

    name: str
    """`humaneval`, `mbpp`, `mbpp-sanitized`, or the file's name."""
    problems: tuple[Problem, ...]
    """In the file's order."""
    path: Path | None = None
    """The file, if they come from one."""
    sha256: str
    """Of its bytes."""
    protocol: str
    """How prompts are made."""
    stop: tuple[str, ...]
    """Strings that end a completion."""

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        return self.problems[index]

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)


def load_problems(
    name_or_path: StrPath, *, protocol: str | None = None, split: str = "test"
) -> ProblemSet:
    """Opens a benchmark or a file of problems.

    Args:
        name_or_path: `humaneval`, `mbpp`, `mbpp-sanitized` (files from the folder in the variable
            HORNBOOK_DATA, checked by their hash), or a JSON-lines file (`.gz` too) in HumanEval's
            form.
        protocol: For MBPP, `docstring` (the default) or `3-shot`: see `mbpp`.
        split: For MBPP, `test` (ids 11 to 510, as in the paper that made it), `validation` (511 to
            600) or `all`.

    Raises:
        ConfigError: If the name or an option is unknown, or HORNBOOK_DATA is not set.
        InputError: If the file is missing, torn, or not the one that scores are compared on.
    """
    from hornbook.evaluate import humaneval, mbpp

    if str(name_or_path) in ("mbpp", "mbpp-sanitized"):
        return mbpp.load(str(name_or_path), protocol=protocol or "docstring", split=split)
    if protocol is not None:
        raise ConfigError(f"`{name_or_path}` has one protocol; leave out `protocol`")
    if str(name_or_path) == "humaneval":
        return humaneval.load()
    path = Path(name_or_path)
    if not path.exists() and path.parent == Path() and not path.suffix:
        raise ConfigError(
            f"no benchmark or file `{name_or_path}`: use humaneval, mbpp, mbpp-sanitized or a path"
        )
    return humaneval.load_file(path)


def benchmark_file(name: str, sha256: str) -> Path:
    """The path of a benchmark's file, after checking its hash.

    Raises:
        ConfigError: If HORNBOOK_DATA is not set.
        InputError: If the file is missing or another one.
    """
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        raise ConfigError(
            f"set {DATA_VARIABLE} to a folder that holds {name}, or give the problems' path"
        )
    path = Path(folder) / name
    found = hashlib.sha256(read_bytes(path)).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path}: sha256 is {found}, but scores are compared on {sha256}; get the original file"
        )
    return path


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line, row) of a JSON-lines file, plain or `.gz`.

    Raises:
        InputError: Naming the file and line that is not a JSON object.
    """
    data = read_bytes(path)
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: not a whole gzip file ({error})") from error
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object")
        yield number, row


def text_field(row: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    """A row's string.

    Raises:
        InputError: If it is missing and has no default, or is something else.
    """
    value = row.get(name, default)
    if not isinstance(value, str):
        raise InputError(f"{where}: `{name}` is missing or not a string")
    return value


def cut_at_stop(completion: str, stop: Sequence[str]) -> str:
    """The completion up to the first of the stop strings."""
    ends = [at for word in stop if (at := completion.find(word)) >= 0]
    return completion[: min(ends, default=len(completion))]


# Everything in which a line's start would not be a statement's: comments, strings, brackets.
_LEXEME = re.compile(
    r"""\#[^\n]*
    | \"\"\"(?:[^\\"]|\\.|"(?!""))*\"\"\"
    | '''(?:[^\\']|\\.|'(?!''))*'''
    | "(?:[^\\"\n]|\\.)*"
    | '(?:[^\\'\n]|\\.)*'
    | \\\r?\n
    | [()\[\]{}]
    | \n""",
    re.VERBOSE | re.DOTALL,
)
_INDENTED_OR_EMPTY = re.compile(r"[ \t\f]*(?:\#|\r?\n|\Z)|[ \t\f]")


def truncate(preamble: str, completion: str, entry_point: str) -> str:
    """Cuts an answer at the first top-level statement after the function that was asked for.

    Functions right after it whose names it mentions stay: they are its helpers. If the answer does
    not continue the preamble's function but writes it out again, that one counts; what stands
    before it (imports, helpers) stays. An answer without the function stays whole. For text that
    parses the cut is where the syntax tree puts it; being made by a lexer it also works for text
    that does not, takes linear time and cannot be brought down by any input.

    Returns:
        The start of `completion`.
    """
    text, answer = preamble + completion, len(preamble)
    starts = [(at, _DEFINITION.match(text, at)) for at in _statement_starts(text)]
    named = [(at, match and match[1]) for at, match in starts]
    tail = [(at, name) for at, name in named if at >= answer]
    begun = (entry_point in [name for at, name in named if at < answer]) and not (
        # nothing was added to the preamble's function, and the answer writes it out again
        tail and not text[answer : tail[0][0]].strip() and entry_point in [n for _, n in tail]
    )
    used: set[str] = set()
    seen = answer
    for at, name in tail:
        if begun:
            used.update(re.findall(r"\w+", text[seen:at]))
            seen = at
            if name is None or name == entry_point or name not in used:
                return text[answer:at]
        elif name == entry_point:
            begun = True
    return completion


_DEFINITION = re.compile(r"(?:async[ \t]+)?def[ \t]+(\w+)")


def _statement_starts(text: str) -> Iterator[int]:
    """Where top-level statements (or a line of decorators) begin."""
    depth, position = 0, 0
    if not _INDENTED_OR_EMPTY.match(text):
        yield 0
    for match in _LEXEME.finditer(text):
        lexeme = match.group()
        if lexeme in ("(", "[", "{"):
            depth += 1
        elif lexeme in (")", "]", "}"):
            depth = max(0, depth - 1)
        elif lexeme == "\n" and depth == 0:
            position = match.end()
            if position < len(text) and not _INDENTED_OR_EMPTY.match(text, position):
                yield position
