"""Runs model-written programs: fast, out of reach of everything, one outcome each.

A program is Python text that is executed in a fresh module namespace and passes if it reaches its
end. A warm worker a core forks one process for each (see `_worker`), which gets limits on CPU time,
memory, output and descriptors, and then, in its own process: no privileges, no file but the
standard library to read and none to write (Landlock), no network, processes, exec or signals to
others (seccomp), and namespaces of its own where the kernel permits. Where Landlock or seccomp
cannot be had nothing is run, unless the caller accepts that in so many words.

CPU time decides, not the clock, so a busy machine changes no verdict; the wall is a backstop. A
hang, a bomb or a flood in one program changes no other's outcome. All of a run's programs die with
the caller. A HumanEval reference costs 4.7 ms of CPU. On 2 cores 220 trivial programs a second, and
85 HumanEval references with eight other busy processes there; 0.2 s to start.

Limits, honestly: tests in the program's text share the candidate's process, so a candidate that
means to can forge a pass (walk the frames to the verdict, return objects that equal everything).
Hence `Outcome.tamper_proof` is False. Names it merely replaces, printing and exiting do not help
it. A program can also see whether a path exists, and this is one kernel, not a virtual machine.

    python -c "from hornbook.evaluate import run_programs; print(run_programs(['assert 1 < 2']))"
"""

import atexit
import json
import os
import queue
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hornbook.errors import ConfigError, SandboxError

Status = Literal[
    "passed",
    "wrong",
    "exception",
    "cpu",
    "wall",
    "memory",
    "output",
    "syscall",
    "crash",
    "harness",
]
WALL_FLOOR_S = 60.0
WALL_FACTOR = 6.0
_START_S = 60.0
_SLACK_S = 30.0
_WITHOUT: tuple[str, ...] = ()
"""Layers to do without: `landlock`, `seccomp`, `namespaces`. For tests of the refusal only."""

_BOOT = (
    "import sys; sys.path.append(sys.argv[2]); from hornbook.evaluate import _worker; "
    "sys.path.remove(sys.argv[2]); _worker.main()"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one program."""

    status: Status
    """`passed`; `wrong`: an AssertionError; `exception`: any other, SystemExit too; `cpu`, `wall`,
    `memory`, `output`: that limit was reached; `syscall`: killed for a forbidden system call;
    `crash`: ended without a verdict; `harness`: not the program's doing."""
    cpu_s: float
    """User and system time, with the sandbox's own 2 to 4 ms."""
    output: str
    """The first 64 KiB of its standard output and error, and the exception."""
    isolation: str
    """`landlock+seccomp+namespaces`, `landlock+seccomp`, or `none` (accepted as unsafe)."""
    tamper_proof: bool = False
    """False: the tests share the candidate's process, so one that means to can forge a pass."""

    @property
    def passed(self) -> bool:
        """Whether the program reached its end."""
        return self.status == "passed"


class _WorkerDiedError(Exception):
    pass


class _Worker:
    """One worker process and the frames to and from it."""

    def __init__(self) -> None:
        config = {"parent": os.getpid(), "without": _WITHOUT}
        root = str(Path(__file__).resolve().parents[2])
        # As -I, but for a fixed hash seed: the order of a set must not decide a verdict.
        flags = ["-s", "-S", "-P", "-B", "-X", "utf8"]
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", _BOOT, json.dumps(config), root],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0"},
            cwd="/",
            start_new_session=True,
        )
        try:
            self.layers = self._receive(time.monotonic() + _START_S)
            problem = self.layers.get("error")
        except _WorkerDiedError:
            self.kill()
            assert self._process.stderr is not None
            problem = self._process.stderr.read().decode("utf-8", "replace").strip()[-500:]
        if problem is not None:
            self.close()
            raise SandboxError(
                f"the sandbox's worker cannot start with {sys.executable}: {problem or 'no reason'}"
            )

    def run(self, program: str, cpu_s: float, wall_s: float, memory_mb: int) -> dict[str, Any]:
        """Has one program run.

        Raises:
            _WorkerDiedError: If the worker ended or stopped answering.
        """
        request = {"program": program, "cpu_s": cpu_s, "wall_s": wall_s, "memory_mb": memory_mb}
        body = json.dumps(request).encode()
        assert self._process.stdin is not None
        view = memoryview(struct.pack(">I", len(body)) + body)
        try:
            while view:
                view = view[os.write(self._process.stdin.fileno(), view) :]
        except OSError as error:
            raise _WorkerDiedError from error
        return self._receive(time.monotonic() + wall_s + _SLACK_S)

    def _receive(self, deadline: float) -> dict[str, Any]:
        body = self._read(struct.unpack(">I", self._read(4, deadline))[0], deadline)
        data = json.loads(body)
        assert isinstance(data, dict)
        return data

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        data = bytearray()
        while len(data) < size:
            left = deadline - time.monotonic()
            chunk = os.read(fd, size - len(data)) if left > 0 and poll.poll(left * 1000) else b""
            if not chunk:
                raise _WorkerDiedError
            data += chunk
        return bytes(data)

    def kill(self) -> None:
        """Ends the worker; the kernel ends its program with it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends the worker and frees its descriptors."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()


def _isolation(layers: dict[str, Any]) -> str:
    if layers["missing"]:
        return "none"
    return "landlock+seccomp+namespaces" if layers["namespaces"] else "landlock+seccomp"


def _refusal(layers: dict[str, Any]) -> str | None:
    if not layers["missing"]:
        return None
    reasons = "; ".join(f"{name}: {reason}" for name, reason in layers["missing"].items())
    return (
        f"model-written code cannot be run safely here, a layer is missing ({reasons}). Use a "
        "Linux kernel from 5.13 with Landlock on (`lsm=landlock,...` at boot), on x86-64 or "
        "aarch64, or a virtual machine or container with one. To run with resource limits alone, "
        "which does not protect this machine: --i-accept-unsafe-execution (accept_unsafe=True)"
    )


def require(accept_unsafe: bool = False) -> dict[str, Any]:
    """Finds out what there is and tries it, once a process; nothing of a model's is run.

    Args:
        accept_unsafe: Put up with missing layers.

    Returns:
        What `_worker` says of its layers.

    Raises:
        SandboxError: If a layer is missing or lets a canary out.
    """
    if sys.platform == "win32":
        raise SandboxError("programs cannot be run on Windows: use WSL or a Linux host")
    layers = _describe(_WITHOUT)
    refusal = _refusal(layers)
    if refusal is not None:
        if accept_unsafe:
            return layers
        raise SandboxError(refusal)
    fault = _self_test(_WITHOUT)
    if fault is not None:
        raise SandboxError(f"{fault}. Nothing was run; please report this with `status()`")
    return layers


@cache
def _describe(without: tuple[str, ...]) -> dict[str, Any]:
    worker = _Worker()
    worker.close()
    return worker.layers


# Each passes, or prints ESCAPED, if it gets out.
_CANARIES = {
    "read a file": "open({secret!r}).read()",
    "write a file": "open({target!r}, 'w')",
    "open a socket": "import socket; socket.socket()",
    "fork": "import os; os.fork() or os._exit(0)",
    "execute a program": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo ESC''APED'])",
    "signal its parent": "import os; os.kill(os.getppid(), 0)",
}
_CONTROL = "import csv, json; assert json.loads('[1]') == [1]"


@cache
def _self_test(without: tuple[str, ...]) -> str | None:
    """Lets canaries try to get out; returns what went wrong, if anything did."""
    with tempfile.TemporaryDirectory(prefix="hornbook-") as folder:
        Path(folder).chmod(0o777)
        secret, target = Path(folder, "secret"), Path(folder, "target")
        secret.write_text("secret")
        worker = _Worker()
        try:
            control = worker.run(_CONTROL, 10.0, WALL_FLOOR_S, 1024)
            if control["status"] != "passed":
                return f"the sandbox cannot run a harmless program: {control['output'].strip()}"
            for name, text in _CANARIES.items():
                program = text.format(secret=str(secret), target=str(target))
                result = worker.run(program, 10.0, WALL_FLOOR_S, 1024)
                if result["status"] in ("passed", "harness") or "ESCAPED" in result["output"]:
                    return f"the sandbox's self-test failed: a program could {name}"
            if target.exists():
                return "the sandbox's self-test failed: a program could write a file"
        except _WorkerDiedError:
            return "the sandbox's self-test failed: its worker ended"
        finally:
            worker.close()
    return None


def status() -> dict[str, Any]:
    """What this machine offers.

    Returns:
        `safe` (programs can be run), `isolation`, the layers (`rlimits`, `landlock`: its version,
        `seccomp`, `namespaces`, `user`), `missing` by name with the reason; `advice` if not safe.
    """
    try:
        layers = require(accept_unsafe=True)
        advice = _refusal(layers)
    except SandboxError as error:
        return {"safe": False, "isolation": "none", "missing": {}, "advice": str(error)}
    found = {"safe": advice is None, "isolation": _isolation(layers), **layers}
    return found if advice is None else {**found, "advice": advice}


def run_programs(
    programs: Sequence[str],
    *,
    timeout_s: float = 10.0,
    memory_mb: int = 1024,
    workers: int | None = None,
    wall_s: float | None = None,
    accept_unsafe: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Runs each program in a sandbox of its own.

    Args:
        programs: Python texts. Each is executed in a fresh module called `program`.
        timeout_s: CPU seconds for each, its threads together.
        memory_mb: Address space for each.
        workers: Processes at a time; all cores if None. Never changes an outcome.
        wall_s: Seconds of real time for each; `max(60, 6 * timeout_s)` if None.
        accept_unsafe: Run even where a layer is missing. Such outcomes say `isolation="none"`.
        progress: Called with (done, all) after each.

    Returns:
        One outcome a program, in order.

    Raises:
        ConfigError: If a limit makes no sense.
        SandboxError: If it cannot be done safely here; nothing was run.
    """
    if not timeout_s > 0 or (wall_s is not None and not wall_s > 0):
        raise ConfigError(f"timeout_s ({timeout_s}) and wall_s ({wall_s}) must be above 0")
    if memory_mb < 128:
        raise ConfigError(f"memory_mb is {memory_mb}: Python itself needs 128")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}: at least 1 is needed")
    wall_s = max(WALL_FLOOR_S, WALL_FACTOR * timeout_s) if wall_s is None else wall_s
    isolation = _isolation(require(accept_unsafe))
    crew = _Crew(programs, isolation, (timeout_s, wall_s, memory_mb))
    outcomes: list[Outcome | None] = [None] * len(programs)
    try:
        crew.start(min(workers or _cores(), len(programs)))
        for done in range(1, len(programs) + 1):
            item = crew.results.get()
            if isinstance(item, BaseException):
                raise item
            outcomes[item[0]] = item[1]
            if progress is not None:
                progress(done, len(programs))
    finally:
        crew.stop()
    return [outcome for outcome in outcomes if outcome is not None]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Crew:
    """A thread for each worker; each starts its own, because the worker ends with that thread."""

    def __init__(
        self, programs: Sequence[str], isolation: str, limits: tuple[float, float, int]
    ) -> None:
        self.results: queue.SimpleQueue[tuple[int, Outcome] | BaseException] = queue.SimpleQueue()
        self._programs = programs
        self._isolation = isolation
        self._limits = limits
        self._next = iter(range(len(programs)))
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        self._stopped = False

    def start(self, count: int) -> None:
        atexit.register(self.stop)
        for _ in range(count):
            thread = threading.Thread(target=self._serve, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for worker in self._workers:
                worker.kill()
        for thread in self._threads:
            thread.join()
        atexit.unregister(self.stop)

    def _hire(self) -> _Worker:
        worker = _Worker()
        with self._lock:
            self._workers.append(worker)
            if self._stopped:
                worker.kill()
        return worker

    def _dismiss(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.remove(worker)
        worker.close()

    def _serve(self) -> None:
        worker: _Worker | None = None
        try:
            while (index := self._take()) is not None:
                result: dict[str, Any] = {
                    "status": "harness",
                    "cpu_s": 0.0,
                    "output": "the sandbox's worker ended twice on this program",
                }
                for _ in range(2):  # a worker may have been killed from outside
                    worker = worker or self._hire()
                    try:
                        result = worker.run(self._programs[index], *self._limits)
                        break
                    except _WorkerDiedError:
                        self._dismiss(worker)
                        worker = None
                self.results.put((index, Outcome(**result, isolation=self._isolation)))
        except BaseException as error:
            self.results.put(error)
        finally:
            if worker is not None:
                self._dismiss(worker)

    def _take(self) -> int | None:
        with self._lock:
            return None if self._stopped else next(self._next, None)
