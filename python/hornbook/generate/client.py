"""Asks any OpenAI-compatible endpoint many questions: once each, in order, inside a budget.

Guarantees: answers come in the order of the requests; what the ledger holds is not sent again; the
greatest possible cost of a call is set aside before it is sent, so a budget is never passed by
starting one more call; at most `concurrency` calls are under way and a few times that many answers
wait in memory; the key reaches no ledger, message or answer. Retries and Retry-After are the
`openai` package's (a wait of over two minutes gives up). Costs about 3 ms of one core a call.

What a budget cannot see: an endpoint that bills a try it then broke off and that was retried, or
that returns more tokens than `max_tokens` allows. Both show in its usage page only.

    with Ledger("l") as l: print(*complete_all(ask, ledger=l, model="m", budget_tokens=10**6))
"""

import asyncio
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal
from urllib.parse import urlsplit

from hornbook.errors import BudgetError, ConfigError, HornbookError, need
from hornbook.generate.budget import Purse
from hornbook.generate.ledger import Answer, Ledger
from hornbook.manifest import hash_json

Messages = Sequence[Mapping[str, str]]
Verdict = Literal["ok", "truncated", "filtered", "empty", "refused", "failed"]
Prices = Mapping[str, tuple[float, float]]

WINDOW = 4
"""Requests taken ahead of the answer that is next, in multiples of `concurrency`."""


class TeacherError(HornbookError):
    """The endpoint does not answer; what it answered before is in the ledger."""

    exit_code = 3


class BudgetReachedError(BudgetError):
    """The budget holds no further call. `made` answers came before and are in the ledger."""

    def __init__(self, message: str, made: int) -> None:
        super().__init__(message)
        self.made = made


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question. Equal `messages`, `params`, `slot` and `attempt` mean the same call."""

    slot: str
    """Who asks, such as `seed/index`: tells equal prompts apart."""
    messages: Messages
    """Chat messages: mappings with `role` and `content`."""
    params: Mapping[str, Any]
    """Sent as they are: `temperature`, and `max_tokens` or `max_completion_tokens`."""
    attempt: int = 0
    """Counts repeats of a slot whose earlier answer was no use."""
    prompt_id: str = ""
    """Which template made the prompt; recorded, not part of the call's identity."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Carried through to whoever reads the response; not sent, not part of the identity."""

    def __post_init__(self) -> None:
        if not isinstance(self.most_tokens, int) or self.most_tokens < 1:
            raise ConfigError(
                f"request {self.slot}: `params` needs `max_tokens` (or `max_completion_tokens`) of "
                "at least 1, so that its greatest cost is known"
            )
        for name in ("stream", "n", "model", "messages"):
            if name in self.params:
                raise ConfigError(f"request {self.slot}: `params` cannot hold `{name}`")
        try:
            for message in self.messages:
                message["content"].encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"request {self.slot}: a message is not valid UTF-8") from error

    @property
    def most_tokens(self) -> Any:
        """The most tokens an answer may have."""
        return self.params.get("max_completion_tokens", self.params.get("max_tokens"))

    @property
    def most_prompt_tokens(self) -> int:
        """A bound on the prompt: a byte-level tokenizer makes at most one token of a byte."""
        texts = (value for message in self.messages for value in message.values())
        return 16 + sum(4 + len(text.encode()) for text in texts)

    def key(self, model: str) -> str:
        """The identity of this call to `model`."""
        messages = [dict(message) for message in self.messages]
        return hash_json([model, dict(self.params), messages, self.slot, self.attempt])


@dataclass(frozen=True, kw_only=True)
class Response:
    """What came of a request."""

    request: Request
    key: str
    """The call's identity in the ledger."""
    model: str
    verdict: Verdict
    """`ok`; `truncated` at `max_tokens`; `filtered` by the endpoint; `empty`; `refused` (the
    endpoint rejects this request); `failed` (no usable answer after all retries)."""
    text: str = ""
    error: str = ""
    """Why it was refused or failed."""
    answer: Answer | None = None
    """Usage and cost, if there was an answer."""
    stored: bool = False
    """It came from the ledger; nothing was sent."""


Complete = Callable[[Iterable[Request]], Iterator[Response]]
"""`complete_all` with everything but the requests filled in; also any function in its place."""


def complete_all(
    requests: Iterable[Request],
    *,
    ledger: Ledger,
    model: str,
    base_url: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    concurrency: int = 16,
    max_retries: int = 6,
    budget_usd: float | None = None,
    budget_tokens: int | None = None,
    prices: Prices | None = None,
    timeout_s: float = 600.0,
) -> Generator[Response, None, None]:
    """Answers requests in their order, from the ledger or from the endpoint.

    Closing the generator early lets the calls under way finish, since they are paid for; so close
    it before the ledger.

    Args:
        requests: Taken a window at a time, so they may be endless.
        ledger: Holds every call. Budgets are its: what earlier runs spent counts.
        model: The model's name at the endpoint.
        base_url: The endpoint (default: `OPENAI_BASE_URL`, else OpenAI's).
        api_key_env: The environment variable with the key; may be unset for a `base_url` of yours.
        concurrency: Most calls under way at once.
        max_retries: Most retries of one call, by the `openai` package.
        budget_usd: Most money; needs a price.
        budget_tokens: Most tokens, prompts and answers together.
        prices: Model -> US dollars per million prompt tokens and per million answer tokens.
        timeout_s: Most seconds for one try.

    Raises:
        ConfigError: An option makes no sense, the price is unknown and tokens are not limited, or
            the endpoint does not know the key or the model (while iterating).
        BudgetReachedError: While iterating, after the last answer that the budget allows.
        TeacherError: While iterating, when the endpoint has stopped answering.
        MissingExtraError: Without the `openai` package, if something has to be sent.
    """
    for name, least, value in (
        ("concurrency", 1, concurrency),
        ("max_retries", 0, max_retries),
        ("budget_usd", 0, budget_usd),
        ("budget_tokens", 0, budget_tokens),
        ("timeout_s", 0, timeout_s),
    ):
        if value is not None and not value >= least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")
    price = (prices or {}).get(model)
    if price is not None and not (len(price) == 2 and all(p >= 0 for p in price)):
        raise ConfigError(f"the price of `{model}` must be two numbers of at least 0, not {price}")
    if price is None and budget_usd is not None:
        raise ConfigError(
            f"a budget in US dollars needs the price of `{model}`: give "
            f"prices={{{model!r}: (per million prompt tokens, per million answer tokens)}}"
        )
    if price is None and budget_tokens is None:
        raise ConfigError(f"the price of `{model}` is unknown: give prices, or budget_tokens")
    totals = ledger.totals()
    if budget_usd is not None and totals.unpriced:
        raise ConfigError(
            f"{ledger.path}: holds calls to `{totals.unpriced[0]}` made without a price, so what "
            "was spent is unknown; limit tokens instead, or name another ledger"
        )
    purse = Purse(
        price=price,
        budget_usd=budget_usd,
        budget_tokens=budget_tokens,
        usd=totals.usd + totals.lost_usd,
        tokens=totals.tokens + totals.lost_tokens,
    )
    address = _address(base_url)

    def open_caller() -> _Caller:
        # Only when something has to be sent: what is all in the ledger needs no key and no package.
        need("openai", "generate")
        secret = _secret(api_key_env, address)
        return _Caller(ledger, model, purse, address, secret, concurrency, max_retries, timeout_s)

    return _ordered(requests, ledger, model, open_caller, WINDOW * concurrency)


def _address(base_url: str | None) -> str | None:
    """The endpoint's address, without anything secret in it."""
    address = base_url or os.environ.get("OPENAI_BASE_URL") or None
    if address is None:
        return None
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("base_url must look like https://host/v1")
    if parts.username or parts.password or parts.query:
        raise ConfigError("base_url cannot hold a password or a query; put the key in a variable")
    return address


def _secret(variable: str, address: str | None) -> str:
    secret = os.environ.get(variable, "").strip()
    if not secret and address is None:
        raise ConfigError(f"set the environment variable {variable} to your key, or give base_url")
    return secret or "none"


def _ordered(
    requests: Iterable[Request],
    ledger: Ledger,
    model: str,
    open_caller: Callable[[], "_Caller"],
    window: int,
) -> Generator[Response, None, None]:
    """Keeps a window of calls going and yields their responses in order."""
    pending: deque[tuple[Request, str, Future[Response] | Response]] = deque()
    live: dict[str, Future[Response]] = {}
    source = iter(requests)
    caller: _Caller | None = None
    made = 0
    with ExitStack() as stack:
        while True:
            for request in islice(source, window - len(pending)):
                key = request.key(model)
                stored = ledger.answer(key)
                if stored is not None:
                    response = _judge(request, key, model, stored, stored=True)
                    pending.append((request, key, response))
                    continue
                if caller is None:
                    caller = stack.enter_context(open_caller())
                if key not in live:
                    live[key] = caller.submit(request, key)
                pending.append((request, key, live[key]))
            if not pending:
                return
            request, key, result = pending.popleft()
            if isinstance(result, Future):
                try:
                    result = replace(result.result(), request=request)
                except _StopError as stop:
                    raise stop.error(made, ledger) from None
                live.pop(key, None)
            made += 1
            yield result


def _judge(
    request: Request, key: str, model: str, answer: Answer, *, stored: bool = False
) -> Response:
    verdict: Verdict = "ok"
    if answer.finish == "length":
        verdict = "truncated"
    elif answer.finish == "content_filter":
        verdict = "filtered"
    elif not answer.text.strip():
        verdict = "empty"
    return Response(
        request=request,
        key=key,
        model=model,
        verdict=verdict,
        text=answer.text,
        answer=answer,
        stored=stored,
    )


class _StopError(Exception):
    """No further call will be sent. Becomes a public error where the number made is known."""

    def __init__(self, kind: type[HornbookError], message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def error(self, made: int, ledger: Ledger) -> HornbookError:
        message = f"{self}; the {made:,} answers before it are kept in {ledger.path}"
        if self.kind is BudgetReachedError:
            return BudgetReachedError(f"{message}: run again with more to go on", made)
        return self.kind(message)


class _Caller:
    """An event loop in a thread that sends calls and writes the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        model: str,
        purse: Purse,
        address: str | None,
        secret: str,
        concurrency: int,
        max_retries: int,
        timeout_s: float,
    ) -> None:
        import openai

        self._openai = openai
        self._ledger = ledger
        self._model = model
        self._purse = purse
        self._secret = secret
        self._client = openai.AsyncOpenAI(
            api_key=secret, base_url=address, max_retries=max_retries, timeout=timeout_s
        )
        # As many failures in a row as calls can be under way, and no success: it is down.
        self._patience = max(8, concurrency)
        self._failures = 0
        self._stop: _StopError | None = None
        self._places = asyncio.Semaphore(concurrency)
        self._turn = asyncio.Lock()
        self._released = asyncio.Event()
        self._open: set[Future[Response]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="hornbook-teacher", daemon=True)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def __enter__(self) -> "_Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = self._stop or _StopError(HornbookError, "the run was stopped")
        try:
            wait(list(self._open))
        finally:
            self._submit(self._close()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def submit(self, request: Request, key: str) -> Future[Response]:
        """Queues a call."""
        future: Future[Response] = self._submit(self._send(request, key))
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    async def _send(self, request: Request, key: str) -> Response:
        async with self._places:
            prompt, most = request.most_prompt_tokens, request.most_tokens
            usd, tokens = self._purse.cost(prompt, most), prompt + most
            await self._reserve(usd, tokens)
            try:
                self._ledger.intend(
                    key,
                    model=self._model,
                    slot=request.slot,
                    attempt=request.attempt,
                    prompt_id=request.prompt_id,
                    request={
                        "messages": [dict(message) for message in request.messages],
                        "params": dict(request.params),
                    },
                    reserved_usd=usd,
                    reserved_tokens=tokens,
                )
                return await self._call(request, key, usd, tokens)
            finally:
                self._purse.release(usd, tokens)
                self._released.set()

    async def _reserve(self, usd: float | None, tokens: int) -> None:
        """Waits, in turn, until the budget holds one more call."""
        async with self._turn:
            while self._stop is None and not self._purse.fits(usd, tokens):
                if self._purse.calls == 0:
                    self._stop = _StopError(
                        BudgetReachedError,
                        f"budget reached: {self._purse.describe()} spent, and the next call could "
                        f"pass it (at most {tokens:,} tokens"
                        + ("" if usd is None else f", ${usd:.4f}")
                        + ")",
                    )
                    break
                self._released.clear()
                await self._released.wait()
            if self._stop is not None:
                raise _StopError(self._stop.kind, str(self._stop))
            self._purse.hold(usd, tokens)

    async def _call(self, request: Request, key: str, usd: float | None, tokens: int) -> Response:
        openai = self._openai
        messages: Any = [dict(message) for message in request.messages]
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self._model,
                messages=messages,
                extra_body=dict(request.params),
            )
            answer = self._read(raw.http_response.content, usd, tokens)
        except openai.APIStatusError as error:
            reason = self._clean(f"HTTP {error.status_code}: {error.message}")
            if error.status_code in (401, 402, 403, 404):
                self._ledger.fail(key, reason, billed=False)
                self._stop = _StopError(
                    ConfigError,
                    f"the endpoint refuses the key, the account or the model ({reason})",
                )
                raise _StopError(ConfigError, str(self._stop)) from None
            again = error.status_code in (408, 409, 429) or error.status_code >= 500
            return self._failed(request, key, "failed" if again else "refused", reason)
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            # A call that never reached the endpoint was not billed; any other may have been.
            billed = cause not in ("ConnectError", "ConnectTimeout", "PoolTimeout")
            if billed:
                self._purse.spend(usd, tokens)
            reason = self._clean(f"{type(error).__name__} ({cause}): {error.message}")
            return self._failed(request, key, "failed", reason, billed=billed)
        except _MalformedError as error:
            self._purse.spend(usd, tokens)
            return self._failed(request, key, "failed", self._clean(str(error)), billed=True)
        self._ledger.settle(key, answer)
        self._purse.spend(answer.cost_usd, answer.charged_tokens)
        self._failures = 0
        return _judge(request, key, self._model, answer)

    def _failed(
        self, request: Request, key: str, verdict: Verdict, reason: str, *, billed: bool = False
    ) -> Response:
        self._ledger.fail(key, reason, billed=billed)
        self._failures += 1
        if self._failures >= self._patience and self._stop is None:
            self._stop = _StopError(
                TeacherError,
                f"the endpoint failed {self._failures} calls in a row, the last with: {reason}",
            )
        return Response(request=request, key=key, model=self._model, verdict=verdict, error=reason)

    def _clean(self, text: str) -> str:
        """Text from outside: valid UTF-8, and never the key."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text.replace(self._secret, "[key]") if len(self._secret) >= 8 else text

    def _read(self, body: bytes, usd: float | None, tokens: int) -> Answer:
        """Reads a reply strictly; an unknown usage is charged as the whole reserve."""
        try:
            reply = json.loads(body)
            choice = reply["choices"][0]
            text, finish = choice["message"].get("content") or "", choice.get("finish_reason")
            if not isinstance(text, str):
                raise TypeError("content is not a string")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as e:
            raise _MalformedError(f"malformed reply ({type(e).__name__}): {body[:80]!r}") from None
        usage = reply.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        prompt, completion = (
            value if isinstance(value, int) and 0 <= value < 2**53 else None
            for value in (counts.get("prompt_tokens"), counts.get("completion_tokens"))
        )
        known = prompt is not None and completion is not None
        return Answer(
            text=self._clean(text),
            finish=self._clean(str(finish or "unknown")),
            served_model=self._clean(str(reply.get("model") or self._model)),
            prompt_tokens=prompt,
            completion_tokens=completion,
            charged_tokens=(prompt or 0) + (completion or 0) if known else tokens,
            cost_usd=self._purse.cost(prompt or 0, completion or 0) if known else usd,
        )


class _MalformedError(Exception):
    """A reply with status 200 that is no chat completion."""
