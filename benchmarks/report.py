"""Tables of what was measured: for the terminal, and for ``docs/performance.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import summary
from benchmarks.cases import DOES_NOT, Case, Entry
from benchmarks.summary import Row, Spread

LIGHT_BOUND = 0.03  # what level light may cost over off
BEGIN_MARK, END_MARK = "<!-- results: begin -->", "<!-- results: end -->"


MEMORY = ("driver", "worker", "all")


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is the name of the line."""

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return a table for each case that was measured, and one for the price of measuring."""
    found = [TABLES[case.table](case, rows) for case in summary.measured_cases(rows)]
    measuring = levels(rows)
    return [*found, measuring] if measuring.lines else found


def rates(case: Case, rows: Sequence[Row]) -> Table:
    """Clients a second, fedsim's ratio to every other entry, memory."""
    first = summary.counted(rows, case.name, case.entries[0].label)
    head = ("", "clients/s", "runs", "ratio", "target", "", "start", "first round", *MEMORY)
    lines = []
    for entry in case.entries:
        if mine := summary.counted(rows, case.name, entry.label):
            speed = summary.spread(mine, summary.clients_per_second)
            against = summary.ratio(first, mine) if entry is not case.entries[0] else None
            lines.append(
                (
                    f"{entry.label} (inline)" if is_inline(mine) else entry.label,
                    shown(speed, number),
                    str(len(mine)),
                    shown(against, times),
                    times(entry.target) if entry.target else "",
                    verdict(entry, against),
                    shown_middle(summary.spread(mine, lambda r: r.get("start_seconds")), seconds),
                    shown_middle(summary.spread(mine, first_round), seconds),
                    shown_middle(summary.spread(mine, summary.driver_bytes), megabytes),
                    shown_middle(summary.spread(mine, summary.worker_bytes), megabytes),
                    shown_middle(summary.spread(mine, summary.total_pss), megabytes),
                )
            )
    return Table(case.title, head, tuple(lines))


def is_inline(rows: Sequence[Row]) -> bool:
    """Say whether fedsim chose to train in its own process."""
    return any(row.get("engine") == "inline" for row in rows)


def levels(rows: Sequence[Row]) -> Table:
    """What level light costs over off, in the cases in which fedsim ran at both."""
    lines = []
    told = summary.with_levels(rows)
    for case in summary.measured_cases(told):
        if price := summary.spread([r for r in told if r["case"] == case.name], summary.price):
            kept = "yes" if price.middle <= LIGHT_BOUND else "no"
            lines.append((case.title, shown(price, percent), percent(LIGHT_BOUND), kept))
    title = "measuring at level light: how much longer a round is than at off"
    return Table(title, ("", "longer by", "bound", "kept"), tuple(lines))


def cold(case: Case, rows: Sequence[Row]) -> Table:
    """Seconds to the first round's end, and to the end of the command."""
    lines = []
    for entry in case.entries:
        if mine := summary.counted(rows, case.name, entry.label):
            first = summary.spread(mine, lambda row: row["cold_seconds"])
            whole = summary.spread(mine, lambda row: row["whole_seconds"])
            lines.append((f"engine {entry.label}", shown(first, seconds), shown(whole, seconds)))
    return Table(case.title, ("", "first round done", "command done"), tuple(lines))


def over_rounds(case: Case, rows: Sequence[Row]) -> Table:
    """Resident memory after some rounds and after many."""
    lines = []
    for entry in case.entries:
        for row in summary.counted(rows, case.name, entry.label):
            for done, memory in row["memory_at"].items():
                workers = [megabytes(worker["rss"]) for worker in memory["workers"]]
                driver = megabytes(memory["driver"]["rss"])
                lines.append((f"after round {done}", driver, " + ".join(workers)))
    return Table(case.title, ("", "driver", "workers"), tuple(lines))


TABLES = {"rates": rates, "cold": cold, "memory": over_rounds}


def verdict(entry: Entry, against: Spread | None) -> str:
    """Say whether the target was reached; nothing where there is none."""
    if entry.target is None or against is None:
        return ""
    return "reached" if against.middle >= entry.target else "not reached"


def first_round(row: Row) -> float:
    """Return the seconds of a run's first round."""
    return row["first_round_seconds"]


def shown(spread: Spread | None, unit: Any) -> str:
    """Return median [least - most]; a star where disturbed runs had to be counted."""
    if spread is None:
        return ""
    star = "*" if spread.disturbed else ""
    return f"{unit(spread.middle)} [{unit(spread.low)} - {unit(spread.high)}]{star}"


def shown_middle(spread: Spread | None, unit: Any) -> str:
    """Return the median alone."""
    return "" if spread is None else unit(spread.middle)


def number(value: float) -> str:
    """Return three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(value: float) -> str:
    """Return a ratio."""
    return f"{value:.0f}x" if value >= 100 else f"{value:.3g}x"


def percent(value: float) -> str:
    """Return a share."""
    return f"{value:.1%}"


def seconds(value: float) -> str:
    """Return a duration."""
    return f"{value:.1f} s" if value >= 1 else f"{1e3 * value:.0f} ms"


def megabytes(value: float) -> str:
    """Return a size."""
    return f"{value / 1e6:,.0f} MB"


def as_text(table: Table) -> str:
    """Lay a table out for the terminal."""
    lines = [table.head, *table.lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    body = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join([table.title, *(f"  {line.rstrip()}" for line in body)])


def as_markdown(table: Table) -> str:
    """Lay a table out for a document."""
    lines = [table.head, tuple("---" for _ in table.head), *table.lines]
    return "\n".join([f"**{table.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def document(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the generated part of ``docs/performance.md``."""
    labels = {row["label"] for row in rows}
    stars = any(row["counted"] and row["disturbed"] for row in rows)
    parts = [
        machine_line(about),
        *(as_markdown(table) for table in tables(rows)),
        "\n".join(f"- `{label}`: {text}" for label, text in DOES_NOT.items() if label in labels),
    ]
    if stars:
        parts.append("\\* among these are runs that others on the machine disturbed.")
    return "\n\n".join(parts)


def machine_line(about: Mapping[str, Any]) -> str:
    """Say where and with what this was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['processor']}, {about['cores']} cores, {about['system']}; {versions}; commit "
        f"`{about['commit']}`, {about['date']}. Median [least - most] of so many runs, "
        f"interleaved; *ratio* is fedsim's speed over the line's, run by run."
    )


def rewrite(path: Path, generated: str) -> None:
    """Put the generated part between the marks of a document, and leave all else as it is.

    Raises:
        ValueError: the document lacks the marks.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN_MARK)
    _, end, after = rest.partition(END_MARK)
    if not begin or not end:
        raise ValueError(f"{path}: has no part between {BEGIN_MARK} and {END_MARK}")
    path.write_text(f"{before}{begin}\n\n{generated}\n\n{end}{after}", encoding="utf-8")
