"""The paper's model: phi-1 as a readable module, its files, and sampling from it.

    from hornbook.model import Phi, PhiConfig
    model = Phi.from_pretrained("runs/demo/train/raw/seed-0/base/final")

Names load when first used; `PhiConfig` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hornbook.errors import need
from hornbook.model.config import PhiConfig

if TYPE_CHECKING:
    from hornbook.model.phi import Phi
    from hornbook.model.sample import generate

__all__ = ["Phi", "PhiConfig", "generate"]

_HOMES = {"Phi": "phi", "generate": "sample"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    need("torch", "train")
    need("hornbook_kernels", "train")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
