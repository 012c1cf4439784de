"""Our fifty problems: each reference passes its tests, and broken versions of it do not."""

import ast

import pytest

from hornbook.evaluate import load_problems, run_programs, sandbox, status
from hornbook.generate.mutants import mutants

SAFE = status()
pytestmark = pytest.mark.skipif(not SAFE["safe"], reason=str(SAFE.get("advice")))


def test_there_are_fifty_that_stand_alone():
    problems = load_problems("unconventional")
    assert len(problems) == 50
    assert len({problem.entry_point for problem in problems}) == 50
    for problem in problems:
        assert problem.prompt.endswith('"""\n')
        assert problem.entry_point not in problem.canonical_solution  # no tests in it
        [function] = ast.parse(problem.prompt).body
        assert isinstance(function, ast.FunctionDef)
        assert all(argument.annotation for argument in function.args.args)
        assert len(ast.get_docstring(function) or "") > 150


def test_every_reference_passes_and_is_tamper_proof():
    problems = load_problems("unconventional")
    outcomes = sandbox.grade(problems, [problem.canonical_solution for problem in problems])
    assert [p.task_id for p, o in zip(problems, outcomes, strict=True) if not o.passed] == []
    assert all(outcome.tamper_proof for outcome in outcomes)


def test_mutants_fail():
    """At least three broken versions of each fail, and nine of ten of all."""
    programs, owners = [], []
    for problem in load_problems("unconventional"):
        code = problem.preamble + problem.canonical_solution
        for broken in mutants(code, problem.entry_point, most=6):
            programs.append(f"{broken}\n{problem.test}\n")
            owners.append(problem.task_id)
    outcomes = run_programs(programs, timeout_s=2)
    killed = [owner for owner, o in zip(owners, outcomes, strict=True) if not o.passed]
    assert len(killed) > 0.9 * len(programs)
    assert min(killed.count(owner) for owner in set(owners)) >= 3


def test_they_are_not_in_the_public_benchmarks(hornbook_data):
    """No 13 words in a row are shared."""

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    public = set()
    for name in ("humaneval", "mbpp"):
        for problem in load_problems(name):
            public |= grams(problem.prompt)
    for problem in load_problems("unconventional"):
        assert not grams(problem.prompt) & public, problem.task_id
