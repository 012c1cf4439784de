"""The process that runs programs: it forks their processes, waits for them and reports.

Started by the supervisor (Rust, `hornbook_core::sandbox`), one a core, with an almost empty
environment and no installed package in reach. It is single-threaded, preloads the common modules
once and holds no secret: programs and tests come as descriptors that only the process they are for
reads, so nothing of one program is in the memory of the next. A program costs a fork or two, not
the start of an interpreter.

Where the kernel permits, the worker is the first process of a pid namespace, and so is each process
it forks: if it ends, for whatever reason, the kernel ends everything below it.

A request on the socket that is its standard input is one byte (`T`: the tests are trusted, and one
process may run those of many programs; `!`: anything else), with descriptors beside it. Answers
are a big-endian length and so many bytes: first JSON that says which layers there are; then two a
program, `_STARTED` and `_ENDED`: its processes, with their pidfds, and how they ended.
"""

import _socket
import _thread
import builtins
import gc
import importlib
import json
import os
import resource
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any

from hornbook.evaluate import _codec, _layers, _split

# What programs for problems import, as far as it is cheap: each page that a module fills makes
# every fork dearer, and one that is not here is imported when asked for. For the same reason
# nothing here imports `socket`, `pathlib` or `platform`, which bring much with them.
_PRELOADED = """
abc bisect collections collections.abc contextlib copy enum functools heapq io itertools
json keyword math numbers operator os random re string struct sys textwrap time types typing
"""
_FIRST, _SECOND = 3, 4
"""The descriptors a program's process is given beside the standard ones."""
_CHUNK = 1 << 16


# After a fork the worker's own writes copy pages too: what it does for every program is plain.
_LENGTH, _FD = struct.Struct(">I"), struct.Struct("i")
_STARTED = struct.Struct("=id")
"""Of each process, after the token: its number, and the CPU seconds it had used before."""
_ENDED = struct.Struct("=idQ?")
"""Of each process: its code as in `subprocess`, CPU seconds, resident KiB, whether it lives on."""


def _open_socket(fd: int) -> _socket.socket:
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)


def _send(socket: _socket.socket, data: bytes, fds: list[int]) -> int:
    """Sends bytes with descriptors beside them; how many bytes went."""
    rights = b"".join([_FD.pack(fd) for fd in fds])
    beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
    return socket.sendmsg([data], beside)


def _receive(socket: _socket.socket, size: int) -> tuple[bytes, list[int]]:
    """At most so many bytes, and at most four descriptors beside them."""
    data, beside, _, _ = socket.recvmsg(size, _socket.CMSG_LEN(4 * _FD.size))
    fds = [fd for *_, rights in beside for (fd,) in _FD.iter_unpack(rights)]
    return data, fds


class _Socket:
    """Frames to and from the supervisor."""

    def __init__(self) -> None:
        self._socket = _open_socket(os.dup(0))

    def send(self, body: bytes, fds: list[int]) -> None:
        frame = _LENGTH.pack(len(body)) + body
        sent = _send(self._socket, frame, fds)
        if sent < len(frame):
            self._socket.sendall(frame[sent:])

    def receive(self) -> tuple[bool, list[int]] | None:
        """Whether the next program's tests are trusted, and its descriptors.

        None once the supervisor is gone.
        """
        head, fds = _receive(self._socket, 1)
        return (head == b"T", fds) if head else None

    def close(self) -> None:
        self._socket.close()


class _Layers:
    """What this kernel offers, prepared once so that a process only switches it on."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.missing: dict[str, str] = {}
        self.machine = os.uname().machine
        self.linux = sys.platform == "linux"
        self.abi = 0 if "landlock" in config["without"] else _layers.landlock_abi()
        if not self.abi:
            self.missing["landlock"] = "this kernel has no Landlock, or it is switched off"
        self.seccomp = "seccomp" not in config["without"] and _layers.seccomp_available()
        if not self.seccomp:
            self.missing["seccomp"] = f"no system-call filter for {sys.platform}-{self.machine}"
        self.user = _become_nobody() if self.linux else "own"
        spaces = self.linux and "namespaces" not in config["without"]
        self.namespaces = _layers.unshare_namespaces() if spaces else []
        self.memory_mb = config["memory_mb"]
        # The supervisor acts first, by the process's own clock.
        self.cpu = (int(config["cpu_s"]) + 2,) * 2
        self.parent = 0
        self.here = self.null = self.ruleset = -1
        self.filter: Any = None
        if self.linux:
            _layers.die_with_parent(config["parent"])  # again: both may clear it

    def describe(self) -> dict[str, Any]:
        return {
            "rlimits": True,
            "landlock": self.abi,
            "seccomp": self.seccomp,
            "namespaces": self.namespaces,
            "user": self.user,
            "missing": self.missing,
        }

    def prepare(self) -> None:
        """Puts on this process what its children inherit, and makes ready what they put on.

        Limits on memory and files are the same for all; the filter here still lets it fork.
        """
        self.null = os.open(os.devnull, os.O_RDONLY)
        if self.abi:
            self.ruleset = _layers.landlock_ruleset(self.abi, _layers.readable_paths())
        if self.namespaces:
            self.here = _layers.own_pid_namespace()
        else:
            self.parent = os.getpid()  # otherwise it is outside what its children see
        limits = {
            "RLIMIT_AS": self.memory_mb << 20,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }
        for name, value in limits.items():
            number = getattr(resource, name, None)
            if number is not None:
                with suppress(ValueError, OSError):  # macOS knows names that it does not heed
                    resource.setrlimit(number, (value, value))
        if not self.linux:
            return
        _layers.drop_ambient_capabilities()
        _layers.no_new_privileges()
        if self.abi and self.namespaces:
            # Once for all: the kernel copies hundreds of rules each time. Where processes see each
            # other each puts it on by itself, because it also keeps them from tracing another.
            self._restrict()
        if self.seccomp:
            _layers.seccomp_install(
                _layers.seccomp_prepare(_layers.seccomp_worker_filter(self.machine))
            )
            if self.namespaces:  # every program is the first process of its own
                self._make_filter(1)

    def _restrict(self) -> None:
        _layers.landlock_restrict(self.ruleset)
        os.close(self.ruleset)
        self.ruleset = -1

    def _make_filter(self, pid: int, receives: bool = False) -> None:
        code = _layers.seccomp_program_filter(self.machine, pid, receives)
        self.filter = _layers.seccomp_prepare(code)

    def fork(self) -> int:
        """As `os.fork`, into a pid namespace if there are any."""
        if not self.namespaces:
            return _layers.fork()
        _layers.next_child_apart()
        pid = _layers.fork()
        if pid:
            _layers.next_child_here(self.here)
        return pid

    def enter(self, lasting: bool) -> None:
        """Puts every layer on the calling process; there is no way back.

        Args:
            lasting: It sets its limit of CPU time itself, anew for each program, and is handed
                descriptors.
        """
        if not lasting:
            resource.setrlimit(resource.RLIMIT_CPU, self.cpu)
        if self.missing:
            os.setsid()  # it may start others, to be killed as a group
        if not self.linux:
            return
        _layers.drop_capabilities()
        if not self.namespaces:  # otherwise the kernel does it unasked
            _layers.die_with_parent(self.parent)
        if self.ruleset >= 0:
            self._restrict()
        if self.seccomp:
            if lasting or self.filter is None:
                self._make_filter(os.getpid(), lasting)
            _layers.seccomp_install(self.filter)


def _become_nobody() -> str:
    """Leaves root for the user `nobody`, unless that user could not read the standard library."""
    if os.geteuid() != 0:
        return "own"
    folder = os.path.realpath(os.__file__)
    while folder != "/":
        folder = os.path.dirname(folder)
        if os.stat(folder).st_mode & 0o005 != 0o005:
            return "root without capabilities"
    try:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    except OSError:
        return "root without capabilities"
    return "nobody"


_Part = Callable[[ModuleType, bytes, bytes], None]


def _fork(
    part: _Part,
    token: bytes,
    layers: _Layers,
    text: int | None,
    out: int,
    kept: list[int],
) -> int:
    """Forks a process that puts every layer on and becomes one part of a program.

    Args:
        part: What it does then.
        token: What its verdict begins with; the candidate's process of a split has none.
        layers: The layers.
        text: Where it reads its task from; None if it lasts and is handed one task after another.
        out: Where it prints.
        kept: Descriptors that become `_FIRST` and `_SECOND`.

    Returns:
        Its number, in the worker.
    """
    pid = layers.fork()
    if pid:
        return pid
    leave = os._exit
    try:
        _become(part, token, layers, text, out, kept)
    finally:
        leave(1)  # a program that broke the interpreter must not come back as a worker


def _become(
    part: _Part,
    token: bytes,
    layers: _Layers,
    text: int | None,
    out: int,
    kept: list[int],
) -> None:
    try:
        task = b"" if text is None else _read(text)
        rules = [layers.ruleset] if layers.ruleset >= 0 else []
        wanted = [layers.null, out, out, *kept, *rules]
        copies = [os.dup(fd) for fd in wanted]  # out of the way of the numbers they move to
        for number, copy in enumerate(copies):
            os.dup2(copy, number)
        layers.ruleset = len(wanted) - 1 if rules else -1
        os.closerange(len(wanted), 64)
        layers.enter(lasting=text is None)
        module = _new_module()
        gc.enable()
        del layers
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode()[:2000])
        if token:
            os.write(_FIRST, token + b"H0")
        return
    part(module, task, token)


def _read(text: int) -> bytes:
    chunks = [os.read(text, _CHUNK)]
    while len(chunks[-1]) == _CHUNK:
        chunks.append(os.read(text, _CHUNK))
    return b"".join(chunks)


def _new_module() -> ModuleType:
    """The namespace a program runs in."""
    module = ModuleType("program")
    module.__dict__["__builtins__"] = builtins.__dict__  # not the copy of whoever runs it
    sys.modules["program"] = sys.modules["__main__"] = module
    return module


def _alone(module: ModuleType, task: bytes, token: bytes) -> None:
    """A program that tests itself.

    What the program can replace (modules, builtins, hooks) is not looked up after it ran: the
    functions and messages are locals made before. A program that walks the frames finds them.
    """
    write, leave = os.write, os._exit
    passed, wrong, exception, memory = (token + kind for kind in (b"P0", b"W0", b"E0", b"M0"))
    assertion_error, memory_error = AssertionError, MemoryError
    try:
        text = task.decode("utf-8", "surrogatepass")
        exec(compile(text, "<program>", "exec", dont_inherit=True), module.__dict__)
    except assertion_error as error:
        write(_FIRST, wrong)
        failure: BaseException = error
    except memory_error as error:
        write(_FIRST, memory)
        failure = error
    except BaseException as error:
        write(_FIRST, exception)
        failure = error
    else:
        write(_FIRST, passed)
        _flush()
        leave(0)
    _flush()
    _describe(failure)
    leave(0)


def _candidate(module: ModuleType, task: bytes, _token: bytes) -> None:
    """A program whose tests are elsewhere."""
    _split.serve(module, task.decode("utf-8", "surrogatepass"), _FIRST)
    _flush()
    os._exit(0)


def _tests(module: ModuleType, task: bytes, token: bytes) -> None:
    """The tests of a program that is elsewhere."""
    _judge(module, task, token, _FIRST, _SECOND)
    os._exit(0)


def _judge(module: ModuleType, task: bytes, token: bytes, report: int, channel: int) -> bytes:
    """Runs the tests and reports the verdict; which one."""
    entry_point, preamble, tests, calls = json.loads(task)
    remote = _split.Remote(channel, entry_point)
    failure: BaseException | None = None
    try:
        _split.judge(module, preamble, tests, calls, remote)
        kind = b"P"
    except AssertionError as error:
        kind, failure = b"W", error
    except MemoryError as error:
        kind, failure = b"M", error
    except BaseException as error:
        kind, failure = b"E", error
    # Even if the tests swallowed it.
    kind = remote.fault or kind
    os.write(report, token + kind + (b"1" if remote.plain else b"0"))
    _flush()
    if remote.fault is not None:
        failure = _codec.ProtocolError(remote.reason)
    if failure is not None:
        _describe(failure)
    return kind


def _used(usage: resource.struct_rusage) -> tuple[float, int]:
    """CPU seconds, and the most resident memory in KiB."""
    kb = usage.ru_maxrss if sys.platform == "linux" else usage.ru_maxrss // 1024
    return usage.ru_utime + usage.ru_stime, kb


_TOKEN = 32
_DONE = struct.Struct("=d?")
_LASTS = 1000
"""Programs whose tests one process runs at most."""
_GROWTH_KB = 64 << 10
"""Resident memory that a lasting process may gain before another takes its place."""


def _lasting(cpu_s: int, _module: ModuleType, _task: bytes, _token: bytes) -> None:
    """Runs trusted tests of one program after another, as they are handed over.

    A candidate cannot reach this process but by plain data, and the tests are known not to harm
    each other, so a fork for each would only cost time. What tests can leave behind is put back or,
    if it is not among what is looked at here, makes this the process's last program.
    """
    random = importlib.import_module("random")
    streams, builtin = (sys.stdout, sys.stderr), sys.modules["builtins"].__dict__
    saved, depth = dict(builtin), sys.getrecursionlimit()
    link = _open_socket(_FIRST)
    start, kb = _used(resource.getrusage(resource.RUSAGE_SELF))
    most = kb + _GROWTH_KB
    for left in reversed(range(_LASTS)):
        token, fds = _receive(link, _TOKEN)
        if not token:
            break
        out, report, text, channel = fds
        resource.setrlimit(resource.RLIMIT_CPU, (int(start) + 1 + cpu_s, -1))
        os.dup2(out, 1)
        os.dup2(out, 2)
        kind = _judge(_new_module(), _read(text), token, report, channel)
        os.dup2(0, 1)
        os.dup2(0, 2)
        for fd in fds:
            os.close(fd)
        random.seed(0)
        before = start
        start, kb = _used(resource.getrusage(resource.RUSAGE_SELF))
        again = (
            left > 0
            and kind != b"M"
            and builtin == saved
            and (sys.stdout, sys.stderr) == streams
            and sys.getrecursionlimit() == depth
            and _thread._count() == 0
            and kb < most
        )
        os.write(_FIRST, _DONE.pack(start - before, again))
        if not again:
            break
    os._exit(0)


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


_Ended = tuple[int, float, int, bool]
"""The fields of `_ENDED`."""


class _Lasting:
    """The process that runs the trusted tests of many programs, seen from the worker."""

    def __init__(self, layers: _Layers) -> None:
        self._link, theirs = _socket.socketpair()
        part = partial(_lasting, layers.cpu[0])
        self.pid = _fork(part, b"", layers, None, layers.null, [theirs.fileno()])
        theirs.close()
        self.cpu_s = 0.0

    def ask(self, token: bytes, fds: list[int]) -> None:
        """Hands over a program's tests."""
        with suppress(OSError):  # it is gone: `answer` finds out
            _send(self._link, token, fds)

    def answer(self) -> _Ended:
        """Waits until it is done, or has ended."""
        try:
            said = self._link.recv(_DONE.size)
        except OSError:
            said = b""
        if said:
            used, again = _DONE.unpack(said)
            self.cpu_s += used
            if again:
                return 0, used, 0, True
        _, (code, cpu_s, kb, lives) = _reap(self.pid, group=True)
        self._link.close()
        return code, used if said else cpu_s - self.cpu_s, kb, lives


def _reap(which: int, *, group: bool) -> tuple[int, _Ended]:
    """Waits for a child, any if it is -1: its number and how it ended.

    Args:
        which: Its number.
        group: Whether to end what it may have started, where it is no group of the kernel's own.
    """
    pid, code, usage = os.wait4(which, 0)
    if group:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, 9)
    return pid, (os.waitstatus_to_exitcode(code), *_used(usage), False)


def _run(fds: list[int], layers: _Layers, link: _Socket, lasting: _Lasting | None) -> bool:
    """Forks one program's processes and sees them to their ends.

    Args:
        fds: Where it prints, where its verdict goes, its text, and its tests if they are apart.
        layers: What its processes put on.
        link: To the supervisor.
        lasting: What runs its tests, if they are trusted.

    Returns:
        Whether `lasting` lives on.
    """
    out, report, text, *tests = fds
    if tests:
        ours, theirs = (end.detach() for end in _socket.socketpair())
        fds += [ours, theirs]
        pids = [_fork(_candidate, b"", layers, text, out, [theirs])]
        token = os.urandom(_TOKEN // 2).hex().encode()  # only now: the candidate has no copy
        if lasting:
            lasting.ask(token, [out, report, tests[0], ours])
            pids.append(lasting.pid)
        else:
            pids.append(_fork(_tests, token, layers, tests[0], out, [report, ours]))
    else:
        token = os.urandom(_TOKEN // 2).hex().encode()
        pids = [_fork(_alone, token, layers, text, out, [report])]
    for fd in fds:
        os.close(fd)
    pidfds = [os.pidfd_open(pid) for pid in pids] if layers.linux else []
    before = lasting.cpu_s if lasting else 0.0
    # The tests' process is the last. Nothing of the candidate's has run before.
    started = [_STARTED.pack(pid, before if pid == pids[-1] else 0.0) for pid in pids]
    link.send(b"".join([token, *started]), pidfds)
    for fd in pidfds:
        os.close(fd)
    ended: dict[int, _Ended] = {}
    if lasting:  # first: it lets go of the candidate, which then ends
        ended[lasting.pid] = lasting.answer()
    while len(ended) < len(pids):
        pid, how = _reap(-1, group=not layers.namespaces)
        if pid in pids:
            ended[pid] = how
    link.send(b"".join([_ENDED.pack(*ended[pid]) for pid in pids]), [])
    return lasting is not None and ended[lasting.pid][3]


def main() -> None:
    """Serves requests until the supervisor is gone."""
    config = json.loads(sys.argv[1])
    os.setsid()  # Ctrl-C is for the supervisor
    os.closerange(3, 1 << 16)
    link = _Socket()
    if sys.platform == "linux":
        _layers.die_with_parent(config["parent"])
    try:
        layers = _Layers(config)
        if layers.namespaces:
            _become_first(link)
        for name in _PRELOADED.split():
            importlib.import_module(name)
        layers.prepare()
    except Exception as error:
        link.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode(), [])
        return
    os.dup2(layers.null, 0)
    for name in [name for name in sys.modules if name.split(".")[0] == "hornbook"]:
        del sys.modules[name]
    os.environ.clear()
    sys.argv[:] = [""]
    importlib.import_module("random").seed(0)  # one program's luck is everyone's
    _rehearse()
    gc.collect()
    fillers = _fill_holes()
    gc.freeze()
    gc.disable()
    link.send(json.dumps(layers.describe()).encode(), [])
    lasting: _Lasting | None = None
    assert fillers  # kept for as long as programs are run
    while (request := link.receive()) is not None:
        trusted, fds = request
        if trusted and lasting is None:
            lasting = _Lasting(layers)
        if not _run(fds, layers, link, lasting if trusted else None) and trusted:
            lasting = None


_EXAMPLE = '''
from typing import Dict, List, Optional
import math

def helper(text: str, sep: str = ",") -> List[str]:
    """Words."""
    return [word.strip() for word in text.split(sep) if word]

def example(numbers: List[float], limit: Optional[int] = None) -> Dict[str, float]:
    """ Does what answers do.
    >>> example([1.0])
    {'a': 1.0}
    """
    found = {}
    for i, number in enumerate(sorted(numbers, key=lambda x: -x)):
        if limit is not None and i >= limit or number != number:
            break
        found[chr(ord("a") + i % 26)] = math.floor(number) + 0.5
    assert len(found) <= len(numbers), f"{found} of {numbers}"
    return found if helper("a,b") == ["a", "b"] else {}
'''


def _rehearse() -> None:
    """Does in this process, many times, what each program's process will do once.

    What Python does for the first time it prepares: code is specialized, caches are filled. In a
    process just forked each page of memory that this touches costs a copy.
    """
    nonce = bytes(_codec.NONCE)
    requests = [["names"], ["call", "example", [["l", 1.5, 2]], [["limit", 3]]]]
    for _ in range(50):
        module = ModuleType("program")
        _split.run_in(module, _EXAMPLE)
        for request in requests:
            _codec.load(_split.reply(module, nonce, _codec.dump(nonce, request)[12:], None)[12:])


# How CPython's allocator of small objects lays them out (`obmalloc.c`, 3.10 and later): pools of
# one size class each, aligned, with a header. Wrong numbers would cost some memory, nothing else.
_POOL, _POOL_HEADER, _CLASS, _LARGEST = 1 << 14, 48, 16, 512


def _fill_holes() -> list[object]:
    """Objects for every gap that is left among those of their size.

    What a program's process makes then stands in pages of its own, side by side, instead of in the
    gaps of many pages, each of which a write would have to copy.
    """
    fillers: list[object] = []
    makers: list[Callable[[], object]] = [object, lambda: 10**10 + len(fillers)]
    empty = sys.getsizeof(b"")
    makers += [partial(bytes, n - empty) for n in range(3 * _CLASS, _LARGEST + 1, _CLASS)]
    for make in makers:
        for _ in range(_POOL // _CLASS * 4):
            fillers.append(make())
            if id(fillers[-1]) % _POOL == _POOL_HEADER:
                break  # the first of a pool that was empty
    return fillers


def _become_first(link: _Socket) -> None:
    """Returns in the first process of the new pid namespace; this one waits for it and ends."""
    pid = os.fork()
    if pid:
        link.close()
        os.close(0)
        os.waitpid(pid, 0)
        os._exit(0)
    _layers.die_with_parent(0)
