"""The plain form of every operation: slow, obvious, and what the others are tested against.

B batch, T tokens, H heads, D head dimension, R rotary dimensions (R <= D), N tokens in all,
C hidden size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention with the scores held whole, in fp32 at least.

    Args:
        q: `[B, T, H, D]`.
        k: `[B, S, H, D]`.
        v: `[B, S, H, D]`.
        mask: Boolean (true: may see) or additive, broadcast to `[B, H, T, S]`; replaces `causal`.
        dropout_p: Share of attention weights dropped; the rest is scaled up.
        seed: Seed of the dropped weights; None takes torch's global generator.
        causal: A query sees keys up to its own position, the last query being at the last key.
        scale: Factor on the scores, `D ** -0.5` unless stated.

    Returns:
        `[B, T, H, D]`, in the dtype of `q`.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bthd,bshd->bhts", q.to(wide), k.to(wide)) * scale
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask
    else:
        if mask is None and causal:
            t, s = scores.shape[-2:]
            mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    if dropout_p > 0.0:
        generator = None
        if seed is not None:
            generator = torch.Generator(device=q.device).manual_seed(seed)
        draw = torch.rand(weights.shape, generator=generator, device=q.device)
        weights = weights * (draw >= dropout_p) / (1.0 - dropout_p)
    return torch.einsum("bhts,bshd->bthd", weights, v.to(wide)).to(q.dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotates the first R dimensions of every head: pair i is dimensions i and i + R / 2.

    Args:
        x: `[B, T, H, D]`.
        cos: `[T, R / 2]` or `[B, T, R / 2]`.
        sin: As `cos`.
        inverse: Rotate back.

    Returns:
        As `x`.
    """
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    if inverse:
        sin = -sin
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).to(x.dtype)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T + bias`, the logits held whole in fp32.

    Args:
        hidden: `[N, C]`.
        weight: `[V, C]`.
        bias: `[V]` or None.
        labels: `[N]` int64; `ignore_index` has no loss.
        weights: `[N]` factor on each token's loss.
        ignore_index: The label without loss.
        reduction: `"sum"`, or `"mean"`: the sum divided by the sum of weights.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = F.linear(hidden, weight, bias).to(wide)
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    counts = (labels != ignore_index).to(wide)
    if weights is not None:
        counts = counts * weights
    total = (losses * counts).sum()
    return total / counts.sum() if reduction == "mean" else total
