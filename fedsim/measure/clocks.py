"""Clocks around a piece of work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Spent:
    """Seconds that a block took; zero until it has ended."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


@contextmanager
def spent() -> Iterator[Spent]:
    """Measure the block: CPU time of this thread alone, and wall time, on monotonic clocks.

    Work that the block hands to other threads is missed, which is why clients train with one.
    """
    seconds = Spent()
    wall, cpu = time.perf_counter(), time.thread_time()
    try:
        yield seconds
    finally:
        seconds.cpu_seconds = time.thread_time() - cpu
        seconds.wall_seconds = time.perf_counter() - wall
