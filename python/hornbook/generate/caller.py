"""Sends calls: reserves, waits its turn, retries, and writes down what came of each.

One event loop in a thread of its own; what carries a call is a `Transport` (`transport.py`). What a
turn of the loop has to write is one transaction. Overload, server errors and cut connections are
tried again with growing pauses; 400 and 401 are not. It stops for good, saying why, when the budget
is reached, when the endpoint refuses the key or the model, when as many calls in a row failed as
can be under way, when nothing was answered for five minutes, or when it is asked to wait for longer
than ten.
"""

import asyncio
import json
import random
import threading
import time
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from hornbook.errors import ConfigError, HornbookError
from hornbook.generate.budget import Purse
from hornbook.generate.client import (
    BudgetReachedError,
    Request,
    Response,
    StopError,
    TeacherError,
    Verdict,
    judge,
)
from hornbook.generate.ledger import Answer, Intent, Ledger
from hornbook.generate.limits import LONGEST_WAIT, Limits, retry_after
from hornbook.generate.transport import CutOffError, RefusedError, Transport

SILENCE_S = 300.0
"""Without an answer for so long, while calls fail, an endpoint counts as down."""


class MalformedError(Exception):
    """A reply with status 200 that is no completion."""


@dataclass(slots=True, eq=False)
class _Call:
    """A call on its way."""

    request: Request
    key: str
    prompt: int
    """Its prompt's tokens, at most."""
    most: int
    """Its answer's tokens, at most."""
    usd: float | None
    """What it can cost, at most; None without a price."""
    future: Future[Response]
    reserved: bool = False
    """Whether its cost is set aside. It stays so while a call rests between tries that cost
    nothing: calls behind it would spend what it needs, and rows are taken in order."""
    tries: int = 0
    started: float = 0.0
    """When its try started, for `limits.end`."""

    @property
    def tokens(self) -> int:
        return self.prompt + self.most


class Caller:
    """Keeps calls under way and writes the ledger."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        model: str,
        purse: Purse,
        transport: Transport,
        secret: str,
        concurrency: int,
        max_retries: int,
        deadline: float | None = None,
    ) -> None:
        """Takes what it needs; the thread starts on entering.

        Args:
            ledger: Where calls are written down.
            model: The model's name.
            purse: What may be spent.
            transport: What carries a call.
            secret: The key, to keep it out of texts.
            concurrency: Most calls under way.
            max_retries: Most retries of a call.
            deadline: When no further call starts, on `time.monotonic`'s clock.
        """
        self.limits = Limits(concurrency, time.monotonic)
        self._ledger = ledger
        self._model = model
        self._purse = purse
        self._transport = transport
        self._secret = secret
        self._max_retries = max_retries
        self._deadline = deadline
        # As many failures in a row as calls can be under way, and no success: it is down.
        self._patience = max(8, concurrency)
        self._failures = 0
        self._answered = time.monotonic()
        self._troubles = 0
        self._stop: StopError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._queue: deque[_Call] = deque()
        self._resting: dict[_Call, asyncio.TimerHandle] = {}
        self._answers: list[tuple[_Call, Answer]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._turning = False
        self._open: set[Future[Response]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="hornbook-teacher", daemon=True)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        if self._deadline is not None:
            self._loop.call_later(max(0.0, self._deadline - time.monotonic()), self._soon)
        self._loop.run_forever()

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        # Interrupted a second time: whoever stopped the run would not wait.
        dropped = self._stop is not None and error[0] is KeyboardInterrupt
        self.stop(HornbookError, "the run was stopped")
        try:
            if not dropped:
                wait(list(self._open))
        finally:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._transport.close()

    def stop(self, kind: type[HornbookError], message: str) -> None:
        """Lets no further call start; those under way come to their end."""
        self._stop = self._stop or StopError(kind, message)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._turn)

    def submit(self, request: Request, key: str) -> Future[Response]:
        """Queues a call."""
        prompt, most = request.most_prompt_tokens, request.most_tokens
        future: Future[Response] = Future()
        self._open.add(future)
        usd = self._purse.cost(prompt, most)
        self._queue.append(_Call(request, key, prompt, most, usd, future))
        # Behind others it waits for their turn, which comes without a call from outside.
        if len(self._queue) == 1:
            self._loop.call_soon_threadsafe(self._turn)
        return future

    def flush(self) -> None:
        """Nothing is held back here."""

    def _soon(self) -> None:
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Writes down the answers that came and the calls that may start; then starts these.

        One transaction for all there is in this turn of the loop: one for each call would take a
        third of the time that a call costs. No call is sent before its intent is written.
        """
        self._turning = False
        answers, self._answers = self._answers, []
        for call, answer in answers:
            self._release(call)
            self._purse.spend(answer.cost_usd, answer.charged_tokens)
        calls = self._startable()
        if not answers and not calls:
            return
        try:
            self._ledger.record(
                answers=[(call.key, answer) for call, answer in answers],
                intents=[self._intent(call) for call in calls],
            )
        except BaseException as error:  # for those who wait, whoever they are
            for call in calls:
                self._release(call)
                self.limits.end(call.started, ok=False, overloaded=False)
            for call in [*calls, *(call for call, _ in answers)]:
                self._finish(call, error)
            return
        for call in calls:
            task = self._loop.create_task(self._carry(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for call, answer in answers:
            self._finish(call, judge(call.request, call.key, self._model, answer))

    def _finish(self, call: _Call, result: Response | BaseException) -> None:
        self._open.discard(call.future)
        if isinstance(result, BaseException):
            call.future.set_exception(result)
        else:
            call.future.set_result(result)

    def _intent(self, call: _Call) -> Intent:
        request = call.request
        return Intent(
            key=call.key,
            model=self._model,
            slot=request.slot,
            attempt=request.attempt,
            prompt_id=request.prompt_id,
            request={**request.asked, "params": dict(request.params)},
            reserved_usd=call.usd,
            reserved_tokens=call.tokens,
        )

    def _startable(self) -> list[_Call]:
        """Takes from the queue what limits and budget hold, and sets its cost aside."""
        calls: list[_Call] = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._stop = self._stop or StopError(
                BudgetReachedError, "budget reached: the time is up"
            )
        while self._queue and self._stop is None:
            call = self._queue[0]
            pause = self.limits.wait(prompt=call.prompt, output=call.most)
            if pause == 0 and (call.reserved or self._purse.fits(call.usd, call.tokens)):
                if not call.reserved:
                    self._purse.hold(call.usd, call.tokens)
                    call.reserved = True
                call.started = self.limits.start(prompt=call.prompt, output=call.most)
                calls.append(self._queue.popleft())
                continue
            if pause:
                self._timer = self._loop.call_later(pause, self._soon)
            if pause == 0 and self._purse.calls == 0:
                self._stop = StopError(
                    BudgetReachedError,
                    f"budget reached: {self._purse.describe()} spent, and the next call could "
                    f"pass it (at most {call.tokens:,} tokens"
                    + ("" if call.usd is None else f", ${call.usd:.4f}")
                    + ")",
                )
            break
        if self._stop is not None:
            self._dismiss(self._stop)
        return calls

    def _dismiss(self, stop: StopError) -> None:
        """Ends what waits to be sent, or to be sent again."""
        waiting = [*self._resting]
        for timer in self._resting.values():
            timer.cancel()
        self._resting.clear()
        while self._queue:
            waiting.append(self._queue.popleft())
        for call in waiting:
            self._release(call)
            outcome: Exception = StopError(stop.kind, str(stop))
            if call.tries:
                try:
                    self._ledger.fail(call.key, "stopped before another try", billed=False)
                except Exception as error:  # somebody waits for this call, whatever happens
                    outcome = error
            self._finish(call, outcome)

    async def _carry(self, call: _Call) -> None:
        """One try of a call, and what follows from it."""
        try:
            outcome = await self._try(call)
        except BaseException as error:
            self._release(call)
            self._finish(call, error)
            self._soon()
            if not isinstance(error, Exception):
                raise
            return
        if isinstance(outcome, Answer):
            self._answers.append((call, outcome))
        elif isinstance(outcome, Response):
            self._release(call)
            self._finish(call, outcome)
        else:
            call.tries += 1
            self._resting[call] = self._loop.call_later(outcome, self._again_now, call)
        self._soon()

    def _release(self, call: _Call) -> None:
        if call.reserved:
            self._purse.release(call.usd, call.tokens)
            call.reserved = False

    def _lose(self, call: _Call) -> None:
        """Counts a try as paid for, though it brought no answer; the next one needs its own."""
        self._release(call)
        self._purse.spend(call.usd, call.tokens)

    def _again_now(self, call: _Call) -> None:
        del self._resting[call]
        # Before those that have not been asked at all; but behind those whose cost is set aside,
        # which nothing else would let start if this one does not fit the budget any more.
        at = 0 if call.reserved else sum(other.reserved for other in self._queue)
        self._queue.insert(at, call)
        self._soon()

    async def _try(self, call: _Call) -> Answer | Response | float:
        """One try: the answer, the failure, or the seconds to wait before the next one."""
        request, key, tries = call.request, call.key, call.tries
        ended: dict[str, Any] = {"ok": False, "overloaded": False}
        try:
            reply = await self._transport.send(request)
            ended["headers"] = reply.headers
            answer = self._read(request, reply.body, call.usd, call.tokens)
            ended.update(ok=True, output=answer.completion_tokens)
        except RefusedError as error:
            reason = self._clean(str(error))
            ended["headers"] = error.headers
            hold = retry_after(error.headers, time.time())
            if error.status in (401, 402, 403, 404) or _is_unpaid(error.status, reason):
                self._ledger.fail(key, reason, billed=False)
                self._stop = StopError(
                    ConfigError,
                    f"the endpoint refuses the key, the account or the model ({reason})",
                )
                raise StopError(ConfigError, str(self._stop)) from None
            again = error.status in (408, 409, 429) or error.status >= 500
            ended["overloaded"] = error.status in (408, 429, 503, 529)
            if not again:
                return self._failed(request, key, "refused", reason)
            if hold is not None and hold > LONGEST_WAIT:
                self._give_up(f"the endpoint asks to wait for {hold:,.0f} s ({reason})")
            elif hold is not None and ended["overloaded"]:
                ended["hold"] = hold
            if error.headers.get("x-should-retry") == "false":
                tries = self._max_retries
            return self._again(request, key, reason, tries, hold, billed=False)
        except CutOffError as error:
            ended["overloaded"] = error.timeout
            if error.billed:
                self._lose(call)
            reason = self._clean(str(error))
            return self._again(request, key, reason, tries, None, billed=error.billed)
        except MalformedError as error:
            # Perhaps of a proxy, and whole the next time; not more often, since it may be billed.
            self._lose(call)
            tries = tries if tries == 0 else self._max_retries
            return self._again(request, key, self._clean(str(error)), tries, None, billed=True)
        finally:
            self.limits.end(call.started, **ended)
        self._failures = self._troubles = 0
        self._answered = time.monotonic()
        return answer

    def _again(
        self,
        request: Request,
        key: str,
        reason: str,
        tries: int,
        hold: float | None,
        *,
        billed: bool,
    ) -> Response | float:
        """The pause before another try, or the failure if there have been enough."""
        self._troubles += 1
        silent = time.monotonic() - self._answered
        if silent > SILENCE_S and self._troubles >= 8:
            self._give_up(
                f"no answer for {silent:,.0f} s and {self._troubles} tries, the last: {reason}"
            )
        if tries >= self._max_retries or self._stop is not None:
            return self._failed(request, key, "failed", reason, billed=billed)
        if billed:
            self._ledger.lose_try(key)
        # Spread out, so that what failed together does not come back together.
        grown: float = min(8.0, 0.5 * 2**tries) * random.uniform(0.75, 1.0)
        return grown if hold is None else hold

    def _give_up(self, message: str) -> None:
        self._stop = self._stop or StopError(TeacherError, message)

    def _failed(
        self, request: Request, key: str, verdict: Verdict, reason: str, *, billed: bool = False
    ) -> Response:
        self._ledger.fail(key, reason, billed=billed)
        self._failures += 1
        if self._failures >= self._patience:
            self._give_up(
                f"the endpoint failed {self._failures} calls in a row, the last with: {reason}"
            )
        return Response(request=request, key=key, model=self._model, verdict=verdict, error=reason)

    def _clean(self, text: str) -> str:
        """Text from outside: valid UTF-8, and never the key."""
        return clean(text, self._secret)

    def _read(self, request: Request, body: bytes, usd: float | None, tokens: int) -> Answer:
        chat = request.prompt is None
        return read_answer(body, self._secret, self._model, self._purse, usd, tokens, chat=chat)


def _is_unpaid(status: int, reason: str) -> bool:
    """Whether a 429 speaks of an empty account, which no waiting fills, and not of haste."""
    return status == 429 and any(
        said in reason for said in ("insufficient_quota", "exceeded your current quota")
    )


def clean(text: str, secret: str) -> str:
    """Text from outside: valid UTF-8, and never the key."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace(secret, "[key]") if len(secret) >= 8 else text


def read_answer(
    body: bytes,
    secret: str,
    model: str,
    purse: Purse,
    usd: float | None,
    tokens: int,
    *,
    chat: bool = True,
) -> Answer:
    """Reads a reply strictly; an unknown usage is charged as the whole reserve.

    Raises:
        MalformedError: If it is no chat completion, or no text completion without `chat`.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        text = choice["message"].get("content") if chat else choice["text"]
        text, finish = text or "", choice.get("finish_reason")
        if not isinstance(text, str):
            raise TypeError("content is not a string")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as e:
        raise MalformedError(f"malformed reply ({type(e).__name__}): {body[:80]!r}") from None
    usage = reply.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = (
        value if isinstance(value, int) and 0 <= value < 2**53 else None
        for value in (counts.get("prompt_tokens"), counts.get("completion_tokens"))
    )
    known = prompt is not None and completion is not None
    return Answer(
        text=clean(text, secret),
        finish=clean(str(finish or "unknown"), secret),
        served_model=clean(str(reply.get("model") or model), secret),
        prompt_tokens=prompt,
        completion_tokens=completion,
        charged_tokens=(prompt or 0) + (completion or 0) if known else tokens,
        cost_usd=purse.cost(prompt or 0, completion or 0) if known else usd,
    )
