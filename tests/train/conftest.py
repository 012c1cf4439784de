"""An in-memory data set with the interface of `hornbook.PackedDataset`; several processes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RUN = Path(__file__).with_name("run.py")
LENGTH, VOCABULARY = 24, 32


class Rows:
    """Rows that count up from a random start by a random stride; each is a function of its number.

    The first third of a row is prompt, the first label has no loss, two documents meet at a place
    that differs by row.
    """

    identity = "counting"
    samples_per_epoch = 48

    def batch(self, first: int, count: int) -> dict[str, Any]:
        ids = np.empty((count, LENGTH + 1), dtype=np.int64)
        bounds = []
        for place in range(count):
            draw = np.random.Generator(
                np.random.Philox(key=[9, (first + place) % self.samples_per_epoch])
            )
            start, stride, cut = draw.integers([VOCABULARY, 4, LENGTH - 2])
            ids[place] = (start + (1 + stride) * np.arange(LENGTH + 1)) % VOCABULARY
            bounds.append(np.array([0, cut + 1, LENGTH], dtype=np.int32))
        labels = ids[:, 1:].copy()
        labels[:, 0] = -100
        # Rows differ in how many labels they have, so that means of means are wrong.
        labels[(first + np.arange(count)) % 2 == 0, LENGTH // 2 :] = -100
        prompt = np.zeros(labels.shape, dtype=bool)
        prompt[:, : LENGTH // 3] = True
        return {
            "input_ids": ids[:, :-1].copy(),
            "labels": labels,
            "prompt_mask": prompt,
            "position_ids": np.stack(
                [np.arange(LENGTH) - (np.arange(LENGTH) >= b[1]) * b[1] for b in bounds]
            ),
            "cu_seqlens": bounds,
        }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(processes: int, runs: list[dict[str, Any]], code: int = 0) -> None:
    """Does runs in turn on several processes, as `run.py` describes them; all exit with `code`."""
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(RUN), json.dumps(runs)],
            stdout=subprocess.DEVNULL,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]
    try:
        assert [process.wait(600) for process in started] == [code] * processes
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture
def on() -> Callable[..., None]:
    return together


@pytest.fixture
def rows() -> Rows:
    return Rows()
