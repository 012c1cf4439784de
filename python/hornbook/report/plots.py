"""The report's figures, as SVG text without fonts or links of their own."""

import io
import itertools
import re
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib.figure import Figure

BASE, TUNED, INK, GRID = "#9db4c0", "#c8553d", "#22313a", "#e4e0d8"
ARMS = ("#7a8b99", "#d9a441", "#c8553d", "#4d6a6d", "#8a5a83", "#5b8e7d")

mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "hornbook",
        "font.family": "sans-serif",
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": "#b9b3a7",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
    }
)


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Identifiers must not meet those of the page's other figures.
    mark = re.sub(r"\W+", "-", title.lower())
    text = re.sub(r'id="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{mark}-\2"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{mark}-\1)", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'class="figure"', text, count=1)


def pass_bars(by_seed: list[dict[str, Any]]) -> str:
    """Figure 2.1's form: pass@1 of base and finetuned models by arm, with 95% intervals.

    With several seeds: the mean, and a dot for each seed.
    """
    arms = list(by_seed[0]["arms"])
    labels = [_arm_label(arm) for arm in arms]
    widths = [max(map(len, label.split("\n"))) for label in labels]
    # Long names of many arms stand upright, where they do not meet.
    upright = sum(widths) + 2 * len(widths) > 100
    height = 4.1 + (0.085 * max(widths) if upright else 0)
    figure = Figure(figsize=(max(8.4, 0.9 * len(arms)), height), layout="constrained")
    axes = figure.subplots()
    for offset, stage, color in ((-0.2, "base", BASE), (0.2, "finetuned", TUNED)):
        label: str | None = stage
        for x, arm in enumerate(arms):
            scores = [s["arms"][arm][stage] for s in by_seed if stage in s["arms"][arm]]
            if not scores:
                continue
            values = [100 * score["pass@1"] for score in scores]
            mean = sum(values) / len(values)
            axes.bar(x + offset, mean, 0.36, color=color, label=label)
            label = None
            if len(scores) == 1:
                low, high = (100 * scores[0][key] for key in ("low", "high"))
                error = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
                axes.errorbar(x + offset, mean, yerr=error, color=INK, capsize=3, lw=1.2)
                top = high
            else:
                axes.plot([x + offset] * len(values), values, "o", color=INK, ms=4)
                top = max(values)
            axes.text(x + offset, top + 1.5, f"{mean:.0f}", ha="center", va="bottom")
    axes.set_xticks(range(len(arms)), labels, rotation=90 if upright else 0)
    axes.set_ylabel("pass@1 on held-out problems, %")
    axes.set_ylim(0, 110)
    axes.tick_params(length=0)
    figure.legend(loc="outside upper left", ncols=2)
    return _svg(figure, "pass at 1 by arm")


def _arm_label(arm: str) -> str:
    short = arm if len(arm) <= 60 else f"{arm[:57]}..."
    return "finetune only" if arm == "none" else short.replace("+", "\n+ ")


def loss_curves(loss: dict[str, Any]) -> str:
    """Training loss by step, pretraining left, finetuning right."""
    titles = {"base": "pretraining", "finetuned": "finetuning"}
    stages = [stage for stage in titles if any(stage in curves for curves in loss.values())]
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    # More arms than colours go round again, in other dashes.
    looks = [(color, dashes) for dashes in ("-", "--", ":", "-.") for color in ARMS]
    lines: dict[str, Any] = {}
    for axes, stage in zip(panels, stages, strict=True):
        for (color, dashes), (arm, curves) in zip(itertools.cycle(looks), loss.items()):
            if stage in curves:
                steps, values = zip(*curves[stage], strict=True)
                mark = "o" if len(steps) == 1 else None
                (lines[_arm_label(arm)],) = axes.plot(
                    steps, values, dashes, color=color, lw=1.6, marker=mark
                )
        axes.set_title(titles[stage], loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("loss, nats per token")
    figure.legend(lines.values(), lines.keys(), loc="outside right upper")
    return _svg(figure, "loss curves")


def time_bars(stages: list[dict[str, Any]]) -> str:
    """Where the time went."""
    rows: dict[str, float] = {}
    for stage in stages:
        name = stage["name"]
        for prefix in ("decontaminate", "pack", "evaluate", "study"):
            if name.startswith(prefix + "/"):
                name = prefix
        if name.startswith("train/"):
            name = "finetune" if name.endswith("finetuned") else "pretrain"
        rows[name] = rows.get(name, 0.0) + stage["seconds"]
    names = list(rows)[::-1]
    figure = Figure(figsize=(8.4, 0.6 + 0.27 * len(names)), layout="constrained")
    axes = figure.subplots()
    values = [rows[name] for name in names]
    axes.barh(names, values, color=BASE, height=0.7)
    for y, value in enumerate(values):
        axes.text(value + max(values) * 0.008, y, f"{value:.1f}", va="center", fontsize=10)
    axes.grid(False)
    axes.set_xlabel("seconds of one process (training steps run side by side)")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    return _svg(figure, "time by stage")
