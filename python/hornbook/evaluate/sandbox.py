"""Runs model-written programs: fast, out of reach of everything, one outcome each.

A program is Python text that is executed in a fresh module namespace and passes if it reaches its
end. Better, it is a `Program`: the candidate in one process and its tests in another, where the
candidate's functions are stand-ins that send plain data over and back (`_split`, `_codec`). Then
nothing a candidate does, prints, returns or raises can make a failing test pass, and it cannot read
the tests. `grade` does this for benchmark problems.

The supervisor (Rust, `hornbook_core::sandbox`) keeps a warm worker a core (`_worker`), for ten
seconds after its last program, which forks every process. Each has limits on CPU time, memory,
output and descriptors, and, in its own process: no privileges, no file but the standard library to
read and none to write (Landlock), no network, processes, exec or signals to others (seccomp); and,
where the kernel permits, namespaces of its own for users, network, mounts, host name, messages and
processes. Where Landlock or seccomp cannot be had nothing is run, unless the caller accepts that in
so many words.

CPU time decides, not the clock, so a busy machine changes no verdict; the wall is a backstop, and
who runs into it is tried again alone. A hang, a bomb or a flood in one program changes no other's
outcome. All of a run's programs die with the caller.

Limits, honestly. Where tests share the candidate's process (a program as one text, or tests that
pass functions or objects of the candidate's own classes), a candidate that means to can forge a
pass; `Outcome.tamper_proof` says which it was. A program can see whether a path exists. And this is
one kernel: against code that attacks the kernel, run all of this in a virtual machine.

    python -c "from hornbook.evaluate import run_programs; print(run_programs(['assert 1 < 2']))"
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hornbook.errors import ConfigError, SandboxError
from hornbook.evaluate._foresee import foresee

if TYPE_CHECKING:
    from hornbook import _core
    from hornbook.evaluate.problems import Problem

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
_UNSPLIT: Any = "unsplit"  # never a result: such a program is run again, in one process
WALL_FLOOR_S = 60.0
WALL_FACTOR = 6.0
STARVED = 0.02
"""Share of its time on the processor below which a program was asleep, not kept waiting."""
MOST_S = 7 * 24 * 3600
MOST_MB = 1 << 20
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
    `crash`: ended without a verdict, or answered its tests with something else than data;
    `harness`: not the program's doing."""
    cpu_s: float
    """User and system time of its processes, with the sandbox's own 2 to 4 ms."""
    output: str
    """The first 64 KiB of its standard output and error, and the exception."""
    isolation: str
    """`landlock+seccomp+namespaces`, `landlock+seccomp`, or `none` (accepted as unsafe)."""
    tamper_proof: bool = False
    """Whether the tests ran in another process and saw nothing but plain data of the candidate's.
    Where False, a candidate that means to may have forged a pass."""
    wall_s: float = 0.0
    """From handing it over to its end."""
    memory_mb: float = 0.0
    """Largest resident memory of its processes."""
    signal: int | None = None
    """The signal that ended the candidate, if one did."""

    @property
    def passed(self) -> bool:
        """Whether the program reached its end."""
        return self.status == "passed"


@dataclass(frozen=True, kw_only=True)
class Program:
    """A candidate and the tests that it must not reach: they run in another process."""

    source: str
    """The candidate's text, which defines `entry_point`."""
    tests: str
    """What runs on it; it fails by raising."""
    entry_point: str
    """The function that is asked for."""
    preamble: str = ""
    """Trusted text at the start of `source` (imports, helpers, a signature) that the tests use."""
    trusted: bool = False
    """Whether the tests are known to be harmless to one another, such as a benchmark's: one process
    then runs those of many programs, which saves a fork for each. Never for what a model wrote."""

    @property
    def whole(self) -> str:
        """As one text, for a process that does both."""
        return f"{self.source}\n{self.tests}\n"


@dataclass(frozen=True, kw_only=True)
class _Limits:
    cpu_s: float = 10.0
    wall_s: float = WALL_FLOOR_S
    memory_mb: int = 1024


def _argv(limits: _Limits) -> list[str]:
    """The command of a worker."""
    config = {
        "parent": os.getpid(),
        "without": _WITHOUT,
        "cpu_s": limits.cpu_s,
        "memory_mb": limits.memory_mb,
    }
    root = str(Path(__file__).resolve().parents[2])
    # As -I, but for a fixed hash seed: the order of a set must not decide a verdict.
    flags = ["-s", "-S", "-P", "-B", "-X", "utf8"]
    return [sys.executable, *flags, "-c", _BOOT, json.dumps(config), root]


def _run(
    programs: Sequence[str | Program],
    limits: _Limits,
    *,
    workers: int,
    isolation: str,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Runs programs once, without asking whether it is safe."""
    rows = _pool(os.getpid()).run(
        [_payloads(program) for program in programs],
        _argv(limits),
        cpu_s=limits.cpu_s,
        wall_s=limits.wall_s,
        workers=workers,
        progress=progress,
    )
    return [
        Outcome(
            status=cast("Status", status),
            tamper_proof=proof,
            cpu_s=cpu,
            wall_s=wall,
            memory_mb=rss / 1024,
            signal=signal,
            output=output.decode("utf-8", "replace"),
            isolation=isolation,
        )
        for status, proof, cpu, wall, rss, signal, output in rows
    ]


@cache
def _pool(pid: int) -> "_core.SandboxPool":
    """This process's workers: one that was forked must not count on its parent's."""
    from hornbook import _core

    return _core.SandboxPool()


def _payloads(program: str | Program) -> tuple[bytes, bytes | None, bool]:
    """What the processes of a program read, and whether that of its tests may last."""
    if isinstance(program, str):
        return program.encode("utf-8", "surrogatepass"), None, False
    calls = foresee(program.tests, program.entry_point) if program.trusted else ()
    tests = [program.entry_point, program.preamble, program.tests, calls]
    source = program.source.encode("utf-8", "surrogatepass")
    return source, json.dumps(tests).encode(), program.trusted


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
    from hornbook import _core

    layers = json.loads(_core.sandbox_describe(_argv(_Limits())))
    assert isinstance(layers, dict)
    return layers


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
    # Files that no program has a use for: this one, and one that is not there.
    target = Path(tempfile.gettempdir(), f"hornbook-canary-{os.getpid()}")
    texts = [text.format(secret=__file__, target=str(target)) for text in _CANARIES.values()]
    control, *results = _run([_CONTROL, *texts], _Limits(), workers=1, isolation="none")
    if not control.passed:
        return f"the sandbox cannot run a harmless program: {control.output.strip()}"
    for name, result in zip(_CANARIES, results, strict=True):
        if result.status in ("passed", "harness") or "ESCAPED" in result.output:
            return f"the sandbox's self-test failed: a program could {name}"
    if target.exists():
        return "the sandbox's self-test failed: a program could write a file"
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
    programs: Sequence[str | Program],
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
        programs: Python texts, each executed in a fresh module called `program`; or a `Program`,
            whose tests run in a process that it cannot reach.
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
    for name, seconds in (("timeout_s", timeout_s), ("wall_s", wall_s)):
        if seconds is not None and not 0 < seconds <= MOST_S:
            raise ConfigError(f"{name} is {seconds}: must be above 0 and at most {MOST_S:,}")
    if not isinstance(memory_mb, int) or not 128 <= memory_mb <= MOST_MB:
        raise ConfigError(
            f"memory_mb is {memory_mb}: must be a whole number from 128, which Python itself "
            f"needs, to {MOST_MB:,}"
        )
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}: at least 1 is needed")
    wall_s = max(WALL_FLOOR_S, WALL_FACTOR * timeout_s) if wall_s is None else wall_s
    isolation = _isolation(require(accept_unsafe))
    limits = _Limits(cpu_s=timeout_s, wall_s=wall_s, memory_mb=memory_mb)
    count = workers or _cores()
    outcomes = _run(programs, limits, workers=count, isolation=isolation, progress=progress)
    # The tests, not the candidate, ask for what cannot cross: they have to share a process.
    runs = list(programs)
    unsplit = [i for i, outcome in enumerate(outcomes) if outcome.status == _UNSPLIT]
    for i in unsplit:
        program = programs[i]
        assert isinstance(program, Program)
        runs[i] = program.whole
    again = _run([runs[i] for i in unsplit], limits, workers=count, isolation=isolation)
    for i, outcome in zip(unsplit, again, strict=True):
        outcomes[i] = outcome
    # A wall is not the program's fault on a busy machine: once more, alone. One that asked for next
    # to no processor slept, and would sleep again.
    for i, outcome in enumerate(outcomes):
        if outcome.status == "wall" and outcome.cpu_s > STARVED * outcome.wall_s:
            [outcomes[i]] = _run([runs[i]], limits, workers=1, isolation=isolation)
    return outcomes


def grade(
    problems: Sequence["Problem"], completions: Sequence[str], **options: Any
) -> list[Outcome]:
    """Runs each completion on its problem's tests, in processes of their own.

    Args:
        problems: What was asked, one a completion.
        completions: What was answered.
        options: As for `run_programs`.

    Returns:
        One outcome a completion, in order.

    Raises:
        ConfigError: If there is not one problem a completion.
        SandboxError: If it cannot be done safely here; nothing was run.
    """
    if len(problems) != len(completions):
        raise ConfigError(f"{len(problems)} problems for {len(completions)} completions")
    pairs = zip(problems, completions, strict=True)
    return run_programs([problem.split(answer) for problem, answer in pairs], **options)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
