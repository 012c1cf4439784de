"""What decontamination looks for: benchmark problems, and sets of n-grams that hold only hashes.

No benchmark travels in this package. Those known by name are read from the folder that the
environment variable `HORNBOOK_DATA` names; any problem file of the same form will do. To look for
a benchmark where its text must not be, save its n-grams and take the file there: it holds 64- and
128-bit hashes.

    save_ngrams("tests.ngrams.gz", ["humaneval", "mbpp"])
"""

import ast
import gzip
import json
import os
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hornbook import _core
from hornbook.errors import ConfigError, InputError
from hornbook.files import StrPath

DATA_VARIABLE = "HORNBOOK_DATA"
"""Environment variable: the folder that holds the benchmarks known by name."""

BENCHMARKS = {
    "humaneval": "HumanEval.jsonl.gz",
    "humaneval+": "HumanEvalPlus.jsonl.gz",
    "mbpp": "mbpp.jsonl",
    "mbpp+": "MbppPlus.jsonl.gz",
}
"""Benchmarks known by name, and their files in that folder."""

FIELDS = ("docstring", "program", "tests")
"""What a problem consists of."""

Gram = tuple[str, str, int, list[tuple[int, int]]]
"""A hashed n-gram: key and check in hexadecimal, words, `(problem, field)` that hold it."""

_FORMAT = "hornbook n-grams"
_PREFIX = 8
_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What decontamination needs of a benchmark item; what it does not have is empty."""

    task_id: str
    """Its name in evidence."""
    docstring: str = ""
    """What it asks for, in words: the docstring of its function, or MBPP's `text`."""
    program: str = ""
    """The reference program, with the prompt where that is part of it."""
    tests: str = ""
    """Its tests, as code."""
    entry_point: str | None = None
    """The function of the program that solves the problem, where the benchmark says so."""


@dataclass(frozen=True, kw_only=True)
class NgramRule:
    """How texts become n-grams."""

    ngram: int = 13
    """Words in an n-gram: runs of `[A-Za-z0-9_]` and non-ASCII alphanumerics, lower-cased."""
    fields: tuple[str, ...] = ("docstring", "program")
    """Which fields of a problem count; the paper compares `docstring` alone."""
    short: bool = True
    """Texts of fewer words than n, but eight or more, count whole."""
    trivial: bool = False
    """Also count n-grams of which less than a third are distinct words of two letters or more:
    rows of numbers, alphabets, repeated words."""
    ignore: tuple[str, ...] = ()
    """Texts whose n-grams never count, such as licences and idioms."""

    def __post_init__(self) -> None:
        if not 1 <= self.ngram < 2**31:
            raise ConfigError(f"ngram: {self.ngram} is not from 1 to 2^31 - 1")
        if not self.fields or not set(self.fields) <= set(FIELDS):
            raise ConfigError(f"fields: {self.fields!r} is not some of {', '.join(FIELDS)}")


@dataclass(frozen=True)
class Contaminants:
    """Problems, and hashed n-grams of more problems."""

    problems: list[Problem]
    """Those of hashed n-grams have a name and nothing else."""
    hashed: list[Gram] = field(default_factory=list)
    """N-grams from files, their problems numbered as in `problems`."""

    def ngrams(self, rule: NgramRule) -> "_core.NgramSet":
        """All n-grams to look for."""
        texts = [
            (number, FIELDS.index(name), text)
            for number, problem in enumerate(self.problems)
            for name in rule.fields
            if (text := getattr(problem, name))
        ]
        return _core.NgramSet(
            rule.ngram, texts, self.hashed, rule.short, rule.trivial, list(rule.ignore)
        )


def benchmark_path(benchmark: StrPath) -> Path:
    """The file of a benchmark known by name, or the path itself.

    Raises:
        ConfigError: If it is not there, saying how to make it so.
    """
    file = BENCHMARKS.get(os.fspath(benchmark))
    if file is None:
        if not Path(benchmark).is_file():
            raise ConfigError(
                f"benchmarks: `{os.fspath(benchmark)}` is neither one of {', '.join(BENCHMARKS)} "
                "nor a file"
            )
        return Path(benchmark)
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        raise ConfigError(
            f"benchmarks: `{benchmark}` is looked up in the folder that the environment variable "
            f"{DATA_VARIABLE} names, which is not set; set it to the folder that holds {file}, or "
            "give the file's path"
        )
    path = Path(folder) / file
    if not path.is_file():
        raise ConfigError(
            f"benchmarks: no {file} in {folder} (from {DATA_VARIABLE}); put it there, or give the "
            "file's path"
        )
    return path


def load(files: Sequence[Path], rule: NgramRule) -> Contaminants:
    """Reads problem files and files of hashed n-grams.

    Raises:
        InputError: Naming the line that is neither.
        ConfigError: If hashed n-grams were made with another number of words.
    """
    problems: list[Problem] = []
    hashed: list[Gram] = []
    for path in files:
        text = _read(path)
        if not text.startswith("{") or _FORMAT not in text[: text.find("\n")]:
            problems += _problems(path, text)
            continue
        names, grams = _hashed(path, text, rule.ngram)
        first = len(problems)
        hashed += [
            (key, check, words, [(first + item, part) for item, part in owners])
            for key, check, words, owners in grams
        ]
        problems += [Problem(task_id=name) for name in names]
    return Contaminants(problems, hashed)


def load_problems(path: StrPath) -> list[Problem]:
    """Reads problems: one JSON object a line, or a JSON list; plain or gzip.

    HumanEval's form (also of HumanEval+ and MBPP+): `prompt` and `canonical_solution`, together the
    reference program, optionally `task_id`, `entry_point`, `test` or `assertion`. MBPP's form:
    `text` (or `prompt`) and `code`, optionally `task_id` and `test_list`, whose first test tells
    the entry point. Other fields are not looked at.

    Raises:
        InputError: Naming the line that is neither, or if there is no problem in the file.
    """
    return _problems(Path(path), _read(Path(path)))


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable problem file ({error})") from error


def _problems(path: Path, text: str) -> list[Problem]:
    rows: list[tuple[int, Any]] = []
    if text.lstrip().startswith("[") and text.rstrip().endswith("]") and "\n[" not in text:
        try:
            rows = list(enumerate(json.loads(text), 1))
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error})") from error
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append((number, json.loads(line)))
                except ValueError as error:
                    raise InputError(f"{path}: line {number} is not JSON ({error})") from error
    if not rows:
        raise InputError(f"{path}: holds no problem")
    return [_problem(path, number, row) for number, row in rows]


def _problem(path: Path, number: int, row: Any) -> Problem:
    def value(name: str) -> str | None:
        # MBPP's programs have Windows line ends.
        found = row.get(name) if isinstance(row, dict) else None
        return found.replace("\r\n", "\n") if isinstance(found, str) else None

    prompt, solution = value("prompt"), value("canonical_solution")
    if prompt is not None and solution is not None:
        entry_point = value("entry_point")
        return Problem(
            task_id=str(row.get("task_id", f"{path.name}:{number}")),
            docstring=_docstring(prompt, solution, entry_point),
            program=prompt + solution,
            tests=value("test") or value("assertion") or "",
            entry_point=entry_point,
        )
    text, code = value("text"), value("code")
    text = prompt if text is None else text
    if text is not None and code is not None:
        tests = row.get("test_list")
        tests = tests if isinstance(tests, list) else []
        return Problem(
            task_id=f"MBPP/{row.get('task_id', number)}",
            docstring=text,
            program=code,
            tests="\n".join(test for test in tests if isinstance(test, str)),
            entry_point=_tested_function(code, tests),
        )
    raise InputError(
        f"{path}: line {number} has neither `prompt` and `canonical_solution` nor `text` (or "
        "`prompt`) and `code`, all strings"
    )


def _docstring(prompt: str, solution: str, entry_point: str | None) -> str:
    """The docstring of the entry point, or of the module; empty if there is none."""
    tree = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes are the benchmark's affair
        for source in (prompt + solution, prompt + "\n    pass\n"):
            try:
                tree = ast.parse(source)
                break
            except (SyntaxError, ValueError):
                continue
    if tree is None:
        return ""
    for node in tree.body:  # nearly always there, and found without a walk through everything
        if isinstance(node, ast.FunctionDef) and node.name == entry_point:
            found = ast.get_docstring(node, clean=False)
            if found:
                return found
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    entry = [node for node in defined if node.name == entry_point]
    nodes: list[ast.FunctionDef | ast.Module] = [*(entry or defined), tree]
    texts = [ast.get_docstring(node, clean=False) for node in nodes]
    return next((text for text in texts if text), "")


def _tested_function(code: str, tests: Sequence[Any]) -> str | None:
    """The function of the code that the first test calls."""
    if not (tests and isinstance(tests[0], str)):
        return None
    defined = set(re.findall(r"^def (\w+)", code, flags=re.MULTILINE))
    return next((name for name in re.findall(r"\w+", tests[0]) if name in defined), None)


# Hashed n-gram sets


def save_ngrams(
    path: StrPath,
    benchmarks: Sequence[StrPath],
    *,
    ngram: int = 13,
    fields: Sequence[str] = ("docstring", "program"),
    short: bool = True,
    trivial: bool = False,
    ignore: Sequence[str] = (),
) -> int:
    """Saves the hashed n-grams of benchmarks; the file can be named wherever a benchmark can.

    It holds the names of the problems and no word of them. The AST and embedding rules need the
    programs, so they do not see problems that are known by such a file alone.

    Args:
        path: The file to write, gzip.
        benchmarks: As for `decontaminate`.
        ngram, fields, short, trivial, ignore: As for `decontaminate`.

    Returns:
        The number of n-grams.

    Raises:
        ConfigError: If an option makes no sense or a benchmark is not there.
        InputError: If a problem file cannot be read.
        StorageError: If the file cannot be written.
    """
    from hornbook.errors import StorageError

    rule = NgramRule(
        ngram=ngram, fields=tuple(fields), short=short, trivial=trivial, ignore=tuple(ignore)
    )
    contaminants = load([benchmark_path(name) for name in benchmarks], rule)
    grams = contaminants.ngrams(rule).grams()
    lines = "".join(
        f"{key} {check} {words} {','.join(f'{item}:{part}' for item, part in owners)}\n"
        for key, check, words, owners in grams
    )
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "ngram": ngram,
        "prefix": min(ngram, _PREFIX),
        "token_rule": _core.NGRAM_TOKEN_RULE,
        "fields": list(rule.fields),
        "short": short,
        "trivial": trivial,
        "ngrams": len(grams),
        "xxh3": _core.hash_bytes(lines.encode()),
        "items": [problem.task_id for problem in contaminants.problems],
    }
    data = (json.dumps(header) + "\n" + lines).encode()
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        try:
            temporary.write_bytes(gzip.compress(data, mtime=0))
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror}") from error
    return len(grams)


def _hashed(path: Path, text: str, ngram: int) -> tuple[list[str], list[Gram]]:
    head, _, lines = text.partition("\n")
    try:
        header = json.loads(head)
        names = [str(name) for name in header["items"]]
        made, rule = (header["version"], header["prefix"]), header["token_rule"]
        words, checksum = int(header["ngram"]), header["xxh3"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: line 1 is not a header of hashed n-grams ({error})") from error
    if made != (_VERSION, min(words, _PREFIX)) or rule != _core.NGRAM_TOKEN_RULE:
        raise InputError(f"{path}: hashed by another version of this package: make it again")
    if words != ngram:
        raise ConfigError(f"{path}: holds hashed {words}-grams: say `ngram={words}`, or leave it")
    if _core.hash_bytes(lines.encode()) != checksum:
        raise InputError(f"{path}: damaged: its n-grams are not those it was written with")
    grams: list[Gram] = []
    for number, line in enumerate(lines.splitlines(), 2):
        try:
            key, check, count, owners = line.split(" ")
            pairs = [(int(i), int(p)) for i, p in (pair.split(":") for pair in owners.split(","))]
        except ValueError as error:
            raise InputError(f"{path}: line {number} is not a hashed n-gram ({error})") from error
        if not all(i < len(names) and p < len(FIELDS) for i, p in pairs):
            raise InputError(f"{path}: line {number} names a problem that is not there")
        grams.append((key, check, int(count), pairs))
    return names, grams
