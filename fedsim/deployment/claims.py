"""Nodes that are started alike, one after another, and each becomes another client."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedsim.errors import EngineError

# Held for as long as this process lives: a claim ends with it, however it ends.
_HELD: list[int] = []


def claim_partition(directory: Path, partitions: int | None) -> int:
    """Return the smallest partition id that no other process has claimed, and claim it.

    Args:
        directory: shared by the nodes of one machine, and writable.
        partitions: how many there are; None for no limit.

    Raises:
        EngineError: all are taken.
    """
    directory.mkdir(parents=True, exist_ok=True)
    partition = 0
    while partitions is None or partition < partitions:
        lock = os.open(directory / str(partition), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            partition += 1
        else:
            _HELD.append(lock)
            return partition
    raise EngineError(f"all {partitions} clients are claimed in {directory}; start no more nodes")
