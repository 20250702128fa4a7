"""The rows of a round's clients as columns, so that no client costs an object on its way.

A cohort of thousands comes from the workers as arrays, and goes to the ledger as arrays. Whoever
wants a row asks for it: a table is also the sequence of its ``ClientRow``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fedsim.records import ClientRow

# What is the same or absent for all is not repeated: a scalar or None.
Column = Sequence[Any] | np.ndarray | int | float | str | None
NAMES = tuple(field.name for field in fields(ClientRow))
DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for field in fields(ClientRow)
    if field.name not in ("round", "client")
}


class ClientTable(Sequence[ClientRow]):
    """Rows of one round's clients, in the order of the clients.

    NaN in a column of amounts stands for a figure that is blank, as it does in the ledger; in a
    column of counts, which are whole, None does.
    """

    def __init__(
        self, *, round: int, client: Sequence[int] | np.ndarray, **columns: Column
    ) -> None:
        """Take columns by the names of ``ClientRow``'s fields; those left out are blank.

        Args:
            round: of all rows.
            client: partition ids, (clients,).
            columns: each (clients,), or one value for all.

        Raises:
            ValueError: a name is unknown, or a column has another length.
        """
        if unknown := columns.keys() - DEFAULTS.keys():
            raise ValueError(f"no columns of a client's row: {sorted(unknown)}")
        self.round = round
        self._length = len(client)
        self._columns: dict[str, Column] = {**DEFAULTS, **columns, "round": round, "client": client}
        for name, values in self._columns.items():
            if not isinstance(values, (int, float, str, type(None))) and len(values) != len(client):
                raise ValueError(f"{name}: {len(values)} values for {len(client)} clients")

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> ClientRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[ClientRow]: ...
    def __getitem__(self, index: int | slice) -> ClientRow | list[ClientRow]:
        return self.rows()[index]

    def __iter__(self) -> Iterator[ClientRow]:
        return iter(self.rows())

    def rows(self) -> list[ClientRow]:
        """Return the rows as objects, made anew at every call."""
        return [ClientRow(**dict(zip(NAMES, values, strict=True))) for values in self.tuples(NAMES)]

    def column(self, name: str) -> list[Any]:
        """Return a column's values, one a client; None where it is blank."""
        values = self._columns[name]
        if isinstance(values, (int, float, str, type(None))):
            return [values] * self._length
        if not isinstance(values, np.ndarray):
            return list(values)
        plain: list[Any] = values.tolist()
        if values.dtype.kind == "f" and np.isnan(values).any():
            return [None if value != value else value for value in plain]
        return plain

    @property
    def all_ok(self) -> bool:
        """Whether every client did what it was asked."""
        return self._columns["status"] == "ok"

    def blank(self, name: str) -> npt.NDArray[np.bool_]:
        """Say of each client whether its figure is blank, (clients,)."""
        values = self._columns[name]
        if isinstance(values, (int, float, str, type(None))):
            return np.full(self._length, values is None)
        if isinstance(values, np.ndarray):
            return np.isnan(values) if values.dtype.kind == "f" else np.zeros(self._length, bool)
        return np.array([value is None for value in values], bool)

    def counts(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column of counts, which are whole, (clients,); 0 where it is blank."""
        values = self._columns[name]
        if isinstance(values, np.ndarray) and values.dtype.kind == "i":
            return values
        return np.array([value or 0 for value in self.column(name)], np.int64)

    def is_blank(self, name: str) -> bool:
        """Say whether nobody has a figure, without looking at one."""
        return self._columns[name] is None

    def tuples(self, names: Iterable[str]) -> Iterator[tuple[Any, ...]]:
        """Yield what each client has in these columns."""
        return zip(*(self.column(name) for name in names), strict=True)

    def with_columns(self, columns: Mapping[str, Column]) -> ClientTable:
        """Return a table with these columns in place of its own."""
        given = {**self._columns, **columns}
        client: Any = given.pop("client")
        given.pop("round")
        return ClientTable(round=self.round, client=client, **given)


Clients = Sequence[ClientRow] | ClientTable


def column(clients: Clients, name: str) -> list[Any]:
    """Return one figure of every client, from a table or from rows."""
    if isinstance(clients, ClientTable):
        return clients.column(name)
    return [getattr(row, name) for row in clients]


def blank(clients: Clients, name: str) -> npt.NDArray[np.bool_]:
    """Say of every client whether a figure is blank, from a table or from rows."""
    if isinstance(clients, ClientTable):
        return clients.blank(name)
    return np.array([getattr(row, name) is None for row in clients], bool)
