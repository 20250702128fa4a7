"""Paired statistics: what seeds say about a difference, and how sure that is.

Everything here is of paired values, one a seed: a difference, or the logarithm of a ratio. Where
a study says "interval" it is the BCa bootstrap's (Efron 1987), as SciPy computes it, at an
expanded level: with a dozen seeds the plain one covers the truth in too few studies
(``docs/statistics.md`` has the figures), since it takes a sample's spread, which is too small by
sqrt((n - 1) / n), and normal quantiles in place of Student's. Hesterberg 2015, section 5.2, expands
the level so that both are made good::

    level' = 1 - 2 Phi(-sqrt(n / (n - 1)) t_{n - 1, (1 - level) / 2})
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedsim.randomness import stream

LEVEL = 0.95
EQUIVALENCE_LEVEL = 0.90  # two one-sided tests at 5% are this interval within the margins
ALPHA = 0.05
POWER = 0.80
RESAMPLES = 10_000
FEWEST_RESAMPLED = 6  # of fewer values a bootstrap's interval is little else than their range
FEWEST_EQUAL = 4  # values that are all equal, to be taken for certain
SAME = 1e-12  # values that differ by so little, beside 1 or their size, differ by rounding alone
MOST_SEEDS = 10_000  # beyond which nobody would want to know

Values = npt.NDArray[np.float64]
Region = Literal["above", "below", "within"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What paired values say about the margins.

    Attributes:
        n: pairs.
        estimate: the mean.
        deviation: the sample standard deviation; NaN of a single value.
        low, high: the 95% interval; NaN of a single value.
        narrow: the 90% interval.
        p: by region, the p-value against the mean being anywhere else: two-sided for "above" and
            "below" (each the other's alternative), of two one-sided tests for "within".
    """

    n: int
    estimate: float
    deviation: float
    low: float
    high: float
    narrow: tuple[float, float]
    p: dict[Region, float]
    margin: float

    @property
    def region(self) -> Region:
        """Where the mean most likely is."""
        return min(self.p, key=lambda region: self.p[region])

    @property
    def decisive_p(self) -> float:
        """The p-value with which the study enters Holm's correction.

        At 5% the interval decides, as the protocol has it, and where a t-test disagrees with it
        there, this is 5% or just above. Far below 5%, where corrections for many hypotheses look,
        10,000 resamples cannot tell, and the t-test does.
        """
        p = self.p[self.region]
        if self.n < FEWEST_RESAMPLED:
            return p  # the interval is Student's as well
        return min(p, ALPHA) if self.interval_agrees else max(p, math.nextafter(ALPHA, 1.0))

    @property
    def interval_agrees(self) -> bool:
        """Whether the interval lies in :attr:`region` as well."""
        low, high = self.narrow if self.region == "within" else (self.low, self.high)
        return {
            "above": low > self.margin,
            "below": high < -self.margin,
            "within": -self.margin < low and high < self.margin,
        }[self.region]


def weigh(values: Sequence[float] | Values, margin: float) -> Evidence:
    """Return what paired values say about a margin.

    Args:
        values: one for each seed, finite; a difference, or the logarithm of a ratio.
        margin: above 0, in the same units; the mean is above it, below its negative, or within.
    """
    found = np.asarray(values, dtype=np.float64)
    (low, high), narrow = intervals(found, (LEVEL, EQUIVALENCE_LEVEL))
    return Evidence(
        n=len(found),
        estimate=float(found.mean()),
        deviation=float(found.std(ddof=1)) if len(found) > 1 else math.nan,
        low=low,
        high=high,
        narrow=narrow,
        p=p_values(found, margin),
        margin=margin,
    )


def intervals(
    values: Values, levels: Sequence[float], *, expand: bool = True
) -> list[tuple[float, float]]:
    """Return BCa intervals of the mean at several levels, from the same resamples.

    Of a single value they are NaN; of values that are all equal, that value; of two to five
    values, Student's interval, since there is next to nothing to resample.

    Args:
        values: shape (n,).
        levels: how often an interval shall cover the truth, in (0, 1).
        expand: the levels for few values, see the module; without it, the plain BCa interval.
    """
    from scipy import stats

    n = len(values)
    if n < 2:
        return [(math.nan, math.nan) for _ in levels]
    if are_equal(values):
        return [(float(values[0]), float(values[0])) for _ in levels]
    if n < FEWEST_RESAMPLED:
        students = [stats.ttest_1samp(values, 0.0).confidence_interval(level) for level in levels]
        return [(float(found.low), float(found.high)) for found in students]
    found: list[tuple[float, float]] = []
    result = None
    for level in levels:
        result = stats.bootstrap(
            (values,),
            np.mean,
            method="BCa",
            n_resamples=0 if result else RESAMPLES,
            bootstrap_result=result,
            confidence_level=expanded(level, n) if expand else level,
            rng=stream(0, "bootstrap"),
        )
        low, high = result.confidence_interval
        found.append((float(low), float(high)))
    return found


def are_equal(values: Values) -> bool:
    """Say whether values are the same but for rounding."""
    return bool(np.ptp(values) <= SAME * max(1.0, float(np.abs(values).max())))


def expanded(level: float, n: int) -> float:
    """Return the level at which a bootstrap of n values covers as often as ``level`` says."""
    from scipy import stats

    quantile = stats.t.ppf((1 + level) / 2, n - 1)
    return float(1 - 2 * stats.norm.sf(quantile * math.sqrt(n / (n - 1))))


def p_values(values: Values, margin: float) -> dict[Region, float]:
    """Return the p-value of each region, by paired t-tests.

    It is 1 of a single value, and of two or three that are equal: rounded accuracies often are,
    and say nothing of their spread. More values that are all equal are taken for certain.

    "within" is the larger of two one-sided tests (Schuirmann 1987); the others are twice the
    one-sided value, so that each of the two counts 2.5%.
    """
    from scipy import stats

    if len(values) < 2 or (len(values) < FEWEST_EQUAL and are_equal(values)):
        return {"above": 1.0, "below": 1.0, "within": 1.0}
    if are_equal(values):
        mean = float(values[0])
        inside = {"above": mean > margin, "below": mean < -margin, "within": abs(mean) < margin}
        return {
            "above": float(not inside["above"]),
            "below": float(not inside["below"]),
            "within": float(not inside["within"]),
        }

    def one_sided(bound: float, alternative: str) -> float:
        return float(stats.ttest_1samp(values, bound, alternative=alternative).pvalue)

    return {
        "above": min(1.0, 2 * one_sided(margin, "greater")),
        "below": min(1.0, 2 * one_sided(-margin, "less")),
        "within": max(one_sided(-margin, "greater"), one_sided(margin, "less")),
    }


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values that hold for all tests together (Holm 1979)::

    p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))      p_(1) <= ... <= p_(m)
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted = [1.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def seeds_needed(evidence: Evidence, alpha: float = ALPHA) -> int | None:
    """Return with how many seeds a study like this one decides in four of five cases.

    It takes estimate and deviation for the truth, which a few seeds know roughly.

    Args:
        evidence: of two values or more.
        alpha: at which the p-value has to lie, with Holm's correction already in it.

    Returns:
        At least as many as there are; None for more than 10,000, such as where the estimate is
        just the margin.
    """
    if evidence.n < 2 or not evidence.deviation > 0:
        return None
    low, high = evidence.n - 1, evidence.n
    while power(evidence, high, alpha) < POWER:
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    low += 1
    while low < high:
        middle = (low + high) // 2
        if power(evidence, middle, alpha) >= POWER:
            high = middle
        else:
            low = middle + 1
    return high


def power(evidence: Evidence, n: int, alpha: float = ALPHA) -> float:
    """Return how often n seeds decide, if estimate and deviation are the truth.

    Beyond the margin that is a one-sided t-test at alpha / 2; within it two one-sided tests at
    alpha (Phillips 1990, equation 2), which count as one where both are passed.
    """
    from scipy import stats

    size, error = abs(evidence.estimate), evidence.deviation / math.sqrt(n)
    if size > evidence.margin:
        limit = stats.t.isf(alpha / 2, n - 1)
        return float(stats.nct.sf(limit, n - 1, (size - evidence.margin) / error))
    limit = stats.t.isf(alpha, n - 1)
    upper = stats.nct.cdf(-limit, n - 1, (size - evidence.margin) / error)
    lower = stats.nct.cdf(limit, n - 1, (size + evidence.margin) / error)
    return max(0.0, float(upper - lower))
