"""The files of a run directory: their names, atomic writing, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedsim.errors import LedgerError

LEDGER = "ledger.sqlite"
MANIFEST = "manifest.json"
CONFIG = "config.toml"
CALIBRATION = "calibration.json"  # what activations take on this machine, where it was measured
LOCK = "run.lock"
CHECKPOINTS = "checkpoint-*.safetensors"
PARTS = ".*.part"


def checkpoint_name(round: int) -> str:
    """Name the checkpoint after a round."""
    return f"checkpoint-{round:06d}.safetensors"


def remove(directory: Path, *patterns: str, keep: Collection[str] = ()) -> None:
    """Remove the files that match; one that cannot be removed is left to the next time."""
    for pattern in patterns:
        for path in directory.glob(pattern):
            if path.name not in keep:
                with suppress(OSError):
                    path.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file; a reader, or a crash, finds the old bytes or the new ones, never a mix.

    Raises:
        LedgerError: the disk is full, or the file cannot be written; no partial file stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explained(path):
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        _sync_directory(path.parent)


def read_bytes(path: Path) -> bytes:
    """Read a file of a run directory.

    Raises:
        LedgerError: it is missing or cannot be read.
    """
    with explained(path):
        return path.read_bytes()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system or SQLite raises about ``path`` into a LedgerError with a remedy."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if _sqlite_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise damaged(path, str(error)) from error
        raise LedgerError(f"{path}: {_explanation(error)}") from error


def damaged(path: Path, why: str) -> LedgerError:
    """Return the error for a file whose content is not what was written."""
    return LedgerError(f"{path} is damaged ({why}); restore it from a copy, or run again elsewhere")


def is_full(error: BaseException | None) -> bool:
    """Say whether an error means that a disk, a quota or a database has no room left."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return _sqlite_code(error) == sqlite3.SQLITE_FULL


def _explanation(error: OSError | sqlite3.Error) -> str:
    if is_full(error):
        return "the disk is full; free some space on it"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if _sqlite_code(error) == sqlite3.SQLITE_BUSY:
        return "in use by another program; close that and try again"
    return str(error)


def _sqlite_code(error: BaseException | None) -> int | None:
    """Return the primary result code; errors of the Python module itself have none."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut; Windows neither needs nor allows it."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
