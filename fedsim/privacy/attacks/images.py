"""How near a reconstruction comes to its original: relative error, PSNR, SSIM, and who is whose."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# What float32 cannot tell from no error at all, relative to the peak: PSNR ends at 138.5 dB.
LEAST_ERROR = float(np.finfo(np.float32).eps)

WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian, in pixels
K1, K2 = 0.01, 0.03


def relative_errors(originals: Array, reconstructions: Array) -> Floats:
    """Return ||r_j - x_i|| / ||x_i|| of every pair, (originals, reconstructions).

    A reconstruction with a number in it that is not finite is infinitely far from everything, and
    so is whatever differs from an original that is all zeros.

    Args:
        originals: (n, \\*shape).
        reconstructions: (m, \\*shape); m may be 0.
    """
    from scipy.spatial.distance import cdist

    x = np.asarray(originals, np.float64).reshape(len(originals), -1)
    r = np.asarray(reconstructions, np.float64).reshape(len(reconstructions), x.shape[1])
    finite = np.isfinite(r).all(axis=1)
    distances = np.full((len(x), len(r)), np.inf)
    distances[:, finite] = cdist(x, r[finite])
    norms = np.linalg.norm(x, axis=1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distances == 0, 0.0, distances / norms)


def nearest_to_each(originals: Array, candidates: Array) -> tuple[Ints, Floats]:
    """Return the index and the relative error of the best candidate for each original, (n,) each.

    One candidate may be the best for several. Without candidates the index is -1, the error
    infinite; so it is where no candidate is finite.
    """
    errors = relative_errors(originals, candidates)
    if errors.shape[1] == 0:
        return np.full(len(errors), -1), np.full(len(errors), np.inf)
    best = errors.argmin(axis=1)
    least = errors[np.arange(len(errors)), best]
    return np.where(np.isfinite(least), best, -1), least


def assigned(originals: Array, reconstructions: Array) -> Ints:
    """Return which reconstruction is whose, (n,), each once, with the least sum of errors.

    Args:
        originals: (n, \\*shape).
        reconstructions: (n, \\*shape), in any order: a batch's gradient does not tell it.
    """
    from scipy.optimize import linear_sum_assignment

    errors = relative_errors(originals, reconstructions)
    finite = errors[np.isfinite(errors)]
    worst = float(finite.max()) if finite.size else 1.0
    # An infinite cost has no sum: twice the worst finite one for every pair keeps those together.
    _, columns = linear_sum_assignment(
        np.where(np.isfinite(errors), errors, 2 * len(errors) * worst + 1)
    )
    return np.asarray(columns, np.int64)


def psnr_db(original: Array, reconstruction: Array, *, peak: float = 1.0) -> float:
    """Return the peak signal-to-noise ratio in decibels, 10 log10(peak^2 / mean squared error).

    Args:
        original, reconstruction: of one shape.
        peak: the range that values have, above 0.

    An error that float32 cannot tell from none counts as ``LEAST_ERROR`` times the peak.
    """
    difference = np.asarray(original, np.float64) - np.asarray(reconstruction, np.float64)
    floor = (LEAST_ERROR * peak) ** 2
    return 10 * math.log10(peak**2 / max(float(np.mean(difference**2)), floor))


def ssim(original: Array, reconstruction: Array, *, peak: float = 1.0) -> float:
    """Return the mean structural similarity, in [-1, 1]; 1 of equal images (Wang et al., 2004).

    With means, variances and the covariance in a Gaussian window around each pixel::

        (2 m_x m_r + C1) (2 s_xr + C2) / ((m_x^2 + m_r^2 + C1) (s_x^2 + s_r^2 + C2))

    with C = (K peak)^2. The window is 11 x 11 with a deviation of 1.5 pixels, or, in an image that
    is smaller than that, the largest odd square that fits; the mean is over the pixels around which
    it lies wholly inside, and over channels.

    Args:
        original, reconstruction: (channels, height, width).
        peak: the range that values have, above 0.
    """
    from scipy.ndimage import gaussian_filter

    x, r = np.asarray(original, np.float64), np.asarray(reconstruction, np.float64)
    side = min(WINDOW, *x.shape[1:])
    radius = (side - 1) // 2
    inside = slice(radius, -radius or None)

    def mean(values: Floats) -> Floats:
        smooth = gaussian_filter(values, DEVIATION, radius=radius, axes=(1, 2))
        return np.asarray(smooth[:, inside, inside], np.float64)

    mean_x, mean_r = mean(x), mean(r)
    variance_x, variance_r = mean(x * x) - mean_x**2, mean(r * r) - mean_r**2
    covariance = mean(x * r) - mean_x * mean_r
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    likeness = (2 * mean_x * mean_r + c1) * (2 * covariance + c2)
    scale = (mean_x**2 + mean_r**2 + c1) * (variance_x + variance_r + c2)
    return float(np.mean(likeness / scale))
