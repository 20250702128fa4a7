"""Federated averaging, on a page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedsim.errors import RunFailed
from fedsim.federation.replies import Judged, judge
from fedsim.federation.strategy import Aggregator
from fedsim.flower import encode_instruction
from fedsim.measure.payload import dense_bytes
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
    evaluate: Callable[[Arrays], tuple[float, float]],
    evaluate_every: int,
    timeout_seconds: float,
) -> Iterator[RoundOutcome]:
    """Run rounds ``first`` to ``last`` and yield each one's outcome (McMahan et al. 2017, alg. 1).

    Args:
        arrays: the model that round ``first`` starts from.
        choose: from round to partition ids, in increasing order.
        node_of: from partition id to node id.
        learning_rate: from round to the clients' learning rate.
        evaluate: from a model to its test accuracy and loss.

    Raises:
        RoundFailed: no client's update could be used, or they gave no finite model or test loss.
    """
    for round in range(first, last + 1):
        started = time.perf_counter()
        clients = choose(round)
        nodes = [node_of(client) for client in clients]
        rate = learning_rate(round)
        instruction = aggregator.instruct(round, arrays, rate, nodes)
        content = encode_instruction(instruction)
        messages = [Message(content, n, MessageType.TRAIN, group_id=str(round)) for n in nodes]
        replies = grid.send_and_receive(messages, timeout=timeout_seconds)
        judged = judge(
            instruction,
            asked=dict(zip(clients, messages, strict=True)),
            replies=replies,
            timeout_seconds=timeout_seconds,
        )
        sent = (dense_bytes(arrays) + dense_bytes(instruction.control or {})) * len(messages)
        arrays = next_model(round, aggregator, arrays, judged)
        due = round % evaluate_every == 0 or round == last
        accuracy, loss = evaluate(arrays) if due else (None, None)
        if loss is not None and not math.isfinite(loss):
            raise RoundFailed(f"round {round}: the test loss is {loss}; {DIVERGED}", judged.clients)
        row = RoundRow(
            round=round,
            test_accuracy=accuracy,
            test_loss=loss,
            clients_trained=len(judged.updates),
            clients_failed=len(clients) - len(judged.updates),
            uplink_bytes=sum(row.dense_bytes or 0 for row in judged.clients),
            downlink_bytes=sent,
            cpu_seconds=sum(row.cpu_seconds or 0.0 for row in judged.clients),
            wall_seconds=time.perf_counter() - started,
        )
        yield RoundOutcome(row=row, clients=judged.clients, layers=judged.layers, arrays=arrays)


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
