"""The arms of a study side by side: means and spreads over seeds, from the ledgers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedsim.ledger.files import CALIBRATION
from fedsim.ledger.read import Run, load
from fedsim.measure.timings import Calibration, Timing, read_calibration
from fedsim.records import ClientRow, Kind, RoundRow
from fedsim.records import figures as columns
from fedsim.study.design import Study, Values, label_of
from fedsim.study.figures import COSTS, FIGURES, figures_of, to_target

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
class Arm:
    """One arm of a study: its figures over seeds, and its activation's timings if there are any.

    ``figures`` are those of ``FIGURES``, and each of ``COSTS`` until each target.
    """

    label: str
    figures: Mapping[str, Spread]
    timings: Timing | None = None

    @property
    def failed(self) -> bool:
        """Whether there are seeds, and not one of them completed its run."""
        accuracy = self.spread("test_accuracy")
        return bool(accuracy.values) and not accuracy.reached

    def spread(self, figure: str) -> Spread:
        """Return one figure, or the estimate of a timing; no values where the arm has none."""
        if figure not in TIMED or not self.timings:
            return self.figures.get(figure, Spread())
        parts = (getattr(self.timings, part).estimate for part in TIMED[figure])
        return Spread(values=(sum(parts),))

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
        timings = timings_as_json(self.timings) if self.timings else None
        return {"arm": self.label, **figures, "calibration": timings}


def timings_as_json(timings: Timing) -> dict[str, Any]:
    """Return an activation's timings as JSON values, each with its kind; None where not timed."""
    found = ((field.name, getattr(timings, field.name)) for field in fields(timings))
    return {name: t and {"kind": "measured", **asdict(t)} for name, t in found}


def kind_of(figure: str) -> Kind:
    """Return whether a figure of an arm is counted, measured or modelled."""
    if figure in TIMED:
        return "measured"
    cost, to, _ = figure.rpartition("_to_")
    return COSTS[cost] if to else FIGURES[figure]


def kinds_of(summary: Mapping[str, object]) -> dict[str, Kind]:
    """Return which figures of a run's summary are counted, measured or modelled."""
    rows = {**columns(ClientRow), **columns(RoundRow)}
    known: dict[str, Kind] = {name: column.metadata["kind"] for name, column in rows.items()}
    known |= {**COSTS, **FIGURES, "clients_trained": "counted", "clients_failed": "counted"}
    return {name: known[name] for name in summary if name in known}


def summarise_arm(
    label: str,
    runs: Sequence[Path | None],
    targets: Sequence[float],
    timings: Timing | None = None,
    read: Callable[[Path], Run] = load,
) -> Arm:
    """Read the completed runs of one arm, one for each seed; None stands for one that failed.

    A seed that failed counts as one that did not get there, in every figure: the others' mean
    would be that of the lucky ones. A figure that one of the runs does not have (its level did not
    ask for it, or an older fedsim wrote it) has no values at all.
    """
    names = [*FIGURES, *(to_target(cost, target) for cost in COSTS for target in targets)]
    failed: dict[str, float | None] = dict.fromkeys(names)
    found = [failed if path is None else figures_of(read(path), targets) for path in runs]
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


def summarise_study(
    study: Study,
    runs: Mapping[tuple[Values, int], Path],
    directory: Path,
    read: Callable[[Path], Run] = load,
) -> list[Arm]:
    """Read the arms of a study.

    Args:
        study: whose arms they are.
        runs: where the complete runs lie, by arm and seed; others count as failed.
        directory: the study's, in which the activations' timings may lie.
        read: opens a run, see :func:`fedsim.study.verdicts.judge`.
    """
    calibration = calibration_in(directory)
    timings = calibration.activations if calibration else {}
    return [
        summarise_arm(
            label_of(arm),
            [runs.get((arm, seed)) for seed in study.seeds],
            study.targets,
            timings.get(study.value(arm, "model.activation")),
            read,
        )
        for arm in study.arms
    ]


def calibration_in(directory: Path) -> Calibration | None:
    """Read what a study's or a run's activations take; None if nobody measured it.

    Raises:
        DataError: the file is damaged, or of another format.
    """
    path = directory / CALIBRATION
    return read_calibration(path) if path.is_file() else None


def timed_elsewhere(calibration: Calibration, runs: Sequence[Path]) -> list[str]:
    """List in what a calibration's machine is unlike those of some runs, ``name: here -> there``.

    A run that was gone on with on another machine is of both.
    """
    machine = calibration.machine
    mine = {"processor": machine.processor, "platform": machine.platform}
    found: dict[str, None] = {}
    for path in runs:
        manifest = load(path).manifest
        for name, timed in mine.items():
            later = (changed.get(name) for changed in manifest.changed.values())
            for ran in (getattr(manifest, name), *(value for value in later if value)):
                if ran != timed:
                    found[f"{name}: {timed} -> {ran}"] = None
    return list(found)
