"""Federated averaging, on a page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedsim.errors import RunFailed
from fedsim.federation.billing import (
    Evaluation,
    Price,
    bill_clients,
    bill_model,
    bill_round,
    global_layers,
)
from fedsim.federation.replies import Judged, judge
from fedsim.federation.strategy import Aggregator
from fedsim.federation.transport import Transport
from fedsim.flower import encode_instruction
from fedsim.measure.energy import Energy, not_measured
from fedsim.records import ClientRow, LayerRow, RoundRow

Arrays = Mapping[str, np.ndarray]
DIVERGED = "training diverged: lower train.learning_rate or server.learning_rate"


class RoundFailed(RunFailed):
    """A round that gave no next model; ``clients`` are the rows that show why."""

    def __init__(self, message: str, clients: list[ClientRow]) -> None:
        super().__init__(message)
        self.clients = clients


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """What one round left behind."""

    row: RoundRow
    clients: list[ClientRow]
    layers: list[LayerRow]
    arrays: Arrays
    energy: Energy


def federated_rounds(
    grid: Grid,
    aggregator: Aggregator,
    arrays: Arrays,
    *,
    first: int,
    last: int,
    choose: Callable[[int], list[int]],
    node_of: Callable[[int], int],
    learning_rate: Callable[[int], float],
    level: Callable[[int], str],
    transport: Transport,
    evaluate: Callable[[Arrays, str], Evaluation],
    evaluate_every: int,
    timeout_seconds: float,
    price: Price | None = None,
    energy: Callable[[], AbstractContextManager[Energy]] = not_measured,
) -> Iterator[RoundOutcome]:
    """Run rounds ``first`` to ``last`` and yield each one's outcome (McMahan et al. 2017, alg. 1).

    Args:
        arrays: the model that round ``first`` starts from.
        choose: from round to partition ids, in increasing order.
        node_of: from partition id to node id.
        learning_rate: from round to the clients' learning rate.
        level: from round to how much is measured.
        transport: how the model comes down and updates go up.
        evaluate: from a model and a level to what it is worth on the test part.
        price: from a client's row to its modelled figures.
        energy: measures what the processor takes for a round.

    Raises:
        RoundFailed: no client's update could be used, or they gave no finite model or test loss.
    """
    for round in range(first, last + 1):
        started = time.perf_counter()
        with energy() as spent:
            clients = choose(round)
            nodes = [node_of(client) for client in clients]
            plain = aggregator.instruct(round, arrays, learning_rate(round), nodes)
            instruction, received = transport.down(replace(plain, level=level(round)))
            content = encode_instruction(instruction)
            messages = [Message(content, n, MessageType.TRAIN, group_id=str(round)) for n in nodes]
            asked = dict(zip(clients, messages, strict=True))
            replies = grid.send_and_receive(messages, timeout=timeout_seconds)
            judged = judge(
                instruction,
                asked=asked,
                replies=replies,
                timeout_seconds=timeout_seconds,
                read_update=partial(transport.up, like=arrays, received=received),
            )
            judged = replace(judged, clients=bill_clients(judged, instruction, asked, price))
            arrays = next_model(round, aggregator, arrays, judged)
            due = round % evaluate_every == 0 or round == last
            tested = evaluate(arrays, instruction.level) if due else Evaluation()
            sent = bill_model(received, instruction.level)
        wall_seconds = time.perf_counter() - started
        if tested.loss is not None and not math.isfinite(tested.loss):
            text = f"round {round}: the test loss is {tested.loss}; {DIVERGED}"
            raise RoundFailed(text, judged.clients)
        row = bill_round(
            round,
            judged.clients,
            tested,
            **sent,
            package_joules=spent.joules,
            wall_seconds=wall_seconds,
        )
        layers = [*judged.layers, *global_layers(round, tested)]
        yield RoundOutcome(
            row=row, clients=judged.clients, layers=layers, arrays=arrays, energy=spent
        )


def next_model(round: int, aggregator: Aggregator, arrays: Arrays, judged: Judged) -> Arrays:
    """Aggregate what was accepted.

    Raises:
        RoundFailed: with every client's row.
    """
    if not judged.updates:
        raise RoundFailed(f"round {round}: {why_nobody(judged.clients)}", judged.clients)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
            model = aggregator.aggregate(round, arrays, judged.updates)
    except RunFailed as error:
        raise RoundFailed(str(error), judged.clients) from error
    broken = [name for name, array in model.items() if not np.isfinite(array).all()]
    if broken:
        text = (
            f"round {round}: the aggregated model is not finite in {', '.join(broken)}; {DIVERGED}"
        )
        raise RoundFailed(text, judged.clients)
    return model


def why_nobody(clients: list[ClientRow]) -> str:
    """Say that no client's update could be used, and the commonest reason."""
    reasons = [f"{row.status}: {row.error}" for row in clients]
    common = max(set(reasons), key=reasons.count)
    return (
        f"none of {len(clients)} clients gave a usable update; {reasons.count(common)} x {common}"
    )
