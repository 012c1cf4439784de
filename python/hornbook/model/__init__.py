"""The paper's model: phi-1 as a readable module, its files, and sampling from it.

    from hornbook.model import Phi, PhiConfig
    model = Phi.from_pretrained("runs/demo/train/raw/seed-0/base/final")

Names load when first used; `PhiConfig` loads no torch.
"""

from typing import TYPE_CHECKING

from hornbook._lazy import load_lazily
from hornbook.model.config import PhiConfig

if TYPE_CHECKING:
    from hornbook.model.phi import Phi
    from hornbook.model.sample import generate

__all__ = ["Phi", "PhiConfig", "generate"]

_HOMES = {"Phi": "phi", "generate": "sample"}

load_lazily(__name__, _HOMES, {"torch": "train", "hornbook_kernels": "train"})
