"""From raw rows to figures: medians, spreads, ratios within a repeat. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.cases import BY_NAME, Case

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """A median with the least and the most; ``runs`` were undisturbed but for ``disturbed``."""

    middle: float
    low: float
    high: float
    runs: int
    disturbed: int = 0

    @staticmethod
    def of(values: Sequence[float], disturbed: int = 0) -> Spread:
        """Summarise at least one value."""
        return Spread(median(values), min(values), max(values), len(values), disturbed)


def clients_per_second(row: Row) -> float:
    """Return a run's speed: the cohort over its median round."""
    return row["spec"]["cohort"] / median(row["round_seconds"])


def price(row: Row) -> float:
    """Return how much longer a round is at level light than at off, as a share of that."""
    seconds: dict[str, list[float]] = {}
    for run in row["levels"]:
        seconds.setdefault(run["level"], []).extend(run["round_seconds"])
    return median(seconds["light"]) / median(seconds["off"]) - 1


def driver_bytes(row: Row) -> float:
    """Return the driver's RSS after the last round."""
    return row["memory"]["driver"]["rss"]


def worker_bytes(row: Row) -> float | None:
    """Return the RSS of the largest worker after the last round; None without workers."""
    return max((worker["rss"] for worker in row["memory"]["workers"]), default=None)


def total_pss(row: Row) -> float:
    """Return the memory of all the run's processes together, shared pages counted once."""
    memory = row["memory"]
    everyone = [memory["driver"], *memory["workers"], *memory["helpers"]]
    return sum(process["pss"] for process in everyone)


def with_levels(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that count of runs at several levels, off among them."""
    levels = [{run["level"] for run in row.get("levels", ())} for row in rows]
    found = zip(rows, levels, strict=True)
    return [row for row, seen in found if row["counted"] and {"off", "light"} <= seen]


def counted(rows: Sequence[Row], case: str, label: str) -> list[Row]:
    """Return the rows of one entry that count, a row a repeat."""
    return [r for r in rows if r["case"] == case and r["label"] == label and r["counted"]]


def spread(rows: Sequence[Row], figure: Callable[[Row], float | None]) -> Spread | None:
    """Summarise a figure over an entry's repeats; None where there is none."""
    values = [value for row in rows if (value := figure(row)) is not None]
    return Spread.of(values, sum(row["disturbed"] for row in rows)) if values else None


def ratio(mine: Sequence[Row], theirs: Sequence[Row]) -> Spread | None:
    """Return my speed over theirs, repeat by repeat: what slows both falls out."""
    other = {row["repeat"]: clients_per_second(row) for row in theirs}
    values = [
        clients_per_second(row) / other[row["repeat"]] for row in mine if row["repeat"] in other
    ]
    return Spread.of(values) if values else None


def measured_cases(rows: Sequence[Row]) -> list[Case]:
    """Return the cases that rows are of, in the order of the suite."""
    names = {row["case"] for row in rows}
    return [case for name, case in BY_NAME.items() if name in names]
