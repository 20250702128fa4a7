"""Run directories: begun where nothing else is, taken up again where the last round left them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import tomli_w

from fedsim.errors import LedgerError, RunExists
from fedsim.ledger import checkpoints, database, files
from fedsim.ledger.lock import RunLock
from fedsim.ledger.manifest import read_manifest, resumed, write_manifest
from fedsim.records import Manifest


def begin(
    directory: Path, manifest: Manifest, config: Mapping[str, Mapping[str, object]]
) -> tuple[RunLock, sqlite3.Connection]:
    """Lock a new run and write its first files; after a failure, only an unused lock file stays.

    Raises:
        RunExists: the directory holds a run or other files, or is a file.
        LedgerError: it cannot be written, or another process is beginning a run in it.
    """
    _refuse_occupied(directory)
    with files.explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        lock = RunLock(directory / files.LOCK)
        undo.callback(lock.release)
        _refuse_occupied(directory)  # again, now that nobody can come between
        undo.callback(files.remove, directory, files.CONFIG, f"{files.LEDGER}*", files.MANIFEST)
        files.write_atomically(directory / files.CONFIG, tomli_w.dumps(config).encode())
        db = database.create(directory / files.LEDGER, manifest.versions.get("fedsim"))
        undo.callback(db.close)
        write_manifest(directory, manifest)
        undo.pop_all()
    return lock, db


def reopen(directory: Path) -> tuple[RunLock, sqlite3.Connection, Manifest]:
    """Lock a run, check it, and remove what an interrupted process left behind.

    That is: temporary files, a checkpoint whose round was not committed, and the clients of a
    round that failed.

    Raises:
        LedgerError: there is no run; another process writes it; its ledger, manifest or last
            checkpoint is missing or damaged; or a fedsim of another ledger format wrote it.
    """
    path = directory / files.LEDGER
    if not path.is_file():
        raise LedgerError(
            f"{directory} holds no run to resume, it has no {files.LEDGER}; "
            f"begin one there with --out {directory}"
        )
    with ExitStack() as undo:
        lock = RunLock(directory / files.LOCK)
        undo.callback(lock.release)
        files.remove(directory, files.PARTS)
        db = database.open_to_write(path)
        undo.callback(db.close)
        before = read_manifest(directory)
        checkpoints.read_last(directory, db)  # damage must show now, not when it is needed
        with database.transaction(db, path):
            db.execute("DELETE FROM clients WHERE round > ?", (database.last_round(db),))
            # A process that was killed could not say how long it ran; its rounds can.
            (seconds,) = db.execute("SELECT total(wall_seconds) FROM rounds").fetchone()
        remove_unnamed_checkpoints(directory, db)
        manifest = resumed(before, wall_seconds=max(before.wall_seconds or 0.0, seconds))
        write_manifest(directory, manifest)
        undo.pop_all()
    return lock, db, manifest


def remove_unnamed_checkpoints(directory: Path, db: sqlite3.Connection) -> None:
    """Remove the checkpoints that the ledger does not name: superseded, or never committed."""
    with files.explained(directory / files.LEDGER):
        named = {file for (file,) in db.execute("SELECT file FROM checkpoints")}
    files.remove(directory, files.CHECKPOINTS, keep=named)


def _refuse_occupied(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise RunExists(f"{directory} is a file; choose another --out")
    with files.explained(directory):
        found = sorted(path.name for path in directory.glob("*") if path.name != files.LOCK)
    if files.LEDGER in found or files.MANIFEST in found:
        raise RunExists(
            f"{directory} already holds a run; go on with it by --resume {directory}, "
            "or choose another --out"
        )
    if found:
        raise RunExists(f"{directory} is not empty, it holds {found[0]!r}; choose another --out")
