"""What carries a call: HTTP straight to the endpoint, the `openai` package, a Python function.

The `openai` package says where a call goes and with which headers; `DirectTransport` then speaks
HTTP/1.1 over asyncio's sockets with llhttp (`httptools`) reading the answers: about 0.1 ms of a
core a call, where the package's own way takes 2.5 ms. What needs more than a straight connection (a
proxy in the environment, a redirect, `httptools` missing) goes the package's way.
"""

import asyncio
import json
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol
from urllib.request import getproxies, proxy_bypass

from hornbook.errors import ConfigError
from hornbook.generate.client import Request

CONNECT_S = 30.0
"""Most seconds until a connection stands."""
IDLE_S = 4.0
"""A connection is not used again after so long without a call: servers close theirs after 5 s and
more, and a call sent into a closing one may or may not be billed."""
LARGEST = 64 * 2**20
"""Bytes of an answer, at most."""

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


def transport(model: str, address: str | None, secret: str, timeout_s: float) -> Transport:
    """The fastest transport that is installed."""
    fast = find_spec("httptools") is not None
    kind = DirectTransport if fast else PackageTransport
    return kind(model, address, secret, timeout_s)


class PackageTransport:
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
            billed = cause not in ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")
            timeout = isinstance(error, openai.APITimeoutError)
            text = f"{type(error).__name__} ({cause}): {error.message}"
            raise CutOffError(text, billed=billed, timeout=timeout) from None

    async def close(self) -> None:
        """See `Transport`."""
        await self.client.close()


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class DirectTransport:
    """HTTP/1.1 over connections of its own, each for one call at a time and then the next."""

    def __init__(self, model: str, address: str | None, secret: str, timeout_s: float) -> None:
        self._package = PackageTransport(model, address, secret, timeout_s)
        client = self._package.client
        url = client.base_url
        self._model = model
        self._timeout_s = timeout_s
        self._name = url.raw_host.decode("ascii")
        usual = 443 if url.scheme == "https" else 80
        self._port = url.port or usual
        self._ssl = _trust() if url.scheme == "https" else None
        self._path = url.raw_path.split(b"?")[0].rstrip(b"/")
        host = f"[{self._name}]" if ":" in self._name else self._name
        headers = {"Host": host if self._port == usual else f"{host}:{self._port}"} | {
            name: value
            for name, value in {**client.default_headers, **client.auth_headers}.items()
            if isinstance(value, str) and not name.lower().startswith("x-stainless")
        }
        lines = [f"{name}: {value}" for name, value in headers.items()]
        if not all(line.isascii() and line.isprintable() for line in lines):
            raise ConfigError("the key (or a header) holds a character that HTTP cannot carry")
        self._head = "\r\n".join([*lines, ""]).encode()
        proxies = getproxies()
        proxied = proxies.get(url.scheme) or proxies.get("all")
        self._elsewhere = bool(proxied) and not proxy_bypass(self._name)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, request: Request) -> Reply:
        """See `Transport`."""
        if self._elsewhere:
            return await self._package.send(request)
        asked = {"model": self._model, **request.asked, **request.params}
        body = json.dumps(asked).encode()
        connection = self._kept() or await self._connect()
        if self._timer is None:
            self._look()
        self._busy.add(connection)
        try:
            await connection.ask(
                b"POST %b/%b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b"
                % (self._path, request.path.encode(), self._head, len(body), body),
                time.monotonic() + self._timeout_s,
            )
            status, headers, answer = connection.status, connection.headers, connection.body()
        finally:
            self._busy.discard(connection)
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.drop()
        if status in (301, 302, 307, 308):
            # To follow one, with all that this may mean for the key, is the package's affair.
            self._elsewhere = True
            return await self._package.send(request)
        if status >= 300:
            raise RefusedError(status, _reason(answer), headers)
        return Reply(answer, headers)

    def _kept(self) -> "_Connection | None":
        """The connection that was used last, if it still stands."""
        oldest = time.monotonic() - IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.used > oldest:
                return connection
            connection.drop()
        return None

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                made, connection = await loop.create_connection(
                    _Connection,
                    self._name,
                    self._port,
                    ssl=self._ssl,
                    happy_eyeballs_delay=0.25,
                )
        except ssl.SSLCertVerificationError as error:
            text = f"{error.verify_message}; SSL_CERT_FILE can name the authorities to trust"
            raise CutOffError(f"{type(error).__name__}: {text}", billed=False) from error
        except TimeoutError as error:
            text = f"ConnectTimeout: no connection in {CONNECT_S:g} s"
            raise CutOffError(text, billed=False, timeout=True) from error
        except OSError as error:
            raise CutOffError(f"{type(error).__name__}: {error}", billed=False) from error
        # An answer may be minutes away, and what lies between forgets silent connections.
        made.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    def _look(self) -> None:
        """Ends the calls whose time is up; one timer for all, since most never need it."""
        now = time.monotonic()
        for connection in list(self._busy):
            if connection.deadline <= now:
                text = f"Timeout: no whole answer in {self._timeout_s:g} s"
                connection.fail(CutOffError(text, billed=True, timeout=True))
        pause = min(1.0, max(0.01, self._timeout_s / 4))
        self._timer = asyncio.get_running_loop().call_later(pause, self._look)

    async def close(self) -> None:
        """See `Transport`."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in [*self._idle, *self._busy]:
            connection.drop()
        await self._package.close()
        # A connection's last callbacks come in the next turn of the loop.
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One connection: sends a request, reads its answer. Its `on_*` are llhttp's callbacks."""

    def __init__(self) -> None:
        self.reusable = False
        """It stands and no call is under way on it."""
        self.used = self.deadline = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._clear()

    def _clear(self) -> None:
        self.status = self._size = 0
        self.headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        import httptools

        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._parser = httptools.HttpResponseParser(self)
        self.reusable = True

    def ask(self, data: bytes, deadline: float) -> "asyncio.Future[None]":
        """Sends a request; the future is done when `status`, `headers` and `body` are there."""
        self.reusable = False
        self.deadline = deadline
        self._clear()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._waiter

    def body(self) -> bytes:
        """The answer's body, unpacked.

        Raises:
            CutOffError: If it cannot be.
        """
        data, kind = b"".join(self._parts), self.headers.get("content-encoding", "")
        if kind in ("gzip", "x-gzip", "deflate"):
            unpacker = zlib.decompressobj(47)
            try:
                data = unpacker.decompress(data, LARGEST)
            except zlib.error as error:
                raise CutOffError(f"unreadable {kind}: {error}", billed=True) from error
            if not unpacker.eof:
                raise CutOffError(f"{kind} cut short, or over {LARGEST:,} bytes", billed=True)
        return data

    def drop(self) -> None:
        """Closes it at once."""
        self.reusable = False
        self._transport.abort()

    def fail(self, error: CutOffError) -> None:
        """Ends the call under way with an error."""
        self.drop()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        if self._waiter is None or self._waiter.done():
            self.drop()  # nobody asked
            return
        self._size += len(data)
        if self._size > LARGEST:
            self.fail(CutOffError(f"an answer of more than {LARGEST:,} bytes", billed=True))
            return
        try:
            self._parser.feed_data(data)
        except Exception as error:  # all that llhttp may say
            self.fail(CutOffError(f"not HTTP ({type(error).__name__}: {error})", billed=True))

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's."""
        self.reusable = False
        if self._waiter is None or self._waiter.done():
            return
        framed = {"content-length", "transfer-encoding"} & self.headers.keys()
        if error is None and self._in_body and not framed:
            self._waiter.set_result(None)  # where it ends is told by the connection's end
            return
        text = "the connection was cut before the whole answer was there"
        text += f" ({type(error).__name__}: {error})" if error else ""
        self._waiter.set_exception(CutOffError(text, billed=True))

    def on_message_begin(self) -> None:
        """llhttp's: an answer begins."""
        if self._waiter is None or self._waiter.done():
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp's: one header, or a trailer, which says nothing that counts here."""
        if self._in_body:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        """llhttp's: the body is next."""
        self.status = self._parser.get_status_code()
        self._in_body = True

    def on_body(self, data: bytes) -> None:
        """llhttp's: a piece of the body."""
        self._parts.append(data)

    def on_message_complete(self) -> None:
        """llhttp's: all is there."""
        if self.status < 200:
            self._clear()  # an interim answer; the one that counts follows
            return
        assert self._waiter is not None
        self.used = time.monotonic()
        self.reusable = self._parser.should_keep_alive() and not self._transport.is_closing()
        if not self._waiter.done():
            self._waiter.set_result(None)


def _trust() -> ssl.SSLContext:
    """Whom to trust: the system's authorities (or `SSL_CERT_FILE`), else those of `certifi`."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not context.cert_store_stats()["x509_ca"] and find_spec("certifi") is not None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _reason(body: bytes) -> str:
    """What an error's body says, in OpenAI's form or any other."""
    try:
        said = json.loads(body)
        error = said.get("error", said)
        message = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        message = body[:300].decode("utf-8", "replace")
    return str(message)[:500]


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
