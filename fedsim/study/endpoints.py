"""What a study can be about: figures of a run, which values of them are better, and what counts.

An endpoint is a figure of :mod:`fedsim.study.figures` (``test_accuracy``, ``saved_bytes``), a
cost until a target (``rounds_to_0.95``), or any other column of the ledger, whose mean over its
rows it then is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fedsim.errors import nearest
from fedsim.ledger.read import Run
from fedsim.records import ClientRow, Kind, LayerRow, RoundRow
from fedsim.records import figures as columns
from fedsim.study.figures import COSTS, FIGURES, column_mean, cost_within, figure_of

Direction = Literal["higher", "lower"]
Scale = Literal["difference", "ratio"]

# What counts as a difference where a study does not say: half a point of accuracy, a tenth of the
# rounds, a twentieth of seconds and bytes.
ACCURACY_MARGIN, ROUNDS_MARGIN, COST_MARGIN = 0.005, 0.10, 0.05

ACCURACIES = (
    *("test_accuracy", "best_accuracy", "area_under_curve"),
    *("local_accuracy", "local_worst_decile", "accuracy_after"),
)
# The ends of names whose figures are ratios, the less of it the better.
COSTLY = ("_bytes", "_seconds", "_flops", "_ops", "_joules", "_per_client", "_bits", "_elements")
# Whatever else is better if it is lower, from where those stand who defend themselves.
LOWER = ("local_gini", "attack_success_fraction")
TARGET = re.compile(r"(?P<cost>\w+)_to_(?P<target>0?\.\d+|1(\.0*)?)")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A figure, and how two arms are compared by it; None: the hypothesis has to say."""

    name: str
    target: float | None = None
    scale: Scale = "difference"
    direction: Direction | None = None
    margin: float | None = None
    kind: Kind = "counted"


def endpoint_of(name: str) -> Endpoint | None:
    """Return what is known of an endpoint, or None if there is none of that name."""
    if found := TARGET.fullmatch(name):
        cost, target = found["cost"], float(found["target"])
        if cost not in COSTS or not 0 < target <= 1:
            return None
        margin = ROUNDS_MARGIN if cost in ("rounds", "train_flops") else COST_MARGIN
        kind = COSTS[cost]
        return Endpoint(
            name=name, target=target, scale="ratio", direction="lower", margin=margin, kind=kind
        )
    kind_of = known_figures()
    if name not in kind_of:
        return None
    if name in ACCURACIES:
        return Endpoint(name=name, direction="higher", margin=ACCURACY_MARGIN)
    if name.endswith(COSTLY):
        return Endpoint(
            name=name, scale="ratio", direction="lower", margin=COST_MARGIN, kind=kind_of[name]
        )
    lower = name.startswith(("loss", "test_loss")) or name in LOWER
    return Endpoint(name=name, direction="lower" if lower else None, kind=kind_of[name])


def value_of(run: Run, name: str) -> tuple[float, bool]:
    """Return a run's value of an endpoint, and whether a target was reached (True without one).

    NaN stands for what the run does not have.
    """
    if found := TARGET.fullmatch(name):
        return cost_within(run, found["cost"], float(found["target"]))
    if name not in FIGURES:
        return column_mean(run, name), True
    return figure_of(run, name), True


def known_figures() -> dict[str, Kind]:
    """Return every figure that is no cost until a target, and its kind."""
    rows = {**columns(LayerRow), **columns(RoundRow), **columns(ClientRow)}
    return {**{name: column.metadata["kind"] for name, column in rows.items()}, **FIGURES}


def target_of(name: str) -> float | None:
    """Return the accuracy that an endpoint is about reaching."""
    endpoint = endpoint_of(name)
    return endpoint.target if endpoint else None


def endpoint_problem(name: object, *, tuned: bool = False) -> str | None:
    """Say what is wrong with an endpoint; one that is tuned by has to have a better end."""
    endpoint = endpoint_of(name) if isinstance(name, str) else None
    if endpoint is None:
        valid = [*FIGURES, *(f"{cost}_to_0.95" for cost in COSTS)]
        return f"unknown endpoint; {nearest(str(name), [*valid, *known_figures()], valid)}"
    if tuned and endpoint.direction is None:
        return "nobody knows which values of it are better; take another"
    return None
