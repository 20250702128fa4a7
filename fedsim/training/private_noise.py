"""Noise for every step of private training: secret bytes into normals, at the pace of a step.

A step of a small network takes two milliseconds, and needs as many normals as there are parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Bytes = Callable[[int], bytes]  # gives so many bytes that nobody can predict

# Pairs of normals that are drawn at once: few enough for the processor's caches, and so many that
# what an operation costs by itself does not matter.
BLOCK = 32_768
# The bits of a double that are its exponent and sign, for a number in [1, 2).
ONE = 0x3FF << 52


class StepNoise:
    """A source of noise and batches; the interface is :class:`fedsim.training.private.Source`.

    It is as secret as its bytes: those of ``os.urandom``, or, several times as fast, the keystream
    of a cipher under a secret key. A normal is one of a pair (Box and Muller 1958) in float64; of
    its last bits :func:`fedsim.training.private.noised_mean` takes care. None is beyond 8.5, where
    one in 10^17 would be.
    """

    def __init__(self, random_bytes: Bytes) -> None:
        self._bytes = random_bytes

    def normal(self, size: int, /) -> Floats:
        """Draw from N(0, 1), (size,)."""
        pairs = -(-size // 2)
        draws = torch.empty(2, pairs, dtype=torch.float64)
        for first in range(0, pairs, BLOCK):
            sines, cosines = draws[:, first : first + BLOCK]
            u, v = self._between_one_and_two(2 * len(sines)).view(2, -1)
            radius = u.neg_().add_(2).log_().mul_(-2).sqrt_()  # of 2 - u, in (0, 1]
            angle = v.sub_(1.5).mul_(2 * math.pi)
            torch.sin(angle, out=sines).mul_(radius)
            torch.cos(angle, out=cosines).mul_(radius)
        return draws.view(-1)[:size].numpy()

    def uniform(self, size: int, /) -> Floats:
        """Draw from [0, 1), multiples of 2^-52, (size,)."""
        return self._between_one_and_two(size).sub_(1).numpy()

    def _between_one_and_two(self, count: int) -> Tensor:
        """Return uniform doubles in [1, 2), multiples of 2^-52: random bits under that exponent."""
        words = torch.frombuffer(bytearray(self._bytes(8 * count)), dtype=torch.int64)
        return words.bitwise_and_((1 << 52) - 1).bitwise_or_(ONE).view(torch.float64)
