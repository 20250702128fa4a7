"""The privacy part of a report: what was promised, what it cost, and what hid the updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import units
from fedsim.ledger.read import Run
from fedsim.report.drawing import Pen, Picture, Table, columns_for, marker, new_figure
from fedsim.report.page import Section
from fedsim.report.pictures import finish, order_of
from fedsim.study.design import Study, Values, label_of
from fedsim.study.figures import curve, mean, total
from fedsim.study.statistics import LEVEL, intervals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = "none"  # the level of a run that promises nothing

# What a round's ledger says of a promise: column, title, how it is printed.
BY_ROUND: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("epsilon", "epsilon, spent so far", units.number),
    ("clipped_fraction", "updates that were clipped", units.percent),
    ("signal_to_noise", "signal to noise of the mean update", units.number),
    ("clipping_norm", "clipping norm", units.number),
)
SECRECY: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("secure_uplink_bytes", "keys, shares, unmasking: sent", "counted", units.size),
    ("secure_downlink_bytes", "the same: received", "counted", units.size),
    ("secure_cpu_seconds", "the client's cryptography, CPU", "measured", units.seconds),
)


@dataclass(frozen=True, kw_only=True)
class Promised:
    """The arms of a study that share a promise and all else but what is compared by name.

    Attributes:
        level: of the promise; ``none`` of the arms without one.
        name: of the arm, without the keys of ``privacy``.
        asked: what tells promises of a level apart, such as ``target_epsilon 2``.
        epsilon: what was spent, the most of the seeds; None where nothing is promised.
        accuracies: of the test part after the last round, a value a seed.
        conditions: for whom, or where, its epsilon does not hold.
    """

    level: str
    name: str
    asked: str
    epsilon: float | None
    accuracies: tuple[float, ...]
    conditions: tuple[str, ...] = ()

    @property
    def estimate(self) -> float:
        """The mean accuracy."""
        return float(np.mean(self.accuracies))

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the mean at 95%, within [0, 1]; of one seed, that seed."""
        return interval_of(self.accuracies)


def interval_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the mean of shares; they lie in [0, 1], and so does it."""
    if len(values) < 2:
        return values[0], values[0]
    ((low, high),) = intervals(np.asarray(values, np.float64), (LEVEL,))
    return max(0.0, low), min(1.0, high)


# One run.


def run_sections(run: Run) -> list[Section]:
    """Return what a run promised and what its updates were hidden by; nothing where neither was."""
    return [s for s in (promise_section(run), secrecy_section(run)) if s is not None]


def promise_section(run: Run) -> Section | None:
    """Say the guarantee, and show what it came to round by round."""
    picture = promise_by_round(run)
    if picture is None and not run.manifest.guarantee:
        return None
    missing = "" if run.manifest.guarantee else "The run has not said what it promises."
    return Section(
        name="privacy",
        title="The promise of privacy",
        text=(run.manifest.guarantee,) if run.manifest.guarantee else (),
        picture=picture,
        missing=missing,
    )


def promise_by_round(run: Run) -> Picture | None:
    """Epsilon, clipping and noise by round; None where no round says anything of them."""
    rounds = run.rounds
    shown = [entry for entry in BY_ROUND if rounds[entry[0]].notna().any()]
    if not shown:
        return None

    def draw(pen: Pen, narrow: bool) -> Figure:
        rows, columns = columns_for(len(shown), most=2)
        figure, axes = new_figure(narrow, rows=rows, columns=columns, row_inches=2.3)
        for axis, (column, title, unit) in zip(axes, shown, strict=False):
            known = rounds.dropna(subset=[column])
            factor = 100.0 if unit is units.percent else 1.0
            values = factor * known[column].to_numpy("float64")
            axis.plot(known["round"].to_numpy("float64"), values, marker=".", **pen.series(0))
            axis.set_title(f"{title}, %" if unit is units.percent else title)
            axis.set_xlabel("round")
            axis.set_ylim(bottom=0)
        finish(figure, axes, len(shown), narrow, {}, pen)
        return figure

    known = rounds.dropna(subset=[column for column, _, _ in shown], how="all")
    numbers = [
        (str(row["round"]), *(units.shown(value_or_none(row[c]), unit) for c, _, unit in shown))
        for _, row in known.iterrows()
    ]
    return Picture(
        name="promise",
        title="Epsilon, clipping and noise by round",
        caption="Epsilon is what all rounds so far come to, of those at which it was computed. "
        "Signal to noise is the length of the mean update over that of its noise: 1 means that "
        "half of what moves the model is noise.",
        kinds=("counted",),
        draw=draw,
        table=(("round", *(title for _, title, _ in shown)), numbers),
    )


def value_or_none(value: Any) -> float | None:
    """Return a figure of a ledger, None where it is missing."""
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

    return None if pd.isna(value) else float(value)


def secrecy_section(run: Run) -> Section | None:
    """Return secure aggregation's bill: what a visit cost beside the masked update; None: none."""
    used = run.clients[run.clients.status == "ok"]
    if not len(used) or not used[[column for column, *_ in SECRECY]].notna().any(axis=None):
        return None
    rows: list[tuple[str, ...]] = []
    for column, title, kind, unit in SECRECY:
        values = used[column]
        rows.append((title, kind, units.shown(mean(values), unit), shown_total(values, unit)))
    walls = run.rounds.secure_wall_seconds
    if walls.notna().any():
        each, all_of_them = (
            units.shown(mean(walls), units.seconds),
            shown_total(walls, units.seconds),
        )
        rows.append(("a round's protocol at the server, wall", "measured", each, all_of_them))
    return Section(
        name="secrecy",
        title="What hiding the updates cost",
        text=(
            "The server saw the sum of the updates alone (secure aggregation). This is what comes "
            "on top of training and of the masked update itself.",
        ),
        table=(("figure", "kind", "a visit, or a round", "in all"), rows),
    )


def shown_total(values: Any, unit: Callable[[float], str]) -> str:
    """Print a sum, which is missing where one of its figures is."""
    return units.shown(total(values), unit)


# A study.


def promises_of(study: Study, by_arm: Mapping[Values, Sequence[Run]]) -> list[Promised]:
    """Return what each arm promised and was worth, in the study's order; those with runs alone."""
    found: list[Promised] = []
    for arm in study.arms:
        runs = by_arm[arm]
        accuracies = tuple(values[-1] for run in runs if (values := curve(run)[1]))
        if not accuracies:
            continue
        own = tuple((k, v) for k, v in arm if not k.startswith("privacy."))
        level = str(study.value(arm, "privacy.level"))
        promise = tuple((k, v) for k, v in arm if k.startswith("privacy.") and k != "privacy.level")
        found.append(
            Promised(
                level=level,
                name=label_of(own),
                asked="" if level == NOTHING else label_of(promise),
                epsilon=spent_by(runs) if level != NOTHING else None,
                accuracies=accuracies,
                conditions=conditions_of(study, arm) if level != NOTHING else (),
            )
        )
    return found


def conditions_of(study: Study, arm: Values) -> tuple[str, ...]:
    """Return for whom, or where, an arm's epsilon does not hold."""
    larger = study.value(arm, "privacy.noise_cohort")
    cohort = study.value(arm, "server.clients_per_round")
    said = []
    if larger and study.value(arm, "privacy.level") == "user":
        said.append(
            f"holds in a federation with cohorts of {larger:,}, whose noise was added, and not in "
            f"this one with its {cohort}"
        )
    if study.value(arm, "privacy.reproducible_noise"):
        said.append("does not hold for whoever knows the run's seed, which gives the noise")
    return tuple(said)


def conditions_said(found: Sequence[Promised]) -> tuple[str, ...]:
    """Say what the stars of :func:`head_of` mean, a sentence each."""
    return tuple(
        dict.fromkeys(
            f"An epsilon with a star {condition}." for p in found for condition in p.conditions
        )
    )


def spent_by(runs: Sequence[Run]) -> float | None:
    """Return the largest epsilon that a run came to; None where a run does not say.

    What a run's manifest says counts; of one that has not said its last, its last round's.
    """
    spent = []
    for run in runs:
        by_round = run.rounds.epsilon.dropna()
        last = float(by_round.iloc[-1]) if len(by_round) else None
        spent.append(last if run.manifest.epsilon is None else run.manifest.epsilon)
    known = [epsilon for epsilon in spent if epsilon is not None]
    return max(known) if known and len(known) == len(spent) else None


def study_section(study: Study, by_arm: Mapping[Values, Sequence[Run]]) -> Section | None:
    """Accuracy against epsilon, by arm; None where nothing was promised in any arm."""
    found = promises_of(study, by_arm)
    levels = list(dict.fromkeys(p.level for p in found if p.epsilon is not None))
    if not levels:
        return None
    panels = {
        f"level {level}": [p for p in found if p.level in (level, NOTHING)] for level in levels
    }
    guarantees = dict.fromkeys(
        run.manifest.guarantee for runs in by_arm.values() for run in runs if run.manifest.guarantee
    )
    return Section(
        name="privacy",
        title="What privacy costs",
        text=(*(str(text) for text in guarantees), *conditions_said(found)),
        picture=accuracy_by_epsilon(panels),
        table=promise_table(found),
    )


def accuracy_by_epsilon(panels: Mapping[str, Sequence[Promised]]) -> Picture:
    """Test accuracy against the epsilon that was spent, with intervals; no promise at the right."""
    order = order_of({title: {p.name: p for p in found} for title, found in panels.items()})

    def draw(pen: Pen, narrow: bool) -> Figure:
        rows, columns = columns_for(len(panels), most=2)
        figure, axes = new_figure(narrow, rows=rows, columns=columns, row_inches=3.0)
        for axis, (title, found) in zip(axes, panels.items(), strict=False):
            axis.set_title(title)
            epsilon_panel(axis, pen, found, order)
        axes[0].set_ylabel("test accuracy, %")
        finish(figure, axes, len(panels), narrow, order, pen)
        return figure

    rows = [
        (
            title,
            p.name,
            "no promise" if p.epsilon is None else units.number(p.epsilon),
            units.percent(p.estimate),
            shown_interval(p),
            str(len(p.accuracies)),
        )
        for title, found in panels.items()
        for p in found
    ]
    head = ("setting", "arm", "epsilon", "test accuracy", "95% interval", "seeds")
    return Picture(
        name="epsilon",
        title="Test accuracy against epsilon",
        caption=" ".join(
            (
                "Means over the seeds after the last round; bands are 95% intervals of the mean. "
                "Epsilon is what was spent. At the right: the same without a promise.",
                *conditions_said([p for found in panels.values() for p in found]),
            )
        ),
        kinds=("counted",),
        draw=draw,
        table=(head, rows),
    )


def epsilon_panel(axis: Any, pen: Pen, found: Sequence[Promised], order: Mapping[str, int]) -> None:
    """Draw the arms of one setting; the place for no promise is beyond the largest epsilon."""
    spent = sorted({round(p.epsilon, 3) for p in found if p.epsilon is not None})
    beyond = 4 * spent[-1]
    for name in dict.fromkeys(p.name for p in found):
        style = pen.series(order[name])
        mine = [p for p in found if p.name == name]
        private = sorted((p for p in mine if p.epsilon is not None), key=lambda p: p.epsilon or 0)
        if private:
            x = [p.epsilon for p in private]
            low, high = zip(*(p.interval for p in private), strict=True)
            y = [100 * p.estimate for p in private]
            axis.plot(x, y, marker=marker(order[name]), ms=3, lw=1.2, **style)
            band = (100 * np.asarray(low), 100 * np.asarray(high))
            axis.fill_between(x, *band, color=style["color"], alpha=0.12, lw=0)
        for p in mine:
            if p.epsilon is None:
                reach = [[100 * (p.estimate - p.interval[0])], [100 * (p.interval[1] - p.estimate)]]
                shape = marker(order[name])
                axis.errorbar(
                    [beyond], [100 * p.estimate], reach, fmt=shape, ms=3, color=style["color"]
                )
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks([*spent, beyond], [*(units.number(e) for e in spent), "none"])
    axis.set_xlabel("epsilon")


def promise_table(found: Sequence[Promised]) -> Table:
    """A line for each arm: accuracy without a promise, and at each that was asked for."""
    kinds = list(dict.fromkeys((p.level, p.asked) for p in found))
    kinds.sort(key=lambda kind: kind[0] != NOTHING)
    cells = {(p.name, p.level, p.asked): shown_accuracy(p) for p in found}
    head = ("arm", *(head_of(level, asked, found) for level, asked in kinds))
    rows = [
        (name, *(cells.get((name, *kind), units.MISSING) for kind in kinds))
        for name in dict.fromkeys(p.name for p in found)
    ]
    return head, rows


def head_of(level: str, asked: str, found: Sequence[Promised]) -> str:
    """Say what a column's arms promised, and what they spent; a star where that has conditions."""
    if level == NOTHING:
        return "no promise"
    mine = [p for p in found if (p.level, p.asked) == (level, asked)]
    spent = [p.epsilon for p in mine if p.epsilon]
    star = "*" if any(p.conditions for p in mine) else ""
    return f"{level}: epsilon {units.number(max(spent))}{star}" if spent else f"{level}: {asked}"


def shown_accuracy(p: Promised) -> str:
    """Print an accuracy with its interval."""
    return f"{units.percent(p.estimate)} {shown_interval(p)}"


def shown_interval(p: Promised) -> str:
    """Print an interval; nothing where there is a single seed."""
    if len(p.accuracies) < 2:
        return ""
    low, high = p.interval
    return f"[{100 * low:.1f}, {100 * high:.1f}]"
