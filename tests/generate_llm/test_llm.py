"""The stage: rows, rejections, budgets, and a run that is killed and goes on."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_teacher import CANARY, Server, answer, completion, exercise

from hornbook import corpus
from hornbook.cli import main
from hornbook.errors import ConfigError
from hornbook.generate import prompts
from hornbook.generate.client import (
    BudgetReachedError,
    TeacherError,
)
from hornbook.generate.gate import GateOptions
from hornbook.generate.ledger import Ledger
from hornbook.generate.llm import generate_llm
from hornbook.generate.slots import Kind, Spec, function_name
from hornbook.generate.steer import SteerOptions
from hornbook.manifest import verify as verify_folder
from hornbook.trace import trace

UNARMED = GateOptions(repeats=10**6, mutants=0)
PARAMS = {"temperature": 1.0, "max_tokens": 100}


def stage(server: Server, tmp_path: Path, kind: Kind = "exercises", **options: Any) -> Any:
    options = {
        "count": 20,
        "model": "m",
        "ledger": tmp_path / "ledger",
        "base_url": server.url,
        "budget_tokens": 10**7,
        "max_retries": 1,
        "gate": GateOptions(repeats=10**6),
        **options,
    }
    return generate_llm(kind, options.pop("out", tmp_path / "out"), **options)


def name_of(index: int) -> str:
    names = Spec(kind="exercises").curriculum.names
    assert names is not None
    return function_name(names, index, 0)


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all the files but the manifest, which holds times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "manifest.json"
    }


# The stage


def test_exercises_end_to_end(server: Server, tmp_path: Path) -> None:
    report = stage(server, tmp_path, prices={"m": (1.0, 10.0)}, budget_usd=1.0)
    assert report["counts"] == {"in": 20, "kept": 20, "dropped": {}, "rejected": 0}
    assert report["details"]["verified"] is False
    assert report["details"]["cost_usd"] == pytest.approx(20 * 510e-6)
    rows = list(corpus.read([tmp_path / "out"]))
    assert len({row["entry_point"] for row in rows}) == 20
    for index, row in enumerate(rows):
        assert row["slot"].endswith(f"/0/{index}")
        assert row["text"] == row["prompt"] + row["solution"]
        assert (row["kind"], row["teacher"], row["model"]) == ("exercises", "openai", "m")
        assert (row["served_model"], row["seed"]) == ("fake-1", 0)
        assert row["prompt_id"] == prompts.EXERCISE.id
        assert (row["prompt_tokens"], row["completion_tokens"]) == (10, 50)
        assert row["cost_usd"] == pytest.approx(510e-6)
        exec(row["text"] + row["tests"], {})
    with Ledger(tmp_path / "ledger") as ledger:
        assert all(ledger.answer(row["call"]) for row in rows)
    assert verify_folder(tmp_path / "out")["ok"]
    # Done is done; the endpoint and the budget take no part in what a stage is.
    server.close()
    assert stage(server, tmp_path, prices={"m": (2.0, 2.0)})["key"] == report["key"]


def test_textbooks_end_to_end(server: Server, tmp_path: Path) -> None:
    report = stage(server, tmp_path, "textbooks", seed=3)
    assert report["counts"]["kept"] == 20
    rows = list(corpus.read([tmp_path / "out"]))
    assert all(row["words"].count(", ") == 2 for row in rows)
    assert all(row["cost_usd"] is None for row in rows)
    assert report["details"]["cost_usd"] is None
    assert report["details"]["tokens"] == 20 * 60


def test_bad_answers_are_set_aside_with_their_reason(server: Server, tmp_path: Path) -> None:
    bad: list[Any] = [
        (200, {}, completion("half", "length")),
        (200, {}, completion("no", "content_filter")),
        (400, {}, {"error": {"message": "no"}}),
        "",
        "I'd rather not.",
        exercise("other_name"),
        "a\x00b",
        "lone \ud800",
        "x" * 2**20,
        "```python\nimport os\nos.system('true')\n```",
    ]
    names = {name_of(index): index for index in range(20)}

    def reply(body: dict[str, Any], _: int) -> Any:
        text = body["messages"][-1]["content"]
        index = next(i for name, i in names.items() if f"`{name}`" in text)
        return bad[index] if index < len(bad) else answer(body)

    server.reply = reply
    report = stage(server, tmp_path)
    assert report["counts"]["kept"] == 10
    assert report["counts"]["dropped"] == {
        "control_characters": 1,
        "empty": 1,
        "filtered": 1,
        "import": 1,
        "refused": 1,
        "syntax": 2,
        "too_long": 1,
        "truncated": 1,
        "wrong_name": 1,
    }
    lines = (tmp_path / "out" / "rejected" / "rows.jsonl").read_text().splitlines()
    rejected = [json.loads(line) for line in lines]
    assert [row["slot"].split("/")[-1] for row in rejected] == [str(i) for i in range(10)]
    assert rejected[0]["reason"] == "truncated"
    assert len(list(corpus.read([tmp_path / "out"]))) == 10


def test_repeated_texts_are_kept_once(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body, n: (
        "# Loops\n\n" + "Prose about loops. " * 30 + "\n\n```python\nx = 1\n```\n"
    )
    counts = stage(server, tmp_path, "textbooks")["counts"]
    assert (counts["kept"], counts["dropped"]) == (1, {"duplicate": 19})


def test_verified_rows_are_those_that_ran(server: Server, tmp_path: Path) -> None:
    class Outcome:
        def __init__(self, program: str) -> None:
            self.passed = "adjacent" not in program
            self.status = "failed"

    programs: list[str] = []

    def verify(batch: Sequence[str], **limits: Any) -> Iterator[Outcome]:
        assert limits["timeout_s"] > 0
        programs.extend(batch)
        return map(Outcome, batch)

    spec = Spec(kind="exercises")
    named = [name_of(index) for index in range(60)]
    bad = sum("adjacent" in name for name in named)
    assert bad
    report = stage(server, tmp_path, count=60, spec=spec, verify=verify, gate=UNARMED)
    assert report["details"]["verified"] is True
    assert report["counts"]["dropped"] == {"not_verified": bad}
    assert len(programs) == 60 + 60 - bad  # those that passed run a second time
    for program in programs:
        exec(program, {})
    books: list[str] = []
    stage(
        server,
        tmp_path,
        "textbooks",
        out=tmp_path / "books",
        verify=lambda batch, **_: books.extend(batch) or map(Outcome, batch),
    )
    assert len(books) == 40
    exec(books[0], {})


def test_a_spent_budget_is_resumed_or_closed_with_what_there_is(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(BudgetReachedError, match="run again with more") as caught:
        stage(server, tmp_path, budget_tokens=3000, concurrency=2)
    made = caught.value.made
    assert 0 < made < 20
    # What there is is a data set that is whole, but not taken for a finished one.
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["counts"]["kept"], manifest["details"]["complete"]) == (made, False)
    assert "budget reached" in manifest["details"]["stopped"]
    assert verify_folder(tmp_path / "out")["ok"]
    sent = server.total
    part = stage(server, tmp_path, out=tmp_path / "part", count=made, budget_tokens=3000)
    assert (part["counts"]["kept"], server.total) == (made, sent)
    whole = stage(server, tmp_path)
    assert whole["counts"]["kept"] == 20
    assert whole["details"]["answers_from_ledger"] == made
    assert server.total == 20


def test_a_run_that_keeps_nothing_says_so_before_its_budget_is_spent(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda body, n: exercise("other_name")
    with pytest.raises(
        BudgetReachedError, match=r"; 0 kept; turned away: \d+ wrong_name"
    ) as caught:
        stage(server, tmp_path, count=1000, budget_tokens=20_000)
    made = caught.value.made
    assert made > 128
    assert str(caught.value).endswith(f"turned away: {made} wrong_name")
    told = capsys.readouterr().err
    assert told.count("warning: 0 kept; turned away: 64 wrong_name") == 1
    assert told.count("warning") == 1


def test_a_part_never_replaces_what_was_finished(server: Server, tmp_path: Path) -> None:
    finished = stage(server, tmp_path, count=10)
    before = contents(tmp_path / "out")
    with pytest.raises(BudgetReachedError):
        stage(server, tmp_path, seed=1, budget_tokens=1000, ledger=tmp_path / "other")
    assert contents(tmp_path / "out") == before
    assert stage(server, tmp_path, count=10)["key"] == finished["key"]
    # A part gives way to the next one.
    kept: list[int] = []
    for budget in (3000, 3400):
        with pytest.raises(BudgetReachedError):
            stage(
                server,
                tmp_path,
                seed=2,
                out=tmp_path / "new",
                budget_tokens=budget,
                ledger=tmp_path / "third",
            )
        manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
        kept.append(manifest["counts"]["kept"])
    assert 0 < kept[0] < kept[1] < 20


def test_failed_calls_leave_the_stage_open(server: Server, tmp_path: Path) -> None:
    down = {"x-should-retry": "false"}
    bad = name_of(3)
    server.reply = lambda body, n: (
        (500, down, b"") if bad in body["messages"][-1]["content"] and n < 1 else answer(body)
    )
    with pytest.raises(TeacherError, match="1 of 20 calls failed"):
        stage(server, tmp_path)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["counts"]["kept"], manifest["details"]["complete"]) == (19, False)
    assert manifest["counts"]["dropped"] == {"failed": 1}
    (told,) = (tmp_path / "out" / "rejected" / "rows.jsonl").read_text().splitlines()
    assert json.loads(told)["reason"] == "failed"
    assert stage(server, tmp_path)["counts"]["kept"] == 20
    assert server.total == 21


def test_more_rows_and_other_topics_reuse_what_is_unchanged(server: Server, tmp_path: Path) -> None:
    stage(server, tmp_path)
    more = stage(server, tmp_path, count=30, out=tmp_path / "more")
    assert server.total == 30
    assert more["details"]["answers_from_ledger"] == 20
    first = list(corpus.read([tmp_path / "out"]))
    assert list(corpus.read([tmp_path / "more"]))[:20] == first
    stage(server, tmp_path, out=tmp_path / "seed", seed=1)
    assert server.total == 50


def test_the_stage_refuses_what_makes_no_sense(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outside"):
        stage(server, tmp_path, ledger=tmp_path / "out" / "ledger")
    with pytest.raises(ConfigError, match="count"):
        stage(server, tmp_path, count=0)
    with pytest.raises(ConfigError, match="spec is for"):
        stage(server, tmp_path, spec=Spec(kind="textbooks"))
    with pytest.raises(ConfigError, match="price"):
        stage(server, tmp_path, budget_tokens=None)
    assert server.total == 0


RUN = """
import signal
import sys
# Ignored where the tests were started in the background by a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)
from hornbook.generate.gate import GateOptions
from hornbook.generate.llm import generate_llm
url, ledger, out, count = sys.argv[1:]
generate_llm("exercises", out, count=int(count), model="m", ledger=ledger, base_url=url,
             budget_tokens=10**8, concurrency=8,
             gate=GateOptions(repeats=10**6))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_anywhere_a_run_goes_on_without_asking_twice(server: Server, tmp_path: Path) -> None:
    count = 96
    command = [sys.executable, "-W", "error", "-c", RUN, server.url, str(tmp_path / "ledger")]
    command += [str(tmp_path / "out"), str(count)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server.delay = 0.01
    possible = 0
    answered: dict[str, int] = {}
    for target in (5, 60):
        process = subprocess.Popen(command, env=env)
        while server.total < target + possible:
            time.sleep(0.002)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Ledger(tmp_path / "ledger") as ledger:
            assert ledger.left_behind <= 8
            possible = ledger.totals().lost
        database = sqlite3.connect(tmp_path / "ledger")
        rows = database.execute("SELECT request FROM calls WHERE state = 'answered'").fetchall()
        database.close()
        texts = {json.loads(row)["messages"][-1]["content"] for (row,) in rows}
        assert set(answered) <= texts
        for text in texts:
            assert server.seen[text] == answered.setdefault(text, server.seen[text])
    subprocess.run(command, env=env, check=True, timeout=60)
    assert {text: server.seen[text] for text in answered} == answered
    assert len(server.seen) == count
    # Every repeat is one that the ledger reports as possibly paid for twice.
    assert count <= server.total <= count + possible
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["kept"] == count
    assert manifest["details"]["ledger"]["lost"] == possible
    server.delay = 0.0
    stage(server, tmp_path, count=count, ledger=tmp_path / "other", out=tmp_path / "straight")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_an_interrupted_run_keeps_what_is_under_way(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", RUN, server.url, str(tmp_path / "ledger")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server.delay = 0.2
    process = subprocess.Popen(
        [*command, str(tmp_path / "out"), "500"], env=env, stderr=subprocess.PIPE, text=True
    )
    while server.total < 12:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert errors.strip().endswith("KeyboardInterrupt")
    with Ledger(tmp_path / "ledger") as ledger:
        assert ledger.left_behind == 0
        assert ledger.totals().answered == server.total < 500


def test_a_failing_consumer_loses_no_answer(server: Server, tmp_path: Path) -> None:
    def verify(_: Sequence[str], **limits: Any) -> list[bool]:
        raise RuntimeError("no sandbox")

    server.delay = 0.1
    steer = SteerOptions(block=3)
    with pytest.raises(RuntimeError, match="no sandbox"):
        stage(server, tmp_path, count=100, verify=verify, concurrency=4, steer=steer)
    with Ledger(tmp_path / "ledger") as ledger:
        assert ledger.left_behind == 0
        assert ledger.totals().answered == server.total


def test_a_row_and_a_rejection_can_be_traced(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body, n: "No." if f"`{name_of(1)}`" in str(body) else answer(body)
    stage(server, tmp_path, count=3, out=tmp_path / "exercises")
    first = next(iter(corpus.read([tmp_path / "exercises"])))
    told = "\n".join(trace(first["id"], tmp_path))
    for part in (first["slot"], first["call"], prompts.EXERCISE.id, "model = m", "seed = 0"):
        assert part in told
    rejected = json.loads((tmp_path / "exercises" / "rejected" / "rows.jsonl").read_text())
    told = "\n".join(trace(rejected["call"], tmp_path))
    assert "turned away: syntax" in told


def test_the_command_says_no_key_and_writes_page_and_card(
    server: Server,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hornbook.evaluate.run_programs", lambda texts, **_: map(passed, texts))
    hostile = "<script>alert(1)</script>"
    server.reply = lambda body, n: (
        f"the key is {CANARY}"
        if f"`{name_of(1)}`" in str(body)
        else answer(body).replace("gives", hostile)
    )
    command = ["generate", "exercises", "--model", "m", "--base-url", server.url, "--count", "6"]
    command += ["--no-steer", "--mutants", "0", "--price-in", "1", "--price-out", "10"]
    command += ["--budget-usd", "1", "--json", "--out", str(tmp_path / "ex")]
    with pytest.raises(SystemExit) as done:
        main(command)
    assert not done.value.code
    captured = capfd.readouterr()
    report = json.loads(captured.out)
    assert report["counts"]["kept"] == 5
    assert CANARY not in captured.out + captured.err
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    page = (tmp_path / "ex" / "report.html").read_text()
    assert hostile not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    card = (tmp_path / "ex" / "README.md").read_text()
    assert "| rows | 5 |" in card
    assert "| syntax | 1 |" in card
    cells = (tmp_path / "ex" / "evidence" / "cells.json").read_text().splitlines()
    assert sum(json.loads(line)["rows"] for line in cells) == 5
    # A budget that is spent leaves a data set, and says so with exit code 3.
    command[command.index("--budget-usd") + 1] = "0.0000001"
    command[command.index("--count") + 1] = "60"
    with pytest.raises(SystemExit) as done:
        main(command)
    assert done.value.code == 3
    assert "budget reached" in capfd.readouterr().err


def passed(_: str) -> Any:
    return SimpleNamespace(passed=True, status="passed", output="")


def test_what_the_budget_leaves_unrepaired_can_be_finished(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": "m",
        "ledger": tmp_path / "l",
        "teacher": lambda messages, params: "nonsense",
        "budget_tokens": 60_000,
        "gate": GateOptions(repair=True),
    }
    with pytest.raises(BudgetReachedError) as caught:
        generate_llm("exercises", tmp_path / "out", count=1000, **options)
    made = caught.value.made
    report = generate_llm("exercises", tmp_path / "out", count=made, **options)
    assert report["counts"]["in"] == made
    assert not report["key"].startswith("partial-")


def test_a_model_that_refuses_everything_is_no_result(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body, n: (400, {}, b'{"error": {"message": "no such model"}}')
    with pytest.raises(TeacherError, match=r"refuses all of 3 calls.*no such model"):
        stage(server, tmp_path, count=3)
    server.reply = lambda body, n: answer(body)
    assert stage(server, tmp_path, count=3)["counts"]["in"] == 3


def test_a_second_interrupt_waits_for_nobody(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, server.url, str(tmp_path / "ledger")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server.delay = 60.0
    process = subprocess.Popen(
        [*command, str(tmp_path / "out"), "50"], env=env, stderr=subprocess.PIPE, text=True
    )
    while server.active < 4:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=20)[1]
    assert "waiting for calls under way" in errors
    assert errors.strip().endswith("KeyboardInterrupt")
