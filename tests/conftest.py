from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from fedsim.config import Experiment
    from fedsim.ledger.read import Run

# The smallest federation that still chooses clients: two rounds of two of five.
TINY = (
    *("-s", "experiment.rounds=2", "-s", "data.clients=5", "-s", "server.clients_per_round=2"),
    *("-s", "engine.name=inline", "-s", "model.width=8"),
)

TOLD = "told at the end"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded to be told, as times of stages."""
    for report in terminalreporter.getreports(""):
        if report.when == "teardown":
            for name, line in report.user_properties:
                if name == TOLD:
                    terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what XLA compiles out of the user's cache, and for all processes of this session."""
    own = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each of its processes a folder in the session's.
    cache = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE_DIR", str(cache))
        yield


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on standard output."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """The options of ``fedsim run`` that make a run of milliseconds."""
    return TINY


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Answer]]:
    """Run the command in this process, in an empty directory; imports are paid for once."""
    from fedsim.cli.main import main

    for name in ("FEDSIM_RUNS_DIR", "FEDSIM_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    loggers = [logging.getLogger(name) for name in ("flwr", "flwr.fedsim")]
    before = [(logger.level, logger.propagate) for logger in loggers]

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fedsim", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        return Answer(int(left.value.code or 0), *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)
    for logger, (level, propagate) in zip(loggers, before, strict=True):
        logger.level, logger.propagate = level, propagate


# Eight clients with some 180 digits each, and a network of 610 parameters.
SMALL: dict[str, dict[str, Any]] = {
    "experiment": {"name": "small", "rounds": 3},
    "data": {"clients": 8},
    "model": {"width": 8, "depth": 1},
    "train": {"batch_size": 32},
    "server": {"clients_per_round": 4},
    "engine": {"name": "inline"},
}


@pytest.fixture
def make_experiment(tmp_path: Path) -> Callable[..., Experiment]:
    """Return a function from tables, such as ``server={"strategy": "krum"}``, to an experiment."""
    from fedsim.config import flatten, from_flat
    from fedsim.vocabulary import vocabulary

    def make(**tables: Mapping[str, Any]) -> Experiment:
        base = {**SMALL, "run": {"out": str(tmp_path / "run")}}
        merged = {name: {**base.get(name, {}), **tables.get(name, {})} for name in base | tables}
        return from_flat(flatten(merged), vocabulary=vocabulary())

    return make


@pytest.fixture
def client_app() -> ClientApp:
    """Return fedsim's ClientApp, loaded as an engine loads it."""
    from fedsim.engine import AppSource
    from fedsim.simulation import CLIENT_APP, app_directory

    return AppSource(CLIENT_APP, str(app_directory())).load()


@pytest.fixture
def run_inline(client_app: ClientApp) -> Callable[..., Run]:
    """Return a function that runs an experiment, with fedsim's ClientApp or another, to its end."""
    from fedsim.engine import InlineExecutor
    from fedsim.ledger.read import load
    from fedsim.simulation import simulate

    def run(experiment: Experiment, app: ClientApp | None = None) -> Run:
        simulate(experiment, InlineExecutor(app or client_app))
        return load(experiment.run.out)

    return run
