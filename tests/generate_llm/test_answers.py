"""Exercises, textbook sections and strict replies, taken apart without being run."""

import ast
import json
from contextlib import suppress
from typing import Any

import pytest
from fake_teacher import exercise, textbook
from hypothesis import given
from hypothesis import strategies as st

from hornbook.generate.answers import (
    LONGEST,
    RejectedError,
    integer,
    parse_exercise,
    parse_textbook,
    split_blocks,
    strict_json,
    textbook_code,
)

PLAIN = '''from collections import Counter

LIMIT = 3


def helper(text: str) -> Counter[str]:
    return Counter(text)


def common(text: str) -> list[str]:
    """Letters that come up at least `LIMIT` times, in order.

    >>> common("aaab")
    ['a']
    """
    # A comment stays.
    return sorted(c for c, n in helper(text).items() if n >= LIMIT)


import math


def test_common() -> None:
    assert common("") == []
    assert common("aaabbb") == ["a", "b"]


assert common("aab") == []
expected = ["x"]
assert common("xxx") == expected and math.pi
'''


def code_of(text: str, **options: Any) -> str:
    with pytest.raises(RejectedError) as caught:
        parse_exercise(text, **options)
    assert str(caught.value) == f"{caught.value.code}: {caught.value.detail}"
    return caught.value.code


def test_a_fenced_exercise() -> None:
    parts = parse_exercise(exercise("add_all", 3), entry_point="add_all")
    assert parts["entry_point"] == "add_all"
    assert parts["prompt"].startswith("import math\n\ndef add_all(values: list[int]) -> int:\n")
    assert parts["prompt"].endswith('gives 3 alone."""\n')
    assert parts["solution"] == "    return sum(values) + math.floor(3)\n"
    assert parts["tests"].count("assert add_all(") == 4
    namespace: dict[str, Any] = {}
    exec(parts["prompt"] + parts["solution"] + parts["tests"], namespace)


def test_plain_code_with_helpers_constants_and_test_functions() -> None:
    parts = parse_exercise(PLAIN)
    assert parts["entry_point"] == "common"
    assert "# A comment stays.\n    return sorted" in parts["solution"]
    assert "def helper" in parts["prompt"]
    assert "LIMIT = 3" in parts["prompt"]
    assert "test_common()\n" in parts["tests"]
    exec(parts["prompt"] + parts["solution"] + parts["tests"], {})


def test_windows_line_ends_and_untagged_fences() -> None:
    text = exercise("f").replace("```python", "~~~").replace("```", "~~~").replace("\n", "\r\n")
    assert parse_exercise(text) == parse_exercise(exercise("f"))


GOOD = exercise("f")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty"),
        ("I cannot help with that.", "syntax"),
        (GOOD.replace("import math", "import os"), "import"),
        (GOOD.replace("import math", "from os import path"), "import"),
        (GOOD.replace("import math", "from . import math"), "import"),
        (GOOD.replace("import math", "import math, subprocess"), "import"),
        (GOOD.replace("return sum", "import socket; return sum"), "import"),
        (GOOD.replace("sum(values)", "eval('1')"), "forbidden"),
        (GOOD.replace("sum(values)", "__import__('os')"), "forbidden"),
        (GOOD.replace("sum(values)", "().__class__"), "forbidden"),
        (GOOD.replace("def f(", "def g("), "wrong_name"),
        (GOOD.replace('"""', "# ", 1).replace('alone."""', "alone."), "no_docstring"),
        (GOOD.replace("return sum(values) + math.floor(1)", "pass"), "no_solution"),
        (GOOD.replace("    return sum(values) + math.floor(1)\n", ""), "no_solution"),
        (GOOD.replace("return sum(values) + math.floor(1)", "..."), "no_solution"),
        (GOOD.replace("return sum(values) + math.floor(1)", "raise ValueError"), "no_solution"),
        (GOOD.replace("assert f([1]) == 2\n", ""), "tests"),
        (GOOD.replace("assert f(", "assert sum("), "tests"),
        (GOOD.replace("import math\n", "import math\nmath.sqrt(2)\n"), "layout"),
        (GOOD + "\n```python\nwhile True: pass\n```\n", "layout"),
        (GOOD + "\n```python\ndef late(): return 1\n```\n", "layout"),
        (GOOD + "\n```python\ndef test_it(x): assert f(x)\n```\n", "tests"),
        (GOOD.removesuffix("```\n"), "syntax"),
        (GOOD.replace("return", "retrun"), "syntax"),
        (GOOD.replace("values)", "values)\x00"), "control_characters"),
        (GOOD + "#" * LONGEST, "too_long"),
        ("assert f() == 1\n" * 5, "no_function"),
        ('def f(): "doc"; return 1\n' + "assert f() == 1\n" * 4, "layout"),
        ('def f():\n    "doc"; return 1\n' + "assert f() == 1\n" * 4, "layout"),
        ("-" * 30_000 + "1", "syntax"),
        ("(" * 20_000, "syntax"),
        ("x = " + "[" * 5_000 + "]" * 5_000, "syntax"),
    ],
)
def test_rejections(text: str, code: str) -> None:
    assert code_of(text, entry_point="f") == code


def test_a_function_given_twice_is_not_guessed_at() -> None:
    block = GOOD.split("```")[1].removeprefix("python")
    assert code_of(f"```python{block}{block}```\n" + GOOD, entry_point="f") == "no_docstring"


@given(st.text())
def test_any_text_gives_parts_or_a_rejection(text: str) -> None:
    for form in (text, f"```python\n{text}\n```", GOOD.replace("import math", text)):
        with suppress(RejectedError):
            parts = parse_exercise(form)
            ast.parse(parts["prompt"] + parts["solution"] + parts["tests"])
        with suppress(RejectedError):
            assert parse_textbook(form).strip()


def test_blocks_close_with_their_own_mark() -> None:
    prose, blocks = split_blocks("a\n````Py x\n```\nb\n````\nc\n~~~\n```\n~~~~\n")
    assert prose == "a\nc\n"
    assert blocks == [("py", "```\nb\n"), ("", "```\n")]


def test_many_open_fences_take_linear_time() -> None:
    with pytest.raises(RejectedError):
        split_blocks("``` x\n" * 6000)


def test_a_textbook_section() -> None:
    text = parse_textbook("\n" + textbook("pears") + "\n\n")
    assert text == textbook("pears")
    assert textbook_code(text)[1] == "total([1, 2, 3])\n"


BOOK = textbook("pears")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (" ", "empty"),
        ("# Short\n\n```python\nx = 1\n```\n", "too_short"),
        ("Sure! Here is a section.\n" + BOOK, "boilerplate"),
        ("**Certainly**\n" + BOOK, "boilerplate"),
        (BOOK.replace("```python", "```text"), "no_code"),
        (BOOK.replace("result = 0", "result = = 0"), "syntax"),
        (BOOK.removesuffix("```\n"), "syntax"),
        (BOOK.replace(">>> total([1, 2, 3])\n6", ">>> if True:\nx"), "syntax"),
        ("```python\n" + "x = 1\n" * 100 + "```\nEnd.\n", "little_prose"),
        (BOOK + "\x07", "control_characters"),
        (BOOK * 80, "too_long"),
    ],
)
def test_textbook_rejections(text: str, code: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse_textbook(text)
    assert caught.value.code == code


KEYS = ("evaluation", "grade")


@pytest.mark.parametrize(
    "text",
    [
        '{"evaluation": "fine", "grade": 7}',
        ' \n{"evaluation": "fine",\n"grade": 7}\n',
        '```json\n{"evaluation": "fine", "grade": 7}\n```',
        '```\n{"evaluation": "fine", "grade": 7}\n```\n',
    ],
)
def test_strict_replies(text: str) -> None:
    assert strict_json(text, KEYS) == {"evaluation": "fine", "grade": 7}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "grade: 7",
        '[["evaluation", "x"], ["grade", 7]]',
        '{"grade": 7, "evaluation": "first the grade"}',
        '{"evaluation": "x", "grade": 7, "more": 1}',
        '{"evaluation": "x", "grade": 3, "grade": 10}',
        '{"evaluation": "x"}',
        '{"evaluation": "x", "grade": 7} {"evaluation": "x", "grade": 9}',
        'Here: {"evaluation": "x", "grade": 7}',
        '```\n{"evaluation": "x", "grade": 1}\n```\n```\n{"evaluation": "x", "grade": 9}\n```',
        "[" * 50_000,
        '{"evaluation": ' * 50_000,
    ],
)
def test_replies_that_do_not_count(text: str) -> None:
    with pytest.raises(RejectedError) as caught:
        strict_json(text, KEYS)
    assert caught.value.code == "reply"


@pytest.mark.parametrize("value", [-1, 11, 7.0, "7", True, None, [7], 10**400, float("nan")])
def test_numbers_that_do_not_count(value: Any) -> None:
    with pytest.raises(RejectedError):
        integer(value, 10)


@given(st.integers(0, 10))
def test_numbers_that_count(value: int) -> None:
    assert integer(json.loads(json.dumps(value)), 10) == value
