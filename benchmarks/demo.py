"""Does the recipe show the paper's effect at small scale, with every training seed?

Runs `hornbook demo --seeds 3` (or reads a finished run), checks what should hold, and writes
`results/demo.json` and the README's figure.

    python benchmarks/demo.py                 # about 10 minutes on 2 cores
    python benchmarks/demo.py --run runs/demo # only read
"""

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from data import RESULTS, processor

from hornbook.report.plots import pass_bars

FIGURE = Path(__file__).parents[1] / "docs" / "demo.svg"
BEST, RAW, NONE = "filtered+textbooks", "raw", "none"


def checks(arms: dict) -> dict[str, bool]:
    """What one seed's scores should show."""
    best, raw = arms[BEST]["finetuned"], arms[RAW]["finetuned"]
    tuned = [arm["finetuned"]["pass@1"] for name, arm in arms.items() if name != NONE]
    return {
        "at least 200 problems": best["n"] >= 200,
        "finetuned best arm solves at least 40 %": best["pass@1"] >= 0.4,
        "twice the finetuned raw arm": best["pass@1"] >= 2 * raw["pass@1"],
        "95 % intervals apart": best["low"] > raw["high"],
        "base of the best arm above base of raw": arms[BEST]["base"]["pass@1"]
        > arms[RAW]["base"]["pass@1"],
        "finetune only below every arm": arms[NONE]["finetuned"]["pass@1"] < min(tuned),
    }


def main() -> None:
    """Runs or reads, checks, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a finished run; without it one is made")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    run = options.run
    if run is None:
        run = Path("runs/demo-seeds")
        command = [sys.executable, "-m", "hornbook", "demo", "--seeds", str(options.seeds)]
        subprocess.run([*command, "--out", str(run)], check=True)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    found = {str(entry["seed"]): checks(entry["arms"]) for entry in report["by_seed"]}
    for seed, results in found.items():
        for what, holds in results.items():
            print(f"seed {seed}: {'yes' if holds else 'NO '} {what}")
    kept = ("by_seed", "training", "tokens", "filter", "decontamination", "stages", "machine")
    data = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": processor(),
        "checks": found,
        **{key: report[key] for key in kept},
    }
    data["filter"].pop("held_out", {}).pop("calibration", None)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    svg = pass_bars(report["by_seed"])
    start = svg.index(">") + 1
    paper = '<rect width="100%" height="100%" fill="#fdfbf7"/>'
    FIGURE.write_text(svg[:start] + paper + svg[start:], encoding="utf-8")
    print(f"wrote {RESULTS / 'demo.json'} and {FIGURE}")


if __name__ == "__main__":
    main()
