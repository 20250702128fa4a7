"""The binary version of CIFAR-10: records of a label byte and 3x32x32 bytes of pixels.

The "python version" of the same data consists of pickles, which can run any code when they are
read: fedsim never reads them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsim.data.dataset import Dataset, Ints
from fedsim.data.labels import check_classes, check_varied
from fedsim.data.source import Source, find_files, read_bytes, reading
from fedsim.errors import DataError

SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
UNPACKED = "cifar-10-batches-bin"  # the folder in the published archive
FILES = (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin")
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def read_cifar10(source: Source) -> Dataset:
    """Read CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour photographs, (3, 32, 32).

    The files lie in ``cifar10/`` or, as unpacked, in ``cifar10/cifar-10-batches-bin/``.

    Raises:
        DataError: a file is missing or corrupt.
    """
    folder = source.directory / source.dataset
    unpacked = folder / UNPACKED
    with reading(folder):
        chosen = unpacked if unpacked.exists() else folder
    paths = find_files(
        source,
        chosen,
        FILES,
        hint="They come in the binary version, cifar-10-binary.tar.gz. ",
    )
    batches = [read_batch(path) for path in paths]
    x_train = np.concatenate([x for x, _ in batches[:-1]])
    y_train = np.concatenate([y for _, y in batches[:-1]])
    x_test, y_test = batches[-1]
    check_varied(y_train, CLASSES, str(paths[0].parent))
    return Dataset(
        name=source.dataset,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=len(CLASSES),
        class_names=CLASSES,
        scale=1 / 255,
    )


def read_batch(path: Path) -> tuple[npt.NDArray[np.uint8], Ints]:
    """Read one file of records: images of shape (n, 3, 32, 32) and labels of shape (n,).

    Raises:
        DataError: the size is no multiple of a record, or a label is not in 0..9.
    """
    content = read_bytes(path)
    if len(content) % RECORD_BYTES:
        raise DataError(
            f"{path}: {len(content)} bytes is no multiple of the {RECORD_BYTES} of a record; "
            "fetch the file again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    labels = check_classes(records[:, 0], len(CLASSES), str(path))
    return records[:, 1:].reshape(-1, *SHAPE), labels
