"""Plain data between a candidate and its tests, which run in processes of their own.

Frames are a big-endian length, the request's random 8 bytes, and JSON in ASCII. Only these cross,
and only exactly these come out, whatever comes in: None, bool, int, float, complex, str, bytes,
bytearray, list, tuple, set, frozenset, dict, range, Decimal, Fraction, iterators (as their items),
the builtin types themselves, and `Opaque` for anything else. Subclasses arrive as what they extend.
Nothing in a frame is ever executed, imported or looked up by name outside a fixed list.

Only the standard library is used: both processes import this under `-S`.
"""

import builtins
import collections.abc
import itertools
import json
import os
import struct
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

# Functions look builtins up in what stands here when they are defined: a copy, so that a candidate
# that replaces `len` in its process still gives answers, instead of waiting for ever.
globals()["__builtins__"] = dict(vars(builtins))

FRAME_BYTES = 8 << 20
DEPTH = 64
INT_BITS = 1 << 20
ITEMS = 200_000
"""Most items taken from an iterator."""
NONCE = 8
_SMALL = 1 << 62
_HEAD = struct.Struct(">I")
_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_READ = 1 << 16
_TYPES = (
    *(bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range),
    *(object, type, type(None)),
)
_TYPE_NAMES: dict[type, str] = {kind: kind.__name__ for kind in _TYPES}
_TYPES_BY_NAME = {name: kind for kind, name in _TYPE_NAMES.items()}
_ATOMS = frozenset((type(None), bool, float, str))
# In the order in which a subclass is looked at.
_BASES = (int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict)
_TAGS: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "f"}
_BY_TAG: dict[str, Callable[[Any], Any]] = {"l": list, "t": tuple, "s": set, "f": frozenset}
_ITERATORS = (
    collections.abc.Iterator,
    collections.abc.KeysView,
    collections.abc.ValuesView,
    collections.abc.ItemsView,
)


class ProtocolError(Exception):
    """Bytes that are not a value's."""


class UnfitError(Exception):
    """A value that cannot cross."""


class Opaque:
    """A value of the candidate's that is not plain data: it equals nothing; its truth is known."""

    __slots__ = ("_kind", "_truth")

    def __init__(self, kind: str, truth: bool) -> None:
        self._kind = kind
        self._truth = truth

    def __bool__(self) -> bool:
        return self._truth

    def __repr__(self) -> str:
        return f"<a {self._kind!r} in the candidate's process>"


def pack(value: Any, opaque: bool = False, depth: int = DEPTH) -> Any:
    """A value as JSON takes it.

    Args:
        value: Anything.
        opaque: Send what is not plain data as its type's name and truth.
        depth: Containers inside each other that are allowed.

    Raises:
        UnfitError: If it cannot cross.
        TypeError: If it holds an `Opaque`: those cannot go back.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is int:
        if -_SMALL < value < _SMALL:
            return value
        if value.bit_length() > INT_BITS:
            raise UnfitError(f"an int of {value.bit_length():,} bits")
        return ["i", hex(value)]
    if depth == 0:
        raise UnfitError(f"containers more than {DEPTH} deep")
    if kind in _TAGS:
        return [_TAGS[kind], *[pack(item, opaque, depth - 1) for item in value]]
    if kind is dict:
        flat = itertools.chain.from_iterable(value.items())
        return ["d", *[pack(item, opaque, depth - 1) for item in flat]]
    if kind is bytes:
        return ["b", value.hex()]
    if kind is bytearray:
        return ["a", value.hex()]
    if kind is complex:
        return ["c", value.real, value.imag]
    if kind is range:
        return ["r", *[pack(part) for part in (value.start, value.stop, value.step)]]
    if kind is type:
        if value in _TYPE_NAMES:
            return ["T", _TYPE_NAMES[value]]
    elif isinstance(value, _ITERATORS):
        items = list(itertools.islice(value, ITEMS + 1))
        if len(items) > ITEMS:
            raise UnfitError(f"an iterator of more than {ITEMS:,} items")
        return ["I", *[pack(item, opaque, depth - 1) for item in items]]
    elif isinstance(value, Decimal):
        return ["D", Decimal.__str__(value)]
    elif isinstance(value, Fraction):
        return ["F", pack(value.numerator), pack(value.denominator)]
    else:
        for base in _BASES:
            if isinstance(value, base):
                return pack(_plain(value, base), opaque, depth)
    if kind is Opaque:
        raise TypeError(f"{value!r} cannot be passed on")
    if not opaque:
        raise UnfitError(f"a {kind.__name__!r}")
    return ["o", kind.__name__[:100], bool(value)]


def _plain(value: Any, base: Any) -> Any:
    """A subclass's value as the builtin's, by the builtin's own means."""
    if base is int:
        return int.__index__(value)
    if base is str:
        return str.__str__(value)
    if base is dict:
        return dict(dict.items(value))
    if base is float or base is complex:
        return base.__pos__(value)
    return base(base.__iter__(value))


def unpack(node: Any, opaque: list[Opaque] | None = None, depth: int = DEPTH) -> Any:
    """The value that JSON gave, made of exact builtins and `Opaque` only.

    Args:
        node: The JSON.
        opaque: Where to put every `Opaque` in it too.
        depth: Containers inside each other that are allowed.

    Raises:
        ProtocolError: If it is none.
    """
    kind = type(node)
    if kind in _ATOMS or kind is int:
        return node
    if kind is not list or not node or type(node[0]) is not str or depth == 0:
        raise ProtocolError("not a value")
    tag, rest = node[0], node[1:]
    try:
        if tag in _BY_TAG:
            items = [unpack(item, opaque, depth - 1) for item in rest]
            return items if tag == "l" else _BY_TAG[tag](items)
        if tag == "d" and len(rest) % 2 == 0:
            items = [unpack(item, opaque, depth - 1) for item in rest]
            return dict(zip(items[::2], items[1::2], strict=True))
        if tag == "I" and len(rest) <= ITEMS:
            return iter([unpack(item, opaque, depth - 1) for item in rest])
        if tag in ("i", "b", "a", "D", "T") and len(rest) == 1 and type(rest[0]) is str:
            return _scalar(tag, rest[0])
        if tag == "c" and [type(part) for part in rest] == [float, float]:
            return complex(*rest)
        if tag == "r" and len(rest) == 3:
            parts = [unpack(part) for part in rest]
            if all(type(part) is int for part in parts):
                return range(*parts)
        if tag == "F" and len(rest) == 2:
            top, bottom = (unpack(part) for part in rest)
            if type(top) is int and type(bottom) is int and bottom > 0:
                return Fraction(top, bottom)
        if tag == "o" and [type(part) for part in rest] == [str, bool]:
            value = Opaque(rest[0][:100], rest[1])
            if opaque is not None:
                opaque.append(value)
            return value
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ProtocolError(f"not a value: {error}") from None
    raise ProtocolError("not a value")


def _scalar(tag: str, text: str) -> Any:
    if tag == "i":
        if len(text) > INT_BITS // 4 + 8:
            raise ProtocolError("an int that is too long")
        return int(text, 16)
    if tag == "T":
        return _TYPES_BY_NAME[text]
    if tag == "D":
        try:
            return Decimal(text)
        except ArithmeticError as error:
            raise ProtocolError(f"not a Decimal: {error}") from None
    return bytes.fromhex(text) if tag == "b" else bytearray.fromhex(text)


def encode(node: Any) -> bytes:
    """Packed data as JSON."""
    return _ENCODE(node).encode("ascii")


def frame(nonce: bytes, body: bytes) -> bytes:
    """A frame.

    Raises:
        UnfitError: If it would be too long.
    """
    size = len(nonce) + len(body)
    if size > FRAME_BYTES:
        raise UnfitError(f"{size:,} bytes of data")
    return _HEAD.pack(size) + nonce + body


def dump(nonce: bytes, node: Any) -> bytes:
    """Packed data as a frame.

    Raises:
        UnfitError: If it would be too long.
    """
    return frame(nonce, encode(node))


def load(body: bytes) -> Any:
    """What a frame's JSON says, still packed.

    Raises:
        ProtocolError: If it is not JSON in ASCII, or too deep.
    """
    try:
        return json.loads(body.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None


class Frames:
    """Reads frames, of which several may come at once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data = b""

    @property
    def more(self) -> bool:
        """Whether something came after the last frame."""
        return bool(self._data)

    def next(self) -> tuple[bytes, bytes] | None:
        """The nonce and body of the next frame; None at the end.

        Raises:
            ProtocolError: If its length cannot be.
        """
        data = self._data
        while len(data) < _HEAD.size:
            more = os.read(self._fd, _READ)
            if not more:
                return None
            data = data + more if data else more
        [size] = _HEAD.unpack_from(data)
        if not NONCE <= size <= FRAME_BYTES:
            raise ProtocolError(f"a frame of {size:,} bytes")
        end = _HEAD.size + size
        if len(data) < end:
            chunks, missing = [data], end - len(data)
            while missing > 0:
                chunks.append(os.read(self._fd, min(missing, 1 << 20)))
                if not chunks[-1]:
                    return None
                missing -= len(chunks[-1])
            data = b"".join(chunks)
        start = _HEAD.size + NONCE
        self._data = data[end:]
        return data[_HEAD.size : start], data[start:end]


def write_all(fd: int, data: bytes) -> None:
    """Writes all of it."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


# Exceptions cross as the names of their classes, the most special first, with their arguments if
# those are plain data and their text if not. Some would end a loop of the tests' instead of failing
# them: those arrive as a plain Exception.
_NEVER = ("StopIteration", "StopAsyncIteration", "GeneratorExit")
_EXCEPTIONS = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException) and name not in _NEVER
}


def pack_exception(error: BaseException) -> list[Any]:
    """An exception's class names and arguments."""
    names = [kind.__name__[:100] for kind in type(error).__mro__[:-1]][:20]
    try:
        return [names, pack(tuple(error.args))]
    except BaseException:
        pass
    try:
        return [names, ["t", str(error)[:2000]]]
    except BaseException:
        return [names, ["t"]]


def unpack_exception(node: Any) -> BaseException:
    """A builtin exception that a test can catch as it would catch the candidate's own.

    Raises:
        ProtocolError: If it is none.
    """
    match node:
        case [[*names], packed] if all(type(name) is str for name in names):
            arguments = unpack(packed)
            if type(arguments) is not tuple:
                raise ProtocolError("not an exception")
            for kind in [_EXCEPTIONS[name] for name in names if name in _EXCEPTIONS]:
                try:
                    return kind(*arguments)
                except Exception:
                    continue  # such as ExceptionGroup, whose arguments are no plain data
            return RuntimeError(*arguments)
    raise ProtocolError("not an exception")
