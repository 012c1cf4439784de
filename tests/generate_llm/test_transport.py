"""HTTP as it comes from the wire: against `http.client`'s reading, over TLS, and in bad shape."""

import asyncio
import http.client
import io
import json
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_teacher import Server, completion
from hypothesis import given
from hypothesis import strategies as st

from hornbook.errors import ConfigError
from hornbook.generate import transport
from hornbook.generate.client import Request
from hornbook.generate.transport import (
    CutOffError,
    DirectTransport,
    PackageTransport,
    RefusedError,
    Reply,
)

pytest.importorskip("openai")
pytest.importorskip("httptools")

KEY = "sk-wire-0123456789"
REQUEST = Request(
    slot="s", messages=[{"role": "user", "content": "Grüße"}], params={"max_tokens": 9}
)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Wire:
    """Answers each request of each connection with what `say(connection, request)` returns.

    An answer is a list of pieces that are sent one by one; None at its end cuts the connection.
    """

    def __init__(
        self,
        say: Callable[[int, int], Sequence[bytes | None]],
        context: ssl.SSLContext | None = None,
        family: socket.AddressFamily = socket.AF_INET,
    ) -> None:
        self.say = say
        self.context = context
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self._socket = socket.create_server(
            ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family
        )
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            threading.Thread(target=self._talk, args=(connection, number), daemon=True).start()

    def _talk(self, connection: socket.socket, number: int) -> None:
        try:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            reader = connection.makefile("rb")
            turn = 0
            while True:
                lines = []
                while (line := reader.readline()) != b"\r\n":
                    if not line:
                        return  # the client has gone
                    lines.append(line)
                head = b"".join(lines)
                self.heads.append(head)
                size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                self.bodies.append(reader.read(size))
                for piece in self.say(number, turn):
                    if piece is None:
                        reader.close()
                        connection.shutdown(socket.SHUT_RDWR)
                        return
                    connection.sendall(piece)
                turn += 1
        except OSError:
            pass
        finally:
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # `accept` would keep it open
        self._socket.close()


@contextmanager
def wire(*args: Any, **options: Any) -> Iterator[Wire]:
    running = Wire(*args, **options)
    try:
        yield running
    finally:
        running.close()


def framed(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


def send(
    port: int, count: int = 1, *, scheme: str = "http", host: str = "127.0.0.1", **options: Any
) -> list[Reply | Exception]:
    """So many calls, one after another; errors in the place of replies."""

    async def go() -> list[Reply | Exception]:
        carrier = DirectTransport(
            "m", f"{scheme}://{host}:{port}/v1", KEY, options.get("timeout_s", 5.0)
        )
        made: list[Reply | Exception] = []
        for _ in range(count):
            try:
                made.append(await carrier.send(REQUEST))
            except (CutOffError, RefusedError) as error:
                made.append(error)
            await asyncio.sleep(0.02)  # so that a connection's end is seen before the next call
        await carrier.close()
        return made

    return asyncio.run(go())


def body_of(made: Reply | Exception) -> bytes:
    assert isinstance(made, Reply), made
    return made.body


def lost(made: Reply | Exception) -> str:
    """The text of a call that was cut off after it was sent: it may have been billed."""
    assert isinstance(made, CutOffError), made
    assert made.billed
    return str(made)


def test_a_call_on_the_wire() -> None:
    with wire(lambda *_: [framed(b"{}", b"X-Ratelimit-Limit-Requests: 9")]) as running:
        (made,) = send(running.port)
    assert made == Reply(b"{}", {"content-length": "2", "x-ratelimit-limit-requests": "9"})
    (head,) = running.heads
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"host: 127.0.0.1:{running.port}".encode() in head.lower().split(b"\r\n")
    assert f"Authorization: Bearer {KEY}".encode() in head
    assert b"application/json" in head
    assert json.loads(running.bodies[0]) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Grüße"}],
        "max_tokens": 9,
    }


def test_a_connection_serves_one_call_after_another() -> None:
    with wire(lambda c, turn: [framed(b"%d %d" % (c, turn))]) as running:
        made = send(running.port, 3)
    assert [body_of(reply) for reply in made] == [b"0 0", b"0 1", b"0 2"]


@pytest.mark.parametrize(
    "answer",
    [
        [framed(b"ok", b"Connection: close")],
        [framed(b"ok"), None],
        [b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        [b"HTTP/1.1 200 OK\r\n\r\n", b"o", b"k", None],  # the end of the connection is its end
    ],
)
def test_a_connection_that_ends_is_followed_by_a_new_one(answer: list[bytes | None]) -> None:
    with wire(lambda *_: answer) as running:
        made = send(running.port, 3)
        assert [body_of(reply) for reply in made] == [b"ok"] * 3
        assert running.connections == 3


def test_a_connection_that_was_idle_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "IDLE_S", -1.0)
    with wire(lambda *_: [framed(b"ok")]) as running:
        send(running.port, 2)
        assert running.connections == 2


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    """Were they kept, the next call would get the answer to another."""
    with wire(lambda c, _: [framed(b"%d" % c) + framed(b"not yours")]) as running:
        made = send(running.port, 3)
    assert [body_of(reply) for reply in made] == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([None], "cut before the whole answer"),
        ([b"HTTP/1.1 200 OK\r\nContent-Le", None], "cut before the whole answer"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", None], "cut before"),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n", None],
            "cut before",
        ),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n"], "not HTTP"),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\nx"],
            "not HTTP",
        ),
        ([framed(b"not packed", b"Content-Encoding: gzip")], "unreadable gzip"),
        ([framed(gzip(b"x" * 99)[:-9], b"Content-Encoding: gzip")], "gzip cut short"),
        ([framed(gzip(bytes(2000)), b"Content-Encoding: gzip")], "over 1,000 bytes"),
        ([framed(bytes(2000))], "more than 1,000 bytes"),
        ([b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"y" * 500 + b"\r\n"] * 4], "more than 1,000 bytes"),
    ],
)
def test_what_is_no_whole_answer_may_have_been_billed(
    monkeypatch: pytest.MonkeyPatch, answer: list[bytes | None], says: str
) -> None:
    monkeypatch.setattr(transport, "LARGEST", 1000)
    with wire(lambda c, turn: [framed(b"fine")] if c + turn else answer) as running:
        bad, good = send(running.port, 2)
        assert says in lost(bad)
        assert body_of(good) == b"fine"


def test_a_trickle_ends_with_the_time_for_a_call() -> None:
    """The time is that of the call, not that between two bytes."""
    done = threading.Event()

    def trickle(_: int, __: int) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while not done.wait(0.02):
            yield b"x"

    with wire(trickle) as running:
        (made,) = send(running.port, timeout_s=0.2)
        done.set()
    assert "no whole answer in 0.2 s" in lost(made)
    assert isinstance(made, CutOffError)
    assert made.timeout


def test_an_interim_answer_is_not_the_answer() -> None:
    interim = b"HTTP/1.1 100 Continue\r\nX-Early: 1\r\n\r\n"
    with wire(lambda *_: [interim, framed(b"late")]) as running:
        (made,) = send(running.port)
    assert made == Reply(b"late", {"content-length": "4"})


def test_refusals_carry_reason_and_headers() -> None:
    said = b'{"error": {"message": "too many"}}'
    with wire(lambda *_: [framed(said, b"Retry-After: 7", status=b"429 Slow Down")]) as running:
        made = send(running.port, 2)
        assert running.connections == 1
    for error in made:
        assert isinstance(error, RefusedError)
        assert (error.status, str(error)) == (429, "HTTP 429: too many")
        assert error.headers["retry-after"] == "7"


def test_a_redirect_is_followed_by_the_package() -> None:
    reply = json.dumps(completion("moved")).encode()
    with wire(lambda *_: [framed(reply, b"Content-Type: application/json")]) as there:
        place = b"Location: http://127.0.0.1:%d/v1/chat/completions" % there.port
        with wire(lambda *_: [framed(b"", place, status=b"307 Moved")]) as here:
            (made,) = send(here.port)
    assert json.loads(body_of(made))["choices"][0]["message"]["content"] == "moved"


def test_a_proxy_from_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = json.dumps(completion("by proxy")).encode()
    with wire(lambda *_: [framed(reply, b"Content-Type: application/json")]) as running:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{running.port}")
        (made,) = send(80, host="endpoint.invalid")
        assert b"by proxy" in body_of(made)
        assert running.heads[0].startswith(b"POST http://endpoint.invalid/v1/chat/completions ")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        (made,) = send(running.port)
        assert running.heads[1].startswith(b"POST /v1/chat/completions ")


def test_nobody_there_costs_nothing() -> None:
    with wire(lambda *_: []) as running:
        port = running.port
    (made,) = send(port)
    assert isinstance(made, CutOffError)
    assert not made.billed


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_an_address_of_ipv6() -> None:
    try:
        running = Wire(lambda *_: [framed(b"six")], family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    (made,) = send(running.port, host="[::1]")
    running.close()
    assert body_of(made) == b"six"
    assert f"host: [::1]:{running.port}".encode() in running.heads[0].lower()


@pytest.mark.parametrize("key", ["sk-x\r\nX-Evil: 1", "sk-\u2028", "schlüssel"])
def test_a_key_that_http_cannot_carry(key: str) -> None:
    with pytest.raises(ConfigError, match="HTTP cannot carry") as caught:
        DirectTransport("m", "http://127.0.0.1:1/v1", key, 1.0)
    assert key not in str(caught.value)


def test_tls_trusts_known_authorities_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with wire(lambda *_: [framed(b"secret")], context) as running:
        (made,) = send(running.port, scheme="https", host="localhost")
        assert isinstance(made, CutOffError)
        assert "SSL_CERT_FILE" in str(made)
        assert not made.billed
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        (made,) = send(running.port, scheme="https", host="127.0.0.1")  # not in the certificate
        assert isinstance(made, CutOffError)
        assert not running.heads  # nobody untrusted has seen the key
        made, again = send(running.port, 2, scheme="https", host="localhost")
        assert (body_of(made), body_of(again)) == (b"secret", b"secret")
        assert len(running.heads) == 2


def test_the_package_is_asked_the_same(server: Server) -> None:
    """Apart from headers that only tell about the package."""

    async def both() -> list[bytes]:
        made = []
        for kind in (PackageTransport, DirectTransport):
            carrier = kind("m", server.url, KEY, 5.0)
            made.append((await carrier.send(REQUEST)).body)
            await carrier.close()
        return made

    server.reply = lambda body, n: json.dumps(body, sort_keys=True)
    by_package, by_us = asyncio.run(both())
    assert by_package == by_us


class _Script(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        self.ended = False

    def write(self, data: Any) -> None: ...

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended


def _read(data: bytes, cuts: Sequence[int]) -> tuple[int, bytes] | None:
    """What a connection makes of bytes that come in pieces and then end."""

    async def go() -> tuple[int, bytes] | None:
        connection = transport._Connection()
        connection.connection_made(_Script())
        waiter = connection.ask(b"", 0.0)
        places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        for start, end in pairwise(places):
            if not waiter.done():
                connection.data_received(data[start:end])
        connection.connection_lost(None)
        try:
            await waiter
            return connection.status, connection.body()
        except CutOffError:
            return None

    return asyncio.run(go())


class _File(io.BytesIO):
    def makefile(self, *_: object) -> "_File":
        return self


def _library(data: bytes) -> tuple[int, bytes] | None:
    """The same by the standard library."""
    response = http.client.HTTPResponse(_File(data), method="POST")  # type: ignore[arg-type]
    try:
        response.begin()
        return response.status, response.read()
    except (http.client.HTTPException, OSError, ValueError):
        return None


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Whole answers of all framings."""
    body = draw(st.binary(max_size=60))
    status = draw(st.sampled_from([200, 201, 400, 429, 500]))
    head = b"HTTP/1.1 %d Word\r\nX-A: b\r\n" % status
    framing = draw(st.sampled_from(["length", "chunks", "end"]))
    if framing == "length":
        made = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    elif framing == "end":
        made = head + b"\r\n" + body
    else:
        size = draw(st.integers(1, 20))
        chunks = [body[i : i + size] for i in range(0, len(body), size)]
        packed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        trailer = draw(st.sampled_from([b"", b"X-Late: 1\r\n"]))
        made = head + b"Transfer-Encoding: chunked\r\n\r\n" + packed + b"0\r\n" + trailer + b"\r\n"
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    return interim + made


@given(answers(), st.lists(st.integers(0, 500), max_size=12))
def test_answers_read_as_the_standard_library_reads_them(data: bytes, cuts: list[int]) -> None:
    expected = _library(data)
    assert expected is not None
    assert _read(data, cuts) == expected


@given(answers(), st.integers(0, 500), st.lists(st.integers(0, 500), max_size=6))
def test_a_cut_answer_is_never_taken_for_a_whole_one(
    data: bytes, end: int, cuts: list[int]
) -> None:
    """Only where an answer says nothing of its length can it be cut unseen, there as here."""
    data = data[: end % (len(data) + 1)]
    made = _read(data, cuts)
    if made is not None:
        assert made == _library(data)
