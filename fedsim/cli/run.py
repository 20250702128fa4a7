"""``fedsim run``: one experiment."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.calibrate import calibration_of
from fedsim.cli.options import (
    DataDirectory,
    Format,
    OutputFormat,
    Quiet,
    Settings,
    with_data_directory,
)
from fedsim.cli.progress import progress, say
from fedsim.config import Experiment
from fedsim.errors import FedsimError


def run(
    file: Annotated[
        Path | None, typer.Argument(help="The experiment, a TOML file; default: the defaults.")
    ] = None,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory; default: a new one under runs/.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with the run in DIR.")
    ] = None,
    data_dir: DataDirectory = None,
    output: Format = OutputFormat.text,
    quiet: Quiet = False,
) -> None:
    """Run one experiment; its ledger keeps every client of every round.

    Examples:

        fedsim run configs/quickstart.toml
        fedsim run configs/quickstart.toml -s model.activation=tanh -s train.learning_rate=0.05
        fedsim run --resume runs/quickstart-20261123-101500

    Ctrl-C stops a run so that --resume goes on with the same bits.
    """
    experiment = read_experiment(file, with_data_directory(settings, data_dir), out, resume)
    from fedsim.ledger.files import CALIBRATION, write_atomically
    from fedsim.runs import holds_run
    from fedsim.simulation import open_engine, prepare, simulate

    experiment = prepare(experiment)
    engine = experiment.engine
    directory = Path(experiment.run.out)
    timed = calibration_of([experiment], directory / CALIBRATION, quiet=quiet)
    say(f"{experiment.experiment.name}: starting the {engine.name} engine", quiet=quiet)
    try:
        executor = open_engine(experiment)
        try:
            with progress(quiet=quiet):
                simulate(experiment, executor)
        finally:
            executor.close()
            if timed and holds_run(directory):
                write_atomically(directory / CALIBRATION, timed)
    except KeyboardInterrupt:
        if holds_run(directory):
            say(f"interrupted; go on with: fedsim run --resume {directory}")
        raise
    except FedsimError as error:
        if output is OutputFormat.json and error.exit_code == 1 and holds_run(directory):
            show(directory, output)
        raise
    show(directory, output)


def read_experiment(
    file: Path | None, settings: list[str], out: Path | None, resume: Path | None
) -> Experiment:
    """Read the experiment that the command line asks for, with the run directory in it."""
    from fedsim import config, runs
    from fedsim.errors import ConfigError
    from fedsim.vocabulary import vocabulary

    if resume is None:
        experiment = config.read(file, settings, vocabulary=vocabulary())
        name = experiment.experiment.name
        directory = out or Path(experiment.run.out or runs.new_directory(name))
    elif out is not None:
        raise ConfigError([f"--out {out}: a resumed run stays in {resume}; leave it out"])
    else:
        stored = runs.stored_experiment(resume).flat()
        experiment = config.read(file, settings, vocabulary=vocabulary(), base=stored)
        directory = resume
    going_on = experiment.run.resume or resume is not None
    table = dataclasses.replace(experiment.run, out=str(directory.absolute()), resume=going_on)
    return dataclasses.replace(experiment, run=table)


def show(directory: Path, output: OutputFormat) -> None:
    """Print what the run came to."""
    from fedsim.report.summary import run_lines, run_summary

    summary = run_summary(directory)
    if output is OutputFormat.json:
        typer.echo(json.dumps(summary))
    else:
        typer.echo("\n".join(run_lines(summary)))
