"""Clipping by hand and by property; the norm that follows a quantile; noise where it belongs."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedsim.errors import PrivacyError
from fedsim.privacy.clipping import (
    UNIT,
    AdaptiveClipping,
    add_noise,
    clip_update,
    clip_weights,
    default_count_noise,
    delta_noise_multiplier,
    update_norm,
)
from fedsim.privacy.noise import NoiseSource

KEY = bytes(range(32))


def test_weights_by_hand() -> None:
    norms = np.array([0.0, 0.5, 2.0, 2.5, 4.0, 6.0, math.inf, math.nan, 2.0**25, 1e300])
    weights = clip_weights(norms, 2.0)
    assert weights.dtype == np.int64
    # Of 6.0, a third: 5592405.33 rounded down.
    third = 5_592_405
    assert weights.tolist() == [
        *(UNIT, UNIT, UNIT, 13_421_772, UNIT // 2, third),
        *(0, 0, 1, 0),
    ]


def test_without_a_bound_all_that_is_finite_weighs_the_same() -> None:
    weights = clip_weights(np.array([0.0, 1e300, math.inf, math.nan]), math.inf)
    assert weights.tolist() == [UNIT, UNIT, 0, 0]


@given(
    st.lists(st.floats(0.0, allow_infinity=True) | st.just(math.nan), max_size=20),
    st.floats(1e-6, 1e6),
)
def test_a_weighted_norm_never_exceeds_the_clipping_norm(
    norms: list[float], clipping_norm: float
) -> None:
    weights = clip_weights(np.array(norms, np.float64), clipping_norm)
    assert weights.min(initial=0) >= 0
    assert weights.max(initial=0) <= UNIT
    for weight, norm in zip(weights.tolist(), norms, strict=True):
        if not math.isfinite(norm):
            assert weight == 0
            continue
        clipped = weight * Fraction(norm) / UNIT
        assert clipped <= Fraction(clipping_norm) * (1 + Fraction(1, 2**53))
        if norm <= clipping_norm:
            assert weight == UNIT
        else:  # and no more is lost than the rounding down
            assert clipped >= Fraction(clipping_norm) - Fraction(norm) / UNIT * Fraction(1001, 1000)


@pytest.mark.parametrize("norm", [0.0, -1.0, math.inf, math.nan])
def test_a_clipping_norm_is_positive(norm: float) -> None:
    refused = [
        lambda: clip_update({"w": np.ones(2, np.float32)}, norm),
        lambda: AdaptiveClipping(clipping_norm=norm, count_noise=1.0),
    ]
    if norm != math.inf:  # which weights take for "all the same"
        refused.append(lambda: clip_weights(np.ones(2), norm))
    for call in refused:
        with pytest.raises(PrivacyError, match=f"clipping_norm = {norm}: it has to be finite"):
            call()


def test_an_update_by_hand() -> None:
    """3, 4 and 12 in three arrays, one of them 0-d: a norm of 13."""
    update = {
        "w": np.array([[3.0], [0.0]], np.float32),
        "b": np.array([4.0], np.float64),
        "slope": np.array(12.0, np.float32),
        "none": np.zeros((0, 3), np.float32),
    }
    assert update_norm(update) == 13.0
    clipped = clip_update(update, 6.5)
    assert {name: array.shape for name, array in clipped.items()} == {
        name: array.shape for name, array in update.items()
    }
    assert [clipped[name].dtype for name in update] == [update[name].dtype for name in update]
    assert float(clipped["slope"]) == pytest.approx(6.0, rel=1e-6)
    assert clipped["w"][0, 0] == pytest.approx(1.5, rel=1e-6)
    assert clipped["b"][0] == pytest.approx(2.0, rel=1e-6)
    assert 6.5 * (1 - 1e-6) < update_norm(clipped) <= 6.5
    assert update["slope"] == 12.0
    whole = clip_update(update, 13.0)
    assert all(np.array_equal(whole[name], update[name]) for name in update)
    assert clip_update({}, 1.0) == {}


UPDATES = st.dictionaries(
    st.sampled_from("abc"),
    st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
        lambda dtype: arrays(
            dtype,
            array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
            elements={"allow_nan": False, "allow_infinity": False},
        )
    ),
    max_size=3,
)


@given(UPDATES, st.floats(1e-30, 1e30))
@settings(deadline=None)
@example({"a": np.full(199_210, 0.1, np.float32)}, 1.0)
@example({"a": np.full(1000, 0.1, np.float16)}, 0.01)
@example({"a": np.full(3, 1e-44, np.float32)}, 1e-45)  # below what float32 can hold
def test_the_clipped_norm_is_at_most_the_clipping_norm(
    update: dict[str, np.ndarray], clipping_norm: float
) -> None:
    norm = update_norm(update)
    clipped = clip_update(update, clipping_norm)
    assert update_norm(clipped) <= clipping_norm
    if norm <= clipping_norm:
        assert all(np.array_equal(clipped[name], update[name]) for name in update)
    for name, array in update.items():
        assert (clipped[name].dtype, clipped[name].shape) == (array.dtype, array.shape)
        assert (np.sign(clipped[name]) * np.sign(array) >= 0).all()


@given(arrays(np.float32, 50, elements=st.floats(-100, 100, width=32)), st.floats(0.01, 10))
def test_little_is_lost_to_rounding(array: np.ndarray, clipping_norm: float) -> None:
    norm = update_norm({"w": array})
    clipped = update_norm(clip_update({"w": array}, clipping_norm))
    assert clipped >= min(norm, clipping_norm) * (1 - 1e-5)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_update_that_is_not_finite_counts_nothing(value: float) -> None:
    update = {"w": np.array([1.0, value], np.float32), "b": np.array(2.0, np.float32)}
    clipped = clip_update(update, 1.0)
    assert all((array == 0).all() for array in clipped.values())


@pytest.mark.parametrize("array", [np.array(3), np.array([True]), np.array([1j])])
def test_whole_numbers_are_refused_by_name(array: np.ndarray) -> None:
    update = {"w": np.ones(2, np.float32), "batches_tracked": array}
    for refused in (
        lambda: clip_update(update, 1.0),
        lambda: add_noise(update, 1.0, NoiseSource(KEY)),
    ):
        with pytest.raises(PrivacyError, match=r"array 'batches_tracked' is of .* take it out"):
            refused()


# Noise.


def test_noise_is_added_to_every_coordinate_in_the_arrays_order() -> None:
    update = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "slope": np.array(7.0, np.float32),
        "b": np.array([1e-3, 2e-3]),
    }
    noised = add_noise(update, 0.5, NoiseSource(KEY))
    drawn = 0.5 * NoiseSource(KEY).normal(9)
    assert {array.dtype for array in noised.values()} == {np.dtype(np.float64)}
    assert {name: array.shape for name, array in noised.items()} == {
        "w": (2, 3), "slope": (), "b": (2,),
    }  # fmt: skip
    assert np.array_equal(noised["w"], update["w"] + drawn[:6].reshape(2, 3))
    assert float(noised["slope"]) == 7.0 + drawn[6]
    assert np.array_equal(noised["b"], update["b"] + drawn[7:])
    assert update["slope"] == 7.0


def test_no_noise_changes_nothing_and_draws_nothing() -> None:
    source = NoiseSource(KEY)
    noised = add_noise({"w": np.ones(3, np.float32)}, 0.0, source)
    assert noised["w"].tolist() == [1, 1, 1]
    assert source.normal(2).tolist() == NoiseSource(KEY).normal(2).tolist()
    assert add_noise({}, 1.0, source) == {}


@pytest.mark.parametrize("stddev", [-1.0, math.inf, math.nan])
def test_noise_has_a_deviation(stddev: float) -> None:
    with pytest.raises(PrivacyError, match=f"standard deviation {stddev}"):
        add_noise({"w": np.ones(3)}, stddev, NoiseSource(KEY))


# The norm that follows a quantile.


def adaptive(clipping_norm: float = 1.0, **more: float) -> AdaptiveClipping:
    return AdaptiveClipping(clipping_norm=clipping_norm, **({"count_noise": 0.0} | more))


def test_adaptive_clipping_by_hand() -> None:
    """10 of 10 are below: b~ = 1; C exp(-0.2 (1 - 0.5)). None: C exp(+0.1)."""
    state = adaptive(2.0)
    all_below = state.updated(count_below=10, clients=10, expected_clients=10, noise=0.0)
    none_below = state.updated(count_below=0, clients=10, expected_clients=10, noise=0.0)
    half = state.updated(count_below=5, clients=10, expected_clients=10, noise=0.0)
    assert all_below.clipping_norm == pytest.approx(2.0 * math.exp(-0.1))
    assert none_below.clipping_norm == pytest.approx(2.0 * math.exp(0.1))
    assert half.clipping_norm == 2.0
    # 7 and a noise of 0.5 * 3, over 10: b~ = 0.85; C exp(-1 (0.85 - 0.9)).
    noisy = adaptive(2.0, target_quantile=0.9, learning_rate=1.0, count_noise=0.5)
    moved = noisy.updated(count_below=7, clients=10, expected_clients=10, noise=3.0)
    assert moved == replace(noisy, clipping_norm=moved.clipping_norm)
    assert moved.clipping_norm == pytest.approx(2.0 * math.exp(0.05))


@given(st.integers(0, 30), st.integers(0, 30), st.booleans())
def test_one_client_more_moves_the_count_by_a_half(below: int, above: int, is_below: bool) -> None:
    """On which the noise of the count rests, where who takes part is itself a secret."""

    def estimate(below: int, above: int) -> float:
        moved = adaptive(learning_rate=1.0).updated(
            count_below=below, clients=below + above, expected_clients=10, noise=0.0
        )
        return 10 * math.log(moved.clipping_norm)

    more = estimate(below + is_below, above + (not is_below))
    assert abs(more - estimate(below, above)) == pytest.approx(0.5)


def test_a_round_of_nobody_moves_the_median_by_its_noise_alone() -> None:
    state = adaptive(3.0, count_noise=1.0)
    still = state.updated(count_below=0, clients=0, expected_clients=10, noise=0.0)
    assert still.clipping_norm == 3.0
    moved = state.updated(count_below=0, clients=0, expected_clients=10, noise=1.0)
    assert moved.clipping_norm == pytest.approx(3.0 * math.exp(-0.02))


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_it_converges_to_the_quantile_from_both_sides(start: float, quantile: float) -> None:
    source, cohort = NoiseSource(KEY), 200
    norms = np.exp(source.normal(cohort))
    state = adaptive(start, target_quantile=quantile, count_noise=default_count_noise(cohort))
    path = []
    for _ in range(300):
        state = state.updated(
            count_below=int((norms <= state.clipping_norm).sum()),
            clients=cohort,
            expected_clients=cohort,
            noise=float(source.normal(1)[0]),
        )
        path.append(state.clipping_norm)
    assert float((norms <= np.mean(path[-100:])).mean()) == pytest.approx(quantile, abs=0.05)
    assert (path[20] > start) == (start < 1)


@given(st.integers(0, 10), st.floats(0.05, 0.95), st.floats(0.01, 1.0))
def test_it_is_never_inverted(below: int, quantile: float, learning_rate: float) -> None:
    """Too few below: it grows. Too many: it shrinks."""
    state = adaptive(target_quantile=quantile, learning_rate=learning_rate)
    moved = state.updated(count_below=below, clients=10, expected_clients=10, noise=0.0)
    difference = quantile - below / 10
    assert math.copysign(1, moved.clipping_norm - 1) == math.copysign(1, difference) or (
        abs(difference) < 1e-12
    )


@pytest.mark.parametrize(
    ("below", "clients", "expected"), [(-1, 10, 10.0), (11, 10, 10.0), (0, 0, 0.0), (0, 0, -1.0)]
)
def test_a_failed_round_leaves_it(below: int, clients: int, expected: float) -> None:
    state = adaptive(3.0)
    with pytest.raises(PrivacyError, match=r"the clipping norm stays at 3\.0"):
        state.updated(count_below=below, clients=clients, expected_clients=expected, noise=0.0)
    state.updated(count_below=10, clients=10, expected_clients=10, noise=0.0)  # and is lost
    assert state == adaptive(3.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target_quantile": 0.0}, "target_quantile = 0.0"),
        ({"target_quantile": 1.0}, "target_quantile = 1.0"),
        ({"learning_rate": -0.1}, "learning_rate = -0.1"),
        ({"count_noise": math.nan}, "count_noise = nan"),
    ],
)
def test_a_state_that_cannot_be_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        adaptive(**wrong)


def test_the_count_takes_its_part_of_the_noise_by_hand() -> None:
    """z = 1, sigma_b = 5: (1 - 1/100)^(-1/2) = 10/sqrt(99)."""
    assert default_count_noise(100) == 5.0
    assert delta_noise_multiplier(1.0, 5.0) == pytest.approx(10 / math.sqrt(99))
    # As one mechanism of two queries: their 1/z^2 add up to the whole's.
    z = delta_noise_multiplier(0.8, 0.5)
    assert z**-2 + (2 * 0.5) ** -2 == pytest.approx(0.8**-2)
    assert delta_noise_multiplier(0.0, 0.0) == 0.0


@pytest.mark.parametrize("count_noise", [0.0, 0.5])
def test_a_count_that_tells_too_much_is_refused(count_noise: float) -> None:
    with pytest.raises(
        PrivacyError, match=r"below twice that.* more than 10 clients .* take fixed clipping"
    ):
        delta_noise_multiplier(1.0, count_noise)
    with pytest.raises(PrivacyError, match="noise_multiplier = -1"):
        delta_noise_multiplier(-1.0, 5.0)
