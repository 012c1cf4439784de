"""Training: one loop for pretraining and finetuning, on one process or many.

from hornbook.train import TrainConfig, train
train(TrainConfig(steps=1000, ...), data="runs/demo/pack", out="runs/mine", model=shape)
"""

from hornbook.errors import need

need("torch", "train")
need("hornbook_kernels", "train")

from hornbook.train.loop import Diverged, Interrupted, TrainResult, train  # noqa: E402
from hornbook.train.schedule import TrainConfig, estimate, learning_rate  # noqa: E402

__all__ = [
    "Diverged",
    "Interrupted",
    "TrainConfig",
    "TrainResult",
    "estimate",
    "learning_rate",
    "train",
]
