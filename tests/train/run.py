"""Trains the tests' model in a process of its own: `run.py JSON`, a list of runs done in turn.

Of each, `out` is the folder, `die` (rank, step) is where that process kills itself unless it was
started again, `ask` (rank, step) where it is asked to stop, `pause` the seconds slept after each
step so that a test can strike in between, `slow` the seconds that hashing a checkpoint's file takes
on top, `late` (rank, seconds) the process whose part of a checkpoint is written later; the rest are
options of TrainConfig. With WORLD_SIZE above 1 all runs share one process group, unless torchrun
started them. Asked to stop, it exits with 3, or with 4 if no checkpoint is whole by then.
"""

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from hornbook import _core
from hornbook.model import PhiConfig
from hornbook.train import Interrupted, TrainConfig, checkpoint, train


def conftest() -> Any:
    spec = importlib.util.spec_from_file_location("rows", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SlowCore:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def hash_file(self, path: Path) -> str:
        time.sleep(self.seconds)
        return _core.hash_file(path)


def late_writer(rank: int, seconds: float) -> Any:
    class Late(FileSystemWriter):
        def write_data(self, *args: Any) -> Any:
            if os.environ.get("RANK", "0") == str(rank):
                time.sleep(seconds)
            return super().write_data(*args)

    return Late


def one(module: Any, out: str, options: dict[str, Any]) -> None:
    pause, die = options.pop("pause", 0.0), options.pop("die", None)
    ask, slow = options.pop("ask", None), options.pop("slow", 0.0)
    late = options.pop("late", (0, 0.0))
    checkpoint.FileSystemWriter = late_writer(*late)  # type: ignore[misc]
    checkpoint._core = SlowCore(slow)  # type: ignore[assignment]
    shape = PhiConfig(
        vocab_size=module.VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=module.LENGTH,
    )

    class Rows(module.Rows):  # type: ignore[name-defined, misc]
        def batch(self, first: int, count: int) -> Any:
            # A process run alone, without torchrun, is told no rank.
            here = [int(os.environ.get("RANK", "0")), first // options["batch_size"]]
            fresh = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
            if here == die and fresh:
                os.kill(os.getpid(), signal.SIGKILL)
            if here == ask:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(first, count)

    def on_step(record: dict[str, Any]) -> None:
        print(record["step"], flush=True)
        time.sleep(pause)

    config = TrainConfig(sequence_length=module.LENGTH, **options)
    tokenizer = module.Characters()
    try:
        train(config, data=Rows(), out=out, model=shape, tokenizer=tokenizer, on_step=on_step)
    except Interrupted as error:
        print(error)
        sys.exit(3 if checkpoint.found(Path(out, "checkpoints")) else 4)


def main() -> int:
    module = conftest()
    torch.set_num_threads(1)
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torchrun
    if shared:
        dist.init_process_group("gloo")
    for options in json.loads(sys.argv[1]):
        one(module, options.pop("out"), options)
    if shared:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
