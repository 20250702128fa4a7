from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim.randomness import stream
from fedsim.study.statistics import (
    ALPHA,
    FEWEST_RESAMPLED,
    MOST_SEEDS,
    POWER,
    RESAMPLES,
    Evidence,
    Region,
    expanded,
    holm,
    intervals,
    p_values,
    power,
    seeds_needed,
    weigh,
)

# Twelve values, a little skewed, of mean 0.
NOISE = np.array([-1.3, -0.9, -0.8, -0.5, -0.4, -0.1, 0.1, 0.2, 0.4, 0.7, 1.0, 1.6])
# Multiples of a hundredth: what differs at all, differs by more than rounding.
hundredths = st.integers(-1000, 1000).map(lambda n: n / 100)
samples = st.lists(hundredths, min_size=5, max_size=14).filter(lambda v: min(v) < max(v))
p = st.floats(0, 1)


def believed(
    *, n: int = 12, estimate: float = 0.0, deviation: float = 1.0, margin: float = 1.0
) -> Evidence:
    """What some seeds said, as far as the planning of more of them asks."""
    return Evidence(
        n=n,
        estimate=estimate,
        deviation=deviation,
        low=math.nan,
        high=math.nan,
        narrow=(math.nan, math.nan),
        p={},
        margin=margin,
    )


# The level.


def test_a_level_is_expanded_as_the_formula_says() -> None:
    # t of 11 degrees of freedom at 97.5% is 2.200985, times sqrt(12 / 11) is 2.298846.
    by_hand = 1 - 2 * stats.norm.sf(2.200985 * math.sqrt(12 / 11))
    assert expanded(0.95, 12) == pytest.approx(by_hand, abs=1e-6)
    assert expanded(0.95, 12) == pytest.approx(0.9785, abs=1e-4)


@given(st.floats(0.5, 0.99), st.integers(3, 200))
def test_a_level_is_expanded_less_the_more_values_there_are(level: float, n: int) -> None:
    assert level < expanded(level, n + 1) <= expanded(level, n) <= 1
    assert expanded(level, 10**6) == pytest.approx(level, abs=1e-4)


# Intervals.


def test_without_expansion_an_interval_is_the_plain_bca_of_scipy() -> None:
    found = intervals(NOISE, (0.95, 0.9), expand=False)
    for level, interval in zip((0.95, 0.9), found, strict=True):
        plain = stats.bootstrap(
            (NOISE,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=level,
            method="BCa",
            rng=stream(0, "bootstrap"),
        ).confidence_interval
        assert interval == (plain.low, plain.high)


def test_an_expanded_interval_is_the_plain_one_of_the_expanded_level() -> None:
    level = expanded(0.95, len(NOISE))
    assert intervals(NOISE, (0.95,)) == intervals(NOISE, (level,), expand=False)


@settings(max_examples=20, deadline=None)
@given(samples.filter(lambda values: len(values) >= FEWEST_RESAMPLED))
def test_intervals_hold_the_mean_and_lie_within_wider_ones(values: list[float]) -> None:
    found = np.array(values)
    wide, narrow = intervals(found, (0.95, 0.9))
    (plain,) = intervals(found, (0.95,), expand=False)
    lows = [found.min(), wide[0], narrow[0], found.mean()]
    highs = [found.mean(), narrow[1], wide[1], found.max()]
    for ends in (lows, highs, [wide[0], *plain, wide[1]]):
        assert ends == pytest.approx(sorted(ends), abs=1e-12)  # sums of resamples are rounded
    assert plain[0] < plain[1]


@pytest.mark.parametrize("n", range(2, FEWEST_RESAMPLED))
def test_few_values_have_students_interval_and_no_bootstrap(n: int) -> None:
    found = NOISE[:n]
    ((low, high),) = intervals(found, (0.95,))
    half = stats.t.isf(0.025, n - 1) * found.std(ddof=1) / math.sqrt(n)
    assert (low, high) == pytest.approx((found.mean() - half, found.mean() + half))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_small_study_does_not_decide_what_a_t_test_leaves_open(n: int) -> None:
    evidence = weigh([0.006, 0.05, 0.2, 0.1][:n], 0.005)
    assert evidence.decisive_p > 0.05


@pytest.mark.parametrize(
    "values", [[1.0, 1.0 + 2e-16, 1.0, 1.0], [1e-300, 0.0, 0.0, 0.0], [1.0, 1.0 + 1e-15] * 3]
)
def test_values_that_differ_by_rounding_are_equal(values: list[float]) -> None:
    evidence = weigh(values, 0.5)
    assert evidence.low == evidence.high == values[0]
    assert evidence.region == ("above" if values[0] > 0.5 else "within")


def test_an_interval_is_about_as_wide_as_students_for_ordinary_noise() -> None:
    ((low, high),) = intervals(NOISE, (0.95,))
    half = stats.t.isf(0.025, 11) * NOISE.std(ddof=1) / math.sqrt(12)
    assert low == pytest.approx(-half, rel=0.15)
    assert high == pytest.approx(half, rel=0.15)


def test_an_interval_moves_and_grows_with_the_values() -> None:
    ((low, high),) = intervals(NOISE, (0.95,))
    assert intervals(NOISE.copy(), (0.95,)) == [(low, high)]
    assert intervals(NOISE * 4, (0.95,)) == [(4 * low, 4 * high)]  # exact: a power of two
    assert intervals(NOISE + 8, (0.95,)) == [pytest.approx((low + 8, high + 8), abs=0.01)]


def test_equal_values_are_their_own_interval() -> None:
    assert intervals(np.full(5, 0.3), (0.95, 0.9)) == [(0.3, 0.3)] * 2


@pytest.mark.parametrize("values", [[], [0.3]])
def test_a_single_value_has_no_interval(values: list[float]) -> None:
    found = intervals(np.array(values), (0.95, 0.9))
    assert len(found) == 2
    assert all(math.isnan(end) for interval in found for end in interval)


# p-values.


def test_p_values_by_hand() -> None:
    values, margin = np.array([1.0, 2.0, 3.0, 6.0]), 1.0
    error = math.sqrt((4 + 1 + 0 + 9) / 3) / 2  # the mean is 3
    above = stats.t.sf((3 - margin) / error, 3)
    over_lower = stats.t.sf((3 + margin) / error, 3)
    assert p_values(values, margin) == pytest.approx(
        {
            "above": 2 * above,
            "below": 1.0,  # twice more than a half
            "within": max(over_lower, 1 - above),
        }
    )


@settings(deadline=None)
@given(samples, st.floats(0.01, 5))
def test_p_values_are_those_of_scipy(values: list[float], margin: float) -> None:
    found = np.array(values)

    def test(bound: float, alternative: str) -> float:
        return float(stats.ttest_1samp(found, bound, alternative=alternative).pvalue)

    assert p_values(found, margin) == pytest.approx(
        {
            "above": min(1, 2 * test(margin, "greater")),
            "below": min(1, 2 * test(-margin, "less")),
            "within": max(test(-margin, "greater"), test(margin, "less")),
        }
    )


@settings(deadline=None)
@given(samples, st.floats(0.01, 5))
def test_what_is_above_in_one_direction_is_below_in_the_other(
    values: list[float], margin: float
) -> None:
    found = np.array(values)
    there, back = p_values(found, margin), p_values(-found, margin)
    assert there == pytest.approx(
        {"above": back["below"], "below": back["above"], "within": back["within"]}
    )


@pytest.mark.parametrize(
    ("value", "region"), [(0.3, "above"), (-0.3, "below"), (0.1, "within"), (0.0, "within")]
)
def test_equal_values_are_certain(value: float, region: Region) -> None:
    found = p_values(np.full(4, value), 0.2)
    assert found[region] == 0
    assert sorted(found.values()) == [0, 1, 1]
    assert set(p_values(np.full(3, value), 0.2).values()) == {1.0}  # too few to know a spread


def test_equal_values_just_at_the_margin_are_nowhere() -> None:
    assert set(p_values(np.full(3, 0.25), 0.25).values()) == {1.0}


def test_a_single_value_proves_nothing() -> None:
    assert p_values(np.array([5.0]), 0.1) == {"above": 1, "below": 1, "within": 1}


# Holm.


def test_holm_by_hand() -> None:
    # In order: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 1 * 0.04, which may not be below its forerunner.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@given(st.lists(p, max_size=8))
def test_corrected_p_values_are_larger_and_in_the_same_order(values: list[float]) -> None:
    found = holm(values)
    assert len(found) == len(values)
    for value, corrected in zip(values, found, strict=True):
        assert value <= corrected <= min(1, len(values) * value)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert [found[i] for i in order] == sorted(found)


@given(st.lists(p, min_size=1, max_size=8), st.data())
def test_a_hypothesis_more_never_makes_another_more_certain(
    values: list[float], data: st.DataObject
) -> None:
    more = holm([*values, data.draw(p)])
    for alone, among in zip(holm(values), more, strict=False):
        assert alone <= among + 1e-15


@given(st.lists(p, min_size=1, max_size=8).flatmap(lambda v: st.permutations(range(len(v)))))
def test_the_order_of_hypotheses_does_not_matter(order: list[int]) -> None:
    values = [(3 * i % 7) / 50 for i in range(len(order))]
    found = holm(values)
    assert holm([values[i] for i in order]) == [found[i] for i in order]


# Both together.


@pytest.mark.parametrize(
    ("mean", "margin", "region"),
    [(3, 1, "above"), (-3, 1, "below"), (0.2, 2, "within"), (-0.2, 2, "within")],
)
def test_clear_values_are_decided(mean: float, margin: float, region: Region) -> None:
    evidence = weigh(NOISE + mean, margin)
    assert evidence.region == region
    assert evidence.interval_agrees
    assert evidence.decisive_p == evidence.p[region] < ALPHA
    assert (evidence.n, evidence.margin) == (12, margin)
    assert evidence.estimate == pytest.approx(mean)
    assert evidence.deviation == pytest.approx(NOISE.std(ddof=1))
    assert evidence.low < evidence.narrow[0] < mean < evidence.narrow[1] < evidence.high


@pytest.mark.parametrize(("mean", "margin"), [(1.1, 1), (-1.1, 1), (0.9, 1), (0, 0.1)])
def test_values_about_the_margin_are_not_decided(mean: float, margin: float) -> None:
    evidence = weigh(NOISE + mean, margin)
    assert not evidence.interval_agrees
    assert evidence.decisive_p > ALPHA


def test_at_five_percent_the_interval_decides_and_not_the_t_test() -> None:
    shown = {"n": 12, "estimate": 1.5, "deviation": 0.8, "narrow": (1.1, 1.9), "margin": 1.0}
    p: dict[Region, float] = {"above": 0.06, "below": 1.0, "within": 0.97}
    beyond = Evidence(low=1.01, high=2.0, p=p, **shown)  # type: ignore[arg-type]
    assert beyond.interval_agrees
    assert beyond.decisive_p == ALPHA
    across = replace(beyond, low=0.99, p={**p, "above": 0.04})
    assert not across.interval_agrees
    assert across.decisive_p == math.nextafter(ALPHA, 1)


def test_equivalence_is_looked_up_in_the_narrow_interval_and_a_difference_in_the_wide_one() -> None:
    evidence = Evidence(
        n=12,
        estimate=0.0,
        deviation=1.0,
        low=-1.1,
        high=1.1,
        narrow=(-0.9, 0.9),
        p={"above": 1.0, "below": 1.0, "within": 0.03},
        margin=1.0,
    )
    assert evidence.interval_agrees
    assert not replace(evidence, narrow=(-1.0, 0.9)).interval_agrees
    assert not replace(evidence, narrow=(-0.9, 1.0)).interval_agrees
    above = replace(evidence, p={"above": 0.03, "below": 1.0, "within": 1.0})
    assert not replace(above, narrow=(1.1, 2.0), low=1.0, high=2.1).interval_agrees
    assert replace(above, narrow=(1.1, 2.0), low=1.05, high=2.1).interval_agrees


def test_a_single_value_is_weighed_without_an_interval() -> None:
    evidence = weigh([0.3], 0.1)
    assert (evidence.n, evidence.estimate) == (1, 0.3)
    assert all(map(math.isnan, (evidence.low, evidence.high, evidence.deviation)))
    assert not evidence.interval_agrees
    assert evidence.decisive_p == 1


# How many seeds.


@pytest.mark.parametrize("alpha", [ALPHA, ALPHA / 6])
@pytest.mark.parametrize(("estimate", "margin"), [(1.0, 0.4), (-1.0, 0.4), (0.1, 0.7), (-0.3, 0.7)])
def test_the_seeds_needed_are_the_fewest_that_have_the_power(
    estimate: float, margin: float, alpha: float
) -> None:
    evidence = believed(n=3, estimate=estimate, margin=margin)
    needed = seeds_needed(evidence, alpha)
    assert needed is not None
    assert needed > 4
    assert power(evidence, needed, alpha) >= POWER > power(evidence, needed - 1, alpha)


def test_the_nearer_the_margin_the_more_seeds_are_needed() -> None:
    def needed(margin: float) -> int:
        found = seeds_needed(believed(n=2, estimate=1.0, margin=margin))
        assert found is not None
        return found

    beyond = [needed(margin) for margin in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert beyond == sorted(set(beyond))
    within = [needed(margin) for margin in (1.1, 1.3, 1.5, 1.7, 2.0)]
    assert within == sorted(set(within), reverse=True)


def test_more_hypotheses_need_more_seeds() -> None:
    evidence = believed(n=3, estimate=1.0, margin=0.4)
    counts = [seeds_needed(evidence, ALPHA / family) or 0 for family in (1, 2, 6, 20)]
    assert counts == sorted(set(counts))


def test_no_number_of_seeds_decides_an_effect_of_just_the_margin() -> None:
    assert seeds_needed(believed(estimate=1.0, margin=1.0)) is None
    assert seeds_needed(believed(estimate=-1.0, margin=1.0)) is None
    nearly = believed(estimate=1.0, margin=1.0 - 1e-4)
    assert power(nearly, MOST_SEEDS) < POWER
    assert seeds_needed(nearly) is None


def test_a_study_never_needs_fewer_seeds_than_it_has() -> None:
    assert seeds_needed(believed(n=50, estimate=5.0)) == 50


@pytest.mark.parametrize(
    "evidence", [believed(n=1, deviation=math.nan), believed(n=3, deviation=0.0)]
)
def test_values_without_a_spread_say_nothing_about_seeds(evidence: Evidence) -> None:
    assert seeds_needed(evidence) is None


@pytest.mark.parametrize(
    ("n", "estimate", "margin"), [(10, 1.2, 0.3), (10, -1.2, 0.3), (20, 0.05, 0.7), (20, -0.2, 0.8)]
)
def test_the_power_is_how_often_t_tests_decide(n: int, estimate: float, margin: float) -> None:
    drawn = np.random.default_rng(7).standard_normal((20_000, n)) + estimate
    error = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    mean = drawn.mean(axis=1)
    if abs(estimate) > margin:
        t = (mean * np.sign(estimate) - margin) / error
        decided = t > stats.t.isf(ALPHA / 2, n - 1)
    else:
        limit = stats.t.isf(ALPHA, n - 1)
        decided = ((mean + margin) / error > limit) & ((mean - margin) / error < -limit)
    found = power(believed(n=n, estimate=estimate, margin=margin), n)
    assert 0.6 < found < 0.95
    assert found == pytest.approx(decided.mean(), abs=0.012)
