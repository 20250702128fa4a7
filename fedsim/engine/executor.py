"""The seam between Flower's Grid and whatever runs the clients."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flwr.app import Context, Message, RecordDict

if TYPE_CHECKING:
    from fedsim.engine.cohort import Cohort, Usage


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

    def wait_ready(self) -> None:
        """Wait until clients can run.

        Raises:
            EngineError: they never will.
        """

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take on jobs, without waiting for them."""

    def collect(self, deadline: float) -> list[Outcome]:
        """Wait until an outcome is there or ``time.monotonic()`` passes the deadline."""

    def abandon(self, message_ids: Collection[str]) -> None:
        """Give up jobs; their outcomes will never be collected."""

    @property
    def usage(self) -> Usage | None:
        """What became of the workers' time in the last cohort."""

    @property
    def offers_cohorts(self) -> bool:
        """Whether the app takes blocks of clients; may wait until a worker has loaded it."""

    def run_cohort(self, cohort: Cohort, deadline: float) -> None:
        """Run a cohort's blocks, and give ``cohort.answer`` the parts of each one's reply.

        That is one part for a block that went well, one for each client where a block had to be
        split. Blocks that are not done when ``time.monotonic()`` passes the deadline are given up.
        """

    def close(self) -> None:
        """Release processes and memory; may be called twice."""
