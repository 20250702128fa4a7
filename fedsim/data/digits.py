"""The 1,797 handwritten digits that scikit-learn carries: 8x8 pixels, nothing to fetch."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.source import Source, reading
from fedsim.data.split import hold_out
from fedsim.errors import DataError


def read_digits(source: Source) -> Dataset:
    """Read the UCI optical digits (Alpaydin & Kaynak 1998), the part in scikit-learn.

    Pixels count ink from 0 to 16. There is no test split: ``test_fraction`` is held out.

    Returns:
        Examples of shape (1, 8, 8).
    """
    rows = read_table()
    x = rows[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8)
    y = rows[:, -1].astype(np.int64)
    train, test = hold_out(y, source.test_fraction, "digits")
    return Dataset(
        name=source.dataset,
        x_train=x[train],
        y_train=y[train],
        x_test=x[test],
        y_test=y[test],
        classes=10,
        class_names=tuple("0123456789"),
        scale=1 / 16,
    )


def read_table() -> np.ndarray:
    """Return the 64 pixels and the label of each digit, (1797, 65), from scikit-learn's own file.

    Importing scikit-learn, which is what its reader takes, is seconds of a start.

    Raises:
        DataError: scikit-learn is not installed, or keeps the file elsewhere.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("data.dataset = 'digits': scikit-learn, which holds it, is not installed")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with reading(path), gzip.open(path, "rt", encoding="ascii") as lines:
        return np.loadtxt(lines, delimiter=",", dtype=np.int64)
