"""The datasets there are, by name."""

from __future__ import annotations

from collections.abc import Callable

from fedsim.data.cifar import read_cifar10
from fedsim.data.dataset import Dataset, shifted
from fedsim.data.digits import read_digits
from fedsim.data.file import read_file
from fedsim.data.held import read_split
from fedsim.data.idx import read_fashion_mnist, read_mnist
from fedsim.data.source import Source, data_directory
from fedsim.data.split import without_test
from fedsim.errors import DataError, nearest

Reader = Callable[[Source], Dataset]

DATASETS: dict[str, Reader] = {
    "digits": read_digits,
    "mnist": read_mnist,
    "fashion_mnist": read_fashion_mnist,
    "cifar10": read_cifar10,
    "file": read_file,
    "split": read_split,
}


def load_dataset(
    name: str,
    *,
    directory: str = "",
    path: str = "",
    test_path: str = "",
    label: str = "",
    client: str = "",
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    offset: float = 0.0,
    missing: str = "refuse",
    standardize: bool = False,
) -> Dataset:
    """Read a dataset into memory. Equal files and arguments give equal arrays.

    Args:
        name: a key of ``DATASETS``.
        directory: holds one folder for each dataset; empty for :func:`data_directory`'s choice.
        path: for ``file``: an .npz, .csv or .parquet file; for ``split``: a folder of a split.
        test_path: for ``file``: a table of the same format and columns to test on.
        label: for ``file``: the label column; in an .npz the array of labels, ``y`` if empty.
        client: for ``file``: the column or array of client ids; empty for no natural split.
        test_fraction: the part held out where there is no test split, in (0, 1); which examples
            that are depends on the data alone, never on an experiment's seed.
        validation_fraction: of the training part, held out and given as the test part, in [0, 1);
            the published test part is then left alone. 0 gives that.
        offset: added to every feature; images, which are 1 byte a pixel otherwise, then take 4.
        missing: for tables: ``refuse`` gaps, or ``impute`` them from the training part.
        standardize: for tables: bring columns of numbers to mean 0 and standard deviation 1.

    Raises:
        DataError: the name is unknown, or the data is missing, corrupt, or not as asked for.
    """
    if name not in DATASETS:
        raise DataError(f"data.dataset = {name!r}: unknown dataset; {nearest(name, DATASETS)}")
    data = DATASETS[name](
        Source(
            dataset=name,
            directory=data_directory(directory),
            path=path,
            test_path=test_path,
            label=label,
            client=client,
            test_fraction=test_fraction,
            missing=missing,
            standardize=standardize,
        )
    )
    if validation_fraction:
        if data.part != "whole":
            raise DataError(
                f"data.validation_fraction = {validation_fraction}: {path} holds the {data.part}'s "
                "examples alone; set it to 0 here, and hold out before fedsim data split"
            )
        data = without_test(data, validation_fraction)
    return shifted(data, offset) if offset else data
