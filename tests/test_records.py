"""The rows of the ledger: what every figure says of itself."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from fedsim.ledger.schema import CLIENTS, LAYERS, ROUNDS, Table
from fedsim.records import SERVER, ClientRow, Kind, LayerRow, Manifest, RoundRow, figure, figures

TABLES = (ROUNDS, CLIENTS, LAYERS)
FIGURES = [(table, column) for table in TABLES for column in figures(table.row).values()]

# What a figure's last word says about its unit.
UNITS = {
    *("seconds", "bytes", "bits", "joules"),
    *("flops", "ops", "elements"),
    *("fraction", "energy", "accuracy", "cosine", "norm", "loss"),
}
# The names that end otherwise: counts of things, shares and ratios, and losses in nats.
WITHOUT_UNIT = {
    *("examples", "steps", "examples_processed", "threads", "cohort", "parameters"),
    *("accuracy_after", "zero_fraction_without_blank", "codec_error"),
    *("gradient_ratio_before", "gradient_ratio_after"),
    *("preactivation_mean", "preactivation_std"),
    *("clip_scale", "noise_std", "signal_to_noise", "epsilon"),
    *("loss_first_step", "loss_last_step", "loss_before", "loss_after"),
}
# What is neither a figure, nor a key, nor text: it is always there.
TALLIES = {"clients_trained", "clients_failed"}


def named(value: Any) -> str:
    return value.name if isinstance(value, Table | dataclasses.Field) else str(value)


@pytest.mark.parametrize(("table", "column"), FIGURES, ids=named)
def test_a_figure_says_its_kind_and_may_be_missing(
    table: Table[Any], column: dataclasses.Field[Any]
) -> None:
    assert column.metadata["kind"] in typing.get_args(Kind)
    assert isinstance(column.metadata["signed"], bool)
    assert column.default is None
    (stored,) = (c for c in table.columns if c.name == column.name)
    assert stored.optional
    assert stored.kind in (int, float)


@pytest.mark.parametrize("table", TABLES, ids=named)
def test_what_is_no_figure_is_a_key_a_text_or_a_tally(table: Table[Any]) -> None:
    others = {c.name: c for c in table.columns if c.name not in figures(table.row)}
    texts = {name for name, column in others.items() if column.kind is str}
    assert set(others) - texts - TALLIES <= set(table.key)
    # SQLite makes NULL of NaN, so that a number with a fraction has to be one that may be missing.
    assert float not in {column.kind for column in others.values()}


@pytest.mark.parametrize(("table", "column"), FIGURES, ids=named)
def test_names_carry_units(table: Table[Any], column: dataclasses.Field[Any]) -> None:
    assert (column.name.split("_")[-1] in UNITS) != (column.name in WITHOUT_UNIT)


def test_the_names_without_a_unit_are_columns() -> None:
    assert {column.name for _, column in FIGURES} >= WITHOUT_UNIT


@pytest.mark.parametrize(("table", "column"), FIGURES, ids=named)
def test_the_kind_follows_from_the_name(table: Table[Any], column: dataclasses.Field[Any]) -> None:
    """Clocks and meters measure, profiles model, and all else is counted."""
    name = column.name
    measured = {"threads", "cohort", "peak_memory_bytes", "worker_idle_fraction"}
    meter = name.startswith("container_")
    expected = "counted"
    if name.startswith("modelled_"):
        expected = "modelled"
    elif name.endswith(("_seconds", "_joules")) or name in measured or meter:
        expected = "measured"
    assert column.metadata["kind"] == expected


@pytest.mark.parametrize("row", [RoundRow, ClientRow, LayerRow, Manifest])
def test_rows_are_made_by_name_and_never_change(row: Any) -> None:
    assert row.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(row))
    assert "__dict__" not in dir(row)  # slots: a misspelled figure is an error


def test_a_figure_is_missing_until_it_is_given() -> None:
    row = ClientRow(round=1, client=0)
    assert {getattr(row, name) for name in figures(ClientRow)} == {None}
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.examples = 1  # type: ignore[misc]


def test_the_declaration_of_a_figure() -> None:
    @dataclasses.dataclass
    class Row:
        key: int
        loss: float | None = figure("counted", signed=True)
        cpu_seconds: float | None = figure("measured")

    kinds = {name: (f.metadata["kind"], f.metadata["signed"]) for name, f in figures(Row).items()}
    assert kinds == {"loss": ("counted", True), "cpu_seconds": ("measured", False)}


def test_the_server_is_no_partition() -> None:
    assert SERVER < 0
