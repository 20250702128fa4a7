"""Flower apps whose clients do no work: what is left is the price of asking and of answering.

``echo`` returns the arrays that it was sent, without looking at them; ``copy`` decodes them and
encodes them again, as every real client does; ``sums`` is fedsim's way for many clients: one call
decodes once, copies the arrays for each client of a block, and returns the float64 sum.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.runners.common import Rounds
from benchmarks.spec import Spec

KIND = "FEDSIM_BENCHMARK_CLIENT"  # the environment variable that takes the kind to the workers
SHAPES = [(784, 200), (200,), (200, 200), (200,), (200, 10), (10,)]  # the 2NN: 199,210 weights
WARM_UP_CLIENTS = 100
BLOCK = 125  # clients in one call

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one client's message."""
    arrays = message.content["arrays"]
    if os.environ[KIND] == "copy":
        arrays = ArrayRecord(arrays.to_numpy_ndarrays())
    return answer(message, arrays, 1)


@client_app.train("cohort")
def train_cohort(message: Message, context: Context) -> Message:
    """Answer for a block of clients: each one's copy, added up."""
    weights = message.content["arrays"].to_numpy_ndarrays()
    clients = message.content["cohort"]["partition-ids"]
    sums = [np.zeros(w.shape, np.float64) for w in weights]
    for _ in clients:
        for total, trained in zip(sums, [w.copy() for w in weights], strict=True):
            total += trained
    return answer(message, ArrayRecord(sums), len(clients))


def answer(message: Message, arrays: ArrayRecord, examples: int) -> Message:
    """Return a reply as Flower's strategies expect it."""
    metrics = MetricRecord({"num-examples": examples})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def server_app(spec: Spec, rounds: Rounds) -> ServerApp:
    """Return a ServerApp that asks a cohort each round and averages what it answers."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < spec.clients:
            time.sleep(0.1)
        rng = np.random.default_rng(0)
        weights = [rng.standard_normal(shape, dtype=np.float32) for shape in SHAPES]
        asked = ask_sums if spec.client == "sums" else ask_replies
        asked(grid, nodes[: min(WARM_UP_CLIENTS, spec.cohort)], weights)
        rounds.start()
        for _ in range(spec.total_rounds):
            asked(grid, nodes[: spec.cohort], weights)
            rounds.end()

    return app


def ask_replies(grid: Grid, nodes: list[int], weights: list[np.ndarray]) -> None:
    """Ask for a reply a client; Flower's FedAvg averages."""
    content = RecordDict({"arrays": ArrayRecord(weights)})
    replies = list(grid.send_and_receive([Message(content, node, "train") for node in nodes]))
    assert sum(reply.has_content() for reply in replies) == len(nodes)
    FedAvg().aggregate_train(1, replies)


def ask_sums(grid: Any, nodes: list[int], weights: list[np.ndarray]) -> None:
    """Ask for a sum a block; add them."""
    from fedsim.engine import Block

    clients = [node - 1 for node in nodes]
    starts = range(0, len(clients), BLOCK)
    blocks = [Block(clients=tuple(clients[start : start + BLOCK])) for start in starts]
    replies = grid.send_cohort(RecordDict({"arrays": ArrayRecord(weights)}), blocks)
    sums = [np.zeros(shape) for shape in SHAPES]
    answered = 0
    for (reply,) in replies:
        answered += reply.content["metrics"]["num-examples"]
        for total, part in zip(sums, reply.content["arrays"].to_numpy_ndarrays(), strict=True):
            total += part
    assert answered == len(nodes), answered
    mean = [(total / answered).astype(np.float32) for total in sums]
    assert all(np.allclose(a, b) for a, b in zip(mean, weights, strict=True))
