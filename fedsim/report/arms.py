"""The arms of a study side by side: means and spreads over seeds, from the ledgers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.ledger.read import load
from fedsim.measure.convergence import rounds_to_target


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values over seeds; ``None`` stands for a seed that did not get there (censored)."""

    values: tuple[float | None, ...]

    @property
    def reached(self) -> tuple[float, ...]:
        """The values that are there."""
        return tuple(value for value in self.values if value is not None)

    @property
    def mean(self) -> float | None:
        """The mean, if every seed has a value: over the lucky ones alone it would flatter."""
        complete = self.values and len(self.reached) == len(self.values)
        return statistics.fmean(self.reached) if complete else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over seeds, if there are two or more."""
        return None if self.mean is None or len(self.values) < 2 else statistics.stdev(self.reached)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a study. ``cpu_seconds`` is measured, the bytes are counted."""

    label: str
    test_accuracy: Spread
    rounds_to: Mapping[float, Spread]
    cpu_seconds: Spread
    uplink_bytes: Spread

    def as_json(self) -> dict[str, Any]:
        """Return the arm as JSON values: each figure as its mean, deviation and raw values."""
        figures = {
            "test_accuracy": self.test_accuracy,
            **{f"rounds_to_{target:g}": spread for target, spread in self.rounds_to.items()},
            "cpu_seconds": self.cpu_seconds,
            "uplink_bytes": self.uplink_bytes,
        }
        return {"arm": self.label} | {
            name: {"mean": s.mean, "deviation": s.deviation, "values": list(s.values)}
            for name, s in figures.items()
        }


def summarise_arm(label: str, runs: Sequence[Path], targets: Sequence[float]) -> Arm:
    """Read the completed runs of one arm, one for each seed."""
    accuracies: list[float | None] = []
    seconds: list[float | None] = []
    uplink: list[float | None] = []
    to_target: dict[float, list[float | None]] = {target: [] for target in targets}
    for path in runs:
        rounds = load(path).rounds
        tested = rounds.dropna(subset=["test_accuracy"])
        curve = [float(v) for v in tested.test_accuracy]
        accuracies.append(curve[-1] if curve else None)
        seconds.append(float(rounds.cpu_seconds.sum()))
        uplink.append(float(rounds.uplink_bytes.sum()))
        for target, reached in to_target.items():
            reached.append(rounds_to_target([float(r) for r in tested["round"]], curve, target))
    return Arm(
        label=label,
        test_accuracy=Spread(values=tuple(accuracies)),
        rounds_to={target: Spread(values=tuple(v)) for target, v in to_target.items()},
        cpu_seconds=Spread(values=tuple(seconds)),
        uplink_bytes=Spread(values=tuple(uplink)),
    )
