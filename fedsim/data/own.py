"""A client's own file beside a card: its columns and labels, brought into the card's form.

What is wrong with such a file is told to the server too, so no message here holds one of its
values, nor a name that the card does not hold.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.data.card import CARD, Card
from fedsim.data.dataset import Features, Floats, Ints
from fedsim.data.form import Form, Raw, shortened
from fedsim.data.labels import encode
from fedsim.data.npz import load_arrays
from fedsim.data.rows import as_float32, check_finite
from fedsim.data.table import load_table
from fedsim.errors import DataError

log = logging.getLogger("flwr.fedsim")

OWN_FORMATS = (".csv", ".parquet", ".npz")


@dataclass(frozen=True)
class _Rows:
    features: npt.NDArray[Any]
    labels: npt.NDArray[Any]


def read_own(path: Path, card: Card) -> tuple[Features, Ints]:
    """Read a client's own examples and labels, in the form that the card asks for.

    A table (.csv, .parquet) holds the card's columns, in any order and among any others, as numbers
    without gaps; an .npz the arrays ``x`` and the labels.

    Raises:
        DataError: the card carries no such file, or the file does not hold what the card asks for.
    """
    raw = card.raw
    if raw is None:
        raise DataError(
            f"{path}: the card beside it is of examples that were dealt; put the card for clients' "
            f"own files there, as {CARD}"
        )
    if raw.problem:
        raise DataError(f"{path}: cannot stand in for the dataset: {raw.problem}")
    archive = path.suffix.lower() == ".npz"
    rows = _arrays(path, raw, card.form) if archive else _table(path, raw)
    return _features(rows.features, raw, path), _labels(rows.labels, card.form, path)


@contextmanager
def _discreet(path: Path) -> Iterator[None]:
    """Leave out of an error what a reader quotes of the file: it goes to the server."""
    try:
        yield
    except DataError as error:
        log.exception("%s cannot be read", path)
        raise DataError(
            f"{path}: is no readable {path.suffix} file, or lacks what the card asks for; the "
            "node's log says more"
        ) from error


def _table(path: Path, raw: Raw) -> _Rows:
    if not raw.columns:
        raise DataError(f"{path}: the card names no columns; save the arrays x and y in an .npz")
    with _discreet(path):
        table = load_table(path)
    names = [str(name) for name in table.columns]
    for name in (*raw.columns, raw.label):
        if names.count(name) != 1:
            found = "two columns" if name in names else "no column"
            raise DataError(f"{path}: has {found} called {name!r}; the card asks for one")
    if not len(table):
        raise DataError(f"{path}: holds column names but no rows")
    table = table.set_axis(names, axis=1)
    for name in (*raw.columns, raw.label):
        if gaps := int(table[name].isna().sum()):
            first = int(np.flatnonzero(table[name].isna())[0]) + 1
            raise DataError(
                f"{path}, column {name!r}: {gaps} of {len(table)} rows have no value, first row "
                f"{first} after the column names; fill them in or remove them"
            )
    for name in raw.columns:
        if table[name].dtype.kind not in "iuf":
            raise DataError(f"{path}, column {name!r}: does not hold numbers alone")
    return _Rows(table[list(raw.columns)].to_numpy(np.float64), table[raw.label].to_numpy())


def _arrays(path: Path, raw: Raw, form: Form) -> _Rows:
    with _discreet(path):
        arrays = load_arrays(path, ("x", raw.label))
    x, labels = arrays["x"], arrays[raw.label]
    if x.ndim == 3:
        x = x[:, np.newaxis]
    if x.shape[1:] != form.input_shape or not len(x):
        raise DataError(
            f"{path}: x has the shape {arrays['x'].shape}; the card asks for "
            f"{('n', *form.input_shape)}"
        )
    if labels.shape != x.shape[:1]:
        raise DataError(f"{path}: {raw.label} has shape {labels.shape} for {len(x)} examples")
    pixels = raw.dtype == "uint8"
    if x.dtype.kind not in "buif" or (not raw.shift and (x.dtype == np.uint8) != pixels):
        wanted = "uint8" if pixels else "numbers other than uint8, which are pixels"
        raise DataError(f"{path}: x is {x.dtype}; the card asks for {wanted}")
    return _Rows(x, labels)


def _features(values: npt.NDArray[Any], raw: Raw, path: Path) -> Features:
    features: Any = values
    if raw.shift:
        check_finite(features, str(path))
        features = (features - np.array(raw.shift)) / np.array(raw.spread)
    if raw.dtype != "uint8":
        features = as_float32(features, str(path))
    if not raw.offset:
        return features  # type: ignore[no-any-return]
    shifted: Floats = np.multiply(features, np.float32(raw.scale), dtype=np.float32)
    return shifted + np.float32(raw.offset)


def _labels(values: npt.NDArray[Any], form: Form, path: Path) -> Ints:
    try:
        codes, found = encode(values, f"{path}, labels")
    except DataError:  # whose text holds a value
        raise DataError(
            f"{path}: labels are whole numbers, text or booleans, none of them missing"
        ) from None
    positions = {name: position for position, name in enumerate(form.class_names)}
    unknown = np.array([name not in positions for name in found])
    if unknown.any():
        rows = np.flatnonzero(unknown[codes])
        raise DataError(
            f"{path}: {len(rows)} of {len(codes)} labels are none of the card's classes, "
            f"{shortened(', '.join(form.class_names))}; first row {rows[0] + 1}"
        )
    return np.array([positions[name] for name in found], np.int64)[codes]
