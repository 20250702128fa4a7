"""What runs were worth round by round, and what they had cost by then, averaged over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsim.ledger.read import Run
from fedsim.study.figures import spent_until

Floats = npt.NDArray[np.float64]
MOST_POINTS = 120  # of a line in a picture: more would be seen by nobody


@dataclass(frozen=True, kw_only=True)
class RunCurve:
    """One run at its evaluated rounds; costs are NaN from a round on that does not say."""

    rounds: Floats
    accuracy: Floats
    transferred_bytes: Floats  # both ways, since the beginning
    cpu_seconds: Floats


@dataclass(frozen=True, kw_only=True)
class ArmCurve:
    """The mean over an arm's runs, and the lowest and highest of them.

    A run that ended before the others (it had reached its target) stays where it ended.
    """

    rounds: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    transferred_bytes: Floats
    cpu_seconds: Floats
    runs: int


def run_curve(run: Run) -> RunCurve:
    """Read one run."""
    tested = run.rounds.test_accuracy.notna().to_numpy()
    return RunCurve(
        rounds=np.asarray(run.rounds["round"][tested], dtype=np.float64),
        accuracy=run.rounds.test_accuracy[tested].to_numpy("float64"),
        transferred_bytes=spent_until(run.rounds, "bytes")[tested],
        cpu_seconds=spent_until(run.rounds, "cpu_seconds")[tested],
    )


def arm_curve(runs: Sequence[Run]) -> ArmCurve | None:
    """Average an arm's runs; None where no round was evaluated."""
    curves = [c for c in map(run_curve, runs) if len(c.rounds)]
    if not curves:
        return None
    rounds = thinned(np.unique(np.concatenate([c.rounds for c in curves])))

    def at(name: str) -> Floats:
        return np.stack([np.interp(rounds, c.rounds, getattr(c, name)) for c in curves])

    accuracy = at("accuracy")
    return ArmCurve(
        rounds=rounds,
        accuracy=accuracy.mean(axis=0),
        low=accuracy.min(axis=0),
        high=accuracy.max(axis=0),
        transferred_bytes=at("transferred_bytes").mean(axis=0),
        cpu_seconds=at("cpu_seconds").mean(axis=0),
        runs=len(curves),
    )


def thinned(values: Floats) -> Floats:
    """Return at most so many of some sorted values as can be seen, the ends among them."""
    if len(values) <= MOST_POINTS:
        return values
    places = np.unique(np.linspace(0, len(values) - 1, MOST_POINTS).round().astype(int))
    return np.asarray(values[places])
