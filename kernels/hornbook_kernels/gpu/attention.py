"""Fused attention: one forward kernel and two backward ones, without atomics, so runs repeat.

What is visible to a row of queries is cut in up to three ranges of keys: the edge of a document
(masked), the inside (no mask at all), the diagonal (masked). Dropout draws one Philox call for the
16 keys that a tensor-core accumulator gives to one thread; see `hornbook_kernels.philox`.

The backward pass computes the scores twice, once for dq and once for dk and dv: seven products
instead of five, the price of a fixed order of summation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hornbook_kernels.gpu import configs
from hornbook_kernels.gpu.configs import Config
from hornbook_kernels.gpu.launch import on
from hornbook_kernels.philox import LEVELS, ROUNDS

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_ROUNDS = tl.constexpr(ROUNDS)


@triton.jit
def _kept(seed, row, start, head, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """`[ROWS, COLUMNS]` bool: the weights that dropout keeps; `start` is a multiple of COLUMNS."""
    LANES: tl.constexpr = 4 * ((COLUMNS + 63) // 64)
    WORDS: tl.constexpr = COLUMNS // LANES // 4
    quad = start // 64 * 4 + tl.arange(0, LANES)
    w0, w1, w2, w3 = tl.philox(seed, row[:, None], quad[None, :], head, 0, _ROUNDS)
    # Byte `4 * word + byte` of a call is 2 * j + b of column 8 * j + 2 * lane + b.
    if COLUMNS == 32:  # half a group: two words of each call
        upper = start % 64 >= 32
        words = tl.join(tl.where(upper, w2, w0), tl.where(upper, w3, w1))
    else:
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    words = tl.reshape(words, (ROWS, LANES, WORDS, 1))
    shifts = (tl.arange(0, 4) * 8).to(tl.uint32)
    draws = (words >> shifts[None, None, None, :]) & 0xFF
    draws = tl.reshape(draws, (ROWS, LANES // 4, 4, 2 * WORDS, 2))
    draws = tl.permute(draws, (0, 1, 3, 2, 4))
    return tl.reshape(draws, (ROWS, COLUMNS)).to(tl.int32) >= threshold


@triton.jit
def _tile(base, start, stride, limit, ROWS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
          EDGE: tl.constexpr):  # fmt: skip
    """`[ROWS, DP]` from row `start`; zeros beyond `limit` rows (if EDGE) and D dimensions."""
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DP)
    where = base + tl.cast(start, tl.int64) * stride + row[:, None] * stride + dim[None, :]
    inside = (dim < D)[None, :]
    if EDGE:
        inside = inside & (start + row < limit)[:, None]
    return tl.load(where, mask=inside, other=0.0) if EDGE or D != DP else tl.load(where)


@triton.jit
def _store(base, start, stride, limit, value, ROWS: tl.constexpr, D: tl.constexpr,
           DP: tl.constexpr):  # fmt: skip
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DP)
    where = base + tl.cast(start, tl.int64) * stride + row[:, None] * stride + dim[None, :]
    inside = (start + row < limit)[:, None] & (dim < D)[None, :]
    tl.store(where, value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _place(tiles, heads, section):
    """This program's tile, longest work first, and its (batch, head).

    Heads go in sections whose keys and values stay in the L2 cache; within one, the last tile of
    every head comes first, so that no long program starts late.
    """
    program = tl.program_id(0)
    first = program // (section * tiles) * section
    inside = program % (section * tiles)
    wide = tl.minimum(section, heads - first)
    return tiles - 1 - inside // wide, first + inside % wide


@triton.jit
def _ranges(start, t, s, starts, CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr,
            ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Keys seen by ROWS queries from `start`: masked [a, b), plain [b, c), masked [c, d)."""
    if CAUSAL:
        c = (start + s - t + 1) // COLUMNS * COLUMNS
        d = tl.minimum(start + ROWS + s - t, s)
    else:
        c = s // COLUMNS * COLUMNS
        d = s
    a = start * 0
    b = a
    if DOCUMENTS:
        a = tl.load(starts + start) // COLUMNS * COLUMNS
        last = tl.load(starts + tl.minimum(start + ROWS, t) - 1)
        b = tl.minimum((last + COLUMNS - 1) // COLUMNS * COLUMNS, c)
        b = tl.maximum(a, b)
        c = tl.maximum(b, c)
    return a, b, c, d


@triton.jit
def _visible(row, column, t, s, starts, CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr):
    seen = (column < s)[None, :]
    if CAUSAL:
        seen = seen & (column[None, :] <= row[:, None] + (s - t))
    if DOCUMENTS:
        seen = seen & (column[None, :] >= starts[:, None])
    return seen


@triton.jit
def _attend(acc, total, top, q, k_base, v_base, k_stride, v_stride, lo, hi, row, t, s, starts,
            seed, head, threshold, factor, CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr,
            DROPOUT: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
            ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr,
            DP: tl.constexpr):  # fmt: skip
    """The online softmax over keys [lo, hi); scores are in units of log 2."""
    # Without the question, here and below, a loop that never runs meets one whose last product is
    # under way, and the assembler waits for every product (C7515) instead of letting them overlap.
    if lo < hi:
        for start in range(lo, hi, COLUMNS):
            k = _tile(k_base, start, k_stride, s, COLUMNS, D, DP, MASKED)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if MASKED:
                column = start + tl.arange(0, COLUMNS)
                seen = _visible(row, column, t, s, starts, CAUSAL, DOCUMENTS)
                scores = tl.where(seen, scores, -float("inf"))
                new = tl.maximum(top, tl.max(scores, 1) * factor)
                # A row may have seen nothing yet: its maximum is -inf, not to be subtracted.
                base = tl.where(new == -float("inf"), 0.0, new)
            else:
                new = tl.maximum(top, tl.max(scores, 1) * factor)
                base = new
            weights = tl.exp2(scores * factor - base[:, None])
            shrink = tl.exp2(top - base)
            total = total * shrink + tl.sum(weights, 1)
            acc = acc * shrink[:, None]
            if DROPOUT:
                kept = _kept(seed, row, start, head, threshold, ROWS, COLUMNS)
                weights = tl.where(kept, weights, 0.0)
            v = _tile(v_base, start, v_stride, s, COLUMNS, D, DP, MASKED)
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
            top = new
    return acc, total, top


@triton.jit(do_not_specialize=["t", "s", "tiles", "heads", "section", "threshold"])
def forward_kernel(q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, starts_ptr, seed_ptr,
                   qb, qt, qh, kb, kt, kh, vb, vt, vh, t, s, tiles, heads, section, threshold,
                   scale: tl.float32, rescale: tl.float32,
                   HEADS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
                   DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr,
                   DP: tl.constexpr):  # fmt: skip
    """One tile of queries of one head: out and log-sum-exp."""
    tile, head = _place(tiles, heads, section)
    batch = tl.cast(head // HEADS, tl.int64)
    inner = tl.cast(head % HEADS, tl.int64)
    start = tile * ROWS
    row = start + tl.arange(0, ROWS)
    k_base = k_ptr + batch * kb + inner // GROUP * kh
    v_base = v_ptr + batch * vb + inner // GROUP * vh
    q = _tile(q_ptr + batch * qb + inner * qh, start, qt, t, ROWS, D, DP, True)
    starts = row
    starts_base = starts_ptr
    if DOCUMENTS:
        starts_base = starts_ptr + batch * t
        starts = tl.load(starts_base + tl.minimum(row, t - 1))
    seed = 0
    if DROPOUT:
        seed = tl.load(seed_ptr)
    factor = scale * _LOG2E
    acc = tl.zeros((ROWS, DP), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    top = tl.full((ROWS,), -float("inf"), tl.float32)
    a, b, c, d = _ranges(start, t, s, starts_base, CAUSAL, DOCUMENTS, ROWS, COLUMNS)
    if DOCUMENTS:
        acc, total, top = _attend(
            acc, total, top, q, k_base, v_base, kt, vt, a, b, row, t, s, starts, seed, head,
            threshold, factor, CAUSAL, DOCUMENTS, DROPOUT, True, PRECISION, ROWS, COLUMNS, D, DP,
        )  # fmt: skip
    acc, total, top = _attend(
        acc, total, top, q, k_base, v_base, kt, vt, b, c, row, t, s, starts, seed, head,
        threshold, factor, CAUSAL, DOCUMENTS, DROPOUT, False, PRECISION, ROWS, COLUMNS, D, DP,
    )  # fmt: skip
    acc, total, top = _attend(
        acc, total, top, q, k_base, v_base, kt, vt, c, d, row, t, s, starts, seed, head,
        threshold, factor, CAUSAL, DOCUMENTS, DROPOUT, True, PRECISION, ROWS, COLUMNS, D, DP,
    )  # fmt: skip
    over = 1.0 / total
    if DROPOUT:
        over = over * rescale
    out_base = out_ptr + (batch * t * HEADS + inner) * D
    _store(out_base, start, HEADS * D, t, acc * over[:, None], ROWS, D, DP)
    lse = (top + tl.log2(total)) * _LN2
    tl.store(lse_ptr + tl.cast(head, tl.int64) * t + row, lse, mask=row < t)


@triton.jit
def _pull_q(dq, q, dout, lse, delta, k_base, v_base, k_stride, v_stride, lo, hi, row, t, s,
            starts, seed, head, threshold, factor, rescale, CAUSAL: tl.constexpr,
            DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, MASKED: tl.constexpr,
            PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
            D: tl.constexpr, DP: tl.constexpr):  # fmt: skip
    """The gradient of a tile of queries from keys [lo, hi)."""
    if lo < hi:
        for start in range(lo, hi, COLUMNS):
            k = _tile(k_base, start, k_stride, s, COLUMNS, D, DP, MASKED)
            v = _tile(v_base, start, v_stride, s, COLUMNS, D, DP, MASKED)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            weights = tl.exp2(scores * factor - lse[:, None])
            if MASKED:
                column = start + tl.arange(0, COLUMNS)
                seen = _visible(row, column, t, s, starts, CAUSAL, DOCUMENTS)
                weights = tl.where(seen, weights, 0.0)
            pull = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
            if DROPOUT:
                kept = _kept(seed, row, start, head, threshold, ROWS, COLUMNS)
                pull = tl.where(kept, pull * rescale, 0.0)
            slope = weights * (pull - delta[:, None])
            dq = tl.dot(slope.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=["t", "s", "tiles", "heads", "section", "threshold"])
def backward_q_kernel(q_ptr, k_ptr, v_ptr, out_ptr, dout_ptr, lse_ptr, dlse_ptr, delta_ptr,
                      dq_ptr, starts_ptr, seed_ptr, qb, qt, qh, kb, kt, kh, vb, vt, vh, gb, gt, gh,
                      db, dt, dh, t, s, tiles, heads, section, threshold,
                      scale: tl.float32, rescale: tl.float32,
                      HEADS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
                      DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PULLED: tl.constexpr,
                      PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                      D: tl.constexpr, DP: tl.constexpr):  # fmt: skip
    """One tile of queries: dq, and delta = sum(dout * out) - dlse, which the other kernel reads."""
    tile, head = _place(tiles, heads, section)
    batch = tl.cast(head // HEADS, tl.int64)
    inner = tl.cast(head % HEADS, tl.int64)
    start = tile * ROWS
    row = start + tl.arange(0, ROWS)
    k_base = k_ptr + batch * kb + inner // GROUP * kh
    v_base = v_ptr + batch * vb + inner // GROUP * vh
    out_base = out_ptr + (batch * t * HEADS + inner) * D
    out = _tile(out_base, start, HEADS * D, t, ROWS, D, DP, True)
    dout = _tile(dout_ptr + batch * gb + inner * gh, start, gt, t, ROWS, D, DP, True)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    per_row = tl.cast(head, tl.int64) * t + row
    if PULLED:  # the log-sum-exp has a gradient of its own, which acts as a smaller delta
        delta -= tl.load(dlse_ptr + per_row, mask=row < t, other=0.0)
    tl.store(delta_ptr + per_row, delta, mask=row < t)
    lse = tl.load(lse_ptr + per_row, mask=row < t, other=0.0) * _LOG2E
    # In units of log 2, for the kernel that needs it once for every tile of keys.
    tl.store(delta_ptr + tl.cast(heads, tl.int64) * t + per_row, lse, mask=row < t)
    q = _tile(q_ptr + batch * qb + inner * qh, start, qt, t, ROWS, D, DP, True)
    starts = row
    starts_base = starts_ptr
    if DOCUMENTS:
        starts_base = starts_ptr + batch * t
        starts = tl.load(starts_base + tl.minimum(row, t - 1))
    seed = 0
    if DROPOUT:
        seed = tl.load(seed_ptr)
    factor = scale * _LOG2E
    dq = tl.zeros((ROWS, DP), tl.float32)
    a, b, c, d = _ranges(start, t, s, starts_base, CAUSAL, DOCUMENTS, ROWS, COLUMNS)
    if DOCUMENTS:
        dq = _pull_q(
            dq, q, dout, lse, delta, k_base, v_base, kt, vt, a, b, row, t, s, starts, seed, head,
            threshold, factor, rescale, CAUSAL, DOCUMENTS, DROPOUT, True, PRECISION, ROWS, COLUMNS,
            D, DP,
        )  # fmt: skip
    dq = _pull_q(
        dq, q, dout, lse, delta, k_base, v_base, kt, vt, b, c, row, t, s, starts, seed, head,
        threshold, factor, rescale, CAUSAL, DOCUMENTS, DROPOUT, False, PRECISION, ROWS, COLUMNS,
        D, DP,
    )  # fmt: skip
    dq = _pull_q(
        dq, q, dout, lse, delta, k_base, v_base, kt, vt, c, d, row, t, s, starts, seed, head,
        threshold, factor, rescale, CAUSAL, DOCUMENTS, DROPOUT, True, PRECISION, ROWS, COLUMNS,
        D, DP,
    )  # fmt: skip
    _store(dq_ptr + batch * db + inner * dh, start, dt, t, dq * scale, ROWS, D, DP)


@triton.jit
def _pull_kv(dk, dv, k, v, q_base, g_base, qt, qh, gt, gh, lse_base, delta_base, lo, hi, start,
             column, ends, t, s, seed, head, threshold, factor, rescale, GROUP: tl.constexpr,
             CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr,
             MASKED: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):  # fmt: skip
    """The gradients of a tile of keys and values from queries [lo, hi) of each of GROUP heads from
    `head` on; tiles are key x query.
    """
    # One loop over heads and rows: within a loop over heads the three ranges' loops would each
    # leave what does not change in registers, and spill.
    span = tl.cdiv(hi - lo, ROWS) * ROWS
    end = hi
    if GROUP > 1:
        end = lo + GROUP * span
    if lo < end:
        for at in range(lo, end, ROWS):
            first = at
            query = head
            q_from, g_from, lse_from, delta_from = q_base, g_base, lse_base, delta_base
            if GROUP > 1:
                member = (at - lo) // span
                first = at - member * span
                query = head + member
                far = tl.cast(member, tl.int64)
                q_from += far * qh
                g_from += far * gh
                lse_from += far * t
                delta_from += far * t
            row = first + tl.arange(0, ROWS)
            q = _tile(q_from, first, qt, t, ROWS, D, DP, MASKED)
            dout = _tile(g_from, first, gt, t, ROWS, D, DP, MASKED)
            if MASKED:
                lse = tl.load(lse_from + row, mask=row < t, other=0.0)
                delta = tl.load(delta_from + row, mask=row < t, other=0.0)
            else:
                lse = tl.load(lse_from + row)
                delta = tl.load(delta_from + row)
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            weights = tl.exp2(scores * factor - lse[None, :])
            if MASKED:
                seen = (row < t)[None, :] & (column < s)[:, None]
                if CAUSAL:
                    seen = seen & (column[:, None] <= row[None, :] + (s - t))
                if DOCUMENTS:
                    seen = seen & (row[None, :] < ends[:, None])
                weights = tl.where(seen, weights, 0.0)
            pull = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
            if DROPOUT:
                kept = tl.trans(_kept(seed, row, start, query, threshold, ROWS, COLUMNS))
                passed = tl.where(kept, weights, 0.0)
                pull = tl.where(kept, pull * rescale, 0.0)
            else:
                passed = weights
            dv = tl.dot(passed.to(dout.dtype), dout, dv, input_precision=PRECISION)
            slope = weights * (pull - delta[None, :])
            dk = tl.dot(slope.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=["t", "s", "tiles", "heads", "section", "threshold"])
def backward_kv_kernel(q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
                       ends_ptr, seed_ptr, qb, qt, qh, kb, kt, kh, vb, vt, vh, gb, gt, gh,
                       db, dt, dh, eb, et, eh, t, s, tiles, heads, section, threshold,
                       scale: tl.float32, rescale: tl.float32,
                       HEADS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
                       DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
                       ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr,
                       DP: tl.constexpr):  # fmt: skip
    """One tile of keys and values of one key head, over all query heads that share it."""
    tile, shared = _place(tiles, heads, section)
    tile = tiles - 1 - tile  # with causality the first keys have the most queries
    batch = tl.cast(shared // (HEADS // GROUP), tl.int64)
    inner = tl.cast(shared % (HEADS // GROUP), tl.int64)
    start = tile * COLUMNS
    column = start + tl.arange(0, COLUMNS)
    k = _tile(k_ptr + batch * kb + inner * kh, start, kt, s, COLUMNS, D, DP, True)
    v = _tile(v_ptr + batch * vb + inner * vh, start, vt, s, COLUMNS, D, DP, True)
    lo = start * 0
    diagonal = lo
    if CAUSAL:
        lo = tl.maximum(start - (s - t), 0) // ROWS * ROWS
        diagonal = (tl.maximum(start + COLUMNS - 1 - (s - t), 0) + ROWS - 1) // ROWS * ROWS
    full = t // ROWS * ROWS
    hi = t
    ends = column
    if DOCUMENTS:
        ends_base = ends_ptr + batch * t
        ends = tl.load(ends_base + tl.minimum(column, t - 1))
        full = tl.load(ends_base + start) // ROWS * ROWS
        hi = tl.load(ends_base + tl.minimum(start + COLUMNS, t) - 1)
    # Keys beyond the last one need no mask in the plain range: their rows are never stored.
    diagonal = tl.minimum(diagonal, tl.maximum(lo, (hi + ROWS - 1) // ROWS * ROWS))
    full = tl.maximum(diagonal, full)
    seed = 0
    if DROPOUT:
        seed = tl.load(seed_ptr)
    factor = scale * _LOG2E
    dk = tl.zeros((COLUMNS, DP), tl.float32)
    dv = tl.zeros((COLUMNS, DP), tl.float32)
    query = inner * GROUP
    head = tl.cast(batch * HEADS + query, tl.int32)
    q_base = q_ptr + batch * qb + query * qh
    g_base = dout_ptr + batch * gb + query * gh
    lse_base = lse_ptr + tl.cast(head, tl.int64) * t
    delta_base = delta_ptr + tl.cast(head, tl.int64) * t
    if CAUSAL:
        dk, dv = _pull_kv(
            dk, dv, k, v, q_base, g_base, qt, qh, gt, gh, lse_base, delta_base, lo, diagonal,
            start, column, ends, t, s, seed, head, threshold, factor, rescale, GROUP, CAUSAL,
            DOCUMENTS, DROPOUT, True, PRECISION, ROWS, COLUMNS, D, DP,
        )  # fmt: skip
    dk, dv = _pull_kv(
        dk, dv, k, v, q_base, g_base, qt, qh, gt, gh, lse_base, delta_base, diagonal, full, start,
        column, ends, t, s, seed, head, threshold, factor, rescale, GROUP, CAUSAL, DOCUMENTS,
        DROPOUT, False, PRECISION, ROWS, COLUMNS, D, DP,
    )  # fmt: skip
    dk, dv = _pull_kv(
        dk, dv, k, v, q_base, g_base, qt, qh, gt, gh, lse_base, delta_base, full, hi, start,
        column, ends, t, s, seed, head, threshold, factor, rescale, GROUP, CAUSAL, DOCUMENTS,
        DROPOUT, True, PRECISION, ROWS, COLUMNS, D, DP,
    )  # fmt: skip
    if DROPOUT:
        dv = dv * rescale
    _store(dk_ptr + batch * db + inner * dh, start, dt, s, dk * scale, COLUMNS, D, DP)
    _store(dv_ptr + batch * eb + inner * eh, start, et, s, dv, COLUMNS, D, DP)


def _starts(bounds: Tensor | None, which: int, otherwise: Tensor) -> Tensor:
    return otherwise if bounds is None else bounds[which]


def _padded(head_dim: int) -> int:
    return 128 if head_dim == 96 else head_dim


def _section(heads: int, length: int, head_dim: int, width: int) -> int:
    """(batch, head) pairs worked on at once: their keys and values fill about 16 MB of cache."""
    return max(1, min(heads, 2**24 // (2 * max(1, length) * head_dim * width)))


def constants(
    q: Tensor, k: Tensor, documents: bool, dropout: bool, causal: bool, config: Config
) -> dict[str, object]:
    """The compile-time arguments, which all three kernels share."""
    head_dim = q.shape[-1]
    return {
        "HEADS": q.shape[2],
        "GROUP": q.shape[2] // k.shape[2],
        "CAUSAL": causal,
        "DOCUMENTS": documents,
        "DROPOUT": dropout,
        "PRECISION": config.precision,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "D": head_dim,
        "DP": _padded(head_dim),
    }


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    threshold: int,
    causal: bool,
    scale: float,
    *,
    architecture: int,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp.

    Args:
        q: `[B, T, H, D]`; the last stride is 1, the others are free.
        k: `[B, S, G, D]`, G dividing H.
        v: As `k`.
        bounds: `[2, B, T]` int32, contiguous: see `document_bounds`; only with `causal`, T = S.
        seed: One int64; needed if `threshold`.
        threshold: Weights dropped out of every `LEVELS`.
        causal: Query i sees keys up to i + S - T; T <= S.
        scale: Factor on the scores, positive.
        architecture: One of `configs.ARCHITECTURES`.
        config: In place of the table's.

    Returns:
        out `[B, T, H, D]`, contiguous, in the dtype of `q`; lse `[B, H, T]` fp32, natural log.
    """
    batch, t, heads, head_dim = q.shape
    s = k.shape[1]
    extras = threshold > 0 or bounds is not None
    config = config or configs.attention("forward", architecture, head_dim, q.dtype, extras)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, t), dtype=torch.float32, device=q.device)
    if s == 0:  # a query that sees no key
        return out.zero_(), lse.fill_(-float("inf"))
    tiles = triton.cdiv(t, config.rows)
    section = _section(batch * heads, s, head_dim, q.element_size())
    with on(q):
        forward_kernel[(tiles * batch * heads,)](
            q, k, v, out, lse, _starts(bounds, 0, lse), lse if seed is None else seed,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], t, s, tiles, batch * heads, section,
            threshold, scale, LEVELS / (LEVELS - threshold),
            **constants(q, k, bounds is not None, threshold > 0, causal, config),
            **config.options(),
        )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    threshold: int,
    causal: bool,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor],
    *,
    architecture: int,
    config_q: Config | None = None,
    config_kv: Config | None = None,
) -> None:
    """Writes the gradients of `forward`, the same bits every time.

    Args:
        dout: As `q`, any outer strides.
        dlse: As `lse`, contiguous; None for zeros.
        q: As given to `forward`, like k, v, bounds, seed, threshold, causal, scale.
        k: See `q`.
        v: See `q`.
        out: From `forward`.
        lse: From `forward`.
        bounds: See `q`.
        seed: See `q`.
        threshold: See `q`.
        causal: See `q`.
        scale: See `q`.
        grads: dq, dk, dv to be written whole, such as the parts of one packed tensor.
        architecture: One of `configs.ARCHITECTURES`.
        config_q: In place of the table's.
        config_kv: In place of the table's.
    """
    batch, t, heads, head_dim = q.shape
    s, shared = k.shape[1:3]
    extras = threshold > 0 or bounds is not None
    dq, dk, dv = grads
    config_q = config_q or configs.attention("backward_q", architecture, head_dim, q.dtype, extras)
    config_kv = config_kv or configs.attention(
        "backward_kv", architecture, head_dim, q.dtype, extras, heads != shared
    )
    delta = torch.empty((2, *lse.shape), dtype=lse.dtype, device=lse.device)  # and lse / ln 2
    rescale = LEVELS / (LEVELS - threshold)
    draw = lse if seed is None else seed
    width = q.element_size()
    with on(q):
        tiles = triton.cdiv(t, config_q.rows)
        section = _section(batch * heads, s, head_dim, width)
        backward_q_kernel[(tiles * batch * heads,)](
            q, k, v, out, dout, lse, lse if dlse is None else dlse, delta, dq,
            _starts(bounds, 0, lse), draw,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dout.stride()[:3],
            *dq.stride()[:3], t, s, tiles, batch * heads, section, threshold, scale, rescale,
            PULLED=dlse is not None,
            **constants(q, k, bounds is not None, threshold > 0, causal, config_q),
            **config_q.options(),
        )  # fmt: skip
        tiles = triton.cdiv(s, config_kv.columns)
        section = _section(batch * shared, t * heads // shared, head_dim, width)
        backward_kv_kernel[(tiles * batch * shared,)](
            q, k, v, dout, delta[1], delta[0], dk, dv, _starts(bounds, 1, lse), draw,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dout.stride()[:3],
            *dk.stride()[:3], *dv.stride()[:3], t, s, tiles, batch * shared, section, threshold,
            scale, rescale, **constants(q, k, bounds is not None, threshold > 0, causal, config_kv),
            **config_kv.options(),
        )  # fmt: skip
