"""The ledger's tables, derived from the rows of ``fedsim.records``: one field, one column."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from fedsim.records import ClientRow, LayerRow, RoundRow

# A change of the rows or of the tables below is a new version: a line here, a reader for the old
# ones, and a tests/ledger_v<N>.sql of the new one.
FORMAT_HISTORY = {
    1: "rounds, clients, layers; the clients' last states; the checkpoints kept on disk",
}
FORMAT_VERSION = max(FORMAT_HISTORY)

SQL_TYPES: dict[type, str] = {int: "INTEGER", float: "REAL", str: "TEXT"}
PANDAS_TYPES: dict[type, str] = {int: "int64", float: "float64", str: "string"}

Row = TypeVar("Row", RoundRow, ClientRow, LayerRow)


@dataclass(frozen=True, slots=True)
class Column:
    """A field of a row: its type without ``None``, and whether ``None`` is allowed."""

    name: str
    kind: type
    optional: bool

    @property
    def sql(self) -> str:
        """The column's definition. Floats may be NULL, which is how SQLite stores NaN."""
        required = "" if self.optional or self.kind is float else " NOT NULL"
        return f"{self.name} {SQL_TYPES[self.kind]}{required}"

    @property
    def pandas(self) -> str:
        """The column's type in a data frame."""
        return "Int64" if self.kind is int and self.optional else PANDAS_TYPES[self.kind]


@dataclass(frozen=True)
class Table(Generic[Row]):
    """A table of the ledger: its name, the dataclass of its rows, its primary key."""

    name: str
    row: type[Row]
    key: tuple[str, ...]

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in the order of the dataclass's fields."""
        hints = typing.get_type_hints(self.row)
        return tuple(_column(field.name, hints[field.name]) for field in fields(self.row))

    @property
    def create(self) -> str:
        """The statement that creates the table."""
        body = ", ".join(column.sql for column in self.columns)
        return f"CREATE TABLE {self.name} ({body}, PRIMARY KEY ({', '.join(self.key)})) STRICT"

    @property
    def insert(self) -> str:
        """The statement that inserts one row, given as ``values`` makes it."""
        marks = ", ".join("?" for _ in self.columns)
        return f"INSERT INTO {self.name} ({self._names}) VALUES ({marks})"

    @property
    def select(self) -> str:
        """The statement that reads the rows up to a round, in the order of the key."""
        order = ", ".join(self.key)
        return f"SELECT {self._names} FROM {self.name} WHERE round <= ? ORDER BY {order}"

    @property
    def _names(self) -> str:
        return ", ".join(column.name for column in self.columns)

    def values(self, rows: Iterable[Row]) -> Iterator[tuple[object, ...]]:
        """Turn rows into what SQLite stores; NumPy's scalars become Python's, NaN becomes NULL."""
        return (tuple(_plain(getattr(row, c.name)) for c in self.columns) for row in rows)

    def rows(self, stored: Iterable[tuple[Any, ...]]) -> list[Row]:
        """Turn what ``select`` gives into rows; NULL is NaN where ``None`` is not allowed."""
        return [self.row(**self._figures(values)) for values in stored]

    def _figures(self, values: tuple[Any, ...]) -> dict[str, Any]:
        return {
            column.name: math.nan if value is None and not column.optional else value
            for column, value in zip(self.columns, values, strict=True)
        }


ROUNDS = Table("rounds", RoundRow, ("round",))
CLIENTS = Table("clients", ClientRow, ("round", "client"))
LAYERS = Table("layers", LayerRow, ("round", "client", "layer"))


def statements() -> tuple[str, ...]:
    """Return what creates an empty ledger."""
    return (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) STRICT",
        ROUNDS.create,
        CLIENTS.create,
        LAYERS.create,
        "CREATE TABLE client_states (client INTEGER PRIMARY KEY, state BLOB NOT NULL) STRICT",
        "CREATE TABLE checkpoints"
        " (round INTEGER PRIMARY KEY, file TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT",
    )


def _column(name: str, hint: Any) -> Column:
    """Read a field's annotation: int, float, str or a Literal of strings, perhaps ``| None``."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    (kind,) = (option for option in options if option is not types.NoneType)
    if typing.get_origin(kind) is typing.Literal:
        (kind,) = {type(value) for value in typing.get_args(kind)}
    return Column(name, kind, optional=types.NoneType in options)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value
