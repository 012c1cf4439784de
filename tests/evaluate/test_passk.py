from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.errors import ConfigError
from hornbook.evaluate import mean_interval, pass_at_k
from hornbook.evaluate.passk import wilson_interval


def by_product(n, c, k):
    """The usual way to write it, in exact rationals: no pass in k draws without replacement."""
    miss = Fraction(1)
    for drawn in range(k):
        miss *= Fraction(max(0, n - c - drawn), n - drawn)
    return 1 - miss


def test_equals_exact_rationals_up_to_200():
    """Every n and c; for k the ends and the usual ones."""
    for n in range(1, 201):
        for k in {k for k in (1, 10, 100, n - 1, n) if 1 <= k <= n}:
            every = comb(n, k)
            for c in range(n + 1):
                exact = Fraction(every - comb(n - c, k), every)
                assert abs(Fraction(pass_at_k(n, c, k)) - exact) < Fraction(1, 10**12)


@given(st.data())
def test_equals_drawing_without_replacement(data):
    n = data.draw(st.integers(1, 200))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert abs(Fraction(pass_at_k(n, c, k)) - by_product(n, c, k)) < Fraction(1, 10**12)


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 2), (5, 6, 1), (5, -1, 1), (5, 1, 0), (0, 0, 1)])
def test_what_has_no_answer(n, c, k):
    with pytest.raises(ConfigError):
        pass_at_k(n, c, k)


def test_wilson_against_known_values():
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29 by the score method without correction.
    for c, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(c / n, n) == pytest.approx((low, high), abs=5e-5)


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_the_interval_holds_the_mean(passed):
    mean, stderr, low, high = mean_interval(passed)
    assert 0 <= low <= mean <= high <= 1
    assert mean == sum(passed) / len(passed)
    assert stderr == pytest.approx((mean * (1 - mean) / len(passed)) ** 0.5)


def test_no_problems_have_no_mean():
    with pytest.raises(ConfigError):
        mean_interval([])
