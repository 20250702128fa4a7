"""Timings that can be believed: one pinned thread, intervals, and warnings where they are due."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from fedsim import units
from fedsim.measure.cores import allowed_cores, keep_on
from fedsim.measure.timings import Interval, Machine

CONFIDENCE = 0.95
RESAMPLES = 2000

# The limits of pyperf's "check" command.
LARGEST_DEVIATION = 0.1
LARGEST_DISTANCE = 0.5
SHORTEST_BLOCK_SECONDS = 1e-3


def median_interval(values: Sequence[float], rng: np.random.Generator) -> Interval:
    """Return the median of block means with its bootstrap percentile interval.

    The median, because a block in which something else ran is too long by any amount. The
    percentile interval (Efron, 1979), because SciPy's BCa is undefined where blocks are equal.

    Args:
        values: one for each block, at least one, finite.
        rng: draws the resamples.
    """
    data = np.asarray(values, dtype=np.float64)
    estimate = float(np.median(data))
    if len(data) < 2:
        return Interval(estimate=estimate, low=estimate, high=estimate)
    found = stats.bootstrap(
        (data,),
        np.median,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        random_state=rng,
    ).confidence_interval
    # SciPy interpolates between resamples: where all are equal, its last digit may differ.
    low, high = min(float(found.low), estimate), max(float(found.high), estimate)
    return Interval(estimate=estimate, low=low, high=high)


def instabilities(
    what: str, blocks: Mapping[str, Sequence[float]], shortest_seconds: float
) -> list[str]:
    """Say why timings may not repeat; the checks and limits are those of pyperf's ``check``.

    The relative standard deviation of the blocks reaches 10%; a block is 50% away from their
    mean; a block took less than 1 ms. A line for each check names the worst offender.

    Args:
        what: is timed, such as ``"forward"``.
        blocks: by name, the times of its blocks, two or more above 0, in any one unit.
        shortest_seconds: what the shortest of all blocks took.
    """
    data = {name: np.asarray(values, dtype=np.float64) for name, values in blocks.items()}
    deviation = {name: float(v.std(ddof=1) / v.mean()) for name, v in data.items()}
    distance = {name: float(abs(v / v.mean() - 1).max()) for name, v in data.items()}
    checks = (
        ("the standard deviation of the blocks is {} of their mean", deviation, LARGEST_DEVIATION),
        ("a block is {} away from the mean of the blocks", distance, LARGEST_DISTANCE),
    )
    found = []
    for text, shares, limit in checks:
        over = [name for name in sorted(shares, key=lambda n: -shares[n]) if shares[name] >= limit]
        if over:
            others = f" and {len(over) - 1} more" if len(over) > 1 else ""
            share = units.percent(shares[over[0]])
            found.append(f"{what}: {text.format(share)} ({over[0]}{others})")
    if shortest_seconds < SHORTEST_BLOCK_SECONDS:
        found.append(f"{what}: the shortest block took only {units.seconds(shortest_seconds)}")
    return found


@contextmanager
def pinned() -> Iterator[Machine]:
    """Compute with one thread on one core inside the block; afterwards all is as it was.

    The core is the last of those that the process may use: interrupts tend to go to the first.
    Where a thread cannot be kept on a core (outside Linux, or forbidden), ``pinned`` is None.
    """
    threads = torch.get_num_threads()
    cores = allowed_cores()
    core = keep_on({max(cores)}) if cores else None
    torch.set_num_threads(1)
    try:
        yield Machine(
            processor=processor(),
            cores=len(cores) or os.cpu_count() or 1,
            platform=platform.platform(),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            pinned=core,
        )
    finally:
        torch.set_num_threads(threads)
        if core is not None:
            keep_on(cores)


def here() -> Machine:
    """Describe the machine on which timings would be taken now, by this thread."""
    with pinned() as machine:
        return machine


def processor() -> str:
    """Name the processor; Python leaves that empty on most Linux systems, so ask the kernel."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def without_collections() -> Iterator[None]:
    """Keep Python's garbage collector out of the block, as ``timeit`` does."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
