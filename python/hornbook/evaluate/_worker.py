"""The process that runs programs: it forks one child a program, watches it and reports.

Started by `sandbox`, one a core, with an almost empty environment and no installed package in
reach. It is single-threaded, preloads the common modules once and holds no secret; so a program
costs a fork (about 4 ms of CPU with every layer), not the start of an interpreter.

Frames on its standard input and output are a big-endian length and JSON. The first one out says
which layers there are.
"""

import gc
import importlib
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from hornbook.evaluate import _layers

OUTPUT_KEPT = 64 * 1024
OUTPUT_KILLS = 4 * 1024 * 1024
_VERDICT_GRACE_S = 1.0
_PRELOADED = """
abc array base64 bisect calendar cmath collections collections.abc contextlib copy ctypes
dataclasses datetime decimal enum fractions functools hashlib heapq io itertools json keyword
linecache math numbers operator os pprint queue random re statistics string struct sys textwrap
threading time traceback types typing unicodedata uuid warnings
"""
_STATUS = {b"P": "passed", b"W": "wrong", b"E": "exception", b"M": "memory", b"H": "harness"}


def _send(data: dict[str, Any]) -> None:
    body = json.dumps(data).encode()
    view = memoryview(struct.pack(">I", len(body)) + body)
    while view:
        view = view[os.write(1, view) :]


def _receive() -> dict[str, Any] | None:
    head = _read(4)
    if head is None:
        return None
    body = _read(struct.unpack(">I", head)[0])
    return None if body is None else json.loads(body)


def _read(size: int) -> bytes | None:
    chunks = []
    while size:
        chunk = os.read(0, min(size, 1 << 20))
        if not chunk:
            return None
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


class _Layers:
    """What this kernel offers, prepared once so that a child only switches it on."""

    def __init__(self, without: list[str], parent: int) -> None:
        self.missing: dict[str, str] = {}
        self.machine = platform.machine()
        self.linux = sys.platform == "linux"
        self.ruleset: int | None = None
        self.abi = 0 if "landlock" in without else _layers.landlock_abi()
        if self.abi:
            self.ruleset = _layers.landlock_ruleset(self.abi, _layers.readable_paths())
        else:
            self.missing["landlock"] = "this kernel has no Landlock, or it is switched off"
        self.seccomp = "seccomp" not in without and _layers.seccomp_available()
        if not self.seccomp:
            self.missing["seccomp"] = f"no system-call filter for {sys.platform}-{self.machine}"
        self.user = _become_nobody() if self.linux else "own"
        spaces = self.linux and "namespaces" not in without
        self.namespaces = _layers.unshare_namespaces() if spaces else []
        if self.linux:
            _layers.die_with_parent(parent)  # again: both may clear it

    def describe(self) -> dict[str, Any]:
        return {
            "rlimits": True,
            "landlock": self.abi,
            "seccomp": self.seccomp,
            "namespaces": self.namespaces,
            "user": self.user,
            "missing": self.missing,
        }

    def enter(self, parent: int, cpu_s: float, memory_mb: int) -> None:
        """Puts every layer on the calling process; there is no way back."""
        cpu = int(cpu_s) + 2  # the worker acts first, by the process's own clock
        limits = {
            "RLIMIT_CPU": cpu,
            "RLIMIT_AS": memory_mb << 20,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }
        for name, value in limits.items():
            number = getattr(resource, name, None)
            if number is not None:
                resource.setrlimit(number, (value, value))
        if not self.linux:
            return
        _layers.drop_capabilities()
        _layers.no_new_privileges()
        _layers.die_with_parent(parent)
        if self.ruleset is not None:
            _layers.landlock_restrict(self.ruleset)
            os.close(self.ruleset)
        if self.seccomp:
            _layers.seccomp_install(_layers.seccomp_filter(self.machine, os.getpid()))


def _become_nobody() -> str:
    """Leaves root for the user `nobody`, unless that user could not read the standard library."""
    if os.geteuid() != 0:
        return "own"
    if any(path.stat().st_mode & 0o005 != 0o005 for path in Path(os.__file__).resolve().parents):
        return "root without capabilities"
    try:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    except OSError:
        return "root without capabilities"
    return "nobody"


def _child(
    request: dict[str, Any], layers: _Layers, parent: int, out: int, report: int
) -> NoReturn:
    """Runs one program in a forked process and reports its verdict; never returns.

    What the program can replace (modules, builtins, hooks) is not looked up after it ran: the
    functions and messages are locals made before. A program that walks the frames finds them.
    """
    token = bytes.fromhex(request["token"])
    write, leave = os.write, os._exit
    passed, wrong, exception, memory = (token + kind for kind in (b"P", b"W", b"E", b"M"))
    assertion_error, memory_error = AssertionError, MemoryError
    try:
        if layers.linux:
            _layers.die_with_parent(parent)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        wanted = [out, out, report] + ([] if layers.ruleset is None else [layers.ruleset])
        copies = [os.dup(fd) for fd in wanted]  # out of the way of the numbers they move to
        for number, copy in enumerate(copies, 1):
            os.dup2(copy, number)
        report = 3
        if layers.ruleset is not None:
            layers.ruleset = 4
        os.closerange(5, 256)
        layers.enter(parent, request["cpu_s"], request["memory_mb"])
        module = ModuleType("program")
        sys.modules["program"] = sys.modules["__main__"] = module
        importlib.import_module("random").seed(0)  # one program's luck is everyone's
        sys.argv = [""]
        gc.enable()
        text = request.pop("program")
        del request, layers
    except BaseException as error:
        write(2, f"{type(error).__name__}: {error}".encode()[:2000])
        write(report, token + b"H")
        leave(1)
    try:
        exec(compile(text, "<program>", "exec", dont_inherit=True), module.__dict__)
    except assertion_error as error:
        write(report, wrong)
        failure: BaseException = error
    except memory_error as error:
        write(report, memory)
        failure = error
    except BaseException as error:
        write(report, exception)
        failure = error
    else:
        write(report, passed)
        _flush()
        leave(0)
    _flush()
    _describe(failure)
    leave(0)
    raise SystemExit  # unreachable: says so to the type checker


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        pass


def _describe(failure: BaseException) -> None:
    """Prints what went wrong. The verdict is out already: this may run the program's own code."""
    try:
        text = f"{type(failure).__name__}: {failure}"[:2000]
        os.write(2, b"\n" + text.encode("utf-8", "backslashreplace") + b"\n")
    except BaseException:
        pass


def _run(request: dict[str, Any], layers: _Layers) -> dict[str, Any]:
    """Forks a child for one program and sees it to its end."""
    me = os.getpid()
    token = os.urandom(16)
    request["token"] = token.hex()
    out, out_child = os.pipe()
    report, report_child = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            _child(request, layers, me, out_child, report_child)
        finally:
            os._exit(1)  # a program that broke the interpreter must not come back as a worker
    os.close(out_child)
    os.close(report_child)
    del request["program"]
    try:
        return _watch(pid, token, out, report, start, request["cpu_s"], request["wall_s"])
    finally:
        os.close(out)
        os.close(report)


def _watch(
    pid: int, token: bytes, out: int, report: int, start: float, cpu_s: float, wall_s: float
) -> dict[str, Any]:
    """Waits for the child, within its limits; kills what is left of it; names the outcome."""
    kept, total, verdict = bytearray(), 0, bytearray()
    killed: str | None = None
    deadline = start + wall_s
    clock = (~pid << 3) | 2  # the CPU-time clock of that process (see clock_getcpuclockid)
    poll = select.poll()
    pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    for fd in (0, out, report) if pidfd is None else (0, out, report, pidfd):
        poll.register(fd, select.POLLIN)
    for fd in (out, report):
        os.set_blocking(fd, False)

    def drain(fd: int) -> None:
        nonlocal total
        while total <= OUTPUT_KILLS:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return
            if not data:
                poll.unregister(fd)
                return
            total += len(data)  # of both: neither may be flooded
            if fd == out:
                kept.extend(data[: OUTPUT_KEPT - len(kept)])
            else:
                verdict.extend(data[: len(token) + 1 - len(verdict)])

    waited: tuple[int, int, Any] = (0, 0, None)
    while not waited[0]:
        if killed is None:
            now = time.monotonic()
            try:
                used = time.clock_gettime(clock) if pidfd is not None else 0.0
            except OSError:
                used = 0.0  # it has just ended
            if total > OUTPUT_KILLS:
                killed = "output"
            elif used > cpu_s:
                killed = "cpu"
            elif now >= deadline:
                killed = "wall"
            if killed:
                _kill(pid)
        if killed is None:
            pause = min(deadline - now, max(cpu_s - used, 0.005))
            if pidfd is None:
                pause = min(pause, 0.02)
            for fd, event in poll.poll(pause * 1000 + 1):
                if fd == 0 and event & (select.POLLHUP | select.POLLIN):
                    _kill(pid)
                    os._exit(0)  # whoever asked is gone
                if fd in (out, report):
                    drain(fd)
            if len(verdict) > len(token):
                deadline = min(deadline, time.monotonic() + _VERDICT_GRACE_S)
        waited = os.wait4(pid, 0 if killed else os.WNOHANG)
    _kill_group(pid)
    for fd in (out, report):
        with suppress(KeyError):  # at its end already
            drain(fd)
    if pidfd is not None:
        os.close(pidfd)
    _, code, usage = waited
    used = usage.ru_utime + usage.ru_stime
    kind = bytes(verdict[len(token) :]) if verdict.startswith(token) else b""
    status = _STATUS.get(kind)
    if total > OUTPUT_KILLS:
        status = "output"
    elif status in (None, "passed") and (killed == "cpu" or used > cpu_s):
        status = "cpu"
    elif status is None:
        status = killed or _death(code)
        if killed is None:
            kept = kept[: OUTPUT_KEPT - 200] + _how(code).encode()
    return {
        "status": status,
        "cpu_s": used,
        "output": kept.decode("utf-8", "replace"),
    }


def _death(code: int) -> str:
    number = os.WTERMSIG(code) if os.WIFSIGNALED(code) else 0
    return {getattr(signal, "SIGSYS", -1): "syscall", signal.SIGXCPU: "cpu"}.get(number, "crash")


def _how(code: int) -> str:
    if os.WIFSIGNALED(code):
        return f"\nended by signal {os.WTERMSIG(code)} ({signal.strsignal(os.WTERMSIG(code))})\n"
    return f"\nended without a verdict (exit code {os.WEXITSTATUS(code)})\n"


def _kill(pid: int) -> None:
    _kill_group(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def main() -> None:
    """Serves requests until standard input ends."""
    config = json.loads(sys.argv[1])
    if sys.platform == "linux":
        _layers.die_with_parent(config["parent"])
    for name in _PRELOADED.split():
        importlib.import_module(name)
    try:
        layers = _Layers(config["without"], config["parent"])
    except Exception as error:
        _send({"error": f"{type(error).__name__}: {error}"})
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "hornbook"]:
        del sys.modules[name]
    os.environ.clear()
    os.chdir("/")
    gc.collect()
    gc.freeze()
    gc.disable()
    _send(layers.describe())
    while (request := _receive()) is not None:
        _send(_run(request, layers))
