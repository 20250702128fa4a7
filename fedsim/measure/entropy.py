"""The bits that an ideal entropy coder would need for an update, and the sums that this takes.

Sums over large vectors run in float64, in one thread and in a fixed order. ``np.dot`` and
``np.linalg.norm`` start BLAS threads on large arrays: their number changes the last bits, and where
clients already occupy every core they wait for one, milliseconds for a sum that takes tens of
microseconds. Blocks that fit the processor's cache are faster than whole arrays too, whose copies
would go through fresh memory every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

# Elements. Fixed, because the last digits of sums depend on it.
BLOCK = 2**15

# What quantisation is to lose: |u - step q| / |u|. And how closely the step meets it, relatively.
LOSS = 0.1
TOLERANCE = 1e-3

# Large updates take three tries and the strangest small ones some twenty; no search takes more.
TRIES = 100


def entropy_bits(update: np.ndarray, *, norm: float) -> float | None:
    """Return the empirical entropy of an update that is quantised at a relative error of 0.1.

    With u the update, every coordinate is rounded to q = round(u / step); the step, the same for
    all, is the one for which |u - step q| / |u| = ``LOSS``, see :func:`quantisation_step`. The
    result is n H(q) with H(q) = - sum_k p_k log2 p_k, where p_k is the share of coordinates that
    have the value k: the bound of Shannon (1948) for a coder that knows the shares and takes the
    coordinates for independent. It does not capture the table of shares, nor what a coder could
    gain from where the zeros lie.

    Args:
        update: (coordinates,), float32.
        norm: its Euclidean norm, in float64.

    Returns:
        Bits, at least 0; 0.0 for a zero or empty update; None where the norm is not finite.
    """
    if not math.isfinite(norm):
        return None
    if norm == 0:
        return 0.0
    scale = 1 / quantisation_step(update, norm)
    # |q| <= 5 sqrt(n), as step >= 0.2 |u| / sqrt(n) and |u_i| <= |u|.
    q = np.empty(update.size, np.int32)
    for i, block in enumerate(blocks(update)):
        q[i * BLOCK : i * BLOCK + block.size] = np.rint(block * scale)
    counts = np.bincount(q - q.min())  # a short table, by that bound
    counts = counts[counts > 0].astype(np.float64)
    return float(np.sum(counts * np.log2(update.size / counts)))


def quantisation_step(update: np.ndarray, norm: float) -> float:
    """Return the step at which rounding loses ``LOSS`` of the norm, to 0.1% of that loss.

    The error is a continuous function of the step, though not a monotone one, so that between a
    step that loses at most ``LOSS`` and one that loses more there is one sought, and the search
    ends. No coordinate loses more than step / 2, which puts the first at 2 ``LOSS`` |u| / sqrt(n);
    a step above 2 max |u_i| loses everything. The first try is the step of a smooth density, whose
    error is step / sqrt(12) a coordinate; the next ones follow the secant of log error over log
    step; where that leaves the bracket, the bracket is halved. Nothing is drawn: equal updates give
    equal steps.

    Args:
        update: (coordinates,), float32, finite and not all zero.
        norm: its Euclidean norm.
    """
    # Logarithms of steps, and of errors relative to the one sought, so that 0 is sought.
    low = math.log(2 * LOSS * norm / math.sqrt(update.size))
    high = math.log(3 * float(np.abs(update).max()))
    here, slope = low + math.log(3) / 2, 1.0
    last: tuple[float, float] | None = None
    for _ in range(TRIES):
        if not low < here < high:
            here = (low + high) / 2
        relative = rounding_error(update, math.exp(here)) / (LOSS * norm)
        if abs(relative - 1) <= TOLERANCE:
            break
        low, high = (here, high) if relative < 1 else (low, here)
        error = math.log(max(relative, 1e-9))
        if last is not None and here != last[0]:
            slope = (error - last[1]) / (here - last[0])
        last = (here, error)
        here = here - error / slope if slope > 0 else low
    return math.exp(here)


def rounding_error(update: np.ndarray, step: float) -> float:
    """Return |u - step round(u / step)|, in float64."""
    total = 0.0
    for block in blocks(update):
        block *= 1 / step
        block -= np.rint(block)
        total += float(np.einsum("i,i->", block, block))
    return step * math.sqrt(total)


def blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array in consecutive parts of ``BLOCK`` elements, copied to float64.

    Args:
        values: any floating type and shape, taken as flat.
    """
    flat = values.ravel()
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK].astype(np.float64)


def squared_norm(values: np.ndarray) -> float:
    """Return the sum of squares, in float64, infinite or NaN without a warning.

    Args:
        values: as for :func:`blocks`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return float(sum(np.einsum("i,i->", block, block) for block in blocks(values)))
