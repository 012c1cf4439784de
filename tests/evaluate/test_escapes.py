"""Attempts to get out of the sandbox, to harm the host or to fake a verdict.

Each program passes, or prints ESCAPED, if its attempt succeeds. After each the host is looked at:
a secret must not have been printed, a folder must be as it was, and no process must be left.
"""

import os
import socket
import textwrap
import time
from pathlib import Path

import pytest

from hornbook.evaluate import run_programs, status

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
    folder.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield folder, server.getsockname()[1]


def snapshot(folder):
    return sorted(
        (path.name, path.read_bytes(), path.stat().st_mode, path.stat().st_mtime)
        for path in folder.iterdir()
    )


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt(name, host):
    folder, port = host
    attempt, expected = ATTEMPTS[name]
    if os.uname().machine != "x86_64" and "syscall(" in attempt:
        pytest.skip("the number is that of x86-64")
    before, shared = snapshot(folder), sorted(Path("/dev/shm").iterdir())
    limits = Path("/proc/self/limits").read_text()
    values = (str(folder / "secret"), str(folder / "target"), str(folder), port, os.getpid())
    program = PRELUDE.format(values=values) + attempt
    [outcome] = run_programs([program], timeout_s=1.0, wall_s=10.0, workers=1)
    assert outcome.status in expected, outcome.output[-500:]
    assert "ESCAPED" not in outcome.output
    assert SECRET not in outcome.output
    assert snapshot(folder) == before
    assert sorted(Path("/dev/shm").iterdir()) == shared
    assert Path("/proc/self/limits").read_text() == limits
    assert children() == []


def children():
    deadline = time.monotonic() + 2
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    while path.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.01)
    return path.read_text().split()


# What this version cannot stop, and says so by `tamper_proof`: the test's own process is the
# candidate's, so the verdict's makings are in its frames and its tests trust its objects.
FORGERIES = {
    "walk the frames to the verdict": """
        import os, sys
        frame = sys._getframe()
        while frame:
            for value in list(frame.f_locals.values()):
                if type(value) is bytes and len(value) == 17 and value.endswith(b'P'):
                    os.write(3, value)
                    os._exit(0)
            frame = frame.f_back
        assert False
        """,
    "an object equal to everything": """
        class Same(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
        assert Same() == 7
        """,
    "replace the test through a trace": """
        import sys
        def trace(frame, event, argument):
            if frame.f_code.co_name == 'check':
                frame.f_globals['right'] = lambda: True
        sys.settrace(trace)
        def right(): return False
        def check(): assert right()
        check()
        """,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_that_are_known_to_pass_are_not_called_proof(name):
    [outcome] = run_programs([textwrap.dedent(FORGERIES[name])])
    assert outcome.passed  # when this fails the sandbox got better: move the attempt up
    assert not outcome.tamper_proof
