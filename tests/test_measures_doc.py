"""docs/measures.md says what every column of the ledger means, and speaks of no other."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fedsim.ledger.schema import CLIENTS, LAYERS, ROUNDS, Table
from fedsim.measure.timings import Timing
from fedsim.overhead import LevelCost
from fedsim.records import figures
from fedsim.report.arms import COSTS, FIGURES, TIMED

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "measures.md").read_text(encoding="utf-8")
TABLES = (ROUNDS, CLIENTS, LAYERS)
HEADER = ["column", "unit", "kind", "definition", "what it does not capture", "source"]
LEVELS = ["off", "light", "full"]

# What reports, studies and benches derive from the tables, and the kind of each.
TIMINGS = (*TIMED, *(field.name for field in fields(Timing) if field.name not in TIMED))
PRICES = [f.name for f in fields(LevelCost) if f.name not in ("level", "bound")]
DERIVED = {
    **FIGURES,
    **{f"{cost}_to_target": kind for cost, kind in COSTS.items()},
    **dict.fromkeys((*TIMINGS, *PRICES), "measured"),
    "largest_batch": "counted",
}
# The kind of what is no figure.
OTHERS = {
    **dict.fromkeys(("round", "client", "layer", "phase"), "key"),
    **dict.fromkeys(("status", "error"), "text"),
    **dict.fromkeys(("clients_trained", "clients_failed"), "counted"),
}
# The unit that a name ends with.
UNITS = {
    **{"seconds": "seconds", "bytes": "bytes", "bits": "bits", "joules": "joules"},
    **{"flops": "FLOPs", "ops": "operations", "elements": "elements"},
    **{"fraction": "share", "energy": "share", "accuracy": "share"},
    **{"cosine": "none", "norm": "none", "loss": "nats"},
    **{
        "gini": "none",
        "decile": "share",
        "difference": "share",
        "ns": "nanoseconds",
    },
}


def section(title: str) -> str:
    (found,) = re.findall(rf"^## {title}$\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    return str(found)


def lines(title: str) -> list[list[str]]:
    """Return the cells of the one table in a section, its header first."""
    rows = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert set("".join(cells[1])) == {"-"}
    return [cells[0], *cells[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def documented(table: Table[Any]) -> dict[str, list[str]]:
    """Return the other cells by column."""
    return {names(column)[0]: cells for column, *cells in lines(table.name)[1:]}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_column_has_one_line_and_no_other_has(table: Table[Any]) -> None:
    header, *rows = lines(table.name)
    assert header == HEADER
    described = [column for column, *_ in rows]
    assert described == [f"`{column.name}`" for column in table.columns]
    assert all(len(row) == len(HEADER) and all(row) for row in rows)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_kinds_are_those_of_the_rows(table: Table[Any]) -> None:
    declared = {name: f.metadata["kind"] for name, f in figures(table.row).items()}
    for name, (_, kind, *_) in documented(table).items():
        assert kind == (declared.get(name) or OTHERS[name]), name


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_units_are_those_in_the_names(table: Table[Any]) -> None:
    for name, (unit, *_) in documented(table).items():
        assert unit == UNITS.get(name.split("_")[-1], unit), name


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_figure_says_what_it_does_not_capture(table: Table[Any]) -> None:
    for name, (_, kind, definition, missed, source) in documented(table).items():
        if name in figures(table.row) and name != "parameters":
            assert len(definition) > 20, name
            assert len(missed) > 5, name
        assert kind != "modelled" or "configs/devices" in source


def test_a_level_fills_every_column_once() -> None:
    header, *rows = lines("Levels")
    assert [names(row[0]) for row in rows] == [[level] for level in LEVELS]
    for position, cell in enumerate(header[1:], start=1):
        (table,) = (t for t in TABLES if t.name in names(cell))
        filled = Counter(name for row in rows for name in names(row[position]))
        others = {column.name for column in table.columns} - set(table.key)
        assert filled == Counter(others)


def test_every_figure_of_reports_has_one_line_and_no_other_has() -> None:
    header, *rows = lines("Figures of reports")
    assert header == ["figure", *HEADER[1:3], "definition", "what it leaves out"]
    assert [figure for figure, *_ in rows] == [f"`{name}`" for name in DERIVED]
    for figure, unit, kind, definition, missed in rows:
        (name,) = names(figure)
        stem = name.removesuffix("_to_target").removesuffix("_per_client")
        assert kind == DERIVED[name], name
        assert unit == UNITS.get(stem.split("_")[-1], unit), name
        assert len(definition) > 20, name
        assert len(missed) > 5, name


def test_nothing_recommends_modelled_figures_for_activations() -> None:
    """Every elementwise operation is charged a pass over memory, and a fused kernel makes one."""
    _, _, _, missed, _ = documented(CLIENTS)["modelled_seconds"]
    assert "ratios between activations come out too large" in missed
    assert "Good for ratios" not in TEXT


def test_names_in_the_text_are_columns_settings_or_files() -> None:
    """A word in code style that could be a column is one."""
    columns = {column.name for table in TABLES for column in table.columns}
    known = columns | {table.name for table in TABLES} | set(LEVELS) | {"blanks", "global"}
    known |= set(DERIVED)
    assert set(names(TEXT)) - known == set()


def test_links_lead_to_files_and_named_papers_are_listed() -> None:
    # Written beside the formula that it explains; a file of its own.
    targets = set(re.findall(r"\]\(([^)]+)\)", TEXT))
    assert {t for t in targets if not (DOCS / t).is_file()} == set()
    cited = set(re.findall(r"\b([A-Z]\w+)(?: et al\.| and [A-Z][a-z]+)? (\d{4})\b", TEXT))
    assert ("Shannon", "1948") in cited
    listed = section("Sources")
    for author, year in cited:
        assert re.search(rf"{author}\b.*{year}", listed), (author, year)
