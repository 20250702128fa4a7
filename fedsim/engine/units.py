"""Blocks on their way to the workers: several in one call, so that a short round stays short."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import Error, RecordDict
from flwr.common.constant import ErrorCode

from fedsim.engine.actor import array_bytes, rejoined
from fedsim.engine.cohort import Cohort, Reply, Setting, Usage
from fedsim.engine.prediction import CostModel, plan

CALLS_BYTES = 16 * 2**20  # that the driver sends out with a round's calls, at the most


@dataclass(frozen=True, slots=True)
class Piece:
    """A block, or the client at one ``place`` of it."""

    block: int
    clients: tuple[int, ...]
    number: int
    place: int | None = None


@dataclass(slots=True, eq=False)
class Round:
    """One cohort on its way: what its units share, and which blocks have not answered."""

    cohort: Cohort
    model: CostModel
    shared: bytes | list[Any]  # pickled content and setting, or the reference to both
    busy_seconds: list[float]
    missing: set[int]
    parts: dict[int, dict[int, Reply]] = field(default_factory=dict)  # of split blocks, by place

    @classmethod
    def of(cls, cohort: Cohort, model: CostModel, workers: int, inline_bytes: int) -> Round:
        """Make a cohort ready to travel.

        What is small goes to each worker with its call: fetching it from the object store would
        take longer than everything else in a short round. What is large goes there once.
        """
        shared = share((cohort.content, cohort.setting), workers, inline_bytes)
        return cls(cohort, model, shared, [0.0] * workers, set(range(len(cohort.blocks))))

    def units(self, workers: int) -> list[Unit]:
        """Put the blocks together for so many workers, those that shall go first in front."""
        blocks = self.cohort.blocks
        predicted = self.model.predict([block.work for block in blocks])
        costs = predicted or [sum(block.work) or float(len(block.clients)) for block in blocks]
        pieces = [
            Piece(i, block.clients, number)
            for i, (block, number) in enumerate(zip(blocks, self.cohort.numbers, strict=True))
        ]
        return [
            Unit(
                self,
                [pieces[i] for i in places],
                seconds=sum(costs[i] for i in places) if predicted else float("inf"),
            )
            for places in plan(costs, workers, in_seconds=predicted is not None)
        ]

    def has(self, load: object) -> bool:
        """Whether a load belongs to this cohort."""
        return isinstance(load, Unit) and load.round is self

    def take(self, piece: Piece, parts: list[Reply]) -> None:
        """Note the answer of a block, or of one client of a split one."""
        if piece.place is None:
            self._answer(piece.block, parts)
            return
        places = self.parts.setdefault(piece.block, {})
        places[piece.place] = parts[0]
        clients = range(len(self.cohort.blocks[piece.block].clients))
        if len(places) == len(clients):
            self._answer(piece.block, [places[place] for place in clients])

    def _answer(self, block: int, parts: list[Reply]) -> None:
        self.parts.pop(block, None)
        self.missing.discard(block)
        self.cohort.answer(block, parts)


@dataclass(slots=True, eq=False)
class Unit:
    """Pieces that travel to one worker together; a load, as the crew calls it."""

    round: Round
    pieces: Sequence[Piece]
    seconds: float
    attempts: int = 0
    answered: float = 0.0
    shareable: bool = True  # a block has no side effects that last

    def send(self, actor: Any) -> Any:
        """Call the actor."""
        pieces = pickle.dumps([(piece.clients, piece.number) for piece in self.pieces])
        return actor.run_blocks.remote(self.round.shared, pieces)

    def accept(self, answer: Any, worker: int) -> None:
        """Take the replies, and learn from how long they took."""
        seconds, results = rejoined(answer)
        self.round.busy_seconds[worker] += seconds
        for piece, (parts, spent) in zip(self.pieces, results, strict=True):
            if piece.place is None and len(parts) == 1:
                self.round.model.observe(self.round.cohort.blocks[piece.block].work, spent)
            self.round.take(piece, parts)

    def split(self) -> list[Unit]:
        """Return each block by itself; a block that has killed twice, client by client."""
        if len(self.pieces) > 1:
            return [self._part(piece) for piece in self.pieces]
        (piece,) = self.pieces
        if self.attempts < 2 or len(piece.clients) == 1:
            return [self]
        return [
            self._part(Piece(piece.block, (client,), piece.number + place, place))
            for place, client in enumerate(piece.clients)
        ]

    def _part(self, piece: Piece) -> Unit:
        # Alone with its worker, and nothing waiting behind it: what dies now is what kills.
        return Unit(self.round, [piece], float("inf"), self.attempts)

    def give_up(self, reason: str) -> None:
        """Answer in the place of the clients."""
        for piece in self.pieces:
            self.round.take(piece, [Error(code=ErrorCode.UNKNOWN, reason=reason)])


def share(what: tuple[RecordDict, Setting], workers: int, inline_bytes: int) -> bytes | list[Any]:
    """Pickle what is small enough to travel in each call; put the rest into the object store."""
    most = min(inline_bytes, CALLS_BYTES // workers)
    if array_bytes(what[0]) < most:
        pickled = pickle.dumps(what, protocol=5)
        if len(pickled) < most:
            return pickled
    return [ray.put(what)]


def usage_of(done: Round, started: float) -> Usage:
    """Return what became of the workers' time since ``time.perf_counter()`` was ``started``."""
    return Usage(time.perf_counter() - started, tuple(done.busy_seconds))
