"""Federated averaging, on a page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fedsim.algorithms.sums import WeightedSum
from fedsim.errors import RunFailed
from fedsim.federation.asking import Asker, Cut, left_out_rows, total_of
from fedsim.federation.billing import Evaluation, bill_model, bill_round, global_layers
from fedsim.federation.replies import Judged
from fedsim.federation.sampling import Whereabouts
from fedsim.federation.strategy import Aggregator
from fedsim.federation.transport import Transport
from fedsim.measure.energy import Energy, not_measured
from fedsim.records import LayerRow, RoundRow
from fedsim.table import Clients

Arrays = Mapping[str, np.ndarray]
DIVERGED = "training diverged: lower train.learning_rate or server.learning_rate"


class RoundFailed(RunFailed):
    """A round that gave no next model; ``clients`` are the rows that show why."""

    def __init__(self, message: str, clients: Clients) -> None:
        super().__init__(message)
        self.clients = clients


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """What one round left behind."""

    row: RoundRow
    clients: Clients
    layers: list[LayerRow]
    arrays: Arrays
    energy: Energy


def federated_rounds(
    aggregator: Aggregator,
    arrays: Arrays,
    *,
    first: int,
    last: int,
    choose: Callable[[int], list[int]],
    ask: Asker,
    cut: Cut,
    at: Whereabouts,
    noise_multiplier: float | None = None,
    learning_rate: Callable[[int], float],
    level: Callable[[int], str],
    transport: Transport,
    evaluate: Callable[[Arrays, str], Evaluation],
    evaluate_every: int,
    energy: Callable[[], AbstractContextManager[Energy]] = not_measured,
    figures: Callable[[int], Mapping[str, float]] = lambda round: {},
) -> Iterator[RoundOutcome]:
    """Run rounds ``first`` to ``last`` and yield each one's outcome (McMahan et al. 2017, alg. 1).

    Args:
        arrays: the model that round ``first`` starts from.
        choose: from round to partition ids, in increasing order.
        ask: asks a cohort, and judges what comes back.
        cut: from partition ids to the blocks in which they are summed, wherever that happens.
        at: where they are; those who are never asked are chosen like all others.
        noise_multiplier: what clients are told that add noise themselves.
        learning_rate: from round to the clients' learning rate.
        level: from round to how much is measured.
        transport: how the model comes down and updates go up.
        evaluate: from a model and a level to what it is worth on the test part.
        energy: measures what the processor takes for a round.
        figures: from round to what else its row holds.

    Raises:
        RoundFailed: no client's update could be used, unless noise covers that, or they gave no
            finite model or test loss.
    """
    for round in range(first, last + 1):
        started = time.perf_counter()
        with energy() as spent:
            clients = choose(round)
            nodes = [at.node_of(client) for client in clients if client not in at.left_out]
            plain = aggregator.instruct(round, arrays, learning_rate(round), nodes)
            instruction, received = transport.down(
                replace(plain, level=level(round), noise_multiplier=noise_multiplier)
            )
            judged = (
                ask(instruction, received, arrays, clients)
                if nodes
                else nobody(round, left_out_rows(round, clients, at.left_out))
            )
            total = partial(total_of, judged, instruction, clients, cut)
            arrays = next_model(round, aggregator, arrays, judged, total)
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
            worker_idle_fraction=judged.idle_fraction,
            secure_wall_seconds=judged.secure_wall_seconds,
            **aggregator.figures(),
            **figures(round),
            wall_seconds=wall_seconds,
        )
        layers = [*judged.layers, *global_layers(round, tested)]
        yield RoundOutcome(
            row=row, clients=judged.clients, layers=layers, arrays=arrays, energy=spent
        )


def next_model(
    round: int,
    aggregator: Aggregator,
    arrays: Arrays,
    judged: Judged,
    total: Callable[[], WeightedSum],
) -> Arrays:
    """Aggregate what was accepted; ``total`` gives its sum, where no more is needed.

    Raises:
        RoundFailed: with every client's row.
    """
    if not judged.usable and not (aggregator.survives_nobody and survivable(judged)):
        why = judged.ended or why_nobody(judged.clients)
        raise RoundFailed(f"round {round}: {why}", judged.clients)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
            model = (
                aggregator.aggregate_sum(round, arrays, total())
                if aggregator.aggregate_sum
                else aggregator.aggregate(round, arrays, judged.updates)
            )
    except RunFailed as error:
        raise RoundFailed(str(error), judged.clients) from error
    broken = [name for name, array in model.items() if not np.isfinite(array).all()]
    if broken:
        text = (
            f"round {round}: the aggregated model is not finite in {', '.join(broken)}; {DIVERGED}"
        )
        raise RoundFailed(text, judged.clients)
    return model


def nobody(round: int, rows: Clients) -> Judged:
    """Return the answers of a cohort in which nobody can be asked."""
    total = WeightedSum(arrays={}, weight=0, clients=0)
    return Judged(updates=[], clients=rows, layers=[], total=total, skipped=True)


def survivable(judged: Judged) -> bool:
    """Say whether a round without an update is noise alone, where noise has to cover everybody.

    That updates were rejected is of people's data, so that a run must not end by it; that nobody
    answered is not.
    """
    rejected = judged.ended is None and any(row.status == "rejected" for row in judged.clients)
    return judged.skipped or rejected


def why_nobody(clients: Clients) -> str:
    """Say that no client's update could be used, and the commonest reason."""
    if not clients:
        return "nobody was drawn; raise server.clients_per_round"
    reasons = [f"{row.status}: {row.error}" for row in clients]
    common = max(set(reasons), key=reasons.count)
    return (
        f"none of {len(clients)} clients gave a usable update; {reasons.count(common)} x {common}"
    )
