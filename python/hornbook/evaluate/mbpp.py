"""MBPP (Austin et al. 2021): short tasks with three assertions each.

Three public protocols, by name, because they give different scores:

- `docstring` (zero-shot): the prompt is a docstring of the task and its first assertion; the model
  writes the whole function. The program is prompt, completion, tests.
- `3-shot`: three worked tasks (ids 2, 3, 4) between [BEGIN] and [DONE], then the task with all its
  assertions, as in the paper that made the benchmark. The program is completion, tests.
- `sanitized`: the hand-checked subset with its reworded tasks, prompts as for `docstring`.
  `mbpp-sanitized` with a protocol gives that subset with either prompt.

All run on the test split, ids 11 to 510 (500 problems, 257 of them sanitized), unless another is
named. Line ends are made "\\n" (972 rows of the file use "\\r\\n"). Which protocol phi-1 was scored
with is not published.

    python -c "from hornbook.evaluate import load_problems as l; print(l('mbpp')[0].prompt)"
"""

import re
from typing import Any

from hornbook.errors import ConfigError, InputError
from hornbook.evaluate.problems import (
    Problem,
    ProblemSet,
    Rows,
    Source,
    benchmark_rows,
    plain_lines,
)
from hornbook.files import StrPath

SOURCES = {
    "mbpp": Source(
        file="mbpp.jsonl",
        sha256="ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
        rows_sha256="39b53c384815bf78197d5f911a8dc6ee6ad34cfc80b3c7fa4507370d36ae1139",
        fields=("task_id", "text", "code", "test_list", "test_setup_code"),
        hub=("full",),
    ),
    "mbpp-sanitized": Source(
        file="sanitized-mbpp.json",
        sha256="ca95deaa9a01ef0a6f439f88bcf0dd3db3563d22f22aad6cae04ebb9a8d8c8e9",
        rows_sha256="aac330e898081ff2bfde89f0c36049766ea0a0d921b4e8ca6b65608744e06062",
        fields=("task_id", "prompt", "code", "test_list", "test_imports"),
        hub=("sanitized",),
    ),
}
STOP = {
    # No reference is changed by these, nor by the cut after the function.
    "docstring": ("\nassert", '\n"""', "\nprint(", "\n```"),
    "3-shot": ("[DONE]",),
}
SPLITS = {"test": range(11, 511), "validation": range(511, 601), "all": range(1, 1 << 30)}
_SHOTS = (2, 3, 4)


def load(
    name: str, *, protocol: str, split: str = "test", data: StrPath | None = None
) -> ProblemSet:
    """The benchmark, from `data` (a file or a Hub name) or HORNBOOK_DATA.

    Args:
        name: `mbpp` or `mbpp-sanitized`.
        protocol: `docstring`, `3-shot`, or `sanitized`.
        split: `test` (ids 11 to 510), `validation` (511 to 600) or `all`.
        data: A file or a Hub name.

    Raises:
        ConfigError: If one of these is unknown.
        InputError: If the file is missing or not the benchmark's.
    """
    if protocol not in (*STOP, "sanitized"):
        raise ConfigError(f"protocol `{protocol}` is unknown: use {', '.join(STOP)} or sanitized")
    if split not in SPLITS:
        raise ConfigError(f"split `{split}` is unknown: use {' or '.join(SPLITS)}")
    if protocol == "sanitized":
        name, protocol = "mbpp-sanitized", "docstring"
    found = benchmark_rows(SOURCES[name], data)
    rows = _plain(found)
    shots = "" if protocol == "docstring" else _examples(rows if name == "mbpp" else None)
    return ProblemSet(
        name=name,
        problems=tuple(_problem(r, shots) for r in rows if r["task_id"] in SPLITS[split]),
        path=found.path,
        sha256=found.sha256,
        protocol=protocol,
        stop=STOP[protocol],
    )


def _plain(found: Rows) -> list[dict[str, Any]]:
    rows = [{key: plain_lines(value) for key, value in row.items()} for _, row in found.rows]
    return sorted(rows, key=lambda row: int(row["task_id"]))


def _problem(row: dict[str, Any], shots: str) -> Problem:
    text, tests, code = _text(row), row["test_list"], row["code"]
    set_up = [*row.get("test_imports", []), row.get("test_setup_code", "")]
    if shots:
        prompt, preamble, answer = f"{shots}{_task(row)}[BEGIN]\n", "", code
    else:
        prompt = preamble = f'"""\n{text}\n{tests[0]}\n"""\n'
        answer = code
    return Problem(
        task_id=f"MBPP/{row['task_id']}",
        prompt=prompt,
        test="\n".join([*(line for line in set_up if line), *tests]),
        entry_point=_entry_point(code, tests[0]),
        canonical_solution=answer,
        preamble=preamble,
        trusted=True,
    )


def _text(row: dict[str, Any]) -> str:
    return str(row["text"] if "text" in row else row["prompt"]).strip()


def _task(row: dict[str, Any]) -> str:
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {_text(row)} "
        f"Your code should pass these tests:\n\n{tests}\n"
    )


def _examples(full: list[dict[str, Any]] | None) -> str:
    """The three worked tasks: always the full file's, also before sanitized tasks."""
    chosen = _plain(benchmark_rows(SOURCES["mbpp"])) if full is None else full
    rows = {row["task_id"]: row for row in chosen}
    return "".join(
        f"{_task(rows[shot])}[BEGIN]\n{rows[shot]['code'].strip()}\n[DONE]\n" for shot in _SHOTS
    )


def _entry_point(code: str, test: str) -> str:
    """The function that a test is about: the first it calls that the reference defines."""
    defined = re.findall(r"^def[ \t]+(\w+)", code, re.MULTILINE)
    called = [name for name in re.findall(r"(\w+)[ \t]*\(", test) if name in defined]
    if not called:
        raise InputError(f"MBPP: no function of the reference is called in `{test}`")
    return str(called[0])
