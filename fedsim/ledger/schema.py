"""The ledger's tables, derived from the rows of ``fedsim.records``: one field, one column."""

from __future__ import annotations

import sqlite3
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from operator import attrgetter
from typing import Any, Generic, TypeVar

import numpy as np

from fedsim.ledger.formats import FORMAT_VERSION, stored_name
from fedsim.records import ClientRow, LayerRow, RoundRow
from fedsim.table import ClientTable

SQL_TYPES: dict[type, str] = {int: "INTEGER", float: "REAL", str: "TEXT"}
PANDAS_TYPES: dict[type, str] = {int: "int64", float: "float64", str: "string"}
STORED_AS_THEY_ARE = frozenset((*SQL_TYPES, types.NoneType))

Row = TypeVar("Row", RoundRow, ClientRow, LayerRow)


@dataclass(frozen=True, slots=True)
class Column:
    """A field of a row: its type without ``None``, and whether ``None`` is allowed."""

    name: str
    kind: type
    optional: bool

    @property
    def sql(self) -> str:
        """The column's definition."""
        return f"{self.name} {SQL_TYPES[self.kind]}{'' if self.optional else ' NOT NULL'}"

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

    def store(self, db: sqlite3.Connection, rows: Iterable[Row]) -> None:
        """Insert rows; columns that are blank in a whole table are left out, as they are NULL.

        SQLite makes NULL of NaN too.
        """
        names: Sequence[str] = self._names
        values: Iterable[tuple[object, ...]]
        if isinstance(rows, ClientTable):
            names = [name for name in names if not rows.is_blank(name)]
            values = rows.tuples(names)
        else:
            values = self.values(rows)
        marks = ", ".join("?" for _ in names)
        db.executemany(f"INSERT INTO {self.name} ({', '.join(names)}) VALUES ({marks})", values)

    def select(self, version: int = FORMAT_VERSION) -> str:
        """Return the statement that reads the rows up to a round, in the order of the key.

        It gives today's columns of a ledger of any format; what the format lacks is NULL.
        """
        stored = ((name, stored_name(version, self.name, name)) for name in self._names)
        columns = ", ".join(f"{old or 'NULL'} AS {name}" for name, old in stored)
        order = ", ".join(self.key)
        return f"SELECT {columns} FROM {self.name} WHERE round <= ? ORDER BY {order}"

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def _read(self) -> Callable[[Row], tuple[object, ...]]:
        return attrgetter(*self._names)

    def values(self, rows: Iterable[Row]) -> Iterator[tuple[object, ...]]:
        """Turn rows into what SQLite stores, all columns; NumPy's scalars become Python's."""
        for row in rows:
            values = self._read(row)
            plain = STORED_AS_THEY_ARE.issuperset(map(type, values))
            yield values if plain else tuple(map(_plain, values))

    def rows(self, stored: Iterable[tuple[Any, ...]]) -> list[Row]:
        """Turn what ``select`` gives into rows; a figure that was NaN is None."""
        return [self.row(**dict(zip(self._names, values, strict=True))) for values in stored]


ROUNDS = Table("rounds", RoundRow, ("round",))
CLIENTS = Table("clients", ClientRow, ("round", "client"))
LAYERS = Table("layers", LayerRow, ("round", "client", "layer", "phase"))


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
