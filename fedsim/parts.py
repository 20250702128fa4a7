"""From an Experiment to its parts, built alike at the server and at every client.

Each part is kept for the experiments that follow in the same process, so a worker loads a
dataset once, however many clients and runs it serves.
"""

from __future__ import annotations

from functools import lru_cache

from torch.nn import Module

from fedsim import data, models
from fedsim.config import DataTable, Experiment, ModelTable, RunTable, TrainTable
from fedsim.data import Dataset, Partition
from fedsim.randomness import stream
from fedsim.training import CohortTrainer, Recipe, make_trainer, plan_for


def dataset(experiment: Experiment) -> Dataset:
    """Load the experiment's data; the same object for every caller in this process."""
    return _dataset(experiment.data, experiment.run.data_dir)


def _dataset(table: DataTable, directory: str) -> Dataset:
    # Only what decides the examples: runs that deal them otherwise share them all the same.
    return _load(
        table.dataset,
        directory=directory,
        path=table.path,
        test_path=table.test_path,
        label=table.label,
        client=table.client,
        test_fraction=table.test_fraction,
        missing=table.missing,
        standardize=table.standardize,
    )


_load = lru_cache(maxsize=2)(data.load_dataset)


def partition(experiment: Experiment) -> Partition:
    """Deal the training examples to the clients, by labels and the run's stream alone."""
    return _partition(experiment.data, experiment.run.data_dir, experiment.experiment.seed)


@lru_cache(maxsize=2)
def _partition(table: DataTable, directory: str, seed: int) -> Partition:
    examples = _dataset(table, directory)
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


def trainer(experiment: Experiment) -> CohortTrainer:
    """Return this process's one trainer of that kind, with the dataset at hand."""
    return _trainer(
        experiment.data,
        experiment.run.data_dir,
        experiment.model,
        experiment.train,
        experiment.engine.device,
    )


@lru_cache(maxsize=2)
def _trainer(
    data: DataTable, directory: str, model: ModelTable, train: TrainTable, device: str
) -> CohortTrainer:
    same = Experiment(data=data, model=model, train=train, run=RunTable(data_dir=directory))
    network = initial_model(same)
    return make_trainer(
        network,
        dataset(same),
        Recipe(
            epochs=train.epochs,
            steps=train.steps,
            batch_size=train.batch_size,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            clip_norm=train.clip_norm,
            proximal_mu=train.proximal_mu,
        ),
        # What nobody decided, as in Flower's own runtime, is torch.
        compiler="xla" if train.compiler == "xla" else "torch",
        plan=plan_for(network, vectorize=train.vectorize, device=device),
        device=device,
        precision=train.precision,
    )


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
