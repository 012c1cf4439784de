"""HumanEval (Chen et al. 2021), 164 problems, and any file in its form.

The prompt is used as it is, with its final newline; the program is prompt, completion, test and a
call of `check`, as in the benchmark's own executor. Stop strings are those of its paper.

    python -c "from hornbook.evaluate import load_problems; print(load_problems('humaneval')[0])"
"""

import hashlib
from pathlib import Path

from hornbook.errors import InputError
from hornbook.evaluate.problems import (
    Problem,
    ProblemSet,
    Rows,
    Source,
    benchmark_rows,
    read_bytes,
    read_rows,
    text_field,
)
from hornbook.files import StrPath

SOURCE = Source(
    file="HumanEval.jsonl.gz",
    sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    rows_sha256="88e1130c64fea8a3fcc7cfeeaad054bf64105a6ce773c22361ae3a749726d2df",
    fields=("task_id", "prompt", "entry_point", "canonical_solution", "test"),
)
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def load(data: StrPath | None = None) -> ProblemSet:
    """The benchmark, from `data` (a file or a Hub name) or HORNBOOK_DATA."""
    return _problem_set(benchmark_rows(SOURCE, data), "humaneval", trusted=True)


def load_file(path: Path, name: str | None = None) -> ProblemSet:
    """Reads problems in HumanEval's form.

    Raises:
        InputError: Naming the line that is not one, or names a task twice.
    """
    rows = tuple(read_rows(path))
    sha256 = hashlib.sha256(read_bytes(path)).hexdigest()
    return _problem_set(Rows(rows=rows, sha256=sha256, path=path), name or path.name, trusted=False)


def _problem_set(found: Rows, name: str, *, trusted: bool) -> ProblemSet:
    problems: dict[str, Problem] = {}
    for number, row in found.rows:
        where = f"{found.where}, line {number}"
        entry_point = text_field(row, "entry_point", where)
        if not entry_point.isidentifier():
            raise InputError(f"{where}: `entry_point` {entry_point!r} is not a function's name")
        prompt = text_field(row, "prompt", where)
        group = row.get("group", row.get("level"))
        problem = Problem(
            task_id=text_field(row, "task_id", where),
            prompt=prompt,
            test=f"{text_field(row, 'test', where)}\ncheck({entry_point})",
            entry_point=entry_point,
            canonical_solution=text_field(row, "canonical_solution", where, ""),
            preamble=prompt,
            group=None if group is None else str(group),
            trusted=trusted,
        )
        if problem.task_id in problems:
            raise InputError(f"{where}: task_id `{problem.task_id}` is there twice")
        problems[problem.task_id] = problem
    if not problems:
        raise InputError(f"{found.where}: holds no problems")
    return ProblemSet(
        name=name,
        problems=tuple(problems.values()),
        path=found.path,
        sha256=found.sha256,
        protocol="completion",
        stop=STOP,
    )
