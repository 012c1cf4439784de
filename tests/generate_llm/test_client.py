"""The client against a real HTTP server: order, retries, budgets, hostile replies, the key."""

import asyncio
import itertools
import json
import logging
import sqlite3
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import wait
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import pytest
from fake_teacher import CANARY, Server, completion

from hornbook.errors import BudgetError, ConfigError, MissingExtraError
from hornbook.generate.budget import Purse
from hornbook.generate.caller import Caller
from hornbook.generate.client import (
    BudgetReachedError,
    Request,
    Response,
    TeacherError,
    complete_all,
)
from hornbook.generate.ledger import Ledger
from hornbook.generate.transport import RefusedError, Reply

FREE = {"m": (0.0, 0.0)}
PRICED = {"m": (1.0, 10.0)}
COST = (10 * 1 + 50 * 10) / 1e6
"""Of each answer of the fake server at `PRICED`."""


def ask(text: str, **changes: Any) -> Request:
    fields = {
        "slot": "s",
        "messages": [{"role": "user", "content": text}],
        "params": {"temperature": 0.0, "max_tokens": 60},
    }
    return Request(**{**fields, **changes})


def asks(count: int) -> list[Request]:
    return [ask(f"q{index}", slot=str(index)) for index in range(count)]


def run(
    server: Server, ledger: Ledger, requests: Iterable[Request], **options: Any
) -> list[Response]:
    options = {"model": "m", "prices": FREE, "base_url": server.url, "max_retries": 2, **options}
    return list(complete_all(requests, ledger=ledger, **options))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger") as open_:
        yield open_


def test_answers_come_in_order_whatever_their_arrival(server: Server, ledger: Ledger) -> None:
    gate = threading.Event()

    def reply(body: dict[str, Any], _: int) -> str:
        text = body["messages"][-1]["content"]
        if text == "q0":
            gate.wait(5)  # the first answer comes after the eighth
        if text == "q7":
            gate.set()
        return f"a{text}"

    server.reply = reply
    responses = run(server, ledger, asks(40), concurrency=8)
    assert [r.text for r in responses] == [f"aq{i}" for i in range(40)]
    assert {r.verdict for r in responses} == {"ok"}
    assert 2 <= server.most_active <= 8
    assert [r.request.slot for r in responses] == [str(i) for i in range(40)]


def test_nothing_answered_is_sent_again(server: Server, ledger: Ledger) -> None:
    first = run(server, ledger, asks(5))
    again = run(server, ledger, asks(9))
    assert server.total == 9
    assert [r.text for r in again[:5]] == [r.text for r in first]
    assert [r.stored for r in again] == [True] * 5 + [False] * 4
    # All in the ledger: neither network nor key nor package is needed.
    server.close()
    replayed = complete_all(
        asks(9), ledger=ledger, model="m", budget_tokens=0, api_key_env="UNSET_KEY"
    )
    assert [r.text for r in replayed] == [r.text for r in again]


def test_the_identity_of_a_call(server: Server, ledger: Ledger) -> None:
    base = ask("x")
    others = [
        ask("y"),
        ask("x", slot="t"),
        ask("x", attempt=1),
        ask("x", params={"max_tokens": 60, "temperature": 0.5}),
    ]
    assert len({r.key("m") for r in [base, *others]} | {base.key("n")}) == 6
    same = ask("x", prompt_id="p", provenance={"a": 1})
    assert same.key("m") == base.key("m")
    responses = run(server, ledger, [base, same, base])
    assert server.total == 1
    assert [r.request.provenance for r in responses] == [{}, {"a": 1}, {}]


def test_requests_are_taken_a_window_at_a_time(server: Server, ledger: Ledger) -> None:
    taken = itertools.count()
    last = 0

    def endless() -> Iterator[Request]:
        nonlocal last
        for index in taken:
            last = index
            yield ask(f"q{index}", slot=str(index))

    gate = threading.Event()

    def reply(body: dict[str, Any], _: int) -> str:
        text = body["messages"][-1]["content"]
        if int(text[1:]) >= 3:
            gate.wait(5)
        return f"a{text}"

    server.reply = reply
    stream = complete_all(
        endless(), ledger=ledger, model="m", prices=FREE, base_url=server.url, concurrency=2
    )
    assert [next(stream).text for _ in range(3)] == ["aq0", "aq1", "aq2"]
    threading.Timer(0.3, gate.set).start()
    stream.close()
    assert last <= 3 + 4 * 2
    # What was under way was paid for, so it was awaited and kept; nothing more was sent.
    assert 3 <= server.total <= 5
    assert ledger.totals().answered == server.total
    assert ledger.totals().lost == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "1"},
        {"retry-after-ms": "1000"},
        {"Retry-After": "date"},
    ],
)
def test_retry_after_is_obeyed(server: Server, ledger: Ledger, headers: dict[str, str]) -> None:
    if headers.get("Retry-After") == "date":
        headers = {"Retry-After": formatdate(time() + 2, usegmt=True)}
    server.reply = lambda body, n: (429, headers, {"error": {"message": "slow"}}) if n < 1 else "ok"
    assert [r.text for r in run(server, ledger, asks(1))] == ["ok"]
    assert server.times[1] - server.times[0] >= 0.9
    assert ledger.totals().lost == 0


def test_server_errors_are_retried_then_given_up(server: Server, ledger: Ledger) -> None:
    quick = {"retry-after-ms": "1"}
    server.reply = lambda body, n: (500, quick, b"<html>") if n < 2 else "ok"
    assert [r.verdict for r in run(server, ledger, asks(2))] == ["ok", "ok"]
    server.reply = lambda body, n: (503, quick, b"")
    (response,) = run(server, ledger, [ask("other")])
    assert response.verdict == "failed"
    assert "503" in response.error
    assert server.seen["other"] == 3
    assert ledger.totals().failed == 1
    server.reply = lambda body, n: "back"
    assert [r.text for r in run(server, ledger, [ask("other")])] == ["back"]


def test_a_rejected_request_is_not_retried(server: Server, ledger: Ledger) -> None:
    server.reply = lambda body, n: (
        (400, {}, {"error": {"message": "too long"}})
        if body["messages"][-1]["content"] == "q1"
        else "ok"
    )
    responses = run(server, ledger, asks(3))
    assert [r.verdict for r in responses] == ["ok", "refused", "ok"]
    assert "too long" in responses[1].error
    assert server.total == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once(server: Server, ledger: Ledger, status: int) -> None:
    server.reply = lambda body, n: (status, {}, {"error": {"message": f"bad key {CANARY}"}})
    with pytest.raises(ConfigError, match=r"refuses the key, the account or the model") as caught:
        run(server, ledger, asks(50), concurrency=2)
    assert server.total <= 2
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "error",
    [
        {"message": "You exceeded your current quota, please check your plan."},
        {"message": "insufficient_quota", "code": "insufficient_quota"},
    ],
)
def test_an_empty_account_is_not_waited_for(
    server: Server, ledger: Ledger, error: dict[str, str]
) -> None:
    server.reply = lambda body, n: (429, {}, {"error": error})
    with pytest.raises(ConfigError, match="the account"):
        run(server, ledger, asks(50), concurrency=2, max_retries=6)
    assert server.total <= 2
    assert set(server.seen.values()) == {1}


def test_an_endpoint_that_is_down_stops_the_run(server: Server, ledger: Ledger) -> None:
    server.reply = lambda body, n: (500, {"x-should-retry": "false"}, b"")
    with pytest.raises(TeacherError, match="in a row, the last with: HTTP 500") as caught:
        run(server, ledger, asks(500), concurrency=4)
    assert caught.value.exit_code == 3
    assert server.total <= 16


def test_nobody_there(server: Server, ledger: Ledger) -> None:
    server.close()
    responses = run(server, ledger, asks(1), max_retries=0)
    assert [r.verdict for r in responses] == ["failed"]
    assert ledger.totals().lost == 0  # it never got there, so it cost nothing


def test_a_cut_connection_may_have_cost_its_reserve(server: Server, ledger: Ledger) -> None:
    server.reply = lambda body, n: None
    (response,) = run(server, ledger, asks(1), max_retries=0)
    assert response.verdict == "failed"
    totals = ledger.totals()
    assert (totals.lost, totals.lost_tokens) == (1, asks(1)[0].most_prompt_tokens + 60)


def test_a_slow_answer_times_out(server: Server, ledger: Ledger) -> None:
    server.delay = 1.0
    (response,) = run(server, ledger, asks(1), max_retries=0, timeout_s=0.2)
    assert response.verdict == "failed"
    assert "Timeout" in response.error
    assert ledger.totals().lost == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe\xfa",
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": [{"message": "x"}]}',
        b"[" * 100_000,
    ],
)
def test_malformed_replies_fail(server: Server, ledger: Ledger, body: bytes) -> None:
    server.reply = lambda _, n: (200, {}, body)
    (response,) = run(server, ledger, asks(1), max_retries=0)
    assert response.verdict == "failed"
    assert "malformed" in response.error
    assert ledger.totals().lost == 1


def test_a_malformed_reply_is_asked_for_again_and_counted(server: Server, ledger: Ledger) -> None:
    server.reply = lambda _, n: (200, {}, b'{"choices": [{"mess') if n == 0 else "whole"
    responses = run(server, ledger, asks(3))
    assert [response.text for response in responses] == ["whole"] * 3
    totals = ledger.totals()
    assert (totals.answered, totals.lost) == (3, 3)
    assert totals.lost_tokens == sum(ledger.reserve(response.key)[1] for response in responses)


def test_a_malformed_reply_is_asked_for_once_more_at_most(server: Server, ledger: Ledger) -> None:
    server.reply = lambda _, n: (200, {}, b"<html>")
    (response,) = run(server, ledger, asks(1), max_retries=6)
    assert response.verdict == "failed"
    assert (server.total, ledger.totals().lost) == (2, 2)


def test_a_lost_reserve_does_not_stand_in_the_way_of_a_kept_one(ledger: Ledger) -> None:
    """The budget holds four calls. One is lost, and comes back while another waits for its turn
    after a refusal: the first no longer fits, but the second does."""
    room = asks(1)[0].most_prompt_tokens + 60
    usage = {"prompt_tokens": room - 60, "completion_tokens": 60}
    tries: Counter[str] = Counter()

    class Slow:
        async def send(self, request: Request) -> Reply:
            tries[request.slot] += 1
            if request.slot == "1" and tries["1"] == 1:
                await asyncio.sleep(0.05)
                raise RefusedError(429, "slow", {})
            if request.slot == "0" and tries["0"] == 1:
                await asyncio.sleep(1.2)
                return Reply(b"<html>")
            if request.slot in "23":
                await asyncio.sleep(4)
            return Reply(json.dumps(completion("x", usage=usage)).encode())

        async def close(self) -> None:
            pass

    purse = Purse(price=None, budget_usd=None, budget_tokens=4 * room, usd=0, tokens=0)
    with Caller(
        ledger=ledger, model="m", purse=purse, transport=Slow(), secret="", concurrency=4,
        max_retries=6,
    ) as caller:  # fmt: skip
        futures = [caller.submit(request, request.key("m")) for request in asks(4)]
        _, waiting = wait(futures, timeout=20)
        assert not waiting
    assert [future.exception() is None for future in futures] == [False, True, True, True]
    assert (purse.tokens, purse.held_tokens, purse.calls) == (4 * room, 0, 0)


def test_a_call_that_rests_keeps_its_share_of_the_budget(server: Server, ledger: Ledger) -> None:
    """Else those behind it, which nobody can use before it, spend all there is."""
    prompt = asks(1)[0].most_prompt_tokens
    full = completion("t", usage={"prompt_tokens": prompt, "completion_tokens": 60})
    server.reply = lambda body, n: (
        (429, {}, b"") if n == 0 and body["messages"][-1]["content"] == "q0" else (200, {}, full)
    )
    with pytest.raises(BudgetReachedError, match="3 answers are kept") as caught:
        run(server, ledger, asks(10), budget_tokens=3 * (prompt + 60), concurrency=2)
    assert caught.value.made == 3
    assert ledger.totals().tokens == 3 * (prompt + 60)


def test_verdicts(server: Server, ledger: Ledger) -> None:
    replies = {
        "q0": completion("half a", "length"),
        "q1": completion("", "content_filter"),
        "q2": completion("  \n"),
        "q3": completion("whole"),
        "q4": completion("x", choices=[{"message": {"content": None}, "finish_reason": "stop"}]),
    }
    server.reply = lambda body, n: (200, {}, replies[body["messages"][-1]["content"]])
    for stored in (False, True):
        responses = run(server, ledger, asks(5))
        assert [r.verdict for r in responses] == ["truncated", "filtered", "empty", "ok", "empty"]
        assert [r.stored for r in responses] == [stored] * 5
    assert responses[0].text == "half a"


def test_hostile_text_is_kept_and_harmless(server: Server, ledger: Ledger) -> None:
    texts = ["a\x00b", "lone \ud800 surrogate", "x" * 2**20, "'); DROP TABLE calls; --"]
    server.reply = lambda body, n: texts[int(body["messages"][-1]["content"][1:])]
    expected = [texts[0], "lone ? surrogate", *texts[2:]]
    for _ in range(2):
        assert [r.text for r in run(server, ledger, asks(4))] == expected


@pytest.mark.parametrize("usage", [None, "many", {}, {"prompt_tokens": -5, "completion_tokens": 1}])
def test_an_unknown_usage_costs_the_reserve(server: Server, ledger: Ledger, usage: Any) -> None:
    server.reply = lambda body, n: (200, {}, completion("t", usage=usage))
    (response,) = run(server, ledger, asks(1), prices=PRICED)
    answer = response.answer
    assert answer is not None
    prompt = asks(1)[0].most_prompt_tokens
    assert answer.charged_tokens == prompt + 60
    assert answer.cost_usd == pytest.approx((prompt + 60 * 10) / 1e6)


def test_the_money_budget_is_never_passed(server: Server, ledger: Ledger) -> None:
    reserve = (asks(11)[10].most_prompt_tokens * 1 + 60 * 10) / 1e6
    budget = 10 * COST + reserve + 1e-9
    stream = complete_all(
        asks(100),
        ledger=ledger,
        model="m",
        base_url=server.url,
        prices=PRICED,
        budget_usd=budget,
    )
    made: list[Response] = []
    with pytest.raises(BudgetReachedError, match="budget reached") as caught:
        made.extend(stream)
    # Reserves are given back as answers arrive, so all that fits is used.
    assert len(made) == caught.value.made == server.total == 11
    assert [r.request.slot for r in made] == [str(i) for i in range(11)]
    assert isinstance(caught.value, BudgetError)
    assert caught.value.exit_code == 3
    assert ledger.totals().usd == pytest.approx(11 * COST)
    assert ledger.totals().usd <= budget
    # The budget is the ledger's: a second run does not get it anew, but what is made stays free.
    with pytest.raises(BudgetReachedError) as caught:
        run(server, ledger, asks(100), prices=PRICED, budget_usd=budget)
    assert (caught.value.made, server.total) == (11, 11)
    assert len(run(server, ledger, asks(11), prices=PRICED, budget_usd=budget)) == 11


def test_the_token_budget_is_never_passed(server: Server, ledger: Ledger) -> None:
    with pytest.raises(BudgetReachedError, match="tokens"):
        run(server, ledger, asks(100), budget_tokens=1000)
    assert 1000 - 150 < ledger.totals().tokens <= 1000
    with pytest.raises(BudgetReachedError) as caught:
        run(server, ledger, [ask("new")], budget_tokens=0)
    assert caught.value.made == 0
    assert server.seen["new"] == 0


def test_budgets_hold_while_calls_are_under_way(server: Server, ledger: Ledger) -> None:
    # Five reserves fit at once; the answers cost as much as was reserved, so only five are sent.
    prompt = asks(1)[0].most_prompt_tokens
    full = {"prompt_tokens": prompt, "completion_tokens": 60}
    server.reply = lambda body, n: (200, {}, completion("t", usage=full))
    server.delay = 0.05
    with pytest.raises(BudgetReachedError):
        run(server, ledger, asks(64), budget_tokens=5 * (prompt + 60), concurrency=32)
    assert server.total == 5


def test_what_a_lost_call_may_have_cost_counts(server: Server, tmp_path: Path) -> None:
    request = asks(1)[0]
    reserve = request.most_prompt_tokens + 60
    server.reply = lambda body, n: None if n == 0 else "ok"
    with Ledger(tmp_path / "l") as ledger:
        run(server, ledger, [request], max_retries=0, budget_tokens=reserve)
        with pytest.raises(BudgetReachedError):
            run(server, ledger, [request], max_retries=0, budget_tokens=reserve + 10)
        assert server.total == 1
        assert len(run(server, ledger, [request], budget_tokens=2 * reserve)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prices": None}, "price of `m` is unknown"),
        ({"prices": {"other": (1, 1)}}, "price of `m` is unknown"),
        ({"prices": None, "budget_usd": 1.0, "budget_tokens": 5}, "needs the price"),
        ({"prices": {"m": (1, -1)}}, "at least 0"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_retries": -1}, "max_retries"),
        ({"budget_tokens": -1}, "budget_tokens"),
        ({"budget_usd": float("nan")}, "budget_usd"),
        ({"base_url": "ftp://x"}, "https://host"),
        ({"base_url": f"http://user:{CANARY}@localhost/v1"}, "password"),
        ({"base_url": None, "api_key_env": "UNSET_KEY"}, "UNSET_KEY"),
    ],
)
def test_options_that_make_no_sense(
    server: Server, ledger: Ledger, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run(server, ledger, asks(1), **options)
    assert CANARY not in str(caught.value)
    assert server.total == 0


def test_money_cannot_be_limited_after_calls_without_a_price(
    server: Server, ledger: Ledger
) -> None:
    run(server, ledger, asks(1), prices=None, budget_tokens=1000)
    with pytest.raises(ConfigError, match="without a price"):
        run(server, ledger, asks(2), prices=PRICED, budget_usd=1.0)


@pytest.mark.parametrize("name", ["stream", "n", "model", "messages"])
def test_parameters_that_would_change_the_call(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ask("x", params={"max_tokens": 5, name: 1})


@pytest.mark.parametrize("params", [{}, {"max_tokens": 0}, {"max_tokens": "7"}])
def test_a_request_needs_a_greatest_length(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="max_tokens"):
        ask("x", params=params)


def test_a_prompt_must_be_text() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        ask("lone \ud800")


def test_without_the_package(
    server: Server, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"hornbook\[generate\]"):
        run(server, ledger, asks(1))


def test_the_key_reaches_only_the_endpoint(
    server: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The endpoint echoes the key in answers, in errors and in names; none of it comes through."""
    caplog.set_level(logging.INFO)
    replies: list[Any] = [
        f"the key is {CANARY}",
        (400, {}, {"error": {"message": f"bad {CANARY}"}}),
        (200, {}, completion("x", CANARY, model=f"model-{CANARY}")),
        (200, {}, f"oops {CANARY}".encode()),
        (500, {"x-should-retry": "false"}, f"{CANARY}".encode()),
    ]
    server.reply = lambda body, n: replies[int(body["messages"][-1]["content"][1:])]
    with Ledger(tmp_path / "l") as ledger:
        responses = run(server, ledger, asks(5))
    assert all(h["authorization"] == f"Bearer {CANARY}" for h in server.headers)
    assert CANARY not in repr(responses)
    assert "[key]" in responses[0].text
    for path in tmp_path.iterdir():
        assert CANARY.encode() not in path.read_bytes()
    captured = capfd.readouterr()
    assert CANARY not in caplog.text + captured.out + captured.err


def test_the_ledger_holds_the_whole_exchange(server: Server, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        run(server, ledger, [ask("hello", prompt_id="p-1")], prices=PRICED)
    database = sqlite3.connect(tmp_path / "l")
    row = database.execute(
        "SELECT state, model, slot, prompt_id, request, text, prompt_tokens, cost_usd FROM calls"
    ).fetchone()
    database.close()
    assert row[:4] == ("answered", "m", "s", "p-1")
    assert json.loads(row[4])["messages"] == [{"role": "user", "content": "hello"}]
    assert row[5:7] == ("echo hello", 10)
    assert row[7] == pytest.approx(COST)


def test_threads_end_with_the_run(server: Server, ledger: Ledger) -> None:
    run(server, ledger, asks(20))
    assert not [t for t in threading.enumerate() if t.name == "hornbook-teacher"]


@pytest.mark.parametrize("name", ["PackageTransport", "DirectTransport"])
def test_both_transports_mean_the_same(
    server: Server, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The `openai` package's own way, for where a call cannot go straight, and ours."""
    monkeypatch.setattr(
        "hornbook.generate.transport.find_spec", lambda _: name == "DirectTransport"
    )
    replies: dict[str, Any] = {
        "q0": "fine",
        "q1": (400, {}, {"error": {"message": "too long"}}),
        "q2": (429, {"retry-after-ms": "1"}, {"error": {"message": "slow"}}),
        "q3": None,
        "q4": (200, {"x-ratelimit-limit-requests": "100000"}, completion("x", "length")),
    }
    server.reply = lambda body, n: replies[body["messages"][-1]["content"]]
    made = run(server, ledger, asks(5), max_retries=1, concurrency=1)
    assert [r.verdict for r in made] == ["ok", "refused", "failed", "failed", "truncated"]
    assert "HTTP 400" in made[1].error
    assert "too long" in made[1].error
    assert [server.seen[f"q{i}"] for i in range(5)] == [1, 1, 2, 2, 1]
    assert ledger.totals().lost == 2  # both tries of the one that was cut off
    server.delay = 0.5
    (slow,) = run(server, ledger, [ask("q0", slot="slow")], max_retries=0, timeout_s=0.1)
    assert (slow.verdict, ledger.totals().lost) == ("failed", 3)
    server.close()
    (gone,) = run(server, ledger, [ask("q0", slot="gone")], max_retries=0)
    assert (gone.verdict, ledger.totals().lost) == ("failed", 3)
