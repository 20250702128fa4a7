"""The two accountants: Google's ``dp-accounting``, and how finely and how far it is to be believed.

The library takes seconds to import, so the functions do that.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from fedsim.errors import PrivacyError, nearest

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

# (sampling probability, noise multiplier, steps)
Part = tuple[float, float, int]

ACCOUNTANTS = ("pld", "rdp")

# How finely privacy losses are told apart, in nats: the library's default.
INTERVAL = 1e-4
# Values of a distribution, above which memory and time grow too large.
VALUES = 2**20
# Composition goes through Fourier transforms, whose rounding is off by up to so much of delta for
# each step: 1e-16 as measured on Gaussians, whose delta is known exactly.
ROUNDING = 3e-16


def pld_epsilon(parts: Sequence[Part], delta: float) -> float:
    """Return epsilon by privacy loss distributions, losses rounded up.

    Args:
        parts: each of its own kind, with noise and at least one step; not empty.
        delta: in (0, 1).

    Raises:
        PrivacyError: delta is lost in the rounding of so many steps.
    """
    steps = sum(count for _, _, count in parts)
    rounding = ROUNDING * steps + 1e-14 if steps > 1 else 0.0
    if rounding > delta / 2:
        raise PrivacyError(
            f"delta = {delta}: after {steps:,} steps the accountant pld tells apart no less than "
            f"{2 * rounding:.1g}; choose a larger delta, or the accountant rdp"
        )
    interval, total = loss_interval(parts), None
    for q, z, count in parts:
        part = one_step(q, z, interval)
        part = part.self_compose(count) if count > 1 else part
        total = part if total is None else total.compose(part)
    assert total is not None
    return float(total.get_epsilon_for_delta(delta - rounding))


def loss_interval(parts: Sequence[Part]) -> float:
    """Return how finely to tell losses apart: the default times a power of two.

    Finer where a step's loss is mostly smaller than four of the default, as with rare
    participation or much noise; coarser where losses are so large that there would be more than
    ``VALUES``. Every interval gives an upper bound, the finer the tighter.
    """
    mean = 0.0  # a bound on the mean loss of all steps, in nats
    single, typical = 0.0, math.inf  # the largest loss of a step, the usual one
    for q, z, count in parts:
        square = math.log1p(q * q * math.expm1(min(z**-2, 500.0)))
        mean += count * min(square, q * z**-2 / 2)
        single = max(single, z**-2 / 2 + 10 / z)
        typical = min(typical, math.sqrt(square))
    spread = 10 * math.sqrt(2 * mean)
    wanted = min(INTERVAL, typical / 4)
    least = 2 * (mean + spread + single) / VALUES
    return INTERVAL * 2.0 ** math.ceil(math.log2(max(wanted, least) / INTERVAL))


@lru_cache(maxsize=8)
def one_step(q: float, z: float, interval: float) -> PrivacyLossDistribution:
    """Return the distribution of one step's loss."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        z, sampling_prob=q, value_discretization_interval=interval
    )


def rdp_epsilon(parts: Sequence[Part], delta: float) -> float:
    """Return epsilon by Renyi divergences of the library's orders; arguments as above."""
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant()
    with no_warnings():
        for q, z, count in parts:
            event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z))
            accountant.compose(event, count)
        return float(accountant.get_epsilon(delta))


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Keep the library from warning of orders that it leaves out, which only loosens the bound."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_part(sampling_probability: float, noise_multiplier: float, steps: int) -> None:
    """Refuse what no step can be.

    Raises:
        PrivacyError: with the value, its place and what to choose.
    """
    if not 0 < sampling_probability <= 1:
        raise PrivacyError(
            f"sampling_probability = {sampling_probability}: it has to be above 0 and at most 1; "
            "it is the expected cohort over all clients, or the expected batch over all examples"
        )
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise PrivacyError(
            f"noise_multiplier = {noise_multiplier}: it has to be finite, 0 or more; it is the "
            "noise's standard deviation over the clipping norm, such as 1.0"
        )
    if steps < 0 or steps != int(steps):
        raise PrivacyError(
            f"steps = {steps}: it has to be a whole number, 0 or more: rounds, or optimiser steps"
        )


def check_epsilon(name: str, value: float) -> None:
    """Refuse an epsilon that cannot be aimed at.

    Raises:
        PrivacyError: with the value, its place and what to choose.
    """
    if not (math.isfinite(value) and value > 0):
        raise PrivacyError(
            f"{name} = {value}: it has to be finite and above 0; 1 is a strong guarantee, 10 a "
            "weak one"
        )


def check_accountant(accountant: str) -> None:
    """Refuse an accountant that is not known.

    Raises:
        PrivacyError: with the name and the ones there are.
    """
    if accountant not in ACCOUNTANTS:
        raise PrivacyError(f"accountant = {accountant!r}: {nearest(accountant, ACCOUNTANTS)}")
