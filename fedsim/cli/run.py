"""``fedsim run``: one experiment."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim import units
from fedsim.cli.calibrate import calibration_of
from fedsim.cli.folding import folded
from fedsim.cli.options import (
    DataDirectory,
    Format,
    OutputFormat,
    Quiet,
    Settings,
    with_data_directory,
)
from fedsim.cli.progress import progress, say, teller
from fedsim.config import Experiment
from fedsim.errors import ConfigError, FedsimError, LedgerError

if TYPE_CHECKING:
    from fedsim.engine import Executor
    from fedsim.measure.timings import Timing


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
    from fedsim.choices import choose_engine
    from fedsim.simulation import open_engine, prepare

    tell = teller(quiet=quiet)
    with ExitStack() as stack:
        executor: Executor | None = None
        if experiment.engine.name == "ray" and not experiment.measure.calibrate:
            # Ray's processes start beside what follows; but nothing runs beside a calibration.
            executor = open_engine(experiment)
            stack.callback(executor.close)
        (experiment,) = choose_engine([prepare(experiment, tell)], tell)
        execute(experiment, executor, output, quiet=quiet)
    show(Path(experiment.run.out), output)


def execute(
    experiment: Experiment, executor: Executor | None, output: OutputFormat, *, quiet: bool
) -> None:
    """Run an experiment that is prepared, on an engine that is open already or on its own."""
    from fedsim.ledger.files import CALIBRATION, write_atomically
    from fedsim.runs import holds_run
    from fedsim.simulation import open_engine, simulate

    directory = Path(experiment.run.out)
    timed, before = None, starts(directory)
    if may_begin(experiment):
        timed = calibration_of([experiment], directory / CALIBRATION, quiet=quiet)
    name, engine = experiment.experiment.name, experiment.engine.name
    say(f"{name}: starting the {engine} engine", quiet=quiet)
    try:
        executor = executor or open_engine(experiment)
        try:
            with progress(quiet=quiet):
                simulate(experiment, executor)
        except (ConfigError, LedgerError):
            timed = None  # refused: what lies in the directory is another run's
            raise
        finally:
            executor.close()
            if timed and starts(directory) > before:
                write_atomically(directory / CALIBRATION, timed)
    except KeyboardInterrupt:
        if holds_run(directory):
            say(f"interrupted; go on with: fedsim run --resume {directory}")
        raise
    except FedsimError as error:
        if output is OutputFormat.json and error.exit_code == 1 and holds_run(directory):
            show(directory, output)
        raise


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


def may_begin(experiment: Experiment) -> bool:
    """Say whether nothing speaks against a run in its directory; if not, its ledger says what."""
    from fedsim.config import differences
    from fedsim.ledger.files import LOCK
    from fedsim.ledger.lock import is_held
    from fedsim.runs import holds_run, stored_experiment

    directory = Path(experiment.run.out)
    if is_held(directory / LOCK):
        return False
    if experiment.run.resume:
        return holds_run(directory) and not differences(stored_experiment(directory), experiment)
    return not directory.exists() or (
        directory.is_dir() and {path.name for path in directory.glob("*")} <= {LOCK}
    )


def starts(directory: Path) -> int:
    """Count how often a run was begun or gone on with in a directory; 0: there is none to read."""
    from fedsim.ledger.manifest import read_manifest

    try:
        return 1 + len(read_manifest(directory).resumed)
    except LedgerError:
        return 0


def show(directory: Path, output: OutputFormat) -> None:
    """Print what the run came to, and what its activation takes where that was timed."""
    from fedsim.report.arms import calibration_in, kinds_of, timings_as_json
    from fedsim.report.summary import INDENT, run_lines, run_summary
    from fedsim.runs import stored_experiment

    summary = run_summary(directory)
    calibration = calibration_in(directory)
    name = stored_experiment(directory).model.activation
    timing = calibration.activations.get(name) if calibration else None
    if output is OutputFormat.json:
        timings = timings_as_json(timing) if timing else None
        typer.echo(json.dumps(summary | {"kinds": kinds_of(summary), "calibration": timings}))
    else:
        lines = [*run_lines(summary), *([timing_line(name, timing)] if timing else [])]
        typer.echo("\n".join(folded(line, indent=INDENT) for line in lines))


def timing_line(name: str, timing: Timing) -> str:
    """Say what an activation takes."""
    from fedsim.report.summary import NAME

    forward, backward = timing.forward_ns.estimate, timing.backward_ns.estimate
    return (
        f"  {name:<{NAME}} {units.number(forward)} ns/element forward, {units.number(backward)} "
        f"backward, {units.percent(timing.share_of_step.estimate)} of a training step (measured)"
    )
