"""Whole federations as loads: each runs in one worker, server and clients, several side by side.

A worker that runs a federation by itself sends nobody anything until the end, so that many short
federations keep all workers busy, which the rounds of a single one could not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.errors import FedsimError


@dataclass(frozen=True, slots=True)
class Federation:
    """A ServerApp by reference, and what it runs with."""

    reference: str  # module:attribute
    directory: str
    nodes: int
    seed: int
    run_config: Mapping[str, object]


@dataclass(slots=True, eq=False)
class FederationLoad:
    """A federation on its way; a load, as the crew calls it.

    ``make`` is called anew for every worker that takes it up, so that a federation whose worker
    died can be told to go on where that stopped. ``tell`` takes the problem, or "" if all is well.
    """

    make: Callable[[], Federation]
    tell: Callable[[str], None]
    seconds: float = float("inf")
    attempts: int = 0
    answered: float = 0.0
    shareable: bool = False  # it writes files

    def send(self, actor: Any) -> Any:
        """Call the actor."""
        return actor.run_federation.remote(self.make())

    def accept(self, answer: str, worker: int) -> None:
        """Pass on how it ended."""
        self.tell(answer)

    def split(self) -> list[FederationLoad]:
        """Return the federation, to be gone on with."""
        return [self]

    def give_up(self, reason: str) -> None:
        """Pass on that it was given up."""
        self.tell(reason)


def problem_of(error: Exception) -> str:
    """Say why a federation failed; of an error that nobody foresaw, where."""
    if isinstance(error, FedsimError):
        return str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {error}{where}"
