"""The IDX format of MNIST: a magic number, the dimensions, then unsigned bytes.

Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsim.data.dataset import Dataset, Ints
from fedsim.data.labels import check_classes, check_varied
from fedsim.data.source import Source, find_files, read_bytes
from fedsim.errors import DataError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST_CLASSES = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_mnist(source: Source) -> Dataset:
    """Read MNIST (LeCun et al. 1998): 60,000 + 10,000 handwritten digits, (1, 28, 28)."""
    return read_images(source, MNIST_CLASSES)


def read_fashion_mnist(source: Source) -> Dataset:
    """Read Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 articles of clothing, (1, 28, 28)."""
    return read_images(source, FASHION_CLASSES)


def read_images(source: Source, class_names: tuple[str, ...]) -> Dataset:
    """Read the four IDX files, plain or .gz, in the folder named after the dataset.

    Raises:
        DataError: a file is missing, corrupt, or does not fit the others.
    """
    folder = source.directory / source.dataset
    paths = find_files(source, folder, FILES)
    x_train, y_train = _read_part(paths[0], paths[1], len(class_names))
    x_test, y_test = _read_part(paths[2], paths[3], len(class_names))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{paths[2]}: images of {x_test.shape[2]}x{x_test.shape[3]}, but "
            f"{x_train.shape[2]}x{x_train.shape[3]} in {paths[0].name}"
        )
    check_varied(y_train, class_names, str(paths[1]))
    return Dataset(
        name=source.dataset,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=len(class_names),
        class_names=class_names,
        scale=1 / 255,
    )


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    Args:
        path: the file, plain or .gz.
        dimensions: how many dimensions it must have: 3 for images, 1 for labels.

    Raises:
        DataError: another format, or a body that is not as long as the header says.
    """
    content = read_bytes(path)
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise DataError(
            f"{path}: starts with 0x{content[:4].hex()}, not 0x{magic.hex()}: this is no IDX file "
            f"of unsigned bytes in {dimensions} dimension(s)"
        )
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    found, expected = max(len(content) - start, 0), math.prod(shape)
    if found != expected:
        raise DataError(
            f"{path}: holds {found} bytes after its header, which promises {expected} "
            f"({' x '.join(map(str, shape))}); fetch the file again"
        )
    if expected == 0:
        raise DataError(f"{path}: holds no examples")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_part(images: Path, labels: Path, classes: int) -> tuple[npt.NDArray[np.uint8], Ints]:
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise DataError(f"{labels}: {len(y)} labels for the {len(x)} images in {images.name}")
    return x[:, np.newaxis], check_classes(y, classes, str(labels))
