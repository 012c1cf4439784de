"""What calls cost, what counts as failing, and what is never told."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_teacher import Server

from hornbook.errors import ConfigError, InputError
from hornbook.generate import caller
from hornbook.generate.client import BudgetReachedError, Request, address_of, complete_all
from hornbook.generate.gate import _failure
from hornbook.generate.ledger import Answer, Ledger
from hornbook.generate.limits import Limits

FREE = {"m": (0.0, 0.0)}
ANSWER = Answer(
    text="a",
    finish="stop",
    served_model="m",
    prompt_tokens=3,
    completion_tokens=4,
    charged_tokens=7,
    cost_usd=0.25,
)


def ask(text: str, slot: str = "s") -> Request:
    return Request(
        slot=slot,
        messages=[{"role": "user", "content": text}],
        params={"temperature": 0.0, "max_tokens": 60},
    )


def run(server: Server, ledger: Ledger, requests: Any, **options: Any) -> list[Any]:
    options = {"model": "m", "prices": FREE, "base_url": server.url, "max_retries": 2, **options}
    return list(complete_all(requests, ledger=ledger, **options))


def intend(ledger: Ledger, key: str, usd: float | None = 0.5, tokens: int = 10) -> None:
    ledger.intend(
        key,
        model="m",
        slot="0/0",
        attempt=0,
        prompt_id="p",
        request={},
        reserved_usd=usd,
        reserved_tokens=tokens,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger") as open_:
        yield open_


def test_a_lost_try_costs_its_tokens_too(ledger: Ledger) -> None:
    intend(ledger, "k")
    ledger.lose_try("k")
    assert (ledger.totals().lost_usd, ledger.totals().lost_tokens) == (0.5, 10)


def test_a_second_try_has_its_own_reserve(ledger: Ledger) -> None:
    intend(ledger, "k")
    ledger.fail("k", "HTTP 500", billed=False)
    intend(ledger, "k", usd=2.0, tokens=30)
    assert ledger.reserve("k") == (2.0, 30)
    ledger.fail("k", "cut off", billed=True)
    assert (ledger.totals().lost_usd, ledger.totals().lost_tokens) == (2.0, 30)


def test_an_answer_without_a_price_is_named(ledger: Ledger) -> None:
    intend(ledger, "k", usd=None)
    ledger.settle("k", replace(ANSWER, cost_usd=None))
    assert ledger.totals().unpriced == ("m",)


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path / "l").close()
    database = sqlite3.connect(tmp_path / "l")
    database.execute("PRAGMA user_version = 999")
    database.close()
    with pytest.raises(InputError, match="not a ledger of this version"):
        Ledger(tmp_path / "l")


def test_failures_with_answers_between_are_not_in_a_row(server: Server, ledger: Ledger) -> None:
    def reply(body: dict[str, Any], _: int) -> Any:
        number = int(body["messages"][-1]["content"])
        return "fine" if number % 2 else (400, {}, {"error": {"message": "too long"}})

    server.reply = reply
    made = run(server, ledger, [ask(str(i), str(i)) for i in range(20)], concurrency=1)
    assert [r.verdict for r in made] == ["refused", "ok"] * 10


def test_silence_is_counted_from_the_last_answer(
    server: Server, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "SILENCE_S", 2.0)

    def reply(body: dict[str, Any], number: int) -> Any:
        first = body["messages"][-1]["content"] == "0"
        return "fine" if first or number > 8 else (500, {"retry-after-ms": "1"}, b"")

    server.reply, server.delay = reply, 2.1
    (made,) = run(server, ledger, [ask("0")], concurrency=1)
    assert made.verdict == "ok"
    # The same caller: both in one call.
    server.delay = 0.0

    def slow_first(body: dict[str, Any], number: int) -> Any:
        if body["messages"][-1]["content"] == "a":
            import time

            time.sleep(2.1)
        return reply(body, number) if body["messages"][-1]["content"] != "a" else "fine"

    server.reply = slow_first
    made = run(server, ledger, [ask("a"), ask("b")], concurrency=1, max_retries=12)
    assert [r.verdict for r in made] == ["ok", "ok"]


@pytest.mark.parametrize("lost", [None, b"{"])
def test_what_a_lost_answer_may_have_cost_counts_at_once(
    server: Server, ledger: Ledger, lost: Any
) -> None:
    server.reply = lambda body, n: lost
    one = ask("q0").most_prompt_tokens + 60
    with pytest.raises(BudgetReachedError):
        run(
            server,
            ledger,
            [ask(f"q{i}", str(i)) for i in range(3)],
            concurrency=1,
            max_retries=0,
            budget_tokens=2 * one - 1,
        )
    assert server.total == 1


def test_an_account_without_money_ends_the_run(server: Server, ledger: Ledger) -> None:
    server.reply = lambda body, n: (402, {}, {"error": {"message": "pay"}})
    with pytest.raises(ConfigError, match="refuses the key, the account"):
        run(server, ledger, [ask("x")])


def test_a_conflict_is_tried_again(server: Server, ledger: Ledger) -> None:
    server.reply = lambda body, n: "fine" if n else (409, {"retry-after-ms": "1"}, b"")
    (made,) = run(server, ledger, [ask("x")])
    assert made.verdict == "ok"


def test_a_short_key_is_kept_out_too() -> None:
    assert caller.clean("my abcdefgh.", "abcdefgh") == "my [key]."


def test_no_user_in_an_address() -> None:
    with pytest.raises(ConfigError, match="cannot hold a password"):
        address_of("https://me@host/v1")


def test_the_bound_on_a_prompt_is_of_bytes() -> None:
    text = "\u4e2d" * 100
    assert ask(text).most_prompt_tokens >= len(text.encode())


def test_too_much_output_is_a_limit() -> None:
    assert _failure(SimpleNamespace(status="output", output="")).code == "limits"


def test_a_limit_that_changes_is_learned() -> None:
    limits = Limits(4, lambda: 0.0)
    for most in ("6000", "60"):
        started = limits.start(prompt=1, output=1)
        limits.end(started, ok=True, overloaded=False, headers={"x-ratelimit-limit-requests": most})
    assert limits.buckets["requests"].limit == 60
    assert limits.buckets["requests"].level <= 60
