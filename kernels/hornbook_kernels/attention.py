"""Attention over packed or separate q, k, v, with document boundaries and dropout.

Without boundaries and seed it is torch's fused attention, which holds no `T x T` matrix. Boundaries
become a dense mask (`B x T x T`), which `document_mask` builds once for all layers.

    python -c "import torch, hornbook_kernels as hk; print(hk.attention(torch.ones(1, 8, 3, 2, 4)))"
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hornbook_kernels import reference


def document_mask(
    cu_seqlens: Sequence[Any],
    length: int,
    *,
    dtype: torch.dtype = torch.bool,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The causal mask within documents, to be built once and given to every layer.

    Args:
        cu_seqlens: A row's document starts and its end, `[0, ..., length]`, for each of B rows;
            repeated values are empty documents. What lies past a shorter end is one more document.
        length: T.
        dtype: Boolean (true: may see), or a float dtype for the additive form (0 or -inf), which
            is cheaper for repeated use on a CPU.
        device: Where the mask is needed.

    Returns:
        `[B, 1, T, T]`.

    Raises:
        ValueError: If a row's boundaries do not start at 0, descend, or pass `length`.
    """
    starts = torch.zeros(len(cu_seqlens), length, dtype=torch.int32)
    for row, bounds in enumerate(cu_seqlens):
        ends = [int(end) for end in bounds]
        if not ends or ends[0] != 0 or ends[-1] > length or ends != sorted(ends):
            raise ValueError(f"cu_seqlens[{row}] must ascend from 0 to at most {length}: {ends}")
        inner = [end for end in ends[1:] if end < length]
        if inner:
            starts[row, inner] = 1
    ids = starts.cumsum(1, dtype=torch.int32).to(device)
    seen = (ids[:, :, None] == ids[:, None, :]).tril_()[:, None]
    if dtype == torch.bool:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


def attention(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    cu_seqlens: Sequence[Any] | None = None,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention.

    Args:
        q: `[B, T, H, D]`, or packed q, k and v `[B, T, 3, H, D]`; any strides.
        k: `[B, S, H, D]`; absent where `q` is packed.
        v: As `k`.
        cu_seqlens: For each row its documents' starts and its end; a token then sees only its own
            document. Implies `causal`, and T = S.
        mask: Boolean (true: may see) or additive mask, broadcast to `[B, H, T, S]`, in place of
            `causal` and `cu_seqlens`; see `document_mask`.
        dropout_p: Share of attention weights dropped.
        seed: Seed of the dropped weights; None takes torch's global generator.
        causal: A query sees keys up to its own position, the last query being at the last key.
        scale: Factor on the scores, `D ** -0.5` unless stated.

    Returns:
        `[B, T, H, D]` in the dtype of `q`.

    Raises:
        ValueError: If shapes or options do not go together.
    """
    if k is None or v is None:
        if k is not None or v is not None or q.dim() != 5 or q.shape[2] != 3:
            raise ValueError("give q, k and v, or one packed tensor [B, T, 3, H, D]")
        q, k, v = q.unbind(2)
    if cu_seqlens is not None:
        if mask is not None or not causal or q.shape[1] != k.shape[1]:
            raise ValueError("cu_seqlens goes with causal self-attention and without a mask")
        mask = document_mask(cu_seqlens, q.shape[1], device=q.device)
    if dropout_p > 0.0 and seed is not None:
        return reference.attention(
            q, k, v, mask=mask, dropout_p=dropout_p, seed=seed, causal=causal, scale=scale
        )
    t, s = q.shape[1], k.shape[1]
    fused_causal = causal and mask is None and t == s
    if causal and mask is None and 1 < t < s:
        # torch's flag aligns the first query with the first key; ours is the end of the sequence.
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril_(s - t)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=fused_causal,
        scale=scale,
    )
    return out.transpose(1, 2)
