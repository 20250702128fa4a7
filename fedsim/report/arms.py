"""The arms of a study side by side: means and spreads over seeds, from the ledgers."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import DataError
from fedsim.ledger.files import CALIBRATION
from fedsim.ledger.read import Run, load
from fedsim.measure.convergence import (
    area_under_curve,
    best_accuracy,
    cost_to_target,
    final_accuracy,
)
from fedsim.records import Kind
from fedsim.report.summary import curve, local_accuracy, total

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

# The figures of a run, and what kind each is. Bytes of an update or a step, and what is modelled,
# are of one client in one round, on average; the others of the whole run.
FIGURES: dict[str, Kind] = {
    "test_accuracy": "counted",
    "best_accuracy": "counted",
    "area_under_curve": "counted",
    "local_accuracy": "counted",
    "local_worst_decile": "counted",
    "local_gini": "counted",
    "cpu_seconds": "measured",
    "train_flops": "counted",
    "uplink_bytes": "counted",
    "downlink_bytes": "counted",
    "dense_bytes": "counted",
    "compressed_bytes": "counted",
    "saved_bytes": "counted",
    "hidden_zero_fraction": "counted",
    "hidden_dead_fraction": "counted",
    "modelled_seconds_per_client": "modelled",
    "modelled_joules_per_client": "modelled",
}

# What is spent until a target is reached.
COSTS: dict[str, Kind] = {
    "rounds": "counted",
    "cpu_seconds": "measured",
    "train_flops": "counted",
    "bytes": "counted",  # up and down
    "wall_seconds": "measured",
}

CALIBRATION_FORMAT = 1
TIMINGS = ("forward_ns", "backward_ns", "share_of_step")

# What is shown of the timings, and what that sums up.
TIMED = {"ns_per_element": ("forward_ns", "backward_ns"), "share_of_step": ("share_of_step",)}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values over seeds; ``None`` stands for a seed that did not get there (censored)."""

    values: tuple[float | None, ...] = ()

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
class Interval:
    """A measured estimate, and the 95% confidence interval around it."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a study's ``calibration.json`` says; ``unstable`` is why not to trust it.

    By activation as the experiment writes it: ``forward_ns`` and ``backward_ns`` an element, and
    ``share_of_step``, the activation's share of a training step's time, in [0, 1].
    """

    unstable: tuple[str, ...]
    activations: Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a study: its figures over seeds, and its activation's timings if there are any.

    ``figures`` are those of ``FIGURES``, and each of ``COSTS`` until each target.
    """

    label: str
    figures: Mapping[str, Spread]
    timings: Mapping[str, Interval] | None = None

    def spread(self, figure: str) -> Spread:
        """Return one figure, or the estimate of a timing; no values where the arm has none."""
        if figure not in TIMED or not self.timings:
            return self.figures.get(figure, Spread())
        return Spread(values=(sum(self.timings[part].estimate for part in TIMED[figure]),))

    def as_json(self) -> dict[str, Any]:
        """Return the arm as JSON values: each figure's kind, mean, deviation and raw values."""
        figures = {
            name: {
                "kind": kind_of(name),
                "mean": spread.mean,
                "deviation": spread.deviation,
                "values": list(spread.values),
            }
            for name, spread in self.figures.items()
        }
        timings = {
            name: {"kind": "measured", **asdict(timing)}
            for name, timing in (self.timings or {}).items()
        }
        return {"arm": self.label, **figures, "calibration": timings or None}


def to_target(cost: str, target: float) -> str:
    """Name the figure of a cost until a target, such as ``bytes_to_0.95``."""
    return f"{cost}_to_{target:g}"


def kind_of(figure: str) -> Kind:
    """Return whether a figure of an arm is counted, measured or modelled."""
    if figure in TIMED:
        return "measured"
    cost, to, _ = figure.rpartition("_to_")
    return COSTS[cost] if to else FIGURES[figure]


def summarise_arm(
    label: str,
    runs: Sequence[Path],
    targets: Sequence[float],
    timings: Mapping[str, Interval] | None = None,
) -> Arm:
    """Read the completed runs of one arm, one for each seed.

    A figure that one of the runs does not have (its level did not ask for it, or an older fedsim
    wrote it) has no values at all.
    """
    found = [figures_of(load(path), targets) for path in runs]
    names = [*FIGURES, *(to_target(cost, target) for cost in COSTS for target in targets)]
    spreads = {name: tuple(figures[name] for figures in found) for name in names}
    complete = {
        name: not any(value is not None and math.isnan(value) for value in values)
        for name, values in spreads.items()
    }
    return Arm(
        label=label,
        figures={n: Spread(values=v if complete[n] else ()) for n, v in spreads.items()},
        timings=timings,
    )


def figures_of(run: Run, targets: Sequence[float]) -> dict[str, float | None]:
    """Return a run's figures by name.

    NaN stands for a figure that the run does not have, None for a target that it did not reach.
    """
    rounds, clients = run.rounds, run.clients
    evaluated, accuracy = curve(run)
    local = local_accuracy(run) or {}
    figures = {
        "test_accuracy": final_accuracy(accuracy),
        "best_accuracy": best_accuracy(accuracy),
        "area_under_curve": area_under_curve(evaluated, accuracy),
        "local_accuracy": local.get("mean"),
        "local_worst_decile": local.get("worst_decile"),
        "local_gini": local.get("gini"),
        "hidden_zero_fraction": hidden(run, "zero_fraction"),
        "hidden_dead_fraction": hidden(run, "dead_fraction"),
    }
    for name in ("cpu_seconds", "train_flops", "uplink_bytes", "downlink_bytes"):
        figures[name] = total(rounds[name])
    for name in ("dense_bytes", "compressed_bytes", "saved_bytes"):
        figures[name] = mean(clients[name])
    for name in ("modelled_seconds", "modelled_joules"):
        figures[f"{name}_per_client"] = mean(clients[name])
    known = {name: math.nan if v is None else float(v) for name, v in figures.items()}
    return {**known, **costs_to_targets(rounds, targets)}


def costs_to_targets(rounds: pd.DataFrame, targets: Sequence[float]) -> dict[str, float | None]:
    """Return what was spent until each target; NaN where a round does not say what it cost."""
    tested = rounds.test_accuracy.notna().to_numpy()
    accuracy = rounds.test_accuracy[tested].tolist()
    figures: dict[str, float | None] = {}
    for cost in COSTS:
        spent = spent_until(rounds, cost)[tested]
        for target in targets:
            reached = cost_to_target(spent.tolist(), accuracy, target)
            figures[to_target(cost, target)] = math.nan if np.isnan(spent).any() else reached
    return figures


def spent_until(rounds: pd.DataFrame, cost: str) -> np.ndarray:
    """Return what was spent until the end of each round, (rounds,); NaN from a missing one on."""
    if cost == "rounds":
        return np.asarray(rounds["round"], dtype=np.float64)
    names = ["uplink_bytes", "downlink_bytes"] if cost == "bytes" else [cost]
    spent = rounds[names].to_numpy("float64", na_value=np.nan)
    return np.cumsum(spent.sum(axis=1))


def mean(column: pd.Series) -> float | None:
    """Return the mean of the figures that are there, or None if none is."""
    values = column.dropna().tolist()
    return math.fsum(values) / len(values) if values else None


def hidden(run: Run, column: str) -> float | None:
    """Return the mean of a figure over clients and hidden layers, after local training.

    It is of the last round that was looked at (``measure.level = "full"``). Hidden layers are
    those with an activation, which alone have such figures.
    """
    after = run.layers[(run.layers.phase == "after").fillna(False)].dropna(subset=[column])
    return mean(after[column][after["round"] == after["round"].max()])


def read_calibration(directory: Path) -> Calibration | None:
    """Read how fast the activations are on the study's machine; None if nobody measured it.

    Raises:
        DataError: the file is damaged, or of another format.
    """
    path = directory / CALIBRATION
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != CALIBRATION_FORMAT:
            raise ValueError(f"format {document['format']!r} is not {CALIBRATION_FORMAT}")
        if not isinstance(document["unstable"], list):
            raise TypeError(f"unstable = {document['unstable']!r} is no list")
        return Calibration(
            unstable=tuple(str(reason) for reason in document["unstable"]),
            activations={
                activation: {name: interval(timing[name]) for name in TIMINGS}
                for activation, timing in document["activations"].items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: no calibration that can be read ({type(error).__name__}: {error}); "
            "remove the file to have it measured again"
        ) from error


def interval(raw: Mapping[str, Any]) -> Interval:
    """Check one timing.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    values = {name: raw[name] for name in ("estimate", "low", "high")}
    for name, value in values.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name} = {value!r} is no number")
    return Interval(**values)
