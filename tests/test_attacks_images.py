"""How near a reconstruction comes: cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.privacy.attacks.images import (
    assigned,
    nearest_to_each,
    psnr_db,
    relative_errors,
    ssim,
)


def test_psnr_by_hand() -> None:
    zeros = np.zeros((1, 4, 4))
    assert psnr_db(zeros, zeros + 0.1) == pytest.approx(20.0)  # 10 log10(1 / 0.01)
    assert psnr_db(zeros, zeros + 25.5, peak=255.0) == pytest.approx(20.0)
    half = zeros.copy()
    half[:, :2] = 1.0  # a mean squared error of 1/2
    assert psnr_db(zeros, half) == pytest.approx(10 * math.log10(2))


def test_psnr_ends_where_float32_does() -> None:
    image = np.ones((1, 4, 4))
    assert psnr_db(image, image) == pytest.approx(-20 * math.log10(2**-23))
    assert psnr_db(image, image * (1 + 2**-30)) == psnr_db(image, image)


def test_ssim_of_two_uniform_images_by_hand() -> None:
    """No variance: only the luminance is left, (2 a b + C1) / (a^2 + b^2 + C1)."""
    a, b = np.full((1, 12, 12), 0.2), np.full((1, 12, 12), 0.6)
    c1 = 0.01**2
    assert ssim(a, b) == pytest.approx((2 * 0.12 + c1) / (0.04 + 0.36 + c1), rel=1e-9)


def test_ssim_in_one_window_by_hand() -> None:
    """An 11 x 11 image has one window: weighted moments, written out."""
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 11, 11))
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    w = np.outer(line, line) / line.sum() ** 2
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
    cov = (w * (x - mx) * (y - my)).sum()
    c1, c2 = 0.01**2, 0.03**2
    by_hand = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(x[None], y[None]) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("side", [1, 2, 7, 8, 28])
def test_ssim_of_equal_images_is_one_whatever_their_size(side: int) -> None:
    image = np.random.default_rng(1).random((3, side, side + 1))
    assert ssim(image, image) == pytest.approx(1.0)
    assert ssim(image, 1 - image) < 1


def test_relative_errors_by_hand() -> None:
    x = np.array([[3.0, 4.0], [0.0, 0.0]])
    r = np.array([[3.0, 4.0], [0.0, 4.0], [math.nan, 0.0], [0.0, 0.0]])
    expected = [[0.0, 0.6, math.inf, 1.0], [math.inf, math.inf, math.inf, 0.0]]
    assert relative_errors(x, r).tolist() == expected


def test_the_best_candidate_of_each_may_be_the_same() -> None:
    x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    which, errors = nearest_to_each(x, np.array([[1.0, 0.0], [0.0, 2.0]]))
    assert which.tolist() == [0, 0, 1]
    assert errors == pytest.approx([0.0, 0.1 / math.sqrt(1.01), 1.0])


@pytest.mark.parametrize("candidates", [np.zeros((0, 2)), np.full((3, 2), np.nan)])
def test_nothing_found_is_infinitely_far(candidates: np.ndarray) -> None:
    which, errors = nearest_to_each(np.ones((2, 2)), candidates)
    assert which.tolist() == [-1, -1]
    assert np.isinf(errors).all()


@given(st.permutations(range(6)), st.integers(0, 1000))
def test_a_shuffled_batch_is_put_in_order(order: list[int], seed: int) -> None:
    x = np.random.default_rng(seed).random((6, 1, 3, 3))
    found = x[order] + 1e-6
    assert np.array_equal(x[order][assigned(x, found)], x)


def test_one_that_is_not_finite_is_left_for_last() -> None:
    x = np.eye(3)
    found = np.array([[np.nan] * 3, [0, 0, 1.0], [1.0, 0, 0]])
    assert assigned(x, found).tolist() == [2, 0, 1]
    assert sorted(assigned(x, np.full((3, 3), np.inf)).tolist()) == [0, 1, 2]
