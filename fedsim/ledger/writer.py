"""The ledger beside the rounds: a thread writes them, so that none waits for a disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from fedsim.ledger.store import Entry, Ledger

# So many rounds may be under way to the disk. Each holds a model in memory, and is lost with the
# process; a round that takes longer than its transaction (some milliseconds) never waits here.
ROUNDS_BEHIND = 16
# Between the starts of two transactions, so that rounds much shorter than that share one.
PAUSE_SECONDS = 0.05


class LedgerWriter:
    """Appends rounds in their order, in the background.

    What has piled up goes into one transaction, with the last round's checkpoint: rounds that are
    shorter than a transaction are not slowed by it. The ledger's promise holds as it is: at any
    moment the directory holds the state after some round, all of it, and a resume goes on there.

    As a context manager it writes what is left at the end of the block, also after an exception.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: deque[tuple[Entry, Mapping[str, str]]] = deque()
        self._changed = threading.Condition()
        self._under_way = 0  # rounds in the transaction that is being written
        self._closed = self._hurry = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    def append(self, entry: Entry, blanks: Mapping[str, str]) -> None:
        """Hand over a round, whose arrays nobody may change from now on.

        Args:
            entry: the round.
            blanks: figures of it that stay blank, and why; see :meth:`Ledger.note_blanks`.

        Raises:
            LedgerError: an earlier round could not be stored.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._behind() < ROUNDS_BEHIND)
            self._raise()
            self._waiting.append((entry, blanks))
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until every round that was handed over is stored.

        Raises:
            LedgerError: one could not be.
        """
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error or not self._behind())
            self._hurry = False
            self._raise()

    def _is_pressing(self) -> bool:
        return self._closed or self._hurry or len(self._waiting) >= ROUNDS_BEHIND // 2

    def _behind(self) -> int:
        return len(self._waiting) + self._under_way

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        earliest = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._changed.wait_for(self._is_pressing, timeout=earliest - time.monotonic())
                earliest = time.monotonic() + PAUSE_SECONDS
                if not self._waiting:
                    return
                taken = list(self._waiting)
                self._waiting.clear()
                self._under_way = len(taken)
            try:
                self._ledger.append_all([entry for entry, _ in taken])
                for _, blanks in taken:
                    self._ledger.note_blanks(blanks)
            except BaseException as error:  # is raised where the next round is handed over
                with self._changed:
                    self._error, self._under_way = error, 0
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._under_way = 0
                self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        try:
            self._thread.join()
        except KeyboardInterrupt:  # once more: what is being written is written to its end
            self._thread.join()
            raise
        if error is None:
            self._raise()
        elif self._error is not None:
            error.add_note(str(self._error))
