"""Perturbations do what their kind says, and no more; the items have one right answer."""

import json
import re
from math import factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.errors import ConfigError, InputError
from hornbook.evaluate import Problem, evaluate, load_problems, sandbox, status
from hornbook.evaluate.models import Model
from hornbook.evaluate.probes import (
    KINDS,
    SIDE_BY_SIDE,
    change,
    counting_items,
    import_table,
    imports,
    perturb,
    spatial_items,
)
from hornbook.evaluate.probing import run_probes
from hornbook.evaluate.problems import ProblemSet
from hornbook.report.model_page import write_model_page

SAFE = status()
needs_sandbox = pytest.mark.skipif(not SAFE["safe"], reason=str(SAFE.get("advice")))

PROMPT = '''from typing import List


def second_best(numbers: List[int]) -> int:
    """ Given a list of integers, return the second largest number. Check if it is empty first.
    If the list is empty the result is minus one, whatever else there might have been.
    >>> second_best([1, 2, 3])
    2
    >>> second_best([])
    -1
    """
'''
PROBLEM = Problem(
    task_id="T/0",
    prompt=PROMPT,
    preamble=PROMPT,
    test="def check(f):\n    assert f([1, 2, 3]) == 2\n    assert f([]) == -1\ncheck(second_best)",
    entry_point="second_best",
    canonical_solution="    return sorted(numbers)[-2] if numbers else -1\n",
)


def test_there_are_seven_kinds_each_with_a_statement():
    assert len(KINDS) == 7
    assert all(KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_changes_the_docstring_or_the_name_alone(kind):
    other = perturb(PROBLEM, kind)
    assert other is not None
    assert other == perturb(PROBLEM, kind)
    assert other.prompt != PROMPT
    if kind == "renamed":
        assert "second_best" not in other.prompt + other.test
        back = other.prompt.replace("candidate_function", "second_best")
        assert back == PROMPT
        return
    assert (other.test, other.entry_point) == (PROBLEM.test, PROBLEM.entry_point)
    quote = re.compile(r'""".*"""', re.DOTALL)
    assert quote.sub("", other.prompt) == quote.sub("", PROMPT)
    if kind != "reordered":
        assert other.prompt[other.prompt.index(">>>") :] == PROMPT[PROMPT.index(">>>") :]


def test_what_each_kind_does():
    def text(kind: str) -> str:
        other = perturb(PROBLEM, kind)
        assert other is not None
        return other.prompt

    assert "give back" in text("paraphrase")
    assert "integers" not in text("paraphrase")
    assert len(text("lengthened")) > len(PROMPT) + 150
    assert "    1. Given" in text("numbered")
    assert "    3. If the list" in text("numbered")
    reordered = text("reordered")
    assert reordered.index("second_best([])") < reordered.index("second_best([1, 2, 3])")
    assert reordered.index("-1") < reordered.index("    2\n")
    assert len(set(text("slips").split()) ^ set(PROMPT.split())) >= 2
    assert len(text("irrelevant").split(".")) == len(PROMPT.split(".")) + 1


@given(st.text(max_size=300), st.sampled_from(sorted(KINDS)), st.integers(0, 5))
def test_any_docstring_can_be_perturbed(text, kind, seed):
    text = text.replace('"', "").replace("\\", "")
    prompt = f'def f(x):\n    """{text}"""\n'
    problem = Problem(task_id="T", prompt=prompt, preamble=prompt, test="", entry_point="f")
    other = perturb(problem, kind, seed=seed)
    if other is not None:
        assert other.prompt.count('"""') == 2
        assert other.prompt.endswith('"""\n')


@needs_sandbox
def test_references_still_pass_when_the_words_change(hornbook_data):
    """On all of HumanEval: a perturbation changes no test and breaks no program."""
    problems = list(load_problems("humaneval"))
    counts = {}
    asked, answers = [], []
    for kind in KINDS:
        some = [other for one in problems if (other := perturb(one, kind)) is not None]
        counts[kind] = len(some)
        for problem in some[:: 1 if kind == "renamed" else 8]:
            asked.append(problem)
            answers.append(problem.canonical_solution)
    assert min(counts.values()) > 90, counts
    outcomes = sandbox.grade(asked, answers)
    failed = [p.task_id for p, o in zip(asked, outcomes, strict=True) if not o.passed]
    assert failed == []


@needs_sandbox
def test_items_have_the_answer_they_say():
    items = [*counting_items(), *spatial_items()]
    assert len(items) >= 30
    outcomes = sandbox.grade(items, [item.canonical_solution for item in items])
    assert [i.task_id for i, o in zip(items, outcomes, strict=True) if not o.passed] == []
    wrong = sandbox.grade(items, ["    return None\n"] * len(items))
    assert not any(outcome.passed for outcome in wrong)


def test_change_is_paired():
    found = change([True] * 50 + [False] * 50, [True] * 40 + [False] * 60)
    assert found["change"] == pytest.approx(-0.1)
    assert found["low"] < -0.1 < found["high"] < 0
    same = change([True, False], [True, False])
    assert same["change"] == 0
    assert same["low"] < 0 < same["high"]
    assert change([], [])["n"] == 0


def test_imports_are_counted_by_text():
    texts = ["import os, sys\nimport os.path", "from numpy.linalg import norm\n", "x = (\nimport\n"]
    found, number = imports(texts)
    assert (dict(found), number) == ({"os": 1, "sys": 1, "numpy": 1}, 3)
    table = import_table(texts, ["    import math\n", "y"])
    assert table[0] == {"package": "math", "training": 0.0, "answers": 0.5}


def knowing(label: str, right: bool) -> Model:
    """Solves the problem as it is worded, whatever it was before."""

    def draw(pairs, places):
        return [
            PROBLEM.canonical_solution
            if right and "the second largest" in problem.prompt
            else "\x1b[31m    return None\n"
            for problem, _ in pairs
        ]

    return Model(draw=draw, model_id=label)


@needs_sandbox
def test_models_are_compared_and_put_on_a_page(tmp_path):
    problems = ProblemSet(
        name="one",
        problems=(PROBLEM,),
        sha256="0" * 64,
        protocol="completion",
        stop=(),
        memory_mb=1500,
        timeout_s=7.0,
    )
    models = {"base": knowing("b", False), "tuned": knowing("t", True)}
    options = {"problems": problems, "training": ["import math"]}
    report = run_probes(models, tmp_path / "p", **options)
    assert set(report["robustness"]["tuned"]) == set(KINDS)
    limits = json.loads((tmp_path / "p/tuned/slips/summary.json").read_text())["limits"]
    assert (limits["cpu_s"], limits["memory_mb"]) == (7.0, 1500)
    assert report["robustness"]["tuned"]["lengthened"]["change"] == 0
    assert report["robustness"]["tuned"]["paraphrase"]["change"] == 0
    assert report["robustness"]["base"]["renamed"]["before"] == 0
    assert report["items"]["base"]["counting"]["passed"] == 0
    assert len(report["side_by_side"]) == sum(map(len, SIDE_BY_SIDE.values()))
    assert {row["package"] for row in report["imports"]} == {"math"}
    first = (tmp_path / "p/probes.json").read_bytes()
    run_probes(models, tmp_path / "p", **options)
    assert (tmp_path / "p/probes.json").read_bytes() == first
    evaluate(problems, models["tuned"], tmp_path / "e")
    path = write_model_page([tmp_path / "e", tmp_path / "p"], tmp_path / "m.html", name="<tuned>")
    text = path.read_text()
    assert "&lt;tuned&gt;" in text
    assert "50.6" in text
    assert "nothing there to compare with" in text
    assert "\x1b" not in text
    for outside in ("<script", "http://", "https://", "src="):
        assert outside not in text
    # Without a name, what it was opened by; where that is its weights' hash, its results' folder.
    path = write_model_page([tmp_path / "e", tmp_path / "p"], tmp_path / "m.html")
    assert "<h1>t</h1>" in path.read_text()
    summary = tmp_path / "e" / "summary.json"
    known = json.loads(summary.read_text()) | {"model_id": "0123456789abcdef" * 2}
    (tmp_path / "phi").mkdir()
    (tmp_path / "phi" / "summary.json").write_text(json.dumps(known))
    path = write_model_page([tmp_path / "phi", tmp_path / "p"], tmp_path / "m.html")
    assert "<h1>the model of phi</h1>" in path.read_text()
    evaluate(problems, models["base"], tmp_path / "other")
    with pytest.raises(InputError, match="2 models"):
        write_model_page([tmp_path / "e", tmp_path / "other"], tmp_path / "m.html")
    with pytest.raises(InputError, match="holds neither"):
        write_model_page([tmp_path], tmp_path / "m.html")
    with pytest.raises(ConfigError, match="no perturbation"):
        run_probes(models, tmp_path / "p", kinds=["shouted"], **options)
    with pytest.raises(ConfigError, match="label"):
        run_probes({"../x": models["base"]}, tmp_path / "p", **options)
    assert json.loads(first)["models"] == {"base": "b", "tuned": "t"}


def test_the_interval_of_a_change_holds_where_few_problems_change():
    """Its coverage, summed over all outcomes: 20 problems, of which 10 % are lost, 2 % gained."""
    n, lost, gained, both = 20, 0.10, 0.02, 0.50
    covered = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            for c in range(n + 1 - a - b):
                d = n - a - b - c
                chance = factorial(n) / (factorial(a) * factorial(b) * factorial(c) * factorial(d))
                chance *= lost**a * gained**b * both**c * (1 - lost - gained - both) ** d
                before = [True] * a + [False] * b + [True] * c + [False] * d
                after = [False] * a + [True] * b + [True] * c + [False] * d
                found = change(before, after)
                covered += chance * (found["low"] <= gained - lost <= found["high"])
    assert 0.94 < covered < 0.99
    one = change([False], [True])
    assert one["low"] < 0 < one["high"] == 1


def worded(text: str, name: str = "median", parameters: str = "numbers") -> Problem:
    prompt = f'def {name}({parameters}):\n    """{text}\n    """\n'
    return Problem(task_id="T/1", prompt=prompt, preamble=prompt, test="", entry_point=name)


def test_a_new_name_leaves_the_word_of_the_task():
    text = "Return the median, as `median` does.\n    >>> median([1])\n    1"
    other = perturb(worded(text), "renamed")
    assert other is not None
    assert "Return the median, as `candidate_function` does." in other.prompt
    assert ">>> candidate_function([1])" in other.prompt
    assert other.prompt.startswith("def candidate_function(numbers)")
    other = perturb(worded("Write a function median. It is the median."), "renamed")
    assert other is not None
    assert "Write a function candidate_function. It is the median." in other.prompt
    other = perturb(worded("to_sum finds it.", name="to_sum"), "renamed")
    assert other is not None
    assert "to_sum" not in other.prompt


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Check if a string is empty.", "Find out whether a piece of text has nothing in it."),
        ("Given numbers, find an integer.", "Provided numbers, work out a whole number."),
        ("Returns integers, or an empty list.", "Gives back whole numbers, or a list with nothing"),
        ("The number of strings", "The count of pieces of text"),
        ("The number\n    of strings", "The count of pieces of text"),
        ("A non-empty list; find out more.", None),
        ("Your task is to write a function that sorts.", None),
        ("The total sum of prime numbers of 'a string'", None),
        ("median(['a string']) == 1", None),
    ],
)
def test_a_paraphrase_says_the_same(text, wanted):
    other = perturb(worded(text), "paraphrase")
    if wanted is None:
        assert other is None
    else:
        assert other is not None
        assert wanted in other.prompt


def test_examples_are_moved_whole_or_not_at_all():
    def examples(text: str) -> str | None:
        other = perturb(worded("The median.\n    " + text), "reordered")
        return other and other.prompt.partition("median.\n")[2]

    assert examples("median([1]) == 1\n    median([2]) == 2") == (
        '    median([2]) == 2\n    median([1]) == 1\n    """\n'
    )
    note = "\n\n    Note: it is not the mean."
    moved = examples(f">>> median([1])\n    1\n    >>> median([2])\n    2{note}")
    assert moved is not None
    assert moved.index("median([2])") < moved.index("median([1])") < moved.index("Note")
    # What goes on in the next line, or is spoken of there, stays where it is.
    assert examples("median([1]) -> 1\n      since it is alone\n    median([2]) -> 2") is None
    assert examples("median([\n      1]) == 1\n    median([2]) == 2") is None
    assert examples(">>> x = [1]\n    >>> median(x)\n    1") is None
