"""What one measurement is told: the federation, the network, the local work, how many rounds."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

SHAPES = {"2nn": (784,), "small": (64,), "cnn": (1, 28, 28), "tiny": (16,)}
WIDTHS = {"2nn": 200, "small": 32, "tiny": 32}  # two hidden layers each
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One measurement, as it travels to its runner.

    ``clients`` are registered and ``cohort`` of them take part in a round. The first ``warm_up``
    rounds are run and not timed. ``path`` names the data that all systems read.
    """

    model: str = "2nn"
    clients: int = 100
    examples: int = 600  # a client
    batch_size: int = 10
    cohort: int = 100
    rounds: int = 2
    warm_up: int = 1
    workers: int = 2
    engine: str = "ray"
    client: str = "copy"  # of clients that do no work: copy, echo or sums
    runtime: str = "fedsim"  # what runs those: fedsim or flower
    levels: tuple[str, ...] = ("light",)  # of measuring; several are run in turn
    memory_at: tuple[int, ...] = ()  # rounds after which memory is read, besides the last
    path: str = ""
    learning_rate: float = 0.01

    @property
    def steps(self) -> int:
        """Optimiser steps of a client in a round: one pass over its data."""
        return -(-self.examples // self.batch_size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return SHAPES[self.model]

    @property
    def total_rounds(self) -> int:
        """Rounds that are run."""
        return self.warm_up + self.rounds

    def encode(self) -> str:
        """Return it as one JSON line."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def decode(text: str) -> Spec:
        """Read what ``encode`` wrote."""
        values = json.loads(text)
        return Spec(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
