"""pass@k, and intervals that say how much a score is worth.

python -c "from hornbook.evaluate import pass_at_k; print(pass_at_k(200, 31, 10))"
"""

from collections.abc import Sequence
from math import comb, sqrt
from typing import NamedTuple

from hornbook.errors import ConfigError

_Z95 = 1.959963984540054


class Interval(NamedTuple):
    """A mean with its standard error and 95% interval."""

    mean: float
    stderr: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k samples passes, from c passes in n: 1 - C(n-c,k)/C(n,k).

    Unbiased (Chen et al. 2021). Computed in whole numbers: the nearest float to the exact value.

    Raises:
        ConfigError: If k is above n or a count makes no sense.
    """
    if not 0 <= c <= n or k < 1:
        raise ConfigError(f"pass@k needs 0 <= c <= n and k >= 1, not n={n}, c={c}, k={k}")
    if k > n:
        raise ConfigError(f"pass@{k} needs {k} samples a problem, but there are {n}: draw more")
    every = comb(n, k)
    return (every - comb(n - c, k)) / every


def wilson_interval(mean: float, n: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion of n independent trials."""
    if n < 1 or not 0 <= mean <= 1:
        raise ConfigError(f"an interval needs a mean in [0, 1] of at least 1, not {mean} of {n}")
    spread = z * sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = (mean + z * z / (2 * n) - spread) / scale
    high = (mean + z * z / (2 * n) + spread) / scale
    return (0.0 if mean == 0 else max(0.0, low), 1.0 if mean == 1 else min(1.0, high))


def mean_interval(passed: Sequence[bool] | Sequence[float]) -> Interval:
    """The mean of per-problem results with its standard error and Wilson's 95% interval.

    Args:
        passed: One value in [0, 1] a problem: passed or not, or its pass@k. For the latter the
            interval is conservative: values between 0 and 1 vary less than passes do.

    Raises:
        ConfigError: If there are none.
    """
    n = len(passed)
    if n == 0:
        raise ConfigError("there is no mean of no problems")
    mean = sum(passed) / n
    variance = sum((value - mean) ** 2 for value in passed) / n
    return Interval(mean, sqrt(variance / n), *wilson_interval(mean, n))
