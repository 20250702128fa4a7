"""What is audited, and what it says of itself: the seam between an audit and any mechanism."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Mechanism(Protocol):
    """A mechanism under audit: rounds of sampling, clipping, adding up and noise.

    People are clients at the user's level, and examples at the example's.
    """

    @property
    def clipping_norm(self) -> float:
        """The norm that the next release clips to; adaptive clipping moves it."""

    def sample(self, people: int) -> Ints:
        """Draw who takes part in a round, as numbers in [0, people), each once; maybe nobody."""

    def release(self, contributions: Floats, examples: Ints) -> Floats:
        """Return what the rest of the world sees of one round, as a noised sum, (d,).

        Args:
            contributions: (k, d), of those who take part; k may be 0, and noise comes all the same.
            examples: (k,), how many examples each claims to hold.
        """


# Makes a mechanism that has seen nothing, from its (first) clipping norm.
Make = Callable[[float], Mechanism]


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a mechanism is said to do, and to guarantee.

    Attributes:
        level: whose data it protects: ``user`` or ``example``.
        clipping_norm: C; with adaptive clipping the first.
        noise_multiplier: the standard deviation of the sum's noise, in clipping norms.
        sampling_probability: of each person, in each round, in (0, 1].
        rounds: how many releases.
        cohort: how many people are expected in a round, which adaptive clipping counts shares of.
        delta: of the guarantee, in [0, 1).
        epsilon: of the guarantee, for adding or removing a person, over all rounds.
        accountant: who says so.
        target_quantile: what adaptive clipping follows; None: the norm stays.
    """

    level: str
    clipping_norm: float
    noise_multiplier: float
    sampling_probability: float
    rounds: int
    cohort: int
    delta: float
    epsilon: float
    accountant: str
    target_quantile: float | None = None

    def __post_init__(self) -> None:
        """Refuse claims that no audit can be about.

        Raises:
            ValueError: with the claim and its range.
        """
        for name in ("clipping_norm", "noise_multiplier"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0 and finite")
        if not 0 < self.sampling_probability <= 1:
            raise ValueError(
                f"sampling_probability = {self.sampling_probability}: must be above 0, at most 1"
            )
        for name in ("rounds", "cohort"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
