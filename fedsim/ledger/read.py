"""Reading runs: finished, interrupted, or still being written."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedsim.errors import LedgerError
from fedsim.ledger import checkpoints, database, files
from fedsim.ledger.lock import is_held
from fedsim.ledger.manifest import read_manifest
from fedsim.ledger.schema import CLIENTS, LAYERS, ROUNDS, Row, Table
from fedsim.records import Manifest, RunStatus

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

Status = Literal[RunStatus, "killed"]

SEARCH_DEPTH = 4


@dataclass(frozen=True)
class Run:
    """A run as it was when it was loaded; rounds that are committed later do not show.

    ``status`` is the manifest's, or ``killed`` where the process that wrote the run died without
    a word. The tables are read when first asked for; their columns and types are the same for
    ledgers of every format. A figure that nobody asked for, that was not delivered, that was NaN
    or that the format lacks is missing in them; of a round that failed, they hold the clients
    only.
    """

    path: Path
    manifest: Manifest
    status: Status
    last_round: int
    test_accuracy: float | None
    _until: int  # the last round of which there is any row

    @cached_property
    def config(self) -> dict[str, dict[str, Any]]:
        """The resolved experiment, as TOML tables."""
        path = self.path / files.CONFIG
        try:
            return tomllib.loads(files.read_bytes(path).decode())
        except ValueError as error:
            raise files.damaged(path, str(error)) from error

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One line for each ``RoundRow``, in order."""
        return self._table(ROUNDS)

    @cached_property
    def clients(self) -> pd.DataFrame:
        """One line for each ``ClientRow``, by round and client."""
        return self._table(CLIENTS)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One line for each ``LayerRow``, by round, client, layer and phase.

        In format 1 a line is one tensor of the client's update, such as ``dense1.weight``, and
        its phase is missing.
        """
        return self._table(LAYERS)

    def arrays(self) -> dict[str, np.ndarray]:
        """Read the global model of the newest checkpoint; empty before the first.

        Raises:
            LedgerError: the checkpoint is missing or damaged.
        """
        with database.reading(self.path) as db:
            last = checkpoints.read_last(self.path, db)
        return last.arrays if last else {}

    def _table(self, table: Table[Row]) -> pd.DataFrame:
        import pandas as pd

        with database.reading(self.path) as db:
            select = table.select(database.format_of(db, self.path / files.LEDGER))
            stored = db.execute(select, (self._until,)).fetchall()
        columns = zip(*stored, strict=True) if stored else [()] * len(table.columns)
        named = zip(table.columns, columns, strict=True)
        return pd.DataFrame({c.name: pd.array(values, dtype=c.pandas) for c, values in named})

    def __repr__(self) -> str:
        rounds = f"{self.last_round} of {self.manifest.rounds_planned or '?'} rounds"
        return f"<Run {self.manifest.name!r}: {self.status}, {rounds}, {self.path}>"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """A line of ``fedsim ls``; of a damaged run, ``problem`` says what is wrong."""

    path: Path
    name: str
    status: Literal[Status, "damaged"]
    rounds: int | None = None
    rounds_planned: int | None = None
    test_accuracy: float | None = None  # the last one measured
    started: str | None = None
    problem: str | None = None


def load(path: str | Path) -> Run:
    """Open a run for reading, without disturbing a process that writes it.

    Args:
        path: the run directory.

    Raises:
        LedgerError: there is no run, or it is damaged, or a newer fedsim wrote it.
    """
    path = Path(path)
    with database.reading(path) as db:
        last = database.last_round(db)
        (until,) = db.execute(
            "SELECT max(coalesce(max(round), 0), ?) FROM clients", (last,)
        ).fetchone()
        tested = db.execute(
            "SELECT test_accuracy FROM rounds WHERE test_accuracy IS NOT NULL"
            " ORDER BY round DESC LIMIT 1"
        ).fetchone()
    manifest, status = _standing(path)
    return Run(path, manifest, status, last, tested and tested[0], until)


def list_runs(root: Path) -> list[RunSummary]:
    """Find the runs in a directory and below it, in the order of their paths.

    Args:
        root: a run, or what holds runs at most four levels down; hidden directories and what lies
            inside a run are not searched.

    Raises:
        LedgerError: there is no such directory. A run that cannot be read is listed as damaged.
    """
    if not root.is_dir():
        raise LedgerError(f"{root} is no directory; name one that holds runs")
    return [_summary(path) for path in _run_directories(root)]


def _run_directories(root: Path) -> Iterator[Path]:
    for directory, below, found in os.walk(root):
        is_run = files.LEDGER in found
        if is_run:
            yield Path(directory)
        depth = len(Path(directory).relative_to(root).parts)
        deeper = not is_run and depth < SEARCH_DEPTH
        below[:] = sorted(name for name in below if deeper and not name.startswith("."))


def _summary(path: Path) -> RunSummary:
    try:
        run = load(path)
    except LedgerError as error:
        return RunSummary(path=path, name=path.name, status="damaged", problem=str(error))
    return RunSummary(
        path=path,
        name=run.manifest.name,
        status=run.status,
        rounds=run.last_round,
        rounds_planned=run.manifest.rounds_planned,
        test_accuracy=run.test_accuracy,
        started=run.manifest.created,
    )


def _standing(path: Path) -> tuple[Manifest, Status]:
    """Read the manifest, and tell a run at work from one that died."""
    manifest = read_manifest(path)
    if manifest.status != "running" or is_held(path / files.LOCK):
        return manifest, manifest.status
    # Nobody writes it: dead, unless it ended properly between the two looks.
    manifest = read_manifest(path)
    return manifest, "killed" if manifest.status == "running" else manifest.status
