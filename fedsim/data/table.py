"""Tables in CSV and Parquet files: named columns of numbers, text and booleans, with gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.data.labels import Values
from fedsim.data.rows import Rows
from fedsim.data.source import Source, reading
from fedsim.errors import DataError, nearest

if TYPE_CHECKING:
    import pandas as pd

MISSING = ("", "?", "NA", "NaN", "nan")


def read_csv(source: Source) -> tuple[Rows, Rows | None]:
    """Read a comma-separated table in UTF-8 whose first line names the columns.

    Cells that are empty, ``?``, ``NA`` or ``NaN`` are missing.

    Raises:
        DataError: see :func:`read_table`.
    """
    return read_table(source, _load_csv)


def read_parquet(source: Source) -> tuple[Rows, Rows | None]:
    """Read a Parquet table.

    Raises:
        DataError: see :func:`read_table`.
    """
    import pandas as pd

    return read_table(source, pd.read_parquet)


def read_table(source: Source, load: Callable[[Path], pd.DataFrame]) -> tuple[Rows, Rows | None]:
    """Read a table, and the one at ``source.test_path`` where given.

    Args:
        source: names the label column and, optionally, the column of client ids, which is no
            feature; a test table need not have client ids.
        load: reads one file.

    Raises:
        DataError: a file is missing, corrupt or without rows, a column is missing, named twice or
            not at all, or a label or client id is missing.
    """
    if Path(source.test_path or source.path).suffix.lower() != Path(source.path).suffix.lower():
        raise DataError(
            f"data.test_path = {source.test_path!r}: must have the format of data.path = "
            f"{source.path!r}"
        )
    train = _rows(_table(source.path, load), source.path, source.label, source.client)
    if not source.test_path:
        return train, None
    test = _table(source.test_path, load)
    return train, _rows(
        test.drop(columns=source.client, errors="ignore"), source.test_path, source.label, ""
    )


def _load_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    form: dict[str, Any] = {"encoding": "utf-8-sig", "skipinitialspace": True}
    # pandas renames columns of equal or empty name, so the header is read as it stands; and takes
    # a first column for an index where rows are longer than the header, which is an error here.
    header = pd.read_csv(path, header=None, nrows=2, dtype=str, keep_default_na=False, **form)
    table = pd.read_csv(path, na_values=MISSING, keep_default_na=False, low_memory=False, **form)
    table.columns = header.iloc[0].tolist()
    return table


def load_table(path: Path) -> pd.DataFrame:
    """Return the rows of a .csv or .parquet file as they are.

    Raises:
        DataError: it is missing, empty or corrupt.
    """
    import pandas as pd

    return _parse(path, pd.read_parquet if path.suffix.lower() == ".parquet" else _load_csv)


def _parse(path: Path, load: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    try:
        with reading(path):
            if path.stat().st_size == 0:
                raise DataError(f"{path}: is empty")
            return load(path)
    except ValueError as error:  # pandas' and pyarrow's parsers, and text that is not UTF-8
        raise DataError(f"{path}: is no readable {path.suffix} file: {error}") from error


def _table(file: str, load: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    path = Path(file).expanduser()
    table = _parse(path, load)
    names = [str(name) for name in table.columns]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or "" in names:
        problem = f"two columns are called {repeated[0]!r}" if repeated else "a column has no name"
        raise DataError(f"{path}: {problem}; the first line must name each column once")
    if not len(table):
        raise DataError(f"{path}: holds column names but no rows")
    return table.set_axis(names, axis=1)


def _rows(table: pd.DataFrame, place: str, label: str, client: str) -> Rows:
    for key, name in (("label", label), ("client", client)):
        if name not in table.columns and (name or key == "label"):
            raise DataError(
                f"data.{key} = {name!r}: no such column in {place}; {nearest(name, table.columns)}"
            )
    features = table.drop(columns=[label, client] if client else [label])
    if not len(features.columns):
        raise DataError(f"{place}: has no column besides {label!r} to learn from")
    return Rows(
        place=place,
        features=features,
        labels=_complete(table[label], place),
        clients=_complete(table[client], place) if client else None,
    )


def _complete(column: pd.Series[Any], place: str) -> Values:
    gaps = np.flatnonzero(column.isna())
    if len(gaps):
        raise DataError(
            f"{place}, column {column.name!r}: {len(gaps)} of {len(column)} rows have no value, "
            f"first row {gaps[0] + 1} after the column names; fill them in or remove them"
        )
    values: Values = column.to_numpy()
    return values
