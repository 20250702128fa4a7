"""Progress: a bar where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import units
from fedsim.records import RoundRow

if TYPE_CHECKING:
    from fedsim.study.design import Cell
    from fedsim.study.execute import CellResult, StudyRuns

LOGGER = "flwr.fedsim"  # where the ServerApp reports each round


class RoundHandler(logging.Handler):
    """Shows every round that the ServerApp reports, on standard error."""

    def __init__(self, title: str = "") -> None:
        super().__init__()
        self._title = title
        self._pace: float | None = None  # seconds a round
        self._accuracy: float | None = None
        self._loss: float | None = None
        self._tested = 0  # the round that loss and accuracy are of
        self._failures = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Show one round."""
        row: RoundRow | None = getattr(record, "row", None)
        if row is not None:
            self.show(row, int(getattr(record, "rounds", row.round)))

    def show(self, row: RoundRow, rounds: int) -> None:
        """Print a line for the round."""
        print(
            f"{self._title}round {row.round}/{rounds}  {self.describe(row, rounds)}",
            file=sys.stderr,
            flush=True,
        )

    def describe(self, row: RoundRow, rounds: int) -> str:
        """Say how the run stands: loss, accuracy, speed, time left, failures."""
        if row.test_accuracy is not None:
            self._accuracy, self._loss = row.test_accuracy, row.test_loss
            self._tested = row.round
        self._failures += row.clients_failed
        left = self.pace(row) * (rounds - row.round)
        rate = row.clients_trained / row.wall_seconds if row.wall_seconds else 0.0
        older = f" (of round {self._tested})" if 0 < self._tested < row.round else ""
        text = (
            f"loss {units.shown(self._loss)}  accuracy {units.shown(self._accuracy, units.percent)}"
            f"{older}  {rate:.0f} clients/s  {units.seconds(left)} left"
        )
        return f"{text}  {self._failures} failed" if self._failures else text

    def pace(self, row: RoundRow) -> float:
        """Return the seconds a round takes, the latest counting most.

        The first round of a process, in which workers load what they need, says nothing about
        those that follow, and is forgotten at once.
        """
        wall = row.wall_seconds or 0.0
        if self._pace is None:
            self._pace = math.inf
            return wall
        old = wall if math.isinf(self._pace) else self._pace
        self._pace = 0.8 * old + 0.2 * wall
        return self._pace


class BarHandler(RoundHandler):
    """The same as a bar that stays in its line."""

    def __init__(self, title: str, bar: Any) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task(title.strip() or "starting", total=None, text="")

    def show(self, row: RoundRow, rounds: int) -> None:
        """Move the bar."""
        self._bar.update(
            self._task, total=rounds, completed=row.round, text=self.describe(row, rounds)
        )


@contextmanager
def progress(title: str = "", *, quiet: bool = False) -> Iterator[None]:
    """Show the rounds of the runs in the block."""
    if quiet:
        yield
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        with (
            Progress(*columns, console=Console(stderr=True)) as bar,
            listening(BarHandler(title, bar)),
        ):
            yield
    else:
        with listening(RoundHandler(title)):
            yield


@contextmanager
def listening(handler: logging.Handler) -> Iterator[None]:
    """Attach a handler to what the ServerApp reports."""
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def teller(*, quiet: bool = False) -> Callable[[str], None]:
    """Return a function that says each line once."""
    said: set[str] = set()

    def tell(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line, quiet=quiet)

    return tell


def say(text: str, *, quiet: bool = False) -> None:
    """Tell what is being waited for."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


class StudyProgress:
    """Shows the runs of a study: those that ended, how many are to go, how long that will take.

    Where runs go one after another on a terminal, each one's rounds show too.
    """

    def __init__(self, done: StudyRuns, *, side_by_side: bool, quiet: bool) -> None:
        self._done, self._quiet = done, quiet
        self._rounds = not side_by_side and sys.stderr.isatty()
        self._began = time.monotonic()
        self._ended = 0
        self._title = ""

    def tell(self, cell: Cell, result: CellResult | None) -> None:
        """Show that a run begins (no result), or what became of it."""
        if result is None:
            self._title = f"{name_of(cell)}: "
            return
        self._ended += 1
        runs = len(self._done.wanted())
        pace = (time.monotonic() - self._began) / self._ended
        left = f"{runs} to go, about {units.seconds(pace * runs)}" if runs else "none to go"
        how = f"failed: {result.error}" if result.error else described(result.directory)
        say(
            f"[{self._ended}/{self._ended + runs}] {name_of(cell)}: {how}; {left}",
            quiet=self._quiet,
        )

    def around(self) -> AbstractContextManager[None]:
        """Show the rounds of the run that has just begun."""
        return progress(self._title, quiet=self._quiet or not self._rounds)


def name_of(cell: Cell) -> str:
    """Name a run of a study."""
    from fedsim.study.design import named

    values = ", ".join(part for part in (cell.label, named(cell.point)) if part)
    return f"{'tuning ' if cell.tuning else ''}{values}, seed {cell.seed}"


def described(directory: Path) -> str:
    """Say how a run ended."""
    from fedsim.ledger.read import load

    run = load(directory)
    accuracy = units.shown(run.test_accuracy, units.percent)
    return f"{accuracy} after {run.last_round} rounds"
