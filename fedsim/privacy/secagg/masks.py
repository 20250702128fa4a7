"""Masks: a seed of 32 bytes, stretched to a vector of words that nobody without it can guess.

The generator is ChaCha20's keystream under the seed, with counter and nonce zero, which is sound
since a seed serves for one mask. Words are read least significant byte first, and sums wrap around
at 2^32 or 2^64, which is what unsigned NumPy arithmetic does.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from fedsim.errors import SecureAggregationRefused
from fedsim.privacy.secagg.messages import KEY_BYTES

CHUNK_BYTES = 1 << 16  # keystream, zeros and words of a step stay in a core's cache
WORDS: dict[int, np.dtype[Any]] = {32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}


def add_mask(words: np.ndarray, seed: bytes) -> None:
    """Add the mask of a seed to a vector, in place, modulo 2^bits of its words.

    Raises:
        SecureAggregationRefused: no one-dimensional, contiguous array of uint32 or uint64.
    """
    _apply(np.add, words, seed)


def subtract_mask(words: np.ndarray, seed: bytes) -> None:
    """Take the mask of a seed off a vector, in place; the inverse of :func:`add_mask`."""
    _apply(np.subtract, words, seed)


def uniform(count: int) -> np.ndarray:
    """Return so many fresh numbers in [0, 1), multiples of 2^-32, from a secure generator."""
    words = np.zeros(count, np.uint32)
    add_mask(words, os.urandom(KEY_BYTES))
    return words * 2.0**-32


def check_words(what: str, words: np.ndarray) -> None:
    """Refuse what is no vector of words."""
    if words.ndim != 1 or words.dtype not in WORDS.values() or not words.flags.c_contiguous:
        raise SecureAggregationRefused(
            f"{what}: an array of {words.dtype} and shape {words.shape}; masks are for contiguous "
            "vectors of uint32 or uint64, as FixedPoint.encode gives them"
        )


def _apply(operation: np.ufunc, words: np.ndarray, seed: bytes) -> None:
    check_words("mask", words)
    keystream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    zeros, buffer = memoryview(bytes(CHUNK_BYTES)), bytearray(CHUNK_BYTES)
    mask = np.frombuffer(buffer, words.dtype.newbyteorder("<"))
    for start in range(0, len(words), len(mask)):
        part = words[start : start + len(mask)]
        keystream.update_into(zeros[: part.nbytes], buffer)
        operation(part, mask[: len(part)], out=part)
