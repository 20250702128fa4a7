"""Codecs that treat each coordinate by itself: exact, float16, int8."""

from __future__ import annotations

import numpy as np

from fedsim.codecs.body import Arrays, Body, shaped
from fedsim.errors import CodecError

FLOAT16_MAX = float(np.finfo(np.float16).max)
INT8_MAX = 127


def exact_encode(arrays: Arrays) -> list[np.ndarray]:
    """Return the arrays as they are."""
    return list(arrays.values())


def exact_decode(body: Body, like: Arrays) -> dict[str, np.ndarray]:
    """Read arrays of the given shapes and types, bit for bit as they were sent."""
    return {name: shaped(body.take(array.dtype, array.size), array) for name, array in like.items()}


def exact_bytes(like: Arrays) -> int:
    """Count elements x bytes per element."""
    return sum(array.nbytes for array in like.values())


def float16_encode(arrays: Arrays) -> list[np.ndarray]:
    """Return the arrays in half precision, rounded to nearest, ties to even.

    The error of a coordinate u is at most 2^-11 |u|, or 2^-25 where that is less; magnitudes up to
    2^-25 = 3e-8 become 0.

    Raises:
        CodecError: a magnitude above 65504, the largest that float16 holds.
    """
    for name, array in arrays.items():
        largest = magnitude(array)
        if largest > FLOAT16_MAX:
            raise CodecError(
                f"{name}: a magnitude of {largest:g} does not fit codec float16, which ends at "
                f"{FLOAT16_MAX:g}; use int8 or none, and if training diverged, lower "
                "train.learning_rate"
            )
    return [array.astype(np.float16) for array in arrays.values()]


def float16_decode(body: Body, like: Arrays) -> dict[str, np.ndarray]:
    """Read what :func:`float16_encode` wrote."""
    return {name: shaped(body.take(np.float16, array.size), array) for name, array in like.items()}


def float16_bytes(like: Arrays) -> int:
    """Count 2 bytes per element."""
    return sum(2 * array.size for array in like.values())


def int8_encode(arrays: Arrays, *, rng: np.random.Generator) -> list[np.ndarray]:
    """Return, array by array, its largest magnitude and its coordinates in [-127, 127].

    Stochastic rounding (QSGD, Alistarh et al. 2017, section 3.1, with the maximum norm): with
    s = max|u| / 127, u / s is rounded up with the probability of its fractional part. So the mean
    of what is decoded is u, and the error of a coordinate is less than s.
    """
    columns: list[np.ndarray] = []
    for array in arrays.values():
        top = magnitude(array)
        # Draws of 24 bits and sums of 53: 127 plus the largest draw stays below 128.
        steps = np.divide(array.reshape(-1), top or 1.0, dtype=np.float64)
        steps *= INT8_MAX
        steps += rng.random(array.size, np.float32)
        rounded = np.floor(steps, out=steps).astype(np.int8)
        columns += [np.array([top], array.dtype), rounded]
    return columns


def int8_decode(body: Body, like: Arrays) -> dict[str, np.ndarray]:
    """Read what :func:`int8_encode` wrote; the largest magnitude comes back exactly."""
    levels = np.arange(256, dtype=np.uint8).view(np.int8) / INT8_MAX
    decoded: dict[str, np.ndarray] = {}
    for name, array in like.items():
        top = body.take(array.dtype, 1).astype(np.float64)
        table = (levels * top).astype(array.dtype)
        decoded[name] = table[body.take(np.uint8, array.size)].reshape(array.shape)
    return decoded


def int8_bytes(like: Arrays) -> int:
    """Count 1 byte per element and one number per array."""
    return sum(array.size + array.itemsize for array in like.values())


def magnitude(array: np.ndarray) -> float:
    """Return the largest magnitude in an array of finite numbers; 0 in an empty one."""
    return float(max(array.max(initial=0), -array.min(initial=0)))
