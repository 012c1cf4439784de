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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.errors import ConfigError, InputError, need
from hornbook.evaluate.extract import truncate
from hornbook.evaluate.sandbox import Program
from hornbook.files import StrPath

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
    together: bool = False
    """Run answer and tests in one process, as its results are too large to cross: never
    tamper-proof."""

    def program(self, completion: str) -> str:
        """The program that passes if the completion does."""
        return f"{self.preamble}{completion}\n{self.test}\n"

    def split(self, completion: str) -> Program | str:
        """The completion and its tests, for processes of their own where they may be."""
        if self.together:
            return self.program(completion)
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
    """`humaneval`, `mbpp`, `mbpp-sanitized`, `humaneval+`, ..., or the file's name."""
    problems: tuple[Problem, ...]
    """In the file's order."""
    path: Path | None = None
    """The file, if they come from one."""
    sha256: str
    """Of the file's bytes; of the rows' text where they come from the Hub."""
    protocol: str
    """How prompts are made."""
    stop: tuple[str, ...]
    """Strings that end a completion."""
    memory_mb: int = 1024
    """Address space for each program, unless a caller says otherwise."""
    timeout_s: float = 10.0
    """CPU seconds for each program, unless a caller says otherwise."""

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        return self.problems[index]

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a benchmark's rows are found, and what proves that they are the benchmark's."""

    file: str
    """Its name in the folder of HORNBOOK_DATA."""
    sha256: str
    """Of the file that scores are compared on."""
    rows_sha256: str = ""
    """Of the rows' `fields`, sorted by task: the same in any container; empty: only the file."""
    fields: tuple[str, ...] = ()
    """What a score depends on."""
    hub: tuple[str, ...] = ()
    """Its configuration on the Hub, if it has several there."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A benchmark's rows, checked."""

    rows: tuple[tuple[int, dict[str, Any]], ...]
    """With their lines."""
    sha256: str
    path: Path | None

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.path or "the Hub's rows")


def load_problems(
    name_or_path: StrPath,
    *,
    protocol: str | None = None,
    split: str = "test",
    data: StrPath | None = None,
) -> ProblemSet:
    """Opens a benchmark or a file of problems.

    Args:
        name_or_path: `humaneval`, `mbpp`, `mbpp-sanitized`, `humaneval+`, `mbpp+` (checked by
            their hash); `unconventional`, which comes with this package; or a JSON-lines file
            (`.gz` too) in HumanEval's form.
        protocol: For MBPP, `docstring` (the default), `3-shot` or `sanitized`: see `mbpp`.
        split: For MBPP, `test` (ids 11 to 510, as in the paper that made it), `validation` (511 to
            600) or `all`.
        data: The benchmark's file, or its name on the Hub (`openai/openai_humaneval`,
            `google-research-datasets/mbpp`); if None, the file in the folder of the variable
            HORNBOOK_DATA.

    Raises:
        ConfigError: If the name or an option is unknown, or HORNBOOK_DATA is not set.
        InputError: If the data is missing, torn, or not the one that scores are compared on.
        MissingExtraError: For a Hub name without the `datasets` package.
    """
    from hornbook.evaluate import humaneval, mbpp, plus, unconventional

    name = str(name_or_path)
    if name in ("mbpp", "mbpp-sanitized"):
        return mbpp.load(name, protocol=protocol or "docstring", split=split, data=data)
    if protocol is not None:
        raise ConfigError(f"`{name_or_path}` has one protocol; leave out `protocol`")
    if name in ("humaneval+", "mbpp+"):
        return plus.load(name, data)
    if name == "humaneval":
        return humaneval.load(data)
    if data is not None:
        raise ConfigError(f"`data` is for a named benchmark, not for `{name_or_path}`")
    if name == "unconventional":
        return unconventional.load()
    path = Path(name_or_path)
    if not path.exists() and path.parent == Path() and not path.suffix:
        raise ConfigError(
            f"no benchmark or file `{name_or_path}`: use humaneval, humaneval+, mbpp, mbpp+, "
            "mbpp-sanitized, unconventional or a path"
        )
    return humaneval.load_file(path)


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def benchmark_rows(source: Source, data: StrPath | None = None) -> Rows:
    """A benchmark's rows, after checking that they are the ones that scores are compared on.

    Args:
        source: Which.
        data: A file or a Hub name; None for HORNBOOK_DATA.

    Raises:
        ConfigError: If HORNBOOK_DATA is not set.
        InputError: If the data is missing or another.
    """
    if data is None:
        folder = os.environ.get(DATA_VARIABLE)
        if not folder:
            raise ConfigError(
                f"set {DATA_VARIABLE} to a folder that holds {source.file}, or give its path "
                "or Hub name with --data"
            )
        path: Path | None = Path(folder) / source.file
    else:
        path = Path(data)
        if not path.is_file() and _HUB_NAME.fullmatch(str(data)):
            path = None
    if path is None:
        rows = [(number, row) for number, row in enumerate(_hub_rows(str(data), source), 1)]
        found = _rows_hash((row for _, row in rows), source.fields) if rows else "of no rows"
        if not source.rows_sha256 or found != source.rows_sha256:
            raise InputError(
                f"{data}: its rows are not {source.file}'s (their sha256 is {found}), and scores "
                "are compared on those; give the original file's path"
            )
        return Rows(rows=tuple(rows), sha256=found, path=None)
    found = hashlib.sha256(read_bytes(path)).hexdigest()
    if found != source.sha256:
        raise InputError(
            f"{path}: sha256 is {found}, but scores are compared on {source.sha256}; "
            "get the original file"
        )
    return Rows(rows=tuple(_any_rows(path)), sha256=found, path=path)


def _any_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix != ".json":
        yield from read_rows(path)
        return
    try:
        yield from enumerate(json.loads(read_bytes(path)), 1)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def _hub_rows(name: str, source: Source) -> Iterator[dict[str, Any]]:
    need("datasets", "eval")
    import datasets

    try:
        splits = datasets.load_dataset(name, *source.hub)
    except Exception as error:  # the package raises what its many back ends do
        raise InputError(f"{name}: cannot be had from the Hub ({error})") from error
    for rows in splits.values():
        yield from (dict(row) for row in rows)


def _rows_hash(rows: Iterable[dict[str, Any]], fields: Sequence[str]) -> str:
    """Of what a score depends on, whatever the container, its order and its line ends."""
    texts = sorted(
        json.dumps([plain_lines(row.get(name)) for name in fields], sort_keys=True) for row in rows
    )
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def plain_lines(value: Any) -> Any:
    """Strings with "\\n" for line ends, also in lists."""
    if isinstance(value, list):
        return [plain_lines(item) for item in value]
    return value.replace("\r\n", "\n") if isinstance(value, str) else value


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


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file that a stage wrote, each with its place, for errors.

    Raises:
        InputError: At a line that is none: the stage wrote whole ones.
    """
    try:
        for number, entry in read_rows(path):
            yield f"{path}, line {number}", entry
    except InputError as error:
        raise InputError(
            f"{error}; the file is damaged: remove the stage's folder and run the recipe again"
        ) from error


def text_field(row: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    """A row's string.

    Raises:
        InputError: If it is missing and has no default, or is something else.
    """
    value = row.get(name, default)
    if not isinstance(value, str):
        raise InputError(f"{where}: `{name}` is missing or not a string")
    return value
