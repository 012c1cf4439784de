"""JSON lines that grow: what a killed run had finished, read again by the next.

append_lines(path, [{"n": 1}]); read_journal(path)
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hornbook.errors import StorageError


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows; they are on disk when this returns.

    Raises:
        StorageError: If the disk refuses.
    """
    data = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        with path.open("a", encoding="ascii") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; what a kill tore off its end is cut away."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    rows: list[dict[str, Any]] = []
    whole = 0
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if not isinstance(row, dict):
            break
        rows.append(row)
        whole += len(line)
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    return rows
