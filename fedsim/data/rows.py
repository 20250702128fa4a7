"""Examples as a user's file holds them, and the numeric steps that all file formats share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.data.dataset import Floats, Ints
from fedsim.data.labels import Values
from fedsim.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Examples of one part, training or test, before labels and features are numbers.

    Attributes:
        place: the file, for errors.
        features: n rows, as an array or as a pandas DataFrame.
        labels: shape (n,), as written.
        clients: shape (n,), as written; None without client ids.
    """

    place: str
    features: Any
    labels: Values
    clients: Values | None = None

    def take(self, indices: Ints) -> Rows:
        """Return the rows at ``indices``."""
        by_position = getattr(self.features, "iloc", self.features)
        return replace(
            self,
            features=by_position[indices],
            labels=self.labels[indices],
            clients=None if self.clients is None else self.clients[indices],
        )


def check_finite(values: npt.NDArray[Any], place: str) -> None:
    """Raise a DataError if a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise DataError(
            f"{place}: holds NaN, infinity, or numbers beyond float32; remove or replace them"
        )


def as_float32(values: npt.NDArray[Any], place: str) -> Floats:
    """Return values as float32; too large ones raise the DataError of :func:`check_finite`."""
    with np.errstate(over="ignore"):
        converted: Floats = values.astype(np.float32, copy=False)
    check_finite(converted, place)
    return converted


def standardized(
    train: npt.NDArray[Any], test: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Shift and scale each column to mean 0 and standard deviation 1 over the training part.

    Args:
        train: shape (n, columns), finite.
        test: shape (m, columns), finite; shares the training part's shift and scale.
    """
    shift, scale = standardization(train)
    return (train - shift) / scale, (test - shift) / scale


def standardization(
    train: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return what each column is shifted and divided by, both (columns,).

    A column that is constant in the training part is shifted alone.

    Args:
        train: shape (n, columns), finite.
    """
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    # A constant's mean is rounded, so its deviation need not be 0: compare the values themselves.
    constant = (train == train[0]).all(axis=0)
    shift = np.where(constant, train[0], mean)
    return shift, np.where(constant | (deviation == 0), 1.0, deviation)
