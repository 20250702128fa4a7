"""The lock of a run directory: one writer, and a sign of life.

The operating system drops the lock with the process that holds it, so a run that was killed never
looks alive, and never has to be unlocked by hand.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from fedsim.errors import LedgerError
from fedsim.ledger.files import explained

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int, *, shared: bool) -> None:
        os.lseek(handle, 0, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

    _REFUSED: tuple[type[OSError], ...] = (PermissionError,)
else:
    import fcntl

    def _lock(handle: int, *, shared: bool) -> None:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    _REFUSED: tuple[type[OSError], ...] = (BlockingIOError,)

# `is_held` takes the lock for an instant: a writer that meets it there tries again.
_ATTEMPTS = 5
_PAUSE_SECONDS = 0.02


class RunLock:
    """The right to write a run, from construction to ``release``.

    Raises:
        LedgerError: another process has it, or the file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        with explained(path):
            self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with explained(path):
                self._acquire(path)
        except LedgerError:
            self.release()
            raise

    def _acquire(self, path: Path) -> None:
        assert self._handle is not None
        for attempt in range(_ATTEMPTS):
            try:
                return _lock(self._handle, shared=False)
            except _REFUSED as error:
                if attempt == _ATTEMPTS - 1:
                    raise LedgerError(
                        f"{path.parent} is being written by another process; "
                        "wait for it or stop it, then try again"
                    ) from error
            time.sleep(_PAUSE_SECONDS)

    def release(self) -> None:
        """Let go; doing so twice is harmless. The file stays, since removing it would race."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def is_held(path: Path) -> bool:
    """Say whether a live process holds the lock; a missing file is held by nobody."""
    if not path.exists():
        return False
    with explained(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            _lock(handle, shared=True)
        except _REFUSED:
            return True
        finally:
            os.close(handle)
    return False
