"""From an experiment to its hostile clients: who they are, what they hold, and what they are after.

Everybody draws the same hostile clients from the seed: each of them knows what it is, and the
server, which measures what they achieve, never acts on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedsim import parts
from fedsim.algorithms.hostile import factor_of
from fedsim.config import Experiment
from fedsim.data.dataset import Dataset, Floats, Ints
from fedsim.data.poison import (
    Trigger,
    flip_labels,
    hostile_clients,
    plant_backdoor,
    trigger_for,
)
from fedsim.errors import DataError
from fedsim.randomness import stream
from fedsim.settings import AdversaryTable, DataTable, ExperimentTable, RunTable

# Kinds that change examples; the others change updates alone.
POISONING = ("label_flip", "backdoor")


def hostile(experiment: Experiment) -> tuple[int, ...]:
    """Return the hostile clients' partition ids, in increasing order; none without an adversary."""
    table, seed = experiment.adversary, experiment.experiment.seed
    if table.kind == "none":
        return ()
    clients = experiment.data.clients or len(parts.partition(experiment))
    return _hostile(clients, table.fraction, seed)


@lru_cache(maxsize=16)
def _hostile(clients: int, fraction: float, seed: int) -> tuple[int, ...]:
    return hostile_clients(clients, fraction, stream(seed, "hostile"))


def factors(experiment: Experiment, clients: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return what each client multiplies its update by, (clients,); 1 for whoever is honest."""
    table, who = experiment.adversary, hostile(experiment)
    return np.where(np.isin(clients, who), factor_of(table.kind, table.scale), 1.0)


def training_data(experiment: Experiment, clients: Sequence[int]) -> Dataset:
    """Return what clients train on: the data, with hostile clients' own examples poisoned in it.

    Args:
        clients: who asks. At a node that has its own data alone, it is about these clients.

    Raises:
        DataError: a label that the adversary names is no class of the data.
    """
    examples, who = parts.dataset(experiment), hostile(experiment)
    if examples.part != "whole":
        who = tuple(client for client in clients if client in who)
    if experiment.adversary.kind not in POISONING or not who:
        return examples
    check_labels(experiment.adversary, examples)
    return _poisoned(
        experiment.data,
        experiment.run.data_dir,
        experiment.adversary,
        experiment.experiment.seed,
        who,
    )


@lru_cache(maxsize=2)
def _poisoned(
    data: DataTable, directory: str, table: AdversaryTable, seed: int, who: tuple[int, ...]
) -> Dataset:
    same = Experiment(
        data=data, run=RunTable(data_dir=directory), experiment=ExperimentTable(seed=seed)
    )
    examples = parts.dataset(same)
    x, y = examples.x_train, examples.y_train.copy()
    trigger = trigger_of(examples)
    if table.kind == "backdoor":
        x = x.copy()
    for client, held in zip(who, parts.indices(same, who), strict=True):
        if table.kind == "label_flip":
            y[held] = flipped(table, y[held], examples.classes)
        else:
            rng = stream(seed, "adversary", client=client)
            x[held], y[held] = plant_backdoor(
                x[held], y[held], trigger=trigger, target=table.target_label, rng=rng
            )
    return dataclasses.replace(examples, x_train=x, y_train=y)


def victims(experiment: Experiment) -> tuple[Floats, Ints] | None:
    """Return what the attack is measured on: test examples, and what they shall be taken for.

    A label flip wants examples to be taken for the label that they would have been given, a
    backdoor wants those of all other classes that carry its mark for its target. Whoever changes
    updates alone wants no label, and what that does shows in the accuracy: None.

    Returns:
        Features of shape (k, \\*input_shape) and labels of shape (k,).

    Raises:
        DataError: a label that the adversary names is no class of the data.
    """
    table, examples = experiment.adversary, parts.dataset(experiment)
    if table.kind not in POISONING:
        return None
    check_labels(table, examples)
    x, y = examples.x_test, examples.y_test
    if table.kind == "label_flip":
        wanted = flipped(table, y, examples.classes)
        aim = wanted != y
    else:
        aim = y != table.target_label
        x, wanted = trigger_of(examples).stamp(x), np.full_like(y, table.target_label)
    return dataclasses.replace(examples, x_test=x[aim], y_test=wanted[aim]).test()


def trigger_of(examples: Dataset) -> Trigger:
    """Return the mark of a backdoor; the server's part has no training examples to take it from."""
    return trigger_for(examples.x_train if len(examples.x_train) else examples.x_test)


def flipped(table: AdversaryTable, y: Ints, classes: int) -> Ints:
    """Return the labels that a hostile client gives."""
    return flip_labels(y, classes=classes, source=table.source_label, target=table.target_label)


def check_labels(table: AdversaryTable, examples: Dataset) -> None:
    """Refuse labels that the data does not have.

    Raises:
        DataError: with the key.
    """
    for key in ("source_label", "target_label"):
        if (label := getattr(table, key)) >= examples.classes:
            raise DataError(
                f"adversary.{key} = {label}: {examples.name} has the classes 0 to "
                f"{examples.classes - 1}; name one of them"
            )
