"""The grammar: determinism, splits, and that every function does what its tests say."""

import ast
import doctest
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.errors import ConfigError
from hornbook.generate import verify
from hornbook.generate.grammar import PAIRS, RESULTS, STEPS
from hornbook.generate.procedural import (
    LEVELS,
    is_held_out,
    sample,
    signature_of,
    split_of,
)

SEEDS = st.integers(min_value=0, max_value=2**40)
INDEXES = st.integers(min_value=0, max_value=2**40)


@settings(max_examples=120, deadline=None)
@given(seed=SEEDS, index=INDEXES, level=st.sampled_from(LEVELS))
def test_every_function_passes_its_own_tests(seed, index, level):
    made = sample(seed=seed, index=index, level=level)
    assert verify.passes(made.code, made.test, made.name)
    assert made.test.count("assert candidate(") == 8
    assert made.code.isascii()
    tree = ast.parse(made.code)
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == made.name
    assert ast.get_docstring(function)
    assert made.prompt.endswith('"""\n')
    assert made.level == level
    assert not is_held_out(made.signature)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, index=INDEXES, level=st.sampled_from(LEVELS))
def test_trivial_answers_fail(seed, index, level):
    made = sample(seed=seed, index=index, level=level, strict=True)
    parameters = [parameter for parameter, _ in made.draft.parameters]
    head = made.prompt.split("\n", 1)[0] + "\n"
    for answer in [*parameters, *map(repr, made.results), "[]", "0", "''", "None"]:
        assert not verify.passes(f"{head}    return {answer}\n", made.test, made.name), answer


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, index=INDEXES, level=st.sampled_from((1, 2, 3, 5)))
def test_strict_tests_notice_a_dropped_step(seed, index, level):
    made = sample(seed=seed, index=index, level=level, strict=True)
    lines = made.solution.splitlines()
    for place in range(len(lines) - 1):
        shorter = made.prompt + "\n".join([*lines[:place], *lines[place + 1 :], ""])
        assert not verify.passes(shorter, made.test, made.name)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, index=INDEXES, level=st.sampled_from((4, 6)))
def test_strict_tests_notice_a_condition_turned_round(seed, index, level):
    made = sample(seed=seed, index=index, level=level, strict=True)
    assert "if " in made.solution
    for match in re.finditer(r"if (.*):\n", made.solution):
        place = len(made.prompt) + match.start()
        end = len(made.prompt) + match.end()
        for other in (f"not ({match[1]})", "True", "False"):
            mutant = f"{made.code[:place]}if {other}:\n{made.code[end:]}"
            assert not verify.passes(mutant, made.test, made.name)
    for match in re.finditer(r"\n( *)else:(\n\1 +.*)+", made.code):
        mutant = made.code[: match.start()] + made.code[match.end() :]
        assert not verify.passes(mutant, made.test, made.name)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, index=INDEXES, level=st.sampled_from(LEVELS))
def test_doctest_examples_are_true(seed, index, level):
    made = sample(seed=seed, index=index, level=level, examples=1.0)
    assert made.prompt.count(">>>") == 1
    namespace = {}
    exec(made.code, namespace)
    (test,) = doctest.DocTestFinder().find(namespace[made.name], made.name, globs=namespace)
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


@pytest.mark.parametrize("level", LEVELS)
def test_same_seed_and_index_give_the_same_function(level):
    first = [sample(seed=5, index=index, level=level) for index in range(20)]
    assert first == [sample(seed=5, index=index, level=level) for index in range(20)]
    other = [sample(seed=6, index=index, level=level) for index in range(20)]
    assert [made.code for made in first] != [made.code for made in other]


def test_a_sample_is_pinned():
    made = sample(seed=0, index=0, level=1)
    assert made.signature == signature_of(made.draft)
    assert made.signature.startswith("1:")
    assert re.fullmatch(r"\d:[a-z_]+(/[a-z_]+)*", made.signature)


def test_a_tenth_of_the_signatures_is_held_out_half_for_each_split():
    names = [f"1:{a.name}/{b.name}/{c.name}" for a in STEPS for b in STEPS for c in RESULTS]
    splits = [split_of(name) for name in names]
    assert 0.04 < splits.count("dev") / len(splits) < 0.06
    assert 0.04 < splits.count("test") / len(splits) < 0.06
    assert [is_held_out(name) for name in names] == [split != "train" for split in splits]


def test_signatures_leave_constants_and_wording_out():
    by_signature = {}
    for index in range(300):
        made = sample(seed=1, index=index, level=1)
        by_signature.setdefault(made.signature, set()).add(made.code)
    assert max(map(len, by_signature.values())) > 1
    assert not any(re.search(r"\d", signature[2:]) for signature in by_signature)


def test_operation_names_are_unique_within_a_kind():
    for table in (STEPS, RESULTS, PAIRS):
        keys = [(operation.takes, operation.name) for operation in table]
        assert len(keys) == len(set(keys))


def test_about_asks_for_an_operation():
    for index in range(20):
        made = sample(seed=0, index=index, level=1, about=frozenset({"square"}))
        assert "square" in made.draft.operations


@pytest.mark.parametrize("level", [0, 7, -1])
def test_unknown_levels_are_refused(level):
    with pytest.raises(ConfigError, match="choose among 1, 2, 3, 4, 5, 6"):
        sample(seed=0, index=0, level=level)


def test_an_operation_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="no function"):
        sample(seed=0, index=0, level=1, about=frozenset({"nothing"}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, True),
        (10**9, False),
        (1.5, False),
        (float("inf"), False),
        ("x" * 200, False),
        ([1, [2]], True),
        ({"a": 10**10}, False),
        (None, True),
        ((1,), False),
    ],
)
def test_small(value, expected):
    assert verify.small(value) is expected


def test_outputs_refuses_bad_functions():
    assert verify.outputs("def f(x):\n    return 1 / 0\n", "f", [([],)]) is None
    assert verify.outputs("def f(x):\n    x.append(1)\n    return 1\n", "f", [([],)]) is None
    counter = "c = []\ndef f(x):\n    c.append(1)\n    return len(c)\n"
    assert verify.outputs(counter, "f", [([],)]) is None
    assert verify.outputs("def f(x):\n    return len(x)\n", "f", [([],)]) == [0]


def test_trivial():
    assert verify.trivial([(1,), (2,)], [5, 5])
    assert verify.trivial([(1,), (2,)], [1, 2])
    assert verify.trivial([(1, 7), (2, 8)], [7, 8])
    assert not verify.trivial([(1,), (2,)], [2, 4])


def test_trace_gives_each_line_its_value():
    lines = ["numbers = [n for n in numbers if n > k]", "return sum(numbers)"]
    assert verify.trace(lines, ["numbers", "k"], ([1, 5, 6], 2)) == [[5, 6], 11]
