"""Cross-entropy of a linear head without ever holding all the logits.

Tokens go through in chunks. Each chunk's logits become its gradient at once, in the forward pass,
so they are computed once and dropped; memory is `chunk x V` in fp32, about twice. The head's
gradient is summed over chunks in fp32 whatever the inputs' dtype.

    python -c "import hornbook_kernels as hk; help(hk.linear_cross_entropy)"
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _products(hidden: Tensor) -> torch.dtype:
    """The dtype to multiply in: autocast's, where it is on."""
    kind = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        factors: Tensor,
        chunk: int,
    ) -> Tensor:
        low = _products(hidden)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        need_x, need_w, need_b = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(hidden) if need_x else None
        grad_w = grad_b = None
        total = torch.zeros((), dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(low)
            shift = None if bias is None else bias.to(low)
            for start in range(0, hidden.shape[0], chunk):
                part = slice(start, start + chunk)
                x, label, factor = hidden[part].to(low), labels[part, None], factors[part, None]
                logits = torch.mm(x, head.t()) if shift is None else torch.addmm(shift, x, head.t())
                log_p = torch.log_softmax(logits, -1, dtype=wide)
                total -= (log_p.gather(1, label) * factor).sum()
                if not (need_x or need_w or need_b):
                    continue
                grad = log_p.exp_().mul_(factor)
                grad.scatter_add_(1, label, -factor)
                if need_b:
                    grad_b = grad.sum(0) if grad_b is None else grad_b + grad.sum(0)
                grad = grad.to(low)
                if grad_x is not None:
                    grad_x[part] = torch.mm(grad, head)
                if need_w:
                    step = torch.mm(grad.t(), x).to(wide)
                    grad_w = step if grad_w is None else grad_w.add_(step)
        ctx.save_for_backward(
            grad_x,
            None if grad_w is None else grad_w.to(weight.dtype),
            None if grad_b is None or bias is None else grad_b.to(bias.dtype),
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override, unused-ignore]
        made = (None if kept is None else kept * grad.to(kept.dtype) for kept in ctx.saved_tensors)
        return (*made, None, None, None)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    chunk: int = 4096,
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T + bias` against `labels`.

    Args:
        hidden: `[..., C]`.
        weight: `[V, C]`, the head.
        bias: `[V]` or None.
        labels: `[...]` int64; `ignore_index` has no loss.
        weights: `[...]` factor on each token's loss; no gradient.
        ignore_index: The label without loss.
        reduction: `"sum"`, or `"mean"`: the sum divided by the sum of weights (NaN if that is 0).
        chunk: Tokens whose logits are held at once.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs); differentiable once in hidden, weight and bias.

    Raises:
        ValueError: If shapes or options make no sense.
    """
    if reduction not in ("mean", "sum") or chunk < 1:
        raise ValueError(f"reduction {reduction!r} must be mean or sum; chunk {chunk} positive")
    if labels.shape != hidden.shape[:-1] or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and labels "
            f"{tuple(labels.shape)} do not fit"
        )
    wide = torch.promote_types(hidden.dtype, torch.float32)
    ignored = labels == ignore_index
    factors = (~ignored).to(wide)
    if weights is not None:
        factors = factors * weights
    # An ignored label has factor 0; it is looked up as 0 because it must be in range.
    safe = labels.masked_fill(ignored, 0)
    total: Tensor = _LinearCrossEntropy.apply(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        safe.reshape(-1),
        factors.reshape(-1),
        chunk,
    )
    return total / factors.sum() if reduction == "mean" else total
