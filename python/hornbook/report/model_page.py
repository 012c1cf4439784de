"""A page of one model's results beside the paper's tables, saying what can be compared.

Reads finished folders (of `evaluate`, `grade` and `evaluate probes`), checks that they are of one
model, and writes one HTML file without scripts or outside references.

    write_model_page(["scores/humaneval", "scores/mbpp"], "model.html")
"""

import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from hornbook import webpage
from hornbook.errors import InputError
from hornbook.files import StrPath, read_json, write_text

# The paper's table 1 and its table of unconventional problems: size, tokens, scores in percent.
PAPER: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("Codex-300M", "300M", "100B", "13.2", "–", "–"),
    ("CodeGen-Mono-350M", "350M", "577B", "12.8", "–", "19"),
    ("CodeGen-Mono-16.1B", "16.1B", "577B", "29.3", "35.3", "38"),
    ("SantaCoder", "1.1B", "236B", "14.0", "35.0", "–"),
    ("Replit", "2.7B", "525B", "21.9", "–", "37"),
    ("StarCoder", "15.5B", "1T", "33.6", "52.7", "51"),
    ("StarCoder-Prompted", "15.5B", "1T", "40.8", "49.5", "–"),
    ("PaLM-Coder", "540B", "780B", "35.9", "47.0", "–"),
    ("WizardCoder", "16B", "1T", "57.3", "51.8", "–"),
    ("GPT-3.5", "175B", "n/a", "47", "–", "–"),
    ("phi-1-base", "1.3B", "7B", "29", "–", "37"),
    ("phi-1-small", "350M", "7B", "45", "–", "45"),
    ("phi-1", "1.3B", "7B", "50.6", "55.5", "52"),
)
_COMPARABLE = {
    "humaneval": (
        "Comparable: the benchmark's own file, prompts and tests. The paper does not say how its "
        "prompts ended nor where answers were cut; those rules move scores, and ours are above."
    ),
    "mbpp": (
        "Comparable only with scores of the same protocol; the paper does not say which it used."
    ),
    "mbpp-sanitized": "Not comparable with the paper's MBPP: a subset with reworded tasks.",
    "humaneval+": "Not in the paper; comparable with EvalPlus's, but for its time limits.",
    "mbpp+": "Not in the paper; comparable with EvalPlus's v0.2.0, but for its time limits.",
    "unconventional": (
        "Not comparable with the paper's figures: its 50 problems are not published; these are "
        "ours, here scored by hidden tests."
    ),
}
_GRADED = (
    "Not comparable with the paper's column: other problems, another grader, and another prompt "
    "(the paper's is not published). Models graded by the same grader here can be compared."
)


def write_model_page(folders: Sequence[StrPath], out: StrPath, *, name: str = "") -> Path:
    """Writes the page.

    Args:
        folders: Finished folders of evaluations, gradings and probes.
        out: The HTML file.
        name: What to call the model; else what it was opened by, and where results know only its
            weights' hash, their folder.

    Raises:
        InputError: If a folder holds no result, or evaluations are of different models.
    """
    scores: list[dict[str, Any]] = []
    scored: list[Path] = []
    grades: list[dict[str, Any]] = []
    probes: list[dict[str, Any]] = []
    for folder in map(Path, folders):
        if (folder / "probes.json").is_file():
            probes.append(read_json(folder / "probes.json"))
            continue
        if not (folder / "summary.json").is_file():
            raise InputError(f"{folder}: holds neither summary.json nor probes.json")
        summary = read_json(folder / "summary.json")
        if "agreement" in summary:
            grades.append(summary)
        else:
            scores.append(summary)
            scored.append(folder)
    models = {str(summary.get("model_id")) for summary in scores}
    if len(models) > 1:
        raise InputError(f"these are results of {len(models)} models; a page shows one")
    if not scores and not grades and not probes:
        raise InputError("name at least one finished folder")
    title = name or _title(next(iter(models), ""), scored, probes)
    body = [f"<h1>{escape(title)}</h1>"]
    if scores or grades:
        body.append(_beside(title, scores, grades))
    body += [_score(summary) for summary in scores]
    body += [_grade(summary) for summary in grades]
    body += [_probes(found) for found in probes]
    page = webpage.page(title, "\n".join(body))
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        path,
        "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in page),
    )
    return path


def _title(model_id: str, folders: Sequence[Path], probes: Sequence[dict[str, Any]]) -> str:
    """A name for a model that was not given one."""
    if not folders:
        labels = dict.fromkeys(label for found in probes for label in found["models"])
        return ", ".join(labels) or "a model"
    if not re.fullmatch(r"[0-9a-f]{32}|None", model_id):
        return model_id
    common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    return f"the model of {common.name or common}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(tag: str, cells: Sequence[Any]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells)

    return (
        "<div class=scroll><table>"
        + line("th", head)
        + "".join(line("td", row) for row in rows)
        + "</table></div>"
    )


def _percent(value: Any) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _interval(found: dict[str, Any]) -> str:
    return f"{_percent(found['mean'])} [{_percent(found['low'])}, {_percent(found['high'])}]"


def _beside(title: str, scores: Sequence[dict[str, Any]], grades: Sequence[dict[str, Any]]) -> str:
    def own(name: str) -> str:
        some = [s for s in scores if s["problems"] == name and "1" in s["pass_at_k"]]
        return _interval(some[0]["pass_at_k"]["1"]) if some else "–"

    graded = [
        g for g in grades if g["problems"] == "unconventional" and g.get("percent") is not None
    ]
    ours = (
        title,
        "–",
        "–",
        own("humaneval"),
        own("mbpp"),
        f"{graded[0]['percent']:.1f} *" if graded else "–",
    )
    head = ("model", "size", "tokens", "HumanEval", "MBPP", "unconventional (graded)")
    return (
        "<h2>Beside the paper</h2><p>pass@1 in percent, ours with 95% intervals; the other rows "
        "are the paper's figures. * other problems and another grader: see below.</p>"
        + _table(head, [ours, *PAPER])
    )


def _score(summary: dict[str, Any]) -> str:
    rows = [[f"pass@{k}", _interval(found)] for k, found in summary["pass_at_k"].items()]
    limits = summary["limits"]
    facts = [
        ("problems", f"{summary['n']}, sha256 {summary['problems_sha256'][:12]}"),
        ("protocol", summary["protocol"]),
        ("prompt", summary["settings"].get("prompt", "as given")),
        ("stop strings", ", ".join(map(repr, summary["stop"])) or "none"),
        ("extraction", summary["extraction"]),
        ("drawing", ", ".join(f"{k}={v}" for k, v in summary["settings"].items() if k != "prompt")),
        ("limits", f"{limits['cpu_s']:g} s CPU, {limits['memory_mb']} MB"),
        ("isolation", summary["isolation"]),
        ("tests out of the answer's reach", "all" if summary["tamper_proof"] else "not all"),
        ("model", summary["model_id"]),
        ("endings", ", ".join(f"{v} {k}" for k, v in summary["statuses"].items())),
    ]
    note = _COMPARABLE.get(summary["problems"], "Not in the paper: nothing there to compare with.")
    return (
        f"<h2>{escape(summary['problems'])}</h2>{_table(('', '% [95%]'), rows)}"
        f"<p>{escape(note)}</p>{_table(('condition', ''), facts)}"
    )


def _grade(summary: dict[str, Any]) -> str:
    agreement = summary["agreement"]
    rows = [
        ("mean grade, %", "–" if summary["percent"] is None else f"{summary['percent']:.1f}"),
        (
            "95% interval, of 10",
            "–" if summary["low"] is None else f"{summary['low']:.2f} to {summary['high']:.2f}",
        ),
        ("scored", f"{summary['scored']} of {summary['attempts']}"),
        ("attempts in void batches", summary.get("in_void", "–")),
        ("batches, void", f"{summary['batches']}, {len(summary['void'])}"),
        ("views differ by 2 or more", summary["flagged"]),
        ("right answers graded right, %", _percent(agreement["true_positive_rate"])),
        ("wrong answers graded wrong, %", _percent(agreement["true_negative_rate"])),
        ("grader", summary["grader"]),
    ]
    note = _GRADED
    if "note" in summary:
        reasons = "; ".join(reason for found in summary["void"].values() for reason in found)
        note = f"{summary['note'].capitalize()} ({reasons})."
    return (
        f"<h2>Graded: {escape(summary['problems'])}</h2>{_table(('', ''), rows)}"
        f"<p>{escape(note)}</p>"
    )


def _probes(found: dict[str, Any]) -> str:
    parts = [
        "<h2>Probes</h2><p>pass@1 on the problems that each kind changes, before and after, and "
        "the paired change with its 95% interval. The paper gives no figures for these limits.</p>"
    ]
    for label, kinds in found["robustness"].items():
        rows = [
            (
                kind,
                found["kinds"][kind],
                one["n"],
                _percent(one["before"]),
                _percent(one["after"]),
                f"{100 * one['change']:+.1f} [{_percent(one['low'])}, {_percent(one['high'])}]",
            )
            for kind, one in kinds.items()
        ]
        head = ("kind", "what it does", "n", "before", "after", "change")
        parts.append(f"<h3>{escape(label)}</h3>" + _table(head, rows))
        items = found["items"][label]
        parts.append(
            _table(
                ("items", "right"),
                [(name, f"{one['passed']} of {one['n']}") for name, one in items.items()],
            )
        )
    imported = [
        (row["package"], _percent(row["training"]), _percent(row["answers"]))
        for row in found["imports"]
    ]
    parts.append(
        "<h3>Imports</h3>"
        + (
            _table(("package", "% of training texts", "% of answers"), imported)
            if imported
            else "<p>None imports a package.</p>"
        )
    )
    parts.append("<h3>Side by side</h3>")
    for one in found["side_by_side"]:
        parts.append(f"<h4>{escape(one['kind'])}</h4><pre>{escape(one['prompt'])}</pre>")
        for label, answer in one["answers"].items():
            parts.append(f"<p>{escape(label)}</p><pre>{escape(answer[:4000])}</pre>")
    return "\n".join(parts)
