"""Clocks around a piece of work, and what the machine did besides."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NANOSECONDS = 1e-9
FIRST_LINE_BYTES = 256  # holds the longest first line of /proc/stat: ten counters of 20 digits


@dataclass
class Spent:
    """Seconds that a block took, each at least 0.

    None until it has ended, and where the clock stepped back or gave no number.
    """

    cpu_seconds: float | None = None
    wall_seconds: float | None = None


@dataclass
class Training:
    """Seconds that a block took, each at least 0, and the conditions under which it took them.

    ``waiting_seconds`` are of this thread: ready to run, and no core free. ``others_cpu_seconds``
    are of all other processes of the machine, on all its cores together. None: the system does
    not tell, or a clock stepped back. The figures are complete when the block has ended.
    """

    cpu_seconds: float | None = None
    wall_seconds: float | None = None
    waiting_seconds: float | None = None
    others_cpu_seconds: float | None = None


@contextmanager
def spent(*, all_threads: bool = False) -> Iterator[Spent]:
    """Measure the block: CPU time and wall time, on monotonic clocks.

    Args:
        all_threads: CPU time of the whole process, for work that runs in threads of its own, as
            XLA's does; otherwise of this thread alone, and work that it hands on is missed.
    """
    clock = time.process_time if all_threads else time.thread_time
    seconds = Spent()
    wall, cpu = time.perf_counter(), clock()
    try:
        yield seconds
    finally:
        seconds.cpu_seconds = elapsed(cpu, clock())
        seconds.wall_seconds = elapsed(wall, time.perf_counter())


@contextmanager
def training_clocks(proc: str = "/proc", *, all_threads: bool = False) -> Iterator[Training]:
    """Measure the block as :func:`spent` does, and what else ran while it did (Linux).

    ``waiting_seconds`` is exact. ``others_cpu_seconds`` is the machine's busy time less that of
    this process, all threads. The busy time moves in ticks of 10 ms, so that one block's figure
    may be off by a tick per core. What falls below 0 for that reason counts as 0, so that the sum
    over many short blocks is too high. Time that a hypervisor gave to other machines counts as
    busy.

    Args:
        proc: where the proc file system is mounted.
        all_threads: as for :func:`spent`; how long other threads wait for a core is not known.
    """
    training = Training()
    waited = None if all_threads else run_queue_seconds(proc)
    busy, own = busy_seconds(proc), time.process_time()
    try:
        with spent(all_threads=all_threads) as seconds:
            yield training
    finally:
        busy_after, own_after = busy_seconds(proc), time.process_time()
        waited_after = None if all_threads else run_queue_seconds(proc)
        training.cpu_seconds = seconds.cpu_seconds
        training.wall_seconds = seconds.wall_seconds
        if waited is not None and waited_after is not None:
            training.waiting_seconds = elapsed(waited, waited_after)
        if busy is not None and busy_after is not None:
            machine, process = elapsed(busy, busy_after), elapsed(own, own_after)
            if machine is not None and process is not None:
                training.others_cpu_seconds = max(0.0, machine - process)


def elapsed(before: float, after: float) -> float | None:
    """Return ``after - before``; None where a clock stepped back or gave no finite number.

    A coarse clock honestly gives 0 for a short block, so that 0 stays.
    """
    seconds = after - before
    return seconds if 0 <= seconds < math.inf else None


def run_queue_seconds(proc: str) -> float | None:
    """Return how long this thread has waited for a core so far; None if the system cannot tell.

    The second field of ``schedstat`` (Documentation/scheduler/sched-stats.rst of Linux). A kernel
    without these statistics gives zeros, also for the first, the time that the thread has run.
    """
    fields = read_start(f"{proc}/thread-self/schedstat").split()
    try:
        ran, waited = int(fields[0]), int(fields[1])
    except (IndexError, ValueError):
        return None
    return waited * NANOSECONDS if ran else None


def busy_seconds(proc: str) -> float | None:
    """Return how long the machine's cores have been busy so far; None if the system cannot tell.

    From the first line of ``stat`` (proc_stat(5)): user, nice, system, irq, softirq and steal.
    """
    fields = read_start(f"{proc}/stat").partition(b"\n")[0].split()
    if fields[:1] != [b"cpu"]:
        return None
    try:
        ticks = sum(map(int, [*fields[1:4], *fields[6:9]]))
    except ValueError:
        return None
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


def read_start(path: str) -> bytes:
    """Return the first bytes of a file; none if it cannot be read.

    Without Python's file objects, which take longer than the kernel.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, FIRST_LINE_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
