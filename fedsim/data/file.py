"""A user's own file as a dataset, in any of the formats below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.data.columns import raw_table, table_features
from fedsim.data.dataset import Dataset, Features, Ints
from fedsim.data.form import Raw
from fedsim.data.labels import check_varied, encode, encode_as
from fedsim.data.npz import array_features, raw_arrays, read_npz
from fedsim.data.rows import Rows
from fedsim.data.source import Source
from fedsim.data.split import hold_out
from fedsim.data.table import read_csv, read_parquet
from fedsim.errors import DataError, nearest


@dataclass(frozen=True)
class Format:
    """How a file format is read, and how the features of its two parts become numbers.

    The parts are separate before that, so whatever is fitted to data, such as a median, is fitted
    to the training part alone.
    """

    read: Callable[[Source], tuple[Rows, Rows | None]]
    features: Callable[[Rows, Rows, Source], tuple[Features, Features]]
    raw: Callable[[Rows, Source], Raw]


FORMATS: dict[str, Format] = {
    ".npz": Format(read_npz, array_features, raw_arrays),
    ".csv": Format(read_csv, table_features, raw_table),
    ".parquet": Format(read_parquet, table_features, raw_table),
}


def read_file(source: Source) -> Dataset:
    """Read the file at ``source.path``; its extension names the format.

    Labels are whole numbers, booleans or text, and become classes in sorted order. Where the file
    brings no test part, ``test_fraction`` is held out. Natural clients are those of the training
    examples that remain.

    Raises:
        DataError: an unknown extension, or a file that is missing, corrupt, or does not hold what
            was asked for.
    """
    if not source.path:
        raise DataError(f'data.path = "": needs the path of a file ({", ".join(FORMATS)})')
    suffix = Path(source.path).suffix.lower()
    if suffix not in FORMATS:
        raise DataError(f"{source.path}: unknown extension {suffix!r}; {nearest(suffix, FORMATS)}")
    train, test = FORMATS[suffix].read(source)
    y_train, class_names = encode(train.labels, f"{train.place}, labels")
    check_varied(y_train, class_names, train.place)
    if test is None:
        kept, held = hold_out(y_train, source.test_fraction, train.place)
        y_train, y_test = y_train[kept], y_train[held]
        train, test = train.take(kept), train.take(held)
    else:
        y_test = encode_as(test.labels, class_names, f"{test.place}, labels")
    x_train, x_test = FORMATS[suffix].features(train, test, source)
    clients, client_names = encode_clients(train)
    return Dataset(
        name=source.dataset,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=len(class_names),
        class_names=class_names,
        scale=1 / 255 if x_train.dtype == np.uint8 else 1.0,
        clients=clients,
        client_names=client_names,
        raw=FORMATS[suffix].raw(train, source),
    )


def encode_clients(train: Rows) -> tuple[Ints | None, tuple[str, ...]]:
    """Number the clients that have training examples; (None, ()) where the file has no ids."""
    if train.clients is None:
        return None, ()
    return encode(train.clients, f"{train.place}, client ids")
