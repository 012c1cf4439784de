"""The run's log: one JSON line a step in `metrics.jsonl`, each step once however often it resumed.

MFU is `flops_per_token` (see `plan`) times tokens per second of one device, over what a large
matrix product in the run's precision was measured to reach on that device when the run began: a
ceiling of the card as it is, not of its data sheet.

    tail -f runs/demo/train/raw/seed-0/base/metrics.jsonl
"""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hornbook.errors import StorageError
from hornbook.files import json_lines, write_text


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
        write_text(path, "".join(kept))
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Adds a record and returns it as written; after `sync` it is on disk.

        What is not finite is written as null, which any reader of JSON takes.
        """
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        try:
            self._file.write(json.dumps(plain) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error
        return plain

    def sync(self) -> None:
        """Makes sure that everything is on disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Ends it."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a log, in order; a torn last line is left out, and none is fine."""
    if not path.is_file():
        return []
    records = json_lines(path.read_text(encoding="utf-8", errors="replace"), torn=True)
    return [r for r in records if isinstance(r, dict) and isinstance(r.get("step"), int)]


def last_loss(path: Path) -> float:
    """Mean loss of a log's last steps (up to 50)."""
    losses = [record["loss"] for record in read_metrics(path)[-50:]]
    losses = [loss for loss in losses if loss is not None]
    return sum(losses) / len(losses) if losses else math.nan


def matrix_ceiling(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """Floating-point operations per second of a large square matrix product, measured.

    Args:
        device: Where.
        dtype: Of the matrices.
        seconds: How long to measure, after one product to warm up.
    """
    gpu = device.type == "cuda"
    size = 8192 if gpu else 512
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)

    def wait() -> None:
        if gpu:
            torch.cuda.synchronize(device)

    (a @ b).sum().item()
    best, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        wait()
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - start))
    return best


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: of the GPU by torch, else of main memory by the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
