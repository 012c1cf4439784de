"""Partial rotary embedding; the backward pass is the inverse rotation, so only tables are kept.

Two conventions name the pairs that turn together: `"half"` (GPT-NeoX, Llama, Phi in Hugging Face),
dimensions i and i + R / 2, and `"interleaved"` (GPT-J, CodeGen), dimensions 2 i and 2 i + 1.
Dimensions from R on pass unchanged.

    python -c "import hornbook_kernels as hk; print(hk.rotary_tables(4, 8)[0])"
"""

from typing import Any

import torch
from torch import Tensor

from hornbook_kernels import dispatch

LAYOUTS = ("half", "interleaved")


def rotary_tables(
    length: int, dims: int, *, theta: float = 10_000.0, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles.

    Args:
        length: Number of positions.
        dims: R, the rotated dimensions of a head; even.
        theta: Base of the wavelengths.
        device: Where the tables are needed.

    Returns:
        cos and sin, each `[length, R / 2]` in fp32.
    """
    frequency = 1.0 / theta ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return angle.cos().to(device), angle.sin().to(device)


def _turn(
    x: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, interleaved: bool, inverse: bool
) -> None:
    """Rotates `[B, T, H, D]`, or q and k of packed `[B, T, 3, H, D]`, in place, by torch alone."""
    turned = x[:, :, :2] if x.dim() == 5 else x
    if starts is None:
        cos, sin = (table[..., : x.shape[1], :] for table in (cos, sin))
    else:
        position = torch.arange(x.shape[1], device=x.device) - starts
        if cos.dim() == 3:
            row = torch.arange(x.shape[0], device=x.device)[:, None]
            cos, sin = cos[row, position], sin[row, position]
        else:
            cos, sin = cos[position], sin[position]
    missing = turned.dim() - 3
    cos = cos.reshape(*cos.shape[:-1], *[1] * missing, cos.shape[-1])
    sin = sin.reshape(*sin.shape[:-1], *[1] * missing, sin.shape[-1])
    half = cos.shape[-1]
    if interleaved:
        a, b = turned[..., 0 : 2 * half : 2], turned[..., 1 : 2 * half : 2]
    else:
        a, b = turned[..., :half], turned[..., half : 2 * half]
    sign = -1.0 if inverse else 1.0
    # The right-hand sides are in the table's fp32 for half-precision inputs: one rounding each.
    if x.dtype in (torch.float16, torch.bfloat16):
        high, low = a * cos - sign * (b * sin), b * cos + sign * (a * sin)
        a.copy_(high)
        b.copy_(low)
    else:
        a_sin = a * sin
        a.mul_(cos).addcmul_(b, sin, value=-sign)
        b.mul_(cos).add_(a_sin, alpha=sign)


def _launch(
    x: Tensor,
    out: Tensor,
    cos: Tensor,
    sin: Tensor,
    starts: Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> None:
    from hornbook_kernels.gpu import rotary as gpu

    cos, sin = (table.contiguous() for table in (cos, sin))
    if x.dim() == 4:
        x, out = x.unsqueeze(2), out.unsqueeze(2)
    gpu.rotate(x, out, cos, sin, starts, interleaved, inverse)


@torch.library.custom_op("hornbook::rotary", mutates_args=(), device_types="cpu")
def _rotary(
    x: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, interleaved: bool, inverse: bool
) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    _turn(out, cos, sin, starts, interleaved, inverse)
    return out


@_rotary.register_kernel("cuda")
def _rotary_cuda(
    x: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, interleaved: bool, inverse: bool
) -> Tensor:
    if dispatch.unproven(x.device, x.dtype) or x.stride(-1) != 1:
        out = x.clone(memory_format=torch.contiguous_format)
        _turn(out, cos, sin, starts, interleaved, inverse)
    else:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        _launch(x, out, cos, sin, starts, interleaved, inverse)
    return out


@_rotary.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("hornbook::rotary_", mutates_args=("x",), device_types="cpu")
def _rotary_in_place(
    x: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, interleaved: bool, inverse: bool
) -> None:
    _turn(x, cos, sin, starts, interleaved, inverse)


@_rotary_in_place.register_kernel("cuda")
def _rotary_in_place_cuda(
    x: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, interleaved: bool, inverse: bool
) -> None:
    if dispatch.unproven(x.device, x.dtype) or x.stride(-1) != 1:
        _turn(x, cos, sin, starts, interleaved, inverse)
    else:
        _launch(x, x, cos, sin, starts, interleaved, inverse)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, starts, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin, starts)


def _rotary_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    back = _rotary(grad, *ctx.saved_tensors, ctx.interleaved, not ctx.inverse)
    return back, None, None, None, None, None


_rotary.register_autograd(_rotary_grad, setup_context=_save)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        starts: Tensor | None,
        interleaved: bool,
        inverse: bool,
    ) -> Tensor:
        _rotary_in_place(x, cos, sin, starts, interleaved, inverse)
        ctx.mark_dirty(x)
        _save(ctx, (x, cos, sin, starts, interleaved, inverse), x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override, unused-ignore]
        return _rotary_grad(ctx, grad)


def _check(
    x: Tensor, cos: Tensor, sin: Tensor, bounds: Tensor | None, layout: str
) -> tuple[Tensor | None, bool]:
    """The starts of documents, and whether the layout is the interleaved one."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} must be one of {LAYOUTS}")
    rows = x.shape[1] if cos.dim() == 2 else x.shape[:2]
    if x.dim() not in (4, 5) or (cos.shape[0] if cos.dim() == 2 else cos.shape[:2]) != rows:
        raise ValueError(f"rotary tables {tuple(cos.shape)} do not fit {tuple(x.shape)}")
    if cos.shape != sin.shape or 2 * cos.shape[-1] > x.shape[-1]:
        raise ValueError(f"rotary tables {tuple(cos.shape)} are wider than the heads of {x.shape}")
    if bounds is None:
        return None, layout == "interleaved"
    if bounds.shape != (2, *x.shape[:2]) or bounds.dtype != torch.int32:
        raise ValueError(f"bounds {tuple(bounds.shape)} must be [2, B, T] int32")
    return bounds[0].to(x.device).contiguous(), layout == "interleaved"


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
        x: `[B, T, H, D]`, or packed `[B, T, 3, H, D]`, of which q and k are turned; any strides.
        cos: `[T, R / 2]`, or `[B, T, R / 2]` for positions that differ by row.
        sin: As `cos`; both without gradient.
        bounds: From `document_bounds`: positions then start again with every document.
        layout: `"half"` or `"interleaved"`; see the module.
        inverse: Rotate back.

    Returns:
        As `x`, contiguous, in its dtype.

    Raises:
        ValueError: If the tables or bounds do not fit `x`, or the layout is unknown.
    """
    starts, interleaved = _check(x, cos, sin, bounds, layout)
    result: Tensor = _rotary(x, cos, sin, starts, interleaved, inverse)
    return result


def apply_rotary_(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    bounds: Tensor | None = None,
    layout: str = "half",
    inverse: bool = False,
) -> Tensor:
    """`apply_rotary` in place: moves only the rotated numbers. Differentiable.

    Args:
        x: As for `apply_rotary`; not a leaf that wants a gradient.
        cos: As for `apply_rotary`.
        sin: As for `apply_rotary`.
        bounds: As for `apply_rotary`.
        layout: As for `apply_rotary`.
        inverse: Rotate back.

    Returns:
        `x`.

    Raises:
        ValueError: As for `apply_rotary`.
    """
    starts, interleaved = _check(x, cos, sin, bounds, layout)
    result: Tensor = _InPlace.apply(x, cos, sin, starts, interleaved, inverse)
    return result
