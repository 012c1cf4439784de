"""Rotary embedding: every number read once and written once, in place where asked.

In place only the rotated dimensions of q and k are touched: at R = 32 of D = 64 a third of packed
qkv. Angles come from fp32 tables, one rounding at the end.
"""

import triton
import triton.language as tl
from torch import Tensor

from hornbook_kernels.gpu.configs import Config
from hornbook_kernels.gpu.launch import on

CONFIG = Config(rows=4, columns=32, warps=4, stages=1)
_DEPTH = 65_535  # of a grid: rows of one launch


@triton.jit(do_not_specialize=["t", "heads", "turned", "copied"])
def rotary_kernel(x_ptr, out_ptr, cos_ptr, sin_ptr, starts_ptr, xb, xt, xp, xh, ob, ot, op, oh,
                  cb, ct, t, heads, turned, copied,
                  HALF: tl.constexpr, HALF_P: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
                  INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, RESTART: tl.constexpr,
                  COPY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """ROWS tokens by COLUMNS heads, counting the heads of q, then k, then (COPY) v.

    Heads below `turned` are rotated; with COPY the rest of them and all up to `copied` is copied.
    """
    batch = tl.cast(tl.program_id(2), tl.int64)
    pair = tl.arange(0, ROWS * COLUMNS)
    token = tl.program_id(0) * ROWS + pair // COLUMNS
    head = tl.program_id(1) * COLUMNS + pair % COLUMNS
    inside = (token < t) & (head < copied)
    token64 = token.to(tl.int64)
    part = (head // heads).to(tl.int64)
    inner = (head % heads).to(tl.int64)
    x = x_ptr + batch * xb + token64 * xt + part * xp + inner * xh
    out = out_ptr + batch * ob + token64 * ot + part * op + inner * oh
    angle = tl.arange(0, HALF_P)
    rotated = (inside & (head < turned))[:, None] & (angle < HALF)[None, :]
    position = token64
    if RESTART:
        position -= tl.load(starts_ptr + batch * t + token, mask=token < t, other=0)
    where = batch * cb + position[:, None] * ct + angle[None, :]
    cos = tl.load(cos_ptr + where, mask=rotated, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + where, mask=rotated, other=0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    if INTERLEAVED:
        first = 2 * angle
        second = first + 1
    else:
        first = angle
        second = angle + HALF
    a = tl.load(x[:, None] + first[None, :], mask=rotated, other=0.0).to(tl.float32)
    b = tl.load(x[:, None] + second[None, :], mask=rotated, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    tl.store(out[:, None] + first[None, :], (a * cos - b * sin).to(kind), mask=rotated)
    tl.store(out[:, None] + second[None, :], (b * cos + a * sin).to(kind), mask=rotated)
    if COPY:
        dim = tl.arange(0, DP)
        rest = (dim >= 2 * HALF)[None, :] | (head >= turned)[:, None]
        rest = rest & inside[:, None] & (dim < D)[None, :]
        value = tl.load(x[:, None] + dim[None, :], mask=rest)
        tl.store(out[:, None] + dim[None, :], value, mask=rest)


def constants(
    head_dim: int, half: int, interleaved: bool, inverse: bool, restart: bool, copy: bool
) -> dict[str, object]:
    """The compile-time arguments."""
    return {
        "HALF": half,
        "HALF_P": triton.next_power_of_2(half),
        "D": head_dim,
        "DP": triton.next_power_of_2(head_dim),
        "INTERLEAVED": interleaved,
        "INVERSE": inverse,
        "RESTART": restart,
        "COPY": copy,
        "ROWS": CONFIG.rows,
        "COLUMNS": CONFIG.columns,
    }


def rotate(
    x: Tensor,
    out: Tensor,
    cos: Tensor,
    sin: Tensor,
    starts: Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> None:
    """Writes rotated `x` to `out`, which may be `x` itself.

    Args:
        x: `[B, T, P, H, D]`, last stride 1; parts 0 and 1 (or the only one) are rotated.
        out: As `x`; where it is `x`, nothing but the rotated dimensions is touched.
        cos: `[T or longer, R / 2]`, or `[B, T, R / 2]`; last stride 1.
        sin: As `cos`, the same strides.
        starts: `[B, T]` int32: what is taken off each token's position.
        interleaved: Pairs are neighbours, not halves.
        inverse: Rotate back.
    """
    batch, t, parts, heads, head_dim = x.shape
    turned = min(parts, 2) * heads
    copy = out.data_ptr() != x.data_ptr()
    copied = parts * heads if copy else turned
    strides = cos.stride() if cos.dim() == 3 else (0, cos.stride(0))
    tiles = triton.cdiv(t, CONFIG.rows), triton.cdiv(copied, CONFIG.columns)
    with on(x):
        for first in range(0, batch, _DEPTH):
            rows = slice(first, first + _DEPTH)
            tables = (cos[rows], sin[rows]) if cos.dim() == 3 else (cos, sin)
            rotary_kernel[*tiles, min(_DEPTH, batch - first)](
                x[rows], out[rows], *tables, cos if starts is None else starts[rows],
                *x.stride()[:4], *out.stride()[:4], *strides[:2], t, heads, turned, copied,
                **constants(
                    head_dim, cos.shape[-1], interleaved, inverse, starts is not None, copy
                ),
                **CONFIG.options(),
            )  # fmt: skip
