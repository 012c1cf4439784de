"""MBPP (Austin et al. 2021): short tasks with three assertions each.

Two public protocols, by name, because they give different scores:

- `docstring` (zero-shot): the prompt is a docstring of the task and its first assertion; the model
  writes the whole function. The program is prompt, completion, tests.
- `3-shot`: three worked tasks (ids 2, 3, 4) between [BEGIN] and [DONE], then the task with all its
  assertions, as in the paper that made the benchmark. The program is completion, tests.

Both run on the test split, ids 11 to 510, unless another is named. `mbpp-sanitized` is the
hand-checked subset. Line ends are made "\\n" (972 rows of the file use "\\r\\n"). Which protocol
phi-1 was scored with is not published.

    python -c "from hornbook.evaluate import load_problems as l; print(l('mbpp')[0].prompt)"
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hornbook.errors import ConfigError, InputError
from hornbook.evaluate.problems import Problem, ProblemSet, benchmark_file, read_bytes, read_rows

FILES = {
    "mbpp": (
        "mbpp.jsonl",
        "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
    ),
    "mbpp-sanitized": (
        "sanitized-mbpp.json",
        "ca95deaa9a01ef0a6f439f88bcf0dd3db3563d22f22aad6cae04ebb9a8d8c8e9",
    ),
}
STOP = {
    # No reference is changed by these, nor by the cut after the function.
    "docstring": ("\nassert", '\n"""', "\nprint(", "\n```"),
    "3-shot": ("[DONE]",),
}
SPLITS = {"test": range(11, 511), "validation": range(511, 601), "all": range(1, 1 << 30)}
_SHOTS = (2, 3, 4)


def load(name: str, *, protocol: str, split: str) -> ProblemSet:
    """The benchmark, from HORNBOOK_DATA.

    Args:
        name: `mbpp` or `mbpp-sanitized`.
        protocol: `docstring` or `3-shot`.
        split: `test` (ids 11 to 510), `validation` (511 to 600) or `all`.

    Raises:
        ConfigError: If one of these is unknown.
        InputError: If the file is missing or not the benchmark's.
    """
    if protocol not in STOP:
        raise ConfigError(f"protocol `{protocol}` is unknown: use {' or '.join(STOP)}")
    if split not in SPLITS:
        raise ConfigError(f"split `{split}` is unknown: use {' or '.join(SPLITS)}")
    path = benchmark_file(*FILES[name])
    rows = _rows(path)
    shots = "" if protocol == "docstring" else _examples()
    return ProblemSet(
        name=name,
        problems=tuple(_problem(r, shots) for r in rows if r["task_id"] in SPLITS[split]),
        path=path,
        sha256=hashlib.sha256(read_bytes(path)).hexdigest(),
        protocol=protocol,
        stop=STOP[protocol],
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        rows = [row for _, row in read_rows(path)]
    else:
        try:
            rows = json.loads(read_bytes(path))
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error})") from error
    return [{key: _plain_lines(value) for key, value in row.items()} for row in rows]


def _plain_lines(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain_lines(item) for item in value]
    return value.replace("\r\n", "\n") if isinstance(value, str) else value


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


def _examples() -> str:
    """The three worked tasks: always the full file's, also before sanitized tasks."""
    rows = {row["task_id"]: row for row in _rows(benchmark_file(*FILES["mbpp"]))}
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
