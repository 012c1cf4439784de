"""Learned limits, adaptive concurrency and every form of Retry-After, on a clock of our own."""

import itertools
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.generate.limits import Limits, retry_after, seconds

CALL = {"prompt": 100, "output": 50}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def spend(limits: Limits, clock: Clock, seconds_: float, **changes: object) -> int:
    """Starts calls as soon as they may, each over at once; how many fit in a time."""
    made, end = 0, clock.now + seconds_
    while clock.now < end:
        wait = limits.wait(**CALL)
        if wait == 0:
            started = limits.start(**CALL)
            limits.end(started, ok=True, overloaded=False, output=50, **changes)  # type: ignore[arg-type]
            made += 1
        else:
            assert wait is not None
            clock.now += wait
        clock.now += 1e-6
    return made


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "nonsense", "retry-after": "3"}, 3),
        ({"retry-after": formatdate(1_000_012, usegmt=True)}, 12),
        ({"retry-after": formatdate(999_000, usegmt=True)}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-4"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_every_form_of_retry_after(headers: dict[str, str], wait: float | None) -> None:
    assert retry_after(headers, 1_000_000) == wait


@pytest.mark.parametrize(
    ("text", "value"),
    [("20ms", 0.02), ("6m0s", 360), ("1h2m3.5s", 3723.5), ("1.5", 1.5), ("x", None), ("", None)],
)
def test_durations(text: str, value: float | None) -> None:
    assert seconds(text) == value


@given(st.text())
def test_any_header_is_read_or_left(text: str) -> None:
    value = retry_after({"retry-after": text, "retry-after-ms": text}, 0.0)
    assert value is None or value >= 0


@pytest.mark.parametrize(
    ("headers", "rate"),
    [
        ({"x-ratelimit-limit-requests": "600"}, 600),
        ({"anthropic-ratelimit-requests-limit": "300"}, 300),
        ({"x-ratelimit-limit-tokens": "15000"}, 100),  # prompts and the greatest answers: 150 each
        ({"anthropic-ratelimit-input-tokens-limit": "20000"}, 200),
        # By what answers take, with a margin of one half, not by what they might.
        ({"anthropic-ratelimit-output-tokens-limit": "10000"}, 200),
        ({"x-ratelimit-limit-requests": "600", "x-ratelimit-limit-tokens": "1500"}, 10),
    ],
)
def test_rates_are_learned_from_headers(headers: dict[str, str], rate: int) -> None:
    clock = Clock()
    limits = Limits(10_000, clock)
    first = spend(limits, clock, 1e-6, headers=headers)
    assert first == 1
    full = spend(limits, clock, 60, headers=headers)  # the bucket, and a minute's refill
    assert full <= 2 * rate + 2
    assert spend(limits, clock, 120) == pytest.approx(2 * rate, rel=0.05, abs=2)


def test_what_remains_is_the_endpoints_to_say() -> None:
    clock = Clock()
    limits = Limits(100, clock)
    started = limits.start(**CALL)
    headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "2"}
    limits.end(started, ok=True, overloaded=False, headers=headers)
    for _ in range(2):
        assert limits.wait(**CALL) == 0
        limits.start(**CALL)
    assert limits.wait(**CALL) == pytest.approx(1.0, abs=0.01)


def test_a_hold_holds_every_call() -> None:
    clock = Clock()
    limits = Limits(8, clock)
    started = limits.start(**CALL)
    limits.end(started, ok=False, overloaded=True, hold=5.0)
    assert limits.wait(**CALL) == 5.0
    clock.now += 5
    assert limits.wait(**CALL) == 0


def test_concurrency_falls_once_a_round_and_comes_back() -> None:
    clock = Clock()
    limits = Limits(64, clock)
    started = [limits.start(**CALL) for _ in range(64)]
    assert limits.wait(**CALL) is None
    clock.now += 1
    for start in started:  # all were under way when the endpoint was overloaded: one cut
        limits.end(start, ok=False, overloaded=True)
    assert limits.allowed == pytest.approx(64 * 0.7)
    clock.now += 1
    start = limits.start(**CALL)
    limits.end(start, ok=False, overloaded=True)
    assert limits.allowed == pytest.approx(64 * 0.49)
    for _ in itertools.repeat(None, 5_000):
        limits.end(limits.start(**CALL), ok=True, overloaded=False)
    assert limits.allowed == 64


def test_at_least_one_call_is_always_allowed() -> None:
    clock = Clock()
    limits = Limits(4, clock)
    for _ in range(50):
        clock.now += 1
        limits.end(limits.start(**CALL), ok=False, overloaded=True)
    assert limits.wait(**CALL) == 0


def test_it_settles_where_the_endpoint_can_follow() -> None:
    """An endpoint that turns away what is beyond 20 at once: few are, and it is kept busy."""
    clock = Clock()
    limits = Limits(256, clock)
    turned_away = answered = 0
    for _ in range(300):
        started = []
        while limits.wait(**CALL) == 0:
            started.append(limits.start(**CALL))
        clock.now += 1
        for place, start in enumerate(started):
            ok = place < 20
            limits.end(start, ok=ok, overloaded=not ok)
            answered += ok
            turned_away += not ok
    assert answered >= 0.8 * 20 * 300
    assert turned_away <= 0.3 * answered
