"""Trains the tests' model in a process of its own: `run.py OUT JSON-OPTIONS`.

Options beside those of TrainConfig: `pause`, seconds slept after each step, so that a test can
strike in between.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from hornbook.model import PhiConfig
from hornbook.train import Interrupted, TrainConfig, train


def conftest() -> Any:
    spec = importlib.util.spec_from_file_location("rows", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    module = conftest()
    options = json.loads(sys.argv[2])
    pause = options.pop("pause", 0.0)
    shape = PhiConfig(
        vocab_size=module.VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=module.LENGTH,
    )

    def on_step(record: dict[str, Any]) -> None:
        print(record["step"], flush=True)
        time.sleep(pause)

    config = TrainConfig(sequence_length=module.LENGTH, **options)
    try:
        train(config, data=module.Rows(), out=sys.argv[1], model=shape, on_step=on_step)
    except Interrupted as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
