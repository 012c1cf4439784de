"""The paper's model: phi-1 as a readable module, its files, and sampling from it.

from hornbook.model import Phi, PhiConfig
model = Phi.from_pretrained("runs/demo/finetune/final")
"""

from hornbook.errors import need

need("torch", "train")
need("hornbook_kernels", "train")

from hornbook.model.phi import Phi, PhiConfig  # noqa: E402
from hornbook.model.sample import generate  # noqa: E402

__all__ = ["Phi", "PhiConfig", "generate"]
