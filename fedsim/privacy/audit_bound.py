"""What correct guesses about canaries say of epsilon: a lower bound from one run.

Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run". Each of m canaries
is in or out by a fair coin; somebody who sees what was released guesses r of them and is right v
times. With W ~ Binomial(r, e^epsilon / (1 + e^epsilon)), a mechanism that is (epsilon, delta)
private for adding or removing one of them gives (theorem 5.2)::

    P[at least v are right] <= P[W >= v] + 2 m delta max_i P[v - i <= W < v] / i,  i = 1 ... v
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, stats

# There e^epsilon / (1 + e^epsilon) is 1 to the last bit, and no number of right guesses too large.
LARGEST_EPSILON = 100.0


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return how probable so many correct guesses are at most, in [0, 1].

    Args:
        canaries: m, each in or out by a fair coin.
        guesses: r, of them; on the others nothing was said.
        correct: v, of the guesses.
        epsilon, delta: what the mechanism is taken to keep.

    Raises:
        ValueError: the numbers do not fit each other.
    """
    check_counts(canaries, guesses, correct, delta)
    right = 1 / (1 + np.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, right))
    if not delta or not correct:
        return min(tail, 1.0)
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, right))
    most = float(np.max(below / np.arange(1, correct + 1)))
    return min(tail + 2 * canaries * delta * most, 1.0)


def epsilon_lower_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the epsilon that a mechanism has at least, if so many guesses were correct.

    A mechanism that is (epsilon, delta) private gives a bound above its epsilon with probability of
    at most 1 - confidence. How many guesses there are must not depend on how well they came out.

    Args:
        canaries, guesses, correct, delta: see :func:`p_value`.
        confidence: in (0, 1).

    Raises:
        ValueError: the numbers do not fit each other.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: must be above 0 and below 1")

    def excess(epsilon: float) -> float:
        p = p_value(
            canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
        )
        return p - (1 - confidence)

    if excess(0.0) >= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, LARGEST_EPSILON, xtol=1e-9))


def check_counts(canaries: int, guesses: int, correct: int, delta: float) -> None:
    """Refuse numbers of guesses that cannot be.

    Raises:
        ValueError: with the number and its range.
    """
    if canaries < 1:
        raise ValueError(f"canaries = {canaries}: an audit needs at least one")
    if not 0 <= guesses <= canaries:
        raise ValueError(f"guesses = {guesses}: must be from 0 to the {canaries} canaries")
    if not 0 <= correct <= guesses:
        raise ValueError(f"correct = {correct}: must be from 0 to the {guesses} guesses")
    if not 0 <= delta < 1:
        raise ValueError(f"delta = {delta}: must be at least 0 and below 1")
