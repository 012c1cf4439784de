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


class Characters:
    """A tokenizer of one id a character."""

    eot_id = 0
    vocab_size = VOCABULARY

    def encode(self, text: str) -> np.ndarray:
        return np.array([ord(c) - 64 for c in text])

    def decode(self, ids: Any) -> str:
        return "".join(chr(64 + int(i)) for i in ids)

    def save(self, path: Path) -> None:
        path.write_text("{}")


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


@pytest.fixture
def characters() -> Characters:
    return Characters()


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data to learn by heart, and other data on which that soon gets worse."""
    import hornbook as hb
    from hornbook.packing import pack_tokens

    root = tmp_path_factory.mktemp("data")
    tok = hb.Tokenizer.train(["abc def " * 20], vocab_size=260, special_tokens=["<|endoftext|>"])
    tok.save(root / "tokenizer.json")
    draw = np.random.default_rng(0)
    for name, count in (("train", 8), ("validation", 20)):
        ids = draw.integers(1, 250, 60 * count).astype(np.uint16)
        batch = (ids, np.arange(0, 60 * count + 1, 60).astype(np.uint64))
        pack_tokens([batch], root / name, tokenizer=root / "tokenizer.json", identity=name)
    return root / "train", root / "validation"
