"""The figures of a report that look inside: layers, clients' bills, who holds what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedsim import units
from fedsim.ledger.read import Run
from fedsim.records import Kind
from fedsim.report.drawing import Pen, Picture, columns_for, hide_unused, marker, new_figure
from fedsim.report.pictures import finish, order_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is shown of a layer's activation, and of a client's bill.
HEALTH = (
    ("zero_fraction", "outputs that are 0"),
    ("dead_fraction", "units that are always 0"),
    ("saturated_fraction", "outputs at a bound"),
)
MOST_CLIENTS = 200  # columns of a partition that can be told apart


@dataclass(frozen=True)
class Entry:
    """A line of a client's bill."""

    column: str
    title: str
    kind: Kind
    unit: Callable[[float], str]


BILL = (
    Entry("cpu_seconds", "training, CPU", "measured", units.seconds),
    Entry("train_flops", "training, arithmetic", "counted", units.flops),
    Entry("wire_bytes", "update on the wire", "counted", units.size),
    Entry("saved_bytes", "saved for backward", "counted", units.size),
    Entry("peak_memory_bytes", "peak memory", "measured", units.size),
    Entry("modelled_seconds", "on the modelled device", "modelled", units.seconds),
)
Layers = Mapping[str, Mapping[str, float]]  # layer to figure to value


def layer_health(runs: Sequence[Run]) -> Layers:
    """Average an arm's layers, after local training, over clients and the rounds that looked."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        after = run.layers[(run.layers.phase == "after").fillna(False)]
        for layer, rows in after.groupby("layer", sort=False):
            for column, _ in HEALTH:
                values = rows[column].dropna()
                if len(values):
                    found.setdefault(str(layer), {}).setdefault(column, []).append(values.mean())
    return {
        layer: {column: float(np.mean(values)) for column, values in columns.items()}
        for layer, columns in found.items()
    }


def health(panels: Mapping[str, Mapping[str, Layers]]) -> Picture | None:
    """Zero, dead and saturated outputs by layer; None where nobody looked."""
    order = order_of(panels)
    looked = [
        (title, column, label)
        for title, arms in panels.items()
        for column, label in HEALTH
        if any(column in figures for layers in arms.values() for figures in layers.values())
    ]
    if not looked:
        return None

    def draw(pen: Pen, narrow: bool) -> Figure:
        rows, columns = columns_for(len(looked))
        figure, axes = new_figure(narrow, rows=rows, columns=columns, row_inches=2.4)
        for axis, (title, column, label) in zip(axes, looked, strict=False):
            axis.set_title(f"{title}: {label}" if title else label)
            for name, layers in panels[title].items():
                points = [(k, 100 * v[column]) for k, v in layers.items() if column in v]
                if points:
                    shape = marker(order[name])
                    axis.plot(*zip(*points, strict=True), marker=shape, **pen.series(order[name]))
            axis.set_ylabel("%")
            axis.set_ylim(bottom=0)
        finish(figure, axes, len(looked), narrow, order, pen)
        return figure

    rows = [
        (title, name, layer, *(units.shown(figures.get(c), units.percent) for c, _ in HEALTH))
        for title, arms in panels.items()
        for name, layers in arms.items()
        for layer, figures in layers.items()
    ]
    return Picture(
        name="health",
        title="Activation health by layer",
        caption="After local training, on the clients' own data; means over clients, seeds and the "
        "rounds that looked (measure.level = full).",
        kinds=("counted",),
        draw=draw,
        table=(("setting", "arm", "layer", *(label for _, label in HEALTH)), rows),
    )


def bills(arms: Mapping[str, Sequence[Run]]) -> Picture | None:
    """What a client's visit costs, as distributions; None where no ledger says."""
    values = {
        (entry, name): np.concatenate([bill_of(run, entry.column) for run in runs])
        for entry in BILL
        for name, runs in arms.items()
    }
    entries = [e for e in BILL if any(len(values[e, name]) for name in arms)]
    if not entries:
        return None

    def draw(pen: Pen, narrow: bool) -> Figure:
        rows, columns = columns_for(len(entries), 2)
        inches = 0.9 + 0.22 * len(arms)
        figure, axes = new_figure(narrow, rows=rows, columns=columns, row_inches=inches)
        for axis, entry in zip(axes, entries, strict=False):
            axis.set_title(f"{entry.title} ({entry.kind})")
            boxes = [percentiles(values[entry, name]) for name in arms][::-1]
            line = {"color": pen["ink"], "lw": 0.9}
            axis.bxp(
                boxes,
                orientation="horizontal",
                showfliers=False,
                widths=0.6,
                boxprops=line,
                whiskerprops=line,
                capprops=line,
                medianprops={"color": pen["series-1"], "lw": 1.6},
            )
            axis.set_yticks(range(1, len(arms) + 1), list(arms)[::-1], fontsize=8)
            axis.grid(visible=False, axis="y")
            axis.xaxis.set_major_locator(nice_ticks(4))
            axis.xaxis.set_major_formatter(tick_text(boxes, entry.unit))
        hide_unused(axes, len(entries))
        return figure

    rows = [
        (entry.title, entry.kind, name, *(entry.unit(v) for v in spread(values[entry, name])))
        for entry in entries
        for name in arms
        if len(values[entry, name])
    ]
    head = ("figure", "kind", "arm", "5%", "25%", "median", "75%", "95%")
    return Picture(
        name="bills",
        title="The clients' bills",
        caption="A client in a round. Box: the middle half; line: the median; whiskers: from 5% to "
        "95% of all visits.",
        kinds=tuple(dict.fromkeys(entry.kind for entry in entries)),
        draw=draw,
        table=(head, rows),
    )


def tick_text(
    boxes: Sequence[Mapping[str, float]], unit: Callable[[float], str]
) -> Callable[[float, int], str]:
    """Return how a tick is printed: in full where three digits would all be the same."""
    ends = [box[end] for box in boxes for end in ("whislo", "whishi")]
    close = np.nanmax(ends) - np.nanmin(ends) < 0.02 * np.nanmax(np.abs(ends))
    return lambda value, _: (f"{value:,.6g}" if close else unit(value)) if value else "0"


def nice_ticks(most: int) -> Any:
    """Return a locator of few ticks."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most)


def bill_of(run: Run, column: str) -> npt.NDArray[np.float64]:
    """Return a column of the clients whose update was used."""
    used = run.clients[run.clients.status == "ok"]
    return np.asarray(used[column].dropna().to_numpy("float64"))


def spread(values: npt.NDArray[np.float64]) -> list[float]:
    """Return the percentiles that a box shows."""
    return [float(v) for v in np.percentile(values, [5, 25, 50, 75, 95])]


def percentiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return a box as matplotlib wants it."""
    if not len(values):
        return dict.fromkeys(("whislo", "q1", "med", "q3", "whishi"), float("nan"))
    return dict(zip(("whislo", "q1", "med", "q3", "whishi"), spread(values), strict=True))


def partition(counts: Mapping[str, npt.NDArray[np.int64]]) -> Picture:
    """Who holds how many examples of which label.

    Args:
        counts: by setting, examples by client and label, shape (clients, labels).
    """

    def draw(pen: Pen, narrow: bool) -> Figure:
        rows, columns = columns_for(len(counts), 2)
        figure, axes = new_figure(narrow, rows=rows, columns=columns, row_inches=2.2)
        for axis, (title, table) in zip(axes, counts.items(), strict=False):
            shown = table[:MOST_CLIENTS]
            bottom = np.zeros(len(shown))
            for label in range(table.shape[1]):
                style = pen.series(label)
                axis.bar(
                    np.arange(len(shown)),
                    shown[:, label],
                    bottom=bottom,
                    width=1.0,
                    lw=0,
                    color=style["color"],
                    alpha=1.0 if label < 8 else 0.45,
                )
                bottom += shown[:, label]
            axis.set_title(title)
            axis.set_xlabel("client")
            axis.grid(visible=False, axis="x")
        axes[0].set_ylabel("examples, a colour a label")
        hide_unused(axes, len(counts))
        return figure

    rows = []
    for title, table in counts.items():
        sizes, labels = table.sum(axis=1), (table > 0).sum(axis=1)
        rows.append(
            (
                title,
                str(len(table)),
                f"{sizes.min():,} to {sizes.max():,}",
                f"{labels.min()} to {labels.max()}",
                f"{labels.mean():.1f}",
            )
        )
    first = (
        f" (the first {MOST_CLIENTS} clients)"
        if any(len(t) > MOST_CLIENTS for t in counts.values())
        else ""
    )
    return Picture(
        name="partition",
        title="Who holds what",
        caption=f"Training examples by client and label, of the first seed{first}.",
        kinds=("counted",),
        draw=draw,
        table=(("setting", "clients", "examples", "labels a client", "mean"), rows),
    )
