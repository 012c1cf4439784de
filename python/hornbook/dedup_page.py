"""The page of a dedup run: some removed documents beside those that they went against.

open clean/evidence/pairs.html
"""

import difflib
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hornbook import webpage
from hornbook.files import json_lines, write_text

MOST_SOURCES = 30
"""Sources that the page lists: those of the most documents."""
STYLE = """
main { max-width: 100rem; }
table.pair { table-layout: fixed; width: 100%; }
table.pair th { overflow-wrap: anywhere; }
td.code { white-space: pre-wrap; font: 12px/1.35 ui-monospace, monospace; width: 50%; border: 0;
          padding: 0 .7em; overflow-wrap: anywhere; }
tr.differs td.code { background: #fc03; }
.warning { background: #f003; padding: .4em .7em; }
"""


def write_page(folder: Path, details: Mapping[str, Any]) -> None:
    """Writes `evidence/pairs.html` from `evidence/pairs.json` and the manifest's details.

    Raises:
        StorageError: If it cannot be written.
    """
    pairs = list(json_lines((folder / "evidence" / "pairs.json").read_text(encoding="utf-8")))
    parts = ["<h1>Deduplication</h1>"]
    parts += [f"<p class=warning>{html.escape(text)}</p>" for text in details["warnings"]]
    parts.append(
        "<h2>Removed by source</h2><div class=scroll><table>"
        "<tr><th>source<th>documents<th>removed<th>share"
    )
    sources = sorted(details["sources"].items(), key=lambda item: -item[1]["rows"])
    for name, count in sources[:MOST_SOURCES]:
        share = count["removed"] / count["rows"] if count["rows"] else 0
        parts.append(
            f"<tr><td>{html.escape(name)}<td>{count['rows']:,}<td>{count['removed']:,}"
            f"<td>{share:.1%}"
        )
    parts.append("</table></div>")
    if len(sources) > MOST_SOURCES:
        parts.append(f"<p>and {len(sources) - MOST_SOURCES:,} more; all are in manifest.json.</p>")
    if "recall_curve" in details:
        measured = details["measured_recall"]
        parts.append(f"<h2>Recall of {details['bands']} bands of {details['rows']}</h2>")
        parts.append("<div class=scroll><table><tr>")
        parts += [f"<th>{j}" for j in details["recall_curve"]]
        parts.append("<tr>")
        parts += [f"<td>{chance:.3f}" for chance in details["recall_curve"].values()]
        parts.append("</table></div><p>")
        parts.append(
            f"A pair of that Jaccard similarity is found with that probability. On a sample of "
            f"{measured['sampled_documents']:,} documents, {measured['pairs_found']:,} of "
            f"{measured['similar_pairs']:,} pairs at the threshold were."
        )
    parts.append("<h2>Removed and kept, side by side</h2>")
    if not pairs:
        parts.append("<p>No near copy was removed.")
    parts += [_pair(pair) for pair in pairs]
    page = webpage.page("Deduplication", "\n".join(parts), STYLE)
    write_text(folder / "evidence" / "pairs.html", page)


def _pair(pair: Mapping[str, Any]) -> str:
    kept = pair["kept_text"]
    left = pair["removed_text"].splitlines()
    right = kept.splitlines() if kept is not None else ["(in what it was compared against)"]
    rows = [
        f"<h3>Jaccard {pair['jaccard']:.3f}</h3><table class=pair>",
        f"<tr><th>removed {html.escape(pair['removed'])}<th>kept {html.escape(pair['kept'])}",
    ]
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        differs = "" if kind == "equal" else " class=differs"
        sides = (html.escape("\n".join(side)) for side in (left[a:b], right[c:d]))
        rows.append(f"<tr{differs}>" + "".join(f"<td class=code>{side}" for side in sides))
    rows.append("</table>")
    return "\n".join(rows)
