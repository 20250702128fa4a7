"""Gaussian noise that nobody can predict, and none of whose bits tell what it was added to.

Words come from the keystream of ChaCha20 (RFC 8439) under a key of 32 bytes. Two of them make a
pair of independent normals (Box and Muller, 1958), with u uniform in (0, 1] and t on the circle:

    sqrt(-2 ln u) sin t,  sqrt(-2 ln u) cos t

A normal as it is drawn in floating point is one of few values, so that the low bits of a sum with
it may tell the other summand (Mironov, 2012; the attack on Gaussians: Jin et al., 2022). The remedy
of Holohan and Braghin (2021, section 5.1), which is Opacus' secure mode too, is to add four normals
and to halve the sum: who wants to undo that has 2^159 cases to try. The normals of a pair add up to

    sqrt(-2 ln u) (sin t + cos t) = 2 sqrt(-ln u) sin(t + pi/4)

and a uniform angle turned by pi/4 is a uniform angle, so that a draw is

    sqrt(-ln u1) sin t1 + sqrt(-ln u2) sin t2

at two thirds of the time that all four normals take by themselves. The sine of an angle in half a
circle, from -pi/2 to pi/2, is distributed as that of one in the whole.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from typing import Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms

from fedsim.errors import PrivacyError

Floats = npt.NDArray[np.float64]

KEY_BYTES = 32
WORD_BYTES = 8
# Normals that are drawn at once, so that their words and angles stay in the processor's caches.
BLOCK = 4096
ZEROS = bytes(4 * BLOCK * WORD_BYTES)
# No draw is longer: 2 sqrt(64 ln 2) = 13.32.
LARGEST_DRAW = 13.33


class NoiseSource:
    """Standard normals and uniforms from a key of 32 bytes; equal keys give equal draws.

    It protects against one who sees what was published, knows this code and everything but the
    key, and wants the noise: from other draws (ChaCha20) or from low bits (the sum of four). It
    does not protect against one who reads this process's memory, or times it closely; and the
    mechanism stays one of floating point, whose proof is of real numbers: the bound of 2^159 is on
    the attack that is known. No draw exceeds 2 sqrt(64 ln 2) = 13.3; one so far out has a
    probability below 1e-38.

    Draws do not repeat: each call has a nonce of its own. A source that was forked or sent into
    another process would repeat there, and refuses to draw.
    """

    def __init__(self, key: bytes) -> None:
        """Take a key.

        Raises:
            PrivacyError: it has not 32 bytes.
        """
        if len(key) != KEY_BYTES:
            raise PrivacyError(
                f"a key of {len(key)} bytes for noise: ChaCha20 takes {KEY_BYTES}; "
                "NoiseSource.secure() makes one"
            )
        self._key = key
        self._calls = 0
        self._process = os.getpid()

    @classmethod
    def secure(cls) -> Self:
        """Return a source whose key is the operating system's secret, made now."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def reproducible(cls, seed: int, purpose: str, *, round: int = 0, client: int = 0) -> Self:
        """Return the source of a stream, whose noise anybody can undo who knows the seed.

        Args:
            seed, purpose, round, client: name the stream, as in :func:`fedsim.randomness.stream`,
                whose draws have nothing in common with these.
        """
        text = f"{seed}/{purpose}/{round}/{client}"
        return cls(
            hashlib.blake2b(text.encode(), digest_size=KEY_BYTES, person=b"fedsim/noise").digest()
        )

    def normal(self, count: int) -> Floats:
        """Return independent draws of the standard normal distribution, (count,)."""
        draws = np.empty(count)
        stream = self._stream()
        for first in range(0, count, BLOCK):
            part = draws[first : first + BLOCK]
            words = keystream(stream, 4 * part.size)
            radius = words[: 2 * part.size] + 1.0  # of 2^64: above 0, so that it has a logarithm
            radius *= 2.0**-64
            np.log(radius, out=radius)
            np.negative(radius, out=radius)
            np.sqrt(radius, out=radius)
            angle = words[2 * part.size :].view(np.int64) * (np.pi * 2.0**-64)
            np.sin(angle, out=angle)
            angle *= radius
            np.add(angle[: part.size], angle[part.size :], out=part)
        return draws

    def uniform(self, count: int) -> Floats:
        """Return independent uniforms in [0, 1), multiples of 2^-53, (count,)."""
        stream, draws = self._stream(), np.empty(count)
        for first in range(0, count, BLOCK):
            part = draws[first : first + BLOCK]
            np.multiply(keystream(stream, part.size) >> np.uint64(11), 2.0**-53, out=part)
        return draws

    def bernoulli(self, probability: float, count: int) -> npt.NDArray[np.bool_]:
        """Return independent coins, (count,), true with a probability in [0, 1] (to 2^-53).

        This is Poisson sampling: each of ``count`` is in the sample by itself.

        Raises:
            PrivacyError: the probability is not in [0, 1].
        """
        if not 0 <= probability <= 1:
            raise PrivacyError(
                f"sampling with probability {probability}: it has to be between 0 and 1"
            )
        coins: npt.NDArray[np.bool_] = self.uniform(count) < probability
        return coins

    def _stream(self) -> CipherContext:
        """Return the keystream of one call."""
        if os.getpid() != self._process:
            raise PrivacyError(
                f"a source of noise of process {self._process} was taken into process "
                f"{os.getpid()}, where it would repeat itself: make one in each process"
            )
        # RFC 8439: a counter of 32 bits, which starts at 0, and 96 bits of nonce.
        nonce = bytes(4) + self._calls.to_bytes(12, "little")
        self._calls += 1
        return Cipher(algorithms.ChaCha20(self._key, nonce), mode=None).encryptor()


def keystream_bytes(key: bytes) -> Callable[[int], bytes]:
    """Return what gives the next bytes of ChaCha20's keystream (RFC 8439) under a key of 32.

    For one process and one use: who forks shares what follows.
    """
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return lambda count: cipher.update(bytes(count))


def source_of(seed: int | None, purpose: str, *, round: int = 0, client: int = 0) -> NoiseSource:
    """Return the source of one purpose: a secret one, or the stream of a seed, if one is given."""
    if seed is None:
        return NoiseSource.secure()
    return NoiseSource.reproducible(seed, purpose, round=round, client=client)


def keystream(stream: CipherContext, count: int) -> npt.NDArray[np.uint64]:
    """Return the next words of a keystream, (count,), at most ``4 * BLOCK``."""
    words = np.empty(count, "<u8")
    stream.update_into(memoryview(ZEROS)[: count * WORD_BYTES], words.view(np.uint8).data)
    return words
