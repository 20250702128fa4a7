"""What a mechanism guarantees: epsilon at a delta, by Google's ``dp-accounting``.

A step samples each record (a user, or an example) by itself with probability q, adds up what the
sampled ones contribute, each of norm at most C, and adds N(0, (z C)^2). An accountant says what
many steps come to: ``pld`` by privacy loss distributions (Koskela et al., 2020; Doroshenko et al.,
2022), the tighter one, ``rdp`` by Renyi divergences (Mironov, 2017; Mironov et al., 2019). Both
give upper bounds. Records are added or removed; nothing here knows what a mechanism really does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache

from fedsim.errors import PrivacyError, nearest
from fedsim.privacy.accountants import (
    ACCOUNTANTS,
    Part,
    check_accountant,
    check_epsilon,
    check_part,
    pld_epsilon,
    rdp_epsilon,
)

# Less noise counts as none, and more as so much: both err towards less privacy.
SMALLEST_NOISE, LARGEST_NOISE = 2**-10, 1e6

# Where noise is looked for, as powers of two, and how closely.
LEAST_NOISE, MOST_NOISE = -10, 19
PRECISION = 1e-4

# Whom a guarantee of each level is for, between which data sets it holds, what its steps are.
SUBJECTS = {"user": "users", "example": "examples", "local": "each client's own messages"}
ADJACENCY = {
    "user": "add or remove one user",
    "example": "add or remove one example",
    "local": "replace a client's update by any other",
}
UNITS = {"user": "rounds", "example": "optimiser steps", "local": "messages"}
# By how many clipping norms a neighbour's data can move what is published.
SENSITIVITY = {"user": 1.0, "example": 1.0, "local": 2.0}


def epsilon(
    *,
    sampling_probability: float,
    noise_multiplier: float,
    steps: int,
    delta: float,
    accountant: str = "pld",
) -> float:
    """Return an upper bound on the epsilon of a Gaussian mechanism with Poisson sampling.

    Args:
        sampling_probability: q, in (0, 1]; of 1 everybody takes part in every step.
        noise_multiplier: z, the noise's standard deviation over the clipping norm, at least 0.
            Where a record may be replaced rather than added, the sum moves by up to twice the
            clipping norm: give half of it.
        steps: at least 0.
        delta: in (0, 1).
        accountant: ``"pld"`` or ``"rdp"``.

    Returns:
        At least 0; 0 after no steps, infinite without noise, below a multiplier of 2^-10.

    Raises:
        PrivacyError: an argument is out of its range, or delta is finer than ``pld`` can tell.
    """
    return epsilon_of_parts([(sampling_probability, noise_multiplier, steps)], delta, accountant)


def epsilon_of_parts(parts: Sequence[Part], delta: float, accountant: str = "pld") -> float:
    """Return an upper bound on the epsilon of steps of several kinds, one after another.

    Args:
        parts: (sampling probability, noise multiplier, steps) of each kind, in any order.
        delta, accountant: as for :func:`epsilon`.

    Raises:
        PrivacyError: as :func:`epsilon`.
    """
    check_delta(delta)
    check_accountant(accountant)
    steps: Counter[tuple[float, float]] = Counter()
    gaussian = 0.0  # the steps without sampling are one Gaussian step of this z^-2
    for q, z, count in parts:
        check_part(q, z, count)
        if not count:
            continue
        if z < SMALLEST_NOISE:
            return math.inf
        z = min(z, LARGEST_NOISE)
        if q == 1:
            gaussian += count / z**2
        else:
            steps[q, z] += count
    merged = [(q, z, count) for (q, z), count in sorted(steps.items())]
    if gaussian:
        merged.append((1.0, gaussian**-0.5, 1))
    return _epsilon(tuple(merged), delta, accountant) if merged else 0.0


def noise_multiplier_for(
    *,
    target_epsilon: float,
    sampling_probability: float,
    steps: int,
    delta: float,
    accountant: str = "pld",
) -> float:
    """Return the least noise multiplier whose epsilon is at most the target.

    It is found to a relative 1e-4 and rounded up to six digits, so that it can be written down:
    its epsilon never exceeds the target.

    Args:
        target_epsilon: above 0.
        sampling_probability, steps, delta, accountant: as for :func:`epsilon`; at least one step.

    Raises:
        PrivacyError: an argument is out of its range, or no noise between 2^-10 and 2^19 is it.
    """
    from scipy.optimize import brentq

    check_epsilon("target_epsilon", target_epsilon)
    check_part(sampling_probability, 1.0, steps)
    if not steps:
        raise PrivacyError("steps = 0: nothing is published, so no noise is needed; give the steps")

    def excess(log2_noise: float) -> float:
        parts = [(sampling_probability, 2.0**log2_noise, steps)]
        # Of the logarithm, which is all but linear: the root is found in a few steps.
        return math.log(max(epsilon_of_parts(parts, delta, accountant), 1e-9) / target_epsilon)

    low = high = 0
    while excess(high) > 0:
        low, high = high, high + 1
        if high > MOST_NOISE:
            raise PrivacyError(
                f"target_epsilon = {target_epsilon}: no noise multiplier up to 2^{MOST_NOISE} "
                f"reaches it in {steps:,} steps at delta = {delta}; choose a larger one"
            )
    while low == high or excess(low) <= 0:
        low, high = low - 1, low
        if low < LEAST_NOISE:
            raise PrivacyError(
                f"target_epsilon = {target_epsilon}: that guarantees nothing, even a noise "
                f"multiplier of 2^{LEAST_NOISE + 1} stays below it; choose 10 or less"
            )
    root = 2.0 ** brentq(excess, low, high, xtol=PRECISION / 4)
    found = rounded_up(root * (1 + PRECISION / 4), 6)
    while epsilon_of_parts([(sampling_probability, found, steps)], delta, accountant) > (
        target_epsilon
    ):
        found = rounded_up(found * (1 + PRECISION / 4), 6)
    return found


@lru_cache(maxsize=4096)
def _epsilon(parts: tuple[Part, ...], delta: float, accountant: str) -> float:
    """Return the epsilon of checked parts, each of its own kind and with noise."""
    return pld_epsilon(parts, delta) if accountant == "pld" else rdp_epsilon(parts, delta)


def rounded_up(value: float, digits: int) -> float:
    """Return a number of so many significant digits that is at least the value."""
    exact = Decimal(repr(value))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_CEILING))


def check_delta(delta: float, population: int | None = None) -> None:
    """Refuse a delta that is none, or that allows a record to be published whole.

    Args:
        delta: the probability with which the bound may fail.
        population: N, how many users (or a client's examples) there are, at least 1; unknown by
            default, and then only the range is checked.

    Raises:
        PrivacyError: delta is not in (0, 1), or not below 1/N.
    """
    if not 0 < delta < 1:
        raise PrivacyError(
            f"delta = {delta}: it has to be above 0 and below 1, and well below 1/N for N records, "
            "such as 1e-5"
        )
    if population is None:
        return
    if population < 1:
        raise PrivacyError(f"population = {population}: there has to be somebody, 1 or more")
    if delta >= 1 / population:
        raise PrivacyError(
            f"delta = {delta}: it has to be below 1/N = {1 / population:.3g} for N = "
            f"{population:,}, since to publish one of N records whole satisfies (0, 1/N); choose "
            f"{0.1 / population:.1g} or less"
        )


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """That a mechanism is (epsilon, delta)-differentially private, and under which conditions.

    Attributes:
        epsilon: an upper bound, at least 0; infinite where there is no guarantee.
        delta: in (0, 1).
        level: whose data it protects: ``"user"``, ``"example"`` or ``"local"``.
        adjacency: how neighbouring data sets differ, such as ``"add or remove one user"``.
        sampling_probability: of Poisson sampling, in (0, 1]; of 1 everybody takes part.
        noise_multiplier: the noise's standard deviation in clipping norms, at least 0.
        steps: how often the mechanism ran, or will.
        unit: what a step is, in the plural: ``"rounds"``, ``"optimiser steps"``.
        accountant: whose bound it is, ``"pld"`` or ``"rdp"``.
        other_epsilon: the other accountant's bound; None where that has none.
        caveats: what it leaves out or rests on, a sentence each.
    """

    epsilon: float
    delta: float
    level: str
    adjacency: str
    sampling_probability: float
    noise_multiplier: float
    steps: int
    unit: str
    accountant: str
    other_epsilon: float | None = None
    caveats: tuple[str, ...] = ()


def guarantee(
    *,
    level: str,
    sampling_probability: float,
    noise_multiplier: float,
    steps: int,
    delta: float,
    accountant: str = "pld",
    caveats: tuple[str, ...] = (),
) -> Guarantee:
    """Account for a mechanism by both accountants.

    At level ``"local"`` the message of a client is what is published, and any two of its updates
    are neighbours: they are up to two clipping norms apart, and no sampling hides who sent it.

    Args:
        level: ``"user"``, ``"example"`` or ``"local"``; see :class:`Guarantee` for the others.

    Raises:
        PrivacyError: an argument is out of its range, or sampling is claimed at level ``"local"``.
    """
    check_level(level, sampling_probability)

    def by(name: str) -> float:
        return epsilon(
            sampling_probability=sampling_probability,
            noise_multiplier=noise_multiplier / SENSITIVITY[level],
            steps=steps,
            delta=delta,
            accountant=name,
        )

    spent = by(accountant)
    try:
        other = by(other_accountant(accountant))
    except PrivacyError:  # a delta that pld cannot tell from its rounding
        other = None
    return Guarantee(
        epsilon=spent,
        delta=delta,
        level=level,
        adjacency=ADJACENCY[level],
        sampling_probability=sampling_probability,
        noise_multiplier=noise_multiplier,
        steps=steps,
        unit=UNITS[level],
        accountant=accountant,
        other_epsilon=other,
        caveats=caveats,
    )


def statement(guarantee: Guarantee) -> str:
    """Say a guarantee with all that it depends on; its caveats follow, a sentence each.

    Epsilon and delta are rounded up, so that no more is promised than holds.
    """
    g = guarantee
    whom = f"{SUBJECTS[g.level]} ({g.adjacency})"
    noise = (
        f"Gaussian noise of {g.noise_multiplier:.10g} clipping norms"
        if g.noise_multiplier
        else "no noise"
    )
    sampling = (
        f"by Poisson sampling with probability {g.sampling_probability:.6g}"
        if g.sampling_probability < 1
        else "without sampling (probability 1)"
    )
    unit = g.unit.removesuffix("s") if g.steps == 1 else g.unit
    how = f"{sampling}, {noise}, {g.steps:,} {unit}; accountant: {g.accountant.upper()}"
    if math.isinf(g.epsilon):
        says = f"no guarantee (epsilon is infinite at delta = {upwards(g.delta)}) for {whom}, {how}"
    else:
        says = (
            f"(epsilon = {upwards(g.epsilon)}, delta = {upwards(g.delta)})-differential privacy "
            f"for {whom}, {how}"
        )
        other = other_accountant(g.accountant).upper()
        known = "no bound" if g.other_epsilon is None else upwards(g.other_epsilon)
        says += f" ({other} gives {known})"
    return " ".join([f"{says}.", *(f"{caveat.rstrip('.')}." for caveat in g.caveats)])


def upwards(value: float) -> str:
    """Return a figure to three digits, rounded up: ``"1.24"`` of 1.2301, ``"1e-5"``."""
    if math.isinf(value):
        return "infinity"
    shown = rounded_up(value, 3) if value else 0.0
    return f"{shown:,.0f}" if shown >= 1000 else f"{shown:.3g}".replace("e-0", "e-")


def other_accountant(accountant: str) -> str:
    """Return the one that is not this."""
    return next(name for name in ACCOUNTANTS if name != accountant)


def check_level(level: str, sampling_probability: float) -> None:
    """Refuse a level that is not known, or one at which sampling hides nobody.

    Raises:
        PrivacyError: with the value and what to choose.
    """
    if level not in SUBJECTS:
        raise PrivacyError(f"level = {level!r}: {nearest(level, SUBJECTS)}")
    if level == "local" and sampling_probability != 1:
        raise PrivacyError(
            f"sampling_probability = {sampling_probability} at level local: who receives a message "
            "knows who sent it, so that sampling hides nothing; give 1, and as steps the messages "
            "that a client sends"
        )
