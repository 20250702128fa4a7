"""``fedsim study``: one experiment over axes and seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import click
import typer

from fedsim import units
from fedsim.cli.calibrate import calibration_of
from fedsim.cli.operating import calibrate
from fedsim.cli.options import (
    DataDirectory,
    Format,
    OutputFormat,
    Quiet,
    Settings,
    with_data_directory,
)
from fedsim.cli.plan import show_plan
from fedsim.cli.progress import StudyProgress, say, teller
from fedsim.config import Experiment
from fedsim.errors import ConfigError, RunFailed
from fedsim.settings import EngineTable

if TYPE_CHECKING:
    from fedsim.engine.pool import RayExecutor
    from fedsim.ledger.read import Run
    from fedsim.measure.timings import Calibration
    from fedsim.report.arms import Arm
    from fedsim.study.design import Study
    from fedsim.study.execute import Bench, StudyRuns
    from fedsim.study.verdicts import Verdict

Tell = Callable[[str], None]


def study(
    file: Annotated[Path | None, typer.Argument(help="The study, a TOML file.")] = None,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's directory; default: runs/NAME.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would run, and for how long; run nothing.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Say how often the statistics are wrong, by simulation; no FILE."
        ),
    ] = False,
    data_dir: DataDirectory = None,
    output: Format = OutputFormat.text,
    quiet: Quiet = False,
) -> None:
    """Run an experiment over axes and seeds, and decide hypotheses.

    Every combination of the axes runs with every seed. Runs that are there already are not run
    again, so the same command goes on with a study that was stopped, and tries failed runs once
    more.

    Examples:

        fedsim study configs/activations.toml
        fedsim study configs/activations.toml --plan
        fedsim study --calibrate
        fedsim study configs/activations.toml -s experiment.rounds=60 --out runs/longer
    """
    from fedsim.runs import runs_root
    from fedsim.study.file import read_study
    from fedsim.vocabulary import vocabulary

    started = time.monotonic()
    if check:
        if file or plan or settings:
            raise click.UsageError("--calibrate takes no FILE, --plan or --set.")
        calibrate(output, quiet=quiet)
        return
    if file is None:
        raise click.UsageError("Missing argument 'FILE'.")
    overrides = with_data_directory(settings, data_dir)
    asked = read_study(file, overrides, vocabulary=vocabulary())
    directory = out or runs_root() / asked.name
    if plan:
        show_plan(asked, directory, output)
        return
    try:
        done, already = run_study(asked, directory, quiet=quiet)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on", quiet=quiet)
        raise
    show_study(done, output)
    if output is OutputFormat.text:
        complete, cells = len(done.complete()), len(asked.arms) * len(asked.seeds)
        again = f", {already} of them were there already" if already else ""
        taken = units.seconds(time.monotonic() - started)
        typer.echo(f"{complete} of {cells} runs complete{again}, {taken}")
        typer.echo(f"runs: {directory}; to look at them: fedsim report {directory}")
    failures = done.failures()
    if left := len(done.wanted()):
        budget = units.seconds(asked.budget_seconds)
        failures.append(f"the budget of {budget} is used up with {left} runs to go; call it again")
    if failures:
        raise RunFailed("\n".join(failures))


def run_study(asked: Study, directory: Path, *, quiet: bool) -> tuple[StudyRuns, int]:
    """Run what is missing; return all cells, and how many results were there before."""
    from fedsim.choices import choose_engine
    from fedsim.simulation import OneByOne, SideBySide, open_engine
    from fedsim.study.execute import StudyRuns, run_cells
    from fedsim.study.stored import write_study
    from fedsim.vocabulary import vocabulary

    tell = teller(quiet=quiet)
    written, asked = asked, as_begun(asked, directory)
    arms = prepared_arms(asked, tell)
    done = StudyRuns(study=asked, directory=directory, vocabulary=vocabulary())
    missing = done.wanted()
    already = sum(r is not None for _, _, r in done.finals())
    time_activations(list(arms), directory, new=bool(missing), quiet=quiet)
    write_study(directory, written)
    if not missing:
        return done, already
    runs = -(-len(missing) // len(arms))
    (first, *_) = choose_engine(list(arms), tell, runs=runs)
    engine = first.engine
    done.study = with_engine(asked, engine)
    kind = "runs" if asked.tune is None else "runs, more where tuning asks for them"
    say(f"{asked.name}: {len(missing)} {kind}, starting the {engine.name} engine", quiet=quiet)
    with ExitStack() as stack:
        side_by_side = engine.name == "ray" and not engine.address
        shown = StudyProgress(done, side_by_side=side_by_side, quiet=quiet)
        executor = open_engine(first)
        stack.callback(executor.close)
        bench: Bench = (
            SideBySide(cast("RayExecutor", executor), tell)
            if side_by_side
            else OneByOne(executor, tell, shown.around)
        )
        until = time.monotonic() + (asked.budget_seconds or math.inf)
        run_cells(done, bench, shown.tell, lambda: time.monotonic() < until)
    return done, already


def prepared_arms(asked: Study, tell: Tell) -> list[Experiment]:
    """Check every arm against its data before anything runs; return an experiment of each.

    Raises:
        ConfigError, DataError: as for a run; and arms that differ in more than a hypothesis says.
    """
    from fedsim.simulation import prepare
    from fedsim.study.design import unlike_arms
    from fedsim.vocabulary import vocabulary

    found = {}
    for arm in asked.arms:
        for cell in asked.first_cells(arm, vocabulary()):
            found[arm] = prepare(cell.experiment, tell)
    if problems := unlike_arms(asked, found):
        raise ConfigError(problems)
    return list(found.values())


def as_begun(asked: Study, directory: Path) -> Study:
    """Leave the choice of compiler and engine to the runs that are there: arms have to compare."""
    from fedsim.ledger.read import list_runs
    from fedsim.runs import stored_experiment
    from fedsim.vocabulary import vocabulary

    runs = list_runs(directory) if directory.is_dir() else []
    stored = [stored_experiment(run.path) for run in runs if run.status != "damaged"]
    choices = {
        "train.compiler": {experiment.train.compiler for experiment in stored},
        "engine.name": {experiment.engine.name for experiment in stored},
    }
    # Where runs chose differently, each arm's own data or model decided, and will again.
    chosen = {key: values.pop() for key, values in choices.items() if len(values) == 1}
    open_ = {
        key: value
        for key, value in chosen.items()
        if key not in asked.axes and asked.base.get(key, "auto") == "auto"
    }
    begun = dataclasses.replace(asked, base={**asked.base, **open_})
    try:
        begun.check(vocabulary())
    except ConfigError:
        return asked  # those that are there are of arms that can what others cannot
    return begun


def with_engine(asked: Study, engine: EngineTable) -> Study:
    """Let every cell run on one engine, and say so in its manifest."""
    keys = {f"engine.{key}": value for key, value in dataclasses.asdict(engine).items()}
    return dataclasses.replace(asked, base={**asked.base, **keys})


def time_activations(
    arms: Sequence[Experiment], directory: Path, *, new: bool, quiet: bool
) -> None:
    """Time the activations of the arms that ask for it, if that was not done here before."""
    from fedsim.ledger.files import CALIBRATION, write_atomically

    known = directory / CALIBRATION
    if (new or not known.is_file()) and (timed := calibration_of(arms, known, quiet=quiet)):
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(known, timed)


def show_study(done: StudyRuns, output: OutputFormat) -> None:
    """Print the arms side by side, and the verdicts, from the complete runs."""
    from fedsim.ledger.read import load
    from fedsim.report.arms import calibration_in, summarise_study, timed_elsewhere
    from fedsim.report.tables import arms_table, over_seeds, published_table, show
    from fedsim.report.verdicts import verdicts_table
    from fedsim.study.published import beside
    from fedsim.study.verdicts import judge

    asked, complete, read = done.study, done.complete(), cache(load)
    calibration = calibration_in(done.directory)
    elsewhere = timed_elsewhere(calibration, list(complete.values())) if calibration else []
    arms = summarise_study(asked, complete, done.directory, read)
    verdicts = judge(asked.hypotheses, asked.seeds, complete, read)
    if output is OutputFormat.json:
        document = as_json(done, arms, verdicts, read)
        document["calibration_unstable"] = list(calibration.unstable) if calibration else None
        document["calibration_elsewhere"] = elsewhere if calibration else None
        typer.echo(json.dumps(document))
        return
    axes = ", ".join(axis.rpartition(".")[2] for axis in asked.axes)
    show(arms_table(axes, arms, asked.targets))
    typer.echo(
        f"{over_seeds(len(asked.seeds))}; client CPU is measured (training alone), uplink is "
        "counted (serialised messages)"
    )
    bill(axes, arms, asked.targets)
    for line in doubts(calibration, elsewhere):
        typer.echo(f"warning: {line}")
    if verdicts:
        typer.echo("\nverdicts")
        show(verdicts_table(verdicts))
    if others := beside(asked, complete, read):
        typer.echo("\nbeside what is published")
        show(published_table(others))


def as_json(
    done: StudyRuns, arms: Sequence[Arm], verdicts: Sequence[Verdict], read: Callable[[Path], Run]
) -> dict[str, Any]:
    """Return a study as JSON values."""
    from fedsim.report.arms import kinds_of
    from fedsim.report.summary import run_summary
    from fedsim.study.published import beside

    results = {r.directory: r.cell for r in done.results.values()}
    cells = [
        {
            "arm": dict(arm),
            "tuned": dict(results[path].point),
            "seed": seed,
            **run_summary(path),
        }
        for (arm, seed), path in done.complete().items()
    ]
    failed = [
        {
            "arm": dict(r.cell.arm),
            "tuned": dict(r.cell.point),
            "seed": r.cell.seed,
            "tuning": done.is_tuning(r.cell),
            "run": str(r.directory),
            "error": r.error,
        }
        for r in done.results.values()
        if r.error
    ]
    tried = [cell for cell in failed if cell["tuning"]]
    return {
        "study": done.study.name,
        "about": done.study.about,
        "out": str(done.directory),
        "cells": cells,
        "failed": [cell for cell in failed if not cell["tuning"]],
        "failed_tuning": tried,
        "verdicts": [verdict.as_json() for verdict in verdicts],
        "published": [b.as_json() for b in beside(done.study, done.complete(), read)],
        "tuning": [curve.as_json() for curve in done.curves.values()],
        "kinds": kinds_of(cells[0]) if cells else {},
        "arms": [arm.as_json() for arm in arms],
    }


def bill(axes: str, arms: Sequence[Arm], targets: Sequence[float]) -> None:
    """Print what each arm costs, until the study's first target where that is asked."""
    from fedsim.report.tables import bill_legend, bill_table, dense_line, show

    target = targets[0] if targets else None
    table = bill_table(axes, arms, target)
    if table is None:
        return
    typer.echo("\nthe bill")
    show(table)
    typer.echo("\n".join(bill_legend(arms, target)))
    if line := dense_line(arms):
        typer.echo(line)


def doubts(calibration: Calibration | None, elsewhere: Sequence[str]) -> list[str]:
    """Say why the timings in a bill may not be what its runs saw."""
    found = []
    if calibration and calibration.unstable:
        found.append(f"the timings may not repeat: {'; '.join(calibration.unstable)}")
    if elsewhere:
        found.append(f"the timings are of another machine than the runs: {'; '.join(elsewhere)}")
    return found
