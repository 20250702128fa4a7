"""Columns of a table as features: numbers as they are, text and booleans as categories."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedsim.data.dataset import Floats
from fedsim.data.form import Raw
from fedsim.data.rows import Rows, as_float32, check_finite, standardization, standardized
from fedsim.data.source import Source
from fedsim.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

# One column becomes so many at most: beyond it, text is names or prose rather than categories.
MAX_CATEGORIES = 1000
NUMBERS = ("integer", "floating", "mixed-integer-float")
CATEGORIES = ("string", "boolean", "categorical")


def table_features(train: Rows, test: Rows, source: Source) -> tuple[Floats, Floats]:
    """Return both parts' columns as float32, in the training part's order.

    Text and booleans become one column per category of the training part, 1 where a row has it;
    a category that only the test part has is 0 everywhere. ``source.missing = "impute"`` fills
    gaps with the training part's median (numbers) or most frequent category, and
    ``source.standardize`` brings columns of numbers to mean 0 and deviation 1 over it.

    Returns:
        Arrays of shape (n, features) and (m, features).

    Raises:
        DataError: gaps, where they are refused, or columns that differ or cannot be read.
    """
    _check_same_columns(train, test)
    if source.missing != "impute":
        _refuse_missing(train, test)
    columns = []
    for name in train.features.columns:
        place = f"{train.place}, column {name!r}"
        kind = _kind(train.features[name], place)
        # An entirely empty test column has no kind of its own.
        if test.features[name].notna().any() and _kind(test.features[name], place) != kind:
            raise DataError(f"{test.place}, column {name!r}: is not {kind}, as in {train.place}")
        if train.features[name].isna().all():
            raise DataError(f"{place}: no training example has a value; remove the column")
        convert = _numbers if kind == "numbers" else _one_hot
        columns.append(convert(train.features[name], test.features[name], source, place))
    return (
        np.concatenate([column for column, _ in columns], axis=1),
        np.concatenate([column for _, column in columns], axis=1),
    )


def raw_table(train: Rows, source: Source) -> Raw:
    """Return what another table has to hold to become features like those of a training part.

    Only columns of numbers without gaps can be brought along: what text becomes, and what gaps are
    filled with, depends on rows that the other table's owner does not have.
    """
    problem = ""
    shifts: list[float] = []
    spreads: list[float] = []
    if source.missing == "impute":
        problem = 'data.missing = "impute" fills gaps from rows that only the whole table has'
    for name in train.features.columns:
        column = train.features[name]
        if _kind(column, train.place) != "numbers":
            problem = f"column {name!r} holds text or booleans; write it as numbers"
        if problem:
            return Raw(dtype="float32", scale=1.0, label=source.label, problem=problem)
        if source.standardize:
            shift, spread = standardization(_as_float64(column)[:, np.newaxis])
            shifts, spreads = [*shifts, float(shift[0])], [*spreads, float(spread[0])]
    return Raw(
        dtype="float32",
        scale=1.0,
        label=source.label,
        columns=tuple(train.features.columns),
        shift=tuple(shifts),
        spread=tuple(spreads),
    )


def _check_same_columns(train: Rows, test: Rows) -> None:
    here, there = set(train.features.columns), set(test.features.columns)
    if here != there:
        differing = ", ".join(map(repr, sorted(here ^ there)))
        raise DataError(f"{test.place}: its columns are not those of {train.place}: {differing}")


def _refuse_missing(train: Rows, test: Rows) -> None:
    gaps = train.features.isna().sum() + test.features.isna().sum()
    if gaps.any():
        listed = ", ".join(f"{name!r} ({count})" for name, count in gaps[gaps > 0].items())
        places = " and ".join(sorted({train.place, test.place}))
        raise DataError(
            f'{places}: missing cells in {listed}; fill them in, or set data.missing = "impute"'
        )


def _kind(column: pd.Series[Any], place: str) -> str:
    import pandas as pd

    inferred = pd.api.types.infer_dtype(column, skipna=True)
    if inferred in NUMBERS:
        return "numbers"
    if inferred in CATEGORIES or column.isna().all():
        return "categories"
    raise DataError(f"{place}: holds {inferred}; numbers, text and booleans are read")


def _numbers(
    train: pd.Series[Any], test: pd.Series[Any], source: Source, place: str
) -> tuple[Floats, Floats]:
    parts: list[npt.NDArray[np.float64]] = []
    median = np.nanmedian(_as_float64(train))
    for part in (train, test):
        values = _as_float64(part)
        filled = np.where(np.isnan(values), median, values)
        check_finite(filled, place)
        parts.append(filled[:, np.newaxis])
    x_train, x_test = standardized(*parts) if source.standardize else parts
    return as_float32(x_train, place), as_float32(x_test, place)


def _as_float64(column: pd.Series[Any]) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return values


def _one_hot(
    train: pd.Series[Any], test: pd.Series[Any], source: Source, place: str
) -> tuple[Floats, Floats]:
    counts = Counter(str(value) for value in train.dropna())
    if len(counts) > MAX_CATEGORIES:
        raise DataError(
            f"{place}: {len(counts)} different texts are more than the {MAX_CATEGORIES} that "
            "become a column each; remove the column, or make it numbers"
        )
    position = {category: at for at, category in enumerate(sorted(counts))}
    most_frequent = max(sorted(counts), key=counts.__getitem__)
    parts = []
    for part in (train, test):
        values = zip(part, part.isna(), strict=True)
        texts = (most_frequent if gap else str(value) for value, gap in values)
        at = np.array([position.get(text, len(position)) for text in texts])
        # The row past the identity's last is all zeros: a category that training does not have.
        parts.append(np.eye(len(position) + 1, len(position), dtype=np.float32)[at])
    return parts[0], parts[1]
