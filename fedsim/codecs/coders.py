"""Lossless coders, the stage behind a codec."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from fedsim.errors import CodecError

# The smallest window that zstd knows, in bytes.
ZSTD_WINDOW_MIN = 1024


@dataclass(frozen=True, kw_only=True)
class Coder:
    """A lossless coder and its number in payloads, which never changes.

    ``compress`` is given the bytes and zstd's level. ``decompress`` is given what came out and the
    most bytes that may come back; it raises CodecError rather than allocate more.
    """

    number: int
    compress: Callable[[bytes, int], bytes]
    decompress: Callable[[memoryview, int], bytes | memoryview]


def zstd_compress(data: bytes, level: int) -> bytes:
    """Return one Zstandard frame (RFC 8878) that says its content's size, without a checksum."""
    return zstandard.ZstdCompressor(level=level).compress(data)


def zstd_decompress(data: memoryview, limit: int) -> bytes:
    """Return the content of one Zstandard frame of at most ``limit`` bytes."""
    try:
        frame = zstandard.get_frame_parameters(data)
        # A frame that hides its size says 2^64 - 1.
        if max(frame.content_size, frame.window_size) > max(limit, ZSTD_WINDOW_MIN):
            raise too_long(limit)
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"payload: not one zstd frame: {error}; ask for it again") from error


def huffman_compress(data: bytes, _level: int) -> bytes:
    """Return raw deflate (RFC 1951) of Huffman codes alone, without matches: an entropy coder."""
    # Nine is the most memory: codes are fitted anew every 32,768 bytes, so that each plane and
    # each large array gets its own.
    coder = zlib.compressobj(wbits=-zlib.MAX_WBITS, memLevel=9, strategy=zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


def huffman_decompress(data: memoryview, limit: int) -> bytes:
    """Return the content of one raw deflate stream of at most ``limit`` bytes."""
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = decoder.decompress(data, limit + 1)
    except zlib.error as error:
        raise CodecError(f"payload: not a deflate stream: {error}; ask for it again") from error
    if len(content) > limit:
        raise too_long(limit)
    if not decoder.eof or decoder.unused_data:
        raise CodecError("payload: not one whole deflate stream; ask for it again")
    return content


def too_long(limit: int) -> CodecError:
    """Return the error for a body that would unpack to more than the model warrants."""
    return CodecError(
        f"payload: would unpack to more than the {limit} bytes of the largest update of this "
        "model; ask for it again"
    )


CODERS: dict[str, Coder] = {
    "none": Coder(number=0, compress=lambda data, _: data, decompress=lambda data, _: data),
    "zstd": Coder(number=1, compress=zstd_compress, decompress=zstd_decompress),
    "entropy": Coder(number=2, compress=huffman_compress, decompress=huffman_decompress),
}
