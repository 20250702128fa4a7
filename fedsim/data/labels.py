"""Labels and client ids: from what a file holds to codes from 0, and back to names."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.data.dataset import Ints
from fedsim.errors import DataError

Values = npt.NDArray[Any]


def encode(values: Values, place: str) -> tuple[Ints, tuple[str, ...]]:
    """Number the distinct values from 0 in sorted order, and name them.

    Args:
        values: shape (n,): whole numbers (sparse or negative ones too), booleans or text.
        place: what the error calls the values, such as ``"a.csv, column 'y'"``.

    Raises:
        DataError: values of another type, fractions, or missing ones.
    """
    distinct, codes = np.unique(_plain(values, place), return_inverse=True)
    return codes.astype(np.int64), tuple(str(value) for value in distinct.tolist())


def encode_as(values: Values, names: tuple[str, ...], place: str) -> Ints:
    """Number values by the names that :func:`encode` found in the training part.

    Raises:
        DataError: as in :func:`encode`, or a value that the training part does not have.
    """
    codes, found = encode(values, place)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise DataError(
            f"{place}: {', '.join(map(repr, unknown[:5]))} does not occur in the training part, "
            f"which has {', '.join(map(repr, names[:10]))}"
        )
    positions = {name: position for position, name in enumerate(names)}
    return np.array([positions[name] for name in found], np.int64)[codes]


def check_classes(labels: Values, classes: int, place: str) -> Ints:
    """Return labels as int64, once they are known to lie in [0, classes).

    Raises:
        DataError: a label out of range; names it and its position.
    """
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise DataError(
            f"{place}: label {labels[outside[0]]} of example {outside[0]} is not in "
            f"0..{classes - 1}; this is another dataset, or the file is corrupt"
        )
    return labels.astype(np.int64)


def check_varied(labels: Ints, names: tuple[str, ...], place: str) -> None:
    """Raise a DataError if the training labels are all the same: there is nothing to learn."""
    if labels.min() == labels.max():
        raise DataError(
            f"{place}: all {len(labels)} examples have label {names[labels[0]]!r}; classification "
            "needs two classes or more"
        )


def _plain(values: Values, place: str) -> Values:
    """Return values as a sortable array of int, bool or text."""
    if values.dtype == object and all(isinstance(value, str) for value in values):
        return values.astype(str)
    if values.dtype.kind in "biuU":
        return values
    if values.dtype.kind != "f":
        raise DataError(
            f"{place}: holds values of type {values.dtype}; whole numbers, text or booleans are "
            "read"
        )
    bad = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
    if len(bad):
        raise DataError(
            f"{place}: holds {values[bad[0]]} in example {bad[0]}; whole numbers, text or booleans "
            "are read, none of them missing"
        )
    return values.astype(np.int64)
