"""The run's log: one JSON line a step in `metrics.jsonl`, each step once however often it resumed.

tail -f runs/demo/pretrain/metrics.jsonl
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from hornbook.errors import StorageError


class MetricsLog:
    """Appends records; what a killed run wrote past its checkpoint is dropped on opening.

    Args:
        path: The file.
        step: Records of later steps are dropped: training goes on after this one.

    Raises:
        StorageError: If the disk refuses.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self.path = path
        kept = [
            json.dumps(record) + "\n" for record in read_metrics(path) if record["step"] <= step
        ]
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error

    def write(self, record: dict[str, Any]) -> None:
        """Adds a record; it reaches the disk at the next `sync` at the latest."""
        try:
            self._file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error

    def sync(self) -> None:
        """Makes sure that everything is on disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a log, in order; a torn last line is left out, and none is fine."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
