"""``fedsim study``: one experiment over axes and seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim import units
from fedsim.cli.calibrate import calibration_of
from fedsim.cli.options import (
    DataDirectory,
    Format,
    OutputFormat,
    Quiet,
    Settings,
    with_data_directory,
)
from fedsim.cli.progress import progress, say, teller
from fedsim.errors import RunFailed

if TYPE_CHECKING:
    from fedsim.measure.timings import Calibration
    from fedsim.report.arms import Arm
    from fedsim.study.design import Study
    from fedsim.study.execute import CellResult


def study(
    file: Annotated[Path, typer.Argument(help="The study, a TOML file.")],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's directory; default: runs/NAME.")
    ] = None,
    data_dir: DataDirectory = None,
    output: Format = OutputFormat.text,
    quiet: Quiet = False,
) -> None:
    """Run an experiment for every combination of axes and seeds.

    Runs that are there already are not run again, so the same command goes on with a study that
    was stopped, and tries failed runs once more.

    Examples:

        fedsim study configs/activations.toml
        fedsim study configs/activations.toml -s experiment.rounds=60 --out runs/longer
    """
    from fedsim.runs import runs_root
    from fedsim.study.design import read_study
    from fedsim.vocabulary import vocabulary

    started = time.monotonic()
    overrides = with_data_directory(settings, data_dir)
    plan = read_study(file, overrides, vocabulary=vocabulary())
    directory = out or runs_root() / plan.name
    results, already = run_study(plan, directory, quiet=quiet)
    failed = [result for result in results if result.error]
    show_study(plan, directory, results, output)
    if output is OutputFormat.text:
        again = f", {already} of them were there already" if already else ""
        taken = units.seconds(time.monotonic() - started)
        typer.echo(f"{len(results) - len(failed)} of {len(results)} runs complete{again}, {taken}")
        typer.echo(f"runs: {directory}")
    if failed:
        raise RunFailed("\n".join(f"{r.directory}: {r.error}" for r in failed))


def run_study(plan: Study, directory: Path, *, quiet: bool) -> tuple[list[CellResult], int]:
    """Run what is missing; return what became of all cells, and how many were there before."""
    from fedsim.choices import choose_engine
    from fedsim.config import Experiment
    from fedsim.ledger.files import CALIBRATION, write_atomically
    from fedsim.simulation import open_engine, prepare, simulate
    from fedsim.study.design import Cell
    from fedsim.study.execute import (
        check_directory,
        is_complete,
        prepared,
        run_cells,
        with_compiler_of,
        with_engine,
    )

    tell = teller(quiet=quiet)
    plan = prepared(with_compiler_of(plan, directory), partial(prepare, tell=tell))
    check_directory(plan, directory)
    done = [cell for cell in plan.cells if is_complete(cell, directory)]
    with ExitStack() as stack:
        executor: Any = None
        known = directory / CALIBRATION
        if len(done) < len(plan.cells) or not known.is_file():
            experiments = [cell.experiment for cell in plan.cells]
            if timed := calibration_of(experiments, known, quiet=quiet):
                directory.mkdir(parents=True, exist_ok=True)
                write_atomically(known, timed)
        if len(done) < len(plan.cells):
            missing = [cell.experiment for cell in plan.cells if cell not in done]
            (first, *_) = choose_engine(missing, tell)
            plan = with_engine(plan, first.engine)
            engine = first.engine.name
            say(f"{plan.name}: {len(plan.cells)} runs, starting the {engine} engine", quiet=quiet)
            executor = open_engine(first)
            stack.callback(executor.close)

        def execute(cell: Cell, experiment: Experiment) -> None:
            number = plan.cells.index(cell) + 1
            title = f"[{number}/{len(plan.cells)}] {cell.label}, seed {cell.seed}: "
            with progress(title, quiet=quiet):
                simulate(experiment, executor)

        return list(run_cells(plan, directory, execute)), len(done)


def show_study(
    plan: Study, directory: Path, results: Sequence[CellResult], output: OutputFormat
) -> None:
    """Print the arms side by side, from their complete runs."""
    from fedsim.report.arms import calibration_in, kinds_of, summarise_arm, timed_elsewhere
    from fedsim.report.summary import run_summary
    from fedsim.report.tables import arms_table, show

    calibration = calibration_in(directory)
    complete = [result for result in results if not result.error]
    timings = calibration.activations if calibration else {}
    elsewhere = timed_elsewhere(calibration, [r.directory for r in complete]) if calibration else []
    activations = {r.cell.label: r.cell.experiment.model.activation for r in results}
    arms = [
        summarise_arm(
            label,
            [None if r.error else r.directory for r in results if r.cell.label == label],
            plan.targets,
            timings.get(activation),
        )
        for label, activation in activations.items()
    ]
    if output is OutputFormat.text:
        axes = ", ".join(axis.rpartition(".")[2] for axis in plan.axes)
        show(arms_table(axes, arms, plan.targets))
        typer.echo(
            f"{over_seeds(len(plan.seeds))}; client CPU is measured (training alone), uplink is "
            "counted (serialised messages)"
        )
        bill(axes, arms, plan.targets)
        for line in doubts(calibration, elsewhere):
            typer.echo(f"warning: {line}")
        return
    cells = [
        {"arm": dict(r.cell.arm), "seed": r.cell.seed, **run_summary(r.directory)} for r in complete
    ]
    failed = [
        {"arm": dict(r.cell.arm), "seed": r.cell.seed, "run": str(r.directory), "error": r.error}
        for r in results
        if r.error
    ]
    document = {
        "study": plan.name,
        "out": str(directory),
        "cells": cells,
        "failed": failed,
        "kinds": kinds_of(cells[0]) if cells else {},
        "arms": [arm.as_json() for arm in arms],
        "calibration_unstable": list(calibration.unstable) if calibration else None,
        "calibration_elsewhere": elsewhere if calibration else None,
    }
    typer.echo(json.dumps(document))


def over_seeds(seeds: int) -> str:
    """Say what the figures of an arm are over its seeds."""
    return f"mean +- standard deviation over {seeds} seeds" if seeds > 1 else "one seed"


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
