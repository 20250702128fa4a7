"""NumPy archives: the features ``x``, their labels, and what else is named."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.data.dataset import Features
from fedsim.data.form import Raw
from fedsim.data.rows import Rows, as_float32, check_finite, standardization, standardized
from fedsim.data.source import Source, reading
from fedsim.errors import DataError, nearest

Arrays = dict[str, npt.NDArray[Any]]


def read_npz(source: Source) -> tuple[Rows, Rows | None]:
    """Read ``x``, the labels (``source.label``, or ``y``) and the client ids where named.

    The archive's own test part, if it has one, is ``x_test`` with ``<label>_test``. Tables have
    the shape (n, features), images (n, height, width) or (n, channels, height, width). Values of
    uint8 are taken for pixels and divided by 255; all other numbers are taken as they are.

    Raises:
        DataError: an array is missing, holds Python objects, or does not fit the others.
    """
    label = source.label or "y"
    if source.test_path:
        raise DataError(
            f"data.test_path = {source.test_path!r}: an .npz holds its own test part; save it in "
            f"{source.path} as x_test and {label}_test"
        )
    path = Path(source.path).expanduser()
    test_names = ("x_test", f"{label}_test")
    named = ["x", label, source.client] if source.client else ["x", label]
    arrays = load_arrays(path, named, test_names)
    train = _rows(arrays, "x", label, source.client, str(path))
    test = _rows(arrays, *test_names, "", str(path)) if "x_test" in arrays else None
    return train, test


def array_features(train: Rows, test: Rows, source: Source) -> tuple[Features, Features]:
    """Return both parts' features: uint8 as it is, all else as float32, images with channels.

    Raises:
        DataError: the parts differ, or hold what is no finite number.
    """
    x_train, x_test = train.features, test.features
    pixels = x_train.dtype == np.uint8
    if x_train.shape[1:] != x_test.shape[1:] or pixels != (x_test.dtype == np.uint8):
        raise DataError(
            f"{train.place}: x holds {x_train.dtype} of shape {x_train.shape[1:]} an example, but "
            f"x_test {x_test.dtype} of {x_test.shape[1:]}; save both alike"
        )
    if source.standardize:
        if x_train.ndim != 2:
            raise DataError(
                f"data.standardize = true: is for tables, but x of {train.place} holds images of "
                f"shape {x_train.shape[1:]}"
            )
        check_finite(x_train, f"{train.place}, x")
        check_finite(x_test, f"{test.place}, x_test")
        x_train, x_test = standardized(x_train, x_test)
    if x_train.dtype != np.uint8:
        x_train = as_float32(x_train, f"{train.place}, x")
        x_test = as_float32(x_test, f"{test.place}, x_test")
    if x_train.ndim == 3:
        return x_train[:, np.newaxis], x_test[:, np.newaxis]
    return x_train, x_test


def raw_arrays(train: Rows, source: Source) -> Raw:
    """Return what another archive has to hold to become features like those of a training part."""
    pixels = train.features.dtype == np.uint8 and not source.standardize
    raw = Raw(
        dtype="uint8" if pixels else "float32",
        scale=1 / 255 if pixels else 1.0,
        label=source.label or "y",
    )
    if not source.standardize:
        return raw
    shift, spread = standardization(train.features)
    return replace(raw, shift=tuple(shift.tolist()), spread=tuple(spread.tolist()))


def load_arrays(path: Path, needed: Sequence[str], pair: Sequence[str] = ()) -> Arrays:
    """Load the needed arrays, and the pair if any of the two is there."""
    with reading(path), path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path}: is empty, truncated, or no .npz archive")
        try:
            archive = np.load(file, allow_pickle=False)
            names = [*needed, *pair] if set(pair) & set(archive.files) else needed
            for name in names:
                if name not in archive.files:
                    raise DataError(
                        f"{path}: has no array {name!r}; {nearest(name, archive.files)}"
                    )
            return {name: np.asarray(archive[name]) for name in names}
        except (ValueError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); save plain arrays of numbers or text, which "
                "need no pickle"
            ) from error


def _rows(arrays: Arrays, x_name: str, label: str, client: str, place: str) -> Rows:
    x = arrays[x_name]
    if x.dtype.kind not in "buif" or x.ndim not in (2, 3, 4):
        raise DataError(
            f"{place}: {x_name} is {x.dtype} of shape {x.shape}; save numbers of shape "
            "(n, features), (n, height, width) or (n, channels, height, width)"
        )
    if x.size == 0:
        raise DataError(f"{place}: {x_name} of shape {x.shape} holds no examples")
    for name in (label, client) if client else (label,):
        if arrays[name].shape != x.shape[:1]:
            raise DataError(
                f"{place}: {name} has shape {arrays[name].shape}, but {x_name} holds {len(x)} "
                f"examples; save {name} with shape ({len(x)},)"
            )
    return Rows(
        place=place,
        features=x,
        labels=arrays[label],
        clients=arrays[client] if client else None,
    )
