"""Removes documents that hold a benchmark's text or solutions; measures how close a corpus comes.

Two rules (section 5 of the phi-1 paper). *N-gram*: the document shares a run of 13 words with an
item's prompt (docstring and all) or reference solution. *AST*: one of its functions, methods and
nested ones included, matches an item's reference function at a rate of `ast_threshold` or more. The
first sees copied text, the second renamed code; neither sees what the other does.

The paper gives no formula for its AST match rate. Ours: a function is the preorder sequence of its
tree-sitter node kinds, that is of named nodes and operators, without comments, docstrings,
annotations, grouping parentheses, and what is written inside names and literals. The rate of two
sequences is 1 - Levenshtein / length of the longer. Short functions reach high rates by chance, so
references of fewer than `min_nodes` nodes are left out of the rule; the manifest counts them.

Neither rule sees a paraphrased prompt or another algorithm. What the n-gram rule removes too
much: phrases that everybody writes (rows of numbers, licences, templates); name those in `ignore`.
Evidence for every removal is in `evidence/removed.json`. The thread count never changes a byte.
Cost: 60 MB of Python a CPU second for n-grams, 6 MB with the AST rule, which parses everything.

    hornbook.decontaminate(["data/"], "clean/", benchmarks=["humaneval"], ast_threshold=0.95)
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hornbook import _core
from hornbook.corpus import SOURCE_EXTENSIONS
from hornbook.dedup import check_threads, paths_of
from hornbook.errors import ConfigError, InputError
from hornbook.manifest import Outcome, Report, StrPath, run_stage

DATA_VARIABLE = "HORNBOOK_DATA"
"""Environment variable: the folder that holds the benchmarks known by name."""

BENCHMARKS = {"humaneval": "HumanEval.jsonl.gz", "mbpp": "mbpp.jsonl"}
"""Benchmarks known by name, and their files in that folder."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What decontamination needs of a benchmark item."""

    task_id: str
    """Its name in evidence."""
    texts: tuple[str, ...]
    """What the n-gram rule looks for, each on its own."""
    program: str
    """The reference program."""
    entry_point: str | None = None
    """The function of it that solves the problem, where the benchmark says so."""


@dataclass(frozen=True, kw_only=True)
class DecontaminateConfig:
    """What decides the result of `decontaminate`, besides the benchmarks' contents."""

    benchmarks: tuple[str, ...] = ("humaneval", "mbpp")
    """Names from `BENCHMARKS`, or paths of problem files."""
    ngram: int = 13
    """Words in an n-gram."""
    ast_threshold: float | None = None
    """Least AST match rate of a removed document's function; the paper tries 0.95 to 0.8. Without
    it only n-grams count."""
    min_nodes: int = 20
    """Reference functions of fewer nodes are not used by the AST rule."""
    ignore: tuple[str, ...] = ()
    """Texts whose n-grams never count, such as licences and idioms."""

    def __post_init__(self) -> None:
        if not self.benchmarks:
            raise ConfigError(f"benchmarks: name at least one of {', '.join(BENCHMARKS)} or a file")
        if self.ngram < 1:
            raise ConfigError(f"ngram: {self.ngram} is less than 1")
        if self.ast_threshold is not None and not 0 < self.ast_threshold <= 1:
            raise ConfigError(f"ast_threshold: {self.ast_threshold} is not above 0 and at most 1")
        if self.min_nodes < 1:
            raise ConfigError(f"min_nodes: {self.min_nodes} is less than 1")


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


def load_problems(path: StrPath) -> list[Problem]:
    """Reads problems, one JSON object a line, plain or gzip.

    HumanEval's form: `prompt` and `canonical_solution` (together the reference program), optionally
    `task_id` and `entry_point`. MBPP's form: `text` and `code`, optionally `task_id` and
    `test_list` (whose first test tells the entry point). Other fields are not looked at.

    Raises:
        InputError: Naming the line that is neither, or if there is no problem in the file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        lines = data.decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable problem file ({error})") from error
    problems = [
        _problem(path, number, line) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not problems:
        raise InputError(f"{path}: holds no problem")
    return problems


def _problem(path: Path, number: int, line: str) -> Problem:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}: line {number} is not JSON ({error})") from error

    def field(name: str) -> str | None:
        # MBPP's programs have Windows line ends.
        value = row.get(name) if isinstance(row, dict) else None
        return value.replace("\r\n", "\n") if isinstance(value, str) else None

    prompt, solution = field("prompt"), field("canonical_solution")
    if prompt is not None and solution is not None:
        task_id = row.get("task_id", f"{path.name}:{number}")
        program = prompt + solution
        return Problem(
            task_id=str(task_id),
            texts=(program,),
            program=program,
            entry_point=field("entry_point"),
        )
    text, code = field("text"), field("code")
    if text is not None and code is not None:
        return Problem(
            task_id=f"MBPP/{row.get('task_id', number)}",
            texts=(text, code),
            program=code,
            entry_point=_tested_function(code, row.get("test_list")),
        )
    raise InputError(
        f"{path}: line {number} has neither `prompt` and `canonical_solution` nor `text` and "
        "`code`, all strings"
    )


def _tested_function(code: str, tests: Any) -> str | None:
    """The function of the code that the first test calls."""
    if not (isinstance(tests, list) and tests and isinstance(tests[0], str)):
        return None
    defined = set(re.findall(r"^def (\w+)", code, flags=re.MULTILINE))
    return next((name for name in re.findall(r"\w+", tests[0]) if name in defined), None)


def _items(problems: Sequence[Problem]) -> list[tuple[str, list[str], str, str | None]]:
    return [(p.task_id, list(p.texts), p.program, p.entry_point) for p in problems]


def decontaminate(
    inputs: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    benchmarks: Sequence[StrPath] = ("humaneval", "mbpp"),
    ngram: int = 13,
    ast_threshold: float | None = None,
    min_nodes: int = 20,
    ignore: Sequence[str] = (),
    threads: int | None = None,
) -> Report:
    """Copies documents into the folder `out` without those that resemble a benchmark item.

    Args:
        inputs: Parquet or JSON-lines files, or folders of either or of source files.
        out: Folder for the result: Parquet parts with every column in input order, `manifest.json`,
            `evidence/removed.json` (one JSON object a document, item and rule: `id`, `row`, `item`,
            `rule` and the `ngram` or `rate`; of the AST rule the best item only).
        benchmarks: `humaneval`, `mbpp` (looked up in the folder `HORNBOOK_DATA`), or problem files.
        ngram: Words in an n-gram: maximal runs of `[A-Za-z0-9_]` and non-ASCII alphanumerics,
            lower-cased. Texts of fewer words are not seen; the manifest counts such items.
        ast_threshold: Least AST match rate, above 0 and at most 1; without it only n-grams count.
            Functions in Markdown's fenced blocks are compared too.
        min_nodes: Reference functions of fewer nodes are not used by the AST rule.
        ignore: Texts whose n-grams never count.
        threads: At most so many; every core if left out. Never changes the result.

    Returns:
        The manifest. `counts.dropped` holds `ngram` and `ast` (those that no n-gram gave away);
        `details` the number of items, n-grams, and items that a rule cannot see.

    Raises:
        ConfigError: If an option makes no sense or a benchmark is not there.
        InputError: If an input or a problem file cannot be read.
        ResumeError: If `out` holds something else.
        StorageError: If the disk is full or not writable.
    """
    paths = paths_of(inputs)
    check_threads(threads)
    if isinstance(benchmarks, str | os.PathLike) or isinstance(ignore, str):
        raise ConfigError("benchmarks and ignore are lists: put a single name in brackets")
    config = DecontaminateConfig(
        benchmarks=tuple(os.fspath(name) for name in benchmarks),
        ngram=ngram,
        ast_threshold=ast_threshold,
        min_nodes=min_nodes,
        ignore=tuple(ignore),
    )
    files = [benchmark_path(name) for name in config.benchmarks]
    problems = [problem for file in files for problem in load_problems(file)]

    def work(folder: Path) -> Outcome:
        done = _core.decontaminate_corpus(
            paths,
            list(SOURCE_EXTENSIONS),
            folder,
            _items(problems),
            (ngram, ast_threshold, min_nodes, list(ignore)),
            threads,
        )
        dropped = {"ngram": done["ngram"]}
        details: dict[str, Any] = {
            "evidence": done["evidence"],
            "items": len(problems),
            "ngrams": done["ngrams"],
            "items_without_ngram": done["items_without_ngram"],
            "token_rule": done["token_rule"],
        }
        if ast_threshold is not None:
            dropped["ast"] = done["ast"]
            details["items_without_reference"] = done["items_without_reference"]
        return Outcome(
            parts=done["parts"],
            rows_in=done["rows"],
            kept=done["rows"] - sum(dropped.values()),
            dropped=dropped,
            rejected=done["rejected"],
            details=details,
        )

    # Where the benchmarks lie does not matter: their contents are among the inputs.
    identity = {**asdict(config), "benchmarks": [file.name for file in files]}
    return run_stage("decontaminate", out, inputs=[*paths, *files], config=identity, work=work)


def ast_match(a: str, b: str) -> float:
    """The AST match rate of two Python sources, from 0 to 1 (see the module's docstring).

    Names, layout, comments and docstrings make no difference; broken code is matched as far as it
    parses. Each source is taken whole: for the rate of two functions, give the functions alone.
    """
    return _core.ast_match(a, b)


def similarity(
    inputs: StrPath | Sequence[StrPath], problems: StrPath, *, threads: int | None = None
) -> list[dict[str, Any]]:
    """How close a corpus comes to each problem: the paper's split into similar and non-similar.

    A problem is similar at a rate tau (0.95 to 0.8 in the paper's Table 3) if its `rate` is tau or
    more. Problems of few `nodes` reach high rates by chance: consider leaving them out.

    Args:
        inputs: Parquet or JSON-lines files, or folders of either or of source files.
        problems: A problem file, or `humaneval` or `mbpp`.
        threads: At most so many; every core if left out. Never changes the result.

    Returns:
        One dict a problem, in order: `task_id`, `rate` (the best AST match rate of any function of
        any document with the reference function), `id` (of that document, the first of equals; None
        if no function has anything in common), `nodes` (of the reference function).

    Raises:
        ConfigError: If an option makes no sense or the benchmark is not there.
        InputError: If an input or the problem file cannot be read.
    """
    paths = paths_of(inputs)
    check_threads(threads)
    items = _items(load_problems(benchmark_path(problems)))
    found = _core.benchmark_similarity(paths, list(SOURCE_EXTENSIONS), items, threads)
    return [
        {"task_id": name, "rate": rate, "id": document, "nodes": nodes}
        for name, rate, document, nodes in found
    ]
