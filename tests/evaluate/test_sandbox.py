import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.errors import ConfigError, SandboxError
from hornbook.evaluate import Outcome, run_programs, sandbox, status

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
    from hornbook.evaluate import _worker

    return 3 * _worker.OUTPUT_KEPT  # a byte that is not UTF-8 becomes three


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
    assert (
        run("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", wall_s=0.5).status == "wall"
    )
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
            for pid in descendants(os.getpid()):
                if parent_of(pid) != os.getpid():  # a program, so its worker is up
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


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


@needs_layers
def test_nothing_survives_a_killed_caller():
    """Candidates ignore every signal they can; the caller gets SIGKILL."""
    program = """
    import signal, time
    for number in range(1, 32):
        if number not in (9, 19):
            signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)
    """
    script = (
        "from hornbook.evaluate import run_programs\n"
        f"run_programs([{textwrap.dedent(program)!r}] * 2, workers=2)\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        family = set()
        while len(family) < 4 and time.monotonic() < deadline:  # two workers, two candidates
            time.sleep(0.05)
            family = descendants(caller.pid)
        assert len(family) >= 4
        time.sleep(0.3)
        family = descendants(caller.pid)
    finally:
        caller.kill()
        caller.wait()
    deadline = time.monotonic() + 2
    while (left := [pid for pid in family if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


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


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@needs_layers
def test_descriptors_and_processes_of_the_caller_stay_flat():
    run_programs(["pass"] * 4)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        run_programs(["pass", "import os; os._exit(0)"] * 4)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not descendants(os.getpid())


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
        {"memory_mb": 1},
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
