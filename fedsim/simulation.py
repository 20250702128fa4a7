"""fedsim's own apps on fedsim's engines: from a checked experiment to a finished run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import fedsim
from fedsim.config import Experiment
from fedsim.conflicts import remarks
from fedsim.errors import ConfigError, EngineError
from fedsim.runs import forget_torn, holds_run

if TYPE_CHECKING:
    from fedsim.engine import Executor, Federation
    from fedsim.engine.pool import RayExecutor

SERVER_APP, CLIENT_APP = "server.app:app", "clients.app:app"


def ignore(_: str) -> None:
    """Tell nobody."""


def app_directory() -> Path:
    """Return the directory of the Flower apps: inside the package, or in a source checkout."""
    package = Path(fedsim.__file__).parent
    for directory in (package / "flowerapp", package.parent):
        if (directory / "clients" / "app.py").is_file():
            return directory
    raise EngineError(f"the Flower apps are missing beside {package}; reinstall fedsim")


def prepare(experiment: Experiment, tell: Callable[[str], None] = ignore) -> Experiment:
    """Check what can only be checked with the data at hand; return the experiment, complete.

    Every ``auto`` in it is decided then, see :mod:`fedsim.choices`.

    Args:
        experiment: checked by itself.
        tell: is told what was decided where people may have expected otherwise.

    Raises:
        DataError: the data cannot be read, or cannot be dealt to the clients as asked.
        ConfigError: the model does not fit the data, or a device, its profile or a compiler is
            not there.
    """
    from fedsim import parts
    from fedsim.choices import choose

    clients = len(parts.partition(experiment))
    cohort = experiment.server.clients_per_round
    if cohort > clients:
        raise ConfigError(
            [
                f"server.clients_per_round = {cohort}: the data comes from {clients} clients; "
                f"set {clients} or less"
            ]
        )
    parts.initial_model(experiment)
    check_device(experiment.engine.device)
    check_profile(experiment.measure.device)
    table = dataclasses.replace(experiment.data, clients=clients)
    check_promise(dataclasses.replace(experiment, data=table))
    for remark in remarks(experiment):
        tell(remark)
    return choose(dataclasses.replace(experiment, data=table), tell)


def check_promise(experiment: Experiment) -> None:
    """Refuse a promise of privacy that those who are there cannot be given.

    Raises:
        ConfigError, PrivacyError: delta is too large for them, no noise gives what is asked for,
            or the budget is too small for a round.
    """
    if not experiment.privacy.on:
        return
    from fedsim.affordable import check_affordable, planned

    spending = planned(experiment)
    if spending is not None:
        check_affordable(experiment, spending)


def check_profile(device: str) -> None:
    """Refuse a device profile that is not there, or wrong."""
    from fedsim.measure.devices import load_profile

    try:
        if device:
            load_profile(device)
    except ConfigError as error:
        lines = [f"measure.device = {device!r}: {line}" for line in error.problems]
        raise ConfigError(lines) from error


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            ['engine.device = "cuda": torch sees no CUDA device here; use engine.device = "cpu"']
        )


def open_engine(experiment: Experiment) -> Executor:
    """Start what runs the clients; one engine may run many experiments, one after another."""
    from fedsim.engine import AppSource, open_executor

    engine = experiment.engine
    return open_executor(
        engine.name,
        AppSource(CLIENT_APP, str(app_directory())),
        workers=engine.workers,
        address=engine.address,
        gpu=engine.device == "cuda",
    )


class OneByOne:
    """A bench on which experiments run one after another, each with all workers.

    ``around`` gives the context in which one runs.
    """

    places = 1

    def __init__(
        self,
        executor: Executor,
        tell: Callable[[str], None] = ignore,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._executor, self._tell, self._around = executor, tell, around

    def begin(self, experiment: Experiment, tell: Callable[[str], None]) -> None:
        """Run an experiment to its end."""
        from fedsim.engine import problem_of

        complete, problem = prepare(experiment, self._tell), ""
        try:
            with self._around():
                simulate(complete, self._executor)
        except Exception as error:  # as in a worker: the others go on
            problem = problem_of(error)
        tell(problem)

    def wait(self) -> None:
        """Return: whatever was begun has ended."""


class SideBySide:
    """A bench on which every worker has an experiment of its own, server and clients.

    Workers must see the driver's files, so they have to be on its machine.
    """

    def __init__(self, executor: RayExecutor, tell: Callable[[str], None] = ignore) -> None:
        self._executor, self._tell = executor, tell
        self.places = executor.places

    def begin(self, experiment: Experiment, tell: Callable[[str], None]) -> None:
        """Queue an experiment; one whose worker dies goes on at another."""
        complete = prepare(experiment, self._tell)

        def make() -> Federation:
            forget_torn(Path(complete.run.out))
            going_on = holds_run(Path(complete.run.out))
            where = dataclasses.replace(complete.run, resume=going_on)
            return federation_of(dataclasses.replace(complete, run=where))

        self._executor.begin(make, tell)

    def wait(self) -> None:
        """Wait until something happened, a second at most."""
        self._executor.wait(1.0)


def federation_of(experiment: Experiment) -> Federation:
    """Return the Flower apps with an experiment, to be run in one worker."""
    from fedsim.engine import Federation

    return Federation(
        SERVER_APP,
        str(app_directory()),
        nodes=experiment.data.clients,
        seed=experiment.experiment.seed,
        run_config=experiment.flat(),
    )


def simulate(experiment: Experiment, executor: Executor) -> None:
    """Run an experiment to its end in ``run.out``, through the Flower apps.

    Flower's own log keeps to errors: what it would say is in the ledger and in the progress.
    """
    from fedsim.engine import run_server_app
    from fedsim.engine.apps import load_server_app

    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_server_app(
        load_server_app(SERVER_APP, str(app_directory())),
        executor,
        nodes=experiment.data.clients,
        run_config=experiment.flat(),
        seed=experiment.experiment.seed,
    )
