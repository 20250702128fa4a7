"""What deployed clients cost as their containers saw it, beside their processes' own clocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedsim import units
from fedsim.ledger.read import Run
from fedsim.report.page import Section
from fedsim.study.figures import mean

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

MARK = "measured (container)"
MOST_ROWS = 50  # of clients

# A column of the table: its title, its mark, the ledger's column, and how that is printed.
Entry = tuple[str, str, str, Callable[[float], str]]
PEAK = "container_peak_memory_bytes"
ENTRIES: Sequence[Entry] = (
    ("training CPU, process", "measured", "cpu_seconds", units.seconds),
    ("CPU", MARK, "container_cpu_seconds", units.seconds),
    ("start-up CPU", MARK, "startup_cpu_seconds", units.seconds),
    ("start-up wall", MARK, "startup_wall_seconds", units.seconds),
    ("peak memory", MARK, PEAK, units.size),
    ("received", MARK, "container_received_bytes", units.size),
    ("model, as a message", "counted", "downlink_wire_bytes", units.size),
    ("sent", MARK, "container_sent_bytes", units.size),
    ("update, as a message", "counted", "wire_bytes", units.size),
)
MARKED = [column for _, mark, column, _ in ENTRIES if mark == MARK]
TEXT = (
    "Means over a client's visits, but for the peak, which is the highest since its container "
    "began. CPU is of all that the container ran from the start of the app to its reply, training "
    "included; start-up is the process's own, before that.",
    "Bytes are those of the network interfaces since the previous visit, framing and polling "
    "included; a reply goes up after its bill, so that it shows in the next visit.",
)


def containers_section(run: Run) -> Section | None:
    """Return what the clients cost, a line each; None where none ran in a container."""
    used = run.clients[run.clients.status == "ok"]
    told = used[used[MARKED].notna().any(axis=1)]
    if not len(told):
        return None
    rows: list[tuple[str, ...]] = [
        (str(client), str(len(visits)), *(cell(visits, entry) for entry in ENTRIES))
        for client, visits in told.groupby("client")
    ]
    more = f"The first {MOST_ROWS} of {len(rows)} clients." if len(rows) > MOST_ROWS else ""
    head = ("client", "visits", *(f"{title}: {mark}" for title, mark, _, _ in ENTRIES))
    return Section(
        name="containers",
        title="The clients' containers",
        text=(*TEXT, more) if more else TEXT,
        table=(head, rows[:MOST_ROWS]),
    )


def cell(visits: pd.DataFrame, entry: Entry) -> str:
    """Return one figure of a client over its visits."""
    _, _, column, unit = entry
    values = visits[column]
    return units.shown(mean(values.dropna().nlargest(1) if column == PEAK else values), unit)
