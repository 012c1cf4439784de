"""Cross-entropy of logits, and of a linear head without ever holding all the logits.

`cross_entropy` writes its gradient over the logits. `linear_cross_entropy` takes tokens in chunks:
each chunk's logits become its gradient at once, in the forward pass, so they are computed once and
dropped; the head's gradient is summed over chunks in fp32 whatever the inputs' dtype. Memory: on a
CPU two chunks of logits in fp32, on a GPU one in the inputs' dtype.

    python -c "import hornbook_kernels as hk; help(hk.linear_cross_entropy)"
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hornbook_kernels import dispatch


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _plain(
    logits: Tensor, labels: Tensor, factors: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and log-sum-exps `[N]`, log-probabilities `[N, V]`."""
    if z_loss == 0.0:
        log_p = torch.log_softmax(logits, -1, dtype=_wide(logits))
        picked = log_p.gather(1, labels[:, None])[:, 0]
        return -picked * factors, logits.gather(1, labels[:, None])[:, 0] - picked, log_p
    wide = logits.to(_wide(logits))
    lse = wide.logsumexp(-1)
    log_p = wide - lse[:, None]
    picked = log_p.gather(1, labels[:, None])[:, 0]
    return (z_loss * lse.square() - picked) * factors, lse, log_p


def _plain_gradient(
    log_p: Tensor, labels: Tensor, factors: Tensor, lse: Tensor, z_loss: float
) -> Tensor:
    """The gradient of the logits, over `log_p`."""
    slope = factors if z_loss == 0.0 else factors * (1.0 + 2.0 * z_loss * lse)
    grad = log_p.exp_().mul_(slope[:, None])
    return grad.scatter_add_(1, labels[:, None], -factors[:, None])


# Logits that exist already: losses now, the gradient over them later.


@torch.library.custom_op("hornbook::cross_entropy", mutates_args=(), device_types="cpu")
def _losses(
    logits: Tensor, labels: Tensor, factors: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    losses, lse, _ = _plain(logits, labels, factors, z_loss)
    return losses.masked_fill(factors == 0.0, 0.0), lse.to(losses.dtype)


@_losses.register_kernel("cuda")
def _losses_cuda(
    logits: Tensor, labels: Tensor, factors: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    if dispatch.unproven(logits.device, logits.dtype):
        losses, lse, _ = _plain(logits, labels, factors, z_loss)
        return losses.masked_fill(factors == 0.0, 0.0), lse.to(losses.dtype)
    from hornbook_kernels.gpu import cross_entropy as gpu

    losses, lse = (torch.empty_like(factors) for _ in range(2))
    gpu.run(logits, labels, factors, losses, lse, z_loss, False)
    return losses, lse


@_losses.register_fake
def _(logits: Tensor, labels: Tensor, factors: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(factors), torch.empty_like(factors)


@torch.library.custom_op(
    "hornbook::cross_entropy_backward_", mutates_args=("logits",), device_types="cpu"
)
def _overwrite(logits: Tensor, labels: Tensor, factors: Tensor, lse: Tensor, z_loss: float) -> None:
    log_p = logits.to(lse.dtype) - lse[:, None]
    grad = _plain_gradient(log_p, labels, factors, lse, z_loss)
    logits.copy_(grad.masked_fill_((factors == 0.0)[:, None], 0.0))


@_overwrite.register_kernel("cuda")
def _overwrite_cuda(
    logits: Tensor, labels: Tensor, factors: Tensor, lse: Tensor, z_loss: float
) -> None:
    if dispatch.unproven(logits.device, logits.dtype):
        log_p = logits.to(lse.dtype) - lse[:, None]
        grad = _plain_gradient(log_p, labels, factors, lse, z_loss)
        logits.copy_(grad.masked_fill_((factors == 0.0)[:, None], 0.0))
        return
    from hornbook_kernels.gpu import cross_entropy as gpu

    gpu.run(logits, labels, factors, None, lse, z_loss, True)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, factors: Tensor, z_loss: float, leaf: bool
    ) -> Tensor:
        losses, lse = _losses(logits, labels, factors, z_loss)
        ctx.save_for_backward(logits, labels, factors, lse)
        ctx.z_loss, ctx.leaf = z_loss, leaf
        result: Tensor = losses
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Any, ...]:  # type: ignore[override, unused-ignore]
        # A second backward finds that a saved tensor has changed, and torch refuses it.
        logits, labels, factors, lse = ctx.saved_tensors
        logits = logits.clone() if ctx.leaf else logits
        # What has no loss has no gradient, even where the mean over no token pulls by infinity.
        pulls = torch.where(factors == 0.0, 0.0, factors * pull)
        _overwrite(logits, labels, pulls, lse, ctx.z_loss)
        return logits, None, None, None, None


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
) -> Tensor:
    """Cross-entropy whose backward pass writes the gradient over the logits.

    Args:
        logits: `[..., V]`; not to be used again where a gradient is wanted. A leaf, or a view of
            one, is copied first.
        labels: `[...]` int64; `ignore_index` has no loss. Others must be below V: torch refuses
            them, our kernel on a GPU can not and makes their loss NaN.
        weights: `[...]` factor on each token's loss; no gradient.
        ignore_index: The label without loss.
        reduction: `"none"`, `"sum"`, or `"mean"`: the sum divided by the sum of weights.
        z_loss: Factor on the squared log-sum-exp, added to each token's loss.

    Returns:
        A scalar (`[...]` for `"none"`) in fp32 (fp64 for fp64); one backward pass. Under
            `torch.compile` the logits are copied and stay as they were, after any number of them.

    Raises:
        ValueError: If shapes or options make no sense.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction {reduction!r} must be none, mean or sum")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)} do not fit")
    safe, factors = _factors(labels, weights, ignore_index, _wide(logits))
    flat = logits.reshape(-1, logits.shape[-1])
    if flat.stride(-1) != 1:
        flat = flat.contiguous()
    # A view of a leaf is none itself, but its numbers are the leaf's. A compiled graph, which can
    # not ask for that, copies what it gets anyway.
    leaf = torch.compiler.is_compiling() or logits.is_leaf
    leaf = leaf or (logits._base is not None and logits._base.is_leaf)
    losses: Tensor = _CrossEntropy.apply(flat, safe, factors, z_loss, leaf)
    if reduction == "none":
        return losses.reshape(labels.shape)
    return losses.sum() / factors.sum() if reduction == "mean" else losses.sum()


# A head and hidden states: logits never exist all at once.


@torch.library.custom_op("hornbook::linear_cross_entropy", mutates_args=())
def _linear(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    factors: Tensor,
    low: torch.dtype,
    chunk: int,
    z_loss: float,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and (or empty) the gradients of hidden, weight and bias."""
    fused = hidden.is_cuda and dispatch.unproven(hidden.device, low) is None
    wide = _wide(hidden)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    grad_x = torch.empty_like(hidden) if gradients else hidden.new_empty(0)
    # Outputs of an operator must not share memory: three empty ones, not one.
    grad_w, grad_b = hidden.new_empty(0), hidden.new_empty(0)
    head = weight.to(low)
    shift = None if bias is None else bias.to(low)
    for start in range(0, hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        label, factor = labels[part], factors[part]
        # A token without loss may hold anything: zero times infinity would reach the head.
        x = hidden[part].to(low).masked_fill((factor == 0.0)[:, None], 0.0)
        logits = torch.mm(x, head.t()) if shift is None else torch.addmm(shift, x, head.t())
        if fused:
            from hornbook_kernels.gpu import cross_entropy as gpu

            losses, lse = (torch.empty_like(factor) for _ in range(2))
            gpu.run(logits, label, factor, losses, lse, z_loss, gradients)
            grad = logits
        else:
            losses, lse, log_p = _plain(logits, label, factor, z_loss)
            grad = _plain_gradient(log_p, label, factor, lse, z_loss) if gradients else log_p
        total += losses.sum()
        if not gradients:
            continue
        if bias is not None:
            step = grad.sum(0, dtype=wide)
            grad_b = step if start == 0 else grad_b.add_(step)
        grad = grad.to(low)
        grad_x[part] = torch.mm(grad, head)
        step = _outer(grad, x, wide)
        grad_w = step if start == 0 else grad_w.add_(step)
    if gradients:
        grad_w = grad_w.to(weight.dtype) if hidden.shape[0] else torch.zeros_like(weight)
        if bias is not None:
            grad_b = grad_b.to(bias.dtype) if hidden.shape[0] else torch.zeros_like(bias)
    return total, grad_x, grad_w, grad_b


def _outer(grad: Tensor, x: Tensor, wide: torch.dtype) -> Tensor:
    """`grad.T @ x` in fp32: on a GPU straight from the accumulators, without a rounding between."""
    if grad.is_cuda and grad.dtype != wide and wide == torch.float32:
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    return torch.mm(grad.t(), x).to(wide)


@_linear.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    factors: Tensor,
    low: torch.dtype,
    chunk: int,
    z_loss: float,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    none = hidden.new_empty(0)
    total = hidden.new_empty((), dtype=_wide(hidden))
    if not gradients:
        return total, none, hidden.new_empty(0), hidden.new_empty(0)
    grad_b = none if bias is None else torch.empty_like(bias)
    return total, torch.empty_like(hidden), weight.new_empty(weight.shape), grad_b


def _linear_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.biased = inputs[2] is not None
    ctx.save_for_backward(inputs[4], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _scaled(kept: Tensor, pull: Tensor) -> Tensor:
    """The product in the dtype of `kept`, with one rounding and on a GPU without a wide copy."""
    # A pull without dimensions would be rounded to half precision before it is multiplied.
    return torch.mul(kept, pull.reshape(1), out=torch.empty_like(kept))


@once_differentiable
def _linear_grad(ctx: Any, pull: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    factors, *kept = ctx.saved_tensors
    # The mean over no token pulls by infinity, which would make its zeros NaN.
    pull = torch.where((factors != 0.0).any(), pull, 0.0)
    grad_x, grad_w, grad_b = (_scaled(part, pull) for part in kept)
    return grad_x, grad_w, grad_b if ctx.biased else None, *[None] * 6


_linear.register_autograd(_linear_grad, setup_context=_linear_save)


def _factors(
    labels: Tensor, weights: Tensor | None, ignore_index: int, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Labels in range and the factor on each loss, both flat."""
    ignored = labels == ignore_index
    factors = (~ignored).to(wide)
    if weights is not None:
        factors = factors * weights
    # An ignored label has factor 0; it is looked up as 0 because it must be in range.
    return labels.masked_fill(ignored, 0).reshape(-1), factors.to(wide).reshape(-1)


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
    z_loss: float = 0.0,
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T + bias` against `labels`.

    Args:
        hidden: `[..., C]`.
        weight: `[V, C]`, the head.
        bias: `[V]` or None.
        labels: `[...]` int64; `ignore_index` has no loss. Others as for `cross_entropy`.
        weights: `[...]` factor on each token's loss; no gradient.
        ignore_index: The label without loss.
        reduction: `"sum"`, or `"mean"`: the sum divided by the sum of weights (NaN if that is 0).
        chunk: Tokens whose logits are held at once.
        z_loss: Factor on the squared log-sum-exp, added to each token's loss.

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
    safe, factors = _factors(labels, weights, ignore_index, _wide(hidden))
    count = factors.sum()
    if reduction == "mean":
        # Gradients are rounded before the mean divides them: by a power of two alone, which is no
        # second rounding. What is left of the number goes into the factors.
        rest = torch.frexp(count).mantissa
        rest = torch.where(rest == 0.0, 1.0, rest)
        factors, count = factors / rest, count / rest
    learns = any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    total: Tensor = _linear(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        safe,
        factors,
        dispatch.working_dtype(hidden),
        chunk,
        z_loss,
        learns and torch.is_grad_enabled(),
    )[0]
    return total / count if reduction == "mean" else total
