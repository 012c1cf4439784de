"""Cross-entropy over rows of logits, in chunks of the vocabulary, the gradient written in place.

One program a row: a first pass for maximum and sum, a second one (whose reads the L2 cache mostly
serves) that writes the gradient over the logits. No row of any length is held in registers.
"""

import triton
import triton.language as tl
from torch import Tensor

from hornbook_kernels.gpu.configs import Config
from hornbook_kernels.gpu.launch import on

CONFIG = Config(rows=1, columns=4096, warps=8, stages=2)
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _add(top, total, x):
    """Takes `[LANES, WIDE]` logits into each lane's maximum (in units of log 2) and sum."""
    new = tl.maximum(top, tl.max(x, 1) * _LOG2E)
    shift = tl.where(new == -float("inf"), 0.0, new)
    weights = tl.exp2(x * _LOG2E - shift[:, None])
    return new, total * tl.exp2(top - shift) + tl.sum(weights, 1)


@triton.jit
def _gradient(x, column, label, factor, slope, shift):
    grad = tl.exp2(x * _LOG2E - shift) * slope
    grad = tl.where(column == label, grad - factor, grad)
    # A row without loss has no gradient, even where its logits are not finite.
    return tl.where(factor == 0.0, 0.0, grad)


@triton.jit
def cross_entropy_kernel(logits_ptr, labels_ptr, factors_ptr, losses_ptr, lse_ptr, row_stride,
                         vocabulary, z_loss: tl.float32,
                         LOSS: tl.constexpr, GRADIENT: tl.constexpr,
                         COLUMNS: tl.constexpr):  # fmt: skip
    """One row: LOSS computes the log-sum-exp and the loss, GRADIENT writes over the logits."""
    row = tl.cast(tl.program_id(0), tl.int64)
    base = logits_ptr + row * row_stride
    label = tl.load(labels_ptr + row)
    factor = tl.load(factors_ptr + row)
    # Lanes hold WIDE neighbours each, so that they are read at once and share a maximum.
    WIDE: tl.constexpr = 16 // (logits_ptr.dtype.element_ty.primitive_bitwidth // 8)
    LANES: tl.constexpr = COLUMNS // WIDE
    column = tl.arange(0, LANES)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]
    whole = vocabulary // COLUMNS * COLUMNS
    if LOSS:
        top = tl.full((LANES,), -float("inf"), tl.float32)
        total = tl.zeros((LANES,), tl.float32)
        # Each lane keeps a maximum and a sum of its own: nothing crosses lanes until the end.
        for start in range(0, whole, COLUMNS):
            x = tl.load(base + start + column).to(tl.float32)
            top, total = _add(top, total, x)
        if whole < vocabulary:
            inside = whole + column < vocabulary
            x = tl.load(base + whole + column, mask=inside, other=-float("inf")).to(tl.float32)
            top, total = _add(top, total, x)
        most = tl.max(top, 0)
        total = tl.sum(total * tl.exp2(top - most), 0)
        lse = (most + tl.log2(total)) * _LN2
        known = (label >= 0) & (label < vocabulary)
        picked = tl.load(base + label, mask=known, other=float("nan")).to(tl.float32)
        tl.store(lse_ptr + row, lse)
        loss = (lse - picked + z_loss * lse * lse) * factor
        tl.store(losses_ptr + row, tl.where(factor == 0.0, 0.0, loss))
        # The pass below overwrites what other lanes of this one have yet to read.
        tl.debug_barrier()
    else:
        lse = tl.load(lse_ptr + row)
    if GRADIENT:
        slope = factor * (1.0 + 2.0 * z_loss * lse)
        shift = lse * _LOG2E
        for start in range(0, whole, COLUMNS):
            where = base + start + column
            x = tl.load(where).to(tl.float32)
            grad = _gradient(x, start + column, label, factor, slope, shift)
            tl.store(where, grad.to(logits_ptr.dtype.element_ty))
        if whole < vocabulary:
            where = base + whole + column
            inside = whole + column < vocabulary
            x = tl.load(where, mask=inside, other=-float("inf")).to(tl.float32)
            grad = _gradient(x, whole + column, label, factor, slope, shift)
            tl.store(where, grad.to(logits_ptr.dtype.element_ty), mask=inside)


def run(
    logits: Tensor,
    labels: Tensor,
    factors: Tensor,
    losses: Tensor | None,
    lse: Tensor,
    z_loss: float,
    gradient: bool,
) -> None:
    """Losses, their gradient, or both.

    Args:
        logits: `[N, V]`, last stride 1; overwritten by the gradient if that is wanted.
        labels: `[N]` int64; where one is outside the vocabulary the loss is NaN.
        factors: `[N]` fp32 factor on each row's loss, and upstream gradient; 0 for no loss.
        losses: `[N]` fp32, to be written; None if `lse` is known already.
        lse: `[N]` fp32, written with `losses`, read without.
        z_loss: Factor on the squared log-sum-exp.
        gradient: Whether to write the gradient.
    """
    with on(logits):
        cross_entropy_kernel[(logits.shape[0],)](
            logits, labels, factors, lse if losses is None else losses, lse, logits.stride(0),
            logits.shape[1], z_loss, LOSS=losses is not None, GRADIENT=gradient,
            COLUMNS=max(16, min(CONFIG.columns, triton.next_power_of_2(logits.shape[1]))),
            **CONFIG.options(),
        )  # fmt: skip
