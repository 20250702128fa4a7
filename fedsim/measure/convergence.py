"""How many rounds a run took."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rounds_to_target(
    rounds: Sequence[float], accuracy: Sequence[float], target: float
) -> float | None:
    """Return the round at which the test accuracy reaches a target, or None if it never does.

    The curve is made monotone (best so far) and interpolated linearly between the evaluated
    rounds, as in McMahan et al. 2017, section 3.

    Args:
        rounds: the evaluated rounds, increasing.
        accuracy: the test accuracy after each, in [0, 1].
        target: the accuracy to reach, in [0, 1].
    """
    previous_round, best = 0.0, -math.inf
    for round, value in zip(rounds, accuracy, strict=True):
        if value >= target:
            if math.isinf(best):
                return float(round)
            share = (target - best) / (value - best)
            return previous_round + share * (round - previous_round)
        previous_round, best = float(round), max(best, value)
    return None
