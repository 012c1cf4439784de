"""Killed at random points, again and again, a run ends in the bytes of one that was left alone."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_teacher import Server, answer

from hornbook.generate.ledger import Ledger
from hornbook.manifest import verify

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")

RUN = """
import sys
from hornbook.generate.gate import GateOptions
from hornbook.generate.llm import generate_llm
url, ledger, out, count, concurrency = sys.argv[1:]
generate_llm("exercises", out, count=int(count), model="m", ledger=ledger, base_url=url,
             budget_tokens=10**9, concurrency=int(concurrency), gate=GateOptions(repeats=10**6))
"""


def files(folder: Path) -> dict[str, bytes]:
    """Everything but the manifest, which holds times."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if path.name != "manifest.json"
    }


def reply(body: dict[str, Any], number: int) -> Any:
    """One in ten answers is no exercise; some tries are turned away or cut off first."""
    text = body["messages"][-1]["content"]
    kind = hash_of(text) % 20
    if kind < 2:
        return "I would rather not."
    if kind == 2 and number == 0:
        return 429, {"retry-after-ms": "5"}, {"error": {"message": "slow down"}}
    if kind == 3 and number == 0:
        return None
    return answer(body)


def hash_of(text: str) -> int:
    return sum(text.encode()) % 10_007


def killed(server: Server, folder: Path, *, count: int, kills: int, concurrency: int) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server.reply = reply
    server.delay = 0.005
    rng = random.Random(7)

    def command(name: str) -> list[str]:
        paths = [str(folder / f"{name}.ledger"), str(folder / name)]
        return [sys.executable, "-c", RUN, server.url, *paths, str(count), str(concurrency)]

    asked = 0
    for _ in range(kills):
        process = subprocess.Popen(command("killed"), env=env, stderr=subprocess.DEVNULL)
        # Kills are spread over the whole run; some come before the first call, or while writing.
        target = asked + rng.randrange(max(1, 2 * count // kills))
        deadline = time.monotonic() + rng.uniform(1.0, 3.0)
        while server.total < target and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        asked = server.total
        if process.returncode == 0:  # it was faster than we: take back what it wrote last
            (folder / "killed" / "manifest.json").unlink()
            (folder / "killed" / "started.json").write_text('{"stage": "generate.exercises"}')
    subprocess.run(command("killed"), env=env, check=True)
    seen = Counter(server.seen)
    with Ledger(folder / "killed.ledger") as ledger:
        totals = ledger.totals()
        assert ledger.left_behind == 0
    assert totals.answered == count == len(seen)
    database = sqlite3.connect(folder / "killed.ledger")
    calls = database.execute("SELECT request, lost_calls FROM calls").fetchall()
    database.close()
    for request, lost in calls:
        text = json.loads(request)["messages"][-1]["content"]
        turned_away = hash_of(text) % 20 == 2
        # Every repeat that the server saw is one that the ledger says may have been paid for.
        assert 1 <= seen[text] <= 1 + lost + turned_away
    assert seen.total() <= count + totals.lost + sum(hash_of(text) % 20 == 2 for text in seen)
    server.seen.clear()
    subprocess.run(command("straight"), env=env, check=True)
    assert files(folder / "killed") == files(folder / "straight")
    assert verify(folder / "killed")["ok"]
    manifest = json.loads((folder / "killed" / "manifest.json").read_text())
    straight = json.loads((folder / "straight" / "manifest.json").read_text())
    assert manifest["parts"] == straight["parts"]
    assert manifest["counts"] == straight["counts"]
    assert sum(manifest["counts"]["dropped"].values()) + manifest["counts"]["kept"] == count


def test_a_few_kills(server: Server, tmp_path: Path) -> None:
    killed(server, tmp_path, count=200, kills=4, concurrency=16)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_kills(server: Server, tmp_path: Path) -> None:
    killed(server, tmp_path, count=2_000, kills=100, concurrency=64)
