"""One document's way through a run: which stages kept it, which dropped it, and why.

hornbook trace 1f0c9d --run runs/demo
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hornbook import corpus
from hornbook.errors import InputError
from hornbook.evaluate.problems import read_objects
from hornbook.files import StrPath
from hornbook.manifest import MANIFEST, read_manifest

_FLOW = ("pool", "source", "dedup", "annotate", "filter", "textbooks", "exercises")
_ROUNDS = ("public", "heldout")


def trace(row_id: str, run_folder: StrPath) -> Iterator[str]:
    """Lines that tell a document's way.

    Args:
        row_id: Its id, or the beginning of it; for an answer that made no row, its call's.
        run_folder: A run's folder, or that of one stage.

    Raises:
        InputError: If no stage of the run has or dropped such a document, or several match.
    """
    root = Path(run_folder)
    stages = [root / name for name in _FLOW]
    for name in _ROUNDS:
        stages += sorted((root / "decontaminate" / name).glob("*"))
    if (root / MANIFEST).is_file():
        stages, root = [root], root.parent
    stages = [folder for folder in stages if (folder / MANIFEST).is_file()]
    if not stages:
        raise InputError(f"{root}: no finished data stage in it")
    ways: dict[str, list[str]] = {}
    in_pool: set[str] = set()
    for folder in stages:
        manifest = read_manifest(folder)
        name = str(folder.relative_to(root))
        made = f"{name} ({manifest['started']}, key {manifest['key'][:12]})"
        here = [row for row in corpus.read([folder]) if str(row["id"]).startswith(row_id)]
        for row in here:
            way = ways.setdefault(row["id"], [])
            way.append(f"{made}: kept")
            way.extend(f"    {line}" for line in _columns(row))
        ids = {row["id"] for row in here}
        if name in ("source", "dedup"):
            in_pool = ids
        elif name == "filter":
            for dropped in in_pool - ids:
                ways[dropped].append(f"{made}: dropped: its score was below the threshold")
        for entry in _turned_away(folder):
            if entry["call"].startswith(row_id):
                way = ways.setdefault(entry["call"], [])
                way.append(f"{made}: turned away: {entry['reason']}: {entry['detail']}")
                way.append(f"    slot = {entry['slot']}")
        for entry in _evidence(folder):
            dropped = str(entry.pop("removed_id", "") or entry.pop("id", ""))
            if dropped.startswith(row_id):
                why = ", ".join(f"{key}={value}" for key, value in entry.items())
                ways.setdefault(dropped, []).append(f"{made}: dropped: {why}")
    if not ways:
        raise InputError(f"{row_id}: no document with this id in {root}")
    # A whole id is meant, though it may begin others.
    if row_id not in ways and len(ways) > 1:
        raise InputError(f"{row_id}: begins several ids: {', '.join(sorted(ways)[:5])}")
    chosen = row_id if row_id in ways else next(iter(ways))
    yield f"document {chosen}"
    yield from ways[chosen]


def _columns(row: dict[str, Any]) -> Iterator[str]:
    for key, value in row.items():
        if key in ("id", "text", "tests") or value is None:
            continue
        yield f"{key} = {value}"
    yield f"text: {len(row['text']):,} characters"


def _turned_away(folder: Path) -> Iterator[dict[str, Any]]:
    """Answers of a teacher that made no row; they are known by their call."""
    path = folder / "rejected" / "rows.jsonl"
    if path.is_file():
        for _, entry in read_objects(path):
            if "call" in entry:
                yield entry


def _evidence(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("evidence/*.json")):
        yield from (entry for _, entry in read_objects(path))
