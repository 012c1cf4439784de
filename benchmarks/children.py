"""Parts of a benchmark that run in a process each: what goes wrong in one ends nothing else."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from typing import IO

KEPT = 4000
"""Characters of what a failed process wrote last: the last line alone rarely says why."""


def run_child(
    command: list[str],
    seconds: float,
    *,
    environment: dict[str, str] | None = None,
    stdout: IO[bytes] | None = None,
) -> tuple[str, str]:
    """Runs a command, and ends it and what it started after so many seconds.

    Args:
        command: The command line.
        seconds: How long it may take.
        environment: Its variables; this process's unless given.
        stdout: Where its output goes; this process's unless given.

    Returns:
        Why it is no success, in a line ("" if it is one), and all that it wrote to stderr.
    """
    # The handler writes where Python stands when a process crashes, or is ended below.
    environment = {
        **(os.environ if environment is None else environment),
        "PYTHONFAULTHANDLER": "1",
    }
    with tempfile.TemporaryFile() as errors:
        # A group, not a session: whoever ends this process's session ends the child with it.
        child = subprocess.Popen(
            command, stdout=stdout, stderr=errors, env=environment, process_group=0
        )
        late = False
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
            child.send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(3)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            # One that is stuck in the driver may not end; those after it go on without it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
        errors.seek(0)
        text = errors.read().decode(errors="replace").strip()
    if late:
        return f"timed out after {seconds:.0f} s", text
    if child.returncode == 0:
        return "", text
    ended = f"status {child.returncode}"
    if child.returncode < 0:
        ended = f"signal {signal.Signals(-child.returncode).name}"
    return f"ended with {ended}: {what_was_raised(text)}", text


def what_was_raised(text: str) -> str:
    """The line of a traceback that names the error; torch puts advice after it."""
    lines = text.splitlines() or ["no reason given"]
    errors = [
        line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Fail\w*)\b", line)
    ]
    return (errors or lines)[-1][:300]
