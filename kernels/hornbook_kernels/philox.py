"""The bits of attention dropout: counter-based, the same in every implementation.

Philox4x32 with 7 rounds (the fewest that pass BigCrush). One call gives 16 bytes, for 16 of the 64
keys of a group: those that one thread of a tensor-core accumulator owns, so that kernels need no
exchange. The weight of query i and key j in head h of row b is dropped where a byte is below the
threshold `round(256 p)`:

    group, c = j // 64, j % 64;  lane = c % 8 // 2;  byte = 2 * (c // 8) + c % 2
    words = philox(key=seed, counter=(i, 4 * group + lane, b * H + h, 0))
    dropped = (words[byte // 4] >> 8 * (byte % 4) & 255) < threshold

    python -c "from hornbook_kernels.philox import *; print(threshold(0.1) / LEVELS)"
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 7
LEVELS = 256
_A, _B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def threshold(p: float) -> int:
    """The share of dropped weights in units of 1 / LEVELS, to the nearest.

    Args:
        p: From 0 to below 1; 0.1 becomes 26 / 256 = 0.1016. Positive shares are at least 1 / 256.

    Returns:
        From 0 to LEVELS - 1.

    Raises:
        ValueError: If p is no such share.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout_p {p} must be at least 0 and below 1")
    return 0 if p == 0.0 else min(max(round(p * LEVELS), 1), LEVELS - 1)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of `a * b`, without leaving int64: b in two halves."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-7.

    Args:
        seed: One int64: the key, low word first.
        counter: Four int64 tensors of 32-bit values that broadcast.

    Returns:
        Four int64 tensors of 32-bit values.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(ROUNDS):
        high_a, low_a = _multiply(_A, c0)
        high_b, low_b = _multiply(_B, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + _KEY_A) & _LOW, (k1 + _KEY_B) & _LOW
    return c0, c1, c2, c3


def kept(seed: Tensor, shape: Sequence[int], level: int) -> Tensor:
    """Which attention weights dropout keeps.

    Args:
        seed: One int64.
        shape: B, H, T, S.
        level: From `threshold`.

    Returns:
        `shape`, bool, on the seed's device. Costs about 60 bytes of scratch for each weight.
    """
    batch, heads, t, s = shape
    device = seed.device
    groups = -(-s // 64)

    def axis(count: int, dim: int) -> Tensor:
        size = [1] * 3
        size[dim] = count
        return torch.arange(count, device=device).reshape(size)

    head, row, quad = axis(batch * heads, 0), axis(t, 1), axis(4 * groups, 2)
    words = torch.stack(philox(seed, (row, quad, head, torch.zeros_like(head))), -1)
    shifts = torch.arange(0, 32, 8, device=device)
    draws = (words[..., None] >> shifts) & 0xFF
    draws = draws.reshape(batch * heads, t, groups, 4, 8, 2).transpose(3, 4)
    return (draws.reshape(batch, heads, t, groups * 64) >= level)[..., :s]
