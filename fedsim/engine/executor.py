"""The seam between Flower's Grid and whatever runs the clients."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Context, Message, RecordDict


@dataclass(frozen=True, slots=True)
class Job:
    """One message for one client, with the client's context as the last message left it.

    ``seed`` names the run's streams; the executor seeds Python's, NumPy's and torch's global
    generators from it before the client starts, for apps that draw from those.
    """

    message: Message
    context: Context
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The client's reply (content or error) and the state that it keeps."""

    message_id: str
    reply: Message
    state: RecordDict


class Executor(Protocol):
    """Runs jobs in any order; what a job returns must not depend on that order."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take on jobs, without waiting for them."""

    def collect(self, deadline: float) -> list[Outcome]:
        """Wait until an outcome is there or ``time.monotonic()`` passes the deadline."""

    def abandon(self, message_ids: Collection[str]) -> None:
        """Give up jobs; their outcomes will never be collected."""

    def close(self) -> None:
        """Release processes and memory; may be called twice."""
