"""Partial rotary embedding in the half-split layout (GPT-NeoX, Hugging Face's Phi).

Pair i of a head is dimensions i and i + R / 2; dimensions from R on pass unchanged. The backward
pass is the inverse rotation, so nothing but the tables is kept for it.

    python -c "import hornbook_kernels as hk; print(hk.rotary_tables(4, 8)[0])"
"""

from typing import Any

import torch
from torch import Tensor


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


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool) -> Tensor:
    """A rotated copy of `[B, T, H, D]`, or of packed `[B, T, 3, H, D]` with v unchanged."""
    out = x.clone(memory_format=torch.contiguous_format)
    turned = out[:, :, :2] if x.dim() == 5 else out
    missing = turned.dim() - 3
    cos = cos.reshape(*cos.shape[:-1], *[1] * missing, cos.shape[-1])
    sin = sin.reshape(*sin.shape[:-1], *[1] * missing, sin.shape[-1])
    half = cos.shape[-1]
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
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.inverse = inverse
        return _rotate(x, cos, sin, inverse=inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override, unused-ignore]
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, inverse=not ctx.inverse), None, None, None


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotates the first R dimensions of every head.

    Args:
        x: `[B, T, H, D]`, or packed `[B, T, 3, H, D]`, of which q and k are turned.
        cos: `[T, R / 2]`, or `[B, T, R / 2]` for positions that differ by row.
        sin: As `cos`; both without gradient.
        inverse: Rotate back.

    Returns:
        As `x`, contiguous, in its dtype.

    Raises:
        ValueError: If the tables do not fit `x`.
    """
    rows = x.shape[1] if cos.dim() == 2 else x.shape[:2]
    if x.dim() not in (4, 5) or (cos.shape[0] if cos.dim() == 2 else cos.shape[:2]) != rows:
        raise ValueError(f"rotary tables {tuple(cos.shape)} do not fit {tuple(x.shape)}")
    if cos.shape != sin.shape or 2 * cos.shape[-1] > x.shape[-1]:
        raise ValueError(f"rotary tables {tuple(cos.shape)} are wider than the heads of {x.shape}")
    result: Tensor = _Rotary.apply(x, cos, sin, inverse)
    return result
