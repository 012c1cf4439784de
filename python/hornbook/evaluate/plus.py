"""HumanEval+ and MBPP+ (Liu et al. 2023): the same tasks with many more inputs.

The files hold inputs and a reference, not results, so the tests run the reference beside the
candidate: twice the time, and nothing to keep in step. Results are compared as EvalPlus does:
exactly, or within 1e-6 (or the task's own tolerance) where floats are expected; some tasks of MBPP
have looser rules, below. A problem counts as solved if it passes the base and the plus inputs.
EvalPlus limits the time of each input to four times the reference's, measured when it is run;
here the CPU limit of the whole program stands instead.

A whole scoring of the references takes about a minute of two cores.

    python -c "from hornbook.evaluate import load_problems; print(len(load_problems('mbpp+')))"
"""

import json
from typing import Any

from hornbook.errors import InputError
from hornbook.evaluate import humaneval, mbpp
from hornbook.evaluate.problems import (
    Problem,
    ProblemSet,
    Source,
    benchmark_rows,
    text_field,
)
from hornbook.files import StrPath

SOURCES = {
    "humaneval+": Source(
        file="HumanEvalPlus.jsonl.gz",
        sha256="272720b90ac375502c8ed23cd791c2a93dfb22a911641a494da74a426c09f101",
    ),
    "mbpp+": Source(
        file="MbppPlus.jsonl.gz",
        sha256="af43697e8791c4c149bdfd6b489d8b5412507551ac20e28a439f650b8225db63",
    ),
}
MEMORY_MB = 4096
"""Some references of MBPP+ need more than 1 GiB."""
TIMEOUT_S = 60.0
"""Mbpp/599's reference takes 16 s of a core, and runs beside a candidate that may too."""

# MBPP+ writes its arguments as JSON, which has no tuples, sets or complex numbers. What each
# task's arguments are, as Python that makes them of `a`, the list that was read.
_ARGUMENTS = {
    "[tuple(x) for x in a]": (
        *(2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616),
        *(630, 726, 740, 744, 809),
    ),
    "[[tuple(y) for y in x] for x in a]": (
        *(63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780),
    ),
    "[tuple(tuple(y) for y in x) for x in a]": (259, 401, 445),
    "[[tuple(x) for x in a[0]], a[1]]": (75, 413, 444, 753),
    "[a[0], tuple(a[1])]": (106, 750),
    "[tuple(a[0]), *a[1:]]": (250, 307, 405, 446, 617, 720, 763, 808),
    "[tuple(tuple(x) if isinstance(x, list) else x for x in a[0])]": (278,),
    # An empty set is an empty dict there, and so for its reference.
    "[[set(x) if isinstance(x, list) and x else {} for x in a[0]]]": (115,),
    "[float(a[0]), complex(a[1])]": (124,),
    "[complex(a[0])]": (252,),
    "[{k: tuple(v) for k, v in a[0].items()}, *a[1:]]": (722,),
    "deep(a)": (580, 615, 791),
}
_BY_TASK = {task: text for text, tasks in _ARGUMENTS.items() for task in tasks}

# What else is right, where an exact result is too much to ask: an expression in `out`, `expected`
# and the arguments `a`. The first group takes the place of equality.
_INSTEAD = {
    **dict.fromkeys((2, 7, 111, 140, 232, 249, 579, 769), "set(out) == set(expected)"),
    # Any truth is meant: a reference that finds nothing returns None.
    **dict.fromkeys(
        (737, 787, 794),
        "(out if isinstance(out, bool) else out is not None) == (expected is not None)",
    ),
}
_ALSO = {
    164: "True",
    295: "out == 0",
    558: "out == padded(*a)",
    581: "abs(out - pyramid(*a)) <= atol",
}

_TOGETHER = ("HumanEval/83", "HumanEval/130", "Mbpp/255")
"""Results of megabytes, more than crosses between processes: these run in one, and say so."""

_TESTS = """\
import copy, json, math

def deep(value):
    return tuple(map(deep, value)) if isinstance(value, list) else value

def padded(one, two):
    one, two = str(one), str(two)
    width = max(len(one), len(two))
    return sum(abs(int(x) - int(y)) for x, y in zip(one.zfill(width), two.zfill(width)))

def pyramid(edge, height):
    return round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))

def floats(value):
    several = isinstance(value, (list, tuple)) and value
    return isinstance(value, float) or bool(several) and all(isinstance(x, float) for x in value)

def close(out, expected, atol):
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(out, (list, tuple))
            and len(out) == len(expected)
            and all(close(x, y, atol) for x, y in zip(out, expected))
        )
    if not isinstance(expected, (int, float, complex)):
        return False
    size = abs(expected)
    return out == expected or size != math.inf and abs(out - expected) <= atol + 1e-7 * size

def judge(candidate):
    space = {}
    exec(REFERENCE, space)
    reference, atol = space[NAME], ATOL
    for a in json.loads(INPUTS):
        a = ARGUMENTS
        expected = reference(*copy.deepcopy(a))
        out = candidate(*copy.deepcopy(a))
RULE

"""
_RULE = """\
        right = {right}
        if atol == 0 and floats(expected):
            atol = 1e-6
        if not right and atol:
            assert type(out) is type(expected)
            right = close(out, expected, atol)
        assert right"""
_ROOT = "        assert abs(sum(c * math.pow(out, i) for i, c in enumerate(*a))) <= atol"


def load(name: str, data: StrPath | None = None) -> ProblemSet:
    """`humaneval+` or `mbpp+`, from `data` (a file) or HORNBOOK_DATA.

    Raises:
        ConfigError: If HORNBOOK_DATA is not set.
        InputError: If the file is missing or not the benchmark's.
    """
    found = benchmark_rows(SOURCES[name], data)
    people = name == "humaneval+"
    return ProblemSet(
        name=name,
        problems=tuple(_problem(row, f"{found.where}, line {n}", people) for n, row in found.rows),
        path=found.path,
        sha256=found.sha256,
        protocol="completion" if people else "docstring",
        stop=humaneval.STOP if people else mbpp.STOP["docstring"],
        memory_mb=MEMORY_MB,
        timeout_s=TIMEOUT_S,
    )


def _problem(row: dict[str, Any], where: str, people: bool) -> Problem:
    prompt, solution = (
        text_field(row, "prompt", where),
        text_field(row, "canonical_solution", where),
    )
    entry_point = text_field(row, "entry_point", where)
    task_id = text_field(row, "task_id", where)
    task = 0 if people else int(task_id.partition("/")[2])
    rule = _ROOT
    if entry_point != "find_zero" or not people:
        right = _INSTEAD.get(task, "out == expected")
        right += f" or {_ALSO[task]}" if task in _ALSO else ""
        rule = _RULE.format(right=right)
    try:
        inputs = json.dumps([*row["base_input"], *_given(row["plus_input"], where)])
    except KeyError as error:
        raise InputError(f"{where}: {error} is missing") from error
    values = {
        "REFERENCE": repr(prompt + solution),
        "NAME": repr(entry_point),
        "ATOL": repr(row["atol"]),
        "INPUTS": repr(inputs),
        "ARGUMENTS": _BY_TASK.get(task, "a"),
        "RULE": rule,
    }
    tests = _TESTS
    for place in ("RULE", "ARGUMENTS", "NAME", "ATOL", "INPUTS", "REFERENCE"):
        tests = tests.replace(place, values[place], 1)
    return Problem(
        task_id=task_id,
        prompt=prompt,
        test=f"{tests}judge({entry_point})",
        entry_point=entry_point,
        canonical_solution=solution,
        preamble=prompt,
        together=task_id in _TOGETHER,
        trusted=True,
    )


def _given(inputs: Any, where: str) -> list[Any]:
    # One task has no further inputs; its file says so with an empty object.
    if isinstance(inputs, dict) and not inputs:
        return []
    if not isinstance(inputs, list):
        raise InputError(f"{where}: `plus_input` is not a list")
    return inputs
