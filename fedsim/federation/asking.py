"""How a cohort is asked: every client by a message of its own, or in blocks.

docs/decisions/0011-cohorts.md says who is asked how, and why blocks are part of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedsim.algorithms.sums import WeightedSum, block_sum, sum_of
from fedsim.federation.billing import Price, bill_clients, bill_table
from fedsim.federation.cohorts import CohortAnswer, Places
from fedsim.federation.exchange import send_and_receive
from fedsim.federation.replies import Judged, judge
from fedsim.federation.transport import Transport
from fedsim.flower import Instruction, encode_instruction
from fedsim.measure.payload import update_norm
from fedsim.privacy.clipping import UNIT, clip_weights
from fedsim.records import ClientRow

Arrays = Mapping[str, np.ndarray]
Cut = Callable[[Sequence[int]], Sequence["Part"]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A block of a cohort: where in it its clients are, in increasing order, and what it takes."""

    places: Places
    work: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block as the engine takes it: partition ids, and features of its cost."""

    clients: tuple[int, ...]
    work: tuple[float, ...]


class Asker(Protocol):
    """Asks a cohort and judges what comes back."""

    def __call__(
        self, instruction: Instruction, received: Arrays, arrays: Arrays, clients: Sequence[int]
    ) -> Judged:
        """Return the cohort's answers, billed.

        Args:
            instruction: what is asked.
            received: the model as the clients receive it.
            arrays: the server's model.
            clients: partition ids, in increasing order.
        """


@dataclass(frozen=True, kw_only=True)
class Singles:
    """Every client has a message of its own, and answers for itself.

    Those in ``left_out`` have none, by client the reason why, and a row that says so.
    """

    grid: Grid
    node_of: Callable[[int], int]
    transport: Transport
    timeout_seconds: float
    price: Price | None = None
    left_out: Mapping[int, str] = field(default_factory=dict)

    def __call__(
        self, instruction: Instruction, received: Arrays, arrays: Arrays, clients: Sequence[int]
    ) -> Judged:
        """See :class:`Asker`."""
        told = replace(instruction, clipping_norm=None)  # which is the server's own business
        content, group = encode_instruction(told), str(instruction.round)
        asked = {
            client: Message(content, self.node_of(client), MessageType.TRAIN, group_id=group)
            for client in clients
            if client not in self.left_out
        }
        judged = judge(
            instruction,
            asked=asked,
            replies=send_and_receive(
                self.grid, list(asked.values()), timeout_seconds=self.timeout_seconds
            ),
            timeout_seconds=self.timeout_seconds,
            read_update=partial(self.transport.up, like=arrays, received=received),
        )
        judged = clipped(judged, instruction)
        billed = bill_clients(judged, instruction, asked, self.price)
        if absent := left_out_rows(instruction.round, clients, self.left_out):
            billed = sorted([*billed, *absent], key=lambda row: row.client)
        return replace(judged, clients=billed)


def left_out_rows(
    round: int, clients: Sequence[int], left_out: Mapping[int, str]
) -> list[ClientRow]:
    """Return the rows of the clients that are not asked."""
    return [
        ClientRow(
            round=round, client=client, status="failed", error=f"left out: {left_out[client]}"
        )
        for client in clients
        if client in left_out
    ]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Clients are trained, summed and billed in blocks; see :meth:`SimulationGrid.send_cohort`.

    ``linear`` says that the sum of the models is enough.
    """

    grid: Any  # a SimulationGrid
    cut: Cut
    linear: bool
    timeout_seconds: float
    price: Price | None = None

    def __call__(
        self, instruction: Instruction, received: Arrays, arrays: Arrays, clients: Sequence[int]
    ) -> Judged:
        """See :class:`Asker`."""
        # A client's drift is its update's angle to the mean, which is there when all have trained.
        summed = self.linear and instruction.level != "full"
        content = encode_instruction(replace(instruction, summed=summed))
        parts = self.cut(clients)
        blocks = [Block(clients=tuple(clients[i] for i in p.places), work=p.work) for p in parts]
        places = [part.places for part in parts]
        cohort = CohortAnswer(instruction, clients, arrays, places)
        self.grid.send_cohort(content, blocks, timeout=self.timeout_seconds, each=cohort.take)
        cohort.miss(f"no reply within {self.timeout_seconds:g} s")
        judged = cohort.judged(summed=summed)
        table = bill_table(cohort, judged, content, self.price)
        usage = getattr(self.grid, "usage", None)
        idle = usage.idle_fraction if usage is not None else None
        return replace(judged, clients=table, idle_fraction=idle)


def total_of(
    judged: Judged, instruction: Instruction, clients: Sequence[int], cut: Cut
) -> WeightedSum:
    """Return the sum of the acceptable updates, block by block, wherever it is formed."""
    if judged.total is not None:
        return judged.total
    by_client = {update.client: update for update in judged.updates}
    blocks = (
        [by_client[clients[i]] for i in part.places if clients[i] in by_client]
        for part in cut(clients)
    )
    unit = 0 if instruction.clipping_norm is None else UNIT
    return sum_of(block_sum(((u.arrays, u.weight) for u in block), unit=unit) for block in blocks)


def clipped(judged: Judged, instruction: Instruction) -> Judged:
    """Return updates with the weights that clip them, and rows that tell these.

    A block's workers do the same where the clients are trained.
    """
    if instruction.clipping_norm is None:
        return judged
    norms = [update_norm(instruction.arrays, update.arrays) for update in judged.updates]
    weights = clip_weights(np.array(norms), instruction.clipping_norm).tolist()
    updates = [replace(u, weight=w) for u, w in zip(judged.updates, weights, strict=True)]
    if math.isinf(instruction.clipping_norm):  # they weigh the same, and nothing was cut
        return replace(judged, updates=updates)
    scale = {u.client: u.weight / UNIT for u in updates}
    rows = [replace(row, clip_scale=scale.get(row.client)) for row in judged.clients]
    return replace(judged, updates=updates, clients=rows)


def takes_cohorts(grid: Grid) -> bool:
    """Say whether a grid can ask clients in blocks, and its ClientApp answer."""
    return bool(getattr(grid, "offers_cohorts", False))
