"""Run the cells of a study: each once, whatever happens to the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from fedsim.config import EngineTable, Experiment, differences
from fedsim.errors import ConfigError, FedsimError
from fedsim.ledger.read import load
from fedsim.runs import holds_run, stored_experiment
from fedsim.study.design import Cell, Study


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellResult:
    """What became of a cell; ``error`` says why it failed."""

    cell: Cell
    directory: Path
    error: str | None = None


def prepared(study: Study, prepare: Callable[[Experiment], Experiment]) -> Study:
    """Check every cell against its data before any of them runs.

    Raises:
        ConfigError, DataError: as ``prepare`` does.
    """
    cells = tuple(
        dataclasses.replace(cell, experiment=prepare(cell.experiment)) for cell in study.cells
    )
    return dataclasses.replace(study, cells=cells)


def with_compiler_of(study: Study, directory: Path) -> Study:
    """Leave the choice of a compiler to the runs that are there already: arms have to compare."""
    begun = (directory / cell.folder for cell in study.cells)
    stored = next((stored_experiment(path) for path in begun if holds_run(path)), None)
    if stored is None:
        return study

    def settled(cell: Cell) -> Cell:
        train = cell.experiment.train
        if train.compiler == "auto":
            train = dataclasses.replace(train, compiler=stored.train.compiler)
        return dataclasses.replace(
            cell, experiment=dataclasses.replace(cell.experiment, train=train)
        )

    return dataclasses.replace(study, cells=tuple(map(settled, study.cells)))


def with_engine(study: Study, engine: EngineTable) -> Study:
    """Let every cell run on one engine, and say so in its manifest."""
    cells = (
        dataclasses.replace(cell, experiment=dataclasses.replace(cell.experiment, engine=engine))
        for cell in study.cells
    )
    return dataclasses.replace(study, cells=tuple(cells))


def check_directory(study: Study, directory: Path) -> None:
    """Refuse a directory that holds cells of another experiment.

    Raises:
        ConfigError: with the differences.
    """
    for cell in study.cells:
        path = directory / cell.folder
        if holds_run(path) and (changed := differences(stored_experiment(path), cell.experiment)):
            raise ConfigError(
                [f"{path} is of another study; choose another --out, or restore the settings:"]
                + [f"  {line}" for line in changed]
            )


def is_complete(cell: Cell, directory: Path) -> bool:
    """Say whether the cell has run to its end."""
    path = directory / cell.folder
    return holds_run(path) and load(path).status == "completed"


def run_cells(
    study: Study, directory: Path, execute: Callable[[Cell, Experiment], None]
) -> Iterator[CellResult]:
    """Bring every cell of a study to its end, and yield what became of each.

    A cell that is complete is left alone, one that was begun is resumed, and one that fails is
    recorded while the others go on; the next call tries it again.

    Args:
        study: what to run.
        directory: the study's directory.
        execute: runs an experiment in its ``run.out``.
    """
    for cell in study.cells:
        path = directory / cell.folder
        error = None
        if not is_complete(cell, directory):
            where = dataclasses.replace(
                cell.experiment.run, out=str(path.absolute()), resume=holds_run(path)
            )
            try:
                execute(cell, dataclasses.replace(cell.experiment, run=where))
            except FedsimError as problem:
                error = str(problem)
        yield CellResult(cell=cell, directory=path, error=error)
