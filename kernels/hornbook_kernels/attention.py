"""Attention over packed or separate q, k, v, with document boundaries and dropout.

`dispatch.choose` picks between our operator (`hornbook::attention`: Triton on a GPU, the plain form
on a CPU), torch's fused attention and the reference. Ours holds no `T x T` matrix, takes packed qkv
where it lies and writes one packed gradient, sees documents as two integers a token, and drops
weights by counter-based bits that are the same in every implementation.

    python -c "import torch, hornbook_kernels as hk; print(hk.attention(torch.ones(1, 8, 3, 2, 4)))"
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hornbook_kernels import dispatch, philox, reference
from hornbook_kernels.documents import document_bounds, visible


def _weights(
    q: Tensor, k: Tensor, bounds: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Wide q and k, `[B, H, T, S]` scores of what is seen, -inf elsewhere."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q = q.to(wide)
    k = k.to(wide).repeat_interleave(q.shape[2] // k.shape[2], 2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * scale
    if bounds is not None:
        scores = scores.masked_fill(~visible(bounds), float("-inf"))
    elif causal:
        t, s = scores.shape[-2:]
        seen = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)
        scores = scores.masked_fill(~seen, float("-inf"))
    return q, k, scores


def _keep(seed: Tensor | None, scores: Tensor, level: int) -> Tensor | float:
    """The factor on each weight: 0, or what makes up for the dropped ones."""
    if not level:
        return 1.0
    assert seed is not None
    kept: Tensor = philox.kept(seed, scores.shape, level).to(scores.dtype)
    factor: Tensor = kept * (philox.LEVELS / (philox.LEVELS - level))
    return factor


@torch.library.custom_op("hornbook::attention", mutates_args=(), device_types="cpu")
@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator, unused-ignore]
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    level: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    scores = _weights(q, k, bounds, causal, scale)[2]
    weights = scores.softmax(-1) * _keep(seed, scores, level)
    v = v.to(scores.dtype).repeat_interleave(q.shape[2] // v.shape[2], 2)
    out = torch.einsum("bhts,bshd->bthd", weights, v).to(q.dtype)
    return out.contiguous(), scores.logsumexp(-1)


@torch.library.custom_op("hornbook::attention_backward", mutates_args=(), device_types="cpu")
@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator, unused-ignore]
def _backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    level: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    q_wide, k_wide, scores = _weights(q, k, bounds, causal, scale)
    share, shared = q.shape[2] // k.shape[2], k.shape[2]
    weights = (scores - lse[..., None]).exp()
    factor = _keep(seed, scores, level)
    dout = dout.to(scores.dtype)
    delta = (dout * out.to(scores.dtype)).sum(-1).transpose(1, 2)
    if dlse is not None:
        delta = delta - dlse
    v_wide = v.to(scores.dtype).repeat_interleave(share, 2)
    pull = torch.einsum("bthd,bshd->bhts", dout, v_wide) * factor
    slope = weights * (pull - delta[..., None]) * scale

    def shrink(grad: Tensor) -> Tensor:
        summed: Tensor = grad.unflatten(2, (shared, share)).sum(3).to(k.dtype)
        return summed

    dq = torch.einsum("bhts,bshd->bthd", slope, k_wide).to(q.dtype)
    dk = torch.einsum("bhts,bthd->bshd", slope, q_wide)
    dv = torch.einsum("bhts,bthd->bshd", weights * factor, dout)
    return dq.contiguous(), shrink(dk).contiguous(), shrink(dv).contiguous()


def _dense(x: Tensor) -> Tensor:
    """Kernels want the numbers of a head side by side; nothing else is copied.

    Raises:
        ValueError: If tokens are so far apart that a tile's offsets would pass 32 bits.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    if x.shape[1] > 1 and x.stride(1) >= 2**24:
        raise ValueError(f"tokens {x.stride(1)} numbers apart: our kernels take less than 2**24")
    return x


def _whole(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _architecture(q: Tensor) -> int:
    architecture: int | None = dispatch.card(q.device)[1]
    assert architecture is not None, q.device
    return architecture


@_forward.register_kernel("cuda")
def _forward_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    level: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    from hornbook_kernels.gpu import attention as gpu

    q, k, v = _dense(q), _dense(k), _dense(v)
    return gpu.forward(q, k, v, bounds, seed, level, causal, scale, architecture=_architecture(q))


@_backward.register_kernel("cuda")
def _backward_cuda(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    level: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from hornbook_kernels.gpu import attention as gpu

    q, k, v, dout = _dense(q), _dense(k), _dense(v), _dense(dout)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    gpu.backward(
        dout, _whole(dlse), q, k, v, out, lse, bounds, seed, level, causal, scale,
        (dq, dk, dv),
        architecture=_architecture(q),
    )  # fmt: skip
    return dq, dk, dv


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    level: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, t, heads, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((batch, heads, t), dtype=wide)


@_backward.register_fake
def _(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


# Packed: the same, but the gradient is written as one tensor.


@torch.library.custom_op("hornbook::attention_packed", mutates_args=())
def _packed(
    qkv: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    level: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.unbind(2)
    out: tuple[Tensor, Tensor] = _forward(q, k, v, bounds, seed, level, causal, scale)
    return out


@torch.library.custom_op("hornbook::attention_packed_backward", mutates_args=(), device_types="cpu")
def _packed_backward(
    dout: Tensor,
    dlse: Tensor | None,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    level: int,
    causal: bool,
    scale: float,
) -> Tensor:
    q, k, v = qkv.unbind(2)
    grads = _backward(dout, dlse, q, k, v, out, lse, bounds, seed, level, causal, scale)
    return torch.stack(grads, 2)


@_packed_backward.register_kernel("cuda")
def _packed_backward_cuda(
    dout: Tensor,
    dlse: Tensor | None,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    level: int,
    causal: bool,
    scale: float,
) -> Tensor:
    from hornbook_kernels.gpu import attention as gpu

    qkv = _dense(qkv)
    grad = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    q, k, v = qkv.unbind(2)
    dq, dk, dv = grad.unbind(2)
    gpu.backward(
        _dense(dout), _whole(dlse), q, k, v, out, lse, bounds, seed, level, causal, scale,
        (dq, dk, dv), architecture=_architecture(q),
    )  # fmt: skip
    return grad


@_packed.register_fake
def _(
    qkv: Tensor,
    bounds: Tensor | None,
    seed: Tensor | None,
    level: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, t, _, heads, dim = qkv.shape
    wide = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty((batch, t, heads, dim)), qkv.new_empty((batch, heads, t), dtype=wide)


@_packed_backward.register_fake
def _(dout: Tensor, dlse: Tensor | None, qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *rest, ctx.level, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*rest[:-2], *output, *rest[-2:])
    ctx.set_materialize_grads(False)


def _pulls(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    """What both backward operators take, in their order; out and lse may lack a gradient."""
    saved = ctx.saved_tensors
    dout = torch.zeros_like(saved[-4]) if dout is None else dout
    return (dout, dlse, *saved, ctx.level, ctx.causal, ctx.scale)


def _attention_grad(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    return (*_backward(*_pulls(ctx, dout, dlse)), None, None, None, None, None)


def _packed_grad(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    return (_packed_backward(*_pulls(ctx, dout, dlse)), None, None, None, None, None)


_forward.register_autograd(_attention_grad, setup_context=_save)
_packed.register_autograd(_packed_grad, setup_context=_save)


def _sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    causal: bool,
    scale: float | None,
) -> Tensor:
    t, s = q.shape[1], k.shape[1]
    fused_causal = causal and mask is None and t == s
    if causal and mask is None and 1 < t < s:
        # torch's flag aligns the first query with the first key; ours is the end of the sequence.
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril_(s - t)
    # cuDNN's backward, which torch would take first, gives NaN with some masks (pytorch#196678).
    sound = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(sound) if mask is not None and q.is_cuda else nullcontext():
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            dropout_p=dropout_p,
            is_causal=fused_causal,
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[2],
        )
    return out.transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
    fits = q.dim() == k.dim() == 4 and k.shape == v.shape
    fits = fits and (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3])
    if not fits or q.shape[2] % k.shape[2] or (causal and q.shape[1] > k.shape[1]):
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit: "
            "[B, T, H, D] and twice [B, S, G, D], G dividing H, and T at most S if causal"
        )


def attention(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    cu_seqlens: Sequence[Any] | None = None,
    bounds: Tensor | None = None,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    impl: str = "auto",
    return_lse: bool = False,
) -> Any:
    """Softmax attention.

    Args:
        q: `[B, T, H, D]`, or packed q, k and v `[B, T, 3, H, D]`; any strides.
        k: `[B, S, G, D]`, each head serving H / G heads of `q`; absent where `q` is packed.
        v: As `k`.
        cu_seqlens: For each row its documents' starts and its end; a token then sees only its own
            document. Implies `causal`, and T = S.
        bounds: The same as a tensor, built once for all layers by `document_bounds`, also from
            document ids; copied to the device of `q` if it is elsewhere.
        mask: Boolean (true: may see) or additive mask, broadcast to `[B, H, T, S]`, in place of
            `causal` and documents; see `document_mask`. Never our kernel.
        dropout_p: Share of attention weights dropped; with a seed, or in our kernel, rounded to
            1 / 256 (0.1 is 0.1016).
        seed: Seed of the dropped weights, an int or one int64 on the device: the same weights in
            every implementation. None takes torch's global generator.
        causal: A query sees keys up to its own position, the last query being at the last key.
        scale: Factor on the scores, positive, `D ** -0.5` unless stated.
        impl: `"auto"`, `"triton"`, `"sdpa"` or `"reference"`; see `explain`.
        return_lse: Also return the log-sum-exp of the scores, differentiable too.

    Returns:
        `[B, T, H, D]` in the dtype of `q`; with `return_lse` also `[B, H, T]` fp32.

    Raises:
        ValueError: If shapes or options do not go together, or `impl` can not be had.
    """
    packed = k is None and v is None and q.dim() == 5 and q.shape[2] == 3
    if (k is None or v is None) and not packed:
        raise ValueError("give q, k and v, or one packed tensor [B, T, 3, H, D]")
    low = dispatch.working_dtype(q)
    q, k, v = (None if x is None else x.to(low) for x in (q, k, v))  # type: ignore[assignment]
    qkv = q
    if packed:
        q, k, v = qkv.unbind(2)
    assert k is not None
    assert v is not None
    _check(q, k, v, causal and mask is None)
    if scale is not None and scale <= 0.0:
        raise ValueError(f"scale {scale} must be positive")
    documents = cu_seqlens is not None or bounds is not None
    if documents and (mask is not None or not causal or q.shape[1] != k.shape[1]):
        raise ValueError("cu_seqlens and bounds go with causal self-attention and without a mask")
    if cu_seqlens is not None:
        bounds = document_bounds(cu_seqlens, q.shape[1], device=q.device)
    if bounds is not None and (bounds.shape != (2, *q.shape[:2]) or bounds.dtype != torch.int32):
        raise ValueError(f"bounds {tuple(bounds.shape)} must be [2, B, T] int32")
    if bounds is not None:
        bounds = bounds.to(q.device)
    level = philox.threshold(dropout_p)
    choice = dispatch.choose(
        q.device,
        q.dtype,
        q.shape[1],
        q.shape[-1],
        packed=packed,
        grouped=q.shape[2] != k.shape[2],
        causal=causal,
        mask=mask is not None,
        documents=documents,
        dropout=level > 0,
        keyed=seed is not None,
        lse=return_lse,
        impl=impl,
    )
    if choice.impl == "sdpa":
        return _sdpa(q, k, v, visible(bounds) if bounds is not None else mask, dropout_p, causal,
                     scale)  # fmt: skip
    draw: Tensor | None = None
    if level:
        if isinstance(seed, Tensor):
            draw = seed.to(q.device, torch.int64).reshape(())
        elif seed is not None:
            draw = torch.full((), seed, dtype=torch.int64, device=q.device)
        else:
            draw = torch.randint(2**62, (), device=q.device)
    if choice.impl == "reference":
        out, lse = reference.attention(
            q, k, v, mask=visible(bounds) if bounds is not None else mask,
            dropout_p=dropout_p, seed=draw, causal=causal, scale=scale,
        )  # fmt: skip
    else:
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        if bounds is not None:
            bounds = bounds.contiguous()
        if packed:
            out, lse = _packed(qkv, bounds, draw, level, causal, factor)
        else:
            out, lse = _forward(q, k, v, bounds, draw, level, causal, factor)
    return (out, lse) if return_lse else out


def explain(
    q: Tensor,
    k: Tensor | None = None,
    *,
    causal: bool = True,
    mask: bool = False,
    documents: bool = False,
    dropout_p: float = 0.0,
    seed: bool = False,
    return_lse: bool = False,
    impl: str = "auto",
) -> dispatch.Choice:
    """Which implementation `attention` would take, and why.

    Args:
        q: `[B, T, H, D]` or packed `[B, T, 3, H, D]`.
        k: `[B, S, G, D]`, for heads in groups; as many heads as `q` has unless given.
        causal: As given to `attention`.
        mask: Whether an explicit mask is given.
        documents: Whether document boundaries are given.
        dropout_p: Share of attention weights dropped.
        seed: Whether the seed is stated.
        return_lse: Whether the log-sum-exp is wanted.
        impl: As given to `attention`.

    Returns:
        The implementation and the reason.
    """
    return dispatch.choose(
        q.device,
        dispatch.working_dtype(q),
        q.shape[1],
        q.shape[-1],
        packed=q.dim() == 5,
        grouped=k is not None and k.shape[2] != q.shape[2],
        causal=causal,
        mask=mask,
        documents=documents,
        dropout=dropout_p > 0.0,
        keyed=seed,
        lse=return_lse,
        impl=impl,
    )
