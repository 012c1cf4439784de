"""The two ends of split grading: the candidate answers, its tests ask, in processes of their own.

`serve` runs in the candidate's process: whatever it does there, all that leaves it are frames.
`judge` runs the tests. For them the candidate's functions are stand-ins that send the arguments
over and bring the result back as plain data (see `_codec`), with what the call changed in its
arguments. Each request carries 8 random bytes that its answer must repeat, so nothing can be
answered before it is asked. Only the tests' process can report a verdict.

Calls that the tests are certain to make, in this order and with these arguments (see `_foresee`),
are asked for all at once, so that neither process waits for the other at each.
"""

import builtins
import importlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from types import CodeType, ModuleType
from typing import Any

from hornbook.evaluate import _codec

globals()["__builtins__"] = dict(vars(builtins))  # as in `_codec`

_MUTABLE = (list, dict, set, bytearray)


def run_in(module: ModuleType, text: str) -> None:
    """Runs a program's text as that module."""
    exec(compile(text, "<program>", "exec", dont_inherit=True), module.__dict__)


@lru_cache(maxsize=512)
def _compiled(text: str, name: str) -> CodeType:
    """Code of a problem, whose answers mostly come one after another. It cannot be changed."""
    return compile(text, name, "exec", dont_inherit=True)


def serve(module: ModuleType, source: str, channel: int) -> None:
    """Runs a candidate, then answers until nobody asks any more."""
    failure: list[Any] | None = None
    try:
        run_in(module, source)
    except BaseException as error:
        failure = _codec.pack_exception(error)
    frames = _codec.Frames(channel)
    try:
        while (frame := frames.next()) is not None:
            # One by one: it may be the next that never returns.
            _codec.write_all(channel, reply(module, *frame, failure))
    except OSError:
        pass  # the tests need no more answers


def reply(module: ModuleType, nonce: bytes, body: bytes, failure: list[Any] | None) -> bytes:
    """The frame that answers one.

    Args:
        module: The candidate, which has run.
        nonce: The request's.
        body: The request.
        failure: What the candidate raised as it ran, packed.
    """
    try:
        answer = ["e", failure, []] if failure else _answer(module, _codec.load(body))
        return _codec.dump(nonce, answer)
    except BaseException as error:  # such as a value that cannot cross
        return _codec.dump(nonce, ["e", _codec.pack_exception(error), []])


def _answer(module: ModuleType, request: list[Any]) -> list[Any]:
    match request:
        case ["names"]:
            found = [[str(k), callable(v)] for k, v in module.__dict__.items()]
            return ["v", found, []]
        case ["get", name]:
            return ["v", _codec.pack(module.__dict__[name], opaque=True), []]
        case ["call", name, before, before_named]:
            arguments = [_codec.unpack(node) for node in before]
            named = {key: _codec.unpack(node) for key, node in before_named}
            try:
                result = module.__dict__[name](*arguments, **named)
                answer = ["v", _codec.pack(result, opaque=True)]
            except BaseException as error:
                answer = ["e", _codec.pack_exception(error)]
            pairs = [*zip(enumerate(arguments), before, strict=True)]
            pairs += [*zip(named.items(), (node for _, node in before_named), strict=True)]
            return [*answer, _changes(pairs)]
    raise _codec.ProtocolError(f"no such request: {request[:1]}")


def _changes(pairs: Iterable[tuple[tuple[Any, Any], Any]]) -> list[Any]:
    """Arguments that the call changed, each by its place or name, packed."""
    found = []
    for (key, value), before in pairs:
        if type(value) in _MUTABLE:
            after = _codec.pack(value, opaque=True)
            if after != before:
                found.append([key, after])
    return found


class Gone(BaseException):
    """There is no answer to be had: not for a test to catch. `Remote.fault` says why."""


class Remote:
    """A candidate in another process.

    Attributes:
        fault: Why the tests cannot go on: `G` the candidate ended, `X` it broke the protocol,
            `F` the tests need what cannot cross. None while they can.
        entry_point: The function that was asked for.
        plain: Whether all that came was plain data.
    """

    def __init__(self, channel: int, entry_point: str) -> None:
        self.fault: bytes | None = None
        self.reason = ""
        self.plain = True
        self._channel = channel
        self._frames = _codec.Frames(channel)
        self._foreseen: deque[tuple[bytes, bytes]] = deque()
        self.entry_point = entry_point

    def stop(self, fault: bytes, reason: str) -> Gone:
        """Notes why the tests cannot go on; what to raise."""
        if self.fault is None:
            self.fault, self.reason = fault, reason
        return Gone(reason)

    def _ask(self, request: list[Any]) -> tuple[Any, list[Any]]:
        """The value of an answer and the changes to the arguments.

        Raises:
            Gone: If there is none.
            BaseException: What the candidate raised, as the builtin nearest to it.
        """
        if self.fault is not None:
            raise Gone(self.reason)
        try:
            body = _codec.encode(request)
            if self._foreseen:
                nonce, foreseen = self._foreseen.popleft()
                if body != foreseen:
                    raise self.stop(b"F", "the tests do not ask what they were foreseen to ask")
            else:
                nonce = os.urandom(_codec.NONCE)
                _codec.write_all(self._channel, _codec.frame(nonce, body))
            frame = self._frames.next()
            if frame is None:
                raise self.stop(b"G", "the candidate ended")
            if frame[0] != nonce:
                raise _codec.ProtocolError("an answer to another question")
            if self._frames.more and not self._foreseen:
                raise _codec.ProtocolError("followed by what nobody asked for")
            return self._understand(_codec.load(frame[1]))
        except _codec.UnfitError as error:
            raise self.stop(b"F", f"the tests pass {error}") from None
        except _codec.ProtocolError as error:
            raise self.stop(b"X", f"the candidate's answer is {error}") from None
        except OSError:
            raise self.stop(b"G", "the candidate ended") from None

    def foresee(self, calls: Sequence[str]) -> None:
        """Asks for calls whose answers `call` will then only have to read.

        Args:
            calls: Requests as JSON. Together they fit into a socket that nobody reads.
        """
        bodies = [call.encode("ascii") for call in calls]
        nonces = os.urandom(_codec.NONCE * len(bodies))
        size = _codec.NONCE
        self._foreseen += [
            (nonces[i * size : (i + 1) * size], body) for i, body in enumerate(bodies)
        ]
        asked = b"".join(_codec.frame(nonce, body) for nonce, body in self._foreseen)
        try:
            _codec.write_all(self._channel, asked)
        except OSError:
            raise self.stop(b"G", "the candidate ended") from None

    def finish(self) -> None:
        """Makes sure that the tests have had every answer they were foreseen to need."""
        if self._foreseen:
            raise self.stop(b"F", "the tests do not ask what they were foreseen to ask")

    def _understand(self, answer: Any) -> tuple[Any, list[Any]]:
        match answer:
            case ["v", node, list(changes)]:
                return node, changes
            case ["e", node, list(changes)]:
                return _Raised(_codec.unpack_exception(node)), changes
        raise _codec.ProtocolError("neither a value nor an exception")

    def names(self) -> dict[str, bool]:
        """Waits for the candidate to have run; its global names, and whether each can be called."""
        node, _ = self._ask(["names"])
        if isinstance(node, _Raised):
            raise node.error
        try:
            return {name: can is True for name, can in node if type(name) is str}
        except (TypeError, ValueError):
            raise self.stop(b"X", "the candidate's answer is no list of names") from None

    def _value(self, node: Any) -> Any:
        opaque: list[_codec.Opaque] = []
        try:
            value = _codec.unpack(node, opaque)
        except _codec.ProtocolError as error:
            raise self.stop(b"X", f"the candidate's answer is {error}") from None
        self.plain = self.plain and not opaque
        return value

    def get(self, name: str) -> Any:
        """A global that is not a function."""
        node, _ = self._ask(["get", name])
        if isinstance(node, _Raised):
            raise node.error
        return self._value(node)

    def call(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What the candidate's function returns or raises; its arguments are changed as it did.

        Raises:
            BaseException: What it raised, as the nearest builtin.
            TypeError: If the tests pass on an object of the candidate's own.
            Gone: If the tests cannot go on.
        """
        try:
            packed = [_codec.pack(value) for value in arguments]
            packed_named = [[key, _codec.pack(value)] for key, value in named.items()]
        except _codec.UnfitError as error:
            raise self.stop(b"F", f"the tests pass {error}") from None
        node, changes = self._ask(["call", name, packed, packed_named])
        given: dict[Any, Any] = {**dict(enumerate(arguments)), **named}
        for change in changes:
            match change:
                case [int() | str() as key, after] if type(given.get(key)) in _MUTABLE:
                    _replace(given[key], self._value(after), self.stop)
                case _:
                    raise self.stop(b"X", "the candidate changed what it was not given")
        if isinstance(node, _Raised):
            raise node.error
        plain = self.plain
        value = self._value(node)
        if name != self.entry_point and plain and not self.plain:
            # Only tests that build the candidate's own objects get here: no candidate leads them.
            raise self.stop(b"F", f"the tests use {value!r}")
        return value


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _replace(old: Any, new: Any, stop: Callable[[bytes, str], Gone]) -> None:
    """Makes a container hold what another of its kind holds."""
    if type(old) is not type(new):
        raise stop(b"X", "the candidate changed the kind of an argument")
    if type(old) in (list, bytearray):
        old[:] = new
    else:
        old.clear()
        old.update(new)


def _names(code: CodeType) -> set[str]:
    """Every name that code, and what it defines, mentions."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found


def judge(
    module: ModuleType, preamble: str, tests: str, calls: Sequence[str], remote: Remote
) -> None:
    """Runs tests on a candidate. They pass if this returns and `remote.fault` is None.

    Args:
        module: Where they run.
        preamble: Trusted text that stands before the candidate's: imports, helpers, a signature.
        tests: Their text.
        calls: Requests that they are certain to begin with.
        remote: The candidate, whose entry point counts even if the preamble has begun it.

    Raises:
        BaseException: What the tests raise, or the candidate as it loads.
    """
    known = remote.names()
    code = _compiled(tests, "<tests>")
    space, asked = module.__dict__, remote.entry_point
    try:
        try:
            before = _compiled(preamble, "<preamble>")
        except SyntaxError:  # it ends in a function's signature
            before = _compiled(f"{preamble}\n    pass\n", "<preamble>")
        exec(before, space)
    except Exception as error:
        raise remote.stop(b"F", f"the preamble cannot run alone: {error}") from None
    space.pop(asked, None)  # the preamble's is empty
    for name in sorted(_names(code) & known.keys() - space.keys() - space["__builtins__"].keys()):
        if known[name]:
            space[name] = _stand_in(remote, name)
        elif name in sys.stdlib_module_names:  # the tests lean on what the candidate imports
            space[name] = importlib.import_module(name)
        else:
            space[name] = remote.get(name)
    if asked in known:  # a builtin's name, perhaps
        space[asked] = _stand_in(remote, asked) if known[asked] else remote.get(asked)
    if calls and known.get(asked):
        remote.foresee(calls)
    exec(code, space)
    remote.finish()


def _stand_in(remote: Remote, name: str) -> Callable[..., Any]:
    def stand_in(*arguments: Any, **named: Any) -> Any:
        return remote.call(name, arguments, named)

    stand_in.__name__ = stand_in.__qualname__ = name
    return stand_in
