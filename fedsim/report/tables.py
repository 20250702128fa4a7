"""Tables for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from fedsim import units
from fedsim.ledger.read import RunSummary
from fedsim.measure.timings import Interval
from fedsim.report.arms import TIMED, Arm, Spread, kind_of
from fedsim.study.design import label_of
from fedsim.study.figures import to_target
from fedsim.study.published import Beside

# A column of figures: its title, the figure of an arm, and how that is printed.
Column = tuple[str, str, Callable[[float], str]]

# What the columns of the bill mean, by the start of their titles.
MEANINGS = {
    "step share": "share of a training step that the activation takes, by a profile",
    "ns/element": "nanoseconds per element of the activation, forward and backward",
    "saved/step": "bytes that a step keeps for the backward pass",
    "zero": "outputs of hidden layers that are exactly 0, after local training",
    "dead": "hidden units that are 0 on all of a client's data, after local training",
    "compressed": "a client's update after zstd",
    "bytes": "both ways, all clients",
    "CPU": "local training, all clients",
    "device time": "a client's visit, on measure.device",
    "device energy": "a client's visit, on measure.device",
}

# Without a terminal a table is as wide as it needs to be: files and pipes do not wrap.
UNBOUNDED = 10_000


def show(table: Table) -> None:
    """Print a table on standard output."""
    width = None if sys.stdout.isatty() else UNBOUNDED
    Console(width=width, markup=False, emoji=False).print(table)


def plain_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in the house's look; figures stand to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def runs_table(runs: Sequence[RunSummary]) -> Table:
    """A line for each run."""
    table = plain_table(
        "run", "name", "status", "rounds", "accuracy", "started", right=("rounds", "accuracy")
    )
    for run in runs:
        table.add_row(
            str(run.path),
            run.name,
            f"{run.status}: {run.problem}" if run.problem else run.status,
            f"{units.shown(run.rounds, str)}/{units.shown(run.rounds_planned, str)}",
            units.shown(run.test_accuracy, units.percent),
            (run.started or units.MISSING)[:19].replace("T", " "),
        )
    return table


def arms_table(axis: str, arms: Sequence[Arm], targets: Sequence[float]) -> Table:
    """A line for each arm of a study: mean +- standard deviation over the seeds."""
    reach = [(f"rounds to {100 * t:g}%", to_target("rounds", t), rounds_text) for t in targets]
    columns: list[Column] = [
        ("test accuracy", "test_accuracy", units.percent),
        *reach,
        ("client CPU", "cpu_seconds", units.seconds),
        ("uplink", "uplink_bytes", units.size),
    ]
    return figures_table(axis, arms, columns)


def published_rows(found: Sequence[Beside]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows of what others published beside what was found here."""
    head = ("arm", "endpoint", "published", "here", "ratio", "seeds", "source")
    rows: list[tuple[str, ...]] = [
        (
            *(label_of(b.published.arm), b.published.endpoint, f"{b.published.value:g}"),
            units.shown(b.ours) + ("" if b.reached == b.seeds else " (not reached)"),
            units.shown(b.ratio, lambda value: f"{value:.2f}"),
            *(str(b.seeds), b.published.source),
        )
        for b in found
    ]
    return head, rows


def published_table(found: Sequence[Beside]) -> Table:
    """A line for each figure that others published."""
    head, rows = published_rows(found)
    table = plain_table(*head, right=head[2:6])
    for row in rows:
        table.add_row(*row)
    return table


def bill_table(axis: str, arms: Sequence[Arm], target: float | None) -> Table | None:
    """What each arm of a study costs, with each column's kind; None if nobody asked for anything.

    Args:
        axis: names what tells the arms apart.
        target: the accuracy until which bytes and seconds are counted; None for none.
    """
    columns = [
        (f"{title}\n{kind_of(figure)}", figure, unit)
        for title, figure, unit in filled_columns(arms, target)
    ]
    return figures_table(f"{axis}\n", arms, columns) if columns else None


def bill_legend(arms: Sequence[Arm], target: float | None) -> list[str]:
    """Say what each column of the bill means, a line each; arguments as :func:`bill_table`."""
    titles = [title for title, _, _ in filled_columns(arms, target)]
    return [
        f"{title}: {meaning}"
        for title in titles
        for start, meaning in MEANINGS.items()
        if title.startswith(start)
    ]


def filled_columns(arms: Sequence[Arm], target: float | None) -> list[Column]:
    """Return the columns of the bill that somebody asked for; a failed arm cannot say."""
    ran = [arm for arm in arms if not arm.failed]
    return [c for c in bill_columns(target) if any(arm.spread(c[1]).values for arm in ran)]


def bill_columns(target: float | None) -> list[Column]:
    """Return the columns of the bill, those that nobody asked for among them."""
    columns: list[Column] = [
        ("step share", "share_of_step", units.percent),
        ("ns/element", "ns_per_element", units.number),
        ("saved/step", "saved_bytes", units.size),
        ("zero", "hidden_zero_fraction", units.percent),
        ("dead", "hidden_dead_fraction", units.percent),
        ("compressed", "compressed_bytes", units.size),
    ]
    if target is not None:
        reach = f"to {100 * target:g}%"
        columns += [
            (f"bytes {reach}", to_target("bytes", target), units.size),
            (f"CPU {reach}", to_target("cpu_seconds", target), units.seconds),
        ]
    return [
        *columns,
        ("device time", "modelled_seconds_per_client", units.seconds),
        ("device energy", "modelled_joules_per_client", units.joules),
    ]


def figures_table(axis: str, arms: Sequence[Arm], columns: Sequence[Column]) -> Table:
    """A line for each arm, and its figures."""
    titles = [title for title, _, _ in columns]
    table = plain_table(axis, *titles, right=titles)
    for arm in arms:
        table.add_row(arm.label, *(cell(arm, figure, unit) for _, figure, unit in columns))
    return table


def cell(arm: Arm, figure: str, unit: Callable[[float], str]) -> str:
    """Print a figure of an arm; an arm of which no run is complete has its timings alone."""
    if arm.failed and figure not in TIMED:
        return "failed"
    return with_spread(arm.spread(figure), unit)


def dense_line(arms: Sequence[Arm]) -> str | None:
    """Say what a client's update takes uncompressed, and which arms differ in it; None if unknown.

    It is the same for all activations but those that have parameters of their own.
    """
    labels: dict[float, list[str]] = {}
    for arm in arms:
        for value in dict.fromkeys(arm.spread("dense_bytes").reached):
            labels.setdefault(value, []).append(arm.label)
    if not labels:
        return None
    *fewer, most = sorted(labels, key=lambda value: len(labels[value]))
    others = "the others" if len(labels[most]) > 1 else labels[most][0]
    parts = [(", ".join(labels[value]), value) for value in fewer]
    parts.append((others if fewer else "every arm", most))
    said = ", ".join(f"{value:,.0f} bytes for {who}" for who, value in parts)
    return f"dense update: {said} (counted)"


def over_seeds(seeds: int) -> str:
    """Say what the figures of an arm are over its seeds."""
    return f"mean +- standard deviation over {seeds} seeds" if seeds > 1 else "one seed"


def rounds_text(value: float) -> str:
    """A number of rounds."""
    return f"{value:.1f}"


def with_spread(spread: Spread, unit: Callable[[float], str]) -> str:
    """Print mean +- deviation; or how many seeds got there, where not all did."""
    if spread.mean is None:
        return reached_text(len(spread.reached), len(spread.values)) if spread.values else "-"
    if not spread.deviation or unit(spread.mean + spread.deviation) == unit(spread.mean):
        return unit(spread.mean)  # a deviation that the digits shown do not see says nothing
    return f"{unit(spread.mean)} +- {unit(spread.deviation)}"


def reached_text(reached: int, seeds: int) -> str:
    """Say in how many seeds a target was reached, or the run completed."""
    return f"{reached} of {seeds} seeds" if seeds > 1 else "not reached"


def with_interval(figure: Interval, unit: Callable[[float], str]) -> str:
    """Print estimate [low, high]."""
    return f"{unit(figure.estimate)} [{unit(figure.low)}, {unit(figure.high)}]"
