"""Where documents begin and end in packed rows: as bounds for kernels, as a mask for torch.

python -c "from hornbook_kernels import *; print(document_bounds([[0, 3, 5]], 5))"
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _ids(cu_seqlens: Sequence[Any], length: int) -> Tensor:
    """`[B, T]` int32 on the CPU: the number of each token's document within its row."""
    if any(isinstance(row, int) or getattr(row, "ndim", 1) != 1 for row in cu_seqlens):
        raise ValueError("cu_seqlens must hold a list of boundaries for each row: [[0, 3, 5]]")
    starts = torch.zeros(len(cu_seqlens), length, dtype=torch.int32)
    for row, bounds in enumerate(cu_seqlens):
        ends = [int(end) for end in bounds]
        if not ends or ends[0] != 0 or ends[-1] > length or ends != sorted(ends):
            raise ValueError(f"cu_seqlens[{row}] must ascend from 0 to at most {length}: {ends}")
        inner = [end for end in ends[1:] if end < length]
        if inner:
            starts[row, inner] = 1
    return starts.cumsum(1, dtype=torch.int32)


def document_bounds(
    cu_seqlens: Sequence[Any] | None = None,
    length: int | None = None,
    *,
    ids: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The bounds of each token's document, to be built once and given to every layer.

    Args:
        cu_seqlens: A row's document starts and its end, `[0, ..., length]`, for each of B rows;
            repeated values are empty documents. What lies past a shorter end is one more document.
        length: T; needed with `cu_seqlens`.
        ids: In place of both: `[B, T]` integers; a document ends where the number changes.
        device: Where the bounds are needed; that of `ids`, or the CPU, unless stated.

    Returns:
        `[2, B, T]` int32: the position of the document's first token, and of the one after its
        last.

    Raises:
        ValueError: If there is no list for each row, or one does not start at 0, descends, or
            passes `length`.
    """
    if (cu_seqlens is None) == (ids is None) or (cu_seqlens is not None and length is None):
        raise ValueError("give cu_seqlens and length, or ids [B, T]")
    if ids is None:
        assert cu_seqlens is not None
        assert length is not None
        ids = _ids(cu_seqlens, length)
    if ids.dim() != 2 or ids.is_floating_point():
        raise ValueError(f"ids must be [B, T] integers, not {tuple(ids.shape)} {ids.dtype}")
    position = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    new = torch.ones_like(position, dtype=torch.bool)
    new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = position.masked_fill(~new, 0).cummax(1).values
    last = torch.ones_like(new)
    last[:, :-1] = new[:, 1:]
    ends = (position + 1).masked_fill(~last, ids.shape[1])
    ends = ends.flip(1).cummin(1).values.flip(1)
    return torch.stack((starts, ends)).to(device or ids.device, torch.int32)


def document_mask(
    cu_seqlens: Sequence[Any],
    length: int,
    *,
    dtype: torch.dtype = torch.bool,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The causal mask within documents, to be built once and given to every layer.

    Args:
        cu_seqlens: See `document_bounds`.
        length: T.
        dtype: Boolean (true: may see), or a float dtype for the additive form (0 or -inf), which
            is cheaper for repeated use on a CPU.
        device: Where the mask is needed.

    Returns:
        `[B, 1, T, T]`.

    Raises:
        ValueError: If there is no list for each row, or one does not start at 0, descends, or
            passes `length`.
    """
    ids = _ids(cu_seqlens, length).to(device)
    seen = (ids[:, :, None] == ids[:, None, :]).tril_()[:, None]
    if dtype == torch.bool:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


def visible(bounds: Tensor) -> Tensor:
    """The dense mask of bounds.

    Args:
        bounds: From `document_bounds`.

    Returns:
        `[B, 1, T, T]` bool: true where query i may see key j.
    """
    position = torch.arange(bounds.shape[2], device=bounds.device)
    seen = (position >= bounds[0, :, :, None]) & (position <= position[:, None])
    return seen[:, None]
