"""The bill of a visit, by one client or a block of them, as it is drawn up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from fedsim.measure.clocks import spent, training_clocks
from fedsim.measure.memory import peak_memory

# What every reply holds, also where nobody asks for a bill.
ALWAYS = (
    *("examples", "steps", "loss_first_step", "loss_last_step", "initial_loss"),
    *("cpu_seconds", "wall_seconds"),
)


# Clocks of the training, which takes as long as its steps are many.
BY_STEPS = {"cpu_seconds", "wall_seconds", "waiting_seconds", "others_cpu_seconds"}


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
        cohort: int,
        all_threads: bool,
        warm_up: Callable[[], None],
    ) -> Iterator[None]:
        """Time the local training alone.

        Args:
            visit: names what the peak of memory is above, see
                :func:`fedsim.measure.memory.peak_memory`.
            device: ``cpu`` or ``cuda``.
            conditions: also measure memory, and what else the machine did meanwhile.
            cohort: clients that train in the block.
            all_threads: the training runs in other threads too, see
                :func:`fedsim.measure.clocks.spent`.
            warm_up: a step that changes nothing, before the first such block of a visit.
        """
        if not conditions:
            with spent(all_threads=all_threads) as seconds:
                yield
            self._time_training(vars(seconds))
            return
        with (
            peak_memory(visit, device=device, warm_up=warm_up) as peak,
            training_clocks(all_threads=all_threads) as clocks,
        ):
            yield
        self._time_training(vars(clocks))
        self.add(peak_memory_bytes=peak.above_bytes, threads=torch.get_num_threads(), cohort=cohort)

    def _time_training(self, seconds: Mapping[str, float | None]) -> None:
        """Take over the training's clocks; where they show no time, they stood still."""
        never = {"cpu_seconds", "wall_seconds"}
        self._figures |= {k: None if k in never and v == 0 else v for k, v in seconds.items()}

    def at(self, level: str) -> dict[str, int | float | None]:
        """Return what a client reports at a level."""
        if level != "off":
            return self._figures
        return {name: self._figures.get(name) for name in ALWAYS}

    def shared_out(self, steps: np.ndarray, level: str) -> dict[str, np.ndarray]:
        """Return what each client of a block reports at a level, by column, (clients,).

        The clocks ran for the whole block. Those of the training are shared out by steps, the
        others evenly; memory and threads were the same for all, and counts stay whole.

        Args:
            steps: (clients,), optimiser steps that each took.
            level: how much is measured.
        """
        clients, share = len(steps), steps / max(1, steps.sum())
        columns: dict[str, np.ndarray] = {}
        for name, value in self.at(level).items():
            if value is None:
                continue
            if name in BY_STEPS:
                columns[name] = value * share
            elif name.endswith("_seconds"):
                columns[name] = np.full(clients, value / clients)
            else:
                columns[name] = np.full(clients, value)
        return columns
