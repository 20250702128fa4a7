"""The bill of one client's visit, as it is drawn up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
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
        """Add the block's time to ``<part>_cpu_seconds`` and ``<part>_wall_seconds``.

        The training's own columns have no such prefix.
        """
        with spent() as seconds:
            yield
        for name, value in vars(seconds).items():
            column = name if part == "training" else f"{part}_{name}"
            before = self._figures.get(column, 0.0)
            # A clock that stepped gives no figure, nor does a sum that it is part of.
            self._figures[column] = None if None in (before, value) else before + value

    @contextmanager
    def training(
        self,
        visit: Hashable,
        *,
        device: str,
        conditions: bool,
        warm_up: Callable[[], None],
    ) -> Iterator[None]:
        """Time the local training alone.

        Args:
            visit: names what the peak of memory is above, see
                :func:`fedsim.measure.memory.peak_memory`.
            device: ``cpu`` or ``cuda``.
            conditions: also measure memory, and what else the machine did meanwhile.
            warm_up: a step that changes nothing, before the first such block of a visit.
        """
        if not conditions:
            with spent() as seconds:
                yield
            self._time_training(vars(seconds))
            return
        with (
            peak_memory(visit, device=device, warm_up=warm_up) as peak,
            training_clocks() as clocks,
        ):
            yield
        self._time_training(vars(clocks))
        self.add(peak_memory_bytes=peak.above_bytes, threads=torch.get_num_threads(), cohort=1)

    def _time_training(self, seconds: Mapping[str, float | None]) -> None:
        """Take over the training's clocks; where they show no time, they stood still."""
        never = {"cpu_seconds", "wall_seconds"}
        self._figures |= {k: None if k in never and v == 0 else v for k, v in seconds.items()}

    def at(self, level: str) -> dict[str, int | float | None]:
        """Return what a client reports at a level."""
        if level != "off":
            return self._figures
        return {name: self._figures[name] for name in ALWAYS}
