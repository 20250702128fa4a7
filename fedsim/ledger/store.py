"""The ledger of one run, as its server writes it: one transaction a round."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from fedsim.errors import LedgerError
from fedsim.ledger import checkpoints, database, files
from fedsim.ledger.checkpoints import Arrays, Checkpoint
from fedsim.ledger.directory import begin, remove_unnamed_checkpoints, reopen
from fedsim.ledger.lock import RunLock
from fedsim.ledger.manifest import utc_now, write_manifest
from fedsim.ledger.schema import CLIENTS, LAYERS, ROUNDS
from fedsim.records import ClientRow, LayerRow, Manifest, RoundRow
from fedsim.table import column

# Two, so that a reader who was just told the name of the newest still finds it a round later.
CHECKPOINTS_KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A round as it is stored.

    Attributes:
        round: its number follows the last one's.
        clients: of this round, the failed ones too; a table or rows.
        layers: of this round.
        arrays: the global model after the round.
        state: the strategy's own arrays after the round, such as a momentum.
        client_states: new states of the clients that changed theirs; others keep what is stored.
    """

    round: RoundRow
    clients: Sequence[ClientRow]
    layers: Sequence[LayerRow]
    arrays: Arrays
    state: Arrays
    client_states: Mapping[int, Arrays]

    @property
    def number(self) -> int:
        """The round's."""
        return int(self.round.round)


class Ledger:
    """A run directory that this process writes; made by ``create`` or ``resume``.

    Whatever happens, the directory holds the state after the last round whose ``append`` returned
    (if the process dies inside ``append``: before that round or after it, never in between).
    """

    def __init__(
        self, directory: Path, lock: RunLock, db: sqlite3.Connection, manifest: Manifest
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self._path = directory / files.LEDGER
        self._lock = lock
        self._db = db
        self._seconds_before = manifest.wall_seconds or 0.0
        self._began = time.monotonic()

    @classmethod
    def create(
        cls, directory: Path, *, manifest: Manifest, config: Mapping[str, Mapping[str, object]]
    ) -> Ledger:
        """Begin a run in a directory that is empty or missing.

        Args:
            directory: becomes the run.
            manifest: as ``new_manifest`` makes it.
            config: the resolved experiment, as TOML tables.

        Raises:
            RunExists: the directory holds a run or other files, or is a file.
            LedgerError: it cannot be written, or another process is beginning a run in it.
        """
        lock, db = begin(directory, manifest, config)
        return cls(directory, lock, db, manifest)

    @classmethod
    def resume(cls, directory: Path) -> Ledger:
        """Take up a run where its last committed round left it.

        Raises:
            LedgerError: there is no run; another process writes it; its ledger, manifest or last
                checkpoint is missing or damaged; or a fedsim of another ledger format wrote it.
        """
        return cls(directory, *reopen(directory))

    @property
    def last_round(self) -> int:
        """The last committed round, or 0."""
        with files.explained(self._path):
            return database.last_round(self._db)

    def rounds(self) -> list[RoundRow]:
        """Return the committed rounds in order; a figure that was NaN is None."""
        with files.explained(self._path):
            return ROUNDS.rows(self._db.execute(ROUNDS.select(), (self.last_round,)))

    def append(
        self,
        round: RoundRow,
        clients: Sequence[ClientRow],
        layers: Sequence[LayerRow],
        *,
        arrays: Arrays,
        state: Arrays,
        client_states: Mapping[int, Arrays],
    ) -> None:
        """Store a round, all of it or nothing; see :class:`Entry` for the arguments.

        Raises:
            LedgerError: it could not be stored; the message says why and what is intact.
        """
        entry = Entry(
            round=round,
            clients=clients,
            layers=layers,
            arrays=arrays,
            state=state,
            client_states=client_states,
        )
        self.append_all([entry])

    def append_all(self, entries: Sequence[Entry]) -> None:
        """Store rounds in one transaction, with the checkpoint of the last: all or nothing.

        Raises:
            LedgerError: they could not be stored; the message says why and what is intact.
        """
        before = self.last_round
        for entry in entries:
            self._check_order(entry.number, entry.clients, entry.layers, after=before)
            before = entry.number
        last = entries[-1]
        try:
            file, sha256 = checkpoints.write(self.directory, last.number, last.arrays, last.state)
            with database.transaction(self._db, self._path):
                for entry in entries:
                    self._insert(entry)
                self._db.execute(
                    "INSERT INTO checkpoints VALUES (?, ?, ?)", (last.number, file, sha256)
                )
                self._db.execute(
                    "DELETE FROM checkpoints WHERE round NOT IN"
                    " (SELECT round FROM checkpoints ORDER BY round DESC LIMIT ?)",
                    (CHECKPOINTS_KEPT,),
                )
        except LedgerError as error:
            # Room for the manifest to say so. Of any other failure the disk may still turn out
            # to hold the commit, so that its checkpoint has to stay until a resume knows.
            if files.is_full(error.__cause__):
                remove_unnamed_checkpoints(self.directory, self._db)
            raise LedgerError(
                f"round {entries[0].number} was not stored: {error}. The rounds before it are "
                f"intact: once that is put right, --resume {self.directory} goes on"
            ) from error
        remove_unnamed_checkpoints(self.directory, self._db)

    def _insert(self, entry: Entry) -> None:
        ROUNDS.store(self._db, [entry.round])
        CLIENTS.store(self._db, entry.clients)
        LAYERS.store(self._db, entry.layers)
        states = ((int(c), checkpoints.pack(s)) for c, s in entry.client_states.items())
        self._db.executemany("INSERT OR REPLACE INTO client_states VALUES (?, ?)", states)

    def append_failed_round(self, clients: Sequence[ClientRow]) -> None:
        """Store what clients said in a round that could not be completed, to be looked into.

        There is no row of such a round, and ``resume`` repeats it.
        """
        for number in set(column(clients, "round")):
            self._check_order(number, clients, (), after=self.last_round)
        with database.transaction(self._db, self._path):
            CLIENTS.store(self._db, clients)

    def checkpoint(self) -> Checkpoint | None:
        """Read back what the next round needs, or None before the first.

        Raises:
            LedgerError: the checkpoint is missing or damaged.
        """
        last = checkpoints.read_last(self.directory, self._db)
        states = checkpoints.read_client_states(self.directory, self._db)
        return last and replace(last, client_states=states)

    def note_blanks(self, blanks: Mapping[str, str]) -> None:
        """Write into the manifest which figures stay blank, and why.

        It may be called every round: the manifest is written only where that changes it.

        Args:
            blanks: reasons by column, such as ``{"package_joules": "no RAPL here"}``; columns
                noted before keep theirs unless they are given again.

        Raises:
            LedgerError: the manifest cannot be written; it is as it was.
        """
        merged = self.manifest.blanks | dict(blanks)
        if merged != self.manifest.blanks:
            noted = replace(self.manifest, blanks=merged, updated=utc_now())
            write_manifest(self.directory, noted)
            self.manifest = noted

    def promise(self, guarantee: str, epsilon: float) -> None:
        """Write into the manifest what is promised about people's data; ``finish`` keeps it.

        Args:
            guarantee: with everything that it rests on, in sentences.
            epsilon: what was spent; an infinite one is none, and stays blank.
        """
        spent = epsilon if math.isfinite(epsilon) else None
        self.manifest = replace(self.manifest, guarantee=guarantee, epsilon=spent)

    def finish(
        self,
        status: Literal["completed", "failed", "interrupted"],
        *,
        error: str | None = None,
        **figures: Any,
    ) -> None:
        """Write into the manifest how the run ended, and when, and after how long.

        Args:
            status: a completed run also gets the digest of its final model.
            error: what went wrong, for people.
            figures: other fields of the manifest to set.
        """
        now = utc_now()
        complete = status == "completed"
        last = checkpoints.read_last(self.directory, self._db) if complete else None
        ended: dict[str, Any] = {
            "finished": now,
            "updated": now,
            "wall_seconds": self._seconds_before + time.monotonic() - self._began,
            "model_sha256": checkpoints.model_digest(last.arrays) if last else None,
        }
        self.manifest = replace(self.manifest, status=status, error=error, **(ended | figures))
        write_manifest(self.directory, self.manifest)

    def close(self) -> None:
        """Fold the write-ahead log into the ledger and let go of the lock; twice is harmless."""
        # Out of WAL mode a ledger is one file, readable even from read-only media. Where a reader
        # or a full disk is in the way it stays in WAL mode, and no round is lost.
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA busy_timeout = 0")
            self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_order(
        self,
        number: int,
        clients: Sequence[ClientRow],
        layers: Sequence[LayerRow],
        *,
        after: int,
    ) -> None:
        if number <= after:
            raise LedgerError(f"round {number} cannot follow round {after} of {self.directory}")
        others = set(column(clients, "round")) | {row.round for row in layers}
        if others - {number}:
            raise LedgerError(f"rows of rounds {sorted(others)} cannot be stored as round {number}")
