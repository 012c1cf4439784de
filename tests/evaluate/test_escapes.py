"""Attempts to get out of the sandbox or to harm the host, and attempts to fake a verdict.

Each program passes, or prints ESCAPED, if its attempt succeeds. They run on both levels (with and
without namespaces), as this user and, if this is root, as an ordinary one. After each batch the
host is looked at: a secret must not have been printed, a folder must be as it was, and no process,
shared memory or limit must have changed. Attempts that fake a verdict run with their tests apart.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hornbook
from hornbook.evaluate import run_programs, sandbox, status
from hornbook.evaluate.sandbox import Program

SAFE = status()
pytestmark = pytest.mark.skipif(not SAFE["safe"], reason=str(SAFE.get("advice")))
SECRET = "the-secret-5b1c"

# name: (what it does, statuses that may come of it)
BLOCKED = ("exception",)
ATTEMPTS = {
    # file system
    "open": ("open(SECRET).read()", BLOCKED),
    "os.open": ("import os; os.read(os.open(SECRET, os.O_RDONLY), 100)", BLOCKED),
    "libc open": ("libc.open(SECRET.encode(), 0) >= 0 or fail()", BLOCKED),
    "list a folder": ("import os; os.listdir(HOST)", BLOCKED),
    "list the root": ("import os; os.listdir('/')", BLOCKED),
    "passwd": ("open('/etc/passwd').read()", BLOCKED),
    "environment of the parent": (
        "import os; open(f'/proc/{os.getppid()}/environ', 'rb').read()",
        BLOCKED,
    ),
    "memory of the parent": ("import os; open(f'/proc/{os.getppid()}/mem', 'rb')", BLOCKED),
    "own environment": ("import os; assert set(os.environ)", ("wrong",)),
    "own proc": ("open('/proc/self/environ').read()", BLOCKED),
    "installed packages": (
        "import os\n"
        "site = os.path.join(os.path.dirname(os.__file__), 'site-packages')\n"
        "names = os.listdir(site)\n"
        "for folder, _, files in os.walk(site):\n"
        "    for name in files:\n"
        "        open(os.path.join(folder, name)); print('ESCAPED')\n",
        ("passed", "exception"),  # names may be seen, nothing may be read
    ),
    "write": ("open(TARGET, 'w').write('x')", BLOCKED),
    "append": ("open(SECRET, 'a').write('x')", BLOCKED),
    "write in tmp": ("import tempfile; tempfile.NamedTemporaryFile()", BLOCKED),
    "write in shm": ("open('/dev/shm/hornbook-escape', 'w')", BLOCKED),
    "write in the standard library": (
        "import os; open(os.path.join(os.path.dirname(os.__file__), 'escape.py'), 'w')",
        BLOCKED,
    ),
    "unlink": ("import os; os.unlink(SECRET)", BLOCKED),
    "posix.unlink": ("import posix; posix.unlink(SECRET)", BLOCKED),
    "rename": ("import os; os.rename(SECRET, TARGET)", BLOCKED),
    "symlink": ("import os; os.symlink(SECRET, TARGET)", BLOCKED),
    "hard link": ("import os; os.link(SECRET, TARGET)", BLOCKED),
    "mkdir": ("import os; os.mkdir(TARGET)", BLOCKED),
    "chmod": ("import os; os.chmod(SECRET, 0o777)", BLOCKED),
    "utime": ("import os; os.utime(SECRET, (0, 0))", BLOCKED),
    "xattr": ("import os; os.setxattr(SECRET, 'user.a', b'x')", BLOCKED),
    "truncate": ("import os; os.truncate(SECRET, 0)", BLOCKED),
    "leaked descriptors": (
        "import os\n"
        "for fd in range(3, 256):\n"
        "    try:\n"
        "        print('ESCAPED', os.read(fd, 100))\n"
        "    except OSError: pass\n"
        "1 / 0",
        BLOCKED,
    ),
    # network
    "tcp to a local port": (
        "import socket; socket.create_connection(('127.0.0.1', PORT))",
        BLOCKED,
    ),
    "udp": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", BLOCKED),
    "unix socket": ("import socket; socket.socket(socket.AF_UNIX).connect('/run/a')", BLOCKED),
    "abstract socket": ("import socket; socket.socket(socket.AF_UNIX).bind('\\0a')", BLOCKED),
    "socketpair": ("import socket; socket.socketpair()", BLOCKED),
    "netlink": ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", BLOCKED),
    "io_uring": ("syscall(425, 1, 0)", ("syscall",)),
    # processes and the kernel
    "fork": ("import os; os.fork()", BLOCKED),
    "vfork by libc": ("libc.vfork() >= 0 or fail()", BLOCKED),
    "subprocess": ("import subprocess; subprocess.run(['/bin/true'], check=True)", BLOCKED),
    "posix_spawn": ("import os; os.posix_spawn('/bin/true', ['true'], {})", BLOCKED),
    "exec": ("import os; os.execv('/bin/sh', ['sh', '-c', 'echo ESC''APED'])", BLOCKED),
    "libc system": ("libc.system(b'true') == 0 or fail()", BLOCKED),
    "memfd and exec": ("import os; os.memfd_create('a')", BLOCKED),
    "fork bomb": ("import os\nwhile True: os.fork()", BLOCKED),
    "thread bomb": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(99,)).start()",
        ("exception", "memory", "cpu"),
    ),
    "kill the parent": ("import os; os.kill(os.getppid(), 9)", BLOCKED),
    "kill the caller": ("import os; os.kill(CALLER, 9)", BLOCKED),
    "kill everyone": ("import os; os.kill(-1, 9)", BLOCKED),
    "signal by tgkill": ("syscall(234, CALLER, CALLER, 0) == 0 or fail()", BLOCKED),
    "signal by fcntl owner": (
        "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, CALLER)",
        BLOCKED,
    ),
    "signal by pidfd": ("import os; os.pidfd_open(CALLER)", BLOCKED),
    "queued signal": ("libc.sigqueue(CALLER, 0, 0) == 0 or fail()", BLOCKED),
    "ptrace": ("libc.ptrace(16, CALLER, 0, 0)", ("syscall",)),
    "read a process": ("libc.process_vm_readv(CALLER, 0, 0, 0, 0, 0)", ("syscall",)),
    "unshare": ("libc.unshare(0x10000000)", ("syscall",)),
    "setns": ("libc.setns(1, 0)", ("syscall",)),
    "mount": ("libc.mount(0, 0, 0, 0, 0)", ("syscall",)),
    "bpf": ("syscall(321, 0, 0, 0)", ("syscall",)),
    "x32 calls": ("syscall(0x40000000 + 39)", ("syscall",)),
    "raise own limits": (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))",
        ("exception",),
    ),
    "limits of the caller": (
        "import resource; resource.prlimit(CALLER, resource.RLIMIT_NOFILE, (8, 8))",
        BLOCKED,
    ),
    "affinity of the caller": ("import os; os.sched_setaffinity(CALLER, {0})", BLOCKED),
    "priority of the caller": ("import os; os.setpriority(os.PRIO_PROCESS, CALLER, 19)", BLOCKED),
    "setuid": ("import os; os.setuid(12345)", BLOCKED),
    "new privileges": ("libc.prctl(1, 0, 0, 0, 0) == 0 or fail()", BLOCKED),
    "shared memory": ("libc.shmget(0, 4096, 0o1600) >= 0 or fail()", BLOCKED),
    "message queue": ("libc.msgget(0, 0o1600) >= 0 or fail()", BLOCKED),
    "key ring": ("syscall(248, 0, 0, 0, 0, 0)", ("syscall",)),
    "user fault": ("syscall(323, 0)", ("syscall",)),
    "host name": ("import socket; socket.sethostname('a')", BLOCKED),
    "terminal": ("open('/dev/tty', 'w')", BLOCKED),
    "type into the terminal": ("import fcntl; fcntl.ioctl(1, 0x5412, b'x')", BLOCKED),
    # more than the usual list
    "memory of the worker": (
        "open('/proc/1/mem', 'rb')",
        BLOCKED,
    ),
    "names of processes": ("import os; os.listdir('/proc')", BLOCKED),
    "descriptors in proc": ("import os; os.listdir('/proc/self/fd')", BLOCKED),
    "kernel log": ("libc.klogctl(3, 0, 0) >= 0 or fail()", BLOCKED),
    "a folder as the root": ("import os; os.chroot('/')", ("syscall",)),
    "open by handle": ("syscall(304, 0, 0, 0)", ("syscall",)),
    "a descriptor of another's": ("syscall(438, 3, 0, 0)", ("syscall",)),
    "performance counters": ("syscall(298, 0, 0, -1, -1, 0)", ("syscall",)),
    "clone3": ("syscall(435, 0, 0) >= 0 or fail()", BLOCKED),
    "clone with a namespace": ("syscall(56, 0x10000000 | 17, 0, 0, 0, 0) >= 0 or fail()", BLOCKED),
    "a new pid namespace": ("libc.unshare(0x20000000)", ("syscall",)),
    "the worker's socket": (
        "import socket\n"
        "for fd in range(64):\n"
        "    try: s = socket.socket(fileno=fd); s.send(b'!'); print('ESCAPED')\n"
        "    except OSError: pass\n"
        "1 / 0",
        BLOCKED,
    ),
    "send descriptors": (
        "import socket\nsocket.socket(fileno=1).sendmsg([b'!'])",
        BLOCKED,
    ),
    "wait for others": ("import os; os.wait()", BLOCKED),
    "leave the session": ("import os; os.setsid()", BLOCKED),
    "take back capabilities": (
        "import ctypes, struct\n"
        "all = struct.pack('=Ii', 0x20080522, 0), b'\\xff' * 24\n"
        "libc.capset(*all) == 0 or fail()",
        BLOCKED,
    ),
    "another Landlock domain": ("syscall(446, 3, 0) == 0 or fail()", BLOCKED),
    "import from scratch space": (
        "import sys; sys.path.insert(0, HOST)\nimport planted; print('ESCAPED')",
        BLOCKED,
    ),
    "a shared library of one's own": ("ctypes.CDLL(HOST + '/planted.so')", BLOCKED),
    "time of others": ("import time; time.clock_settime(time.CLOCK_REALTIME, 0)", BLOCKED),
    "scheduling class": (
        "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
        BLOCKED,
    ),
    "swap and mounts": ("open('/proc/mounts').read()", BLOCKED),
    "a terminal's escape in the exception": (
        "raise ValueError('\\x1b]0;ESC' 'APED\\x07')",
        BLOCKED,
    ),
    "inotify": ("libc.inotify_init() >= 0 or fail()", BLOCKED),
    "event descriptors by the thousand": (
        "import os\nfds = [os.pipe() for _ in range(1000)]",
        BLOCKED,
    ),
    "lock memory": ("libc.mlockall(3) == 0 or fail()", BLOCKED),
    "vmsplice": ("syscall(278, 1, 0, 0, 0) >= 0 or fail()", BLOCKED),
    # memory, time, output
    "two gigabytes": ("bytearray(2 << 30)", ("memory",)),
    "memory by libc": (
        "libc.malloc.restype = ctypes.c_void_p\nlibc.malloc(ctypes.c_size_t(1 << 32)) or fail()",
        BLOCKED,
    ),
    "pipe buffers": (
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 1 << 20)",
        BLOCKED,
    ),
    "a regular expression": ("import re; re.match(r'(a+)+$', 'a' * 64 + 'b')", ("cpu",)),
    "swallow everything": (
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
        ("cpu",),
    ),
    "disarm the alarm": ("import signal; signal.alarm(0)\nwhile True: pass", ("cpu",)),
    "output by descriptor": ("import os\nwhile True: os.write(1, bytes(65536))", ("output",)),
    "stack": (
        "import sys; sys.setrecursionlimit(10**9)\nf = lambda: f()\nf()",
        ("crash", "memory", "cpu", "exception"),
    ),
    "flood of the verdict": (
        "import os\nwhile True: os.write(3, bytes(65536))",
        ("output", "wall", "exception"),
    ),
    "close everything": ("import os; os.closerange(0, 256)", ("crash",)),
    # faking a verdict
    "os._exit": ("import os; os._exit(0)", ("crash",)),
    "sys.exit": ("import sys; sys.exit(0)", BLOCKED),
    "print a verdict": ("import os; os.write(3, b'P' * 17); os._exit(0)", ("crash",)),
    "patched assertion": (
        "import builtins; builtins.AssertionError = type('A', (Exception,), {})\nassert False",
        ("wrong",),
    ),
    "patched builtins": (
        "import builtins\n"
        "for name in ('compile', 'exec', 'isinstance', 'getattr', 'bytes', 'len', 'type'):\n"
        "    setattr(builtins, name, lambda *a, **k: True)\nassert False",
        ("wrong",),
    ),
    "patched os": (
        "import os\nreal = os.write\n"
        "os.write = lambda fd, data: real(fd, data[:-1] + b'P')\nos._exit = lambda code: None\n"
        "assert False",
        ("wrong",),
    ),
    "hooks": (
        "import sys, threading\nsys.excepthook = lambda *a: print('ESCAPED')\n"
        "threading.excepthook = sys.excepthook\nassert False",
        ("wrong",),
    ),
    "atexit": ("import atexit; atexit.register(print, 'ESCAPED')\nassert False", ("wrong",)),
    "destructor": (
        "class A:\n  def __del__(self): print('ESCAPED')\nkeep = A()\nassert False",
        ("wrong",),
    ),
    "patched stdout": (
        "import sys\nclass A:\n  def write(self, x): pass\n"
        "  def flush(self): import os; os._exit(0)\nsys.stdout = A()\nassert False",
        ("wrong",),
    ),
    "own module": ("import sys; sys.modules.clear()\nassert False", ("wrong",)),
}

PRELUDE = """\
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*numbers):
    return libc.syscall(*[ctypes.c_long(number) for number in numbers])
def fail():
    raise OSError(ctypes.get_errno(), 'refused')
SECRET, TARGET, HOST, PORT, CALLER = {values}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    for path in (folder, *folder.parents[:3]):
        if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):
            path.chmod(0o755)
    (folder / "secret").write_text(SECRET)
    (folder / "secret").chmod(0o666)
    (folder / "planted.py").write_text("print('ESCAPED')")
    folder.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield folder, server.getsockname()[1]


def snapshot(folder):
    return sorted(
        (path.name, path.read_bytes(), path.stat().st_mode, path.stat().st_mtime)
        for path in folder.iterdir()
    )


def ordinary_python():
    """An interpreter, and a copy of the package, that a user without rights can use."""
    mine = Path(sys.executable).resolve()
    version = f"python3.{sys.version_info.minor}"
    for python in (mine, Path("/usr/bin", version), Path("/usr/local/bin", version)):
        try:
            found = subprocess.run(
                [python, "-S", "-c", "import ctypes, sys; print(sys.version_info[:2])"],
                preexec_fn=become_ordinary,
                capture_output=True,
                cwd="/",
            )
        except OSError:
            continue
        if found.returncode == 0 and str(sys.version_info[:2]).encode() in found.stdout:
            return python
    return None


def become_ordinary():
    os.setgroups([])
    os.setresgid(12345, 12345, 12345)
    os.setresuid(12345, 12345, 12345)


SCRIPT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from hornbook.evaluate import run_programs, sandbox
without, programs = json.load(sys.stdin)
sandbox._WITHOUT = tuple(without)
programs = [text.replace("CALLER_PID", str(os.getpid())) for text in programs]
outcomes = run_programs(programs, timeout_s=1.0, wall_s=10.0)
print(json.dumps([[o.status, o.output, o.isolation] for o in outcomes]))
"""


@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["level2", "level1"])
@pytest.mark.parametrize("user", ["this user", "an ordinary user"])
def test_no_attempt_succeeds(without, user, host, tmp_path_factory):
    folder, port = host
    python, package, become = sys.executable, Path(hornbook.__file__).parents[1], None
    if user == "an ordinary user":
        if os.geteuid() != 0:
            pytest.skip("this user is an ordinary one already")
        python, become = ordinary_python(), become_ordinary
        if python is None:
            pytest.skip("no interpreter of this version that another user may run")
        package = tmp_path_factory.mktemp("package")
        for path in (package, *package.parents[:2]):
            path.chmod(0o755)
        shutil.copytree(Path(hornbook.__file__).parent, package / "hornbook")
    names = [
        name
        for name, (attempt, _) in ATTEMPTS.items()
        if os.uname().machine == "x86_64" or "syscall(" not in attempt
    ]
    values = (str(folder / "secret"), str(folder / "target"), str(folder), port)
    prelude = PRELUDE.format(values=f"{values!r} + (CALLER_PID,)")
    programs = [prelude + ATTEMPTS[name][0] for name in names]
    before, others = snapshot(folder), children()
    limits = Path("/proc/self/limits").read_text()
    found = subprocess.run(
        [python, "-c", SCRIPT, str(package)],
        input=json.dumps([without, programs]),
        capture_output=True,
        text=True,
        preexec_fn=become,
        cwd="/",
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    outcomes = json.loads(found.stdout)
    bad = {
        name: (status, output[-300:])
        for name, (status, output, _) in zip(names, outcomes, strict=True)
        if status not in ATTEMPTS[name][1]
        or "ESCAPED" in output.replace("ValueError: \x1b]0;ESCAPED", "")
        or SECRET in output
    }
    assert not bad
    assert {isolation for _, _, isolation in outcomes} == {
        "landlock+seccomp" if without else SAFE["isolation"]
    }
    assert snapshot(folder) == before
    assert not Path("/dev/shm/hornbook-escape").exists()
    assert Path("/proc/self/limits").read_text() == limits
    deadline = time.monotonic() + 2
    while children() - others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not children() - others


def children():
    """Of this process. Other tests leave some, such as multiprocessing's servers."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_the_layers_are_there_where_the_kernel_has_them():
    """Fails, rather than skips, where CI's kernel could isolate and the sandbox does not."""
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    security = Path("/sys/kernel/security/lsm")
    if release >= (5, 13) and security.exists() and "landlock" in security.read_text():
        assert SAFE["landlock"] >= 1
    found = subprocess.run(["unshare", "-Ur", "--pid", "--fork", "true"], capture_output=True)
    if found.returncode == 0:
        assert "pid" in SAFE["namespaces"]


# Forgeries: the right answer is 7, and none of these gives it. `f` is called by tests elsewhere.
TESTS = "assert f(3) == 7\nassert f(4) != 7\nassert sorted([f(1), f(0)]) == [1, 2]\n"
RIGHT = "def f(x): return {3: 7, 4: 8, 1: 2, 0: 1}[x]"
FORGERIES = {
    "walk the frames to the verdict": """
        import os, sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
                    for fd in range(3, 20):
                        try:
                            if type(value) is bytes: os.write(fd, value + b'P1')
                        except OSError: pass
                frame = frame.f_back
            os._exit(0)
        """,
    "search the heap": """
        import gc, os
        def f(x):
            for value in gc.get_objects():
                if type(value) is dict and 'token' in value: os.write(3, value['token'] + b'P1')
            os._exit(0)
        """,
    "search the memory for the tests": """
        import ctypes, gc
        def f(x):
            for value in gc.get_objects():
                if 'assert f(' in str(value)[:10000]: return 7 if x == 3 else 8
            return 0
        """,
    "an object equal to everything": """
        class Same:
            def __eq__(self, other): return True
            def __ne__(self, other): return True
            def __lt__(self, other): return True
            __hash__ = None
        def f(x): return Same()
        """,
    "an int equal to everything": """
        class Same(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return True
            __hash__ = int.__hash__
        def f(x): return Same()
        """,
    "a str equal to everything": """
        class Same(str):
            def __eq__(self, other): return True
            __hash__ = str.__hash__
        def f(x): return Same()
        """,
    "a dict with other manners": """
        class Same(dict):
            def __eq__(self, other): return True
            def items(self): return Same()
        def f(x): return Same()
        """,
    "leave without a word": "import os\ndef f(x): os._exit(0)",
    "leave at once": "import os\nos._exit(0)",
    "exit politely": "import sys\ndef f(x): sys.exit(0)",
    "exit while loading": "raise SystemExit(0)",
    "patch the builtins": """
        import builtins
        builtins.AssertionError = type('A', (BaseException,), {})
        for name in ('compile', 'exec', 'isinstance', 'len', 'type', 'sorted'):
            setattr(builtins, name, lambda *a, **k: 7)
        def f(x): return 0
        """,
    "trace the tests": """
        import sys, threading
        sys.settrace(lambda *a: None); threading.settrace(lambda *a: None)
        def f(x): return 0
        """,
    "replace check in a thread": """
        import sys, threading
        def replace():
            while True:
                for name in ('check', 'f'):
                    sys.modules['__main__'].__dict__[name] = lambda *a: 7
        threading.Thread(target=replace, daemon=True).start()
        def f(x): return 0
        """,
    "end the loop": """
        def f(x): raise StopIteration
        """,
    "a verdict from __eq__": """
        import os
        class Same:
            def __eq__(self, other):
                os.write(3, b'P1'); return True
        def f(x): return Same()
        """,
    "a function that is an object": """
        class F:
            def __call__(self, x): return F()
            def __eq__(self, other): return True
        f = F()
        """,
    "a name that is no function": "f = 7",
    "no function": "pass",
    "change the argument": "def f(x):\n    x = 7\n",
    "not a number": "def f(x): return float('nan')",
    "an iterator without end": """
        def f(x):
            while True: yield 7
        """,
    "deep": """
        def f(x):
            deep = 7
            for _ in range(100_000): deep = [deep]
            return deep
        """,
    "itself inside": "def f(x):\n    loop = []; loop.append(loop); return loop",
    "large": "def f(x): return 'x' * 50_000_000",
    "a large int": "def f(x): return 1 << 10_000_000",
    "a class": """
        class A(type):
            def __eq__(self, other): return True
        def f(x): return A('B', (), {})
        """,
    "its own exception": """
        class E(AssertionError):
            def __str__(self): import os; os._exit(0)
        def f(x): raise E()
        """,
    "flood of errors": """
        import os
        def f(x):
            while True: os.write(2, bytes(65536))
        """,
}
# What goes down the channel itself: descriptor 3 of the candidate.
FRAMES = {
    "answers before the questions": b"".join(
        (len(body) + 8).to_bytes(4, "big") + bytes(8) + body
        for body in [b'["v",[["f",true]],[]]', b'["v",7,[]]', b'["v",8,[]]', b'["v",2,[]]']
    ),
    "empty frames": bytes(4) * 100,
    "a length that lies": b"\xff\xff\xff\xff" + bytes(100),
    "a length that is too short": b"\0\0\0\x03abc",
    "garbage": bytes(range(256)) * 50,
    "text": b"P1" * 100,
    "half a frame": b"\0\0\0\x64half",
}
ANSWERS = {
    "an opaque value that is true": '["v",["o","int",true],[]]',
    "a type it does not know": '["v",["o","int",1],[]]',
    "a dictionary": '["v",{"a":7},[]]',
    "an unknown tag": '["v",["z",7],[]]',
    "a type by another name": '["v",["T","eval"],[]]',
    "a list in a set": '["v",["s",["l",7]],[]]',
    "half a pair": '["v",["d",7],[]]',
    "not JSON": '["v",7,[]',
    "two values": '["v",7,[]]["v",7,[]]',
    "constants": '["v",NaN,[]]',
    "deep": '["v",' + '["l",' * 5000 + "7" + "]" * 5000 + ",[]]",
    "a change that nobody made": '["v",7,[[0,["l",7]]]]',
    "a change to what is not there": '["v",7,[["x",["l"]]]]',
    "neither": '["x",7,[]]',
    "an exception that is none": '["e",7,[]]',
    "an exception of no kind": '["e",[[],["t"]],[]]',
    "an exception with odd arguments": '["e",[["UnicodeDecodeError"],["l"]],[]]',
    "the end of a loop": '["e",[["StopIteration"],["t"]],[]]',
    "the end of a generator": '["e",[["GeneratorExit"],["t"]],[]]',
    "surrogates": '["v","\\ud800",[]]',
    "UTF-16": '["v",7,[]]',
}
ANSWERING = """
import json, os
def answer(text, fd=3):
    while True:
        head = os.read(fd, 4)
        if len(head) < 4: os._exit(0)
        body = os.read(fd, int.from_bytes(head, 'big'))
        nonce, request = body[:8], json.loads(body[8:])
        reply = '["v",[["f",true]],[]]' if request[0] == 'names' else text
        data = nonce + reply.encode({encoding!r}, 'surrogatepass')
        data = len(data).to_bytes(4, 'big') + data
        while data: data = data[os.write(fd, data):]
"""


def judged(sources, tests=TESTS, trusted=False, **options):
    programs = [
        Program(source=textwrap.dedent(text), tests=tests, entry_point="f", trusted=trusted)
        for text in sources
    ]
    return run_programs(programs, **{"timeout_s": 1.0, "wall_s": 20.0, **options})


@pytest.mark.parametrize("trusted", [False, True], ids=["fresh", "lasting"])
@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["level2", "level1"])
def test_no_forgery_passes(without, trusted, monkeypatch):
    monkeypatch.setattr(sandbox, "_WITHOUT", without)
    frames = {
        name: f"import os\nos.write(3, {data!r})\nimport time; time.sleep(0.2); os._exit(0)"
        for name, data in FRAMES.items()
    }
    answers = {
        name: ANSWERING.format(encoding="utf-16" if name == "UTF-16" else "utf-8")
        + f"answer({text!r})"
        for name, text in ANSWERS.items()
    }
    tries = {**FORGERIES, **frames, **answers}
    # A right one after each: no forgery harms what comes after it.
    pairs = judged([text for one in tries.values() for text in (one, RIGHT)], trusted=trusted)
    assert {outcome.status for outcome in pairs[1::2]} == {"passed"}
    outcomes = dict(zip(tries, pairs[::2], strict=True))
    assert {name: o.output for name, o in outcomes.items() if o.passed} == {}
    assert {name: o.output for name, o in outcomes.items() if o.status == "harness"} == {}
    [right] = judged([RIGHT])
    assert right.passed
    assert right.tamper_proof


def test_a_loop_of_tests_cannot_be_ended_by_the_candidate():
    """`map` and `all` take StopIteration for the end: the tests would be over, and passed."""
    tests = "assert all(map(lambda x: f(x) == 7, [1, 2]))\nfor y in map(f, [1]): assert y == 7"
    ends = "def f(x): raise StopIteration"
    answers = (
        ANSWERING.format(encoding="utf-8") + """answer('["e",[["StopIteration"],["t"]],[]]')"""
    )
    for outcome in judged([ends, answers], tests):
        assert outcome.status == "exception"


def test_tests_that_swallow_everything_do_not_swallow_the_protocol():
    tests = "try:\n    assert f(3) == 7\nexcept:\n    pass"
    gone, broken = judged(
        ["import os\ndef f(x): os._exit(0)", "import os\ndef f(x): os.write(3, b'x' * 99)"], tests
    )
    assert (gone.status, broken.status) == ("crash", "crash")


@pytest.mark.parametrize("trusted", [False, True], ids=["fresh", "lasting"])
def test_hidden_tests_are_nowhere_in_the_candidates_memory(trusted):
    """Not even those of programs that ran before in the same worker."""
    reader = """
        import ctypes, gc, re
        def f(x):
            pages = {id(one) >> 12 << 12 for one in gc.get_objects()}
            pages |= {id(v) >> 12 << 12 for one in gc.get_objects() if type(one) is dict
                      for v in one.values()}
            found = [re.search(b'[h]idden-answer-81', ctypes.string_at(p, 4096)) for p in pages]
            return sum(match is not None for match in found)
        """
    keeper = reader.rstrip() + "\n        keep = 'hidden' + '-answer-81'\n"
    tests = "hidden = 'hidden-answer-81'\nassert f(3) == 0, 'found'"
    *readers, control = judged([reader] * 4 + [keeper], tests, trusted, workers=1)
    assert [outcome.status for outcome in readers] == ["passed"] * 4, readers[-1].output
    assert control.status == "wrong"  # it can be found where it is


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=8,
)
KINDS = ("int", "str", "float", "list", "dict", "tuple", "object", "bytes", "set")
METHODS = ("__eq__", "__ne__", "__lt__", "__bool__", "__len__", "__hash__", "__iter__", "__index__")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS),
            st.dictionaries(st.sampled_from(METHODS), st.sampled_from(["True", "7", "iter([7])"])),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_no_object_of_any_class_equals_a_value_it_is_not(classes):
    """The value is 10**9 + 7: nothing that these classes make by themselves."""
    sources = []
    for base, methods in classes:
        body = "".join(f"    def {m}(self, *a): return {r}\n" for m, r in methods.items())
        sources.append(f"class A({base}):\n    pass\n{body}\ndef f(x):\n    return A()\n")
    tests = "value = f(3)\nassert value == 10**9 + 7 and not value != 10**9 + 7"
    assert not any(outcome.passed for outcome in judged(sources, tests))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=8))
def test_no_frame_is_an_answer_by_luck(frames):
    sources = [
        f"import os\nframe = {frame!r}\n"
        "def f(x):\n    os.write(3, len(frame).to_bytes(4, 'big') + frame)\n    os._exit(0)"
        for frame in frames
    ]
    assert {outcome.status for outcome in judged(sources, "f(3)")} <= {"crash", "exception"}
