"""Training: one loop for pretraining and finetuning, on one process or many.

    from hornbook.train import TrainConfig, train
    train(TrainConfig(steps=1000, ...), data="runs/demo/pack/raw", out="model", model=shape)

Names load when first used; `TrainConfig`, `estimate` and `learning_rate` load no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hornbook.errors import need
from hornbook.train.schedule import TrainConfig, estimate, learning_rate

if TYPE_CHECKING:
    from hornbook.train.loop import Diverged, Interrupted, TrainResult, train
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
    "Diverged": "loop",
    "Interrupted": "loop",
    "TrainResult": "loop",
    "train": "loop",
    "train_stage": "stage",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    need("torch", "train")
    need("hornbook_kernels", "train")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
