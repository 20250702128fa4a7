"""What an experiment costs a client, counted: composed of its network, its training, its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from fedsim import parts
from fedsim.config import Experiment
from fedsim.measure.compute import (
    LayerCost,
    ModelCost,
    examples_processed,
    model_cost,
    optimizer_flops,
    times,
)
from fedsim.measure.devices import load_profile, modelled, profile_names
from fedsim.measure.memory import LOSS, SavedBytes, largest_batch, saved_model
from fedsim.settings import DataTable, ModelTable, RunTable, TrainTable

KINDS = {  # of an activation's operations, by the ledger's column
    "compare_ops": "compare",
    "multiply_add_ops": "multiply_add",
    "division_ops": "divide",
    "transcendental_ops": "transcendental",
}
WORK = ("train_flops", "bias_flops", "optimizer_flops", *KINDS)
MEMORY = ("model_bytes", "gradient_bytes", "optimizer_bytes", "saved_bytes")


@dataclass(frozen=True, kw_only=True)
class ExperimentCost:
    """What local training costs in arithmetic and memory, whatever the client.

    Attributes:
        network: arithmetic of one example, by layer.
        saved: what autograd saves in a step, by layer.
        parameters: numbers that are trained.
        optimizer_step_flops: of one optimiser step.
        model_bytes: parameters and buffers.
        gradient_bytes: one gradient.
        optimizer_bytes: what stays from step to step: the velocity (momentum), the start
            (proximal term), the correction (SCAFFOLD). What a step needs for a moment is left out.
    """

    network: ModelCost
    saved: SavedBytes
    parameters: int
    optimizer_step_flops: int
    model_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def fixed_bytes(self) -> int:
        """Memory of training that does not depend on the batch."""
        return self.model_bytes + self.gradient_bytes + self.optimizer_bytes

    @cached_property
    def per_example(self) -> dict[str, int]:
        """What every example that is processed costs, by the ledger's column."""
        return {
            "examples_processed": 1,
            "train_flops": self.network.train_flops,
            "bias_flops": self.network.bias_flops,
            "activation_elements": self.network.activation_elements,
            **{column: getattr(self.network.ops, kind) for column, kind in KINDS.items()},
        }

    def largest_batch(self, cap_bytes: int, examples: int | None = None) -> int:
        """Return how many examples a step may take within a cap; 0 if not even one fits."""
        return largest_batch(
            cap_bytes, fixed_bytes=self.fixed_bytes, saved=self.saved, examples=examples
        )


def experiment_cost(e: Experiment) -> ExperimentCost:
    """Return the costs of an experiment's training, counted once per process.

    Raises:
        DataError: the dataset, whose shape decides the network, cannot be loaded.
    """
    scaffold = e.server.strategy == "scaffold"
    return _experiment_cost(e.data, e.run.data_dir, e.model, e.train, scaffold)


@lru_cache(maxsize=8)
def _experiment_cost(
    data: DataTable, directory: str, model: ModelTable, train: TrainTable, correction: bool
) -> ExperimentCost:
    same = Experiment(data=data, model=model, run=RunTable(data_dir=directory))
    shape, network = parts.dataset(same).input_shape, parts.initial_model(same)
    parameters = list(network.parameters())
    trained = sum(p.numel() for p in parameters)
    trained_bytes = sum(p.nbytes for p in parameters)
    kept = (train.momentum > 0, train.proximal_mu > 0, correction)
    return ExperimentCost(
        network=model_cost(network, shape, activation=model.activation),
        saved=saved_model(network, shape),
        parameters=trained,
        optimizer_step_flops=optimizer_flops(
            trained,
            momentum=train.momentum > 0,
            weight_decay=train.weight_decay > 0,
            clip=train.clip_norm > 0,
            proximal=train.proximal_mu > 0,
            correction=correction,
        ),
        model_bytes=trained_bytes + sum(b.nbytes for b in network.buffers()),
        gradient_bytes=trained_bytes,
        optimizer_bytes=sum(kept) * trained_bytes,
    )


def counted(e: Experiment, *, examples: int, steps: int) -> dict[str, int]:
    """Return the counted columns of a client's row in the ledger.

    ``saved_bytes`` are of its largest step.

    Args:
        examples: that the client holds, at least 1.
        steps: optimiser steps that it took.
    """
    cost, batch_size = experiment_cost(e), e.train.batch_size
    processed = examples_processed(examples, steps=steps, batch_size=batch_size)
    return {
        **{column: each * processed for column, each in cost.per_example.items()},
        "optimizer_flops": steps * cost.optimizer_step_flops,
        "saved_bytes": cost.saved.of(min(batch_size or examples, examples)),
        "model_bytes": cost.model_bytes,
        "gradient_bytes": cost.gradient_bytes,
        "optimizer_bytes": cost.optimizer_bytes,
    }


def counted_columns(e: Experiment, examples: np.ndarray, steps: np.ndarray) -> dict[str, Any]:
    """Return the counted columns of several clients' rows, each (clients,) int64.

    Args:
        examples: (clients,), that each holds.
        steps: (clients,), optimiser steps that each took.
    """
    pairs, pair_of = np.unique(np.stack([examples, steps]), axis=1, return_inverse=True)
    kinds = [counted(e, examples=int(n), steps=int(s)) for n, s in pairs.T]
    return {
        name: np.array([kind[name] for kind in kinds], np.int64)[pair_of.reshape(-1)]
        for name in kinds[0]
    }


def itemised(e: Experiment, *, cap_bytes: int | None = None) -> dict[str, Any]:
    """Return an experiment's costs for reading: of a step, of a client in a round, of memory.

    The client is the mean one: it holds as many examples as there are per client, to the nearest
    whole number. All figures are counted, but for those under ``modelled``.

    Args:
        cap_bytes: adds the largest batch that fits in so much memory; None to leave it out.

    Raises:
        DataError: the data cannot be loaded, or cannot be dealt to the clients as asked.
    """
    clients = len(parts.partition(e))
    cost, held = experiment_cost(e), len(parts.dataset(e).y_train)
    examples = max(1, round(held / clients))
    batch = min(e.train.batch_size or examples, examples)
    steps = e.train.steps or e.train.epochs * -(-examples // batch)
    figures = counted(e, examples=examples, steps=steps)
    memory = {column: figures.pop(column) for column in MEMORY}
    found = {
        "kind": "counted",
        "dataset": e.data.dataset,
        "model": e.model.name,
        "activation": e.model.activation,
        "parameters": cost.parameters,
        "step": {
            "examples": batch,
            "optimizer_flops": cost.optimizer_step_flops,
            "layers": step_layers(cost, batch),
        },
        "client_round": {
            "training_examples": held,
            "clients": clients,
            "examples": examples,
            "steps": steps,
            **figures,
        },
        "memory": {**memory, "total_bytes": sum(memory.values())},
        "modelled": modelled_visits(e, figures),
    }
    if cap_bytes is not None:
        largest = cost.largest_batch(cap_bytes, None)
        found["largest_batch"] = {"cap_bytes": cap_bytes, "examples": largest}
    return found


def step_layers(cost: ExperimentCost, batch: int) -> list[dict[str, Any]]:
    """Return what each layer costs in a step of so many examples; the loss is the last."""
    saved = cost.saved.by_layer(batch)
    return [
        {
            "layer": layer.layer,
            "forward_flops": batch * layer.forward_flops,
            "backward_flops": batch * layer.backward_flops,
            "bias_flops": batch * layer.bias_flops,
            "activation_elements": batch * layer.activation_elements,
            "forward_ops": asdict(times(layer.forward_ops, batch)),
            "backward_ops": asdict(times(layer.backward_ops, batch)),
            "saved_bytes": saved.get(layer.layer, 0),
        }
        for layer in (*cost.network.layers, LayerCost(layer=LOSS))
    ]


def modelled_visits(e: Experiment, work: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return what a client's visit takes on every device there is a profile of: modelled.

    The messages are dense, which is what ``update.codec`` would make smaller: the model down and
    up, and with SCAFFOLD a control variate of its size each way.

    Args:
        work: a client's counted columns.
    """
    copies = 2 if e.server.strategy == "scaffold" else 1
    message = copies * experiment_cost(e).model_bytes
    own = {e.measure.device} - {""}
    visits = []
    for name in sorted({*profile_names(), *own}):
        visit = modelled(
            load_profile(name),
            **{column: work[column] for column in WORK},
            uplink_bytes=message,
            downlink_bytes=message,
        )
        totals = {"seconds": visit.seconds, "joules": visit.joules, "message_bytes": message}
        visits.append({"device": name, **totals, **asdict(visit)})
    return visits
