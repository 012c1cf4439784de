"""How fast an endpoint may be asked: what it says, and what it does when it is asked too fast.

- Requests, input tokens and output tokens per minute are learned from response headers
  (`x-ratelimit-*` as OpenAI, vLLM's gateways and Groq send them, `anthropic-ratelimit-*`), each a
  bucket that refills evenly.
- Concurrency is adaptive: an overloaded answer (429, 503, 529, a time-out) multiplies it by 0.7, at
  most once in the time that calls take; each round of successes adds one, up to what was asked for.
- `Retry-After` in milliseconds, seconds or as a date holds back every call, not just this one.

Pure bookkeeping over a clock that is handed in; no threads, no network. About 2 us a call.

    limits = Limits(64, time.monotonic); wait = limits.wait(prompt=900, output=400)
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

LONGEST_WAIT = 600.0
"""Seconds that an endpoint may ask to wait; beyond, it counts as down."""

_DOWN, _LEAST = 0.7, 1.0
_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_KINDS = {
    "requests": "requests",
    "tokens": "tokens",
    "input-tokens": "input",
    "prompt-tokens": "input",
    "output-tokens": "output",
    "completion-tokens": "output",
}


def seconds(text: str) -> float | None:
    """A duration as headers write it (`1.5`, `20ms`, `6m0s`), in seconds; None if it is none."""
    text = text.strip()
    try:
        value = float(text)
    except ValueError:
        parts = _PARTS.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            return None
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    return value if 0 <= value < 1e9 else None


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """How long an answer asks to wait, in seconds.

    Args:
        headers: The answer's, with names in lower case.
        now: The time as seconds since the epoch, for dates.

    Returns:
        None if it does not say, or says nothing that can be read.
    """
    if "retry-after-ms" in headers:
        value = seconds(headers["retry-after-ms"])
        if value is not None:
            return value / 1000
    text = headers.get("retry-after", "")
    value = seconds(text)
    if value is None and text:
        try:
            value = max(0.0, parsedate_to_datetime(text).timestamp() - now)
        except (ValueError, TypeError, OverflowError):
            value = None
    return value


@dataclass
class Bucket:
    """So much a minute, refilled evenly."""

    limit: float
    level: float
    time: float

    def refill(self, now: float) -> None:
        """Adds what came in since it was last looked at."""
        self.level = min(self.limit, self.level + (now - self.time) * self.limit / 60)
        self.time = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until it holds an amount; one that is larger than the bucket needs it full."""
        self.refill(now)
        missing = min(amount, self.limit) - self.level
        return max(0.0, missing * 60 / self.limit) if self.limit else 60.0


class Limits:
    """What is known of an endpoint's limits, and how many calls may be under way."""

    def __init__(self, concurrency: int, clock: Callable[[], float]) -> None:
        """Starts at full concurrency with nothing known.

        Args:
            concurrency: The most calls under way at once.
            clock: Seconds that only grow.
        """
        self.most = concurrency
        self.allowed = float(concurrency)
        self.active = 0
        self.buckets: dict[str, Bucket] = {}
        self._clock = clock
        self._held_until = 0.0
        self._lowered = float("-inf")
        self._typical = 1.0
        """Seconds that a call takes, smoothed."""
        self._output = 0.0
        """Output tokens of an answer, smoothed; 0 while unknown."""

    def wait(self, *, prompt: int, output: int) -> float | None:
        """Seconds until one more call may start; 0 if now, None if one under way must end first.

        Args:
            prompt: Its input tokens, at most.
            output: Its output tokens, at most.
        """
        if self.active >= max(1, int(self.allowed)):
            return None
        now = self._clock()
        longest = self._held_until - now
        for name, amount in self._amounts(prompt, output):
            bucket = self.buckets.get(name)
            if bucket is not None:
                longest = max(longest, bucket.wait(amount, now))
        return max(0.0, longest)

    def _amounts(self, prompt: int, output: int) -> tuple[tuple[str, float], ...]:
        likely = min(output, 1.5 * self._output) if self._output else output
        return (
            ("requests", 1),
            ("input", prompt),
            ("output", likely),
            # Vendors that count both together count the greatest possible answer.
            ("tokens", prompt + output),
        )

    def start(self, *, prompt: int, output: int) -> float:
        """Counts a call as under way; returns the time, for `end`."""
        self.active += 1
        now = self._clock()
        for name, amount in self._amounts(prompt, output):
            if name in self.buckets:
                self.buckets[name].refill(now)
                self.buckets[name].level -= amount
        return now

    def end(
        self,
        started: float,
        *,
        overloaded: bool,
        ok: bool,
        output: int | None = None,
        headers: Mapping[str, str] | None = None,
        hold: float | None = None,
    ) -> None:
        """Counts a call as over and learns from it.

        Args:
            started: What `start` returned.
            overloaded: It was turned away or timed out because there is too much to do.
            ok: It gave an answer.
            output: The answer's tokens, if known.
            headers: The answer's, with names in lower case.
            hold: Seconds that no call shall start.
        """
        self.active -= 1
        now = self._clock()
        if headers:
            self._learn(headers, now)
        if hold is not None:
            self._held_until = max(self._held_until, now + hold)
        if ok:
            self._typical += 0.1 * (now - started - self._typical)
            if output is not None:
                self._output += (0.1 if self._output else 1.0) * (output - self._output)
            self.allowed = min(float(self.most), self.allowed + 1 / self.allowed)
        elif overloaded and started > self._lowered:
            # Calls that had started before the last cut tell nothing about it.
            self.allowed = max(_LEAST, self.allowed * _DOWN)
            self._lowered = now

    def _learn(self, headers: Mapping[str, str], now: float) -> None:
        for name, value in headers.items():
            kind, what = _header(name)
            if what != "limit":
                continue
            limit = seconds(value)
            if not limit:
                continue
            remaining = seconds(_value(headers, name, "remaining"))
            bucket = self.buckets.get(kind)
            if bucket is None or bucket.limit != limit:
                level = limit if bucket is None else min(bucket.level, limit)
                bucket = self.buckets[kind] = Bucket(limit, level, now)
            bucket.refill(now)
            if remaining is not None:
                # Its count is the truth, but for the calls that it has not seen yet.
                bucket.level = min(bucket.level, remaining)


def _header(name: str) -> tuple[str, str]:
    """`(kind, limit)` for a header that states a limit, else two empty texts."""
    if name.startswith("x-ratelimit-limit-"):
        kind = _KINDS.get(name.removeprefix("x-ratelimit-limit-"), "")
        return (kind, "limit") if kind else ("", "")
    if name.startswith("anthropic-ratelimit-") and name.endswith("-limit"):
        kind = _KINDS.get(name.removeprefix("anthropic-ratelimit-").removesuffix("-limit"), "")
        return (kind, "limit") if kind else ("", "")
    return "", ""


def _value(headers: Mapping[str, str], name: str, what: str) -> str:
    """The header beside a limit's that says what remains of it."""
    beside = (
        name.replace("-limit-", f"-{what}-", 1)
        if name.startswith("x-")
        else name.removesuffix("limit") + what
    )
    return headers.get(beside, "")
