"""What hostile clients achieve against each aggregation: clean accuracy, and their victims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedsim import units
from fedsim.ledger.read import Run
from fedsim.report.drawing import Pen, Picture, Table, marker, new_figure
from fedsim.report.page import Section
from fedsim.report.pictures import finish
from fedsim.report.privacy import interval_of
from fedsim.study.design import Study, Values, label_of
from fedsim.study.figures import figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND, NOBODY = "adversary.kind", "none"
DODGE = 0.6  # of the room of an attack, over which its defences are spread


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """The runs of one defence under one attack.

    Attributes:
        defence: the arm without the attack.
        kind: of the attack; ``none`` where nobody attacks.
        accuracies: of the clean test part after the last round, a value a seed.
        successes: shares of the attack's victims, likewise; empty where it aims at none.
    """

    defence: str
    kind: str
    accuracies: tuple[float, ...]
    successes: tuple[float, ...]


def attacked_of(study: Study, by_arm: Mapping[Values, Sequence[Run]]) -> list[Attacked]:
    """Return what each defence and attack came to; those with runs alone."""
    found = []
    for arm, runs in by_arm.items():
        accuracies, successes = (
            tuple(v for run in runs if not np.isnan(v := figure_of(run, name)))
            for name in ("test_accuracy", "attack_success_fraction")
        )
        if accuracies:
            found.append(
                Attacked(
                    defence=label_of(tuple((k, v) for k, v in arm if k != KIND)),
                    kind=str(study.value(arm, KIND)),
                    accuracies=accuracies,
                    successes=successes,
                )
            )
    return found


def hostile_section(study: Study, by_arm: Mapping[Values, Sequence[Run]]) -> Section | None:
    """Clean accuracy and attack success, by defence and attack; None where nobody attacks."""
    found = attacked_of(study, by_arm)
    if all(each.kind == NOBODY for each in found):
        return None
    return Section(
        name="hostile",
        title="What hostile clients achieve",
        text=(
            "Accuracy is of the clean test part after the last round. Success is the share of an "
            "attack's victims among the test examples that are taken for what it wants: those of "
            "its source class, or all with its pattern. Means with 95% intervals over the seeds.",
        ),
        picture=hostile_picture(found),
        table=hostile_table(found),
    )


def hostile_table(found: Sequence[Attacked]) -> Table:
    """A line for each defence, a column for each attack and what it comes to."""
    kinds = kinds_of(found)
    aims = [kind for kind in kinds if any(e.successes for e in found if e.kind == kind)]
    columns: list[tuple[str, str, Callable[[Attacked], str]]] = []
    for kind in kinds:
        name = "nobody attacks" if kind == NOBODY else kind
        columns.append((f"{name}: accuracy", kind, lambda e: shown(e.accuracies)))
        if kind in aims:
            columns.append((f"{name}: success", kind, lambda e: shown(e.successes)))
    by_place = {(each.defence, each.kind): each for each in found}
    rows = [
        (
            defence,
            *(
                text(by_place[defence, kind]) if (defence, kind) in by_place else units.MISSING
                for _, kind, text in columns
            ),
        )
        for defence in dict.fromkeys(each.defence for each in found)
    ]
    return ("aggregation", *(title for title, _, _ in columns)), rows


def kinds_of(found: Sequence[Attacked]) -> list[str]:
    """Return the attacks in the study's order, after none at all."""
    kinds = dict.fromkeys(each.kind for each in found)
    return sorted(kinds, key=lambda kind: kind != NOBODY)


def shown(values: Sequence[float]) -> str:
    """Print a mean of shares with its interval."""
    if not values:
        return units.MISSING
    mean = units.percent(float(np.mean(values)))
    low, high = interval_of(values)
    return f"{mean} [{100 * low:.1f}, {100 * high:.1f}]" if len(values) > 1 else mean


def hostile_picture(found: Sequence[Attacked]) -> Picture:
    """Accuracy and success side by side: a place for each attack, a mark for each defence."""
    order = {name: i for i, name in enumerate(dict.fromkeys(each.defence for each in found))}
    kinds = kinds_of(found)
    panels: list[tuple[str, list[str], Callable[[Attacked], tuple[float, ...]]]] = [
        ("clean accuracy, %", kinds, lambda each: each.accuracies)
    ]
    if aimed := [k for k in kinds if any(e.successes for e in found if e.kind == k)]:
        panels.append(("attack success, %", aimed, lambda each: each.successes))

    def draw(pen: Pen, narrow: bool) -> Figure:
        figure, axes = new_figure(narrow, rows=1, columns=len(panels), row_inches=3.0)
        for axis, (title, names, values) in zip(axes, panels, strict=True):
            axis.set_title(title)
            for each in found:
                if each.kind not in names or not values(each):
                    continue
                place = order[each.defence]
                step = DODGE / max(1, len(order) - 1)
                x = names.index(each.kind) + (place * step - DODGE / 2 if len(order) > 1 else 0.0)
                mean, (low, high) = float(np.mean(values(each))), interval_of(values(each))
                reach = [[100 * (mean - low)], [100 * (high - mean)]]
                style = {"color": pen.series(place)["color"], "ms": 4, "lw": 1.2}
                axis.errorbar([x], [100 * mean], reach, fmt=marker(place), **style)
            axis.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
            axis.set_ylim(-3, 103)
        finish(figure, axes, len(panels), narrow, order, pen)
        return figure

    rows = [
        (each.defence, each.kind, shown(each.accuracies), shown(each.successes)) for each in found
    ]
    return Picture(
        name="hostile",
        title="Accuracy and attack success, by attack and aggregation",
        caption="Means over the seeds after the last round, with 95% intervals. At the left, the "
        "higher the better; at the right, the lower.",
        kinds=("counted",),
        draw=draw,
        table=(("aggregation", "attack", "accuracy", "attack success"), rows),
    )
