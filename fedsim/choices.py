"""What ``auto`` becomes: decided once, before a run begins, and written down with it.

Choices in the table ``train`` change a result's last bits: they stand in the run's config, and a
resumed run keeps them. The engine changes nothing but time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from fedsim import parts
from fedsim.config import Experiment
from fedsim.costs import experiment_cost
from fedsim.errors import ConfigError
from fedsim.measure.cores import allowed_cores
from fedsim.runs import holds_run, stored_experiment
from fedsim.settings import DataTable, ModelTable, RunTable, TrainTable
from fedsim.training import missing_device, plan_for, translatable

Tell = Callable[[str], None]

# Rough figures of one core, to tell seconds from minutes: they decide where clients run, and no
# result depends on them. A step's own cost is that of dispatching its operations.
FLOPS_PER_SECOND = {"xla": 5e10, "torch": 2.5e10}
STEP_SECONDS = {"xla": 5e-6, "torch": 1.5e-4}
CLIENT_SECONDS = 4e-5
FULL_LEVEL_SECONDS = 1e-2  # a client's, for the passes of measure.level = "full"
RUN_SECONDS = 0.5  # for a run's start and end
ROUND_SECONDS = 8e-3  # for what a round takes beside its clients: the draw, the sum, the ledger
RAY_START_SECONDS = 4.0
RAY_ROUND_SECONDS = 3e-3  # for calls and replies, and what workers do twice

FULL_LANES = 0.5  # share of a program's lanes that a cohort has to fill for clients to go in step


def choose(experiment: Experiment, tell: Tell) -> Experiment:
    """Return the experiment with every ``auto`` of its training decided.

    Args:
        experiment: its data is at hand.
        tell: is told what was decided where people may have expected otherwise.

    Raises:
        ConfigError: ``train.compiler = "xla"`` was asked for and cannot be had.
    """
    return dataclasses.replace(experiment, train=choose_training(experiment, tell))


def choose_training(experiment: Experiment, tell: Tell) -> TrainTable:
    """Decide how clients are trained, or repeat what was decided when the run began."""
    train, begun = experiment.train, train_table_of_run(experiment)
    compiler, vectorize = train.compiler, train.vectorize
    if begun is not None:
        begun = parts.settled(begun)
        compiler = begun.compiler if compiler == "auto" else compiler
        vectorize = begun.vectorize if vectorize == "auto" else vectorize
    if compiler != "torch" and (reason := why_not_xla(experiment)):
        if compiler == "xla":
            raise ConfigError([f"train.compiler = 'xla': {reason}; or use 'torch'"])
        tell(f"clients train with torch, not with XLA: {reason}")
        compiler = "torch"
    compiler = "xla" if compiler == "auto" else compiler
    if vectorize == "auto":
        vectorize = "always" if pays_together(experiment, compiler) else "never"
    return dataclasses.replace(train, compiler=compiler, vectorize=vectorize)


def why_not_xla(experiment: Experiment) -> str | None:
    """Say why XLA cannot train the experiment's model here; None where it can."""
    if experiment.privacy.level == "example":
        return "privacy.level = 'example' clips the gradient of every example, which torch does"
    reason = _why_not_xla(experiment.data, experiment.run.data_dir, experiment.model)
    return reason or missing_device(experiment.engine.device)


@lru_cache(maxsize=64)
def _why_not_xla(data: DataTable, directory: str, model: ModelTable) -> str | None:
    same = Experiment(data=data, model=model, run=RunTable(data_dir=directory))
    return translatable(parts.initial_model(same), parts.dataset(same).input_shape)


def pays_together(experiment: Experiment, compiler: str) -> bool:
    """Say whether clients shall train in step: not where each is asked alone.

    Nor where a cohort leaves most lanes empty, which cost as much as full ones. Nor on a processor
    with torch, whose kernels may choose by alignment, so that a client's last bits depend on its
    lane.
    """
    update, device = experiment.update, experiment.engine.device
    coded = update.codes
    if coded or experiment.server.strategy == "scaffold" or experiment.privacy.level == "example":
        return False
    if compiler == "torch" and device == "cpu":
        return False
    plan = plan_for(parts.scratch_model(experiment), device=device)
    return plan.together and experiment.server.clients_per_round >= FULL_LANES * plan.lanes


def train_table_of_run(experiment: Experiment) -> TrainTable | None:
    """Return how clients are trained in the run that is gone on with; None for a new run."""
    directory = Path(experiment.run.out)
    resumes = experiment.run.resume and experiment.run.out and holds_run(directory)
    return stored_experiment(directory).train if resumes else None


def choose_engine(experiments: list[Experiment], tell: Tell, *, runs: int = 1) -> list[Experiment]:
    """Decide where clients run: in Ray's workers if they save more time than their start takes.

    Args:
        experiments: that one engine will serve; their compilers are decided.
        runs: how often each.
        tell: is told if Ray is not worth it.
    """
    asked = experiments[0].engine
    name = asked.name
    if name == "auto":
        workers = asked.workers or len(allowed_cores()) or os.cpu_count() or 1
        rounds = [(e.experiment.rounds, round_seconds(e)) for e in experiments]
        saved = runs * sum(n * (each * (1 - 1 / workers) - RAY_ROUND_SECONDS) for n, each in rounds)
        wanted = bool(asked.address) or asked.workers > 1
        name = "ray" if wanted or saved > RAY_START_SECONDS else "inline"
        seconds = runs * sum(n * each for n, each in rounds)
        if name == "inline":
            tell(
                f"clients train in this process (some {seconds:.2g} s of work: Ray would take "
                'longer than its workers save; engine.name = "ray" insists)'
            )
    engine = dataclasses.replace(asked, name=name)
    if name == "inline":
        engine = dataclasses.replace(engine, workers=0)
    return [dataclasses.replace(e, engine=engine) for e in experiments]


def run_seconds(e: Experiment) -> float:
    """Return about how long one core takes for a run, if nothing stops it before its last round."""
    flops = experiment_cost(e).network.forward_flops * len(parts.dataset(e).y_test)
    tested = flops / FLOPS_PER_SECOND["torch"] / e.server.evaluate_every
    return RUN_SECONDS + e.experiment.rounds * (round_seconds(e) + tested + ROUND_SECONDS)


def round_seconds(e: Experiment) -> float:
    """Return about how long one core trains the clients of a round."""
    held, clients = len(parts.dataset(e).y_train), len(parts.partition(e))
    compiler, train = e.train.compiler, e.train
    examples = held / clients
    batch = train.batch_size or examples
    steps = train.steps or train.epochs * max(1.0, examples / batch)
    flops = experiment_cost(e).network.train_flops * steps * min(batch, examples)
    each = CLIENT_SECONDS + steps * STEP_SECONDS[compiler] + flops / FLOPS_PER_SECOND[compiler]
    if e.measure.level == "full":
        each += FULL_LEVEL_SECONDS
    return e.server.clients_per_round * each
