import json
import os
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest

from hornbook.errors import ConfigError, InputError, ResumeError, SandboxError
from hornbook.evaluate import (
    Problem,
    evaluate,
    evaluate_model,
    load_problems,
    run_programs,
    sandbox,
    status,
)
from hornbook.manifest import verify

SAFE = status()
pytestmark = pytest.mark.skipif(not SAFE["safe"], reason=str(SAFE.get("advice")))
needs_data = pytest.mark.skipif(
    "HORNBOOK_DATA" not in os.environ, reason="HORNBOOK_DATA is not set"
)

ANSWERS = {
    "double": "    return 2 * x\n",
    "triple": "    return 3 * x\n",
    "half": "    return x / 2\n",
}


def toy():
    factors = {"double": 2, "triple": 3, "half": 0.5}
    return [
        Problem(
            task_id=f"toy/{name}",
            prompt=f'def {name}(x):\n    """Gives {factor} times x."""\n',
            preamble=f'def {name}(x):\n    """Gives {factor} times x."""\n',
            test=f"def check(f):\n    assert f(8) == 8 * {factor}\ncheck({name})",
            entry_point=name,
            group="whole" if factor >= 1 else "part",
        )
        for name, factor in factors.items()
    ]


def name_of(prompt):
    return re.match(r"def (\w+)", prompt)[1]


def perfect(prompts):
    return [ANSWERS[name_of(prompt)] + "\nprint('more')\n" for prompt in prompts]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_perfect_model(tmp_path):
    report = evaluate(toy(), perfect, tmp_path / "out", model_id="perfect")
    assert (report["n"], report["pass@1"], report["stderr"]) == (3, 1.0, 0.0)
    assert report["low"] < 1 == report["high"]
    assert report["groups"]["whole"]["n"] == 2
    assert report["isolation"] == SAFE["isolation"]
    assert report["tamper_proof"] is True
    assert report["model_id"] == "perfect"
    rows = lines(tmp_path / "out" / "results.jsonl")
    assert [row["task_id"] for row in rows] == ["toy/double", "toy/triple", "toy/half"]
    assert {(row["passed"], row["result"]) for row in rows} == {(True, "passed")}
    assert rows[0]["completion"] == "    return 2 * x\n"
    assert rows[0]["raw"].endswith("print('more')\n")
    assert verify(tmp_path / "out")["checked"] == 4


def test_wrong_answers_by_kind_and_group(tmp_path):
    answers = {"double": "    return 2 * x\n", "triple": "    return y\n", "half": "    return x\n"}
    report = evaluate(
        toy(), lambda prompts: [answers[name_of(p)] for p in prompts], tmp_path, model_id="m"
    )
    assert report["pass@1"] == pytest.approx(1 / 3)
    assert report["statuses"] == {"exception": 1, "passed": 1, "wrong": 1}
    assert report["groups"]["whole"]["mean"] == 0.5
    results = [row["result"] for row in lines(tmp_path / "results.jsonl")]
    assert results == ["passed", "exception: NameError", "wrong"]


def test_pass_at_k_over_several_samples(tmp_path):
    def half_right(prompts):
        return [
            ANSWERS[name_of(prompt)] if i % 4 == 0 else "    pass\n"
            for i, prompt in enumerate(prompts)
        ]

    report = evaluate(toy(), half_right, tmp_path, samples=4, k=(1, 2, 4), model_id="m")
    assert report["pass@1"] == 0.25
    assert report["pass@2"] == 0.5
    assert report["pass@4"] == 1.0
    assert set(report["pass_at_k"]) == {"1", "2", "4"}
    assert len(lines(tmp_path / "results.jsonl")) == 12


def test_the_same_again_is_skipped_and_another_model_is_not(tmp_path):
    calls = []

    def counted(prompts):
        calls.append(len(prompts))
        return perfect(prompts)

    first = evaluate(toy(), counted, tmp_path / "o", model_id="a", workers=1)
    again = evaluate(toy(), counted, tmp_path / "o", model_id="a", workers=2)
    assert calls == [3]
    assert dict(first) == dict(again)
    evaluate(toy(), counted, tmp_path / "o", model_id="b")
    evaluate(toy(), counted, tmp_path / "o", model_id="b", settings={"temperature": 1})
    assert calls == [3, 3, 3]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(ResumeError):
        evaluate(toy(), counted, tmp_path / "mine", model_id="a")


def test_bytes_do_not_depend_on_workers_or_on_being_interrupted(tmp_path, monkeypatch):
    evaluate(toy(), perfect, tmp_path / "a", model_id="m", workers=1)
    evaluate(toy(), perfect, tmp_path / "b", model_id="m", workers=3)

    calls = []

    def counted(prompts):
        calls.append(len(prompts))
        return perfect(prompts)

    def fail(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "run_programs", fail)
        with pytest.raises(KeyboardInterrupt):
            evaluate(toy(), counted, tmp_path / "c", model_id="m")
    evaluate(toy(), counted, tmp_path / "c", model_id="m")
    assert calls == [3]  # the completions were kept
    for name in ("samples.jsonl", "results.jsonl", "summary.json"):
        texts = {(tmp_path / folder / name).read_bytes() for folder in "abc"}
        assert len(texts) == 1, name


def test_samples_from_a_file_are_graded_as_they_stand(tmp_path):
    path = tmp_path / "samples.jsonl"
    rows = [
        {"task_id": f"toy/{name}", "completion": answer + "\nimport sys\n"}
        for name, answer in ANSWERS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    report = evaluate(toy(), None, tmp_path / "out", samples=path)
    assert report["pass@1"] == 1.0
    assert (report["stop"], report["cut"]) == ([], "none")
    results = lines(tmp_path / "out" / "results.jsonl")
    assert [row["task_id"] for row in results] == ["toy/half", "toy/triple", "toy/double"]
    assert results[0]["completion"].endswith("import sys\n")
    # What one run wrote another reads.
    again = evaluate(toy(), None, tmp_path / "again", samples=tmp_path / "out" / "samples.jsonl")
    assert again["pass@1"] == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task_id": "toy/double", "completion": ""}\n', "no sample for 2 of 3 problems"),
        ('{"task_id": "toy/nine", "completion": ""}\n', "line 1: `toy/nine` is not one of"),
        ('{"task_id": "toy/double"}\n', "line 1: `completion` is missing"),
        ('{"task_id": \n', "line 1: not JSON"),
        ("", "no sample for 3 of 3"),
    ],
)
def test_samples_that_cannot_be_scored(tmp_path, text, message):
    path = tmp_path / "samples.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        evaluate(toy(), None, tmp_path / "out", samples=path)


def test_options_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match="model_id"):
        evaluate(toy(), perfect, tmp_path / "o")
    with pytest.raises(ConfigError, match="pass@5 needs 5 samples"):
        evaluate(toy(), perfect, tmp_path / "o", model_id="m", k=(1, 5))
    with pytest.raises(ConfigError, match="at least one number"):
        evaluate(toy(), perfect, tmp_path / "o", model_id="m", k=())
    with pytest.raises(ConfigError, match="leave out `complete`"):
        evaluate(toy(), perfect, tmp_path / "o", model_id="m", samples=tmp_path / "s")
    with pytest.raises(ConfigError, match="own task_id"):
        evaluate(toy() + toy(), perfect, tmp_path / "o", model_id="m")
    with pytest.raises(InputError, match="2 completions for 3 prompts"):
        evaluate(toy(), lambda prompts: ["", ""], tmp_path / "o", model_id="m")
    with pytest.raises(ConfigError, match="temperature"):
        evaluate_model(toy(), tmp_path, tmp_path / "o", samples=2)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        evaluate_model(toy(), tmp_path, tmp_path / "o")


def test_a_checkpoint_is_asked_with_its_own_tokenizer(tmp_path, monkeypatch):
    """The wiring alone: stand-ins for the model and its sampler."""
    pytest.importorskip("torch")
    asked = {}

    def generate(model, tokenizer, prompts, **options):
        asked.update(options, model=model, tokenizer=tokenizer)
        return perfect(prompts)

    def opener(kind, method):
        def opened(path):
            config = SimpleNamespace(max_position_embeddings=1000)
            return SimpleNamespace(kind=kind, path=path, config=config, encode=list)

        return type(kind, (), {method: staticmethod(opened)})

    model, sample, tokens = (ModuleType(name) for name in ("model", "sample", "tokens"))
    model.Phi, sample.generate = opener("phi", "from_pretrained"), generate
    tokens.Tokenizer = opener("tokens", "from_file")
    monkeypatch.setitem(sys.modules, "hornbook.model", model)
    monkeypatch.setitem(sys.modules, "hornbook.model.sample", sample)
    monkeypatch.setitem(sys.modules, "hornbook.tokenizer", tokens)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    report = evaluate_model(toy(), folder, tmp_path / "out", temperature=0.5, seed=3, samples=2)
    assert report["pass@1"] == 1.0
    assert (asked["model"].kind, asked["model"].path) == ("phi", folder)
    tokenizer = asked["tokenizer"]
    assert (tokenizer.kind, tokenizer.path) == ("tokens", folder / "tokenizer.json")
    assert (asked["temperature"], asked["seed"]) == (0.5, 3)
    assert "\ndef" in asked["stop"]
    assert report["settings"]["max_new_tokens"] == asked["max_new_tokens"]
    first = report["model_id"]
    (folder / "weights").write_text("other")
    assert evaluate_model(toy(), folder, tmp_path / "out")["model_id"] != first


def test_without_a_sandbox_no_completion_is_even_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "_WITHOUT", ("landlock",))
    with pytest.raises(SandboxError):
        evaluate(toy(), lambda prompts: pytest.fail("asked"), tmp_path / "o", model_id="m")
    report = evaluate(toy(), perfect, tmp_path / "o", model_id="m", accept_unsafe=True)
    assert report["isolation"] == "none"


def test_hostile_completions_are_harmless(tmp_path):
    hostile = [
        "    return '\0'\n",
        "    return '\ud800'\n",
        "    x = '" + "a" * 10_000_000 + "'\n    return 16\n",
        "\x1b[2J\x1b]0;title\x07    return 16\n",
        "    return 16\n" * 100_000,
        "    return " + "(" * 100_000,
        "    return " + "-" * 100_000 + "1\n",
        "    return 16 #\r\n\u2028\u2029\x85\n",
        '{"task_id": "toy/double", "passed": true}\n',
        "\n" * 100_000,
        "    import os; os._exit(0)\n",
        "    raise SystemExit(0)\n",
    ]
    problem = toy()[0]
    report = evaluate(
        [problem], lambda prompts: hostile, tmp_path, samples=len(hostile), model_id="m"
    )
    rows = lines(tmp_path / "results.jsonl")
    assert [row.get("raw", row["completion"]) for row in rows] == hostile
    assert [row["passed"] for row in rows] == [False, False, True, False, True] + 2 * [False] + [
        True
    ] + 4 * [False]
    assert report["pass@1"] == 0.25
    for name in ("samples.jsonl", "results.jsonl", "summary.json"):
        data = (tmp_path / name).read_bytes()
        assert all(byte == 10 or 32 <= byte < 127 for byte in data)


def mutants(code):
    """Solutions that no test should let pass."""
    yield ""
    yield "    pass\n"
    yield "    return None\n"
    yield "    raise ValueError\n"
    yield "    import sys; sys.exit(0)\n"
    yield re.sub(r"^(\s*)return\b.*", r"\1return object()", code, flags=re.MULTILINE)


@needs_data
def test_humanevals_solutions_pass_and_mutants_fail(tmp_path):
    problems = load_problems("humaneval")
    solutions = {problem.prompt: problem.canonical_solution for problem in problems}
    report = evaluate(
        problems, lambda prompts: [solutions[p] for p in prompts], tmp_path, model_id="reference"
    )
    assert (report["n"], report["pass@1"]) == (164, 1.0)
    assert report["problems_sha256"].startswith("b796127e635a")
    some = list(problems)[::8]
    programs = [
        problem.program(mutant)
        for problem in some
        for mutant in mutants(problem.canonical_solution)
    ]
    assert all(not outcome.passed for outcome in run_programs(programs, timeout_s=5.0))
