"""The figures of a run, by name, from its ledger alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    rounds, clients = run.rounds, run.clients
    evaluated, accuracy = curve(run)
    local = local_accuracy(run) or {}
    figures = {
        "test_accuracy": final_accuracy(accuracy),
        "best_accuracy": best_accuracy(accuracy),
        "area_under_curve": area_under_curve(evaluated, accuracy),
        "attack_success_fraction": last(rounds.attack_success_fraction),
        "local_accuracy": local.get("mean"),
        "local_worst_decile": local.get("worst_decile"),
        "local_gini": local.get("gini"),
        "hidden_zero_fraction": hidden(run, "zero_fraction"),
        "hidden_dead_fraction": hidden(run, "dead_fraction"),
    }
    for name in ("cpu_seconds", "train_flops", "uplink_bytes", "downlink_bytes"):
        figures[name] = total(rounds[name])
    for name in ("dense_bytes", "compressed_bytes", "saved_bytes"):
        figures[name] = mean(clients[name])
    for name in ("modelled_seconds", "modelled_joules"):
        figures[f"{name}_per_client"] = mean(clients[name])
    known = {name: math.nan if v is None else float(v) for name, v in figures.items()}
    return {**known, **costs_to_targets(rounds, targets)}


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
    after = run.layers[(run.layers.phase == "after").fillna(False)].dropna(subset=[column])
    return mean(after[column][after["round"] == after["round"].max()])


def total(column: pd.Series) -> Any:
    """Sum a column exactly, of whatever length; None where one of its figures is missing."""
    return None if column.isna().any() else sum(column.tolist())


def curve(run: Run) -> tuple[list[float], list[float]]:
    """Return the evaluated rounds, and the test accuracy after each."""
    tested = run.rounds.dropna(subset=["test_accuracy"])
    return [float(r) for r in tested["round"]], [float(a) for a in tested.test_accuracy]


def local_accuracy(run: Run) -> dict[str, float | None] | None:
    """Return how well the clients' own models do on their own data, and how evenly.

    This is of the last completed round in which clients looked (``measure.level = "full"``);
    clients that did not say are left out.
    """
    clients = run.clients
    looked = clients[clients["round"] <= run.last_round].dropna(subset=["accuracy_after"])
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
