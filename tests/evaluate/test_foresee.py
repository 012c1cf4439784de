"""Calls that tests are certain to begin with: compared with those they make when run."""

import json
import os
import socket
import threading
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.evaluate import _codec, _split, load_problems, run_programs
from hornbook.evaluate._foresee import foresee
from hornbook.evaluate.sandbox import Program

needs_data = pytest.mark.skipif("HORNBOOK_DATA" not in os.environ, reason="needs HORNBOOK_DATA")


def made(tests, name, function, preamble=""):
    """The requests that tests make, as they run here on a function."""
    calls = []

    def stand_in(*arguments, **named):
        packed = [_codec.pack(value, opaque=True) for value in arguments]
        packed_named = [[key, _codec.pack(value, opaque=True)] for key, value in named.items()]
        calls.append(_codec.encode(["call", name, packed, packed_named]).decode())
        return function(*arguments, **named)

    space = {}
    try:
        exec(preamble, space)
    except SyntaxError:
        exec(f"{preamble}\n    pass\n", space)
    space[name] = stand_in
    try:
        exec(tests, space)
    except Exception:
        return calls, False
    return calls, True


def asked(tests, name="f"):
    return [json.loads(text)[2:] for text in foresee(tests, name)]


def test_a_row_of_asserts():
    tests = "assert f(1, [2]) == 3\nassert abs(f('x', k=-1.5) - f({'a': (1,)})) < 2, 'no'\n"
    assert asked(tests) == [
        [[1, ["l", 2]], []],
        [["x"], [["k", -1.5]]],
        [[["d", "a", ["t", 1]]], []],
    ]


def test_a_function_of_tests():
    tests = (
        "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    'doc'\n    import math\n"
        "    assert candidate(3 * 5) == 1\n    assert True\n"
        "    assert candidate('a' + 'b') == {'k': 2}\n"
        "check(f)\n"
    )
    assert asked(tests) == [[[15], []], [["ab"], []]]


@pytest.mark.parametrize(
    "unsure",
    [
        "assert g(1) == f(9)",
        "assert f(9) == 1 or f(8)",
        "assert f(9) < f(8) < f(7)",
        "assert f(9) if f(8) else f(7)",
        "assert [f(9) for _ in ()] == []",
        "assert (lambda: f(9))",
        "assert f(9) == 1, f(8)",
        "assert f(x) == 1",
        "assert f({9}) == 1",
        "assert f(*[9]) == 1",
        "assert f(**{'a': 9}) == 1",
        "assert f('a' * 10**9)",
        "assert {f(9): f(8)} == {}",
        "assert sorted([1], key=f(9))",
        "for i in (1, 2):\n    assert f(9)",
        "if True:\n    assert f(9)",
        "try:\n    assert f(9)\nexcept Exception:\n    pass",
        "f(9)",
        "x = f(9)",
        "f = len\nassert f('9')",
        "len = g\nassert len(f(9))",
        "from os import *\nassert f(9)",
        "from os import abort as f\nassert f(9)",
        "def abs(x):\n    return 1\nassert abs(f(9))",
        "def check(candidate):\n    yield\n    assert candidate(9)\ncheck(f)",
        "@print\ndef check(candidate):\n    assert candidate(9)\ncheck(f)",
        "def check(candidate, other=f):\n    assert candidate(9)\ncheck(f)",
        "def check(candidate):\n    return\n    assert candidate(9)\ncheck(f)",
        "def check(candidate):\n    candidate = g\n    assert candidate(9)\ncheck(f)",
        "def check(candidate):\n    assert candidate(9)\ncheck(g)",
        "def check(candidate):\n    assert f(9)\ncheck(f)",
        "def check(candidate):\n    assert candidate(9)\ncheck = g\ncheck(f)",
        "del f\nassert f(9)",
    ],
)
def test_what_is_not_certain_ends_the_row(unsure):
    tests = f"assert f(1) == 1\n{unsure}\nassert f(2) == 2\n"
    assert asked(tests) == [[[1], []]]


def test_what_cannot_be_read_foresees_nothing():
    assert foresee("assert f(1", "f") == foresee("assert f(\0)", "f") == ()
    assert foresee("assert abs(1) == 1", "abs") == ()  # it could be either
    assert foresee("assert f(" + "[" * 500 + "]" * 500 + ") == 1", "f") == ()


def test_a_row_fits_into_a_socket():
    assert len(foresee("assert f(1)\n" * 1000, "f")) <= 64
    long = foresee(f"assert f({'x' * 3000!r})\n" * 60, "f")
    assert len(long) > 1
    assert sum(map(len, long)) <= 16 << 10


ATOMS = st.sampled_from(["1", "-2", "0.5", "'a'", "None", "True", "(1, 2)", "[3]", "{'k': 1}", "x"])
CALLS = st.builds("f({}, k={})".format, ATOMS, ATOMS) | st.builds("f({})".format, ATOMS)
TERMS = st.recursive(
    CALLS | ATOMS,
    lambda inner: st.one_of(
        st.builds("({} == {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("repr({})".format, inner),
        st.builds("f({})".format, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{1: {}, 2: {}}}".format, inner, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("str([{}, {}][1])".format, inner, inner),
    ),
    max_leaves=6,
)
LINES = st.one_of(
    st.builds("assert {}".format, TERMS),
    st.builds("assert {}, 'm'".format, TERMS),
    st.builds("assert {}, {}".format, TERMS, TERMS),
    st.sampled_from(["x = 5", "y = [1]", "import math", "pass", "for i in (1, 2): f(i)"]),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=6), st.booleans(), st.sampled_from([0, 1, 7, "a"]))
def test_foreseen_calls_are_made_until_the_tests_fail(lines, inside, answer):
    tests = "\n".join(lines)
    if inside:
        body = tests.replace("f(", "candidate(")
        tests = f"def check(candidate):\n    {'    '.join(body.splitlines(True))}\ncheck(f)\n"
    calls, ended = made(tests, "f", lambda *_, **__: answer, "x = 3")
    found = list(foresee(tests, "f"))
    both = min(len(calls), len(found))
    assert calls[:both] == found[:both]
    assert not ended or len(found) <= len(calls)


@needs_data
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_foreseen_calls_of_the_benchmarks(name):
    total = 0
    for problem in load_problems(name):
        program = problem.split(problem.canonical_solution)
        found = list(foresee(program.tests, program.entry_point))
        space = {}
        exec(program.source, space)
        function = space[program.entry_point]
        calls, passed = made(program.tests, program.entry_point, function, program.source)
        assert passed, problem.task_id
        assert calls[: len(found)] == found, problem.task_id
        total += len(found)
    assert total > 1000  # most of them are of that kind


def outcomes(candidates, tests, **options):
    programs = [
        Program(source=source, tests=tests, entry_point="f", trusted=trusted)
        for source in candidates
        for trusted in (True, False)
    ]
    found = run_programs(programs, **options)
    return [
        (a.status, b.status, a.tamper_proof) for a, b in zip(found[::2], found[1::2], strict=True)
    ]


def test_asking_ahead_changes_no_verdict():
    tests = "assert f(1) == 1\nassert f(2) == 2\nassert f([3]) == [3]\nassert f(4) == 4\n"
    candidates = [
        "def f(x): return x",
        "def f(x): return 0",
        "def f(x): return x if x == 1 else 1 / 0",
        "def f(x):\n    while x == 4: pass\n    return x if x == 1 else 0",  # wrong before it hangs
        "import os\ndef f(x): return x if x == 1 else os._exit(3)",
        "import os\ndef f(x): return 0 if x == 1 else os._exit(3)",
        "import os\ndef f(x): return 0 if x == 1 else os.fork()",
        "def f(x): return 0 if x == 1 else bytearray(1 << 40)",
        "seen = []\ndef f(x):\n    seen.append(x)\n    return x if len(seen) < 3 else seen[-1]",
        "def f(x):\n    import sys\n    sys.exit()",
        "1 / 0",
        "",
        "f = 3",
    ]
    expected = ["passed", "wrong", "exception", "wrong", "crash", "wrong", "wrong", "wrong"]
    expected += ["passed", "exception", "exception", "exception", "exception"]
    found = outcomes(candidates, tests, timeout_s=2, workers=2)
    assert found == [(status, status, True) for status in expected]


def test_arguments_are_changed_as_without_asking_ahead():
    candidate = "def f(x):\n    x.append(1)\n    return len(x)"
    tests = "assert f([0]) == 2\nassert f([]) == 1\nassert f([[]]) == 2\n"
    assert outcomes([candidate], tests) == [("passed", "passed", True)]


FORGERIES = {
    # Reads what else was asked, and answers that instead, or first, or twice.
    "out of order": "os.write(3, answer(frames()[1], 1)); os._exit(0)",
    "twice": "one = frames(); os.write(3, answer(one[0], 0) * 2); os._exit(0)",
    "an old nonce": "one = frames(); os.write(3, b''.join(answer(one[0], n) for n in (0, 1, 2)))",
    "too much": "one = frames(); os.write(3, b''.join(answer(f, 0) for f in one) + b'more')",
}


@pytest.mark.parametrize("attempt", FORGERIES)
def test_frames_asked_ahead_cannot_be_answered_otherwise(attempt):
    source = (
        "import os, sys, json\n"
        "def frames():\n"
        "    # What is left in the socket, and what the serving loop has read already.\n"
        "    frame = sys._getframe()\n"
        "    while frame is not None and 'frames' not in frame.f_locals:\n"
        "        frame = frame.f_back\n"
        "    held = frame.f_locals['frames']._data if frame else b''\n"
        "    found = []\n"
        "    while held:\n"
        "        size = int.from_bytes(held[:4], 'big')\n"
        "        found.append(held[4:4 + size]); held = held[4 + size:]\n"
        "    return found\n"
        "def answer(frame, value):\n"
        "    body = frame[:8] + json.dumps(['v', value, []]).encode()\n"
        "    return len(body).to_bytes(4, 'big') + body\n"
        f"def f(x):\n    {FORGERIES[attempt]}\n    return 0\n"
    )
    # Nothing that it knows to say is right: it is never told what is expected.
    tests = "".join(f"assert f({n}) == {n * 7919 + 13}\n" for n in range(6))
    program = Program(source=source, tests=tests, entry_point="f", trusted=True)
    [outcome] = run_programs([program])
    assert outcome.status in ("crash", "wrong", "exception")


def test_a_wrong_forecast_is_noticed():
    ours, theirs = socket.socketpair()
    served = ModuleType("program")
    thread = threading.Thread(
        target=_split.serve, args=(served, "def f(x): return x", theirs.fileno())
    )
    thread.start()
    try:
        remote = _split.Remote(ours.fileno(), "f")
        calls = ['["call","f",[1],[]]', '["call","f",[2],[]]']
        with pytest.raises(_split.Gone, match="foreseen"):
            _split.judge(ModuleType("tests"), "", "assert f(1) == 1\nf(3)\n", calls, remote)
        assert remote.fault == b"F"
    finally:
        ours.close()
        thread.join()
        theirs.close()
