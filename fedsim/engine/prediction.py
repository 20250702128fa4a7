"""How long a block will take, and therefore which blocks travel together.

None of this changes a result: it decides where and when a block runs, never what it returns.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

HISTORY = 128  # blocks that the model is fitted to: bounded, and it forgets
SHORT_SECONDS = 0.06  # a round with less work for each worker is dealt out in one go
SMALLEST_SECONDS = 0.004  # of a unit in a longer round: a call costs half a millisecond
LARGEST_SECONDS = 1.0  # so that a client that hangs, or kills its worker, takes few with it


class CostModel:
    """Predicts a block's seconds as ``a + b . work`` with a, b >= 0, fitted to measured blocks.

    The fit minimises the *relative* error: a block that took a thousand times longer than the
    others, because something was compiled in it, counts as one that is wrong by its own size.
    """

    def __init__(self) -> None:
        self._blocks: deque[tuple[tuple[float, ...], float]] = deque(maxlen=HISTORY)
        self._coefficients: npt.NDArray[np.float64] | None = None

    def observe(self, work: tuple[float, ...], seconds: float) -> None:
        """Add a block that was measured."""
        if self._blocks and len(self._blocks[-1][0]) != len(work):
            self._blocks.clear()  # another app's features, or the same app's in another version
        self._blocks.append((work, max(seconds, 1e-6)))
        self._coefficients = None

    def predict(self, works: Sequence[tuple[float, ...]]) -> list[float] | None:
        """Return the seconds of blocks, or None as long as none like them was measured."""
        if not self._blocks or any(len(work) != len(self._blocks[-1][0]) for work in works):
            return None
        if self._coefficients is None:
            rows = np.array([(1.0, *work) for work, _ in self._blocks])
            seconds = np.array([seconds for _, seconds in self._blocks])
            self._coefficients = non_negative_fit(rows / seconds[:, None], np.ones(len(rows)))
        seconds = np.array([(1.0, *work) for work in works]) @ self._coefficients
        return [float(s) for s in seconds]


def non_negative_fit(
    rows: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return least-squares coefficients (one a column), none below 0.

    Columns whose coefficient comes out negative are left out, the most negative first; for the
    two or three columns here that is as good as the exact active-set method.
    """
    scale = np.abs(rows).max(axis=0)
    columns = [i for i in range(rows.shape[1]) if scale[i] > 0]
    coefficients = np.zeros(rows.shape[1])
    while columns:
        fitted = np.linalg.lstsq(rows[:, columns] / scale[columns], targets, rcond=None)[0]
        if fitted.min() >= 0:
            coefficients[columns] = fitted / scale[columns]
            break
        del columns[int(fitted.argmin())]
    return coefficients


def plan(costs: Sequence[float], workers: int, *, in_seconds: bool) -> list[list[int]]:
    """Return which blocks travel together, as lists of places in ``costs``; send the first first.

    Args:
        costs: what each block costs, >= 0.
        workers: how many there are.
        in_seconds: whether the costs are seconds, or only in proportion to them.
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    total = sum(costs)
    if in_seconds and total < SHORT_SECONDS * workers:
        return evenly(costs, order, workers)
    smallest, largest = (SMALLEST_SECONDS, LARGEST_SECONDS) if in_seconds else (0.0, np.inf)
    units: list[list[int]] = []
    cost = size = 0.0
    for i in order:
        if not units or cost + costs[i] > size:
            # Half of what is left, shared evenly: large units first, small ones at the end, with
            # which the workers finish together however wrong the predictions are.
            size = min(max(smallest, total / (2 * workers)), largest)
            units.append([])
            cost = 0.0
        units[-1].append(i)
        cost += costs[i]
        total -= costs[i]
    return units


def evenly(costs: Sequence[float], order: Sequence[int], workers: int) -> list[list[int]]:
    """Return one unit for each worker: the largest block first, to whoever has least."""
    loads = [(0.0, worker) for worker in range(min(workers, len(order)))]
    units: list[list[int]] = [[] for _ in loads]
    for i in order:
        load, worker = heapq.heappop(loads)
        units[worker].append(i)
        heapq.heappush(loads, (load + max(costs[i], 1e-9), worker))
    return units
