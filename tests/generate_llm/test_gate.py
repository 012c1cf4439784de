"""The gate: what is turned away and why, in the real sandbox; mutants; the SQL curriculum."""

from pathlib import Path
from typing import Any

import pytest
from fake_teacher import exercise, textbook

from hornbook.errors import SandboxError
from hornbook.evaluate import run_programs
from hornbook.generate.answers import parse_blocks, parse_exercise, parse_textbook
from hornbook.generate.curriculum import load
from hornbook.generate.gate import (
    Gate,
    GateOptions,
    examine,
    gist,
    mutant_programs,
    program,
    signature,
)
from hornbook.generate.mutants import mutants, text_mutants
from hornbook.generate.slots import Spec

EXERCISES, TEXTBOOKS = Spec(kind="exercises"), Spec(kind="textbooks")
SQL = Spec(kind="exercises", curriculum=load("sql"))


def row(text: str, name: str = "f") -> dict[str, Any]:
    parts = parse_exercise(text, entry_point=name, libraries=("math", "random", "datetime"))
    return {"kind": "exercises", "text": parts["prompt"] + parts["solution"], **parts}


def function(body: str, *tests: str, head: str = "def f(values: list[int]) -> int:") -> str:
    doc = '    """Finds the largest value; an empty list gives 0."""\n'
    lines = "\n".join(f"assert {test}" for test in tests)
    return f"```python\nimport random\n\n{head}\n{doc}{body}```\n```python\n{lines}\n```\n"


MAX = """\
    best = 0
    for value in values:
        if value > best:
            best = value
    return best
"""
GOOD = ("f([]) == 0", "f([1, 3, 2]) == 3", "f([5]) == 5", "f([2, 9]) == 9")


@pytest.fixture(scope="module")
def gate() -> Gate:
    try:
        run_programs(["pass"])
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")
    return Gate(EXERCISES, GateOptions(), run_programs)


CASES = [
    (function(MAX, *GOOD), ""),
    (exercise("f", 3), ""),
    (function(MAX, *GOOD[:3], "f([2, 9]) == 8"), "not_verified"),
    (function("    return values[0]\n", *GOOD), "not_verified"),
    (function("    while True:\n        pass\n    return 0\n", *GOOD), "limits"),
    (function("    return random.randint(0, 3)\n", *["f([1]) in range(4)"] * 4), "random"),
    (
        function(
            "    if not hasattr(f, 'n'):\n        f.n = 0\n    f.n += 1\n    return f.n\n",
            *[f"f([]) == {i}" for i in range(1, 5)],
        ),
        "not_verified",
    ),
    # Tests that any function passes, and tests that only look at one value.
    (function(MAX, *["f([1]) is f([1])"] * 4), "weak_tests"),
    (function(MAX, *["f([0]) == 0"] * 4), "weak_tests"),
]


def test_exercises_in_the_sandbox(gate: Gate) -> None:
    quick = Gate(EXERCISES, GateOptions(timeout_s=1), run_programs)
    found = quick.check([row(text) for text, _ in CASES])
    for (text, code), why in zip(CASES, found, strict=True):
        if code == "random":
            # Chance may pass one run; it does not pass two with the same results and mutants too.
            assert why is not None
            assert why.code in ("not_deterministic", "weak_tests")
        else:
            assert ("" if why is None else why.code) == code, text


def test_a_batch_keeps_its_order_and_what_was_found(gate: Gate) -> None:
    rows = [row(function("    return 1\n", *GOOD)), row(function(MAX, *GOOD)), row(exercise("f"))]
    found = gate.check(rows)
    assert [why and why.code for why in found] == ["not_verified", None, None]
    assert rows[1]["mutants"] == 5
    assert rows[1]["killed"] >= 3
    assert len(rows[1]["signature"]) == 32
    assert "signature" not in rows[0]


@pytest.mark.parametrize(
    ("head", "doc", "body", "code"),
    [
        ("def f(a, b: int) -> int:", "Adds the two numbers together.", "return b", "signature"),
        ("def f(a: int):", "Gives the number back again.", "return a", "signature"),
        ("def f(a: int) -> None:", "Gives the number back again.", "return a", "signature"),
        ("def f(a: int) -> int:", "Gives the number back again.", "a += 1", "signature"),
        (
            "def f(a: int) -> int:",
            "Gives the number back again.",
            "def g():\n        return a\n    g()",
            "signature",
        ),
        ("def f(a: int) -> int:", "TODO: write the docstring here", "return a", "boilerplate"),
        ("def f(a: int) -> int:", "Too short.", "return a", "boilerplate"),
        (
            "def f(a: int) -> int:",
            "Adds one.\n\n    Args:\n        b: The number.\n    ",
            "return a",
            "docstring",
        ),
        (
            "def f(a: int, b: int) -> int:",
            "Adds.\n\n    Parameters\n    ----------\n    a : int\n        The first.\n    ",
            "return a",
            "docstring",
        ),
        ("def f(a: int) -> int:", "Adds.\n\n    :param x: it is\n    ", "return a", "docstring"),
        ("def f(a: int) -> int:", "The day of the month.", "return date.now()", "not_determin"),
    ],
)
def test_docstring_and_signature(head: str, doc: str, body: str, code: str) -> None:
    from hornbook.generate.answers import RejectedError

    made = {"prompt": f'{head}\n    """{doc}"""\n', "solution": f"    {body}\n", "entry_point": "f"}
    with pytest.raises(RejectedError) as caught:
        examine(made)
    assert caught.value.code.startswith(code)


def test_docstrings_that_agree() -> None:
    for doc in (
        "Adds.\n\n    Args:\n        a: One,\n            and more.\n        *rest: Others.\n\n"
        "    Returns:\n        it\n    ",
        "Adds two.\n\n    Parameters\n    ----------\n    a : int\n        One.\n    rest : int\n"
        "        Others.\n\n    Returns\n    -------\n    int\n    ",
        "Adds two.\n\n    :param a: one\n    :param int rest: others\n    ",
        "Adds its arguments together.",
    ):
        made = {
            "prompt": f'def f(a: int, *rest: int) -> int:\n    """{doc}"""\n',
            "solution": "    return a + sum(rest)\n",
            "entry_point": "f",
        }
        examine(made)


def test_what_an_inner_function_returns_is_not_the_result() -> None:
    made = {
        "prompt": 'def f(a: list[int]) -> None:\n    """Sorts by the last digit, in place."""\n',
        "solution": "    def last(x):\n        return x % 10\n\n    a.sort(key=last)\n",
        "entry_point": "f",
    }
    examine(made)
    made["solution"] = "    a.sort(key=lambda x: (yield))\n"
    examine(made)


def test_examples_in_the_docstring_are_run(gate: Gate) -> None:
    good = exercise("f").replace('alone."""', 'alone.\n\n    >>> f([2])\n    3\n    """')
    bad = good.replace("    3\n", "    4\n")
    found = gate.check([row(good), row(bad)])
    assert [why and why.code for why in found] == [None, "shown_output"]


def test_sections_are_run_and_shown_output_is_compared(gate: Gate) -> None:
    sections = Gate(TEXTBOOKS, GateOptions(), run_programs)
    good = textbook("pears")
    printed = good.replace("    return result\n```", "    return result\n\nprint(total([4]))\n```")
    texts = [
        good,
        good.replace("\n6\n", "\n7\n"),
        good.replace("def total", "undefined\n\n\ndef total"),
        printed + "\n```output\n4\n```\n",
        printed.replace("\nSo the", "\n```text\n4\n```\nSo the"),
        printed.replace("\nSo the", "\n```text\n5\n```\nSo the"),
    ]
    found = sections.check([{"kind": "textbooks", "text": text} for text in texts])
    codes = [why and why.code for why in found]
    assert codes == [None, "shown_output", "not_verified", None, None, "shown_output"]


def test_benchmark_text_is_turned_away(tmp_path: Path) -> None:
    words = "finds the sum of every second number in a list of lists of whole numbers"
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        f'{{"task_id": "x/1", "prompt": "def g():\\n    \\"\\"\\"{words}\\"\\"\\"\\n", '
        '"canonical_solution": "    return 1\\n", "entry_point": "g", "test": ""}\n'
    )
    strict = Gate(EXERCISES, GateOptions(benchmarks=(str(problems),)), None)
    clean, copied = row(exercise("f")), row(exercise("f").replace("Adds", f"It {words}. Adds"))
    found = strict.check([clean, copied])
    assert found[0] is None
    assert found[1] is not None
    assert (found[1].code, "x/1" in found[1].detail) == ("contaminated", True)


# Mutants


def test_mutants_differ_from_the_solution_and_parse() -> None:
    code = row(function(MAX, *GOOD))["text"]
    broken = mutants(code, "f", most=50)
    assert len(set(broken)) == len(broken) > 4
    results = []
    for text in broken:
        scope: dict[str, Any] = {}
        exec(text, scope)
        results.append([scope["f"](list(v)) for v in ((), (1, 3, 2), (5,), (2, 9))])
    assert results[0] == [None] * 4
    assert sum(result != [0, 3, 5, 9] for result in results) >= len(results) - 1
    assert mutants(code, "f", most=3) == mutants(code, "f", most=3)
    assert mutants(code, "other", most=3) == []


def test_text_mutants_change_one_place() -> None:
    assert text_mutants("a < b and b < c", [("<", ">"), ("and", "or"), ("x", "y")], most=9) == [
        "a > b and b < c",
        "a < b or b < c",
    ]


# Another language is another file


def sql(query: str, expected: str = '[["b", 7], ["a", 3]]') -> dict[str, Any]:
    text = (
        "```text\nThe names and totals of all customers, largest total first.\n```\n"
        "```sql\nCREATE TABLE orders (name TEXT, price INTEGER);\n"
        "INSERT INTO orders VALUES ('a', 1), ('a', 2), ('b', 7);\n```\n"
        f"```sql\n{query}\n```\n```json\n{expected}\n```\n"
    )
    assert SQL.form is not None
    blocks = parse_blocks(text, SQL.form.blocks, SQL.form.fences)
    return {"kind": "exercises", "entry_point": "sum_unpaid_orders", "blocks": blocks, "text": text}


QUERY = "SELECT name, SUM(price) AS total FROM orders GROUP BY name ORDER BY total DESC"


def test_sql_exercises_in_the_sandbox(gate: Gate) -> None:
    judge = Gate(SQL, GateOptions(), run_programs)
    rows = [
        sql(QUERY),
        sql(QUERY.replace("DESC", "ASC")),
        sql(QUERY.replace("SUM", "AVG")),
        sql("DELETE FROM orders"),
        sql(QUERY, "[]"),
        sql("SELECT name FROM orders LIMIT 0 OR 1", '[["a"]]'),
    ]
    found = judge.check(rows)
    assert found[0] is None
    assert rows[0]["mutants"] == rows[0]["killed"] >= 2
    assert [why and why.code for why in found[1:5]] == ["not_verified"] * 4
    assert signature(SQL, rows[0]) == signature(
        SQL, sql(QUERY.replace("name", "buyer").replace("orders", "sales").lower())
    )
    assert signature(SQL, rows[0]) != signature(SQL, sql(QUERY.replace("SUM", "MAX")))
    assert gist(SQL, rows[0]).startswith("sum_unpaid_orders: The names and totals")


def test_sql_cannot_leave_its_literal() -> None:
    hostile = sql("SELECT '''; import os; os.system(\"x\") #'")
    text = program(SQL, hostile)
    compile(text, "p", "exec")
    assert "import os" not in [line.strip() for line in text.split("\n")]
    assert mutant_programs(SQL, hostile, 6)


def test_gists_are_one_harmless_line() -> None:
    made = row(exercise("f").replace("Adds the values", "Adds ``` \\n$x {y} the values"))
    line = gist(EXERCISES, made)
    assert line.startswith("f: Adds")
    assert not set(line) & set("`\n${}")
    assert len(line) <= 120


def test_sql_sections_run_block_after_block(gate: Gate) -> None:
    books = Spec(kind="textbooks", curriculum=load("sql"))
    judge = Gate(books, GateOptions(), run_programs)
    prose = "A group holds the rows that agree, and a sum is taken of each group by itself. " * 6
    good = (
        f"# Sums of groups\n\n{prose}\n\n```sql\nCREATE TABLE t (a TEXT, b INTEGER);\n"
        "INSERT INTO t VALUES ('x', 1), ('x', 2);\n```\n\nThen:\n\n"
        "```sql\nSELECT a, SUM(b) FROM t GROUP BY a;\n```\n"
    )
    rows = [
        {"kind": "textbooks", "text": parse_textbook(text, ("sql",))}
        for text in (good, good.replace("FROM t", "FROM missing"))
    ]
    found = judge.check(rows)
    assert [why and why.code for why in found] == [None, "not_verified"]
    assert gist(books, rows[0]) == "Sums of groups"
