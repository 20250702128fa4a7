"""Fixed point: real vectors as integers modulo 2^32 or 2^64, whose sum is exact.

A parameter x becomes the integer q = round(clip(x, -R, R) * 2^f), and a client with weight w sends
w * q, and w as one more coordinate. The sum of that over clients, taken modulo 2^b, is the sum of
the integers themselves as long as

    clients * largest weight * R * 2^f  <  2^(b - 1),

which is checked when an encoding is made. So what is decoded equals the sum of what was encoded to
the last bit, and all that is lost is lost by rounding, at most 2^-(f+1) a parameter (2^-f where
rounding is stochastic), and by clipping, which is counted.

A parameter takes 4 bytes on the wire where b = 32 suffices, which it does for equal weights, else
8; the weight takes one word more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsim.errors import SecureAggregationRefused
from fedsim.privacy.secagg.masks import WORDS, check_words, uniform

LEAST_STEPS = 2**18  # from 0 to R: where 32 bits leave fewer, words have 64
EXACT_IN_FLOAT64 = 2**53


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """An encoding that client and server share.

    Attributes:
        value_range: R; what lies beyond it is clipped.
        fraction_bits: f; the resolution is 2^-f.
        clients: how many vectors are summed at most.
        largest_weight: of one client; 1 where all weigh the same.
    """

    value_range: float
    fraction_bits: int
    clients: int
    largest_weight: int = 1

    def __post_init__(self) -> None:
        check_range(self.value_range)
        if self.fraction_bits < 0 or self.clients < 1 or self.largest_weight < 1:
            raise SecureAggregationRefused(
                f"fixed point: fraction_bits = {self.fraction_bits}, clients = {self.clients}, "
                f"largest_weight = {self.largest_weight}; give at least 0, 1 and 1"
            )
        if not 1 <= self.largest <= EXACT_IN_FLOAT64 or self.largest_sum >= 2**63:
            raise SecureAggregationRefused(
                f"fixed point: {self.clients} clients of weight {self.largest_weight} with "
                f"parameters up to {self.value_range} in steps of 2^-{self.fraction_bits} do not "
                "fit into 64 bits; lower privacy.value_range, or the weights"
            )

    @staticmethod
    def fitting(*, value_range: float, clients: int, largest_weight: int = 1) -> FixedPoint:
        """Return the finest encoding in words of 32 bits, or of 64 where those are too coarse.

        100 clients of equal weight with R = 8 get f = 21 in 32 bits: steps of 5e-7.
        """
        check_range(value_range)
        share = max(clients, 1) * max(largest_weight, 1)
        steps = (2**31 - 1) // share
        if steps < LEAST_STEPS:
            steps = min((2**63 - 1) // share, EXACT_IN_FLOAT64)
        fraction_bits = math.floor(math.log2(max(steps, 1) / value_range))
        return FixedPoint(
            value_range=value_range,
            fraction_bits=max(0, fraction_bits),
            clients=clients,
            largest_weight=largest_weight,
        )

    @property
    def unit(self) -> float:
        """What 1 becomes, 2^f: whole multiples of its inverse are encoded as they are."""
        return 2.0**self.fraction_bits

    @property
    def largest(self) -> int:
        """The integer that R becomes."""
        return math.floor(self.value_range * 2.0**self.fraction_bits)

    @property
    def largest_sum(self) -> int:
        """The largest magnitude of a coordinate of the sum; of the weights too."""
        return self.clients * self.largest_weight * max(1, self.largest)

    @property
    def word_bits(self) -> int:
        """b: 32 if the sum and its sign fit, else 64."""
        return 32 if self.largest_sum < 2**31 else 64

    @property
    def parameter_bytes(self) -> int:
        """Bytes of a parameter on the wire."""
        return self.word_bits // 8

    def encode(
        self, values: np.ndarray, weight: int = 1, *, stochastic: bool = False
    ) -> tuple[np.ndarray, int]:
        """Return the words of a vector, and how many of its parameters were clipped.

        Args:
            values: floating-point numbers of any shape.
            weight: a positive integer that they are multiplied by.
            stochastic: round up with the probability of the fraction, so that the expectation is
                exact, in place of rounding to the nearest (a half to the even number).

        Raises:
            SecureAggregationRefused: a number that is not finite, or a weight out of range.
        """
        if not 1 <= weight <= self.largest_weight:
            raise SecureAggregationRefused(
                f"weight = {weight}: this encoding is for weights from 1 to {self.largest_weight}"
            )
        flat = np.asarray(values, np.float64).reshape(-1)
        if not np.isfinite(flat).all():
            raise SecureAggregationRefused(
                f"{np.count_nonzero(~np.isfinite(flat))} of {len(flat)} parameters are not finite "
                "and cannot be summed; if training diverged, lower train.learning_rate"
            )
        clipped = int(np.count_nonzero(np.abs(flat) > self.value_range))
        scaled = flat * 2.0**self.fraction_bits
        rounded = np.floor(scaled + uniform(len(flat))) if stochastic else np.rint(scaled)
        integers = np.empty(len(flat) + 1, np.int64)
        integers[:-1] = np.clip(rounded, -self.largest, self.largest)
        integers[-1] = 1
        integers *= weight
        return integers.astype(WORDS[self.word_bits]), clipped

    def decode(self, total: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the sum of weight * q over clients, int64, and the sum of the weights.

        The weighted mean of the parameters is ``sums * 2.0**-fraction_bits / weights``.

        Raises:
            SecureAggregationRefused: words of another kind, or sums that no clients can have.
        """
        check_words("sum", total)
        if total.dtype != WORDS[self.word_bits] or len(total) < 1:
            raise SecureAggregationRefused(
                f"sum: {len(total)} words of {total.dtype}, where this encoding has "
                f"{self.word_bits} bits and a weight; give both sides the same experiment"
            )
        signed = total.view(f"i{total.itemsize}").astype(np.int64)
        sums, weights = signed[:-1], int(signed[-1])
        most = self.clients * self.largest_weight
        beyond = len(sums) > 0 and int(np.abs(sums).max()) > weights * self.largest
        if not 1 <= weights <= most or beyond:
            raise SecureAggregationRefused(
                f"sum: weights of {weights} in all, where 1 to {most} are possible, or parameters "
                "beyond the range; a client sent something other than an encoded vector"
            )
        return sums, weights


def check_range(value_range: float) -> None:
    """Refuse a range that is not positive and finite."""
    if not (math.isfinite(value_range) and value_range > 0):
        raise SecureAggregationRefused(
            f"value_range = {value_range}: give a number above 0, such as 8"
        )
