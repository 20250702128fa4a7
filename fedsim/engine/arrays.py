"""How Flower's arrays travel between Ray processes: beside the pickle, copied once."""

from __future__ import annotations

import pickle
from io import BytesIO
from typing import Any

import numpy as np
import ray
from flwr.app import Array

# An .npy header is a multiple of 64 bytes; so many hold it for any array of few dimensions.
HEADER_BYTES = 1024


class SharedArray(Array):
    """An Array whose bytes lie in Ray's object store, and are copied when they are asked for.

    It behaves as any Array: ``numpy()`` returns an array of its own, ``data`` is ``bytes``.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], stype: str, view: Any) -> None:
        self.__dict__.update(dtype=dtype, shape=shape, stype=stype, _view=memoryview(view))

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The serialised array."""
        if "_data" not in self.__dict__:
            self.__dict__["_data"] = bytes(self.__dict__["_view"])
        data: bytes = self.__dict__["_data"]
        return data

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the array, writable, without the detour over ``data``."""
        view = self.__dict__["_view"]
        header = BytesIO(view[:HEADER_BYTES])
        if self.stype != "numpy.ndarray" or np.lib.format.read_magic(header) != (1, 0):
            return Array(self.dtype, self.shape, self.stype, self.data).numpy()
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded")
        flat = np.frombuffer(view, dtype=dtype, offset=header.tell())
        return flat.reshape(shape, order="F" if fortran_order else "C").copy(order="K")

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, self.shape, self.stype, self.data)

    def parts(self) -> tuple[str, tuple[int, ...], str, pickle.PickleBuffer]:
        """Return what travels; the bytes stay where they are until Ray copies them."""
        return self.dtype, self.shape, self.stype, pickle.PickleBuffer(self.__dict__["_view"])


def register_array_serializer() -> None:
    """Tell Ray, in this process, to send and receive arrays that way."""
    for kind, parts in {
        Array: lambda a: (a.dtype, a.shape, a.stype, pickle.PickleBuffer(a.data)),
        SharedArray: SharedArray.parts,
    }.items():
        ray.util.register_serializer(
            kind, serializer=parts, deserializer=lambda received: SharedArray(*received)
        )
