"""`benchmarks/kernels.py` on a CPU, with this package alone on the path."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "kernels.json"


def run(*options: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "kernels"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("HORNBOOK_KERNELS", None)
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_checks_run_without_a_card_and_say_what_they_left_out(tmp_path: Path) -> None:
    before = RESULTS.read_bytes() if RESULTS.exists() else None
    out = tmp_path / "made" / "kernels.json"
    text = run("--quick", "--record", "--out", str(out))
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["card"] is None
    assert len(report["checks"]) > 30
    assert all(entry["holds"] for entry in report["checks"])
    skipped = "\n".join(entry["what"] for entry in report["skipped"])
    for word in ("races", "200 repeats", "tutorial", "qkv, rotary", "--record"):
        assert word in skipped
    assert str(out) in text
    assert (RESULTS.read_bytes() if RESULTS.exists() else None) == before
