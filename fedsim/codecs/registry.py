"""The codecs by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.codecs import drive, elementwise, topk
from fedsim.codecs.body import Arrays, Body


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A codec of floating-point arrays and its number in payloads, which never changes.

    ``encode`` is given finite arrays, the fraction that topk keeps, and the generator of its
    draws; it returns columns. ``decode`` reads them, given arrays of the same names, shapes and
    types. ``size`` counts the columns' bytes from such arrays and the fraction, and never falls
    as the fraction grows.
    """

    number: int
    encode: Callable[[Arrays, float, np.random.Generator], list[np.ndarray]]
    decode: Callable[[Body, Arrays], dict[str, np.ndarray]]
    size: Callable[[Arrays, float], int]


CODECS: dict[str, Codec] = {
    "none": Codec(
        number=0,
        encode=lambda arrays, _fraction, _rng: elementwise.exact_encode(arrays),
        decode=elementwise.exact_decode,
        size=lambda like, _fraction: elementwise.exact_bytes(like),
    ),
    "float16": Codec(
        number=1,
        encode=lambda arrays, _fraction, _rng: elementwise.float16_encode(arrays),
        decode=elementwise.float16_decode,
        size=lambda like, _fraction: elementwise.float16_bytes(like),
    ),
    "int8": Codec(
        number=2,
        encode=lambda arrays, _fraction, rng: elementwise.int8_encode(arrays, rng=rng),
        decode=elementwise.int8_decode,
        size=lambda like, _fraction: elementwise.int8_bytes(like),
    ),
    "topk": Codec(
        number=3,
        encode=lambda arrays, fraction, _rng: topk.encode(arrays, fraction=fraction),
        decode=topk.decode,
        size=lambda like, fraction: topk.size(like, fraction=fraction),
    ),
    "drive": Codec(
        number=4,
        encode=lambda arrays, _fraction, rng: drive.encode(arrays, rng=rng),
        decode=drive.decode,
        size=lambda like, _fraction: drive.size(like),
    ),
}
