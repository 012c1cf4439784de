"""A chat endpoint as the model that is scored: fenced answers, paid for once, keys kept out."""

import json
from pathlib import Path

import pytest
from fake_teacher import CANARY, Server

from hornbook.cli import main
from hornbook.errors import HornbookError
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
