"""Run the cells of a study: each once, whatever happens to the others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from fedsim.config import Experiment, Vocabulary, differences
from fedsim.errors import ConfigError, FedsimError
from fedsim.ledger.files import MANIFEST
from fedsim.ledger.read import Run, load
from fedsim.measure.convergence import best_accuracy
from fedsim.runs import forget_torn, holds_run, stored_experiment
from fedsim.study.design import Cell, Study, Values, label_of
from fedsim.study.endpoints import endpoint_of, value_of
from fedsim.study.figures import curve
from fedsim.study.tuning import Curve, Tried, search, summed_up


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What became of a cell; ``error`` says why it failed."""

    cell: Cell
    directory: Path
    error: str | None = None


class Bench(Protocol):
    """What cells run on."""

    places: int  # cells at once

    def begin(self, experiment: Experiment, tell: Callable[[str], None]) -> None:
        """Run an experiment in its ``run.out``, or go on with it; ``tell`` is given the problem.

        It is "" for a run that is complete.
        """

    def wait(self) -> None:
        """Wait until a cell may have ended, but not for long."""


@dataclass(kw_only=True)
class StudyRuns:
    """The cells of a study and what is known of them, from its directory.

    Attributes:
        results: what became of a cell, by its folder.
        curves: what tuning found, by arm.
        running: folders in which a run is under way, which nobody looks into.
        retry: whether a result that failed before is to be tried again.
    """

    study: Study
    directory: Path
    vocabulary: Vocabulary
    results: dict[Path, CellResult] = field(default_factory=dict)
    curves: dict[Values, Curve] = field(default_factory=dict)
    running: set[Path] = field(default_factory=set)
    retry: bool = True
    _tried: dict[tuple[Values, Values], Tried] = field(default_factory=dict)

    def result(self, cell: Cell) -> CellResult | None:
        """Return what became of a cell; what lies there is looked at once.

        Raises:
            ConfigError: what lies there is of another experiment.
        """
        folder = cell.folder
        if folder in self.running:
            return None
        path = self.directory / folder
        begun = holds_run(path) and (path / MANIFEST).is_file()
        if folder not in self.results and begun:
            run = load(path)
            failed = run.status == "failed" and not (self.retry and not self.may_fail(cell))
            if run.status == "completed" or failed:
                check_cell(cell, self.directory)
                error = (run.manifest.error or "failed") if failed else None
                self.results[folder] = CellResult(cell=cell, directory=path, error=error)
        return self.results.get(folder)

    def wanted(self) -> list[Cell]:
        """Return the cells that have not run and can, those first whose answers come first.

        Whatever is tuned goes first; then seed by seed, so that every arm has early results.
        """
        tuning: list[Cell] = []
        points: dict[Values, Values] = {}
        for arm in self.study.arms:
            point, missing = self.tuned(arm)
            tuning += missing
            if point is not None:
                points[arm] = point
        final = [
            self.study.cell(arm, point, seed, self.vocabulary)
            for seed in self.study.seeds
            for arm, point in points.items()
        ]
        return [cell for cell in (*tuning, *final) if self.result(cell) is None]

    def tuned(self, arm: Values) -> tuple[Values | None, list[Cell]]:
        """Return an arm's values, as soon as they are known, and the runs that are to tell."""
        tune = self.study.tune
        if tune is None:
            return (), []
        if arm not in self.curves or not (self.curves[arm].best or self.curves[arm].problem):
            self.curves[arm], missing = search(tune, arm, lambda point: self.tried(arm, point))
        else:
            missing = []
        cells = [
            self.study.tuning_cell(arm, point, seed, self.vocabulary)
            for seed in tune.seeds
            for point in missing
        ]
        return self.curves[arm].best, cells

    def tried(self, arm: Values, point: Values) -> Tried | None:
        """Return what a point gave, once all of its runs have ended."""
        assert self.study.tune is not None
        if (arm, point) not in self._tried:
            seeds = self.study.tune.seeds
            cells = [self.study.tuning_cell(arm, point, s, self.vocabulary) for s in seeds]
            results = [self.result(cell) for cell in cells]
            if any(result is None for result in results):
                return None
            done = [load(r.directory) for r in results if r and not r.error]
            values = [badness(run, self.study.tune.endpoint) for run in done]
            self._tried[arm, point] = summed_up(point, values, len(results) - len(done))
        return self._tried[arm, point]

    def complete(self) -> dict[tuple[Values, int], Path]:
        """Return where the complete results lie, by arm and seed."""
        return {
            (arm, seed): result.directory
            for arm, seed, result in self.finals()
            if result and not result.error
        }

    def failures(self) -> list[str]:
        """Say which results failed and why, and of which arms nobody can say what suits them."""
        return self.errors(tuning=False) + [
            f"{label_of(arm)}: {curve.problem}"
            for arm, curve in self.curves.items()
            if curve.problem
        ]

    def errors(self, *, tuning: bool) -> list[str]:
        """Say which results failed and why; or which tuning runs, as they do where values end."""
        return [
            f"{r.cell.folder}: {r.error}"
            for _, r in sorted(self.results.items())
            if r.error and self.is_tuning(r.cell) == tuning
        ]

    def may_fail(self, cell: Cell) -> bool:
        """Say whether a run that failed is an answer: tuning goes on until values are too large."""
        tune = self.study.tune
        return cell.tuning or (tune is not None and tune.split == "test")

    def is_tuning(self, cell: Cell) -> bool:
        """Say whether a run serves to choose and is no result."""
        curve = self.curves.get(cell.arm)
        return cell.tuning or (curve is not None and cell.point != curve.best)

    def finals(self) -> Iterator[tuple[Values, int, CellResult | None]]:
        """Yield every result that the study asks for, seed by seed; None: it did not run."""
        for seed in self.study.seeds:
            for arm in self.study.arms:
                point, _ = self.tuned(arm)
                cell = point is not None and self.study.cell(arm, point, seed, self.vocabulary)
                yield arm, seed, self.result(cell) if cell else None


def badness(run: Run, endpoint: str) -> tuple[float, float]:
    """Return how bad a run is by an endpoint, and its best accuracy."""
    known = endpoint_of(endpoint)
    assert known is not None
    value, _ = value_of(run, endpoint)
    if known.scale == "ratio":
        value = math.log(value) if value > 0 else -math.inf
    bad = -value if known.direction == "higher" else value
    return (math.inf if math.isnan(bad) else bad), best_accuracy(curve(run)[1]) or 0.0


def check_cell(cell: Cell, directory: Path) -> None:
    """Refuse a directory that holds a run of another experiment where a cell's would be.

    Raises:
        ConfigError: with the differences.
    """
    path = directory / cell.folder
    if not holds_run(path):
        return
    stored = stored_experiment(path)
    if changed := differences(stored, as_decided(cell.experiment, stored)):
        raise ConfigError(
            [f"{path} is of another study; choose another --out, or restore the settings:"]
            + [f"  {line}" for line in changed]
        )


def as_decided(experiment: Experiment, stored: Experiment) -> Experiment:
    """Return an experiment with what it leaves open as a run of it has decided."""
    train, data, begun = experiment.train, experiment.data, stored.train
    compiler = begun.compiler if train.compiler == "auto" else train.compiler
    vectorize = begun.vectorize if train.vectorize == "auto" else train.vectorize
    return dataclasses.replace(
        experiment,
        train=dataclasses.replace(train, compiler=compiler, vectorize=vectorize),
        data=dataclasses.replace(data, clients=data.clients or stored.data.clients),
    )


def run_cells(
    runs: StudyRuns,
    bench: Bench,
    tell: Callable[[Cell, CellResult | None], None],
    may_begin: Callable[[], bool] = lambda: True,
) -> None:
    """Bring every cell of a study to its end.

    A cell that is complete is left alone, one that was begun is resumed, and one that fails is
    recorded while the others go on; the next call tries it again.

    Args:
        runs: the study; its ``results`` are what comes of it.
        bench: what cells run on.
        tell: is told of a cell that begins (None) and of what became of it.
        may_begin: whether another cell may begin; those that have begun go on to their end.
    """
    running = runs.running

    def ended(cell: Cell, problem: str) -> None:
        running.discard(cell.folder)
        path = runs.directory / cell.folder
        result = CellResult(cell=cell, directory=path, error=problem or None)
        runs.results[cell.folder] = result
        tell(cell, runs.results[cell.folder])

    while True:
        waiting = [cell for cell in runs.wanted() if cell.folder not in running and may_begin()]
        for cell in waiting[: max(0, bench.places - len(running))]:
            path = runs.directory / cell.folder
            running.add(cell.folder)
            tell(cell, None)
            forget_torn(path)
            check_cell(cell, runs.directory)
            try:
                bench.begin(in_directory(cell.experiment, path), partial(ended, cell))
            except FedsimError as error:
                ended(cell, str(error))
        if not waiting and not running:
            return
        if running:
            bench.wait()


def in_directory(experiment: Experiment, path: Path) -> Experiment:
    """Return an experiment that runs in a directory, or goes on with the run that is there."""
    where = dataclasses.replace(experiment.run, out=str(path.absolute()), resume=holds_run(path))
    return dataclasses.replace(experiment, run=where)
