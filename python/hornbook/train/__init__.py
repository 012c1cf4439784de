"""Training: one loop for pretraining and finetuning, on one process or many.

    from hornbook.train import TrainConfig, train
    train(TrainConfig(steps=1000, ...), data="runs/demo/pack/raw", out="model", model=shape)

Names load when first used; `TrainConfig`, `estimate` and `learning_rate` load no torch.
"""

from typing import TYPE_CHECKING

from hornbook._lazy import load_lazily
from hornbook.train.plan import estimate
from hornbook.train.schedule import TrainConfig, learning_rate

if TYPE_CHECKING:
    from hornbook.train.guards import Diverged, Interrupted
    from hornbook.train.loop import TrainResult, train
    from hornbook.train.stage import train_stage

__all__ = [
    "Diverged",
    "Interrupted",
    "TrainConfig",
    "TrainResult",
    "estimate",
    "learning_rate",
    "train",
    "train_stage",
]

_HOMES = {
    "Diverged": "guards",
    "Interrupted": "guards",
    "TrainResult": "loop",
    "train": "loop",
    "train_stage": "stage",
}

load_lazily(__name__, _HOMES, {"torch": "train", "hornbook_kernels": "train"})
