"""Steering against a simulated teacher whose output is skewed; its bookkeeping and its stops."""

from collections import Counter
from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_teacher import AXES, run

from hornbook.errors import ConfigError
from hornbook.generate.steer import (
    MOST_CELLS,
    Signatures,
    Steering,
    SteerOptions,
    Verdict,
    effective_numbers,
)


def test_more_structures_and_every_cell_that_gives_rows() -> None:
    distinct = {}
    for steered in (False, True):
        steering, world, _ = run(300, 12_800, steered=steered)
        distinct[steered] = steering.distinct
        if steered:
            assert (steering.filled[world.gives > 0] > 0).all()
            barren = steering.tried[world.gives == 0]
            assert barren.mean() < 80  # it gives up on them
    assert distinct[True] >= 1.5 * distinct[False]


def test_the_plan_is_a_function_of_seed_and_settled_verdicts() -> None:
    """Verdicts that came early change nothing: a fast endpoint and a slow one get one plan."""
    options = SteerOptions(block=8, lag=2)
    plans = []
    for eager in (False, True):
        steering = Steering(cells=40, seed=3, options=options, neighbours=10)
        made = []
        for block in range(30):
            if not eager:
                assert steering.settled(block)
            made.append(steering.plan(block))
            upto = block if eager else block - 1
            for index in range(8 * max(upto, 0), 8 * (upto + 1)):
                cell = made[index // 8][index % 8]
                steering.record(index, Verdict(cell=cell, accepted=cell % 3 > 0, new=index % 5 > 0))
        plans.append(made)
    assert plans[0] == plans[1]
    other = Steering(cells=40, seed=4, options=options, neighbours=10)
    assert other.plan(0) != plans[0][0]


def test_a_plan_waits_for_the_verdicts_it_needs() -> None:
    steering = Steering(cells=4, seed=0, options=SteerOptions(block=2, lag=2))
    assert steering.settled(0)
    assert steering.settled(2)
    assert not steering.settled(3)
    steering.record(0, Verdict(cell=0, accepted=False))
    assert not steering.settled(3)
    steering.record(1, Verdict(cell=0, accepted=False))
    assert steering.settled(3)


def test_cells_that_only_repeat_are_stopped() -> None:
    options = SteerOptions(block=4, lag=1, dry=3)
    steering = Steering(cells=2, seed=0, options=options)
    index = 0
    for block in range(100):
        plan = steering.plan(block)
        if not plan:
            break
        for cell in plan:
            steering.record(index, Verdict(cell=cell, accepted=True, new=False))
            index += 1
    assert steering.ended == "every cell only repeats what is there"
    assert index < 40


@pytest.mark.parametrize(
    ("rule", "ends"),
    [
        ("marginal novelty < 100", True),
        ("marginal novelty < 0.001", False),
        ("marginal novelty per dollar < 100", True),
        ("", False),
    ],
)
def test_stop_when_little_new_comes(rule: str, ends: bool) -> None:
    options = SteerOptions(stop_when=rule, window=300, dry=10**6)
    steering, _, seen = run(30, 6_400, steered=True, options=options)
    assert bool(steering.ended) == ends
    if ends:
        assert rule in steering.ended
        assert steering.calls < 6_400
    report = steering.report(seen.frequencies())
    assert report["distinct"] == steering.distinct
    assert report["curve"][-1] == [steering.calls, steering.rows, steering.distinct]
    assert len(report["curve"]) <= 201
    new, rows = report["marginal_novelty"]["per_1000_rows"], len(steering._window)
    assert new == pytest.approx(1000 * sum(flag for flag, _ in steering._window) / rows)


def test_without_steering_only_the_rule_ends_a_run() -> None:
    options = SteerOptions(enabled=False, block=4, lag=1, dry=2)
    steering = Steering(cells=2, seed=0, options=options)
    for index in range(40):
        if index % 4 == 0:
            assert len(steering.plan(index // 4)) == 4
        steering.record(index, Verdict(cell=0, accepted=True, new=False))


def test_the_nearest_come_first() -> None:
    steering = Steering(cells=60, seed=0, options=SteerOptions(avoid=3), neighbours=30)
    for index, cell in enumerate((0, 1, 29, 30, 6)):
        steering.record(index, Verdict(cell=cell, accepted=True, new=True, gist=f"row {cell}"))
    steering.finish()
    assert steering.nearest(0, AXES) == ("row 0", "row 6", "row 1")
    assert steering.nearest(31, AXES) == ("row 30",)


@pytest.mark.parametrize(
    "options",
    [{"block": 0}, {"lag": 0}, {"dry": 0}, {"avoid": -1}, {"stop_when": "novelty < 5"}],
)
def test_options_that_make_no_sense(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        SteerOptions(**options)  # type: ignore[arg-type]


def test_too_many_cells_are_refused() -> None:
    with pytest.raises(ConfigError, match="fewer topics"):
        Steering(cells=MOST_CELLS + 1, seed=0, options=SteerOptions())


@given(st.lists(st.integers(0, 12), max_size=80))
def test_effective_numbers_against_their_definitions(rows: list[int]) -> None:
    seen = Signatures()
    for row in rows:
        seen.add(str(row))
    counts = Counter(rows)
    assert dict(seen.frequencies()) == Counter(counts.values())
    found = effective_numbers(seen.frequencies())
    if not rows:
        assert found["distinct"] == 0
        return
    shares = [n / len(rows) for n in counts.values()]
    assert found["distinct"] == len(counts)
    assert found["effective"] == pytest.approx(exp(-sum(p * log(p) for p in shares)))
    assert found["inverse_simpson"] == pytest.approx(1 / sum(p * p for p in shares))
    singles = sum(n == 1 for n in counts.values())
    assert found["coverage"] == pytest.approx(1 - singles / len(rows))
