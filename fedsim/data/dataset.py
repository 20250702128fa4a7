"""A dataset in memory: a training part, a test part, and who the training examples came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.data.form import Raw

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Features = npt.NDArray[np.uint8] | Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Examples and labels, as compact as the file they came from.

    Images stay uint8 in memory: features become float32 only for the examples that are asked for.

    Attributes:
        name: the name in the registry.
        x_train: shape (n, \\*input_shape); uint8 or float32.
        y_train: shape (n,), classes from 0.
        x_test: shape (m, \\*input_shape), of the type of ``x_train``.
        y_test: shape (m,), classes from 0.
        classes: number of classes.
        class_names: what each class is called, in order.
        scale: what stored values are multiplied by to give features.
        clients: shape (n,), the natural client of each training example, from 0 without gaps;
            None where the data has no natural split.
        client_names: what each natural client is called, in order; empty without a split.
        part: ``whole``, or what alone is here, in a deployed federation: the ``server``'s test
            part, or one ``client``'s examples.
        client: which client's, where its folder says so.
        raw: what a client's own file would hold; None for the values as they are stored.
    """

    name: str
    x_train: Features
    y_train: Ints
    x_test: Features
    y_test: Ints
    classes: int
    class_names: tuple[str, ...]
    scale: float
    clients: Ints | None = None
    client_names: tuple[str, ...] = ()
    part: str = "whole"
    client: int | None = None
    raw: Raw | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example: (channels, height, width), or (features,) for a table."""
        return self.x_train.shape[1:]

    def train(self, indices: npt.NDArray[np.integer[Any]]) -> tuple[Floats, Ints]:
        """Return features and labels of the training examples at ``indices``, as fresh arrays.

        Args:
            indices: shape (k,), each in [0, n).

        Returns:
            Features of shape (k, \\*input_shape) and labels of shape (k,).
        """
        return self._features(self.x_train[indices]), self.y_train[indices]

    def test(self) -> tuple[Floats, Ints]:
        """Return features and labels of the whole test part, as :meth:`train` does."""
        return self._features(self.x_test), self.y_test.copy()

    def _features(self, stored: Features) -> Floats:
        return np.multiply(stored, np.float32(self.scale), dtype=np.float32)


def raw_of(data: Dataset) -> Raw:
    """Return what a client's own file would hold to become examples like these."""
    return data.raw or Raw(dtype=str(data.x_test.dtype), scale=data.scale)


def shifted(data: Dataset, offset: float) -> Dataset:
    """Return a dataset with a number added to every feature, which are float32 from then on."""
    raw = raw_of(data)
    return replace(
        data,
        x_train=data._features(data.x_train) + np.float32(offset),
        x_test=data._features(data.x_test) + np.float32(offset),
        scale=1.0,
        raw=replace(raw, offset=raw.offset + offset),
    )
