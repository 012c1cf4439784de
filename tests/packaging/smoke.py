"""Run by the gate in an empty environment, outside the checkout, on the built wheels."""

import json
import subprocess
import sys
from pathlib import Path

import hornbook
import hornbook_kernels

assert "site-packages" in hornbook.__file__, hornbook.__file__
assert "torch" not in sys.modules or "hornbook_kernels" in sys.modules
assert hornbook.__version__ == hornbook_kernels.__version__

rows = [{"text": f"the same words again and again number {i // 2}"} for i in range(10)]
Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "hornbook", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


assert hornbook.__version__ in run("--version")
report = json.loads(run("dedup", "in.jsonl", "--out", "clean", "--method", "exact", "--json"))
assert report["counts"]["kept"] == 5, report["counts"]
run("tokenizer", "train", "clean", "--vocab-size", "300", "--out", "tok")
run("pack", "clean", "--tokenizer", "tok/tokenizer.json", "--out", "packed")
run("verify", "packed")
plan = json.loads(run("run", "demo", "--dry-run", "--json"))
assert len(plan["steps"]) > 20, plan
print("the wheels work")
