"""The codec between a candidate and its tests: what goes in comes out, and nothing else does."""

import math
import os
import random
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.evaluate import _codec

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(1 << 300), max_value=1 << 300)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.text(st.characters(), max_size=5)
    | st.binary()
    | st.binary().map(bytearray)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.builds(range, st.integers(-99, 99), st.integers(-99, 99), st.integers(1, 9))
    | st.sampled_from([int, str, list, object, type(None)])
)
hashable = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.sets(hashable)
        | st.frozensets(hashable)
        | st.dictionaries(hashable, inner)
    ),
    max_leaves=20,
)


def there_and_back(value, **options):
    nonce = os.urandom(_codec.NONCE)
    frame = _codec.dump(nonce, _codec.pack(value, **options))
    assert frame[4:12] == nonce
    return _codec.unpack(_codec.load(frame[12:]))


def same(a, b):
    """Equal, and of equal types all the way down."""
    if type(a) is not type(b):
        return False
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is dict:
        return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
    if type(a) is float:
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return a == b


@given(values)
def test_plain_data_comes_back_as_it_was(value):
    assert same(there_and_back(value), value)


def test_what_is_not_a_number():
    assert math.isnan(there_and_back(float("nan")))
    assert there_and_back([float("inf"), -0.0]) == [float("inf"), 0.0]


def test_subclasses_come_back_as_what_they_extend():
    import collections
    import enum

    class Color(enum.IntEnum):
        RED = 1

    point = collections.namedtuple("point", "x y")
    for value, plain in [
        (Color.RED, 1),
        (point(1, 2), (1, 2)),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.defaultdict(int, {1: 2}), {1: 2}),
        (type("S", (str,), {"__str__": lambda s: "no"})("yes"), "yes"),
        (type("D", (Decimal,), {"__str__": lambda s: "7"})("1.50"), Decimal("1.50")),
        (type("Q", (Fraction,), {})(1, 3), Fraction(1, 3)),
        (type("F", (float,), {"__eq__": lambda s, o: True})(-0.0), -0.0),
    ]:
        assert same(there_and_back(value), plain)


def test_iterators_come_back_as_their_items():
    for value in (iter([1, 2]), (x for x in (1, 2)), map(int, "12"), {1: 0, 2: 0}.keys()):
        assert list(there_and_back(value)) == [1, 2]


@pytest.mark.parametrize(
    "value",
    [object(), len, lambda: 0, os, ValueError("a"), [object()], 1 << (_codec.INT_BITS + 1)],
    ids=["object", "builtin", "function", "module", "exception", "inside a list", "large int"],
)
def test_other_things_do_not_cross(value):
    with pytest.raises(_codec.UnfitError):
        _codec.pack(value)


def test_opaque_values_have_a_truth_and_nothing_else():
    true, false = there_and_back([object(), type("F", (), {"__len__": lambda s: 0})()], opaque=True)
    assert true
    assert not false
    assert true != object()
    with pytest.raises(TypeError):
        len(true)
    with pytest.raises(TypeError, match="cannot be passed on"):
        _codec.pack([true])


@pytest.mark.parametrize("where", ["pack", "unpack"])
def test_depth_is_bounded(where):
    deep = node = []
    for _ in range(_codec.DEPTH + 5):
        deep, node = [deep], ["l", node]
    with pytest.raises(_codec.UnfitError if where == "pack" else _codec.ProtocolError):
        _codec.pack(deep) if where == "pack" else _codec.unpack(["l", node])


def test_endless_and_large_things_are_refused():
    import itertools

    with pytest.raises(_codec.UnfitError, match="iterator"):
        _codec.pack(itertools.count())
    with pytest.raises(_codec.UnfitError, match="bytes"):
        _codec.dump(bytes(8), _codec.pack("x" * (_codec.FRAME_BYTES + 1)))


EXACT = {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset}
EXACT |= {dict, range, type, _codec.Opaque, type(iter([]))}


def only_exact(value):
    """Whether nothing in it could run code when it is compared, hashed or printed."""
    if type(value) in (list, tuple, set, frozenset):
        return all(map(only_exact, value))
    if type(value) is dict:
        return all(only_exact(k) and only_exact(v) for k, v in value.items())
    if type(value) is type:
        return value in _codec._TYPES
    return type(value) in EXACT


def receive(body):
    """What the tests' side does with bytes: a value made of exact builtins, or a refusal."""
    try:
        value = _codec.unpack(_codec.load(body))
    except _codec.ProtocolError:
        return
    assert only_exact(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(body):
    receive(body)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*"ltsfdIibaTcro", "int", "eval", "0x10", "ff", "__class__"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=12,
)


@given(json_like)
def test_any_json_is_a_value_or_refused(node):
    receive(_codec.dump(bytes(8), node)[12:])


@given(json_like)
def test_any_json_is_an_exception_or_refused(node):
    try:
        error = _codec.unpack_exception(node)
    except _codec.ProtocolError:
        return
    assert isinstance(error, BaseException)
    assert not isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit))
    assert type(error).__module__ == "builtins"


def mutated(body, rng):
    """A frame with bytes flipped, cut, doubled or exchanged for others that JSON knows."""
    data = bytearray(body)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0 if data:
                data[at % len(data)] = rng.choice(b'[]{},":0123456789eE.-ltsfdIibaTcro\\\x00\xff')
            case 1:
                del data[at : at + rng.randrange(1, 6)]
            case 2:
                data[at:at] = data[max(0, at - 6) : at]
            case _:
                data[at:at] = rng.choice(
                    [b"[", b'["l",', b"1e999", b"NaN", b'"\\ud800"', b"9" * 30]
                )
    return bytes(data)


SEEDS = [
    _codec.dump(bytes(8), _codec.pack(value, opaque=True))[12:]
    for value in (
        [1, (2.5, {"a": {3}}), b"xy", None, True, 1 << 99],
        {1: [frozenset({2}), range(3)], "k": complex(1, 2)},
        [int, object(), bytearray(b"z"), iter([1, 2])],
    )
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [30_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_fuzzed_frames_are_values_or_refused(count):
    rng = random.Random(81)
    for i in range(count):
        receive(mutated(SEEDS[i % len(SEEDS)], rng))


def test_frames_from_a_pipe():
    def frame(data):
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        try:
            return _codec.Frames(reader).next()
        finally:
            os.close(reader)

    assert frame(b"") is None
    assert frame(b"\0\0") is None
    assert frame(b"\0\0\0\x0a" + b"n" * 8 + b"{}") == (b"n" * 8, b"{}")
    assert frame(b"\0\0\0\x0a" + b"n" * 8) is None
    for length in (0, 7, _codec.FRAME_BYTES + 1, 0xFFFFFFFF):
        with pytest.raises(_codec.ProtocolError, match="frame"):
            frame(length.to_bytes(4, "big") + bytes(100))


def test_frames_that_come_together_are_read_one_by_one():
    reader, writer = os.pipe()
    frames = _codec.Frames(reader)
    sent = [(bytes([i]) * 8, b"[" + b"1" * i * 4000 + b"]") for i in range(5)]
    data = b"".join(_codec.frame(*one) for one in sent)
    try:
        os.write(writer, data[:-1])
        assert [frames.next() for _ in sent[:-1]] == sent[:-1]
        assert frames.more
        os.write(writer, data[-1:])
        assert frames.next() == sent[-1]
        assert not frames.more
        os.write(writer, data[:7])
        os.close(writer)
        assert frames.next() is None  # torn
    finally:
        os.close(reader)
