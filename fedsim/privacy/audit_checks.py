"""Checks of a mechanism's parts, each against what is claimed: what a bound alone cannot see.

A bound on epsilon is loose: a mechanism with half of its noise may stay below what the accountant
grants it. Each check is a test whose p-value is how probable what was seen is at most, if the claim
is true. None proves anything where it finds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fedsim.privacy.audit_claims import Claims, Floats, Ints, Make, Mechanism

RELEASES = 100  # of a probe, which bring a tenth of one release's noise
EXCESSES = (1.0, 3.0, 1000.0)  # norms of contributions, in clipping norms
UNLIKE = (1, 1000)  # examples that two equal contributions claim to hold
ROUNDS = 200  # of cohorts that are only drawn
STEPS = 30  # of adaptive clipping, from each side
FAR = 20.0  # from the quantile, as a factor: no step of a sound rule gets there at once
SPREAD = 0.3  # of the logarithms of the norms that adaptive clipping is shown
ENOUGH = 100.0  # expected members and non-members of a cohort, for sums to be normal


@dataclass(frozen=True, kw_only=True)
class Check:
    """A test of one claim.

    Attributes:
        name: what is tested.
        p_value: how probable this, or something further off, is at most if the claim is true.
        sentence: what was seen beside what is claimed.
    """

    name: str
    p_value: float
    sentence: str


def checks(
    make: Make, claims: Claims, *, dimension: int, rng: np.random.Generator
) -> Iterator[Check]:
    """Yield every check that applies; each is made on a mechanism of its own.

    Args:
        make: makes the mechanism.
        claims: what it is held to.
        dimension: of its contributions.
        rng: draws contributions; the mechanism's own draws are its own.
    """
    norm = claims.clipping_norm
    yield noise_deviation(make(norm), claims, dimension=dimension)
    yield largest_influence(make(norm), claims, dimension=dimension, rng=rng)
    if claims.level == "user":
        yield equal_weights(make(norm), claims, dimension=dimension, rng=rng)
    if claims.target_quantile is not None:
        yield quantile_follows(make, claims, dimension=dimension, rng=rng)
    if claims.sampling_probability < 1:
        sizes = cohort_sizes(make(norm), claims)
        yield sampling_rate(sizes, claims)
        yield sampling_dispersion(sizes, claims)


def noise_deviation(mechanism: Mechanism, claims: Claims, *, dimension: int) -> Check:
    """Compare the noise of rounds without anybody with what is claimed: chi-square, two-sided."""
    square, count = 0.0, 0
    for _ in range(RELEASES):
        deviation = claims.noise_multiplier * mechanism.clipping_norm
        released = mechanism.release(np.zeros((0, dimension)), np.zeros(0, np.int64))
        square += float(np.sum((released / deviation) ** 2))
        count += released.size
    tails = stats.chi2.cdf(square, count), stats.chi2.sf(square, count)
    return Check(
        name="noise",
        p_value=two_sided(*tails),
        sentence=f"the noise's deviation is {math.sqrt(square / count):.4g} of what is claimed, "
        f"over {count:,} values",
    )


def largest_influence(
    mechanism: Mechanism, claims: Claims, *, dimension: int, rng: np.random.Generator
) -> Check:
    """Compare how far one contribution moves the release with the clipping norm: one-sided.

    Contributions of a norm, three and a thousand are tried, and the largest influence counts.
    """
    influences = []
    for excess in EXCESSES:
        along, direction = 0.0, unit(dimension, rng)
        for _ in range(RELEASES):
            norm = mechanism.clipping_norm
            released = mechanism.release(excess * norm * direction[None], np.ones(1, np.int64))
            along += float(released @ direction) / norm
        influences.append(along / RELEASES)
    largest, error = max(influences), claims.noise_multiplier / math.sqrt(RELEASES)
    p = len(EXCESSES) * stats.norm.sf((largest - 1) / error)
    return Check(
        name="sensitivity",
        p_value=min(1.0, float(p)),
        sentence=f"one contribution moved the sum by up to {largest:.4g} clipping norms "
        f"(+- {error:.2g})",
    )


def equal_weights(
    mechanism: Mechanism, claims: Claims, *, dimension: int, rng: np.random.Generator
) -> Check:
    """Compare the influence of two equal contributions that claim unlike numbers of examples."""
    difference, pair = 0.0, orthonormal(2, dimension, rng)
    for _ in range(RELEASES):
        norm = mechanism.clipping_norm
        released = mechanism.release(norm * pair, np.array(UNLIKE, np.int64)) / norm
        difference += float(released @ (pair[1] - pair[0]))
    difference /= RELEASES
    error = claims.noise_multiplier * math.sqrt(2 / RELEASES)
    return Check(
        name="equal weights",
        p_value=2 * float(stats.norm.sf(abs(difference) / error)),
        sentence=f"a client that claims {UNLIKE[1]:,} examples moved the sum by {difference:.4g} "
        f"clipping norms more than one that claims {UNLIKE[0]} (+- {error:.2g})",
    )


def quantile_follows(
    make: Make, claims: Claims, *, dimension: int, rng: np.random.Generator
) -> Check:
    """See adaptive clipping move towards the quantile from far below and from far above it.

    The norms shown to it are log-normal about the claimed first norm. A step in the wrong
    direction, or none, is as probable as one in the right direction at most, so that the number of
    right steps is Binomial(steps, 1/2) at worst: a sign test, the worse side doubled.
    """
    target = claims.target_quantile or 0.5
    quantile = claims.clipping_norm * math.exp(SPREAD * stats.norm.ppf(target))
    right = []
    for factor, towards in ((1 / FAR, 1), (FAR, -1)):
        mechanism, steps = make(quantile * factor), 0
        for _ in range(STEPS):
            before = mechanism.clipping_norm
            if (quantile - before) * towards <= 0:  # it is there
                steps += 1
                continue
            norms = claims.clipping_norm * np.exp(SPREAD * rng.standard_normal(claims.cohort))
            contributions = np.outer(norms, unit(dimension, rng))
            mechanism.release(contributions, np.ones(claims.cohort, np.int64))
            steps += (mechanism.clipping_norm - before) * towards > 0
        right.append(steps)
    p = min(1.0, 2 * float(stats.binom.cdf(min(right), STEPS, 0.5)))
    return Check(
        name="adaptive clipping",
        p_value=p,
        sentence=f"the clipping norm stepped towards the quantile in {right[0]} of {STEPS} rounds "
        f"from below it, and in {right[1]} from above",
    )


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """How many of so many people took part in each round, (rounds,)."""

    people: int
    sizes: Ints


def cohort_sizes(mechanism: Mechanism, claims: Claims) -> Cohorts:
    """Let a mechanism draw cohorts from enough people for their sizes to be near normal."""
    q = claims.sampling_probability
    people = math.ceil(ENOUGH / min(q, 1 - q))
    sizes = [len(mechanism.sample(people)) for _ in range(ROUNDS)]
    return Cohorts(people=people, sizes=np.array(sizes, np.int64))


def sampling_rate(cohorts: Cohorts, claims: Claims) -> Check:
    """Compare how often people took part with the probability that is claimed: binomial."""
    asked, drawn = cohorts.people * len(cohorts.sizes), int(cohorts.sizes.sum())
    test = stats.binomtest(drawn, asked, claims.sampling_probability)
    return Check(
        name="sampling probability",
        p_value=float(test.pvalue),
        sentence=f"people took part with a probability of {drawn / asked:.4g}, "
        f"{claims.sampling_probability:.4g} is claimed",
    )


def sampling_dispersion(cohorts: Cohorts, claims: Claims) -> Check:
    """Compare how much cohorts' sizes vary with Poisson sampling: binomial dispersion, chi-square.

    A fixed size does not vary, and is accounted in another way.
    """
    q, rounds = claims.sampling_probability, len(cohorts.sizes)
    variance = cohorts.people * q * (1 - q)
    square = float(np.sum((cohorts.sizes - cohorts.people * q) ** 2)) / variance
    tails = stats.chi2.cdf(square, rounds), stats.chi2.sf(square, rounds)
    return Check(
        name="Poisson sampling",
        p_value=two_sided(*tails),
        sentence=f"the variance of the cohorts' sizes is {square / rounds:.4g} of what Poisson "
        f"sampling gives, over {rounds} rounds",
    )


def two_sided(lower: float, upper: float) -> float:
    """Return the p-value of both tails."""
    return min(1.0, 2 * float(min(lower, upper)))


def unit(dimension: int, rng: np.random.Generator) -> Floats:
    """Return a random direction, (dimension,), of norm 1."""
    drawn = rng.standard_normal(dimension)
    return np.asarray(drawn / np.linalg.norm(drawn))


def orthonormal(count: int, dimension: int, rng: np.random.Generator) -> Floats:
    """Return random directions, (count, dimension), each of norm 1.

    They are at right angles to each other as far as the dimension has room for that, and otherwise
    drawn one by one.
    """
    drawn = rng.standard_normal((count, dimension))
    if count <= dimension:
        return np.asarray(np.linalg.qr(drawn.T)[0].T)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
