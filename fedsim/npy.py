"""The head of an .npy file, version 1.0, written and read once for each kind of array."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np

NPY_1_0 = b"\x93NUMPY\x01\x00"


@lru_cache(maxsize=256)
def write_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the head of the .npy file, version 1.0, of a C-ordered array."""
    file = BytesIO()
    like = np.broadcast_to(np.zeros((), dtype), shape)
    described = {**np.lib.format.header_data_from_array_1_0(like), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


@lru_cache(maxsize=256)
def read_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and type from the head of an .npy file of version 1.0.

    Raises:
        ValueError: it is none, or of objects, which only a pickle can hold.
    """
    file = BytesIO(header)
    np.lib.format.read_magic(file)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("arrays of objects are not read")
    return shape, fortran_order, dtype
