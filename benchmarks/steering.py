"""Does steering bring more distinct structures than asking every cell in turn, at equal calls?

On a simulated teacher: 300 cells, of which 15% give nothing and the others a row in 20 to 90% of
calls; each has 2 to 400 structures, of which a few come most of the time (Zipf, exponent 1.5); a
prompt that names what is there already is mostly heeded. Draws docs/steering.svg.

    python benchmarks/steering.py
"""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "generate_llm"))

from simulated_teacher import run  # noqa: E402

CELLS, CALLS, SEEDS = 300, (3_200, 6_400, 12_800, 25_600), (0, 1, 2)


def main() -> None:
    results = []
    for seed in SEEDS:
        for calls in CALLS:
            entry: dict[str, Any] = {"seed": seed, "calls": calls}
            for steered in (False, True):
                steering, world, seen = run(CELLS, calls, steered=steered, seed=seed)
                report = steering.report(seen.frequencies())
                gives = world.gives > 0
                entry["steered" if steered else "unsteered"] = {
                    "distinct": report["distinct"],
                    "effective": report["effective"],
                    "covered": round(float((steering.filled[gives] > 0).mean()), 4),
                    "curve": report["curve"],
                }
            results.append(entry)
            found = [entry[name] for name in ("unsteered", "steered")]
            plain, ours = found[0]["distinct"], found[1]["distinct"]
            print(
                f"seed {seed}, {calls:6,} calls: {plain:5,} unsteered, {ours:5,} steered "
                f"({ours / plain:.2f}x); cells with rows {found[0]['covered']:.1%}, "
                f"{found[1]['covered']:.1%}"
            )
    draw(results)
    for entry in results:
        for name in ("unsteered", "steered"):
            del entry[name]["curve"]
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
    }
    path = ROOT / "benchmarks" / "results" / "steering.json"
    path.write_text(json.dumps({**about, "cells": CELLS, "runs": results}, indent=1) + "\n")


def draw(results: list[dict]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "steering"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for entry in results:
        if entry["calls"] != max(CALLS):
            continue
        first = entry["seed"] == SEEDS[0]
        for name, color in (("unsteered", "#8a8f98"), ("steered", "#1f77b4")):
            curve = entry[name]["curve"]
            axes.plot(
                [point[0] for point in curve],
                [point[2] for point in curve],
                color=color,
                label=name if first else None,
            )
    axes.set_xlabel("calls")
    axes.set_ylabel("distinct structures accepted")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "steering.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
