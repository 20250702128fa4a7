"""The figures of a run, by name, from its ledger alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.ledger.read import Run
from fedsim.measure.convergence import (
    area_under_curve,
    best_accuracy,
    cost_to_target,
    final_accuracy,
    gini,
    worst_decile,
)
from fedsim.records import Kind

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

# The figures of a run, and what kind each is. Bytes of an update or a step, and what is modelled,
# are of one client in one round, on average; the others of the whole run.
FIGURES: dict[str, Kind] = {
    "test_accuracy": "counted",
    "best_accuracy": "counted",
    "area_under_curve": "counted",
    "attack_success_fraction": "counted",
    "local_accuracy": "counted",
    "local_worst_decile": "counted",
    "local_gini": "counted",
    "cpu_seconds": "measured",
    "train_flops": "counted",
    "uplink_bytes": "counted",
    "downlink_bytes": "counted",
    "dense_bytes": "counted",
    "compressed_bytes": "counted",
    "saved_bytes": "counted",
    "hidden_zero_fraction": "counted",
    "hidden_dead_fraction": "counted",
    "modelled_seconds_per_client": "modelled",
    "modelled_joules_per_client": "modelled",
}

# What is spent until a target is reached.
COSTS: dict[str, Kind] = {
    "rounds": "counted",
    "cpu_seconds": "measured",
    "train_flops": "counted",
    "uplink_bytes": "counted",
    "downlink_bytes": "counted",
    "bytes": "counted",  # up and down
    "wall_seconds": "measured",
}


def to_target(cost: str, target: float) -> str:
    """Name the figure of a cost until a target, such as ``bytes_to_0.95``."""
    return f"{cost}_to_{target:g}"


def figures_of(run: Run, targets: Sequence[float]) -> dict[str, float | None]:
    """Return a run's figures by name.

    NaN stands for a figure that the run does not have, None for a target that it did not reach.
    """
    known: dict[str, float | None] = {name: figure_of(run, name) for name in FIGURES}
    return known | costs_to_targets(run.rounds, targets)


def figure_of(run: Run, name: str) -> float:
    """Return one of a run's ``FIGURES``; NaN where it does not have it."""
    value = READ[name](run)
    return math.nan if value is None else float(value)


def costs_to_targets(rounds: pd.DataFrame, targets: Sequence[float]) -> dict[str, float | None]:
    """Return what was spent until each target; NaN where a round does not say what it cost."""
    tested = rounds.test_accuracy.notna().to_numpy()
    accuracy = rounds.test_accuracy[tested].tolist()
    figures: dict[str, float | None] = {}
    for cost in COSTS:
        spent = spent_until(rounds, cost)[tested]
        for target in targets:
            reached = cost_to_target(spent.tolist(), accuracy, target)
            figures[to_target(cost, target)] = math.nan if np.isnan(spent).any() else reached
    return figures


def spent_until(rounds: pd.DataFrame, cost: str) -> np.ndarray:
    """Return what was spent until the end of each round, (rounds,); NaN from a missing one on."""
    if cost == "rounds":
        return np.asarray(rounds["round"], dtype=np.float64)
    names = ["uplink_bytes", "downlink_bytes"] if cost == "bytes" else [cost]
    spent = rounds[names].to_numpy("float64", na_value=np.nan)
    return np.cumsum(spent.sum(axis=1))


def last(column: pd.Series) -> float | None:
    """Return the last figure that is there, or None if none is."""
    values = column.dropna().tolist()
    return values[-1] if values else None


def mean(column: pd.Series) -> float | None:
    """Return the mean of the figures that are there, or None if none is."""
    values = column.dropna().tolist()
    return math.fsum(values) / len(values) if values else None


def hidden(run: Run, column: str) -> float | None:
    """Return the mean of a figure over clients and hidden layers, after local training.

    It is of the last round that was looked at (``measure.level = "full"``). Hidden layers are
    those with an activation, which alone have such figures.
    """
    layers = run.layers[["round", "phase", column]].dropna()
    after = layers[layers.phase == "after"]
    return mean(after[column][after["round"] == after["round"].max()])


def total(column: pd.Series) -> Any:
    """Sum a column exactly, of whatever length; None where one of its figures is missing."""
    return None if column.isna().any() else sum(column.tolist())


def curve(run: Run) -> tuple[list[float], list[float]]:
    """Return the evaluated rounds, and the test accuracy after each."""
    tested = run.rounds[["round", "test_accuracy"]].dropna()
    return [float(r) for r in tested["round"]], [float(a) for a in tested.test_accuracy]


def local_accuracy(run: Run) -> dict[str, float | None] | None:
    """Return how well the clients' own models do on their own data, and how evenly.

    This is of the last completed round in which clients looked (``measure.level = "full"``);
    clients that did not say are left out.
    """
    looked = run.clients[["round", "accuracy_after"]].dropna()
    looked = looked[looked["round"] <= run.last_round]
    values = [float(v) for v in looked.accuracy_after[looked["round"] == looked["round"].max()]]
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    return {
        "round": int(looked["round"].max()),
        "mean": mean,
        "worst_decile": worst_decile(values),
        "gini": gini(values),
    }


def cost_within(run: Run, cost: str, target: float) -> tuple[float, bool]:
    """Return a cost until a target, restricted to what was spent, and whether it was reached.

    Of a run that did not get there it is all that it spent, a lower bound: with its horizon as the
    restriction, means over runs are restricted means (Royston and Parmar 2013). NaN where a round
    does not say what it cost, or none was evaluated.
    """
    rounds = run.rounds
    tested = rounds.test_accuracy.notna().to_numpy()
    spent = spent_until(rounds, cost)[tested]
    if not len(spent) or np.isnan(spent).any():
        return math.nan, False
    reached = cost_to_target(spent.tolist(), rounds.test_accuracy[tested].tolist(), target)
    return (float(spent[-1]), False) if reached is None else (reached, True)


def column_mean(run: Run, name: str) -> float:
    """Return the mean of a column of the ledger over its rows; NaN where it has none.

    A column of clients is that of the clients whose update was used; one of layers, of their state
    after local training; where both have a name, it is the clients'.
    """
    if name in run.clients:
        rows = run.clients[run.clients.status == "ok"]
    elif name in run.layers:
        rows = run.layers[(run.layers.phase == "after").fillna(False)]
    else:
        rows = run.rounds
    found = mean(rows[name])
    return math.nan if found is None else found


# How each figure of FIGURES is read; None where a run does not have it.
READ: dict[str, Callable[[Run], float | None]] = {
    "test_accuracy": lambda run: final_accuracy(curve(run)[1]),
    "best_accuracy": lambda run: best_accuracy(curve(run)[1]),
    "area_under_curve": lambda run: area_under_curve(*curve(run)),
    "attack_success_fraction": lambda run: last(run.rounds.attack_success_fraction),
    "local_accuracy": lambda run: (local_accuracy(run) or {}).get("mean"),
    "local_worst_decile": lambda run: (local_accuracy(run) or {}).get("worst_decile"),
    "local_gini": lambda run: (local_accuracy(run) or {}).get("gini"),
    "cpu_seconds": lambda run: total(run.rounds.cpu_seconds),
    "train_flops": lambda run: total(run.rounds.train_flops),
    "uplink_bytes": lambda run: total(run.rounds.uplink_bytes),
    "downlink_bytes": lambda run: total(run.rounds.downlink_bytes),
    "dense_bytes": lambda run: mean(run.clients.dense_bytes),
    "compressed_bytes": lambda run: mean(run.clients.compressed_bytes),
    "saved_bytes": lambda run: mean(run.clients.saved_bytes),
    "hidden_zero_fraction": lambda run: hidden(run, "zero_fraction"),
    "hidden_dead_fraction": lambda run: hidden(run, "dead_fraction"),
    "modelled_seconds_per_client": lambda run: mean(run.clients.modelled_seconds),
    "modelled_joules_per_client": lambda run: mean(run.clients.modelled_joules),
}
assert list(READ) == list(FIGURES)
