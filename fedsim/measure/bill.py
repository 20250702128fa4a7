"""The bill of one client's visit, as it is drawn up."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch

from fedsim.measure.clocks import spent, training_clocks
from fedsim.measure.memory import peak_memory

# What every reply holds, also where nobody asks for a bill.
ALWAYS = (
    *("examples", "steps", "loss_first_step", "loss_last_step", "initial_loss"),
    *("cpu_seconds", "wall_seconds"),
)


class Bill:
    """Figures by the ledger's column; None where there is none."""

    def __init__(self) -> None:
        self._figures: dict[str, int | float | None] = {}

    def add(self, **figures: int | float | None) -> None:
        """Put figures on the bill."""
        self._figures |= figures

    @contextmanager
    def clock(self, part: str) -> Iterator[None]:
        """Add the block's time to ``<part>_cpu_seconds`` and ``<part>_wall_seconds``."""
        with spent() as seconds:
            yield
        for name, value in vars(seconds).items():
            column = f"{part}_{name}"
            self._figures[column] = (self._figures.get(column) or 0.0) + value

    @contextmanager
    def training(self, visit: Hashable, *, device: str, conditions: bool) -> Iterator[None]:
        """Time the local training alone.

        Args:
            visit: names what the peak of memory is above, see
                :func:`fedsim.measure.memory.peak_memory`.
            device: ``cpu`` or ``cuda``.
            conditions: also measure memory, and what else the machine did meanwhile.
        """
        if not conditions:
            with spent() as seconds:
                yield
            self._figures |= vars(seconds)
            return
        with peak_memory(visit, device=device) as peak, training_clocks() as clocks:
            yield
        self._figures |= vars(clocks)
        self.add(peak_memory_bytes=peak.above_bytes, threads=torch.get_num_threads(), cohort=1)

    def at(self, level: str) -> dict[str, int | float | None]:
        """Return what a client reports at a level."""
        if level != "off":
            return self._figures
        return {name: self._figures[name] for name in ALWAYS}
