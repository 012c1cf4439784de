import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.errors import ConfigError, SandboxError
from hornbook.evaluate import Outcome, _layers, load_problems, run_programs, sandbox, status
from hornbook.evaluate.sandbox import Program, grade

SAFE = status()
needs_layers = pytest.mark.skipif(not SAFE["safe"], reason=str(SAFE.get("advice")))


def run(program, **options):
    [outcome] = run_programs([textwrap.dedent(program)], **{"timeout_s": 2.0, **options})
    return outcome


@needs_layers
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("", "passed"),
        ("assert 1 + 1 == 3", "wrong"),
        ("1 / 0", "exception"),
        ("def f(:", "exception"),
        ("x = '\0'", "exception"),
        ("x = '\ud800'", "exception"),
        ("raise KeyboardInterrupt", "exception"),
        ("import sys; sys.exit(0)", "exception"),
        ("import os; os._exit(0)", "crash"),
        ("import os; os.abort()", "crash"),
        ("import ctypes; ctypes.string_at(0)", "crash"),
        ("while True: pass", "cpu"),
        ("x = [0] * 10**9", "memory"),
        ("print('x' * 10**7)", "output"),
        ("while True: print('x' * 1000, flush=True)", "output"),
        ("f = lambda: f()\nf()", "exception"),
        ("(" * 100_000, "exception"),
        # Standard modules, preloaded or not, with and without a shared library.
        ("import csv, decimal, sqlite3, zoneinfo, unittest, asyncio, xml.dom.minidom", "passed"),
        ("import threading\nt = threading.Thread(target=print); t.start(); t.join()", "passed"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n  x: int\nA(1)", "passed"),
        ("import pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))", "passed"),
        ("import __main__\nassert not hasattr(__main__, '_run')", "passed"),
        ("import sys\nassert not any('hornbook' in name for name in sys.modules)", "passed"),
        ("import time; time.sleep(0.01)", "passed"),
        ("assert __name__ != '__main__'", "passed"),
    ],
)
def test_each_end_has_its_status(program, expected):
    outcome = run(program, timeout_s=1.0)
    assert (outcome.status, outcome.passed) == (expected, expected == "passed"), outcome.output[
        -300:
    ]
    assert len(outcome.output.encode()) <= sandbox_limit()


def sandbox_limit():
    return 3 * 64 * 1024  # a byte that is not UTF-8 becomes three


@needs_layers
def test_outcomes_come_in_order_and_one_harms_no_other():
    bad = ["while True: pass", "x = [0] * 10**9", "print('x' * 10**7)", "import os; os._exit(0)"]
    programs = []
    for i in range(20):
        programs += [f"print({i})", f"assert {i} < 0", bad[i % 4]]
    for workers in (1, 3):
        outcomes = run_programs(programs, timeout_s=0.2, workers=workers)
        assert [outcome.output for outcome in outcomes[::3]] == [f"{i}\n" for i in range(20)]
        assert {outcome.status for outcome in outcomes[1::3]} == {"wrong"}
        assert [outcome.status for outcome in outcomes[2::3]] == 5 * [
            "cpu",
            "memory",
            "output",
            "crash",
        ]


@needs_layers
def test_hash_seed_and_random_are_the_same_in_every_program():
    program = "import random; print(hash('a'), list({'a', 'b', 'c', 'd'}), random.random())"
    outcomes = run_programs([program] * 6, workers=2)
    assert len({outcome.output for outcome in outcomes}) == 1


@needs_layers
def test_sleep_ends_at_the_wall_and_cpu_time_is_not_wall_time():
    assert run("import time; time.sleep(60)", wall_s=0.5).status == "wall"
    # The first process of a namespace cannot stop itself: it goes on, as if it had not tried.
    stopped = run("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", wall_s=0.5)
    assert stopped.status == ("passed" if "namespaces" in stopped.isolation else "wall")
    slept = run("import time; time.sleep(0.5)", timeout_s=0.3)
    assert slept.passed
    assert slept.cpu_s < 0.3


@needs_layers
def test_threads_share_one_cpu_limit_and_signals_do_not_lift_it():
    program = """
    import signal, hashlib, threading
    for number in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    def burn():
        while True:
            try:
                hashlib.sha256(bytes(1 << 20))
            except BaseException:
                pass
    threads = [threading.Thread(target=burn) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    """
    assert run(program, timeout_s=0.5).status == "cpu"


@needs_layers
def test_the_exception_ends_the_output_and_cannot_hurt():
    assert run("raise ValueError('no good')").output.endswith("ValueError: no good\n")
    outcome = run("raise ValueError('x' * 300_000_000)")
    assert outcome.status == "exception"
    assert len(outcome.output) < 5000
    exits = "import os\nclass E(Exception):\n  def __str__(self): os._exit(0)\nraise E"
    assert run(exits).status == "exception"
    hangs = "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E"
    assert run(hangs).status == "exception"


@needs_layers
def test_a_worker_that_is_killed_costs_no_verdict():
    import threading

    programs = ["import time; time.sleep(0.3)"] * 4
    stop = threading.Event()

    def kill_once():
        while not stop.is_set():
            family = {int(pid) for pid in workers_of(os.getpid())}
            for pid in family:
                if parent_of(pid) in family:  # a program, so its worker is up
                    os.kill(parent_of(pid), signal.SIGKILL)
                    return

    thread = threading.Thread(target=kill_once)
    thread.start()
    try:
        outcomes = run_programs(programs, workers=1)
    finally:
        stop.set()
        thread.join()
    assert [outcome.status for outcome in outcomes] == ["passed"] * 4


@needs_layers
def test_workers_wait_for_the_next_run_and_end_with_their_pool():
    run_programs(["pass"] * 4, workers=2, memory_mb=777)
    kept = {pid for pid in workers_of(os.getpid()) if memory_of(pid) == 777}
    assert len(kept) >= 2
    run_programs(["pass"] * 4, workers=1, memory_mb=777)
    assert kept == {pid for pid in workers_of(os.getpid()) if memory_of(pid) == 777}
    for pid in kept:  # nobody waits for them now: the next run must not mind
        os.kill(int(pid), signal.SIGKILL)
    outcomes = run_programs(["pass", "assert False"], workers=1, memory_mb=777)
    assert [outcome.status for outcome in outcomes] == ["passed", "wrong"]
    sandbox._pool.cache_clear()
    deadline = time.monotonic() + 5
    while workers_of(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not workers_of(os.getpid())
    assert run("pass").passed


def memory_of(pid):
    text = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    return int(re.findall(r'"memory_mb": (\d+)', text)[0])


@needs_layers
def test_a_forked_process_has_workers_of_its_own():
    assert run("pass").passed
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # waiting for its parent's workers would be for ever
        os._exit(0 if run("pass").passed and run("1 / 0").status == "exception" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert run("pass").passed


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


IMMORTAL = """
import signal, time
for number in range(1, 32):
    if number not in (9, 19):
        signal.signal(number, signal.SIG_IGN)
while True:
    time.sleep(1)
"""


@pytest.mark.timeout(1800)
@needs_layers
@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["level2", "level1"])
def test_nothing_survives_a_killed_caller(kills, without, tmp_path):
    """Candidates ignore every signal they can; the caller gets SIGKILL, at any moment."""
    script = (
        "from hornbook.evaluate import run_programs, sandbox\n"
        "from hornbook.evaluate.sandbox import Program\n"
        f"sandbox._WITHOUT = {without!r}\n"
        f"apart = Program(source={IMMORTAL!r}, tests='f()', entry_point='f', trusted=True)\n"
        f"run_programs([{IMMORTAL!r}, apart], workers=2)\n"
    )
    # Two workers (each below one that waits, on level 2), a program, a candidate and its tests.
    whole = 5 if without or "pid" not in SAFE["namespaces"] else 7
    segments = Path("/proc/sysvipc/shm").read_text()
    for i in range(kills):
        caller = subprocess.Popen(
            [sys.executable, "-c", script],
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        try:
            if i % 2:  # while it tests itself, or the workers start
                time.sleep(1.0 * i / kills)
            else:
                deadline = time.monotonic() + 30
                while len(workers_of(caller.pid)) < whole and time.monotonic() < deadline:
                    time.sleep(0.02)
                assert len(workers_of(caller.pid)) >= whole
                time.sleep(0.1)
        finally:
            caller.kill()
            caller.wait()
        deadline = time.monotonic() + 2
        while workers_of(caller.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not workers_of(caller.pid)
        assert not list(tmp_path.iterdir())
    assert Path("/proc/sysvipc/shm").read_text() == segments


def workers_of(caller):
    """Every process that a caller's workers started: they share one command line."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if f'"parent": {caller},' in (folder / "cmdline").read_text("utf-8", "replace"):
                found.append(folder.name)
        except OSError:
            continue
    return found


def descendants(pid):
    found, new = set(), {pid}
    while new:
        children = {
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and parent_of(int(folder.name)) in new
        }
        new = children - found
        found |= new
    return found


@pytest.mark.timeout(1800)
@needs_layers
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_descriptors_memory_and_processes_of_the_caller_stay_flat(count, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    apart = Program(
        source="def f(x): return x", tests="assert f(1) == 1", entry_point="f", trusted=True
    )
    kinds = ["pass", apart, "import os; os._exit(0)", "assert False", "print('x' * 10_000)"]
    run_programs(kinds * 4)
    descriptors, memory = len(list(Path("/proc/self/fd").iterdir())), resident()
    others = descendants(os.getpid())  # what other tests have left
    seen = []
    run_programs(kinds * (count // 5), progress=lambda *_: seen.append(resident()))
    # Workers that other tests left may have ended in the meantime.
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    # What is kept of each is its outcome: of these, 2 KB of output on average.
    assert max(seen) - memory < 16 + count * 4 / 1000
    # Some are new: each worker has a process for tests, once it was given any, and replaces it.
    workers = len(os.sched_getaffinity(0))
    assert len(descendants(os.getpid())) <= len(others) + workers
    assert not list(tmp_path.iterdir())


def resident():
    """Megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@needs_layers
def test_what_is_measured():
    outcome = run("x = bytearray(200 << 20); import os, signal; os.kill(os.getpid(), 11)\n1 / 0")
    assert outcome.memory_mb > 200
    assert outcome.cpu_s > 0
    assert outcome.wall_s > 0
    crashed = run("import ctypes; ctypes.string_at(0)")
    assert crashed.signal == signal.SIGSEGV
    assert "SIGSEGV" in crashed.output


@needs_layers
def test_a_wall_that_the_machine_ran_into_is_tried_again_alone(monkeypatch):
    calls = []
    real = sandbox._run

    def once_too_slow(programs, limits, **options):
        calls.append((list(programs), options["workers"]))
        outcomes = real(programs, limits, **options)
        if len(calls) == 1:
            outcomes[1] = replace(outcomes[1], status="wall")
        return outcomes

    sandbox.require()
    monkeypatch.setattr(sandbox, "_run", once_too_slow)
    outcomes = run_programs(["pass", "x = 1", "assert False"], workers=2)
    assert [outcome.status for outcome in outcomes] == ["passed", "passed", "wrong"]
    assert [programs for programs, workers in calls if workers == 1] == [["x = 1"]]


@pytest.mark.parametrize("layer", ["landlock", "seccomp"])
def test_a_missing_layer_refuses_before_anything_runs(monkeypatch, tmp_path, layer):
    monkeypatch.setattr(sandbox, "_WITHOUT", (layer,))
    tmp_path.chmod(0o777)
    target = tmp_path / "ran"
    program = f"open({str(target)!r}, 'x')"
    with pytest.raises(SandboxError, match=rf"{layer}.*--i-accept-unsafe-execution"):
        run_programs([program])
    assert not target.exists()
    described = status()
    assert not described["safe"]
    assert layer in described["missing"]
    outcome = run("assert 1 + 1 == 2", accept_unsafe=True)
    assert outcome.passed
    assert outcome.isolation == "none"


@needs_layers
def test_a_canary_that_gets_out_refuses(monkeypatch):
    monkeypatch.setitem(sandbox._CANARIES, "run at all", "pass")
    sandbox._self_test.cache_clear()
    try:
        with pytest.raises(SandboxError, match="a program could run at all"):
            run_programs(["pass"])
    finally:
        sandbox._self_test.cache_clear()


@needs_layers
def test_without_namespaces_the_other_layers_hold(monkeypatch):
    monkeypatch.setattr(sandbox, "_WITHOUT", ("namespaces",))
    assert run("open('/etc/passwd')").status == "exception"
    assert run("import socket; socket.socket()").status == "exception"
    assert run("pass").isolation == "landlock+seccomp"


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"wall_s": -1},
        {"timeout_s": float("inf")},
        {"wall_s": 1e300},
        {"memory_mb": 1},
        {"memory_mb": 128.5},
        {"memory_mb": 1 << 45},
        {"workers": 0},
    ],
)
def test_limits_that_make_no_sense(options):
    with pytest.raises(ConfigError):
        run_programs(["pass"], **options)


@needs_layers
def test_no_programs_is_no_outcomes():
    assert run_programs([]) == []


@needs_layers
def test_progress_counts_up():
    seen = []
    run_programs(["pass"] * 5, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


@needs_layers
@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=8))
def test_any_text_gives_an_outcome_and_spares_its_neighbour(texts):
    outcomes = run_programs([*texts, "assert True"], timeout_s=1.0, workers=1)
    assert len(outcomes) == len(texts) + 1
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    assert all(outcome.status != "harness" for outcome in outcomes)
    assert outcomes[-1].passed


@needs_layers
def test_long_programs():
    text = "x = 1\n" * 200_000
    outcomes = run_programs([text, f"x = '{'a' * 10_000_000}'", "pass"], timeout_s=5.0)
    assert outcomes[0].status in ("passed", "memory", "cpu")
    assert [outcome.status for outcome in outcomes[1:]] == ["passed", "passed"]


def apart(source, tests, **options):
    chosen = {k: options.pop(k) for k in ("preamble", "trusted") if k in options}
    fields = {"entry_point": "f", **chosen}
    program = Program(source=textwrap.dedent(source), tests=textwrap.dedent(tests), **fields)
    [outcome] = run_programs([program], **{"timeout_s": 2.0, **options})
    return outcome


@needs_layers
@pytest.mark.parametrize(
    ("source", "tests", "expected"),
    [
        ("def f(x): return x + 1", "assert f(1) == 2", "passed"),
        ("def f(x): return x + 1", "assert f(1) == 3", "wrong"),
        ("def f(x): return x + 1", "f('a')", "exception"),
        ("def f(x): 1 / 0", "try: f(1)\nexcept ZeroDivisionError: pass", "passed"),
        ("class E(KeyError): pass\ndef f(x): raise E('a')", "f(1)", "exception"),
        (
            "class E(KeyError): pass\ndef f(x): raise E('a')",
            "try: f(1)\nexcept LookupError as e: assert e.args == ('a',)",
            "passed",
        ),
        ("def f(x): b'\\xff'.decode()", "try: f(1)\nexcept ValueError: pass", "passed"),
        ("def f(", "f(1)", "exception"),
        ("1 / 0", "pass", "exception"),
        ("assert False", "pass", "wrong"),
        ("pass", "f(1)", "exception"),
        ("pass", "f(", "exception"),
        ("def f(x): x.append(1)", "a = []\nf(a)\nassert a == [1]", "passed"),
        ("def f(x, y): y['k'] = {1}", "d = {}\nf(1, y=d)\nassert d == {'k': {1}}", "passed"),
        ("def f(x): x.clear(); 1 / 0", "a = {1}\ntry: f(a)\nexcept: assert a == set()", "passed"),
        ("def f(x): x[:] = b'12'", "a = bytearray()\nf(a)\nassert a == b'12'", "passed"),
        ("def f(x): return (i for i in x)", "assert list(f([1, 2])) == [1, 2]", "passed"),
        ("def f(x): return x == int", "assert f(int)", "passed"),
        ("def f(x): print('said'); return x", "assert f(1) == 1", "passed"),
        ("def f(x):\n  while True: pass", "f(1)", "cpu"),
        ("while True: pass", "f(1)", "cpu"),
        ("def f(x): return x", "while True: f(1)", "cpu"),
        ("def f(x): return [0] * 10**9", "f(1)", "memory"),
        ("def f(x):\n  while True: print('x' * 1000)", "f(1)", "output"),
        ("import ctypes\ndef f(x): ctypes.string_at(0)", "f(1)", "crash"),
        ("import ctypes\ndef f(x): ctypes.CDLL(None).ptrace(0, 0, 0, 0)", "f(1)", "syscall"),
        ("def f(x): return 2**200_000 + x", "assert f(1) == 2**200_000 + 1", "passed"),
        ("def f(x): return x", "assert f('\\ud800') == '\\ud800'", "passed"),
        ("def f(x): raise OSError(2, 'no')", "try: f(1)\nexcept FileNotFoundError: pass", "passed"),
        ("def g(x): return 2 * x\ndef f(x): return g(x)", "assert f(1) == g(1)", "passed"),
        ("import math\ndef f(x): return x", "assert f(math.pi) == math.pi", "passed"),
        ("N = [1]\ndef f(x): return N", "assert f(1) == N", "passed"),
    ],
)
@pytest.mark.parametrize("trusted", [False, True], ids=["fresh", "lasting"])
def test_tests_apart_see_what_they_would_see_beside(source, tests, expected, trusted):
    outcome = apart(source, tests, timeout_s=1.0, trusted=trusted)
    assert outcome.status == expected, outcome.output[-300:]
    assert outcome.tamper_proof
    beside = run(f"{source}\n{tests}", timeout_s=1.0)
    assert beside.passed == outcome.passed
    assert not beside.tamper_proof


@needs_layers
@pytest.mark.parametrize("name", ["len", "isinstance", "list", "str"])
def test_a_candidate_that_breaks_its_builtins_hangs_nobody(name: str) -> None:
    source = f"def f(x): return x\nimport builtins; builtins.{name} = lambda *x: 0"
    (outcome,) = run_programs([Program(source=source, tests="assert f(1) == 1", entry_point="f")])
    assert outcome.status != "wall"


SAME = "def f(x): return x"


@needs_layers
@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ("import builtins; builtins.abs = lambda x: 7", "passed"),
        ("import random; random.random()", "passed"),
        ("import sys; sys.setrecursionlimit(60)", "passed"),
        ("import sys; sys.stdout = None", "passed"),
        ("import threading; threading.Thread(target=threading.Event().wait).start()", "passed"),
        ("print('left' * 1000)", "passed"),
        ("x = ['x' * 10**8 for _ in range(5)]", "passed"),
        ("x = [0] * 10**9", "memory"),
        ("while True: pass", "cpu"),
        ("import time; time.sleep(99)", "wall"),
        ("import os; os._exit(0)", "crash"),
        ("import ctypes; ctypes.string_at(0)", "crash"),
        ("import sys; sys.exit()", "exception"),
        ("f = None", "passed"),
        ("import __main__; __main__.left = 1", "passed"),
    ],
)
def test_trusted_tests_leave_nothing_to_the_next(tests, expected):
    """They share a process as long as they leave it as it was."""
    look = """
        import __main__, builtins, random, sys, threading
        assert abs(-1) == 1 and random.random() == 0.8444218515250481
        assert sys.getrecursionlimit() == 1000 and threading.active_count() == 1
        assert f(1) == 1 and "left" not in globals() and __main__.f is f
        print("seen")
        """
    programs = [
        Program(source=SAME, tests=text, entry_point="f", trusted=True)
        for text in (textwrap.dedent(look), tests, textwrap.dedent(look))
    ]
    before, outcome, after = run_programs(programs, timeout_s=1.0, wall_s=5.0, workers=1)
    assert (before.status, before.output) == ("passed", "seen\n")
    assert outcome.status == expected, outcome.output
    assert (after.status, after.output) == ("passed", "seen\n")
    assert after.cpu_s < 0.5  # its own


@needs_layers
def test_a_candidate_that_goes_too_far_does_not_end_the_tests_of_others():
    """Its own process is ended; that of the tests runs on, or another takes its place."""
    bad = {
        "while True: pass": "cpu",
        "def f(x):\n  while True: pass": "cpu",
        "def f(x): import time; time.sleep(99)": "wall",
        "def f(x):\n  while True: print('x' * 1000)": "output",
        "def f(x): return [0] * 10**9": "memory",
        "def f(x): import os; os._exit(0)": "crash",
        "import atexit, time\natexit.register(time.sleep, 99)\n" + SAME: "passed",
        "class Slow:\n  def flush(s):\n    while True: pass\n  write = print\n"
        "import sys; sys.stdout = Slow()\n" + SAME: "passed",
    }
    programs = [
        Program(source=source, tests="assert f(1) == 1", entry_point="f", trusted=True)
        for one in bad
        for source in (one, SAME)
    ]
    outcomes = run_programs(programs, timeout_s=1.0, wall_s=4.0, workers=1)
    assert [outcome.status for outcome in outcomes[::2]] == list(bad.values())
    assert {outcome.status for outcome in outcomes[1::2]} == {"passed"}
    assert max(outcome.cpu_s for outcome in outcomes[1::2]) < 0.5


@needs_layers
def test_one_process_runs_a_limited_number_of_trusted_tests():
    program = Program(source=SAME, tests="assert f(1) == 1", entry_point="f", trusted=True)
    assert all(outcome.passed for outcome in run_programs([program] * 1100, workers=1))


@needs_layers
def test_what_cannot_cross_and_what_becomes_of_it():
    match = apart("import re\ndef f(x): return re.match('a', x)", "assert f('a') and not f('b')")
    assert match.passed
    assert not match.tamper_proof  # its truth was the candidate's word
    function = apart("def f(g): return g(1)", "assert f(lambda x: x + 1) == 2")
    assert function.passed
    assert not function.tamper_proof  # in one process after all
    made = apart("class P:\n  x = 1\ndef f(p): return p.x", "assert f(P()) == 1")
    assert made.passed
    assert not made.tamper_proof
    # A candidate cannot choose to share a process with its tests.
    chosen = apart(
        "class A:\n  __eq__ = lambda s, o: True\ndef f(x): return A()", "assert f(1) == 2"
    )
    assert chosen.status == "wrong"
    # Nor what the builtins are that its tests use.
    shadows = apart("def sum(x): return 7\ndef f(x): return 7", "assert f(1) == sum([3, 4]) + 1")
    assert shadows.status == "wrong"
    passed_on = apart("class A: pass\ndef f(x): return A()", "assert f(f(1)) == 2")
    assert passed_on.status == "exception"


@needs_layers
def test_the_preamble_is_the_tests_own():
    """A candidate may redefine a helper of the prompt: its tests use the prompt's."""
    preamble = "import math\n\ndef helper(x):\n    return x + 1\n\ndef f(x):\n"
    cheat = preamble + "    return 0\n\ndef helper(x):\n    return 0\n"
    tests = "assert f(1) == helper(1) == math.floor(2.5)"
    assert apart(cheat, tests, preamble=preamble).status == "wrong"
    assert apart(preamble + "    return 2\n", tests, preamble=preamble).passed


needs_data = pytest.mark.skipif("HORNBOOK_DATA" not in os.environ, reason="no HORNBOOK_DATA")
# What MBPP's tests take by its truth alone, or build from classes of the reference's own.
UNPROVEN = {
    "humaneval": set(),
    "mbpp-sanitized": {"MBPP/737", "MBPP/787", "MBPP/794"},
    "mbpp": {"MBPP/367", "MBPP/601", "MBPP/927"},
}


@needs_layers
@needs_data
@pytest.mark.parametrize("name", UNPROVEN)
def test_references_pass_with_their_tests_apart(name):
    options = {} if name == "humaneval" else {"split": "all"}
    check_references(name, list(load_problems(name, **options)))


def check_references(name, problems, workers=None):
    answers = [problem.canonical_solution for problem in problems]
    outcomes = grade(problems, answers, workers=workers)
    bad = [p.task_id for p, o in zip(problems, outcomes, strict=True) if not o.passed]
    assert not bad
    unproven = {p.task_id for p, o in zip(problems, outcomes, strict=True) if not o.tamper_proof}
    assert unproven == UNPROVEN[name]


@needs_layers
@needs_data
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sixteen_workers_on_a_busy_machine_change_no_verdict():
    sets = {"humaneval": {}, "mbpp-sanitized": {"split": "all"}, "mbpp": {"split": "all"}}
    for _ in range(5):
        for name, options in sets.items():
            check_references(name, list(load_problems(name, **options)), workers=16)


HEADERS = {
    0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    1: Path("/usr/include/asm-generic/unistd.h"),  # what aarch64 uses
}


@pytest.mark.parametrize("column", HEADERS)
def test_numbers_of_system_calls_are_the_kernels(column):
    if not HEADERS[column].exists():
        pytest.skip("the kernel's headers are not installed")
    text = HEADERS[column].read_text()
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text))
    lists = [
        name for name in vars(_layers) if re.fullmatch("_(ALLOWED|KILLED|CLONE3|WORKERS.*)", name)
    ]
    entries = " ".join(
        [getattr(_layers, name) for name in lists] + [e for e, *_ in _layers._PARTLY]
    )
    assert len(entries.split()) > 130
    for entry in entries.split():
        name, *found = entry.split(":")
        known = numbers.get(name) or numbers.get({"newfstatat": "fstatat"}.get(name))
        assert found[column] in ("-", known), entry


@needs_layers
def test_a_program_that_slept_is_not_tried_again(monkeypatch):
    calls = []
    real = sandbox._run

    def counted(programs, limits, **options):
        calls.extend(programs)
        return real(programs, limits, **options)

    monkeypatch.setattr(sandbox, "_run", counted)
    assert run("import time; time.sleep(99)", wall_s=0.5).status == "wall"
    assert len(calls) == 1
