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
    from fedsim.overhead import Overhead

# By this many parameters the 2NN is known: 784-200-200-10, with biases.
PARAMETERS_OF_2NN = 199_210


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
    25% for full; other models have none. The model's bits have to be the same at every level, and
    this fails where they are not.

    Examples:

        fedsim bench measure configs/mnist.toml
        fedsim bench measure -s engine.workers=1 --repeats 20 --format json
    """
    from fedsim import config
    from fedsim.costs import experiment_cost
    from fedsim.errors import RunFailed
    from fedsim.overhead import BOUNDS, measure_overhead
    from fedsim.simulation import prepare
    from fedsim.vocabulary import vocabulary

    overrides = with_data_directory(settings, data_dir)
    experiment = prepare(config.read(file, overrides, vocabulary=vocabulary()))

    def progress(done: int, runs: int, left_seconds: float | None) -> None:
        left = "" if left_seconds is None else f", about {units.seconds(left_seconds)} left"
        say(f"run {done + 1}/{runs}{left}", quiet=quiet)

    is_2nn = experiment_cost(experiment).parameters == PARAMETERS_OF_2NN
    found = measure_overhead(
        experiment,
        rounds=rounds,
        repeats=repeats,
        bounds=BOUNDS if is_2nn else {},
        progress=progress,
    )
    if output is OutputFormat.json:
        typer.echo(json.dumps(found.as_json()))
    else:
        show(found)
    if not found.same_model:
        raise RunFailed(
            "the model's bits differ between the levels: measuring changed the training, so "
            "figures of runs at unlike levels are not to be compared; report this with its command"
        )


def show(found: Overhead) -> None:
    """Print the price of every level."""
    from fedsim.report.tables import plain_table, with_interval
    from fedsim.report.tables import show as print_table

    figures = ("a round", "price", "clients' measuring", "bound")
    table = plain_table("level", *figures, "within", right=figures)
    for level in found.levels:
        table.add_row(
            level.level,
            with_interval(level.round_seconds, units.seconds),
            units.MISSING if level.price is None else with_interval(level.price, units.percent),
            units.shown(level.measuring_share, units.percent),
            units.shown(level.bound, units.percent),
            units.MISSING if level.within is None else ("yes" if level.within else "no"),
        )
    print_table(table)
    same = "are the same" if found.same_model else "DIFFER"
    typer.echo(
        f"all measured: medians of {found.repeats} runs of {found.rounds} rounds [95% interval]; "
        "within: by the estimate;\n"
        "price: over level off of the same repeat, so it need not be the ratio of the medians;\n"
        "clients' measuring: their time in it over their time in the training\n"
        f"the model's bits {same} at every level"
    )
