"""What measuring costs: the same rounds at every level, in turns, on one engine."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.choices import choose_engine
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.ledger.read import load
from fedsim.measure.stability import median_interval
from fedsim.measure.timings import Interval
from fedsim.randomness import stream
from fedsim.simulation import open_engine, simulate

if TYPE_CHECKING:
    from fedsim.engine import Executor

LEVELS = ("off", "light", "full")

# What a level may cost of a round's wall time, on the 2NN.
BOUNDS = {"light": 0.03, "full": 0.25}

REPORTS = "flwr.fedsim"  # where the ServerApp reports each round

# The first round of a run loads what a process lacks.
WARM_UP_ROUNDS = 1

Progress = Callable[[int, int, float | None], None]


@dataclass(frozen=True, kw_only=True)
class LevelCost:
    """What a level costs. Measured.

    ``round_seconds`` is the wall time from one round's end to the next one's, with its ledger
    transaction. ``price`` is how much longer it is than at level ``off``, as a share of that;
    ``bound`` is what it may be, None where nothing is laid down. ``measuring_share`` is the
    clients' own time in measuring and in passes over their data, over their time in the training:
    it sees what the price sees, without the server's part and without the noise of comparing runs.
    The passes of a strategy that needs the loss itself, as q-FedAvg does, are in it at every
    level: there it says more than measuring costs, and the price, which compares with ``off``,
    does not.
    """

    level: str
    round_seconds: Interval
    price: Interval | None
    measuring_share: float | None
    bound: float | None

    @property
    def within(self) -> bool | None:
        """Whether the price's estimate keeps to the bound; None where there is no bound."""
        if self.price is None or self.bound is None:
            return None
        return self.price.estimate <= self.bound

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "within": self.within}


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """The price of each level; ``same_model`` says whether all gave the same bits."""

    levels: tuple[LevelCost, ...]
    rounds: int
    repeats: int
    same_model: bool

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        levels = [level.as_json() for level in self.levels]
        return {"kind": "measured", **dataclasses.asdict(self), "levels": levels}


def measure_overhead(
    experiment: Experiment,
    *,
    rounds: int,
    repeats: int,
    bounds: Mapping[str, float],
    progress: Progress | None = None,
) -> Overhead:
    """Run an experiment's first rounds at every level, ``repeats`` times, in changing order.

    Medians over the rounds of a run are compared within a repeat, so that what slows the machine
    for a while falls out; then medians over the repeats, with 95% intervals (bootstrap).

    Args:
        experiment: complete and checked; its level and its directory are not used.
        rounds: that are timed in each run, at least 1; one more comes first.
        repeats: at least 5, for intervals.
        bounds: what a level's price may be, by level; ``BOUNDS`` for the 2NN.
        progress: called before every run with the runs done, the runs in all, and the seconds
            left, about: None before the first.

    Raises:
        ConfigError: too few rounds or repeats.
        EngineError, RunFailed: the experiment does not run.
    """
    if problems := [
        f"{name} = {value}: must be at least {least}"
        for name, value, least in (("rounds", rounds, 1), ("repeats", repeats, 5))
        if value < least
    ]:
        raise ConfigError(problems)
    rounds_of = Timed(seconds=defaultdict(list), shares=defaultdict(list), digests=set())
    order = stream(experiment.experiment.seed, "overhead/order")
    levels = [str(level) for _ in range(repeats) for level in order.permutation(LEVELS)]
    (experiment,) = choose_engine([experiment], lambda line: None)
    executor = open_engine(experiment)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as directory:
            for done, level in enumerate(levels):
                if progress:
                    pace = (time.monotonic() - started) / done if done else None
                    progress(done, len(levels), pace and pace * (len(levels) - done))
                timed = at_level(experiment, level, rounds, Path(directory) / str(done))
                time_run(timed, executor, rounds_of)
    finally:
        executor.close()
    rng = stream(experiment.experiment.seed, "overhead/resamples")
    return Overhead(
        levels=tuple(level_cost(level, rounds_of, bounds.get(level), rng) for level in LEVELS),
        rounds=rounds,
        repeats=repeats,
        same_model=len(rounds_of.digests) == 1,
    )


@dataclass(frozen=True)
class Timed:
    """By level: the median round of each run, and the share of measuring; all final models."""

    seconds: dict[str, list[float]]
    shares: dict[str, list[float]]
    digests: set[str | None]


def at_level(experiment: Experiment, level: str, rounds: int, out: Path) -> Experiment:
    """Return the experiment with so many timed rounds at one level, in a directory."""
    return dataclasses.replace(
        experiment,
        experiment=dataclasses.replace(
            experiment.experiment, rounds=WARM_UP_ROUNDS + rounds, name=f"level-{level}"
        ),
        measure=dataclasses.replace(experiment.measure, level=level, full_every=0),
        run=dataclasses.replace(experiment.run, out=str(out), resume=False),
    )


def time_run(experiment: Experiment, executor: Executor, found: Timed) -> None:
    """Run an experiment and add what it took."""
    level = experiment.measure.level
    with round_ends() as ends:
        simulate(experiment, executor)
    found.seconds[level].append(median(b - a for a, b in pairwise(ends)))
    run = load(experiment.run.out)
    found.digests.add(run.manifest.model_sha256)
    extra = run.clients[["measuring_wall_seconds", "evaluation_wall_seconds"]].sum().sum()
    found.shares[level].append(float(extra / run.clients.wall_seconds.sum()))


@contextmanager
def round_ends() -> Iterator[list[float]]:
    """Collect the moments at which the ServerApp reports a round, which is in the ledger then."""
    ends: list[float] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "row"):
                ends.append(time.perf_counter())

    logger, listener = logging.getLogger(REPORTS), Listener()
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(listener)
    try:
        yield ends
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
        logger.propagate = propagate


def level_cost(
    level: str, found: Timed, bound: float | None, rng: np.random.Generator
) -> LevelCost:
    """Return what a level cost, compared with ``off`` repeat by repeat."""
    mine, off = found.seconds[level], found.seconds["off"]
    ratios = [a / b - 1 for a, b in zip(mine, off, strict=True)]
    measured = level != "off"
    return LevelCost(
        level=level,
        round_seconds=median_interval(mine, rng),
        price=median_interval(ratios, rng) if measured else None,
        measuring_share=median(found.shares[level]) if measured else None,
        bound=bound,
    )
