"""Tables for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from fedsim import units
from fedsim.ledger.read import RunSummary

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedsim.report.arms import Arm, Spread

# Without a terminal a table is as wide as it needs to be: files and pipes do not wrap.
UNBOUNDED = 10_000


def show(table: Table) -> None:
    """Print a table on standard output."""
    width = None if sys.stdout.isatty() else UNBOUNDED
    Console(width=width, markup=False, emoji=False).print(table)


def plain_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in the house's look; figures stand to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def runs_table(runs: Sequence[RunSummary]) -> Table:
    """A line for each run."""
    table = plain_table(
        "run", "name", "status", "rounds", "accuracy", "started", right=("rounds", "accuracy")
    )
    for run in runs:
        table.add_row(
            str(run.path),
            run.name,
            f"{run.status}: {run.problem}" if run.problem else run.status,
            f"{units.shown(run.rounds, str)}/{units.shown(run.rounds_planned, str)}",
            units.shown(run.test_accuracy, units.percent),
            (run.started or units.MISSING)[:19].replace("T", " "),
        )
    return table


def arms_table(axis: str, arms: Sequence[Arm], targets: Sequence[float]) -> Table:
    """A line for each arm of a study: mean +- standard deviation over the seeds."""
    reach = [f"rounds to {100 * target:g}%" for target in targets]
    figures = ["test accuracy", *reach, "client CPU", "uplink"]
    table = plain_table(axis, *figures, right=figures)
    for arm in arms:
        table.add_row(
            arm.label,
            with_spread(arm.test_accuracy, units.percent),
            *(with_spread(arm.rounds_to[target], rounds_text) for target in targets),
            with_spread(arm.cpu_seconds, units.seconds),
            with_spread(arm.uplink_bytes, units.size),
        )
    return table


def rounds_text(value: float) -> str:
    """A number of rounds."""
    return f"{value:.1f}"


def with_spread(spread: Spread, unit: Callable[[float], str]) -> str:
    """Print mean +- deviation; or how many seeds got there, where not all did."""
    if spread.mean is None:
        return f"{len(spread.reached)} of {len(spread.values)} seeds" if spread.values else "-"
    if not spread.deviation:
        return unit(spread.mean)
    return f"{unit(spread.mean)} +- {unit(spread.deviation)}"
