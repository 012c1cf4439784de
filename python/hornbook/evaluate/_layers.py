"""The kernel's barriers around model-written code, by ctypes: Landlock, seccomp, namespaces.

Each function puts up one barrier for the calling process and raises `OSError` if the kernel says
no. Only the standard library is used: a worker imports this under `-S`. None of them needs
privileges. Linux on x86-64 and aarch64; elsewhere `seccomp_available` and `landlock_abi` say no.
"""

import ctypes
import os
import re
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_GET_SECCOMP = 21
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47

_libc = ctypes.CDLL(None, use_errno=True)
_SIGKILL, _FILTER, _ZERO = ctypes.c_ulong(9), ctypes.c_ulong(2), ctypes.c_ulong(0)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(what: str, option: int, *arguments: object) -> int:
    padded = [*arguments, *[ctypes.c_ulong(0)] * (4 - len(arguments))]
    return _checked(_libc.prctl(option, *padded), what)


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent ends.

    A change of user or capabilities clears this, so it is asked for again after each.

    Args:
        parent: Its number; 0 if it is outside this process's pid namespace.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, _ZERO, _ZERO, _ZERO) < 0:
        _checked(-1, "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)  # the parent ended before the kernel was told


def no_new_privileges() -> None:
    """Lets no later exec gain anything; Landlock and seccomp ask for it."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))


def drop_ambient_capabilities() -> None:
    """Gives up what an exec would keep."""
    with suppress(OSError):  # a kernel without ambient capabilities has none to clear
        _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, ctypes.c_ulong(4))


_NO_CAPABILITIES = (struct.pack("=Ii", 0x20080522, 0), bytes(24))


def drop_capabilities() -> None:
    """Gives up every capability: a root user keeps only what its files' owner may do."""
    if _libc.capset(*_NO_CAPABILITIES) < 0:
        _checked(-1, "capset")


_fork = ctypes.PyDLL(None).fork
_SINGLE = "t" not in sys.abiflags


def fork() -> int:
    """As `os.fork`, for a process of one thread whose child needs none of Python's own set-up.

    What libraries registered to run after a fork (a new seed for `random`, `threading`'s locks) is
    a third of what a small program costs.
    """
    return _fork() if _SINGLE else os.fork()


_NEW_PID = 0x20000000
_NEW_OTHERS = {"user": 0x10000000, "net": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000}
_NEW_MOUNT = 0x00020000


def unshare_namespaces() -> list[str]:
    """Moves this process into namespaces of its own, and its children into a pid namespace too.

    The user namespace gets no id mapping: nothing in it has rights over anything outside. The
    network namespace holds one loopback device, which is down. All or none.
    """
    flags = sum(_NEW_OTHERS.values()) | _NEW_MOUNT | _NEW_PID
    if _libc.unshare(flags) == 0:
        return [*_NEW_OTHERS, "mount", "pid"]
    return []


def own_pid_namespace() -> int:
    """A descriptor of the pid namespace this process is in."""
    return os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def next_child_apart() -> None:
    """The next process forked here is the first of a pid namespace: all in it end with it."""
    _checked(_libc.unshare(_NEW_PID), "unshare")


def next_child_here(namespace: int) -> None:
    """Undoes `next_child_apart`, which the kernel permits once otherwise."""
    _checked(_libc.setns(namespace, _NEW_PID), "setns")


# Landlock: which files may be opened.

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1, 4, 8
# Rights that each version of the interface knows, so that all of them are refused by default.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}


def landlock_abi() -> int:
    """The version of Landlock in this kernel; 0 if there is none."""
    if sys.platform != "linux":
        return 0
    version: int = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    return max(0, version)


def landlock_ruleset(abi: int, readable: Iterable[tuple[str, int]]) -> int:
    """A descriptor for rules that refuse everything but reading some paths.

    From version 4 TCP is refused too, from version 6 signals and abstract sockets to others.
    """
    filesystem = (1 << _FS_RIGHTS[min(abi, 5)]) - 1
    fields = [filesystem, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0]
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    attributes = struct.pack("=QQQ", *fields)[:size]
    ruleset = _checked(
        _libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0),
        "landlock_create_ruleset",
    )
    for path, rights in readable:
        try:
            target = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if not os.path.isdir(path):
                rights &= ~_READ_DIR
            rule = struct.pack("=Qi", rights, target)
            _checked(_libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), f"Landlock rule {path}")
        finally:
            os.close(target)
    return ruleset


def landlock_restrict(ruleset: int) -> None:
    """Puts the rules on this process and all it will start, for good."""
    _checked(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")


def readable_paths() -> list[tuple[str, int]]:
    """What a program may read: the standard library and shared libraries, nothing installed.

    Folders of installed packages lie inside the standard library's, and Landlock has no
    exceptions, so its entries are allowed one by one.
    """
    use, everything = _READ_FILE | _EXECUTE, _READ_FILE | _EXECUTE | _READ_DIR
    others = ("site-packages", "dist-packages", "test", "__pycache__")
    stdlib = os.path.dirname(os.path.realpath(os.__file__))
    rules = [(stdlib, _READ_DIR)]  # names only: the import system lists this folder
    entries = sorted(set(os.listdir(stdlib)) - set(others))
    rules += [(os.path.join(stdlib, name), everything) for name in entries]
    libraries = os.path.join(os.path.realpath(sys.base_prefix), "lib")
    with suppress(OSError):
        names = [name for name in os.listdir(libraries) if re.match(r"lib.*\.so", name)]
        rules += [(os.path.join(libraries, name), use) for name in sorted(names)]
    triple = getattr(sys.implementation, "_multiarch", "") or f"{os.uname().machine}-linux-gnu"
    folders = ("/lib64", "/usr/lib64", f"/lib/{triple}", f"/usr/lib/{triple}")
    rules += [(path, use) for path in (*folders, "/etc/ld.so.cache")]
    return [*rules, ("/usr/share/zoneinfo", everything)]


# seccomp: which system calls may be made, as `name:x86-64:aarch64`; "-" where there is none.

_ALLOWED = """
read:0:63 write:1:64 open:2:- close:3:57 stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79
statx:332:291 poll:7:- ppoll:271:73 lseek:8:62 mmap:9:222 munmap:11:215 mprotect:10:226
mremap:25:216 madvise:28:233 brk:12:214 rt_sigaction:13:134 rt_sigprocmask:14:135
rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigsuspend:130:133
sigaltstack:131:132 pread64:17:67 pwrite64:18:68 readv:19:65 writev:20:66 preadv:295:69
pwritev:296:70 access:21:- faccessat:269:48 faccessat2:439:439 pipe:22:- pipe2:293:59 select:23:-
pselect6:270:72 sched_yield:24:124 dup:32:23 dup2:33:- dup3:292:24 pause:34:- nanosleep:35:101
clock_nanosleep:230:115 getitimer:36:102 setitimer:38:103 alarm:37:- getpid:39:172 getppid:110:173
gettid:186:178 getpgid:121:155 getpgrp:111:- getsid:124:156 getuid:102:174 geteuid:107:175
getgid:104:176 getegid:108:177 getgroups:115:158 getresuid:118:148 getresgid:120:150 uname:63:160
sysinfo:99:179 openat:257:56 readlink:89:- readlinkat:267:78 getdents64:217:61 getcwd:79:17
umask:95:166 gettimeofday:96:169 time:201:- times:100:153 getrusage:98:165 getrlimit:97:163
getpriority:140:141 clock_gettime:228:113 clock_getres:229:114 exit:60:93 exit_group:231:94
restart_syscall:219:128 futex:202:98 set_tid_address:218:96 set_robust_list:273:99 rseq:334:293
arch_prctl:158:- sched_getaffinity:204:123 getcpu:309:168 getrandom:318:278 membarrier:324:283
epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 eventfd2:290:19
close_range:436:436
"""
# No program for a problem makes these by accident.
_KILLED = """
ptrace:101:117 process_vm_readv:310:270 process_vm_writev:311:271 mount:165:40 umount2:166:39
pivot_root:155:41 chroot:161:51 bpf:321:280 perf_event_open:298:241 io_uring_setup:425:425
userfaultfd:323:282 add_key:248:217 request_key:249:218 keyctl:250:219
pidfd_getfd:438:438 open_by_handle_at:304:265 init_module:175:105 finit_module:313:273
kexec_load:246:104
"""
# Allowed for some values of one argument: `(numbers, argument, mask, values)`. None: own process.
_CLONE_THREAD, _CLONE_NEW = 0x10000, 0x7E020000
_PARTLY: list[tuple[str, int, int, tuple[int, ...] | None]] = [
    ("clone:56:220", 0, _CLONE_THREAD | _CLONE_NEW, (_CLONE_THREAD,)),  # threads, not processes
    ("fcntl:72:25", 1, 0xFFFFFFFF, (0, 1, 2, 3, 4, 1030)),  # F_SETOWN would send signals
    ("ioctl:16:29", 1, 0xFFFFFFFF, (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)),
    ("prlimit64:302:261", 0, 0xFFFFFFFF, (0,)),
    ("kill:62:129", 0, 0xFFFFFFFF, None),
    ("tgkill:234:131", 0, 0xFFFFFFFF, None),
]
_CLONE3 = "clone3:435:435"  # hides its flags behind a pointer; ENOSYS makes libc use clone

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN, _JUMP = 0x20, 0x15, 0x35, 0x54, 0x06, 0x05


def _number(entry: str, column: int) -> int | None:
    value = entry.split(":")[1 + column]
    return None if value == "-" else int(value)


def seccomp_available() -> bool:
    """Whether the kernel filters system calls and their numbers are known here."""
    if sys.platform != "linux" or os.uname().machine not in _ARCHITECTURES:
        return False
    # A 32-bit interpreter on a 64-bit kernel would use another table.
    return ctypes.sizeof(ctypes.c_void_p) == 8 and _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


# What the worker needs and its programs must not have. The second filter takes it away: with
# EPERM, or by killing where a program has no business at all.
_WORKERS = """
sendmsg:46:211 recvmsg:47:212 sendto:44:206 recvfrom:45:207 socketpair:53:199 wait4:61:260
pidfd_open:434:434 setsid:112:157 capset:126:91 landlock_restrict_self:446:446
setrlimit:160:164 fork:57:- vfork:58:-
"""
_WORKERS_KILL = "unshare:272:97 setns:308:268"
_WORKERS_PRCTL = "prctl:157:167"


def _instructions(machine: str) -> list[tuple[int, int, int, int]]:
    """The start of a filter: other tables of system calls than the machine's own are killed."""
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURES[machine][1]), (_RETURN, 0, 0, _KILL)]
    code.append((_LOAD, 0, 0, 0))
    if machine == "x86_64":  # the x32 table: other numbers for the same calls
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    return code


def _list(names: str, machine: str, verdict: int) -> list[tuple[int, int, int, int]]:
    """Instructions that give one verdict on each of some calls and go on for others."""
    column = _ARCHITECTURES[machine][0]
    numbers = [n for e in names.split() if (n := _number(e, column)) is not None]
    code = [(_EQUAL, len(numbers) - i, 0, n) for i, n in enumerate(numbers)]
    return [*code, (_JUMP, 0, 0, 1), (_RETURN, 0, 0, verdict)]  # past the verdict


def seccomp_worker_filter(machine: str) -> bytes:
    """The worker's filter: a list of what is allowed, some that kills, EPERM for the rest.

    It holds the long lists, so that they are taken in once and not for each program.
    """
    partly = " ".join(entry for entry, *_ in _PARTLY)
    own = f"{_WORKERS} {_WORKERS_KILL} {_WORKERS_PRCTL}"
    code = _instructions(machine)
    code += _list(_CLONE3, machine, _ERRNO | _ENOSYS)
    code += _list(f"{_ALLOWED} {partly} {own}", machine, _ALLOW)
    code += _list(_KILLED, machine, _KILL)
    return _bytes([*code, (_RETURN, 0, 0, _ERRNO | _EPERM)])


def seccomp_program_filter(machine: str, pid: int, receives: bool = False) -> bytes:
    """The filter a program adds to the worker's: the stricter of the two decides.

    Args:
        machine: `x86_64` or `aarch64`.
        pid: The process it is for: the only one it may send signals to.
        receives: Let it be handed descriptors: for trusted tests.
    """
    column = _ARCHITECTURES[machine][0]
    code = _instructions(machine)
    for entry, argument, mask, values in _PARTLY:
        number = _number(entry, column)
        assert number is not None
        allowed = (pid,) if values is None else values
        block = [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, mask)]
        block += [(_EQUAL, len(allowed) - i, 0, value) for i, value in enumerate(allowed)]
        block += [(_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]
        code += [(_EQUAL, 0, len(block), number), *block]
    code += _list(_WORKERS_KILL, machine, _KILL)
    refused = f"{_WORKERS} {_WORKERS_PRCTL}".split()
    if receives:
        refused = [entry for entry in refused if not entry.startswith("recvmsg:")]
    code += _list(" ".join(refused), machine, _ERRNO | _EPERM)
    return _bytes([*code, (_RETURN, 0, 0, _ALLOW)])


def _bytes(code: list[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def seccomp_prepare(program: bytes) -> Any:
    """A filter as the kernel takes it, so that installing it costs one call."""
    buffer = ctypes.create_string_buffer(program, len(program))
    pointed = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    return ctypes.c_char_p(pointed), buffer  # the address is the buffer's: it has to live on


def seccomp_install(prepared: Any) -> None:
    """Puts a filter on this process and all it will start, for good."""
    if _libc.prctl(_PR_SET_SECCOMP, _FILTER, prepared[0], _ZERO, _ZERO) < 0:
        _checked(-1, "PR_SET_SECCOMP")
