"""The page of a dedup run: some removed documents beside those that they went against.

open clean/evidence/pairs.html
"""

import difflib
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hornbook.files import json_lines, write_text

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 110em; padding: 0 1em; }
table { border-collapse: collapse; margin: 0 0 1.5em; }
th, td { border-bottom: 1px solid #8884; padding: .2em .7em; text-align: left; }
td.code { white-space: pre-wrap; font: 12px/1.35 monospace; width: 50%; vertical-align: top;
          border: 0; padding: 0 .7em; word-break: break-word; }
tr.differs td.code { background: #fc03; }
.warning { background: #f003; padding: .4em .7em; }
"""


def write_page(folder: Path, details: Mapping[str, Any]) -> None:
    """Writes `evidence/pairs.html` from `evidence/pairs.json` and the manifest's details.

    Raises:
        StorageError: If it cannot be written.
    """
    pairs = list(json_lines((folder / "evidence" / "pairs.json").read_text(encoding="utf-8")))
    parts = ["<!doctype html><meta charset=utf-8><title>dedup</title>", f"<style>{STYLE}</style>"]
    parts += [f"<p class=warning>{html.escape(text)}</p>" for text in details["warnings"]]
    parts.append("<h2>Removed by source</h2><table><tr><th>source<th>documents<th>removed<th>share")
    for name, count in details["sources"].items():
        share = count["removed"] / count["rows"] if count["rows"] else 0
        parts.append(
            f"<tr><td>{html.escape(name)}<td>{count['rows']:,}<td>{count['removed']:,}"
            f"<td>{share:.1%}"
        )
    parts.append("</table>")
    if "recall_curve" in details:
        measured = details["measured_recall"]
        parts.append(f"<h2>Recall of {details['bands']} bands of {details['rows']}</h2><table><tr>")
        parts += [f"<th>{j}" for j in details["recall_curve"]]
        parts.append("<tr>")
        parts += [f"<td>{chance:.3f}" for chance in details["recall_curve"].values()]
        parts.append("</table><p>")
        parts.append(
            f"A pair of that Jaccard similarity is found with that probability. On a sample of "
            f"{measured['sampled_documents']:,} documents, {measured['pairs_found']:,} of "
            f"{measured['similar_pairs']:,} pairs at the threshold were."
        )
    parts.append("<h2>Removed and kept, side by side</h2>")
    if not pairs:
        parts.append("<p>No near copy was removed.")
    parts += [_pair(pair) for pair in pairs]
    write_text(folder / "evidence" / "pairs.html", "\n".join(parts) + "\n")


def _pair(pair: Mapping[str, Any]) -> str:
    kept = pair["kept_text"]
    left = pair["removed_text"].splitlines()
    right = kept.splitlines() if kept is not None else ["(in what it was compared against)"]
    rows = [
        f"<h3>Jaccard {pair['jaccard']:.3f}</h3><table>",
        f"<tr><th>removed {html.escape(pair['removed'])}<th>kept {html.escape(pair['kept'])}",
    ]
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        differs = "" if kind == "equal" else " class=differs"
        sides = (html.escape("\n".join(side)) for side in (left[a:b], right[c:d]))
        rows.append(f"<tr{differs}>" + "".join(f"<td class=code>{side}" for side in sides))
    rows.append("</table>")
    return "\n".join(rows)
