"""What happens at clients in a round: they train the global model, and draw up their bill.

It is the same for one client, which answers for itself, and for a block of them, trained in one
call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from clients.figures import compression_figures, health_figures, layer_columns
from clients.protecting import agreed_noise
from fedsim import adversary, parts
from fedsim.algorithms.hostile import multiplied
from fedsim.config import Experiment
from fedsim.costs import counted_columns
from fedsim.data import Dataset
from fedsim.flower import ARRAYS, CLIP_SCALE, Arrays, Instruction, describe_not_finite
from fedsim.measure.bill import Bill
from fedsim.measure.health import Health, look, probe_indices
from fedsim.privacy.clipping import UNIT, clip_weights
from fedsim.randomness import stream, streams
from fedsim.training import CohortResult, CohortTrainer, Digest, digest, load_arrays, mean_loss

RESULT = ("examples", "steps", "loss_first_step", "loss_last_step")
Columns = dict[str, np.ndarray]
Layers = Mapping[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What local training came to, in the order of the clients.

    Attributes:
        examples: what they train on, by their indices.
        result: the models that they send, their steps and losses.
        digest: of their updates.
        health: of each network before and after, at level ``full``.
        initial_losses: (clients,), of the global model on their data, where asked for.
    """

    experiment: Experiment
    asked: Instruction
    clients: Sequence[int]
    examples: Dataset
    result: CohortResult
    digest: Digest
    health: Sequence[tuple[Health, Health]]
    initial_losses: np.ndarray | None

    def model(self, place: int) -> dict[str, np.ndarray]:
        """Return one client's model."""
        return {name: stack[place] for name, stack in self.result.arrays.items()}

    def problems(self) -> dict[int, tuple[str, str]]:
        """Return, by place, why a client's model must not be used."""
        return {
            int(place): ("rejected", not_finite(self.model(int(place))))
            for place in np.flatnonzero(~self.digest.finite)
        }


def train_clients(
    experiment: Experiment,
    asked: Instruction,
    clients: Sequence[int],
    bill: Bill,
    *,
    corrections: Sequence[Arrays] | None = None,
) -> Visit:
    """Let clients train the global model, each on its own examples.

    Args:
        experiment: complete and checked.
        asked: with the model that they start from.
        clients: partition ids; each holds at least one example.
        bill: takes the clocks.
        corrections: for each client, what is added to its gradients (SCAFFOLD).

    Raises:
        ValueError: a client holds no examples.
    """
    seed, light = experiment.experiment.seed, asked.level != "off"
    with bill.clock("data"):
        examples = adversary.training_data(experiment, clients)
        trainer = trainer_for(experiment, asked, examples)
        held = parts.indices(experiment, clients)
        rngs = streams(seed, "batches", round=asked.round, clients=clients)
    with bill.clock("evaluation"):
        initial = initial_losses(experiment, asked, examples, held)
        before = examine(experiment, asked.level, clients, examples, held, lambda _: asked.arrays)
    prepare = partial(trainer.prepare, asked.arrays, held, corrected=corrections is not None)
    prepare()
    with bill.training(
        experiment,
        device=experiment.engine.device,
        conditions=light,
        cohort=len(clients),
        all_threads=experiment.train.compiler == "xla",
        warm_up=prepare,
    ):
        result = trainer.train(
            asked.arrays,
            held,
            learning_rate=asked.learning_rate,
            rngs=rngs,
            corrections=corrections,
        )
    result = as_sent(experiment, asked, clients, result)
    with bill.clock("measuring"):
        norm = asked.clipping_norm
        cut = None if norm is None else partial(clip_weights, clipping_norm=norm)
        came_to = digest(asked.arrays, result, weigh=cut)
    visit = partial(
        Visit,
        experiment=experiment,
        asked=asked,
        clients=clients,
        examples=examples,
        result=result,
        digest=came_to,
    )
    with bill.clock("evaluation"):
        trained = visit(health=(), initial_losses=None).model
        after = examine(experiment, asked.level, clients, examples, held, trained)
    return visit(health=list(zip(before, after, strict=True)), initial_losses=initial)


def as_sent(
    experiment: Experiment, asked: Instruction, clients: Sequence[int], result: CohortResult
) -> CohortResult:
    """Return what training came to with the updates that hostile clients send in place of theirs.

    This is where an attack on the model happens: whatever bounds, sums or selects comes after it.
    """
    factors = adversary.factors(experiment, clients)
    if (factors == 1).all():
        return result
    models = multiplied(asked.arrays, result.arrays, factors)
    return replace(result, arrays=models, digest_there=None)


def trainer_for(experiment: Experiment, asked: Instruction, examples: Dataset) -> CohortTrainer:
    """Return what trains these clients, by DP-SGD where examples are protected.

    Raises:
        ValueError: they are, and the server names no noise, or less than was agreed.
    """
    if experiment.privacy.level != "example":
        return parts.trainer(experiment, examples)
    return parts.private_trainer(experiment, examples, agreed_noise(experiment, asked))


def initial_losses(
    experiment: Experiment, asked: Instruction, examples: Dataset, held: Sequence[np.ndarray]
) -> np.ndarray | None:
    """Return the global model's loss on all of each client's examples, where that is asked for."""
    if not asked.initial_loss:
        return None
    model = on_device(experiment, asked.arrays)
    device = experiment.engine.device
    return np.array([mean_loss(model, *data_of(examples, indices, device)) for indices in held])


def examine(
    experiment: Experiment,
    level: str,
    clients: Sequence[int],
    examples: Dataset,
    held: Sequence[np.ndarray],
    model_of: Callable[[int], Arrays],
) -> list[Health]:
    """Return the health of each client's network on its own data, at level ``full``."""
    if level != "full":
        return []
    found = []
    for place, (client, indices) in enumerate(zip(clients, held, strict=True)):
        rng = stream(experiment.experiment.seed, "probe", client=client)
        x, y = data_of(examples, indices, experiment.engine.device)
        found.append(
            look(
                on_device(experiment, model_of(place)),
                x,
                y,
                probe=torch.from_numpy(probe_indices(len(y), rng)),
                activation=experiment.model.activation,
            )
        )
    return found


def data_of(
    examples: Dataset, indices: np.ndarray, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return examples and labels on the device that clients train on."""
    x, y = examples.train(indices)
    return torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)


def on_device(experiment: Experiment, arrays: Arrays) -> torch.nn.Module:
    """Return this process's one network with these parameters, where clients train."""
    model = parts.scratch_model(experiment).to(experiment.engine.device)
    return load_arrays(model, arrays)


def figures_of(visit: Visit, bill: Bill) -> tuple[Columns, dict[int, Layers]]:
    """Return the clients' figures as columns, as far as the level asks, and their layers' rows."""
    level, result = visit.asked.level, visit.result
    columns: Columns = {name: getattr(result, name) for name in RESULT}
    if visit.asked.clipping_norm is not None:
        columns[CLIP_SCALE] = visit.digest.weights / UNIT
    if visit.initial_losses is not None:
        columns["initial_loss"] = visit.initial_losses
    layers: dict[int, Layers] = {}
    with bill.clock("measuring"):
        if level != "off":
            columns["update_norm"] = visit.digest.update_norm
            columns["zero_fraction"] = visit.digest.zero_fraction
            columns |= counted_columns(visit.experiment, result.examples, result.steps)
        if level == "full":
            columns |= full_columns(visit)
            for place, (before, after) in enumerate(visit.health):
                norms = visit.digest.tensor_norms(place)
                layers[place] = layer_columns(before, after, norms)
    return withheld(visit.experiment, columns) | bill.shared_out(result.steps, level), layers


def withheld(experiment: Experiment, columns: Columns) -> Columns:
    """Return the figures without those that would tell what a client's noise covers.

    Losses are of examples as they are; at level ``local`` the update is too, until it is clipped
    and noised, while DP-SGD's is what the noise has made of it.
    """
    if experiment.privacy.level not in ("local", "example"):
        return columns
    hidden = {name: np.full_like(columns[name], np.nan) for name in RESULT if "loss" in name}
    raw = ("update_norm", "zero_fraction") if experiment.privacy.level == "local" else ()
    return {name: column for name, column in columns.items() if name not in raw} | hidden


def full_columns(visit: Visit) -> Columns:
    """Return what level ``full`` adds, but for what a codec makes of it."""
    rows = []
    held = parts.indices(visit.experiment, visit.clients)
    for place, ((before, after), indices) in enumerate(zip(visit.health, held, strict=True)):
        model, device = parts.scratch_model(visit.experiment), visit.experiment.engine.device
        x, _ = data_of(visit.examples, indices, device)
        compression = compression_figures(model, x, visit.asked.arrays, visit.model(place))
        rows.append(health_figures(before, after) | compression)
    return {name: column([row[name] for row in rows]) for name in rows[0]}


def column(values: Sequence[Any]) -> np.ndarray:
    """Return a column of amounts, or of counts if all are whole; NaN is blank."""
    if all(isinstance(value, int) for value in values):
        return np.array(values, np.int64)
    return np.array([math.nan if value is None else value for value in values], np.float64)


def not_finite(model: Arrays) -> str:
    """Say which array of a model is not finite, and what to do."""
    name = next(name for name, array in model.items() if not np.isfinite(array).all())
    return describe_not_finite(ARRAYS, name, model[name])
