"""What makes an evaluation another, what its limits reach, and what is no verdict."""

import json

import pytest

from hornbook.errors import SandboxError
from hornbook.evaluate import Problem, evaluate, sandbox, status
from hornbook.evaluate import run as run_module

SAFE = status()
pytestmark = pytest.mark.skipif(not SAFE["safe"], reason=str(SAFE.get("advice")))


def toy(count=3):
    return [
        Problem(
            task_id=f"toy/{n}",
            prompt=f"def f{n}(x):\n",
            preamble=f"def f{n}(x):\n",
            test=f"assert f{n}(8) == {8 * n}",
            entry_point=f"f{n}",
            group="all",
        )
        for n in range(count)
    ]


def right(prompts):
    return [f"    return {prompt[5]} * x\n" for prompt in prompts]


def outcome(**changes):
    fields = {"status": "passed", "cpu_s": 0.1, "output": "", "isolation": "none"}
    return sandbox.Outcome(**{**fields, "tamper_proof": True, **changes})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_another_k_is_another_result(tmp_path):
    options = {"samples": 2, "model_id": "m"}
    evaluate(toy(), right, tmp_path, k=(1,), **options)
    assert evaluate(toy(), right, tmp_path, k=(1, 2), **options)["pass@2"] == 1.0


def test_an_unsafe_result_does_not_stand_for_a_safe_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "_WITHOUT", ("landlock",))
        unsafe = evaluate(toy(), right, tmp_path, model_id="m", accept_unsafe=True)
    assert unsafe["isolation"] == "none"
    assert evaluate(toy(), right, tmp_path, model_id="m")["isolation"] == SAFE["isolation"]


def test_limits_reach_the_programs(tmp_path, monkeypatch):
    seen = {}

    def grade(problems, completions, **options):
        seen.update(options)
        return [outcome() for _ in problems]

    monkeypatch.setattr(sandbox, "grade", grade)
    report = evaluate(toy(), right, tmp_path, model_id="m", timeout_s=3.5, memory_mb=777)
    assert (seen["timeout_s"], seen["memory_mb"]) == (3.5, 777)
    assert seen["wall_s"] == report["limits"]["wall_s"] == sandbox.WALL_FLOOR_S
    long = evaluate(toy(), right, tmp_path / "b", model_id="m", timeout_s=50.0)
    assert long["limits"]["wall_s"] == 50.0 * sandbox.WALL_FACTOR


def test_one_that_could_be_forged_is_said_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sandbox, "grade", lambda p, c, **o: [outcome(tamper_proof=i > 0) for i in range(len(p))]
    )
    assert evaluate(toy(), right, tmp_path, model_id="m")["tamper_proof"] is False


def test_what_could_not_be_run_is_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "grade", lambda p, c, **o: [outcome(status="harness")] * len(p))
    with pytest.raises(SandboxError, match="toy/0 could not be run"):
        evaluate(toy(), right, tmp_path, model_id="m")


def test_groups_are_scored_by_the_first_k(tmp_path):
    def quarter(prompts):
        return [right([p])[0] if i % 4 == 0 else "    pass\n" for i, p in enumerate(prompts)]

    report = evaluate(toy(), quarter, tmp_path, samples=4, k=(1, 4), model_id="m")
    assert report["groups"]["all"]["mean"] == report["pass@1"] == 0.25


def test_a_kill_costs_a_block_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "BLOCK", 1)
    real, graded = sandbox.grade, []

    def grade(problems, completions, **options):
        if len(graded) == 2:
            graded.clear()
            raise KeyboardInterrupt
        graded.extend(problems)
        return real(problems, completions, **options)

    monkeypatch.setattr(sandbox, "grade", grade)
    with pytest.raises(KeyboardInterrupt):
        evaluate(toy(), right, tmp_path, model_id="m")
    assert evaluate(toy(), right, tmp_path, model_id="m")["pass@1"] == 1.0
    assert [problem.task_id for problem in graded] == ["toy/2"]


def test_a_pair_of_surrogates_is_one_character_at_once(tmp_path):
    text = "    return 0 * x  # \ud83d\ude00\n"
    assert evaluate(toy(1), lambda p: [text], tmp_path, model_id="m")["pass@1"] == 1.0


def test_a_fenced_answer_stands_on_lines_of_its_own():
    problem = Problem(
        task_id="t", prompt="def f(x):", preamble="import math", test="", entry_point="f"
    )
    cutting = run_module._Cutting(stop=(), truncate=False, fenced=True)
    assert cutting.apply(problem, "```python\ndef f(x):\n    return x\n```").startswith("\ndef f")
