"""The figures of a report: accuracy, costs, differences, tuning, health, bills, partition."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import units
from fedsim.report.curves import ArmCurve
from fedsim.report.drawing import (
    Pen,
    Picture,
    Table,
    columns_for,
    hide_unused,
    marker,
    new_figure,
)
from fedsim.report.verdicts import effect, interval, margin
from fedsim.study.design import Tune, short
from fedsim.study.endpoints import ACCURACIES, endpoint_of
from fedsim.study.tuning import Curve
from fedsim.study.verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND_LETTERS = 60  # of all names together, that still stand in one line

# Panels (what is not compared) to arms (what is) to a curve.
Panels = Mapping[str, Mapping[str, ArmCurve]]


def order_of(panels: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Number the arms, so that each looks the same in every panel and picture."""
    names = dict.fromkeys(name for panel in panels.values() for name in panel)
    return {name: i for i, name in enumerate(names)}


def accuracy_by_round(panels: Panels, targets: Sequence[float]) -> Picture:
    """Test accuracy by round, with a band over the seeds."""
    order = order_of(panels)

    def draw(pen: Pen, narrow: bool) -> Figure:
        rows, columns = columns_for(len(panels))
        figure, axes = new_figure(narrow, rows=rows, columns=columns, row_inches=2.9, sharey=True)
        for axis, (title, arms) in zip(axes, panels.items(), strict=False):
            axis.set_title(title)
            for name, curve in arms.items():
                style = pen.series(order[name])
                axis.plot(curve.rounds, 100 * curve.accuracy, label=name, lw=1.4, **style)
                low, high = 100 * curve.low, 100 * curve.high
                axis.fill_between(curve.rounds, low, high, color=style["color"], alpha=0.15, lw=0)
            show_targets(axis, pen, targets)
            axis.set_xlabel("round")
        axes[0].set_ylabel("test accuracy, %")
        axes[0].set_ylim(bottom=lowest_shown(panels))
        finish(figure, axes, len(panels), narrow, order, pen)
        return figure

    return Picture(
        name="accuracy",
        title="Test accuracy by round",
        caption="Mean over the seeds; the band goes from the lowest seed to the highest. A run "
        "that stopped at its target stays at what it had.",
        kinds=("counted",),
        draw=draw,
        table=curve_table(panels),
    )


def accuracy_by_cost(panels: Panels, targets: Sequence[float]) -> Picture:
    """Test accuracy against what was spent: the arm to the upper left wins."""
    order = order_of(panels)
    most = max(c.transferred_bytes[-1] for arms in panels.values() for c in arms.values())
    size, unit = (1e-9, "GB") if most >= 1e10 else (1e-6, "MB")
    costs = (
        ("transferred_bytes", size, f"{unit}, both ways"),
        ("cpu_seconds", 1.0, "client CPU, s"),
    )

    def draw(pen: Pen, narrow: bool) -> Figure:
        figure, axes = new_figure(
            narrow, rows=len(panels), columns=len(costs), row_inches=2.7, sharey=True
        )
        cells = [(title, arms, cost) for title, arms in panels.items() for cost in costs]
        for axis, (title, arms, (cost, factor, label)) in zip(axes, cells, strict=False):
            axis.set_title(title)
            for name, curve in arms.items():
                spent = factor * getattr(curve, cost)
                axis.plot(
                    spent, 100 * curve.accuracy, label=name, lw=1.4, **pen.series(order[name])
                )
            show_targets(axis, pen, targets)
            axis.set_xlabel(label)
            axis.set_ylabel("test accuracy, %")
            axis.set_ylim(bottom=lowest_shown(panels))
        finish(figure, axes, len(cells), narrow, order, pen)
        return figure

    return Picture(
        name="cost",
        title="Test accuracy against bytes and CPU seconds",
        caption="What all clients together had sent and received, and computed, by the time the "
        "accuracy was there; means over the seeds. Whoever is further up and to the left has the "
        "better bargain.",
        kinds=("counted", "measured"),
        draw=draw,
        table=cost_table(panels),
    )


def lowest_shown(panels: Panels) -> float:
    """Return the percentage at which an axis of accuracies begins: where the steep rise is over.

    That is the lowest that any arm had after a tenth of its rounds, so that the first rounds do
    not press everything else together.
    """
    early = [
        np.interp(0.1 * c.rounds[-1], c.rounds, c.accuracy)
        for arms in panels.values()
        for c in arms.values()
    ]
    return max(0.0, 10.0 * math.floor(10 * float(min(early))))


def show_targets(axis: Any, pen: Pen, targets: Sequence[float]) -> None:
    """Mark the accuracies that a study asks about."""
    for target in targets:
        axis.axhline(100 * target, color=pen["muted"], lw=0.8, ls=(0, (4, 3)))


def finish(
    figure: Figure, axes: Sequence[Any], used: int, narrow: bool, order: Mapping[str, int], pen: Pen
) -> None:
    """Hide what is empty, and put one legend beside or below all panels."""
    hide_unused(axes, used)
    if len(order) < 2:
        return
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **pen.series(i), lw=1.6) for i in order.values()]
    long = sum(map(len, order)) > LEGEND_LETTERS
    columns = (2 if long else 3) if narrow else min(len(order), 4 if long else 7)
    figure.legend(lines, list(order), loc="outside lower center", ncols=columns, fontsize=8)


def curve_table(panels: Panels) -> Table:
    """The ends of the curves."""
    rows = [
        (
            title,
            name,
            f"{c.rounds[-1]:.0f}",
            units.percent(c.accuracy[-1]),
            f"{units.percent(c.low[-1])} to {units.percent(c.high[-1])}",
            str(c.runs),
        )
        for title, arms in panels.items()
        for name, c in arms.items()
    ]
    return ("setting", "arm", "rounds", "test accuracy", "seeds from, to", "seeds"), rows


def cost_table(panels: Panels) -> Table:
    """What the arms spent in all."""
    rows = [
        (
            title,
            name,
            units.shown(c.transferred_bytes[-1], units.size),
            units.shown(c.cpu_seconds[-1], units.seconds),
            units.percent(c.accuracy[-1]),
        )
        for title, arms in panels.items()
        for name, c in arms.items()
    ]
    return ("setting", "arm", "bytes, both ways", "client CPU", "test accuracy"), rows


def forest(verdicts: Sequence[Verdict]) -> Picture:
    """Paired differences with intervals and margins: a panel an endpoint, a line a pair of arms."""
    shown = [v for v in verdicts if v.estimate is not None and v.low is not None]
    lines = list(dict.fromkeys(line_label(v) for v in shown))
    endpoints = {v.hypothesis.endpoint: v.hypothesis.scale for v in shown}

    def draw(pen: Pen, narrow: bool) -> Figure:
        inches = (0.34 if narrow else 0.26) * len(lines) + 0.9
        figure, axes = new_figure(
            narrow, rows=1, columns=len(endpoints), row_inches=inches, sharey=True
        )
        for axis, endpoint in zip(axes, endpoints, strict=True):
            found = [v for v in shown if v.hypothesis.endpoint == endpoint]
            forest_panel(axis, pen, found, lines)
            axis.set_title(endpoint)
        names = [textwrap.fill(line, 22) if narrow else line for line in lines]
        axes[0].set_yticks(range(len(lines)), names[::-1])
        for axis in axes:
            axis.tick_params(axis="y", labelsize=6 if narrow else 8)
        axes[0].set_ylim(-0.6, len(lines) - 0.4)
        return figure

    rows = [
        (
            *(v.hypothesis.text, effect(v), interval(v), margin(v.hypothesis)),
            *(str(len(v.pairs)), v.verdict),
        )
        for v in verdicts
    ]
    return Picture(
        name="differences",
        title="Paired differences, with 95% intervals",
        caption="Each line is one hypothesis: arm against reference, paired by seed (BCa "
        "bootstrap). Within the shaded zone a difference is smaller than the margin. Filled: "
        "supported; crossed: refuted; hollow: inconclusive.",
        kinds=tuple(dict.fromkeys(v.kind for v in shown)),
        draw=draw,
        table=(("hypothesis", "effect", "95% interval", "margin", "seeds", "verdict"), rows),
    )


def forest_panel(axis: Any, pen: Pen, found: Sequence[Verdict], lines: Sequence[str]) -> None:
    """Draw the hypotheses about one endpoint; a difference of shares is in points."""
    ratio = found[0].hypothesis.scale == "ratio"
    shares = found[0].hypothesis.endpoint in ACCURACIES
    factor = 100.0 if shares else 1.0
    fills = {"supported": ("series-2", "o"), "refuted": ("series-4", "X")}
    for v in found:
        y = len(lines) - 1 - lines.index(line_label(v))
        m = v.hypothesis.margin
        zone = (1 / (1 + m), 1 + m) if ratio else (-m, m)
        axis.fill_between([factor * z for z in zone], y - 0.5, y + 0.5, color=pen["zone"], lw=0)
        name, shape = fills.get(v.verdict, ("muted", "o"))
        axis.plot([factor * (v.low or 0), factor * (v.high or 0)], [y, y], color=pen[name], lw=1.5)
        face = pen[name] if v.verdict in fills else "none"
        axis.plot([factor * (v.estimate or 0)], [y], shape, color=pen[name], mfc=face, ms=5)
    axis.axvline(1 if ratio else 0, color=pen["muted"], lw=0.8)
    axis.grid(visible=False, axis="y")
    if not ratio:
        axis.set_xlabel("arm - reference" + (", points" if shares else ""))
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("arm / reference")


def line_label(verdict: Verdict) -> str:
    """Name the arms of a hypothesis beside their line."""
    h = verdict.hypothesis
    arm, reference, where = h.labels
    claim = "" if h.claim == "better" else f", {h.claim}"
    return f"{arm} vs {reference}{f', {where}' if where else ''}{claim}"


def windows(curves: Mapping[str, Mapping[str, Curve]], key: str, tune: Tune) -> Picture:
    """What a study was tuned by, over what was tuned; the value that was chosen is marked."""
    order = order_of(curves)
    name_of_key = short(key).replace("_", " ")
    cost = endpoint_of(tune.endpoint)
    ratio = cost is not None and cost.scale == "ratio"
    apart = "" if tune.split == "test" else ", which share no seed with the results"
    window = "a tenth" if ratio else "a point"

    def draw(pen: Pen, narrow: bool) -> Figure:
        rows, columns = columns_for(len(curves))
        figure, axes = new_figure(narrow, rows=rows, columns=columns, row_inches=2.7, sharey=True)
        for axis, (title, arms) in zip(axes, curves.items(), strict=False):
            axis.set_title(title)
            for name, curve in arms.items():
                line = curve.line(key)
                style = pen.series(order[name])
                x, y = [v for v, _ in line], [shown_badness(b, ratio) for _, b in line]
                axis.plot(x, y, marker=marker(order[name]), ms=3, lw=1.1, **style)
                best = dict(curve.best or ()).get(key)
                chosen = [(v, shown_badness(b, ratio)) for v, b in line if v == best]
                axis.plot(*zip(*chosen, strict=True), "o", ms=9, mfc="none", color=style["color"])
            axis.set_xscale("log")
            axis.set_xlabel(name_of_key)
            if ratio:
                axis.set_yscale("log")
        axes[0].set_ylabel(f"{tune.endpoint}, {tune.split} split")
        finish(figure, axes, len(curves), narrow, order, pen)
        return figure

    rows = []
    for title, arms in curves.items():
        for name, curve in arms.items():
            low, high = curve.window(key) or (np.nan, np.nan)
            decades = f"{np.log10(high / low):.2f}"
            tried = ", ".join(f"{v:g}: {shown_badness(b, ratio):.3g}" for v, b in curve.line(key))
            chosen = f"{dict(curve.best or ()).get(key, np.nan):g}"
            rows.append((title, name, chosen, f"{low:g} to {high:g}", decades, tried))
    head = ("setting", "arm", "chosen", f"within {window}", "decades", tune.endpoint)
    return Picture(
        name=f"tuning-{short(key)}",
        title=f"How wide the good {name_of_key} is",
        caption=f"Mean over the tuning runs{apart}. Circled: the value that was chosen. The window "
        f"is what lies within {window} of the best; values beyond the ends were not tried, and "
        "those with which a run failed are left out.",
        kinds=("counted",),
        draw=draw,
        table=(head, rows),
    )


def shown_badness(badness: float, ratio: bool) -> float:
    """Return what a tuning run's badness stands for: a cost, or an accuracy in percent."""
    return math.exp(badness) if ratio else -100 * badness
