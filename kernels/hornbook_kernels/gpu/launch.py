"""What every launch needs."""

import contextlib

import torch
from torch import Tensor


def on(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's device the current one: Triton launches there.

    Args:
        tensor: Any; on a CPU (the interpreter) nothing is done.

    Returns:
        A context manager.
    """
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
