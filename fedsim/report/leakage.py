"""What leaked, by arm: means over the seeds with 95% intervals, from the rows of attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from fedsim import units
from fedsim.measure.timings import Interval
from fedsim.privacy.attacks.rows import ARM, FIGURES, LeakageRow, by_arm
from fedsim.report.tables import plain_table, with_interval
from fedsim.study.statistics import LEVEL, intervals

# By figure: what its column is called, how it is printed, and its range.
COLUMNS: dict[str, tuple[str, Callable[[float], str], float, float]] = {
    "labels_recovered": ("labels recovered", units.percent, 0.0, 1.0),
    "recovered_at_1e_3": ("recovered at 1e-3", units.percent, 0.0, 1.0),
    "recovered_at_0_1": ("recovered at 0.1", units.percent, 0.0, 1.0),
    "relative_error": ("relative error", units.number, 0.0, math.inf),
    "psnr_db": ("PSNR, dB", units.number, -math.inf, math.inf),
    "ssim": ("SSIM", units.number, -1.0, 1.0),
    "auc": ("AUC", units.number, 0.0, 1.0),
    "tpr_at_1_percent_fpr": ("TPR at 1% FPR", units.percent, 0.0, 1.0),
    "cpu_seconds": ("CPU", units.seconds, 0.0, math.inf),
}
assert set(COLUMNS) == set(FIGURES)
HIDDEN = ("relative_error",)  # in the rows, and in no table: SSIM and PSNR say as much


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What an arm's rows say together.

    Attributes:
        arm: the columns that its rows have in common.
        seeds: how many rows.
        figures: by name, mean and 95% interval over the seeds, cut where the figure's range ends;
            figures that do not apply are left out. The ends are NaN of a single seed.
    """

    arm: dict[str, Any]
    seeds: int
    figures: dict[str, Interval]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it, with null for what no number says."""
        figures = {
            name: {
                key: value if math.isfinite(value) else None
                for key, value in (("mean", f.estimate), ("low", f.low), ("high", f.high))
            }
            for name, f in self.figures.items()
        }
        return {**self.arm, "seeds": self.seeds, "figures": figures}


def leakages(rows: Sequence[LeakageRow]) -> list[Leakage]:
    """Return what the rows of each arm say, in the order of the arms."""
    return [
        Leakage(
            arm={name: getattr(arm[0], name) for name in ARM},
            seeds=len(arm),
            figures={
                name: over_seeds(name, values)
                for name in COLUMNS
                if None not in (values := [getattr(row, name) for row in arm])
            },
        )
        for arm in by_arm(rows)
    ]


def over_seeds(name: str, values: Sequence[float]) -> Interval:
    """Return mean and interval of a figure; an infinite one has no interval."""
    found = np.asarray(values, np.float64)
    if not np.isfinite(found).all():
        return Interval(estimate=math.inf, low=math.nan, high=math.nan)
    _, _, least, most = COLUMNS[name]
    low, high = intervals(found, (LEVEL,))[0]
    return Interval(
        estimate=float(found.mean()),
        low=math.nan if math.isnan(low) else max(low, least),
        high=math.nan if math.isnan(high) else min(high, most),
    )


def leakage_table(found: Sequence[Leakage]) -> Table:
    """A line for each arm, with the columns in which arms differ and the figures that apply."""
    if not found:
        return plain_table("attack", "activation")
    keys = [
        name
        for name in ARM
        if name in ("attack", "activation") or len({arm.arm[name] for arm in found}) > 1
    ]
    names = [
        name for name in COLUMNS if name not in HIDDEN and any(name in arm.figures for arm in found)
    ]
    titles = [COLUMNS[name][0] for name in names]
    table = plain_table(*(key.replace("_", " ") for key in keys), *titles, right=titles)
    for arm in found:
        shown = (figure_text(name, arm.figures.get(name)) for name in names)
        table.add_row(*(str(arm.arm[key]) for key in keys), *shown)
    return table


def figure_text(name: str, figure: Interval | None) -> str:
    """Print a mean, with its interval where there is one that the digits shown can tell."""
    unit = COLUMNS[name][1]
    if figure is None:
        return units.MISSING
    if math.isnan(figure.low) or unit(figure.low) == unit(figure.high):
        return unit(figure.estimate)
    return with_interval(figure, unit)
