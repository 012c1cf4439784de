"""The Batch API as a teacher: questions handed in together, at half the price, within a day.

A batch is written down before it is uploaded and after the endpoint took it, so a run that is
killed while it waits goes on waiting for the same batch. One that was killed in between looks for
its mark among the endpoint's batches before it hands the questions in again. Questions wait until
the reader can go no further; so give steering large blocks (`steer.block`).

    complete_all(requests, ledger=ledger, model="m", teacher="openai-batch", budget_tokens=10**7)
"""

import json
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from hornbook.errors import ConfigError, HornbookError
from hornbook.files import hash_json
from hornbook.generate.budget import Purse
from hornbook.generate.caller import MalformedError, clean, read_answer
from hornbook.generate.client import (
    BudgetReachedError,
    Request,
    Response,
    StopError,
    TeacherError,
    judge,
)
from hornbook.generate.ledger import Ledger

LARGEST = 50_000
"""Questions of a batch, at most; the vendor's limit."""
MARK = "hornbook"
"""Name of the metadata that says which batch of ours one is."""

_OVER = frozenset({"completed", "expired", "failed", "cancelled"})


class BatchSender:
    """Collects questions, hands them in, waits, and writes the ledger."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        model: str,
        purse: Purse,
        address: str | None,
        secret: str,
        timeout_s: float,
        max_retries: int,
        poll_s: float,
        deadline: float | None,
    ) -> None:
        """Takes what it needs; see `TeacherOptions`."""
        import openai

        self._openai = openai
        self._client = openai.OpenAI(
            api_key=secret, base_url=address, max_retries=max_retries, timeout=timeout_s
        )
        self._ledger = ledger
        self._model = model
        self._purse = purse
        self._secret = secret
        self._poll_s = poll_s
        self._deadline = deadline
        self._held: deque[tuple[Request, str]] = deque()
        self._futures: dict[str, tuple[Request, Future[Response]]] = {}
        self._batches = {name: (id_, keys) for name, id_, keys in ledger.batches()}
        self._away = {key for _, keys in self._batches.values() for key in keys}
        self._stop: StopError | None = None
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._flushed = False
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="hornbook-teacher", daemon=True)

    def __enter__(self) -> "BatchSender":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(HornbookError, "the run was stopped")
        self._thread.join()
        self._client.close()

    def submit(self, request: Request, key: str) -> "Future[Response]":
        """Holds a question back until `flush`; one that is away already is waited for."""
        future: Future[Response] = Future()
        with self._lock:
            if self._ended:
                future.set_exception(self._reason())
                return future
            self._futures[key] = (request, future)
            if key not in self._away:
                self._held.append((request, key))
        return future

    def flush(self) -> None:
        """Hands in what is held back."""
        self._flushed = True
        self._wake.set()

    def stop(self, kind: type[HornbookError], message: str) -> None:
        """Ends the waiting; batches that were handed in go on at the endpoint."""
        self._stop = self._stop or StopError(kind, message)
        self._wake.set()

    def _serve(self) -> None:
        try:
            self._adopt()
            while self._stop is None:
                if self._flushed:
                    self._hand_in()
                for name, (id_, keys) in list(self._batches.items()):
                    self._look(name, id_, keys)
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self.stop(BudgetReachedError, "budget reached: the time is up")
                if self._stop is None:
                    self._wake.wait(self._poll_s if self._batches else None)
                    self._wake.clear()
        except StopError as stop:
            self._stop = stop
        except self._openai.APIStatusError as error:
            reason = clean(f"HTTP {error.status_code}: {error.message}", self._secret)
            kind = ConfigError if error.status_code in (400, 401, 402, 403, 404) else TeacherError
            self._stop = StopError(kind, f"the endpoint refuses the batch ({reason})")
        except Exception as error:
            text = clean(f"{type(error).__name__}: {error}", self._secret)
            self._stop = StopError(TeacherError, f"the batch could not be handled: {text}")
        finally:
            with self._lock:
                self._ended = True
                left = [future for _, future in self._futures.values()]
                self._futures.clear()
            for future in left:
                future.set_exception(self._reason())

    def _reason(self) -> StopError:
        """Why nothing is answered any more, for one question."""
        stopped = self._stop or StopError(HornbookError, "the run was stopped")
        return StopError(stopped.kind, str(stopped))

    def _adopt(self) -> None:
        """Finds batches of ours that the endpoint took, but whose id was not written down."""
        unknown = {name for name, (id_, _) in self._batches.items() if not id_}
        if unknown:
            for batch in self._client.batches.list(limit=100):
                name = (batch.metadata or {}).get(MARK, "")
                if name in unknown:
                    unknown.discard(name)
                    keys = self._batches[name][1]
                    self._batches[name] = (batch.id, keys)
                    self._ledger.save_batch(name, batch.id, keys)
        for name in unknown:
            # The endpoint never took it.
            for key in self._batches.pop(name)[1]:
                self._away.discard(key)
                self._ledger.fail(key, "the batch was not handed in", billed=False)
                if key in self._futures:
                    self._held.append((self._futures[key][0], key))
            self._ledger.drop_batch(name)
        for _, keys in self._batches.values():
            for key in keys:
                self._purse.hold(*self._ledger.reserve(key))

    def _reserve(self, request: Request) -> tuple[float | None, int]:
        prompt, most = request.most_prompt_tokens, request.most_tokens
        return self._purse.cost(prompt, most), prompt + most

    def _hand_in(self) -> None:
        """Uploads as many of the held questions as the budget holds."""
        taken: list[tuple[Request, str]] = []
        with self._lock:
            while self._held and len(taken) < LARGEST:
                usd, tokens = self._reserve(self._held[0][0])
                if not self._purse.fits(usd, tokens):
                    break
                self._purse.hold(usd, tokens)
                taken.append(self._held.popleft())
            if not self._held:
                self._flushed = False
        if not taken:
            if self._held and not self._batches:
                raise StopError(
                    BudgetReachedError,
                    f"budget reached: {self._purse.describe()} spent, and the next call could "
                    "pass it",
                )
            return
        keys = [key for _, key in taken]
        name = hash_json(keys)
        for request, key in taken:
            usd, tokens = self._reserve(request)
            self._ledger.intend(
                key,
                model=self._model,
                slot=request.slot,
                attempt=request.attempt,
                prompt_id=request.prompt_id,
                request=_asked(request),
                reserved_usd=usd,
                reserved_tokens=tokens,
            )
        self._ledger.save_batch(name, "", keys)
        lines = [
            json.dumps(
                {
                    "custom_id": key,
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {"model": self._model, **_asked(request)["params"]}
                    | {"messages": _asked(request)["messages"]},
                }
            )
            for request, key in taken
        ]
        file = self._client.files.create(
            file=(f"{name}.jsonl", ("\n".join(lines) + "\n").encode()), purpose="batch"
        )
        batch = self._client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={MARK: name},
        )
        self._ledger.save_batch(name, batch.id, keys)
        self._batches[name] = (batch.id, keys)
        self._away |= set(keys)

    def _look(self, name: str, id_: str, keys: list[str]) -> None:
        """Fetches a batch's answers if it is over."""
        batch = self._client.batches.retrieve(id_)
        if batch.status not in _OVER:
            return
        left = set(keys)
        for file in (batch.output_file_id, batch.error_file_id):
            if file:
                for key, status, body in _lines(self._client.files.content(file).content):
                    if key in left:
                        left.discard(key)
                        self._settle(key, status, body)
        for key in sorted(left):
            self._fail(key, f"the batch is {batch.status} without an answer", "failed")
        self._ledger.drop_batch(name)
        del self._batches[name]
        self._away -= set(keys)

    def _settle(self, key: str, status: int, body: bytes) -> None:
        usd, tokens = self._ledger.reserve(key)
        if status != 200:
            reason = f"HTTP {status}: {body[:200].decode('utf-8', 'replace')}"
            again = status in (0, 408, 409, 429) or status >= 500
            self._fail(key, clean(reason, self._secret), "failed" if again else "refused")
            return
        try:
            answer = read_answer(body, self._secret, self._model, self._purse, usd, tokens)
        except MalformedError as error:
            # It was paid for, as one that comes over a call would be.
            self._fail(key, clean(str(error), self._secret), "failed", billed=True)
            return
        self._purse.release(usd, tokens)
        self._purse.spend(answer.cost_usd, answer.charged_tokens)
        self._ledger.settle(key, answer)
        with self._lock:
            request, future = self._futures.pop(key, (None, None))
        if request is not None and future is not None:
            future.set_result(judge(request, key, self._model, answer))

    def _fail(self, key: str, reason: str, verdict: Any, *, billed: bool = False) -> None:
        usd, tokens = self._ledger.reserve(key)
        self._purse.release(usd, tokens)
        if billed:
            self._purse.spend(usd, tokens)
        self._ledger.fail(key, reason, billed=billed)
        with self._lock:
            request, future = self._futures.pop(key, (None, None))
        if request is not None and future is not None:
            future.set_result(
                Response(request=request, key=key, model=self._model, verdict=verdict, error=reason)
            )


def _asked(request: Request) -> dict[str, Any]:
    return {**request.asked, "params": dict(request.params)}


def _lines(content: bytes) -> Iterable[tuple[str, int, bytes]]:
    """`(key, status, body)` for each line of an output or error file; torn lines are left out."""
    for line in content.splitlines():
        try:
            entry = json.loads(line)
            response = entry.get("response") or {}
            body = json.dumps(response.get("body") or entry.get("error") or {}).encode()
            yield str(entry["custom_id"]), int(response.get("status_code") or 0), body
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
