"""What bounds a user's influence: an update is clipped to a norm, and noise is added to the sum.

    clip(u, C) = u min(1, C / ||u||)         with the Euclidean norm over all floating arrays
    sum_i clip(u_i, C) + N(0, (z C)^2)       in every coordinate

C is fixed, or follows a quantile of the clients' norms (Andrew et al., 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedsim.errors import PrivacyError
from fedsim.privacy.noise import NoiseSource

Arrays = Mapping[str, npt.NDArray[np.floating]]
Floats = npt.NDArray[np.float64]

# The weight of an update that is not clipped. A float32 times a whole number of so many bits is
# exact in float64, so that a sum does not depend on who multiplied (algorithms/sums.py).
UNIT = 2**24


def clip_weights(norms: Floats, clipping_norm: float) -> npt.NDArray[np.int64]:
    """Return floor(min(1, C / norm) 2^24), (clients,), by which whole updates are weighted.

    Rounding down keeps weight * norm / UNIT at C or below, to the last bit of float64, and takes
    less than norm / UNIT off it. What is not finite counts nothing, nor does an update
    whose norm is above 2^24 C.

    Args:
        norms: of the updates, (clients,), at least 0.
        clipping_norm: C, above 0; infinite: all weigh the same.

    Raises:
        PrivacyError: C is not a positive number.
    """
    if clipping_norm != math.inf:
        check_clipping_norm(clipping_norm)
    norms = np.asarray(norms, np.float64)
    weights = np.zeros(norms.shape, np.int64)
    finite = np.isfinite(norms)
    larger = finite & (norms > clipping_norm)
    weights[finite] = UNIT
    weights[larger] = np.floor(clipping_norm / norms[larger] * UNIT)
    return weights


def update_norm(arrays: Arrays) -> float:
    """Return the joint Euclidean norm of an update, summed in float64; 0 of no arrays at all."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (np.square(array, dtype=np.float64).sum() for array in arrays.values())
        return math.sqrt(sum(map(float, squares)))


def clip_update(arrays: Arrays, clipping_norm: float) -> dict[str, npt.NDArray[np.floating]]:
    """Return an update whose norm, as it stands in its arrays' own types, is at most C.

    Args:
        arrays: one client's update by name, 0-d arrays among them; not changed.
        clipping_norm: C, above 0.

    Returns:
        Arrays of the same names, shapes and types: those given where their norm is C or below,
        zeros where it is not finite.

    Raises:
        PrivacyError: C is not a positive number, or an array is not of floating point.
    """
    check_clipping_norm(clipping_norm)
    check_floating(arrays)
    norm = update_norm(arrays)
    if norm <= clipping_norm:
        return dict(arrays)
    if not math.isfinite(norm):
        return {name: np.zeros_like(array) for name, array in arrays.items()}
    factor = clipping_norm / norm
    # Rounding to the arrays' types can add that much again: then a little less, ever more.
    slack = max(float(np.finfo(array.dtype).eps) for array in arrays.values()) / 2
    while update_norm(clipped := scaled(arrays, factor)) > clipping_norm:
        factor *= max(0.0, 1 - slack)
        slack *= 2
    return clipped


def scaled(arrays: Arrays, factor: float) -> dict[str, npt.NDArray[np.floating]]:
    """Return arrays times a factor, multiplied in float64 and cast back once."""
    return {
        name: np.asarray(np.multiply(array, factor, dtype=np.float64)).astype(array.dtype)
        for name, array in arrays.items()
    }


def add_noise(arrays: Arrays, stddev: float, source: NoiseSource) -> dict[str, Floats]:
    """Return arrays, float64, with N(0, stddev^2) added to every coordinate.

    Args:
        arrays: by name; draws are made in their order.
        stddev: at least 0; of 0 nothing is drawn.
        source: where the noise comes from.

    Raises:
        PrivacyError: the deviation is not a number of at least 0, or an array is not floating.
    """
    if not (math.isfinite(stddev) and stddev >= 0):
        raise PrivacyError(f"noise of standard deviation {stddev}: it has to be finite, 0 or more")
    check_floating(arrays)
    if stddev == 0:
        return {name: array.astype(np.float64) for name, array in arrays.items()}
    noise = source.normal(sum(array.size for array in arrays.values()))
    noise *= stddev
    noised, first = {}, 0
    for name, array in arrays.items():
        drawn = noise[first : first + array.size].reshape(array.shape)
        noised[name] = np.add(array, drawn, dtype=np.float64, out=drawn)
        first += array.size
    return noised


@dataclass(frozen=True, kw_only=True)
class AdaptiveClipping:
    """The clipping norm that follows a quantile of the updates' norms.

    Algorithm 1 of Andrew et al. (2021), Differentially private learning with adaptive clipping:
    with b_i = 1 where client i's norm is at most C, and 0 elsewhere,

        b~ = 1/2 + (sum_i (b_i - 1/2) + N(0, sigma_b^2)) / m
        C <- C exp(-eta (b~ - gamma))

    where m clients are expected. Where exactly m take part this is (sum_i b_i + N) / m, as the
    algorithm is printed. Sampling by Poisson, the number that takes part is itself a secret, and a
    client more moves the sum of b_i by 1; the halves keep that at 1/2, on which the proof rests.

    Attributes:
        clipping_norm: C, above 0.
        target_quantile: gamma, in (0, 1): the share of clients that is not to be clipped.
        learning_rate: eta, at least 0.
        count_noise: sigma_b, at least 0, in clients.
    """

    clipping_norm: float
    target_quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            PrivacyError: a number is out of its range.
        """
        check_clipping_norm(self.clipping_norm)
        if not 0 < self.target_quantile < 1:
            raise PrivacyError(
                f"target_quantile = {self.target_quantile}: it has to be between 0 and 1, "
                "such as 0.5, the median"
            )
        for name in ("learning_rate", "count_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise PrivacyError(f"{name} = {value}: it has to be finite, 0 or more")

    def updated(
        self, *, count_below: int, clients: int, expected_clients: float, noise: float
    ) -> AdaptiveClipping:
        """Return the state after a round; this one stays, for a round that is done again.

        Args:
            count_below: clients whose norm is at most C, from 0 to ``clients``.
            clients: that took part, at least 0.
            expected_clients: m, above 0: sampling probability times registered clients.
            noise: a draw of the standard normal distribution.

        Raises:
            PrivacyError: the counts contradict each other, or no client is expected.
        """
        if not (0 <= count_below <= clients and expected_clients > 0):
            raise PrivacyError(
                f"{count_below} clients below the clipping norm, of {clients} where "
                f"{expected_clients} are expected: the clipping norm stays at {self.clipping_norm}"
            )
        halves = count_below - clients / 2 + self.count_noise * noise
        below = 0.5 + halves / expected_clients
        factor = math.exp(-self.learning_rate * (below - self.target_quantile))
        return replace(self, clipping_norm=self.clipping_norm * factor)


def default_count_noise(expected_clients: float) -> float:
    """Return sigma_b = m / 20, which Andrew et al. (2021) recommend for a cohort of m."""
    return expected_clients / 20


def delta_noise_multiplier(noise_multiplier: float, count_noise: float) -> float:
    """Return z_delta, the noise of the sum of updates that leaves room for the count's.

    Theorem 1 of Andrew et al. (2021): one round that publishes the sum with noise z_delta C and the
    count with noise sigma_b is as private as one that publishes a sum with noise z C, where

        z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)

    Args:
        noise_multiplier: z, at least 0; of 0 there is no guarantee, and no noise.
        count_noise: sigma_b, in clients.

    Raises:
        PrivacyError: z is not below 2 sigma_b: the count alone tells too much.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise PrivacyError(f"noise_multiplier = {noise_multiplier}: it has to be finite, 0 or more")
    if noise_multiplier == 0:
        return 0.0
    if noise_multiplier >= 2 * count_noise:
        raise PrivacyError(
            f"adaptive clipping with noise_multiplier = {noise_multiplier} and noise of "
            f"{count_noise:g} clients on its count: the multiplier has to be below twice that, "
            f"{2 * count_noise:g}. The count's noise is a twentieth of the expected cohort: expect "
            f"more than {10 * noise_multiplier:g} clients in a round, or take fixed clipping"
        )
    ratio = noise_multiplier / (2 * count_noise)
    return noise_multiplier / math.sqrt(1 - ratio * ratio)


def check_clipping_norm(clipping_norm: float) -> None:
    """Refuse a clipping norm that is not a positive number.

    Raises:
        PrivacyError: with the value and what to choose.
    """
    if not (math.isfinite(clipping_norm) and clipping_norm > 0):
        raise PrivacyError(
            f"clipping_norm = {clipping_norm}: it has to be finite and above 0, such as the median "
            "of the update norms of a run without privacy"
        )


def check_floating(arrays: Arrays) -> None:
    """Refuse arrays of whole numbers, which cannot be scaled by a factor.

    Raises:
        PrivacyError: with the array's name.
    """
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise PrivacyError(
                f"the update's array {name!r} is of {array.dtype}: only floating-point arrays can "
                "be clipped and noised; take it out of the update, or a model without it (a "
                "counter such as batch norm's)"
            )
