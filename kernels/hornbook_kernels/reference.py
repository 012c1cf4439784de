"""The plain form of every operation: slow, obvious, and what the others are tested against.

B batch, T tokens, H heads, D head dimension, R rotary dimensions (R <= D), N tokens in all,
C hidden size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hornbook_kernels import philox


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention with the scores held whole, in fp32 at least.

    Args:
        q: `[B, T, H, D]`.
        k: `[B, S, G, D]`; each of the G heads serves H / G consecutive heads of `q`.
        v: `[B, S, G, D]`.
        mask: Boolean (true: may see) or additive, broadcast to `[B, H, T, S]`; replaces `causal`.
        dropout_p: Share of attention weights dropped, rounded to 1 / 256; the rest is scaled up.
        seed: Of the dropped weights (see `philox.kept`): an int, or one int64 on the device.
        causal: A query sees keys up to its own position, the last query being at the last key.
        scale: Factor on the scores, `D ** -0.5` unless stated.

    Returns:
        `[B, T, H, D]`, in the dtype of `q`, and the log-sum-exp of the scores, `[B, H, T]`, in fp32
        (fp64 for fp64).

    Raises:
        ValueError: If there is dropout and no seed.
    """
    # Autocast would take the products back to half precision.
    with torch.autocast(q.device.type, enabled=False):
        wide = torch.promote_types(q.dtype, torch.float32)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        share = q.shape[2] // k.shape[2]
        k, v = (part.to(wide).repeat_interleave(share, 2) for part in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q.to(wide), k) * scale
        if mask is not None and mask.dtype != torch.bool:
            scores = scores + mask
        else:
            if mask is None and causal:
                t, s = scores.shape[-2:]
                mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
        lse = scores.logsumexp(-1)
        weights = scores.softmax(-1)
        level = philox.threshold(dropout_p)
        if level:
            if seed is None:
                raise ValueError("dropout needs a seed here")
            kept = philox.kept(torch.as_tensor(seed, device=q.device), weights.shape, level)
            weights = weights.masked_fill(~kept, 0.0) * (philox.LEVELS / (philox.LEVELS - level))
        return torch.einsum("bhts,bshd->bthd", weights, v).to(q.dtype), lse


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    bounds: Tensor | None = None,
    layout: str = "half",
    inverse: bool = False,
) -> Tensor:
    """Rotates the first R dimensions of every head.

    Args:
        x: `[B, T, H, D]`.
        cos: `[T, R / 2]` or `[B, T, R / 2]`.
        sin: As `cos`.
        bounds: From `document_bounds`: positions then start again with every document.
        layout: Pair i is dimensions i and i + R / 2 (`"half"`), or 2 i and 2 i + 1
            (`"interleaved"`).
        inverse: Rotate back.

    Returns:
        As `x`.
    """
    half = cos.shape[-1]
    if bounds is not None:
        position = torch.arange(x.shape[1], device=x.device) - bounds[0]
        row = torch.arange(x.shape[0], device=x.device)[:, None]
        cos, sin = (table.expand(len(x), -1, -1)[row, position] for table in (cos, sin))
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    if inverse:
        sin = -sin
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if layout == "interleaved":
        a, b = turned.unflatten(-1, (half, 2)).unbind(-1)
        pairs = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        pairs = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((pairs, rest), -1).to(x.dtype)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
) -> Tensor:
    """Cross-entropy with fp32 logits.

    Args:
        logits: `[..., V]`.
        labels: `[...]` int64; `ignore_index` has no loss, whatever its logits.
        weights: `[...]` factor on each token's loss.
        ignore_index: The label without loss.
        reduction: `"none"`, `"sum"`, or `"mean"`: the sum divided by the sum of weights.
        z_loss: Factor on the squared log-sum-exp, added to each token's loss.

    Returns:
        A scalar (`[...]` for `"none"`) in fp32 (fp64 for fp64 inputs).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts = (labels != ignore_index).to(wide.dtype)
    if weights is not None:
        counts = counts * weights
    # Filled before anything is computed: a mask after it would still have the gradient of NaN.
    wide = wide.masked_fill((counts == 0.0)[..., None], 0.0)
    picked = wide.gather(-1, labels.masked_fill(labels == ignore_index, 0)[..., None])[..., 0]
    lse = wide.logsumexp(-1)
    losses = (lse - picked + z_loss * lse.square()) * counts
    if reduction == "none":
        return losses
    return losses.sum() / counts.sum() if reduction == "mean" else losses.sum()


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T + bias`, the logits held whole in fp32.

    Args:
        hidden: `[..., C]`.
        weight: `[V, C]`.
        bias: `[V]` or None.
        labels: As for `cross_entropy`, like what follows.
        weights: See `labels`.
        ignore_index: See `labels`.
        reduction: `"sum"` or `"mean"`.
        z_loss: See `labels`.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).
    """
    return cross_entropy(
        F.linear(hidden, weight, bias), labels, weights=weights, ignore_index=ignore_index,
        reduction=reduction, z_loss=z_loss,
    )  # fmt: skip
