"""A chat endpoint as the model that is scored: fenced answers, paid for once, keys kept out."""

import json
from pathlib import Path

import pytest
from fake_teacher import CANARY, Server, completion

from hornbook.cli import main
from hornbook.errors import ConfigError, HornbookError
from hornbook.evaluate import evaluate_model, status

SAFE = status()
pytestmark = pytest.mark.skipif(not SAFE["safe"], reason=str(SAFE.get("advice")))

ROWS = [
    {
        "task_id": f"T/{factor}",
        "prompt": f'def times(x):\n    """Gives {factor} times x."""\n',
        "test": f"def check(f):\n    assert f(2) == {2 * factor}\n",
        "entry_point": "times",
        "canonical_solution": f"    return {factor} * x\n",
    }
    for factor in range(2, 8)
]


def problems(folder: Path) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def reply(body, _):
    text = body["messages"][-1]["content"]
    factor = int(text.split("Gives ")[1].split()[0])
    return (
        f"Sure!\n```python\ndef times(x):\n    return {factor} * x\n```\n"
        "And this is how to call it:\n```python\ntimes(2)\n```"
    )


def test_fenced_answers_are_scored_and_paid_for_once(server: Server, tmp_path: Path) -> None:
    server.reply = reply
    endpoint = {"base_url": server.url, "budget_tokens": 10**6, "ledger": tmp_path / "l"}
    report = evaluate_model(problems(tmp_path), "some-model", tmp_path / "a", endpoint=endpoint)
    assert report["pass@1"] == 1.0
    assert report["extraction"].startswith("the fenced block with the function")
    assert report["model_id"].startswith("some-model at http://")
    assert server.total == len(ROWS)
    evaluate_model(problems(tmp_path), "some-model", tmp_path / "b", endpoint=endpoint)
    assert server.total == len(ROWS)
    for folder in ("a", "b"):
        for path in (tmp_path / folder).iterdir():
            assert CANARY not in path.read_text()
    assert (tmp_path / "a/results.jsonl").read_bytes() == (
        tmp_path / "b/results.jsonl"
    ).read_bytes()
    row = json.loads((tmp_path / "a/results.jsonl").read_text().splitlines()[0])
    assert row["raw"].startswith("Sure!")
    assert row["completion"] == "def times(x):\n    return 2 * x\n"


@pytest.mark.parametrize("direct", [True, False])
def test_a_base_model_behind_an_endpoint_goes_on_from_the_prompt(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    if not direct:
        monkeypatch.setattr("hornbook.generate.transport.find_spec", lambda name: None)
    asked = []

    def goes_on(body, _):
        asked.append(body)
        assert "messages" not in body
        factor = int(body["prompt"].split("Gives ")[1].split()[0])
        return f"\n    return {factor} * x\n\nprint(times(1))\ndef more"

    server.reply = goes_on
    endpoint = {"base_url": server.url, "budget_tokens": 10**6, "ledger": tmp_path / "l"}
    options = {"backend": "completions", "max_new_tokens": 50, "endpoint": endpoint}
    report = evaluate_model(problems(tmp_path), "base", tmp_path / "a", **options)
    assert report["pass@1"] == 1.0
    assert report["settings"]["backend"] == "completions"
    assert report["settings"]["prompt"].startswith("the prompt without its last newlines")
    assert report["extraction"].startswith("up to the first stop string")
    assert {body["prompt"] for body in asked} == {row["prompt"].rstrip("\n") for row in ROWS}
    # What endpoints take, and no more; the rest is cut here.
    assert all(body["stop"] == ["\nclass", "\ndef", "\n#", "\nif"] for body in asked)
    assert all(body["max_tokens"] == 50 and body["temperature"] == 0 for body in asked)
    row = json.loads((tmp_path / "a/results.jsonl").read_text().splitlines()[0])
    # The newline that the prompt lost is no part of the answer.
    assert row["completion"] == "    return 2 * x\n"
    assert row["raw"].endswith("def more")
    # Paid for once; chat's and completions' answers are not taken for one another.
    evaluate_model(problems(tmp_path), "base", tmp_path / "b", **options)
    assert len(asked) == len(ROWS)
    server.reply = reply
    evaluate_model(problems(tmp_path), "base", tmp_path / "c", endpoint=endpoint)
    assert server.total == 2 * len(ROWS)


def test_a_chat_reply_from_a_completions_endpoint_is_no_answer(
    server: Server, tmp_path: Path
) -> None:
    server.reply = lambda body, _: (200, {}, completion("    return 1\n"))
    endpoint = {"base_url": server.url, "budget_tokens": 10**6, "ledger": tmp_path / "l"}
    with pytest.raises(HornbookError, match="malformed reply"):
        evaluate_model(
            problems(tmp_path), "m", tmp_path / "a", backend="completions", endpoint=endpoint
        )
    function = {"teacher": lambda messages, params: "x", "ledger": tmp_path / "f"}
    with pytest.raises(ConfigError, match="endpoint alone"):
        evaluate_model(
            problems(tmp_path), "m", tmp_path / "b", backend="completions", endpoint=function
        )


def test_an_endpoint_that_fails_is_asked_again_by_the_next_run(
    server: Server, tmp_path: Path
) -> None:
    endpoint = {
        "base_url": server.url,
        "budget_tokens": 10**6,
        "ledger": tmp_path / "l",
        "max_retries": 0,
        "concurrency": 1,
    }
    server.reply = lambda body, n: None if "Gives 5" in str(body) else reply(body, n)
    with pytest.raises(HornbookError, match="T/5"):
        evaluate_model(problems(tmp_path), "m", tmp_path / "a", endpoint=endpoint)
    server.reply = reply
    report = evaluate_model(problems(tmp_path), "m", tmp_path / "a", endpoint=endpoint)
    assert report["pass@1"] == 1.0


def test_commands_from_evaluation_to_grades(server: Server, tmp_path: Path, capsys) -> None:
    server.reply = reply
    common = ["--model", "m", "--base-url", server.url, "--budget-tokens", "9000000"]
    where = ["--ledger", str(tmp_path / "l")]
    out = ["--out", str(tmp_path / "scores")]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(problems(tmp_path)), *common, *where, *out, "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["pass@1"] == 1.0

    def grader(body, _):
        text = body["messages"][-1]["content"]
        attempt = text.split(" attempt\n")[1]
        right = "return" in attempt.split("data-")[0] and "None" not in attempt
        factor = attempt.split("Gives ")[1].split()[0] if "Gives" in attempt else "?"
        right = right and (f"return {factor} * x" in attempt or factor == "?")
        return json.dumps({"evaluation": "seen", "grade": 9 if right else 1})

    server.reply = grader
    samples = str(tmp_path / "scores" / "results.jsonl")
    given = ["--problems", str(problems(tmp_path)), "--votes", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["grade", samples, *given, *common, *where, "--out", str(tmp_path / "g"), "--json"])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["agreement"]["passed"] == len(ROWS) or report["void"]
    before = server.total
    with pytest.raises(SystemExit) as ended:
        main(["grade", "--rescore", "--out", str(tmp_path / "g"), "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == report
    assert server.total == before
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "page", str(tmp_path / "scores"), str(tmp_path / "g"), "-o", str(page)])
    assert ended.value.code == 0
    assert "phi-1-small" in page.read_text()


def test_two_servers_may_call_their_models_alike(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.reply = reply
    path = problems(tmp_path)
    options = {"budget_tokens": 10**6, "ledger": tmp_path / "l"}
    first = {**options, "base_url": server.url}
    evaluate_model(path, "m", tmp_path / "a", endpoint=first)
    server.reply = lambda body, n: "no idea"
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("127.0.0.1", "localhost"))
    report = evaluate_model(path, "m", tmp_path / "a", endpoint=options)
    assert report["pass@1"] == 0
    assert "localhost" in report["model_id"]
    assert server.total == 2 * len(ROWS)


def test_what_is_said_of_an_endpoint_asks_one_or_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    command = ["evaluate", str(problems(tmp_path)), "--model", "m", "--out", str(tmp_path / "o")]
    for options, message in (
        (["--budget-tokens", "9"], "OPENAI_API_KEY"),
        (["--replay", "--backend", "transformers"], "opens a model here"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*command, *options])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
