"""Attention, rotary embedding and loss for a parallel-block transformer, in PyTorch.

Each public function picks an implementation from the device, dtype and shape of its arguments and
agrees with its plain form in `hornbook_kernels.reference`, gradients included. Imports only torch.

    python -c "import hornbook_kernels as hk; help(hk.attention)"
"""

from hornbook_kernels import reference
from hornbook_kernels.attention import attention, explain
from hornbook_kernels.cross_entropy import cross_entropy, linear_cross_entropy
from hornbook_kernels.documents import document_bounds, document_mask
from hornbook_kernels.rotary import apply_rotary, apply_rotary_, rotary_tables

__version__ = "0.1.0"

__all__ = [
    "apply_rotary",
    "apply_rotary_",
    "attention",
    "cross_entropy",
    "document_bounds",
    "document_mask",
    "explain",
    "linear_cross_entropy",
    "reference",
    "rotary_tables",
]
