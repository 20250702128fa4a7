"""Learning rates over the rounds."""

from __future__ import annotations

import math
from collections.abc import Callable

# Each maps (share of the rounds done, in [0, 1); rounds done; decay) to a factor of the first rate.
SCHEDULES: dict[str, Callable[[float, int, float], float]] = {
    "constant": lambda share, done, decay: 1.0,
    "linear": lambda share, done, decay: 1.0 - share,
    "cosine": lambda share, done, decay: 0.5 * (1.0 + math.cos(math.pi * share)),
    "exponential": lambda share, done, decay: decay**done,
}


def learning_rate(schedule: str, *, first: float, round: int, rounds: int, decay: float) -> float:
    """Return the clients' learning rate of one round.

    Args:
        schedule: a name of ``SCHEDULES``. ``linear`` and ``cosine`` fall towards 0 at the end
            of the last round, and never reach it.
        first: the rate of round 1.
        round: the round, from 1 to ``rounds``.
        rounds: how many there are.
        decay: ``exponential``: the factor from one round to the next.
    """
    done = round - 1
    return first * SCHEDULES[schedule](done / rounds, done, decay)
