"""The payload: a header, and the body that a codec and a coder wrote.

=======  =====  ==========================================================================
offset   bytes  what
=======  =====  ==========================================================================
0        4      ``FSUP``
4        1      version of this format
5        1      number of the codec
6        1      number of the coder
7        4      fingerprint of the model: CRC-32 of names, types and shapes, in their order
11       8      bytes of the body
19       4      CRC-32 of the 19 bytes before and of the body
23       ...    the body
=======  =====  ==========================================================================

Numbers are unsigned, least significant byte first. The body holds the codec's columns, then the
arrays that are not floating-point, exactly (see :mod:`fedsim.codecs.body`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from fedsim.codecs.body import Arrays, Body, pack
from fedsim.codecs.coders import CODERS, Coder
from fedsim.codecs.elementwise import exact_bytes, exact_decode, exact_encode
from fedsim.codecs.registry import CODECS, Codec
from fedsim.errors import CodecError, nearest

MAGIC, VERSION = b"FSUP", 1
HEAD = struct.Struct("<4sBBBIQ")
CHECKSUM = struct.Struct("<I")
HEADER_BYTES = HEAD.size + CHECKSUM.size

Entry = TypeVar("Entry", Codec, Coder)


def encode(
    update: Arrays,
    *,
    codec: str,
    coder: str,
    zstd_level: int,
    topk_fraction: float,
    rng: np.random.Generator,
) -> bytes:
    """Return an update, or a model, as a payload for :func:`decode`.

    A coder that would make the body longer is not used, and the header then says ``none``: so a
    payload is never longer than :func:`payload_bytes`.

    Args:
        update: arrays of any shapes; float16, float32, float64, integers or booleans.
        codec: a name in ``CODECS``.
        coder: a name in ``CODERS``.
        zstd_level: effort of the coder zstd, 1 to 22.
        topk_fraction: share of the coordinates that topk keeps, in (0, 1].
        rng: the draws of int8 and drive; equal generators give equal payloads.

    Raises:
        CodecError: an unknown name, a number that is not finite or that the codec cannot hold, or
            an array of another type.
    """
    chosen, stage = known("codec", codec, CODECS), known("coder", coder, CODERS)
    check_finite(update)
    floats, others = by_kind(update)
    columns = chosen.encode(floats, topk_fraction, rng)
    body = pack([*columns, *exact_encode(others)])
    coded = stage.compress(body, zstd_level)
    if len(coded) >= len(body):
        coded, stage = body, CODERS["none"]
    head = HEAD.pack(MAGIC, VERSION, chosen.number, stage.number, fingerprint(update), len(coded))
    return b"".join((head, CHECKSUM.pack(checksum(head, coded)), coded))


def decode(payload: bytes | memoryview, like: Arrays) -> dict[str, np.ndarray]:
    """Return the arrays of a payload, of exactly the names, shapes and types of ``like``.

    Nothing is trusted that the payload says: it never makes this allocate more than arrays like
    these take, and what is damaged, foreign or not finite is refused. (The checksum finds
    accidents; it does not tell who wrote a payload.)

    Raises:
        CodecError: the payload is no whole and undamaged payload of such arrays.
    """
    codec, coder, content = read(memoryview(payload).cast("B"), like)
    floats, others = by_kind(like)
    body = Body(data=memoryview(coder.decompress(content, body_bytes(like, codec, 1.0))))
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        decoded = codec.decode(body, floats) | exact_decode(body, others)
    body.end()
    check_finite(decoded)
    return {name: decoded[name] for name in like}


def payload_bytes(like: Arrays, *, codec: str, topk_fraction: float) -> int:
    """Count the bytes of a payload of such arrays, header included, with coder ``none``."""
    return HEADER_BYTES + body_bytes(like, known("codec", codec, CODECS), topk_fraction)


def body_bytes(like: Arrays, codec: Codec, topk_fraction: float) -> int:
    """Count the bytes of a body before the coder."""
    floats, others = by_kind(like)
    return codec.size(floats, topk_fraction) + exact_bytes(others)


def read(payload: memoryview, like: Arrays) -> tuple[Codec, Coder, memoryview]:
    """Check a payload's header against its body and the model; return what the body needs."""
    if len(payload) < HEADER_BYTES:
        raise CodecError(
            f"payload: {len(payload)} bytes, and its header alone takes {HEADER_BYTES}; "
            "ask for it again"
        )
    head, content = payload[: HEAD.size], payload[HEADER_BYTES:]
    magic, version, codec, coder, model, length = HEAD.unpack(head)
    if magic != MAGIC or version != VERSION:
        raise CodecError(
            f"payload: begins with {bytes(head[:5])!r} and not {MAGIC + bytes([VERSION])!r}; "
            "it is damaged, or of another version of fedsim"
        )
    if len(content) != length:
        raise CodecError(
            f"payload: a body of {len(content)} bytes where its header says {length}; "
            "ask for it again"
        )
    (expected,) = CHECKSUM.unpack(payload[HEAD.size : HEADER_BYTES])
    if checksum(head, content) != expected:
        raise CodecError("payload: its checksum is wrong, it is damaged; ask for it again")
    if model != fingerprint(like):
        raise CodecError(
            "payload: of another model, whose arrays differ in name, type, shape or order; "
            "give both sides the same experiment"
        )
    return numbered("codec", codec, CODECS), numbered("coder", coder, CODERS), content


def by_kind(arrays: Arrays) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the arrays of floating-point numbers, and the others, which are sent exactly."""
    floats = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    return floats, {name: array for name, array in arrays.items() if name not in floats}


def check_finite(arrays: Arrays) -> None:
    """Refuse arrays of other types than numbers of up to 8 bytes, NaN and infinity."""
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" or array.itemsize > 8:
            raise CodecError(
                f"{name}: arrays of {array.dtype} cannot be sent; use float16, float32, float64, "
                "integers or booleans"
            )
        finite = np.isfinite(array)
        if not finite.all():
            value = array[~finite].flat[0]
            raise CodecError(
                f"{name}: {value} is not a number that can be sent or aggregated; if training "
                "diverged, lower train.learning_rate"
            )


def fingerprint(arrays: Arrays) -> int:
    """Return a CRC-32 of the names, types and shapes of arrays, in their order."""
    text = repr([(name, array.dtype.name, array.shape) for name, array in arrays.items()])
    return zlib.crc32(text.encode())


def checksum(head: bytes | memoryview, body: bytes | memoryview) -> int:
    """Return the CRC-32 of a header, without its last field, and its body."""
    return zlib.crc32(body, zlib.crc32(head))


def known(what: str, name: str, registry: Mapping[str, Entry]) -> Entry:
    """Look a name up."""
    if name not in registry:
        raise CodecError(f"{what} = {name!r}: unknown; {nearest(name, registry)}")
    return registry[name]


def numbered(what: str, number: int, registry: Mapping[str, Entry]) -> Entry:
    """Look a number up that a payload holds."""
    for entry in registry.values():
        if entry.number == number:
            return entry
    raise CodecError(f"payload: {what} number {number} is unknown; update fedsim on this side")
