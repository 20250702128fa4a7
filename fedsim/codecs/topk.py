"""Top-k sparsification: the largest magnitudes exactly, and zero for the rest.

Aji and Heafield 2017; Stich et al. 2018. What is left out is the caller's to keep and to add to
the next update (error feedback): the residual is meant - decoded.
"""

from __future__ import annotations

import math

import numpy as np

from fedsim.codecs.body import Arrays, Body, count, split, vector, wide
from fedsim.errors import CodecError


def encode(arrays: Arrays, *, fraction: float) -> list[np.ndarray]:
    """Keep k = max(1, ceil(fraction x n)) of the n coordinates of all arrays together.

    The columns: k; the kept values, exactly; where they stand, see :func:`positions_encode`.

    Args:
        arrays: floating-point arrays, finite.
        fraction: share of the coordinates that is kept, in (0, 1].

    Raises:
        CodecError: another fraction.
    """
    x = vector(arrays)
    kept = largest(x, kept_count(x.size, fraction))
    number = np.array([kept.size], np.uint64)
    return [number, x[kept], *positions_encode(kept, x.size)]


def decode(body: Body, like: Arrays) -> dict[str, np.ndarray]:
    """Read what :func:`encode` wrote.

    Raises:
        CodecError: numbers that no encoder writes.
    """
    n = count(like)
    k = int(body.take(np.uint64, 1)[0])
    if k > n:
        raise CodecError(f"payload: {k} coordinates of a model of {n}; ask for it again")
    x = np.zeros(n, wide(like))
    values = body.take(x.dtype, k)
    x[positions_decode(body, k, n)] = values
    return split(x, like)


def size(like: Arrays, *, fraction: float) -> int:
    """Count the bytes of the columns; it never falls as the fraction grows."""
    n = count(like)
    k = kept_count(n, fraction)
    return 8 + k * wide(like).itemsize + sum(position_bytes(k, n, low_bits(k, n)))


def kept_count(n: int, fraction: float) -> int:
    """Return max(1, ceil(fraction x n)), and 0 of none."""
    if not 0 < fraction <= 1:
        raise CodecError(f"topk_fraction = {fraction}: must be above 0 and at most 1")
    return min(n, max(1, math.ceil(fraction * n)))


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the k largest magnitudes, rising; of equal ones the lower indices."""
    if k == x.size:
        return np.arange(k)
    magnitudes = np.abs(x)
    smallest = np.partition(magnitudes, x.size - k)[x.size - k]
    chosen = magnitudes > smallest
    missing = k - np.count_nonzero(chosen)
    chosen[np.flatnonzero(magnitudes == smallest)[:missing]] = True
    return np.flatnonzero(chosen)


def positions_encode(indices: np.ndarray, n: int) -> list[np.ndarray]:
    """Return k rising indices below n as two strings of bits (Elias 1974, Fano 1971).

    The lowest b bits of each index stand as they are, the lowest first. The upper ones never fall,
    and are written in unary: bit (index >> b) + i is set for the i-th index. That takes
    k b + k + ((n - 1) >> b) bits whatever the indices are, so b is chosen from k and n alone. For
    a tenth of the coordinates it is 5.25 bits an index, where the entropy is 4.69. Where b = 0
    the second string is the plain map of n bits.
    """
    k, b = indices.size, low_bits(indices.size, n)
    lows = (indices[:, None] >> np.arange(b)) & 1
    marks = np.zeros(mark_bits(k, n, b), np.uint8)
    marks[(indices >> b) + (np.arange(k) if b else 0)] = 1
    return [np.packbits(lows.astype(np.uint8)), np.packbits(marks)]


def positions_decode(body: Body, k: int, n: int) -> np.ndarray:
    """Return the indices that :func:`positions_encode` wrote.

    Raises:
        CodecError: they are not k rising indices below n.
    """
    b = low_bits(k, n)
    low_bytes, mark_bytes = position_bytes(k, n, b)
    lows = np.unpackbits(body.take(np.uint8, low_bytes), count=k * b).reshape(k, b)
    marks = np.flatnonzero(np.unpackbits(body.take(np.uint8, mark_bytes)))
    if marks.size == k:
        highs = marks - (np.arange(k) if b else 0)
        indices = (highs << b) + lows @ (1 << np.arange(b))
        if k == 0 or (indices[-1] < n and np.all(np.diff(indices) > 0)):
            return indices
    raise CodecError(f"payload: not {k} rising positions below {n}; ask for it again")


def low_bits(k: int, n: int) -> int:
    """Return the number of lowest bits, b, with which the positions take the fewest bytes."""
    return min(range(max(1, n.bit_length())), key=lambda b: sum(position_bytes(k, n, b)))


def position_bytes(k: int, n: int, b: int) -> tuple[int, int]:
    """Count the bytes of the lowest b bits of k indices below n, and of the upper ones."""
    return (k * b + 7) // 8, (mark_bits(k, n, b) + 7) // 8


def mark_bits(k: int, n: int, b: int) -> int:
    """Count the bits of the upper bits in unary."""
    return k + (max(n - 1, 0) >> b) if b else n
