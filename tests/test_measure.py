"""What is counted: convergence, the test part."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.measure import evaluation
from fedsim.measure.convergence import (
    area_under_curve,
    best_accuracy,
    cost_to_target,
    final_accuracy,
    gini,
    rounds_to_target,
    worst_decile,
)
from fedsim.measure.evaluation import evaluate
from fedsim.randomness import stream


@pytest.mark.parametrize("function", [cost_to_target, rounds_to_target])
@pytest.mark.parametrize(
    ("cost", "accuracy", "target", "expected"),
    [
        ([1, 2, 3], [0.5, 0.75, 1.0], 0.75, 2.0),  # exactly at a round
        ([1, 2, 3], [0.5, 0.7, 0.9], 0.8, 2.5),  # half of the way between two
        ([10, 20, 40], [0.2, 0.4, 0.8], 0.5, 25.0),  # as much as lies between evaluations
        ([0.5, 0.75, 2.75], [0.1, 0.2, 0.6], 0.3, 1.25),  # seconds, say
        ([5, 6, 7], [0.5, 0.6, 0.7], 0.4, 5.0),  # nobody looked before the first: an upper bound
        ([1, 2, 3], [0.5, 0.6, 0.7], 0.71, None),  # censored
        ([1, 2, 3, 4], [0.6, 0.2, 0.2, 1.0], 0.8, 3.5),  # from the best so far, not from 0.2
        ([1, 2, 3, 4], [0.5, 0.9, 0.1, 0.9], 0.9, 2.0),  # the first time counts
        ([1, 2, 3], [math.nan, 0.5, 0.7], 0.6, 2.5),  # a round without a figure
        ([1, 2, 3], [0.5, math.nan, 0.9], 0.7, 2.0),  # is as if it had not been evaluated
        ([1, math.nan, 3], [0.5, 0.6, 0.9], 0.7, 2.0),  # so is one without a cost
        ([0, 0, 4], [0.1, 0.2, 0.6], 0.5, 3.0),  # what costs nothing
        ([math.nan], [0.9], 0.5, None),
        ([], [], 0.5, None),
    ],
)
def test_cost_to_target_by_hand(
    function: Callable[..., float | None],
    cost: list[float],
    accuracy: list[float],
    target: float,
    expected: float | None,
) -> None:
    reached = function(cost, accuracy, target)
    assert reached == (None if expected is None else pytest.approx(expected, rel=1e-12))


def test_every_evaluation_has_a_cost() -> None:
    with pytest.raises(ValueError, match="zip"):
        cost_to_target([1, 2], [0.5], 0.9)


curves = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def costs(accuracy: list[float], data: st.DataObject) -> list[int]:
    """Draw what was spent until each evaluation."""
    length = {"min_size": len(accuracy), "max_size": len(accuracy)}
    return list(accumulate(data.draw(st.lists(st.integers(1, 9), **length))))


@settings(deadline=None)
@given(curves, st.floats(0, 1), st.data())
def test_cost_to_target_inverts_the_monotone_curve(
    accuracy: list[float], target: float, data: st.DataObject
) -> None:
    cost = costs(accuracy, data)
    best = list(accumulate(accuracy, max))
    reached = cost_to_target(cost, accuracy, target)
    assert (reached is None) == (best[-1] < target)
    if reached is None:
        return
    assert cost[0] <= reached <= cost[-1]
    if target > best[0]:
        assert np.interp(reached, cost, best) == pytest.approx(target, abs=1e-9)
    else:
        assert reached == cost[0]


@settings(deadline=None)
@given(curves, st.floats(0, 1), st.integers(-30, 30), st.data())
def test_the_unit_of_a_cost_does_not_matter(
    accuracy: list[float], target: float, exponent: int, data: st.DataObject
) -> None:
    cost = costs(accuracy, data)
    reached = cost_to_target(cost, accuracy, target)
    scaled = cost_to_target([2.0**exponent * c for c in cost], accuracy, target)
    assert scaled == (None if reached is None else 2.0**exponent * reached)


@settings(deadline=None)
@given(curves, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_never_takes_fewer_rounds(
    accuracy: list[float], one: float, other: float
) -> None:
    rounds = range(1, len(accuracy) + 1)
    low, high = (rounds_to_target(rounds, accuracy, t) for t in sorted((one, other)))
    assert high is None or (low is not None and low <= high)


@pytest.mark.parametrize(
    ("rounds", "accuracy", "expected"),
    [
        ([1, 2, 3], [0.2, 0.4, 0.8], (0.3 + 0.6) / 2),
        ([10, 20, 50], [0.0, 1.0, 0.5], (10 * 0.5 + 30 * 0.75) / 40),  # by the rounds they span
        ([7], [0.25], 0.25),
        ([1, 2, 3], [0.2, math.nan, 0.8], 0.5),
        ([1, 2], [math.nan, 0.75], 0.75),
        ([1], [math.nan], None),
        ([], [], None),
    ],
)
def test_the_area_under_a_curve_by_hand(
    rounds: list[float], accuracy: list[float], expected: float | None
) -> None:
    area = area_under_curve(rounds, accuracy)
    assert area == (None if expected is None else pytest.approx(expected, rel=1e-12))


@settings(deadline=None)
@given(curves, st.data())
def test_the_area_under_a_curve_is_a_mean(accuracy: list[float], data: st.DataObject) -> None:
    rounds = costs(accuracy, data)
    area = area_under_curve(rounds, accuracy)
    assert area is not None
    assert min(accuracy) - 1e-12 <= area <= max(accuracy) + 1e-12
    if len(rounds) > 1:
        span = rounds[-1] - rounds[0]
        assert area == pytest.approx(np.trapezoid(accuracy, rounds) / span, rel=1e-12, abs=1e-300)
        moved = [10 * r + 3 for r in rounds]
        assert area_under_curve(moved, accuracy) == pytest.approx(area, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize(
    ("accuracy", "best", "final"),
    [
        ([0.5, 0.9, 0.7], 0.9, 0.7),
        ([0.5, math.nan], 0.5, 0.5),
        ([math.nan, 0.5], 0.5, 0.5),
        ([math.nan], None, None),
        ([], None, None),
        ([0.0], 0.0, 0.0),
    ],
)
def test_best_and_final_accuracy(
    accuracy: list[float], best: float | None, final: float | None
) -> None:
    assert (best_accuracy(accuracy), final_accuracy(accuracy)) == (best, final)


# Fairness.


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9, 0.1, 0.5], 0.1),  # a tenth of three, rounded up, is one
        ([i / 10 for i in range(10)], 0.0),
        ([i / 10 for i in range(11)], 0.05),
        ([i / 30 for i in reversed(range(30))], 1 / 30),
        ([math.nan, 0.75], 0.75),
        ([math.nan], None),
        ([], None),
    ],
)
def test_the_worst_decile_by_hand(values: list[float], expected: float | None) -> None:
    assert worst_decile(values) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.7, 0.7, 0.7], 0.0),
        ([0.0, 0.0], 0.0),
        ([0.0, 1.0], 0.5),
        ([0.0, 0.0, 0.0, 0.3], 0.75),
        ([1.0, 2.0, 3.0], 2 / 9),  # eight ordered differences over 2 * 9 * 2
        ([3.0, 1.0, math.nan, 2.0], 2 / 9),
        ([math.inf, 1.0], 0.0),
        ([0.4], 0.0),
        ([math.nan], None),
        ([], None),
    ],
)
def test_the_gini_coefficient_by_hand(values: list[float], expected: float | None) -> None:
    assert gini(values) == (None if expected is None else pytest.approx(expected, rel=1e-12))


def test_a_gini_coefficient_of_negative_values_is_not_defined() -> None:
    with pytest.raises(ValueError, match=r"at least 0, not -0\.5"):
        gini([1.0, -0.5])


shares = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=40)


@settings(deadline=None)
@given(shares)
def test_the_gini_coefficient_by_definition(values: list[float]) -> None:
    n, coefficient = len(values), gini(values)
    assert coefficient is not None
    assert 0 <= coefficient <= 1 - 1 / n + 1e-12
    if total := math.fsum(values):
        pairs = math.fsum(abs(a - b) for a in values for b in values)
        assert coefficient == pytest.approx(pairs / (2 * n * total), rel=1e-9, abs=1e-12)
    assert gini(values * 3) == pytest.approx(coefficient, abs=1e-12)
    assert gini([values[0]] * n) == 0.0  # exactly: no rounding is left of equal values


@settings(deadline=None)
@given(shares, st.integers(0, 20), st.randoms())
def test_fairness_has_no_unit_and_no_order(
    values: list[float], exponent: int, random: Random
) -> None:
    shuffled = values.copy()
    random.shuffle(shuffled)
    scaled = [2.0**exponent * value for value in shuffled]
    assert gini(scaled) == gini(values)
    worst = worst_decile(values)
    assert worst is not None
    assert worst_decile(scaled) == 2.0**exponent * worst
    count = math.ceil(len(values) / 10)
    assert worst == pytest.approx(np.mean(np.sort(values)[:count]), rel=1e-12, abs=1e-300)
    assert min(values) <= worst <= np.mean(values) + 1e-12


def classifier() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a model that is right about some of 23 examples."""
    draw = stream(0, "classifier")
    x = torch.from_numpy(draw.standard_normal((23, 4), np.float32))
    y = torch.from_numpy(draw.integers(0, 3, 23))
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(draw.standard_normal((3, 4), np.float32)))
        model.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    return model, x, y


def test_evaluate_by_definition() -> None:
    model, x, y = classifier()
    scores = model(x).detach().double().numpy()
    accuracy = float(np.mean(scores.argmax(axis=1) == y.numpy()))
    log_sum = np.log(np.exp(scores).sum(axis=1))
    loss = float(np.mean(log_sum - scores[np.arange(23), y.numpy()]))
    assert 0 < accuracy < 1
    assert evaluate(model, x, y) == (accuracy, pytest.approx(loss, rel=1e-6))


@pytest.mark.parametrize("batch", [1, 7, 22, 23])
def test_evaluate_does_not_depend_on_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = classifier()
    accuracy, loss = evaluate(model, x, y)
    monkeypatch.setattr(evaluation, "BATCH_EXAMPLES", batch)
    assert evaluate(model, x, y) == (accuracy, pytest.approx(loss, rel=1e-6))
