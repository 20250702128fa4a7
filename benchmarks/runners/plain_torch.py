"""A plain loop in torch, one client after another: what is written without a framework.

Module, autograd, ``torch.optim.SGD``, batches by slicing indices, the mean in place. No rows, no
messages, no evaluation.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.data import load
from benchmarks.runners.common import Rounds, main
from benchmarks.runners.nets import build
from benchmarks.spec import Spec

WARM_UP_CLIENTS = 3


def one_epoch(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, spec: Spec) -> None:
    """Train on one client's data."""
    optimizer = torch.optim.SGD(net.parameters(), lr=spec.learning_rate)
    for batch in torch.randperm(len(y)).split(spec.batch_size):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()


def measure(spec: Spec) -> dict[str, Any]:
    """Run rounds of federated averaging."""
    torch.set_num_threads(1)
    x, y = (torch.from_numpy(part) for part in load(spec))
    net = build(spec.model)
    model = {name: value.clone() for name, value in net.state_dict().items()}

    def run_round(clients: list[int]) -> None:
        mean = {name: torch.zeros_like(value) for name, value in model.items()}
        for client in clients:
            net.load_state_dict(model)
            one_epoch(net, x[client], y[client], spec)
            for name, value in net.state_dict().items():
                mean[name].add_(value, alpha=1 / len(clients))
        model.update(mean)

    run_round(list(range(min(WARM_UP_CLIENTS, spec.clients))))
    rounds = Rounds(spec)
    rounds.start()
    for _ in range(spec.total_rounds):
        run_round(torch.randperm(spec.clients)[: spec.cohort].tolist())
        rounds.end()
    return rounds.result()


if __name__ == "__main__":
    main(measure)
