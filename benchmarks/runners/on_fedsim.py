"""fedsim itself: a configuration, its engine, its ServerApp and its ledger, as a user runs them.

Every client of every round gets its row in the ledger; the global model is evaluated on 100
examples after the last round alone.
"""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.runners.common import Rounds, main
from benchmarks.spec import WIDTHS, Spec

LOGGER = "flwr.fedsim"  # where the ServerApp reports each round


def settings(spec: Spec) -> dict[str, Any]:
    """Return the experiment as dotted keys."""
    return {
        "experiment.name": "benchmark",
        "experiment.rounds": spec.total_rounds,
        "data.dataset": "file",
        "data.path": spec.path,
        "data.label": "y",
        "data.client": "client",
        "data.partition": "natural",
        "data.clients": 0,
        "model.name": "cnn" if spec.model == "cnn" else "mlp",
        "model.width": WIDTHS.get(spec.model, 0),
        "train.batch_size": spec.batch_size,
        "train.learning_rate": spec.learning_rate,
        "server.clients_per_round": spec.cohort,
        "server.evaluate_every": spec.total_rounds,
        "engine.name": spec.engine,
        "engine.workers": spec.workers if spec.engine == "ray" else 0,
    }


def measure(spec: Spec) -> dict[str, Any]:
    """Run the experiment at each level in turn, on one engine; the speed is that of the first.

    What a process lacks is loaded once: the later runs have one round before the timed ones.
    """
    started = time.perf_counter()
    from fedsim import config
    from fedsim.choices import choose_engine
    from fedsim.simulation import open_engine, prepare
    from fedsim.vocabulary import vocabulary

    experiment = prepare(config.from_flat(settings(spec), vocabulary=vocabulary()))
    (experiment,) = choose_engine([experiment], quiet)
    executor = open_engine(experiment)
    start_seconds = time.perf_counter() - started
    try:
        with tempfile.TemporaryDirectory() as directory:
            results = [
                run(told, experiment, executor, level, Path(directory) / str(place))
                for place, level in enumerate(spec.levels)
                for told in (spec if place == 0 else again(spec),)
            ]
    finally:
        executor.close()
    seconds = [
        value
        for result in results
        if result["level"] == spec.levels[0]
        for value in result["round_seconds"]
    ]
    first = {**results[0], "round_seconds": seconds, "start_seconds": start_seconds}
    return {**first, "levels": results, "engine": experiment.engine.name}


def quiet(_: str) -> None:
    """Take no notice of what was chosen: the result tells."""


def again(spec: Spec) -> Spec:
    """Return the spec of a run in a process that has run before."""
    return dataclasses.replace(spec, warm_up=min(1, spec.warm_up))


def run(spec: Spec, experiment: Any, executor: Any, level: str, out: Path) -> dict[str, Any]:
    """Run it once; the ledger must hold every client of every round, with all its steps."""
    from fedsim.simulation import simulate

    told = dataclasses.replace(
        experiment,
        experiment=dataclasses.replace(experiment.experiment, rounds=spec.total_rounds),
        server=dataclasses.replace(experiment.server, evaluate_every=spec.total_rounds),
        measure=dataclasses.replace(experiment.measure, level=level),
        run=dataclasses.replace(experiment.run, out=str(out)),
    )
    rounds = Rounds(spec)
    with reported(rounds):
        rounds.start()
        simulate(told, executor)
    tail = time.perf_counter() - rounds.moments[-1]
    rows, steps = ledger_rows(out / "ledger.sqlite")
    assert rows == spec.total_rounds * spec.cohort, rows
    assert steps == rows * spec.steps, steps
    return {"level": level, **rounds.result(), "tail_seconds": tail, "rows": rows, "steps": steps}


@contextmanager
def reported(rounds: Rounds) -> Iterator[None]:
    """Note each round that the ServerApp reports."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "row"):
                rounds.end()

    logger, listener = logging.getLogger(LOGGER), Listener()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)


def ledger_rows(path: Path) -> tuple[int, int]:
    """Return the clients' rows in the ledger, and their optimiser steps."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT count(*), sum(steps) FROM clients").fetchone()
    finally:
        connection.close()


if __name__ == "__main__":
    main(measure)
