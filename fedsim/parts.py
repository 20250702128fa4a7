"""From an Experiment to its parts, built alike at the server and at every client.

Each part is kept for the experiments that follow in the same process, so a worker loads a
dataset once, however many clients and runs it serves.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.nn import Module

from fedsim import data, models
from fedsim.config import Experiment
from fedsim.data import Dataset, Form, Partition
from fedsim.errors import DataError
from fedsim.privacy.noise import KEY_BYTES, keystream_bytes
from fedsim.randomness import stream
from fedsim.settings import DataTable, ModelTable, RunTable, TrainTable
from fedsim.training import (
    CohortTrainer,
    Plan,
    PrivateTrainer,
    Recipe,
    StepNoise,
    make_trainer,
    plan_for,
)

# Keys of the table ``data`` that decide which examples there are; the others deal them.
EXAMPLES = (
    *("dataset", "path", "test_path", "label", "client"),
    *("test_fraction", "validation_fraction", "offset", "missing", "standardize"),
)


def dataset(experiment: Experiment) -> Dataset:
    """Load the experiment's data; the same object for every caller in this process."""
    return _dataset(experiment.data, experiment.run.data_dir)


def _dataset(table: DataTable, directory: str) -> Dataset:
    # Only what decides the examples: runs that deal them otherwise share them all the same.
    name, *others = EXAMPLES
    options = {option: getattr(table, option) for option in others}
    return _load(getattr(table, name), directory=directory, **options)


_load = lru_cache(maxsize=2)(data.load_dataset)


def partition(experiment: Experiment) -> Partition:
    """Deal the training examples to the clients, by labels and the run's stream alone."""
    return _partition(experiment.data, experiment.run.data_dir, experiment.experiment.seed)


@lru_cache(maxsize=2)
def _partition(table: DataTable, directory: str, seed: int) -> Partition:
    examples = _dataset(table, directory)
    if examples.part != "whole":
        raise DataError(
            f"data.path = {table.path!r}: holds the {examples.part}'s examples alone; a simulation "
            "needs the folder of the whole split"
        )
    return data.make_partition(
        table.partition,
        examples.y_train,
        clients=table.clients,
        rng=stream(seed, "partition"),
        alpha=table.alpha,
        shards_per_client=table.shards_per_client,
        labels_per_client=table.labels_per_client,
        size_sigma=table.size_sigma,
        min_examples=table.min_examples,
        natural=examples.clients,
    )


def clients(experiment: Experiment) -> int:
    """Return how many clients the federation has.

    Raises:
        DataError: the data at the server has no test part, or nothing says how many there are.
    """
    if dataset(experiment).part == "client":
        raise DataError(
            f"data.path = {experiment.data.path!r}: holds a client's examples; the server needs "
            "the folder with the test part"
        )
    return experiment.data.clients or len(partition(experiment))


def indices(experiment: Experiment, clients: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Return which training examples are each client's: all, where no other's are at hand."""
    examples = dataset(experiment)
    if examples.part == "client":
        return [np.arange(len(examples.y_train)) for _ in clients]
    dealt = partition(experiment)
    return [dealt.indices(client) for client in clients]


def form(experiment: Experiment) -> Form:
    """Return the form of the examples, which server and clients have to share."""
    return Form.of(dataset(experiment))


def initial_model(experiment: Experiment) -> Module:
    """Build the network with its initial draw; each call returns a model of its own."""
    examples = dataset(experiment)
    table, shape = experiment.model, examples.input_shape
    return _build(table, shape, examples.classes, experiment.experiment.seed)


def scratch_model(experiment: Experiment) -> Module:
    """Return this process's one network of that kind, for parameters that come from elsewhere."""
    examples = dataset(experiment)
    return _scratch(experiment.model, examples.input_shape, examples.classes)


@lru_cache(maxsize=2)
def _scratch(table: ModelTable, shape: tuple[int, ...], classes: int) -> Module:
    return _build(table, shape, classes, seed=0)


def settled(train: TrainTable) -> TrainTable:
    """Return how clients are trained where nobody decided, as in Flower's own runtime: by torch.

    One after another, since torch's bits may depend on a client's place among others in step.
    """
    compiler = "torch" if train.compiler == "auto" else train.compiler
    vectorize = "never" if train.vectorize == "auto" else train.vectorize
    return dataclasses.replace(train, compiler=compiler, vectorize=vectorize)


def plan(experiment: Experiment) -> Plan:
    """Return how a cohort is cut into blocks and trained, which the bits of a result depend on."""
    train, device = settled(experiment.train), experiment.engine.device
    return plan_for(scratch_model(experiment), vectorize=train.vectorize, device=device)


def trainer(experiment: Experiment, examples: Dataset | None = None) -> CohortTrainer:
    """Return this process's one trainer of that kind, with the dataset at hand.

    Args:
        examples: in place of the experiment's: the same object for the same trainer.
    """
    train, data = settled(experiment.train), experiment.data
    # Only what decides training: arms that deal the examples otherwise share a trainer.
    table = DataTable(**{name: getattr(data, name) for name in EXAMPLES})
    recipe = Recipe(**{f.name: getattr(train, f.name) for f in dataclasses.fields(Recipe)})
    return _trainer(
        table,
        experiment.run.data_dir,
        examples or dataset(experiment),
        experiment.model,
        recipe,
        plan(experiment),
        compiler=train.compiler,
        device=experiment.engine.device,
        precision=train.precision,
    )


@lru_cache(maxsize=2)
def _trainer(
    data: DataTable,
    directory: str,
    examples: Dataset,
    model: ModelTable,
    recipe: Recipe,
    plan: Plan,
    **how: str,
) -> CohortTrainer:
    same = Experiment(data=data, model=model, run=RunTable(data_dir=directory))
    return make_trainer(initial_model(same), examples, recipe, plan=plan, **how)


def private_trainer(
    experiment: Experiment, examples: Dataset, noise_multiplier: float
) -> CohortTrainer:
    """Return this process's one trainer by DP-SGD; arguments as for :func:`trainer`.

    Args:
        noise_multiplier: z, which the server has solved for, or was given.
    """
    train, privacy = settled(experiment.train), experiment.privacy
    return _private_trainer(
        examples,
        experiment.model,
        Recipe(**{f.name: getattr(train, f.name) for f in dataclasses.fields(Recipe)}),
        clipping_norm=privacy.clipping_norm,
        noise_multiplier=noise_multiplier,
        source_of=seeded_noise if privacy.reproducible_noise else secret_noise,
        device=experiment.engine.device,
        precision=train.precision,
    )


@lru_cache(maxsize=2)
def _private_trainer(
    examples: Dataset, model: ModelTable, recipe: Recipe, **how: Any
) -> CohortTrainer:
    network = _build(model, examples.input_shape, examples.classes, seed=0)
    return PrivateTrainer(network, examples, recipe, **how)


def secret_noise(_: np.random.Generator) -> StepNoise:
    """Return a client's source of batches and noise in one visit, which nobody can know."""
    return StepNoise(keystream_bytes(secrets.token_bytes(KEY_BYTES)))


def seeded_noise(rng: np.random.Generator) -> StepNoise:
    """Return one that the run's seed fixes, through the client's own stream."""
    return StepNoise(keystream_bytes(rng.bytes(KEY_BYTES)))


def _build(table: ModelTable, shape: tuple[int, ...], classes: int, seed: int) -> Module:
    return models.build_model(
        table.name,
        input_shape=shape,
        classes=classes,
        width=table.width,
        depth=table.depth,
        activation=table.activation,
        init_gain=table.init_gain,
        seed=seed,
    )
