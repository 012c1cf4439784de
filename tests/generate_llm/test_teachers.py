"""Teachers beside chat completions: the Batch API, a function, a replay; time; growing."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_teacher import CANARY, Server, answer, completion

from hornbook import corpus
from hornbook.cli import main
from hornbook.errors import ConfigError, InputError
from hornbook.files import json_lines
from hornbook.generate.client import (
    BudgetReachedError,
    Request,
    Response,
    Session,
    TeacherError,
    TeacherOptions,
    complete_all,
)
from hornbook.generate.curriculum import load
from hornbook.generate.gate import GateOptions
from hornbook.generate.grow import grow
from hornbook.generate.ledger import Ledger
from hornbook.generate.llm import generate_llm
from hornbook.generate.slots import Spec

TOKENS = {"budget_tokens": 10**7}


def asks(count: int) -> list[Request]:
    return [
        Request(
            slot=str(index),
            messages=[{"role": "user", "content": f"q{index}"}],
            params={"max_tokens": 60},
        )
        for index in range(count)
    ]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger") as open_:
        yield open_


def batch(server: Server, ledger: Ledger, count: int, **options: Any) -> list[Response]:
    options = {"base_url": server.url, "poll_s": 0.02, **TOKENS, **options}
    return list(
        complete_all(asks(count), ledger=ledger, model="m", teacher="openai-batch", **options)
    )


# The Batch API


def test_a_batch_answers_in_order(server: Server, ledger: Ledger) -> None:
    replies = {
        "q1": (200, {}, completion("half", "length")),
        "q2": (400, {}, {"error": {"message": "too long"}}),
        "q3": (500, {}, {"error": {"message": "oops"}}),
        "q4": (200, {}, {"choices": []}),
        "q5": None,
    }
    server.reply = lambda body, n: replies.get(body["messages"][-1]["content"], "ok")
    made = batch(server, ledger, 7)
    assert [r.verdict for r in made] == [
        "ok",
        "truncated",
        "refused",
        "failed",
        "failed",
        "failed",
        "ok",
    ]
    assert [r.request.slot for r in made] == [str(i) for i in range(7)]
    assert len(server.batches) == 1
    # What was answered is not asked again; what was not goes into the next batch.
    server.reply = lambda body, n: "ok"
    again = batch(server, ledger, 7)
    assert [r.verdict for r in again] == ["ok", "truncated"] + ["ok"] * 5
    assert [server.seen[f"q{i}"] for i in range(7)] == [1, 1, 2, 2, 2, 2, 1]
    # The reply that held no answer may have been billed, and counts as that.
    assert (ledger.totals().lost, ledger.totals().lost_tokens) == (
        1,
        ledger.reserve(made[4].key)[1],
    )


def test_batches_stay_inside_the_budget(server: Server, ledger: Ledger) -> None:
    reserve = asks(1)[0].most_prompt_tokens + 60
    server.reply = lambda body, n: (
        200,
        {},
        completion("x", usage={"prompt_tokens": reserve - 60, "completion_tokens": 60}),
    )
    with pytest.raises(BudgetReachedError):
        batch(server, ledger, 10, budget_tokens=4 * reserve)
    assert server.total == 4
    assert ledger.totals().tokens <= 4 * reserve


BATCH = """
import sys
from hornbook.generate.client import Request, complete_all
from hornbook.generate.ledger import Ledger
url, path, count = sys.argv[1:]
asks = [Request(slot=str(i), messages=[{"role": "user", "content": f"q{i}"}],
                params={"max_tokens": 60}) for i in range(int(count))]
with Ledger(path) as ledger:
    list(complete_all(asks, ledger=ledger, model="m", teacher="openai-batch", base_url=url,
                      budget_tokens=10**7, poll_s=0.02))
"""


def test_a_run_killed_while_it_waits_goes_on_waiting(server: Server, tmp_path: Path) -> None:
    server.slow_looks = 10**9
    path = tmp_path / "ledger"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", BATCH, server.url, str(path), "9"], env=env)
    deadline = time.monotonic() + 60
    while not server.looks:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    server.slow_looks = 0
    with Ledger(path) as ledger:
        assert (ledger.left_behind, ledger.totals().lost) == (0, 0)
        # As if it had been killed before the endpoint's answer was written down, too.
        ((name, _, keys),) = ledger.batches()
        ledger.save_batch(name, "", keys)
        assert [r.verdict for r in batch(server, ledger, 9)] == ["ok"] * 9
        assert ledger.batches() == []
    assert len(server.batches) == 1
    assert server.total == 9


def test_a_batch_that_never_arrived_is_handed_in_again(server: Server, ledger: Ledger) -> None:
    request = asks(1)[0]
    ledger.intend(
        request.key("m"),
        model="m",
        slot="0",
        attempt=0,
        prompt_id="",
        request={},
        reserved_usd=None,
        reserved_tokens=80,
    )
    ledger.save_batch("lost", "", [request.key("m")])
    assert [r.text for r in batch(server, ledger, 1)] == ["echo q0"]
    assert len(server.batches) == 1


def test_a_refused_batch_says_why(server: Server, ledger: Ledger) -> None:
    server.close()
    with pytest.raises(TeacherError, match="could not be handled") as caught:
        batch(server, ledger, 1, max_retries=0)
    assert CANARY not in str(caught.value)


# A function, and a replay


def test_a_function_as_the_teacher(ledger: Ledger) -> None:
    busy, most = [], 0

    def ask(messages: Sequence[Mapping[str, str]], params: Mapping[str, Any]) -> Any:
        nonlocal most
        busy.append(threading.get_ident())
        most = max(most, len(busy))
        time.sleep(0.01)
        busy.pop()
        text = messages[-1]["content"]
        if text == "q3":
            raise ValueError("no idea")
        return completion("long", "length") if text == "q4" else f"{params['max_tokens']} {text}"

    options: dict[str, Any] = {"ledger": ledger, "model": "mine", "teacher": ask, "max_retries": 0}
    made = list(complete_all(asks(20), concurrency=4, **options))
    assert made[0].text == "60 q0"
    assert (made[3].verdict, made[4].verdict) == ("failed", "truncated")
    assert "no idea" in made[3].error
    assert 1 < most <= 4
    # A replay asks nobody, so it ends where the ledger does.
    replay = {**options, "teacher": "replay"}
    assert len(list(complete_all(asks(3), **replay))) == 3
    with pytest.raises(TeacherError, match="does not hold the next answer"):
        list(complete_all(asks(5), **replay))


def test_time_is_a_budget_too(server: Server, ledger: Ledger) -> None:
    server.delay = 0.1
    stream = complete_all(
        asks(2_000),
        ledger=ledger,
        model="m",
        base_url=server.url,
        budget_s=0.5,
        concurrency=2,
        **TOKENS,
    )
    made: list[Response] = []
    with pytest.raises(BudgetReachedError, match="time is up"):
        made.extend(stream)
    assert 0 < len(made) == server.total <= 12
    assert ledger.totals().lost == 0


def test_sustained_refusals_end_with_their_reason(
    server: Server, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hornbook.generate.caller.SILENCE_S", 0.3)
    server.reply = lambda body, n: (429, {"retry-after-ms": "20"}, {"error": {"message": "busy"}})
    with pytest.raises(TeacherError, match=r"no answer for .* the last: HTTP 429") as caught:
        list(
            complete_all(
                asks(500),
                ledger=ledger,
                model="m",
                base_url=server.url,
                max_retries=10**6,
                concurrency=8,
                **TOKENS,
            )
        )
    assert caught.value.exit_code == 3


def test_a_wait_of_hours_is_not_waited_for(server: Server, ledger: Ledger) -> None:
    server.reply = lambda body, n: (429, {"retry-after": "7200"}, {"error": {"message": "quota"}})
    with pytest.raises(TeacherError, match="asks to wait for 7,200 s"):
        list(complete_all(asks(99), ledger=ledger, model="m", base_url=server.url, **TOKENS))


def test_options_that_make_no_sense(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="must be one of openai"):
        complete_all([], ledger=ledger, model="m", teacher="oracle", **TOKENS)
    with pytest.raises(ConfigError, match="colour"):
        complete_all([], ledger=ledger, model="m", colour="red", **TOKENS)


# The stage with them


def test_rows_instead_of_slots(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body, n: "no" if len(json.dumps(body)) % 3 == 0 else answer(body)
    options: dict[str, Any] = {
        "model": "m",
        "ledger": tmp_path / "ledger",
        "base_url": server.url,
        "gate": GateOptions(repeats=10**6),
        **TOKENS,
    }
    report = generate_llm("exercises", tmp_path / "out", rows=40, **options)
    assert report["counts"]["kept"] == 40
    assert report["counts"]["in"] > 40
    assert server.total <= report["counts"]["in"] + 8  # the blocks that were under way
    sent = server.total
    replayed = generate_llm(
        "exercises", tmp_path / "again", rows=40, **{**options, "teacher": "replay"}
    )
    assert replayed["counts"] == report["counts"]
    assert server.total == sent
    # Rows say who was asked; all else is the same.
    first, second = (
        [{**row, "teacher": ""} for row in corpus.read([tmp_path / name])]
        for name in ("out", "again")
    )
    assert first == second


def test_one_repair_is_asked_for_with_the_reason(server: Server, tmp_path: Path) -> None:
    asked: list[str] = []

    def reply(body: dict[str, Any], _: int) -> str:
        messages = body["messages"]
        if len(messages) == 2:
            text = messages[-1]["content"]
            return answer(body) if sum(text.encode()) % 2 else "Not today."
        asked.append(messages[-1]["content"])
        return answer({"messages": messages[:2]})

    server.reply = reply
    report = generate_llm(
        "exercises",
        tmp_path / "out",
        count=24,
        model="m",
        ledger=tmp_path / "ledger",
        base_url=server.url,
        gate=GateOptions(repeats=10**6, repair=True),
        prices={"m": (1.0, 10.0)},
        **TOKENS,
    )
    assert report["counts"]["kept"] == 24
    assert report["details"]["repaired"] == len(asked) == server.total - 24 > 0
    assert report["details"]["repairs_answered"] == len(asked)
    # What a repaired row cost is what both of its calls did, wherever costs are told.
    spent = report["details"]["cost_usd"]
    cells = list(json_lines((tmp_path / "out" / "evidence" / "cells.json").read_text()))
    rows = list(corpus.read([tmp_path / "out"]))
    assert spent > 0
    assert spent == pytest.approx(sum(cell["usd"] for cell in cells))
    assert spent == pytest.approx(sum(row["cost_usd"] for row in rows))
    tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    assert tokens == report["details"]["tokens"]
    assert f"| calls | {server.total} |" in (tmp_path / "out" / "README.md").read_text()
    assert all("not accepted: syntax" in text for text in asked)


# Growing a curriculum


def planner(body: dict[str, Any], _: int = 0) -> str:
    text = body["messages"][-1]["content"]
    if "Plan a course" in text:
        return json.dumps(
            {
                "chapters": ['Means "and" medians', "Spread\n", "spread", "", 7],
                "audiences": ["a nurse", "a farmer"],
                "concepts": ["a loop", "a function"],
            }
        )
    name = text.split('the chapter "')[1].split('": each')[0]
    return json.dumps({"topics": [f"{name} one", "Two \\ ways", "two \\ Ways", "Two / ways"]})


def test_a_curriculum_grows_from_a_topic(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = 0

    def reply(body: dict[str, Any], n: int) -> str:
        nonlocal tries
        tries += 1
        return "Certainly!" if tries == 1 else planner(body)

    server.reply = reply
    out = tmp_path / "stats.toml"
    command = ["generate", "curriculum", "--from", "statistics", "--model", "m"]
    command += ["--base-url", server.url, "--budget-tokens", "1000000", "--out", str(out)]
    with pytest.raises(SystemExit) as done:
        main(command)
    assert not done.value.code
    assert "2 audiences" in capsys.readouterr().out
    made = load(out)
    assert [a.reader for a in made.audiences] == ["a nurse", "a farmer"]
    assert len(made.concepts) == 2
    titles = [topic.title for topic in made.topics]
    assert titles[0] == 'Means "and" medians one'
    assert len({topic.id for topic in made.topics}) == len(titles) >= 3
    server.reply = answer
    report = generate_llm(
        "textbooks",
        tmp_path / "books",
        count=5,
        model="m",
        ledger=tmp_path / "l",
        base_url=server.url,
        spec=Spec(kind="textbooks", curriculum=made),
        **TOKENS,
    )
    assert report["counts"]["in"] == 5


def test_a_model_that_cannot_plan_is_an_error(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body, n: '{"chapters": [], "audiences": ["x"], "concepts": ["y"]}'
    with pytest.raises(InputError, match="no usable reply in 3 tries"):
        grow(
            "x",
            tmp_path / "x.toml",
            model="m",
            ledger=tmp_path / "l",
            base_url=server.url,
            **TOKENS,
        )
    assert not (tmp_path / "x.toml").exists()


def test_nothing_waits_for_a_batch_after_the_end(server: Server, ledger: Ledger) -> None:
    options = TeacherOptions(
        model="m", teacher="openai-batch", base_url=server.url, budget_tokens=1
    )
    with Session(ledger, options) as session:
        for _ in range(2):
            with pytest.raises(BudgetReachedError):
                list(session.complete(asks(2)))
