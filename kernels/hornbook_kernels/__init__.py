"""Attention, rotary embedding and loss for a parallel-block transformer, in PyTorch.

Each public function picks an implementation from the device, dtype and shape of its arguments and
agrees with its plain form in `hornbook_kernels.reference`, gradients included. Imports only torch.

    python -c "import hornbook_kernels as hk; help(hk.attention)"
"""

from hornbook_kernels import reference
from hornbook_kernels.attention import attention, document_mask
from hornbook_kernels.cross_entropy import linear_cross_entropy
from hornbook_kernels.rotary import apply_rotary, rotary_tables

__version__ = "0.1.0"

__all__ = [
    "apply_rotary",
    "attention",
    "document_mask",
    "linear_cross_entropy",
    "reference",
    "rotary_tables",
]
