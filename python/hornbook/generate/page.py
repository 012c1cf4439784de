"""What a person sees of a generated data set: `report.html`, the card (`README.md`), its cells.

The page stands alone (no scripts, nothing from outside): how many rows, what they cost, how novelty
went, which cells are covered, what was turned away and why, and samples. All text from the teacher
is escaped. No file says when it was made, so the same run gives the same bytes.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hornbook import corpus, webpage
from hornbook.files import write_text
from hornbook.generate.prompts import digest
from hornbook.generate.slots import Spec

SAMPLES = 24
_AXES = ("topic", "audience", "concept", "difficulty")
_LISTED = 15

Cell = Mapping[str, Any]


def write(
    folder: Path,
    *,
    spec: Spec,
    config: Mapping[str, Any],
    details: Mapping[str, Any],
    cells: Sequence[Cell],
) -> None:
    """Writes `report.html`, `README.md` and `evidence/cells.json` beside the parts.

    Args:
        folder: The stage's folder, with its parts written.
        spec: What was asked for.
        config: The stage's.
        details: The manifest's.
        cells: Every cell that was tried: its ids, `tried`, `rows`, `filled`, `new`, `usd`.

    Raises:
        StorageError: If they cannot be written.
    """
    samples = _samples(folder)
    write_text(folder / "report.html", html(spec, config, details, cells, samples))
    write_text(folder / "README.md", card(spec, config, details, cells))
    (folder / "evidence").mkdir(exist_ok=True)
    lines = "".join(json.dumps(dict(cell)) + "\n" for cell in cells)
    write_text(folder / "evidence" / "cells.json", lines)


def _samples(folder: Path) -> list[dict[str, Any]]:
    """Rows chosen by hash, so that they are spread over the data set."""
    # By name: the folder is not a finished stage's yet.
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        return []
    best: list[tuple[int, dict[str, Any]]] = []
    for row in corpus.read(parts):
        best.append((digest("sample", row["slot"]), row))
        if len(best) > 4 * SAMPLES:
            best = sorted(best, key=lambda pair: pair[0])[:SAMPLES]
    return [row for _, row in sorted(best, key=lambda pair: pair[0])[:SAMPLES]]


# The page


def html(
    spec: Spec,
    config: Mapping[str, Any],
    details: Mapping[str, Any],
    cells: Sequence[Cell],
    samples: Sequence[Mapping[str, Any]],
) -> str:
    """The page as text."""
    steering = details["steering"]
    tried, rows = sum(c["tried"] for c in cells), sum(c["rows"] for c in cells)
    marginal = steering["marginal_novelty"]
    cost = details["cost_usd"]
    boxes = [
        ("rows", f"{rows:,}"),
        ("yield", _percent(rows, tried)),
        ("cost", f"${cost:,.2f}" if cost is not None else "–"),
        ("tokens", f"{details['tokens']:,}"),
        ("distinct structures", f"{steering['distinct']:,}"),
        ("effective number of them", f"{steering['effective']:,.0f}"),
        ("new per 1,000 rows, at the end", _number(marginal["per_1000_rows"])),
        ("new per dollar, at the end", _number(marginal["per_dollar"])),
        ("cells with rows", f"{steering['cells_with_rows']:,} of {steering['cells']:,}"),
    ]
    cards = "".join(f"<div class=card><b>{value}</b>{label}</div>" for label, value in boxes)
    stopped = details["stopped"] or steering["ended"]
    note = f"<p>It ended early: {escape(stopped)}.</p>" if stopped else ""
    parts = [
        f"<h1>{escape(spec.kind.capitalize())}: {escape(spec.curriculum.name)}</h1>"
        f"<p>Asked of {escape(str(config['model']))} with seed {config['seed']}; "
        f"{_verified(details)}.</p>{note}<div class=cards>{cards}</div>",
        "<h2>Novelty</h2><p>Rows and distinct structures against calls. A structure is code without"
        " names and values; where the lower line bends, answers repeat.</p>"
        + _curve(steering["curve"]),
        "<h2>Coverage</h2><p>Rows by chapter and audience; empty squares have none.</p>"
        + _heat(spec, cells),
        "<h2>Yield and cost</h2><p>Of each cell: evidence/cells.json. Summed up:</p>"
        + _by_axis("chapter", [{**c, "chapter": c["topic"].split(".")[0]} for c in cells])
        + "".join(_by_axis(axis, cells) for axis in _AXES),
        "<h2>Turned away</h2>" + _reasons(details, tried - rows),
        "<h2>Samples</h2>" + "".join(map(_sample, samples)),
    ]
    title = f"Hornbook: {spec.kind}, {spec.curriculum.name}"
    return webpage.page(title, "\n".join(parts), _CSS)


_CSS = """
svg { max-width: 100%; height: auto; } .scroll svg { max-width: none; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
details { margin: .5em 0; } summary { cursor: pointer; }
details pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def _verified(details: Mapping[str, Any]) -> str:
    return "every row was run" if details["verified"] else "nothing was run"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _curve(points: Sequence[Sequence[int]]) -> str:
    if len(points) < 2:
        return "<p>Too few calls to draw.</p>"
    width, height, left, bottom = 640, 240, 76, 28
    most_x, most_y = points[-1][0], max(max(p[1] for p in points), 1)

    def place(calls: int, value: int) -> str:
        x = left + (width - left - 110) * calls / most_x
        y = height - bottom - (height - bottom - 12) * value / most_y
        return f"{x:.1f},{y:.1f}"

    lines = []
    above = -math.inf
    for column, name, look in (
        (1, "rows", 'stroke="#8a8f98" stroke-width="4"'),
        (2, "distinct structures", 'stroke="#1f77b4" stroke-width="2"'),
    ):
        path = " ".join(place(point[0], point[column]) for point in points)
        x, y = map(float, place(points[-1][0], points[-1][column]).split(","))
        # There are never fewer rows: their name stands on top.
        above = max(y + 4, above + 13)
        lines.append(
            f'<polyline points="{path}" fill="none" {look}/>'
            f'<text x="{x + 6:.0f}" y="{above:.0f}">{name}</text>'
        )
    floor = height - bottom
    axis = (
        f'<path d="M{left},8V{floor}H{width - 110}" fill="none" stroke="currentColor"/>'
        f'<text x="{left - 6}" y="16" text-anchor="end">{most_y:,}</text>'
        f'<text x="{left - 6}" y="{floor}" text-anchor="end">0</text>'
        f'<text x="{width - 110}" y="{floor + 18}" text-anchor="end">{most_x:,} calls</text>'
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="rows and distinct structures against calls">{axis}{"".join(lines)}</svg>'
    )


def _heat(spec: Spec, cells: Sequence[Cell]) -> str:
    chapters: dict[str, str] = {}
    for topic in spec.curriculum.topics:
        chapters[topic.id.split(".")[0]] = topic.chapter.split(" / ")[0]
    audiences = [audience.id for audience in spec.curriculum.audiences]
    filled: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        filled[cell["topic"].split(".")[0], cell["audience"]] += cell["rows"]
    most = max(filled.values(), default=0) or 1
    left, top, wide, high = 190, 92, 34, 18
    marks = [
        f'<text transform="translate({left + wide * x + 14},{top - 8}) rotate(-45)">'
        f"{escape(name)}</text>"
        for x, name in enumerate(audiences)
    ]
    for y, (chapter, title) in enumerate(chapters.items()):
        marks.append(
            f'<text x="{left - 8}" y="{top + high * y + 13}" text-anchor="end">'
            f"{escape(title[:30])}</text>"
        )
        for x, audience in enumerate(audiences):
            rows = filled[chapter, audience]
            # Square roots, so that few rows can be told from none.
            shade = 0.12 + 0.88 * (rows / most) ** 0.5 if rows else 0
            fill = f'fill="#1f77b4" fill-opacity="{shade:.2f}"' if rows else 'fill="none"'
            marks.append(
                f'<rect x="{left + wide * x}" y="{top + high * y}" width="{wide - 2}" '
                f'height="{high - 2}" {fill} stroke="#8a8f98" stroke-opacity="0.35">'
                f"<title>{escape(title)}, {escape(audience)}: {rows:,} rows</title></rect>"
            )
    width, height = left + wide * len(audiences) + 60, top + high * len(chapters) + 8
    return (
        f'<div class=scroll><svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="rows by chapter and audience">{"".join(marks)}</svg></div>'
    )


def _by_axis(axis: str, cells: Sequence[Cell]) -> str:
    sums: dict[str, list[float]] = {}
    for cell in cells:
        total = sums.setdefault(cell[axis], [0, 0, 0, 0.0])
        for place, name in enumerate(("tried", "rows", "new", "usd")):
            total[place] += cell[name]
    ranked = sorted(sums.items(), key=lambda item: (-item[1][0], item[0]))
    lines = [
        f"<tr><td>{escape(name)}<td class=n>{tried:,.0f}<td class=n>{rows:,.0f}"
        f"<td class=n>{_percent(rows, tried)}<td class=n>{new:,.0f}<td class=n>"
        f"{f'${usd / rows:.5f}' if usd and rows else '–'}"
        for name, (tried, rows, new, usd) in ranked[:_LISTED]
    ]
    more = f"<p>and {len(ranked) - _LISTED:,} more</p>" if len(ranked) > _LISTED else ""
    head = (
        f"<tr><th>{axis}<th class=n>calls<th class=n>rows<th class=n>yield"
        "<th class=n>new structures<th class=n>cost a row"
    )
    return f"<div class=scroll><table>{head}{''.join(lines)}</table></div>{more}"


def _reasons(details: Mapping[str, Any], turned_away: int) -> str:
    reasons = details["dropped"]
    if not reasons:
        return "<p>Nothing was turned away.</p>"
    most = max(reasons.values())
    lines = [
        f"<tr><td>{escape(code)}<td class=n>{number:,}<td>"
        f'<svg width="200" height="12"><rect width="{200 * number / most:.0f}" height="12" '
        'fill="#c44e52"/></svg>'
        for code, number in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    return (
        f"<p>{turned_away:,} answers; each with its reason is in rejected/rows.jsonl.</p>"
        f"<div class=scroll><table>{''.join(lines)}</table></div>"
    )


def _sample(row: Mapping[str, Any]) -> str:
    title = row.get("entry_point") or row["text"].split("\n", 1)[0].lstrip("# ")[:80]
    about = ", ".join(escape(str(row[axis])) for axis in _AXES)
    tests = f"\n# tests\n{row['tests']}" if row.get("tests") else ""
    return (
        f"<details><summary><b>{escape(title)}</b> {about}</summary>"
        f"<pre>{escape(row['text'] + tests)}</pre></details>"
    )


# The card


def card(
    spec: Spec, config: Mapping[str, Any], details: Mapping[str, Any], cells: Sequence[Cell]
) -> str:
    """The data set's card, as the Hub reads it."""
    steering = details["steering"]
    tried, rows = sum(c["tried"] for c in cells), sum(c["rows"] for c in cells)
    gate = config["gate"]
    reasons = "".join(
        f"| {code} | {number:,} |\n" for code, number in sorted(details["dropped"].items())
    )
    checks = (
        "Every row was parsed and run in a sandbox, twice over in two processes with the same "
        "results."
        + (
            f" Of {gate['mutants']} broken versions of each solution, at least "
            f"{gate['least_killed']:.0%} fail its tests."
            if spec.kind == "exercises" and gate["mutants"]
            else ""
        )
        if details["verified"]
        else "Rows were parsed; nothing was run."
    )
    against = ", ".join(gate["benchmarks"])
    return f"""\
---
task_categories: [text-generation]
tags: [synthetic, code, hornbook]
configs: [{{config_name: default, data_files: "part-*.parquet"}}]
---
# {spec.kind.capitalize()}: {spec.curriculum.name}

{rows:,} {spec.kind} in {spec.curriculum.language}, written by `{
        config["model"]
    }` for the curriculum
`{spec.curriculum.name}`: {len(spec.curriculum.topics):,} topics, {len(spec.curriculum.audiences)} \
audiences, {len(spec.concepts)} concepts, {len(spec.difficulties)} difficulties.

{checks}
{
        f"Rows that share 13 words in a row with {against} were turned away."
        if against
        else "Rows were not compared with any benchmark."
    }

| | |
|---|---|
| calls | {tried + details["repairs_answered"]:,} |
| rows | {rows:,} |
| tokens, prompts and answers | {details["tokens"]:,} |
| cost in US dollars | {details["cost_usd"] if details["cost_usd"] is not None else "unknown"} |
| cells with rows | {steering["cells_with_rows"]:,} of {steering["cells"]:,} |
| distinct structures | {steering["distinct"]:,} |
| effective number of structures | {steering["effective"]:,.1f} |
| estimated chance that one more row repeats a structure | {steering["coverage"]:.1%} |
| prompt | {config["prompt_id"]} |
| seed | {config["seed"]} |
| complete | {"yes" if details["complete"] else "no: " + details["stopped"]} |

| turned away | answers |
|---|---|
{reasons or "| nothing | 0 |" + chr(10)}
The text was written by a model: it can be wrong where no test looks, and it carries that model's
habits. Check the terms under which the model's output may be used. Every row names its prompt,
seed, call and cost; `hornbook trace ID --run FOLDER` prints them, FOLDER being this one.
"""
