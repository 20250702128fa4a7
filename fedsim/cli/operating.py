"""``fedsim study --calibrate``: how often the statistics are wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from fedsim import units
from fedsim.cli.options import OutputFormat
from fedsim.cli.progress import say
from fedsim.errors import RunFailed

if TYPE_CHECKING:
    from fedsim.study.operating import Rate

REPETITIONS = 2_000


def calibrate(output: OutputFormat, *, quiet: bool) -> None:
    """Run every scenario and print what came of it.

    Raises:
        RunFailed: a promise does not hold.
    """
    rates = run_all(REPETITIONS, quiet=quiet)
    if output is OutputFormat.json:
        typer.echo(json.dumps([rate.as_json() for rate in rates]))
    else:
        show(rates)
    broken = [r for r in rates if r.vouched and not r.holds]
    if broken:
        raise RunFailed(
            "\n".join(f"{r.scenario}, {r.shape}, {r.seeds} seeds: {r.share:.3f}" for r in broken)
        )


def run_all(repetitions: int, *, quiet: bool) -> list[Rate]:
    """Run the scenarios, one after another, telling the progress."""
    from fedsim.study.operating import scenarios

    found = []
    todo = list(scenarios())
    for number, scenario in enumerate(todo, 1):
        name = f"{scenario.name}, {scenario.shape}, {scenario.seeds} seeds"
        found.append(scenario.run(repetitions))
        say(f"[{number}/{len(todo)}] {name}: {found[-1].share:.3f}", quiet=quiet)
    return found


HEAD = ("scenario", "noise", "seeds", "share", "95% interval", "promised", "holds")


def rows_of(rates: Sequence[Rate]) -> list[tuple[str, ...]]:
    """Return a line for each scenario, as text."""
    rows: list[tuple[str, ...]] = []
    for r in rates:
        sign = {"at most": "+", "at least": "-", "within": "+-"}[r.check]
        plus = f" {sign} {100 * r.tolerance:g} points" if r.tolerance else ""
        bound = "" if r.check == "within" else f"{r.check} "
        rows.append(
            (
                *(r.scenario, r.shape, str(r.seeds), units.percent(r.share)),
                f"{units.percent(r.low)} to {units.percent(r.high)}",
                f"{bound}{units.percent(r.promised)}{plus}" if r.vouched else "",
                ("yes" if r.holds else "NO") if r.vouched else "",
            )
        )
    return rows


def show(rates: Sequence[Rate]) -> None:
    """Print a line for each scenario."""
    from fedsim.report.tables import plain_table
    from fedsim.report.tables import show as print_table

    table = plain_table(*HEAD, right=("seeds", "share"))
    for row in rows_of(rates):
        table.add_row(*row)
    print_table(table)
