"""Documents in and out, for stages written in Python.

A document is a row with `id` and `text` and any other columns; rows hold strings, integers, floats
and truths, and of any other value (a list, a time, a structure) its text. Input: Parquet, JSON
lines (plain, `.gz`, `.zst`) and folders of source files. Output: zstd Parquet parts. Reading holds
one batch (at most 1,024 rows) in memory; the Rust core does the work.

    from hornbook import corpus

    for row in corpus.read(["data/"]): print(row["id"], len(row["text"]))
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hornbook import _core
from hornbook.files import StrPath, write_text

SOURCE_EXTENSIONS = ("py",)
"""What counts as a source file when a folder holds no tables."""

Row = dict[str, Any]


class Documents:
    """Rows of some inputs in order; after the iteration, `rejected` says which were set aside."""

    def __init__(
        self, inputs: Sequence[StrPath], extensions: Sequence[str] = SOURCE_EXTENSIONS
    ) -> None:
        self._reader = _core.Reader([Path(path) for path in inputs], list(extensions))

    @property
    def schema(self) -> list[tuple[str, str]]:
        """`[(column, type)]`, `id` and `text` first; of types that rows do not hold, `string`."""
        known = ("string", "int64", "float64", "bool")
        return [(name, kind if kind in known else "string") for name, kind in self._reader.schema]

    @property
    def rejected(self) -> list[tuple[Path, int, str]]:
        """`[(file, row from 1, reason)]` so far."""
        return [(Path(path), row, reason) for path, row, reason in self._reader.rejected]

    def batches(self) -> Iterator[dict[str, list[Any]]]:
        """Columns of at most 1,024 rows at a time."""
        yield from self._reader

    def __iter__(self) -> Iterator[Row]:
        for columns in self._reader:
            names = list(columns)
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(names, values, strict=True))


def read(inputs: Sequence[StrPath], extensions: Sequence[str] = SOURCE_EXTENSIONS) -> Documents:
    """Opens inputs as one sequence of rows.

    Args:
        inputs: Parquet or JSON-lines files, or folders of either or of source files.
        extensions: Source files to take from a folder without tables, without the dot.

    Raises:
        InputError: If an input is missing or holds nothing that can be read.
    """
    return Documents(inputs, extensions)


def write(
    folder: StrPath,
    rows: Iterable[Mapping[str, Any]],
    schema: Mapping[str, str],
    *,
    batch_rows: int = 1024,
) -> list[dict[str, Any]]:
    """Writes rows as Parquet parts; returns the manifest's entries.

    Args:
        folder: Where the parts go; made if need be.
        rows: Each with a `text`; an absent `id` is the text's hash; absent columns are null.
        schema: Column -> `string`, `int64`, `float64` or `bool`. `id` and `text` are added.
        batch_rows: Rows handed to the core at a time. The bytes are the same for the same value.

    Raises:
        StorageError: If the disk is full or not writable.
    """
    columns = {"id": "string", "text": "string", **schema}
    writer = _core.Writer(Path(folder), list(columns.items()))
    batch: list[Mapping[str, Any]] = []

    def flush() -> None:
        values = {name: [row.get(name) for row in batch] for name in columns}
        values["id"] = [
            row.get("id") or _core.hash_bytes(str(row["text"]).encode()) for row in batch
        ]
        writer.write(values)
        batch.clear()

    for row in rows:
        batch.append(row)
        if len(batch) >= batch_rows:
            flush()
    if batch:
        flush()
    return writer.finish()


def write_rejected(folder: StrPath, rejected: Sequence[tuple[Path, int, str]]) -> None:
    """Writes rows that were set aside to `rejected/rows.jsonl`; nothing if there are none."""
    if not rejected:
        return
    target = Path(folder) / "rejected"
    target.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"path": str(path), "row": row, "reason": reason})
        for path, row, reason in rejected
    ]
    write_text(target / "rows.jsonl", "\n".join(lines) + "\n")
