"""Which cores this thread may use."""

from __future__ import annotations

import os
import sys


def allowed_cores() -> set[int]:
    """Return the cores that this thread may use; empty where the system does not say."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else set()


def keep_on(cores: set[int]) -> int | None:
    """Keep this thread on some cores and return the last of them; None where that is refused."""
    try:
        if sys.platform == "linux":
            os.sched_setaffinity(0, cores)
            return max(cores)
    except OSError:
        pass
    return None
