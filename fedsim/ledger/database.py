"""Connections to a ledger, and the checks before it is trusted."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from fedsim.errors import LedgerError
from fedsim.ledger import files
from fedsim.ledger.formats import FORMAT_VERSION
from fedsim.ledger.schema import statements

BUSY_SECONDS = 10.0


def create(path: Path, fedsim: str | None) -> sqlite3.Connection:
    """Create an empty ledger of the current format and return the connection that writes it.

    Args:
        path: a file that does not exist yet.
        fedsim: this fedsim's version, which the user of an older one will be told to get.
    """
    about = {"format_version": str(FORMAT_VERSION), "fedsim": fedsim}
    with files.explained(path):
        db = _connect(path, "rwc")
        try:
            _write_ahead(db)
            with transaction(db, path):
                for statement in statements():
                    db.execute(statement)
                db.executemany("INSERT INTO meta VALUES (?, ?)", about.items())
        except BaseException:
            db.close()
            raise
    return db


def open_to_write(path: Path) -> sqlite3.Connection:
    """Open a ledger to go on writing it, after a check of every page.

    Raises:
        LedgerError: it is damaged, not a ledger, or not of the current format.
    """
    with files.explained(path):
        db = _connect(path, "rw")
        try:
            _refuse_older(db, path)
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise files.damaged(path, verdict)
            _write_ahead(db)
        except BaseException:
            db.close()
            raise
    return db


@contextmanager
def reading(directory: Path) -> Iterator[sqlite3.Connection]:
    """Open a run's ledger to read one consistent state of it, also while it is being written.

    Raises:
        LedgerError: there is no ledger, or it is damaged, not a ledger, or of a newer format.
    """
    path = directory / files.LEDGER
    if not path.is_file():
        raise LedgerError(f"{directory} holds no run: it has no {files.LEDGER}")
    with files.explained(path):
        db = _connect(path, "ro")
        try:
            db.execute("BEGIN")
            format_of(db, path)
            yield db
        finally:
            db.close()


@contextmanager
def transaction(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Commit all of what the block does, or nothing.

    Raises:
        LedgerError: SQLite could not; nothing of it was stored.
    """
    with files.explained(path):
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            db.rollback()
            raise


def last_round(db: sqlite3.Connection) -> int:
    """Return the last committed round, or 0."""
    (last,) = db.execute("SELECT coalesce(max(round), 0) FROM rounds").fetchone()
    return int(last)


def format_of(db: sqlite3.Connection, path: Path) -> int:
    """Return the format of a ledger, from 1 to the current one.

    Raises:
        LedgerError: it is not a ledger, or of a newer format.
    """
    about = _about(db)
    version = int(about.get("format_version") or 0)
    if not version:
        raise LedgerError(f"{path} is a database, but not a ledger of fedsim")
    if version > FORMAT_VERSION:
        needed = f"fedsim {about['fedsim']}" if about.get("fedsim") else "a newer fedsim"
        raise LedgerError(
            f"{path}: ledger format {version}, and this fedsim reads up to {FORMAT_VERSION}; "
            f"it was written by {needed}: install that or newer"
        )
    return version


def _refuse_older(db: sqlite3.Connection, path: Path) -> None:
    """Refuse to go on with a ledger of an older format: half of its rounds would lack figures."""
    version = format_of(db, path)
    if version < FORMAT_VERSION:
        writer = f"fedsim {_about(db).get('fedsim') or '(of an unknown version)'}"
        raise LedgerError(
            f"{path}: ledger format {version}, begun by {writer}; this fedsim reads it, but "
            f"writes format {FORMAT_VERSION} alone: begin the run anew with another --out, or "
            "finish it with the fedsim that began it"
        )


def _about(db: sqlite3.Connection) -> dict[str, str | None]:
    """Read the table meta; empty where there is none."""
    known = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone()
    return dict(db.execute("SELECT key, value FROM meta").fetchall()) if known else {}


def _connect(path: Path, mode: Literal["ro", "rw", "rwc"]) -> sqlite3.Connection:
    # As a URI, since only that form can say "do not create"; as_uri quotes odd characters.
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    # Rounds are written by another thread than opened the ledger, though never by two at once.
    return sqlite3.connect(
        uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
    )


def _write_ahead(db: sqlite3.Connection) -> None:
    """Let others read while this connection writes, and make a commit survive a power cut."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
