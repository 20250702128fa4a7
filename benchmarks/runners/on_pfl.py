"""pfl-research: FederatedAveraging over a SimulatedBackend, in one process or under torchrun.

As in its own benchmarks: users sampled by MinimizeReuseUserSampler, a PyTorchModel with plain SGD,
the global model resident and no message anywhere. It keeps aggregated metrics alone, no row a
client; it does not shuffle a client's examples; nothing is evaluated (but in its very first
iteration, always: so an iteration with a few users comes before the timed ones).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy

from benchmarks.data import load
from benchmarks.runners.common import Rounds, main
from benchmarks.runners.nets import build
from benchmarks.spec import Spec

WARM_UP_CLIENTS = 4


def with_losses(net: torch.nn.Module) -> torch.nn.Module:
    """Give a network the two methods that pfl asks for."""

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(net(x), y)

    def metrics(x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        with torch.no_grad():
            return {"loss": Weighted(float(loss(x, y)) * len(y), len(y))}

    net.loss, net.metrics = loss, metrics
    return net


class Clock(TrainingProcessCallback):
    """Notes when iterations end, on the first of the processes."""

    def __init__(self, rounds: Rounds | None) -> None:
        self.rounds = rounds

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        if self.rounds:
            self.rounds.start()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        if self.rounds:
            self.rounds.end()
        return False, Metrics()


def measure(spec: Spec) -> dict[str, Any]:
    """Run so many central iterations."""
    torch.set_num_threads(1)
    np.random.seed(0)
    x, y = (torch.from_numpy(part) for part in load(spec))
    dataset = FederatedDataset(
        lambda user: PyTorchTensorDataset((x[user], y[user]), user_id=str(user)),
        MinimizeReuseUserSampler(list(range(spec.clients))),
    )
    net = with_losses(build(spec.model))
    model = PyTorchModel(
        model=net,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
    )
    first = os.environ.get("RANK", "0") == "0"
    algorithm, clock = FederatedAveraging(), Clock(Rounds(spec) if first else None)

    def run(cohort: int, until: int, callbacks: list[TrainingProcessCallback]) -> None:
        """Go on until so many iterations are done in all."""
        algorithm.run(
            NNAlgorithmParams(
                central_num_iterations=until,
                evaluation_frequency=10**9,
                train_cohort_size=cohort,
                val_cohort_size=0,
            ),
            SimulatedBackend(training_data=dataset, val_data=dataset),
            model,
            NNTrainHyperParams(
                local_num_epochs=1,
                local_learning_rate=spec.learning_rate,
                local_batch_size=spec.batch_size,
            ),
            NNEvalHyperParams(local_batch_size=None),
            callbacks=callbacks,
        )

    run(WARM_UP_CLIENTS, 1, [])
    run(spec.cohort, 1 + spec.total_rounds, [clock])
    return clock.rounds.result() if clock.rounds else {}


if __name__ == "__main__":
    main(measure)
