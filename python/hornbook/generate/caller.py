"""Sends calls: reserves, waits its turn, retries, and writes down what came of each.

One event loop in a thread of its own; what carries a call is a `Transport` (the `openai` package, a
Python function). Overload, server errors and cut connections are tried again with growing pauses;
400 and 401 are not. It stops for good, saying why, when the budget is reached, when the endpoint
refuses the key or the model, when as many calls in a row failed as can be under way, when nothing
was answered for five minutes, or when it is asked to wait for longer than ten.
"""

import asyncio
import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

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
from hornbook.generate.ledger import Answer, Ledger
from hornbook.generate.limits import LONGEST_WAIT, Limits, retry_after

SILENCE_S = 300.0
"""Without an answer for so long, while calls fail, an endpoint counts as down."""

Ask = Callable[[Sequence[Mapping[str, str]], Mapping[str, Any]], "str | Mapping[str, Any]"]
"""A teacher that is a function: `(messages, params) -> text`, or a reply in OpenAI's form."""


@dataclass(frozen=True)
class Reply:
    """What came back from one try."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """With names in lower case."""


class RefusedError(Exception):
    """The endpoint answered with an error status; nothing was billed."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.headers = headers


class CutOffError(Exception):
    """No whole answer came; it may have been billed all the same."""

    def __init__(self, message: str, *, billed: bool, timeout: bool = False) -> None:
        super().__init__(message)
        self.billed = billed
        self.timeout = timeout


class MalformedError(Exception):
    """A reply with status 200 that is no completion."""


class Transport(Protocol):
    """What carries a call."""

    async def send(self, request: Request) -> Reply:
        """One try.

        Raises:
            RefusedError: The endpoint answered with an error.
            CutOffError: No whole answer came.
        """

    async def close(self) -> None:
        """Frees its connections."""


class HttpTransport:
    """The `openai` package against any base URL."""

    def __init__(self, model: str, address: str | None, secret: str, timeout_s: float) -> None:
        import openai

        self._openai = openai
        self._model = model
        self.client = openai.AsyncOpenAI(
            api_key=secret, base_url=address, max_retries=0, timeout=timeout_s
        )

    async def send(self, request: Request) -> Reply:
        """See `Transport`."""
        openai = self._openai
        chat = request.prompt is None
        where: Any = self.client.chat.completions if chat else self.client.completions
        try:
            raw = await where.with_raw_response.create(
                model=self._model, **request.asked, extra_body=dict(request.params)
            )
            return Reply(raw.http_response.content, _lower(raw.http_response.headers))
        except openai.APIStatusError as error:
            headers = _lower(error.response.headers)
            raise RefusedError(error.status_code, error.message, headers) from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            # A call that never reached the endpoint was not billed; any other may have been.
            billed = cause not in ("ConnectError", "ConnectTimeout", "PoolTimeout")
            timeout = isinstance(error, openai.APITimeoutError)
            text = f"{type(error).__name__} ({cause}): {error.message}"
            raise CutOffError(text, billed=billed, timeout=timeout) from None

    async def close(self) -> None:
        """See `Transport`."""
        await self.client.close()


class FastTransport:
    """The same call over aiohttp: the `openai` package says where to and with which headers.

    Its own way takes 2.5 ms of a core a call, most of it for what is not needed here; this 0.3 ms.
    """

    def __init__(self, model: str, address: str | None, secret: str, timeout_s: float) -> None:
        import aiohttp
        import openai

        self._aiohttp = aiohttp
        self._model = model
        # Never sends anything, so it holds nothing to close.
        client = openai.AsyncOpenAI(api_key=secret, base_url=address, max_retries=0)
        self._url = str(client.base_url).rstrip("/")
        self._headers = {
            name: value
            for name, value in {**client.default_headers, **client.auth_headers}.items()
            if isinstance(value, str) and not name.lower().startswith("x-stainless")
        }
        self._timeout = aiohttp.ClientTimeout(total=None, sock_read=timeout_s, sock_connect=30)
        self._session: Any = None

    async def send(self, request: Request) -> Reply:
        """See `Transport`."""
        aiohttp = self._aiohttp
        if self._session is None:
            # Here, since it belongs to the running loop. Proxies from the environment count.
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, headers=self._headers, timeout=self._timeout, trust_env=True
            )
        url = f"{self._url}/{request.path}"
        asked = {"model": self._model, **request.asked, **request.params}
        try:
            async with self._session.post(url, json=asked) as reply:
                body, headers = await reply.read(), _lower(reply.headers)
        except aiohttp.ClientConnectorError as error:
            raise CutOffError(f"{type(error).__name__}: {error}", billed=False) from None
        except aiohttp.ConnectionTimeoutError as error:
            raise CutOffError(
                f"{type(error).__name__}: {error}", billed=False, timeout=True
            ) from None
        except TimeoutError as error:
            text = f"{type(error).__name__}: no answer in {self._timeout.sock_read:g} s"
            raise CutOffError(text, billed=True, timeout=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise CutOffError(f"{type(error).__name__}: {error}", billed=True) from None
        if reply.status >= 300:
            raise RefusedError(reply.status, _reason(body), headers)
        return Reply(body, headers)

    async def close(self) -> None:
        """See `Transport`."""
        if self._session is not None:
            await self._session.close()


def _reason(body: bytes) -> str:
    """What an error's body says, in OpenAI's form or any other."""
    try:
        said = json.loads(body)
        error = said.get("error", said)
        message = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        message = body[:300].decode("utf-8", "replace")
    return str(message)[:500]


def transport(model: str, address: str | None, secret: str, timeout_s: float) -> Transport:
    """The fastest transport that is installed."""
    found = find_spec("aiohttp") is not None
    return (FastTransport if found else HttpTransport)(model, address, secret, timeout_s)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class FunctionTransport:
    """A Python function as the teacher; called from several threads at once."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def send(self, request: Request) -> Reply:
        """See `Transport`. An exception of the function is a failed call."""
        try:
            made = await asyncio.to_thread(self._ask, request.messages, request.params)
        except Exception as error:
            raise CutOffError(f"{type(error).__name__}: {error}", billed=True) from error
        if isinstance(made, str):
            message = {"role": "assistant", "content": made}
            made = {"choices": [{"message": message, "finish_reason": "stop"}]}
        return Reply(json.dumps(made).encode())

    async def close(self) -> None:
        """See `Transport`."""


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
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._writes: list[tuple[Callable[[], None], asyncio.Future[None]]] = []
        self._open: set[Future[Response]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="hornbook-teacher", daemon=True)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(HornbookError, "the run was stopped")
        try:
            wait(list(self._open))
        finally:
            self._submit(self._close()).result()
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

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self, kind: type[HornbookError], message: str) -> None:
        """Lets no further call start; those under way come to their end."""
        self._stop = self._stop or StopError(kind, message)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._changed.set)

    def submit(self, request: Request, key: str) -> Future[Response]:
        """Queues a call."""
        future: Future[Response] = self._submit(self._send(request, key))
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def flush(self) -> None:
        """Nothing is held back here."""

    async def _send(self, request: Request, key: str) -> Response:
        prompt, most = request.most_prompt_tokens, request.most_tokens
        usd, tokens = self._purse.cost(prompt, most), prompt + most
        tries = 0
        while True:
            try:
                started = await self._start(prompt, most, usd, tokens)
            except StopError:
                if tries:
                    self._ledger.fail(key, "stopped before another try", billed=False)
                raise
            pause: float | None = None
            try:
                intent = partial(
                    self._ledger.intend,
                    key,
                    model=self._model,
                    slot=request.slot,
                    attempt=request.attempt,
                    prompt_id=request.prompt_id,
                    request={**request.asked, "params": dict(request.params)},
                    reserved_usd=usd,
                    reserved_tokens=tokens,
                )
                made = await self._try(request, key, usd, tokens, tries, started, intent)
                if isinstance(made, Response):
                    return made
                pause = made
            finally:
                self._purse.release(usd, tokens)
                self._changed.set()
            tries += 1
            await asyncio.sleep(pause)

    async def _written(self, write: Callable[[], None]) -> None:
        """Writes to the ledger, together with all that is to be written in this turn of the loop.

        A transaction of its own for each would take a third of the time that a call costs here.
        """
        done = self._loop.create_future()
        self._writes.append((write, done))
        if len(self._writes) == 1:
            self._loop.call_soon(self._flush)
        await done

    def _flush(self) -> None:
        writes, self._writes = self._writes, []
        failure: BaseException | None = None
        try:
            with self._ledger.transaction():
                for write, _ in writes:
                    write()
        except BaseException as error:  # for those who wait, whoever they are
            failure = error
        for _, done in writes:
            if done.cancelled():
                continue
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

    async def _start(self, prompt: int, most: int, usd: float | None, tokens: int) -> float:
        """Waits, in turn, until limits and budget hold one more call; sets its cost aside.

        Returns:
            When it started, for `limits.end`.
        """
        async with self._turn:
            while self._stop is None:
                self._changed.clear()
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self._stop = StopError(BudgetReachedError, "budget reached: the time is up")
                    break
                pause = self.limits.wait(prompt=prompt, output=most)
                if pause == 0 and self._purse.fits(usd, tokens):
                    self._purse.hold(usd, tokens)
                    return self.limits.start(prompt=prompt, output=most)
                if pause == 0 and self._purse.calls == 0:
                    self._stop = StopError(
                        BudgetReachedError,
                        f"budget reached: {self._purse.describe()} spent, and the next call could "
                        f"pass it (at most {tokens:,} tokens"
                        + ("" if usd is None else f", ${usd:.4f}")
                        + ")",
                    )
                    break
                left = None if self._deadline is None else self._deadline - time.monotonic()
                pauses = [value for value in (pause or None, left) if value is not None]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), min(pauses, default=None))
            assert self._stop is not None
            raise StopError(self._stop.kind, str(self._stop))

    async def _try(
        self,
        request: Request,
        key: str,
        usd: float | None,
        tokens: int,
        tries: int,
        started: float,
        intent: Callable[[], None],
    ) -> Response | float:
        """One try: the response, or the seconds to wait before the next one."""
        ended: dict[str, Any] = {"ok": False, "overloaded": False}
        try:
            await self._written(intent)
            reply = await self._transport.send(request)
            ended["headers"] = reply.headers
            answer = self._read(request, reply.body, usd, tokens)
            ended.update(ok=True, output=answer.completion_tokens)
        except RefusedError as error:
            reason = self._clean(str(error))
            ended["headers"] = error.headers
            hold = retry_after(error.headers, time.time())
            if error.status in (401, 402, 403, 404):
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
                self._purse.spend(usd, tokens)
            reason = self._clean(str(error))
            return self._again(request, key, reason, tries, None, billed=error.billed)
        except MalformedError as error:
            self._purse.spend(usd, tokens)
            return self._failed(request, key, "failed", self._clean(str(error)), billed=True)
        finally:
            self.limits.end(started, **ended)
        await self._written(partial(self._ledger.settle, key, answer))
        self._purse.spend(answer.cost_usd, answer.charged_tokens)
        self._failures = self._troubles = 0
        self._answered = time.monotonic()
        return judge(request, key, self._model, answer)

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
