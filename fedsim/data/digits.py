"""The 1,797 handwritten digits that scikit-learn carries: 8x8 pixels, nothing to fetch."""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.source import Source
from fedsim.data.split import hold_out


def read_digits(source: Source) -> Dataset:
    """Read the UCI optical digits (Alpaydin & Kaynak 1998), the part in scikit-learn.

    Pixels count ink from 0 to 16. There is no test split: ``test_fraction`` is held out.

    Returns:
        Examples of shape (1, 8, 8).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = bunch.images.astype(np.uint8)[:, np.newaxis]
    y = bunch.target.astype(np.int64)
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
