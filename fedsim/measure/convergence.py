"""What accuracy a run reached, what that cost, and how evenly the clients share it.

A figure that is no finite number (NaN: nobody asked for it, or none came) counts as not there, in
every function below.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def cost_to_target(cost: Sequence[float], accuracy: Sequence[float], target: float) -> float | None:
    """Return what a run had cost when its test accuracy reached a target, or None if it never did.

    The curve is made monotone (best so far) and interpolated linearly along the cost between the
    evaluated rounds, as in McMahan et al. 2017, section 3. Nobody knows the accuracy before the
    first evaluation: a target that is met there is said to have cost all that was spent until
    then, which is an upper bound.

    Args:
        cost: what was spent until each evaluated round, since the run's beginning; increasing,
            of any unit (rounds, seconds, FLOPs, bytes).
        accuracy: the test accuracy after each of these rounds, in [0, 1].
        target: the accuracy to reach, in [0, 1].
    """
    spent, best = 0.0, -math.inf
    for here, value in _points(cost, accuracy):
        if value >= target:
            if math.isinf(best):
                return here
            share = (target - best) / (value - best)
            return spent + share * (here - spent)
        spent, best = here, max(best, value)
    return None


def rounds_to_target(
    rounds: Sequence[float], accuracy: Sequence[float], target: float
) -> float | None:
    """Return the round at which the test accuracy reaches a target, or None if it never does.

    This is :func:`cost_to_target` with the evaluated rounds' own numbers as the cost.
    """
    return cost_to_target(rounds, accuracy, target)


def area_under_curve(rounds: Sequence[float], accuracy: Sequence[float]) -> float | None:
    """Return the mean test accuracy from the first evaluated round to the last, in [0, 1].

    It is the area under the accuracy's polygon (trapezoids), divided by the rounds it spans. Of
    a single evaluation it is that accuracy; of none, None.

    Args:
        rounds: the evaluated rounds, strictly increasing.
        accuracy: the test accuracy after each, in [0, 1].
    """
    points = _points(rounds, accuracy)
    if len(points) < 2:
        return points[0][1] if points else None
    steps = itertools.pairwise(points)
    area = math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in steps)
    return area / (points[-1][0] - points[0][0])


def best_accuracy(accuracy: Sequence[float]) -> float | None:
    """Return the highest accuracy of any evaluated round, or None if there was none."""
    return max(_finite(accuracy), default=None)


def final_accuracy(accuracy: Sequence[float]) -> float | None:
    """Return the accuracy of the last evaluated round, or None if there was none."""
    values = _finite(accuracy)
    return values[-1] if values else None


def worst_decile(values: Sequence[float]) -> float | None:
    """Return the mean of the lowest tenth of the values, or None if there are none.

    The tenth of n values is n / 10 of them, rounded up: with fewer than eleven, the lowest one.
    Of the clients' accuracies it is how the model serves those whom it serves worst (Li et al.
    2020, "Fair resource allocation in federated learning", table 1).
    """
    ordered = sorted(_finite(values))
    lowest = ordered[: math.ceil(len(ordered) / 10)]
    return math.fsum(lowest) / len(lowest) if lowest else None


def gini(values: Sequence[float]) -> float | None:
    """Return the Gini coefficient: 0 if all values are equal, 1 - 1/n if one client has it all.

    Half of the mean absolute difference between two values, drawn with replacement, over their
    mean (Gini 1912; Sen 1973, "On economic inequality", chapter 2)::

        G = sum_i sum_j |x_i - x_j| / (2 n^2 mean)
          = sum_i (2 i - n - 1) x_(i) / (n sum_i x_i)      x_(1) <= ... <= x_(n)

    Values that are all 0 are equal, so that their coefficient is 0; of no values it is None.

    Args:
        values: accuracies of clients, say; at least 0.

    Raises:
        ValueError: a value is below 0, for which the coefficient is not defined.
    """
    ordered = sorted(_finite(values))
    if not ordered:
        return None
    if ordered[0] < 0:
        raise ValueError(f"a Gini coefficient needs values of at least 0, not {ordered[0]}")
    n, total = len(ordered), math.fsum(ordered)
    if total == 0:
        return 0.0
    # Sums are rounded once (fsum), so that equal values give 0 and not what is left of rounding.
    ranked = math.fsum((2 * i - n - 1) * x for i, x in enumerate(ordered, 1))
    return ranked / (n * total)


def _finite(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values if math.isfinite(value)]


def _points(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    pairs = zip(xs, ys, strict=True)
    return [(float(x), float(y)) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
