"""``fedsim bench measure``: what measuring costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim import units
from fedsim.cli.options import (
    DataDirectory,
    Format,
    OutputFormat,
    Quiet,
    Settings,
    with_data_directory,
)
from fedsim.cli.progress import say

if TYPE_CHECKING:
    from fedsim.measure.stability import Interval
    from fedsim.overhead import Overhead


def measure(
    file: Annotated[
        Path | None, typer.Argument(help="The experiment, a TOML file; default: the defaults.")
    ] = None,
    settings: Settings = None,
    rounds: Annotated[int, typer.Option(help="Rounds that are timed in each run.")] = 10,
    repeats: Annotated[int, typer.Option(help="Runs at each level.")] = 10,
    data_dir: DataDirectory = None,
    output: Format = OutputFormat.text,
    quiet: Quiet = False,
) -> None:
    """Time the rounds of an experiment at every measure.level, in turns.

    The price of a level is what its rounds take longer than those of level off, ledger included.
    The bounds that fedsim sets itself are for the 2NN, as in configs/mnist.toml: 3% for light,
    25% for full. The model's bits have to be the same at every level, and this says whether they
    were.

    Examples:

        fedsim bench measure configs/mnist.toml
        fedsim bench measure -s engine.workers=1 --repeats 20 --format json
    """
    from fedsim import config
    from fedsim.overhead import measure_overhead
    from fedsim.simulation import prepare
    from fedsim.vocabulary import vocabulary

    overrides = with_data_directory(settings, data_dir)
    experiment = prepare(config.read(file, overrides, vocabulary=vocabulary()))

    def progress(done: int, runs: int) -> None:
        say(f"run {done + 1}/{runs}", quiet=quiet)

    found = measure_overhead(experiment, rounds=rounds, repeats=repeats, progress=progress)
    if output is OutputFormat.json:
        typer.echo(json.dumps(found.as_json()))
    else:
        show(found)


def show(found: Overhead) -> None:
    """Print the price of every level."""
    from fedsim.report.tables import plain_table
    from fedsim.report.tables import show as print_table

    figures = ("a round", "price", "clients' measuring", "bound")
    table = plain_table("level", *figures, right=figures)
    for level in found.levels:
        table.add_row(
            level.level,
            with_interval(level.round_seconds, 1e3, " ms"),
            units.MISSING if level.price is None else with_interval(level.price, 100, "%"),
            units.shown(level.measuring_share, units.percent),
            units.shown(level.bound, units.percent),
        )
    print_table(table)
    same = "are the same" if found.same_model else "DIFFER"
    typer.echo(
        f"all measured: medians of {found.repeats} runs of {found.rounds} rounds [95% interval]; "
        "price: over level off;\n"
        "clients' measuring: their time in it over their time in the training\n"
        f"the model's bits {same} at every level"
    )


def with_interval(figure: Interval, factor: float, unit: str) -> str:
    """Print estimate [low, high]."""
    estimate, low, high = (factor * v for v in (figure.estimate, figure.low, figure.high))
    return f"{estimate:.1f}{unit} [{low:.1f}, {high:.1f}]"
