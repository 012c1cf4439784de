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
    benchmark_file,
    read_bytes,
    read_rows,
    text_field,
)

FILE = "HumanEval.jsonl.gz"
SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def load() -> ProblemSet:
    """The benchmark, from HORNBOOK_DATA."""
    return load_file(benchmark_file(FILE, SHA256), name="humaneval")


def load_file(path: Path, name: str | None = None) -> ProblemSet:
    """Reads problems in HumanEval's form.

    Raises:
        InputError: Naming the line that is not one, or names a task twice.
    """
    problems: dict[str, Problem] = {}
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
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
            trusted=name is not None,
        )
        if problem.task_id in problems:
            raise InputError(f"{where}: task_id `{problem.task_id}` is there twice")
        problems[problem.task_id] = problem
    if not problems:
        raise InputError(f"{path}: holds no problems")
    return ProblemSet(
        name=name or path.name,
        problems=tuple(problems.values()),
        path=path,
        sha256=hashlib.sha256(read_bytes(path)).hexdigest(),
        protocol="completion",
        stop=STOP,
    )
