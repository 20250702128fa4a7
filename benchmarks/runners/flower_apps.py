"""An ordinary Flower app in torch, as its quickstart writes it; the data stays in the workers.

In a module of its own, so that the workers import it and keep what it holds.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.nn.functional import cross_entropy

from benchmarks.data import load
from benchmarks.runners.common import Rounds
from benchmarks.runners.nets import build
from benchmarks.spec import Spec

SPEC = "FEDSIM_BENCHMARK_SPEC"  # the environment variable that takes the spec to the workers
WARM_UP_CLIENTS = 10

client_app = ClientApp()


@lru_cache(maxsize=1)
def resident() -> tuple[Spec, torch.Tensor, torch.Tensor, torch.nn.Module]:
    """Return the spec, all clients' data and one network, loaded once in a process."""
    torch.set_num_threads(1)
    spec = Spec.decode(os.environ[SPEC])
    x, y = load(spec)
    return spec, torch.from_numpy(x), torch.from_numpy(y), build(spec.model)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this client's data for one epoch."""
    spec, all_x, all_y, net = resident()
    client = int(context.node_config["partition-id"])
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    loss, steps = sgd(net, all_x[client], all_y[client], spec)
    metrics = {"train_loss": loss, "num-examples": spec.examples, "steps": steps}
    content = RecordDict(
        {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=message)


def sgd(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, spec: Spec) -> tuple[float, int]:
    """Take one epoch of mini-batch SGD; return the last loss and the number of steps."""
    optimizer = torch.optim.SGD(net.parameters(), lr=spec.learning_rate)
    steps = 0
    for batch in torch.randperm(len(y)).split(spec.batch_size):
        optimizer.zero_grad()
        loss = cross_entropy(net(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        steps += 1
    return float(loss.detach()), steps


def server_app(spec: Spec, rounds: Rounds) -> ServerApp:
    """Return a ServerApp that lets Flower's FedAvg run the rounds and notes when each one ends.

    A round of a few clients comes first, in which the workers import and load what they need.
    """
    app = ServerApp()

    def strategy(cohort: int) -> FedAvg:
        return FedAvg(
            fraction_train=(cohort + 0.5) / spec.clients,
            fraction_evaluate=0.0,
            min_available_nodes=spec.clients,
        )

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < spec.clients:  # they register one by one
            time.sleep(0.1)
        arrays = ArrayRecord(build(spec.model).state_dict())
        strategy(min(WARM_UP_CLIENTS, spec.cohort)).start(grid, arrays, num_rounds=1)

        def note(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            rounds.end() if server_round else rounds.start()
            return MetricRecord()

        result = strategy(min(spec.cohort, spec.clients)).start(
            grid, arrays, num_rounds=spec.total_rounds, evaluate_fn=note
        )
        taken = result.train_metrics_clientapp[spec.total_rounds]["steps"]
        assert round(taken, 6) == spec.steps, taken  # Flower keeps the mean

    return app
