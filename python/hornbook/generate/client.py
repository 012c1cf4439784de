"""Asks any OpenAI-compatible endpoint many questions: once each, in order, inside a budget.

Guarantees: answers come in the order of the requests; what the ledger holds is not sent again; the
greatest possible cost of a call is set aside before it is sent, so a budget is never passed by
starting one more call; at most `concurrency` calls are under way and a few times that many answers
wait in memory; the key reaches no ledger, message or answer. Retries, Retry-After, learned rate
limits and adaptive concurrency are in `caller.py` and `limits.py`. Costs about 1 ms of one core a
call.

What a budget cannot see: an endpoint that returns more tokens than `max_tokens` allows. It shows in
its usage page only.

    with Ledger("l") as l: print(*complete_all(ask, ledger=l, model="m", budget_tokens=10**6))
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, Self, get_args
from urllib.parse import urlsplit

from hornbook.errors import BudgetError, ConfigError, HornbookError, need
from hornbook.files import hash_json
from hornbook.generate.budget import Purse
from hornbook.generate.ledger import Answer, Ledger

Messages = Sequence[Mapping[str, str]]
Verdict = Literal["ok", "truncated", "filtered", "empty", "refused", "failed"]
Prices = Mapping[str, tuple[float, float]]
TeacherName = Literal["openai", "openai-batch", "replay"]

_CONTINUES = ("openai", "replay")
"""Teachers that take a `prompt`."""
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
    """One question. Equal `messages` (or `prompt`), `params`, `slot` and `attempt` mean the same
    call."""

    slot: str
    """Who asks, such as `seed/index`: tells equal prompts apart."""
    messages: Messages = ()
    """Chat messages: mappings with `role` and `content`."""
    prompt: str | None = None
    """Instead of messages: a text that the model goes on from (`/completions`, base models)."""
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
        for name in ("stream", "n", "model", "messages", "prompt"):
            if name in self.params:
                raise ConfigError(f"request {self.slot}: `params` cannot hold `{name}`")
        if bool(self.messages) == (self.prompt is not None):
            raise ConfigError(f"request {self.slot}: needs either `messages` or a `prompt`")
        try:
            (self.prompt or "").encode()
            for message in self.messages:
                message["content"].encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"request {self.slot}: a message is not valid UTF-8") from error

    @property
    def asked(self) -> dict[str, Any]:
        """What is sent besides `model` and `params`."""
        if self.prompt is not None:
            return {"prompt": self.prompt}
        return {"messages": [dict(message) for message in self.messages]}

    @property
    def path(self) -> str:
        """Where it is sent, from the endpoint's address on."""
        return "chat/completions" if self.prompt is None else "completions"

    @property
    def most_tokens(self) -> Any:
        """The most tokens an answer may have."""
        return self.params.get("max_completion_tokens", self.params.get("max_tokens"))

    @cached_property
    def most_prompt_tokens(self) -> int:
        """A bound on the prompt: a byte-level tokenizer makes at most one token of a byte."""
        texts = [value for message in self.messages for value in message.values()]
        texts += [] if self.prompt is None else [self.prompt]
        return 16 + sum(4 + len(text.encode()) for text in texts)

    def key(self, model: str) -> str:
        """The identity of this call to `model`."""
        asked = self.asked if self.prompt is not None else self.asked["messages"]
        return hash_json([model, dict(self.params), asked, self.slot, self.attempt])


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


class Sender(Protocol):
    """What a session's calls are handed to."""

    def submit(self, request: Request, key: str) -> Future[Response]:
        """Queues a call."""

    def flush(self) -> None:
        """Sends what was held back to be sent together."""

    def stop(self, kind: type[HornbookError], message: str) -> None:
        """Lets no further call start."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """Who is asked, and what it may cost."""

    model: str
    """The model's name at the endpoint."""
    teacher: "TeacherName | Callable[..., Any]" = "openai"
    """`openai`: chat completions, one call each. `openai-batch`: the Batch API, half the price and
    up to a day. `replay`: the ledger alone. Or a function `(messages, params) -> text`."""
    base_url: str | None = None
    """The endpoint (default: `OPENAI_BASE_URL`, else OpenAI's)."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable with the key; may be unset for a `base_url` of yours."""
    concurrency: int = 16
    """Most calls under way at once; less where the endpoint is overloaded."""
    max_retries: int = 6
    """Most retries of one call."""
    budget_usd: float | None = None
    """Most money; needs a price. Budgets are the ledger's: what earlier runs spent counts."""
    budget_tokens: int | None = None
    """Most tokens, prompts and answers together."""
    budget_s: float | None = None
    """Most seconds until the last call starts, from the session's opening."""
    prices: Prices | None = None
    """Model -> US dollars per million prompt tokens and per million answer tokens."""
    timeout_s: float = 600.0
    """Most seconds for one try."""
    poll_s: float = 15.0
    """Batch API: seconds between two looks at a batch."""

    def __post_init__(self) -> None:
        for name, least in (
            ("concurrency", 1),
            ("max_retries", 0),
            ("budget_usd", 0),
            ("budget_tokens", 0),
            ("budget_s", 0),
            ("timeout_s", 0),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")
        known = get_args(TeacherName)
        if not callable(self.teacher) and self.teacher not in known:
            raise ConfigError(f"teacher `{self.teacher}`: must be one of {', '.join(known)}")

    def purse(self, ledger: Ledger) -> Purse:
        """What may be spent, given what the ledger says was.

        Raises:
            ConfigError: If the price is unknown and tokens are not limited, or the ledger holds
                calls without a price under a budget in money.
        """
        price = (self.prices or {}).get(self.model)
        if price is not None and not (len(price) == 2 and all(p >= 0 for p in price)):
            raise ConfigError(
                f"the price of `{self.model}` must be two numbers of at least 0, not {price}"
            )
        if price is None and self.budget_usd is not None:
            raise ConfigError(
                f"a budget in US dollars needs the price of `{self.model}`: give price_in and "
                "price_out (dollars per million tokens; in Python `prices={model: (in, out)}`)"
            )
        # A function of one's own and a replay are billed by nobody.
        free = callable(self.teacher) or self.teacher == "replay"
        if price is None and self.budget_tokens is None and not free:
            raise ConfigError(
                f"the price of `{self.model}` is unknown: limit budget_tokens, or give price_in "
                "and price_out (dollars per million tokens; in Python `prices={model: (in, out)}`)"
            )
        totals = ledger.totals()
        if self.budget_usd is not None and totals.unpriced:
            raise ConfigError(
                f"{ledger.path}: holds calls to `{totals.unpriced[0]}` made without a price, so "
                "what was spent is unknown; limit tokens instead, or name another ledger"
            )
        return Purse(
            price=price,
            budget_usd=self.budget_usd,
            budget_tokens=self.budget_tokens,
            usd=totals.usd + totals.lost_usd,
            tokens=totals.tokens + totals.lost_tokens,
        )


class Session:
    """A teacher, opened: several streams of questions share its budget and its limits."""

    def __init__(self, ledger: Ledger, options: TeacherOptions) -> None:
        """Checks the options; nothing is sent before it has to be.

        Raises:
            ConfigError: As for `complete_all`.
        """
        self.ledger = ledger
        self.options = options
        self.purse = options.purse(ledger)
        self.window = WINDOW * options.concurrency
        self._address = address_of(options.base_url)
        self._began = time.monotonic()
        self._stack = ExitStack()
        self._sender: Sender | None = None
        self._stopped: tuple[type[HornbookError], str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def close(self) -> None:
        """Lets the calls under way finish, since they are paid for."""
        self._stack.close()

    def stop(self, kind: type[HornbookError], message: str) -> None:
        """Lets no further call start; streams end with this error. Safe in a signal handler."""
        self._stopped = self._stopped or (kind, message)
        if self._sender is not None:
            self._sender.stop(kind, message)

    def _open(self) -> Sender:
        # Only when something has to be sent: what is all in the ledger needs no key and no package.
        if self._sender is None:
            sender = _sender(self.ledger, self.options, self.purse, self._address, self._began)
            self._sender = self._stack.enter_context(sender)
            if self._stopped is not None:
                self._sender.stop(*self._stopped)
        return self._sender

    def stream(self, requests: Iterable[Request | None]) -> Generator[Response | None, None, None]:
        """Answers requests in their order; keeps a window of calls under way.

        Args:
            requests: Taken a window at a time. None says that the next request waits for what the
                reader of earlier responses has yet to say.

        Yields:
            The responses; None when nothing can be yielded before the reader has said it.

        Raises:
            HornbookError: As for `complete_all`.
        """
        pending: deque[tuple[Request, str, Future[Response] | Response]] = deque()
        # Taken some at a time, since each look into the ledger has its price.
        refill = self.window - max(1, self.options.concurrency // 4)
        live: dict[str, Future[Response]] = {}
        source = iter(requests)
        model = self.options.model
        made = 0
        while True:
            waits = False
            order: list[tuple[Request, str]] = []
            while (
                len(pending) <= refill
                and len(pending) + len(order) < self.window
                and self._stopped is None
            ):
                request = next(source, _END)
                waits = request is None
                if not isinstance(request, Request):
                    break
                order.append((request, request.key(model)))
            stored = self.ledger.answers(key for _, key in order)
            for request, key in order:
                if key in stored:
                    response = judge(request, key, model, stored[key], stored=True)
                    pending.append((request, key, response))
                    continue
                if request.prompt is not None and self.options.teacher not in _CONTINUES:
                    raise ConfigError(
                        f"request {request.slot}: a `prompt` to go on from can be sent to an "
                        "endpoint alone, one call each (teacher `openai`)"
                    )
                if key not in live:
                    live[key] = self._open().submit(request, key)
                pending.append((request, key, live[key]))
            if not pending:
                if self._stopped is not None:
                    raise StopError(*self._stopped).error(made, self.ledger)
                if not waits:
                    return
                yield None
                continue
            request, key, result = pending.popleft()
            if isinstance(result, Future):
                try:
                    if not result.done():
                        self._open().flush()
                    result = result.result()
                except StopError as stop:
                    raise stop.error(made, self.ledger) from None
                live.pop(key, None)
                if result.request is not request:
                    result = replace(result, request=request)
            made += 1
            yield result

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        """`stream` for requests that wait for nothing."""
        for response in self.stream(requests):
            assert response is not None
            yield response


_END = object()


def complete_all(
    requests: Iterable[Request], *, ledger: Ledger, model: str, **options: Any
) -> Generator[Response, None, None]:
    """Answers requests in their order, from the ledger or from the endpoint.

    Closing the generator early lets the calls under way finish, since they are paid for; so close
    it before the ledger.

    Args:
        requests: Taken a window at a time, so they may be endless.
        ledger: Holds every call. Budgets are its: what earlier runs spent counts.
        model: The model's name at the endpoint.
        options: The other fields of `TeacherOptions`.

    Raises:
        ConfigError: An option makes no sense, the price is unknown and tokens are not limited, or
            the endpoint does not know the key or the model (while iterating).
        BudgetReachedError: While iterating, after the last answer that the budget allows.
        TeacherError: While iterating, when the endpoint has stopped answering.
        MissingExtraError: Without the `openai` package, if something has to be sent.
    """
    try:
        session = Session(ledger, TeacherOptions(model=model, **options))
    except TypeError as error:
        raise ConfigError(f"{error}") from error

    def responses() -> Generator[Response, None, None]:
        with session:
            yield from session.complete(requests)

    return responses()


def _sender(
    ledger: Ledger, options: TeacherOptions, purse: Purse, address: str | None, began: float
) -> Sender:
    from hornbook.generate import caller, transport

    if options.teacher == "replay":
        raise TeacherError(
            f"{ledger.path}: does not hold the next answer, and `replay` asks nobody"
        )
    deadline = None if options.budget_s is None else began + options.budget_s
    common: dict[str, Any] = {"ledger": ledger, "model": options.model, "purse": purse}
    if callable(options.teacher):
        carries: transport.Transport = transport.FunctionTransport(options.teacher)
        secret = ""
    else:
        need("openai", "generate")
        secret = _secret(options.api_key_env, address)
        if options.teacher == "openai-batch":
            from hornbook.generate.batch import BatchSender

            return BatchSender(
                **common,
                address=address,
                secret=secret,
                timeout_s=options.timeout_s,
                max_retries=options.max_retries,
                poll_s=options.poll_s,
                deadline=deadline,
            )
        carries = transport.transport(options.model, address, secret, options.timeout_s)
    return caller.Caller(
        **common,
        transport=carries,
        secret=secret,
        concurrency=options.concurrency,
        max_retries=options.max_retries,
        deadline=deadline,
    )


def endpoint(base_url: str | None, api_key_env: str) -> tuple[str | None, str]:
    """An endpoint's address, and its key from the environment.

    Raises:
        ConfigError: If the address is none or holds a secret, or there is no key for a vendor.
    """
    address = address_of(base_url)
    return address, _secret(api_key_env, address)


def address_of(base_url: str | None) -> str | None:
    """The endpoint's address, `OPENAI_BASE_URL` where none is named, without anything secret in it.

    Raises:
        ConfigError: If it is no address, or holds a secret.
    """
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


def judge(
    request: Request, key: str, model: str, answer: Answer, *, stored: bool = False
) -> Response:
    """The response that an answer makes."""
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


class StopError(Exception):
    """No further call will be sent. Becomes a public error where the number made is known."""

    def __init__(self, kind: type[HornbookError], message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def error(self, made: int, ledger: Ledger) -> HornbookError:
        """The public error, after so many answers."""
        answered = ledger.totals().answered
        kept = "1 answer is" if answered == 1 else f"{answered:,} answers are"
        message = f"{self}; {kept} kept in {ledger.path}"
        if self.kind is BudgetReachedError:
            return BudgetReachedError(f"{message}: run again with more to go on", made)
        return self.kind(message)
