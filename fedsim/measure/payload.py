"""The size of an update, and how far it moved the model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def dense_bytes(arrays: Arrays) -> int:
    """Count elements x bytes per element: the payload without names, headers or framing."""
    return sum(array.nbytes for array in arrays.values())


def layer_norms(before: Arrays, after: Arrays) -> dict[str, float]:
    """Return the Euclidean norm of (after - before) for each array, summed in float64."""
    return {
        name: float(np.linalg.norm(np.subtract(after[name], value, dtype=np.float64)))
        for name, value in before.items()
    }


def total_norm(norms: Mapping[str, float]) -> float:
    """Return the Euclidean norm of the whole from the norms of its parts."""
    return math.hypot(*norms.values())
