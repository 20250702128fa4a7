"""``fedsim report``: a run or a study as a page, and its figures as files."""

from __future__ import annotations

import webbrowser
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.cli.options import DataDirectory
from fedsim.errors import FedsimError, LedgerError

if TYPE_CHECKING:
    from fedsim.config import Experiment
    from fedsim.report.page import Page
    from fedsim.report.study import StudyData
    from fedsim.study.execute import StudyRuns


class FigureFormat(StrEnum):
    """File formats of a figure."""

    svg = "svg"
    png = "png"


def report(
    directory: Annotated[Path, typer.Argument(help="The directory of a run, a study or attacks.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the directory.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each figure as a file there, too.")
    ] = None,
    figure_format: Annotated[
        FigureFormat, typer.Option("--format", help="The figures' format.")
    ] = FigureFormat.svg,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it as Markdown, too; figures in a folder beside."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    data_dir: DataDirectory = None,
) -> None:
    """Make a report of a run, a study or attacks, one HTML file.

    It is made from the ledgers alone, and needs no network; nothing is trained.

    Examples:

        fedsim report runs/activations --open
        fedsim report runs/activations --figures paper --format png
        fedsim report runs/activations --markdown docs/activations.md
    """
    from fedsim.ledger.files import write_atomically
    from fedsim.report.drawing import write_file
    from fedsim.report.markdown import write_markdown
    from fedsim.report.page import html_of

    page = page_of(directory, data_dir)
    path = out or directory / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html_of(page).encode())
    typer.echo(str(path))
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for picture in page.pictures:
            target = figures / f"{picture.name}.{figure_format.value}"
            write_file(picture, target)
            typer.echo(str(target))
    if markdown is not None:
        for file in write_markdown(page, markdown, command=made_by(directory)):
            typer.echo(str(file))
    if show and not webbrowser.open(path.absolute().as_uri()):
        typer.echo("no browser was found; open the file yourself", err=True)


def made_by(directory: Path) -> str:
    """Say how a Markdown file can be made again, whoever does it wherever."""
    return f"fedsim report runs/{directory.name} --markdown FILE"


def page_of(directory: Path, data_dir: Path | None) -> Page:
    """Return the report of whatever lies in a directory."""
    from fedsim.privacy.attacks.rows import ROWS
    from fedsim.report.leaks import attacks_page
    from fedsim.report.run import run_page
    from fedsim.report.study import study_page
    from fedsim.runs import holds_run, stored_experiment
    from fedsim.study.stored import STUDY

    if not directory.is_dir():
        raise LedgerError(f"{directory}: no such directory; name one that holds a run or a study")
    if holds_run(directory) and not (directory / STUDY).is_file():
        return run_page(directory, label_counts(stored_experiment(directory), data_dir))
    if (directory / ROWS).is_file() and not (directory / STUDY).is_file():
        return attacks_page(directory)
    return study_page(study_data(directory, data_dir))


def study_data(directory: Path, data_dir: Path | None = None, *, dealt: bool = True) -> StudyData:
    """Read and analyse the study in a directory; ``dealt``: who holds what is asked for too."""
    from fedsim.ledger.read import load
    from fedsim.report.arms import summarise_study
    from fedsim.report.study import StudyData
    from fedsim.study.execute import StudyRuns
    from fedsim.study.stored import read_stored
    from fedsim.study.verdicts import judge

    asked = read_stored(directory)
    runs = StudyRuns(study=asked, directory=directory, vocabulary={}, retry=False)
    complete, read = runs.complete(), cache(load)
    return StudyData(
        study=asked,
        runs=complete,
        read=read,
        arms=summarise_study(asked, complete, directory, read),
        verdicts=judge(asked.hypotheses, asked.seeds, complete, read),
        curves=runs.curves,
        failures=runs.failures(),
        tuning_failures=runs.errors(tuning=True),
        partitions=partitions(runs, data_dir) if dealt else {},
    )


def partitions(runs: StudyRuns, data_dir: Path | None) -> dict[str, Any]:
    """Return who holds what in each of a study's settings; empty where the data is not there."""
    from fedsim.study.design import named

    study = runs.study
    dealing = [axis for axis in study.axes if axis.startswith("data.")]
    found: dict[str, Any] = {}
    for arm in study.arms:
        title = named(tuple((k, v) for k, v in arm if k in dealing))
        if title in found:
            continue
        cell = study.cell(arm, (), study.seeds[0], {})
        counts = label_counts(cell.experiment, data_dir)
        if counts is None:
            return {}
        found[title] = counts
    return found


def label_counts(experiment: Experiment, data_dir: Path | None) -> Any:
    """Return examples by client and label, (clients, labels); None where the data is missing."""
    import dataclasses

    import numpy as np

    from fedsim import parts

    where = experiment.run.data_dir if data_dir is None else str(data_dir.expanduser().absolute())
    experiment = dataclasses.replace(
        experiment, run=dataclasses.replace(experiment.run, data_dir=where)
    )
    try:
        examples, held = parts.dataset(experiment), parts.partition(experiment)
    except FedsimError:
        return None
    counts = np.zeros((len(held), examples.classes), np.int64)
    owners = np.repeat(np.arange(len(held)), np.diff(held.offsets))
    np.add.at(counts, (owners, examples.y_train[held.order]), 1)
    return counts
