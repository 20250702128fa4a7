"""Flower apps written with Flower alone, run by either runtime: ``python stock.py flower|fedsim``.

The arithmetic is exact in float32 (dyadic numbers, equal weights), so the sum does not depend on
the order of the replies, which Flower's own simulation leaves to chance.
"""

import hashlib
import json
import sys
import time

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

NODES, ROUNDS = 8, 3
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Move the model by an amount that depends on the partition and on the client's own state."""
    seen = int(context.state.get("seen", MetricRecord({"rounds": 0}))["rounds"]) + 1
    context.state["seen"] = MetricRecord({"rounds": seen})
    step = (int(context.node_config["partition-id"]) + 1) * seen / 16
    arrays = [
        np.asarray(a + np.float32(step)) for a in message.content["arrays"].to_numpy_ndarrays()
    ]
    metrics = MetricRecord({"num-examples": 4, "seen": seen})
    return Message(
        RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message
    )


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Report the model's first value, scaled by the partition."""
    value = float(message.content["arrays"].to_numpy_ndarrays()[0].flat[0])
    share = 1 / int(context.node_config["num-partitions"])
    metrics = MetricRecord({"num-examples": 4, "value": value * share})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run Flower's FedAvg, start to end, on all nodes."""
    while len(list(grid.get_node_ids())) < NODES:
        time.sleep(0.1)
    strategy = FedAvg(min_train_nodes=NODES, min_evaluate_nodes=NODES, min_available_nodes=NODES)
    shapes = [(3, 4), (4,), ()]
    initial = ArrayRecord([np.full(shape, 0.5, dtype=np.float32) for shape in shapes])
    config = ConfigRecord({"learning-rate": 0.1})
    result = strategy.start(grid, initial, num_rounds=ROUNDS, train_config=config)
    digest = hashlib.sha256()
    for array in result.arrays.to_numpy_ndarrays():
        digest.update(array.tobytes())
    outcome = {
        "sha256": digest.hexdigest(),
        "train": {r: dict(m) for r, m in result.train_metrics_clientapp.items()},
        "evaluate": {r: dict(m) for r, m in result.evaluate_metrics_clientapp.items()},
    }
    print("RESULT", json.dumps(outcome, sort_keys=True), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "flower":
        from flwr.simulation import run_simulation

        resources = {"num_cpus": 1, "num_gpus": 0.0}
        backend = {"client_resources": resources, "init_args": {"num_cpus": 2}}
        run_simulation(server_app, client_app, NODES, backend_config=backend)
    else:
        import fedsim

        fedsim.run_simulation(server_app, client_app, NODES, workers=2)
