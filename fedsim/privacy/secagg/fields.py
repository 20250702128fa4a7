"""Strict reading of records: named bytes, integers, and lists of one of them.

Nothing that a record says is believed before its type, its length and its order were checked. What
is wrong raises ``SecureAggregationRefused``, a ``ValueError``, that names the record and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NoReturn

from fedsim.errors import SecureAggregationRefused
from fedsim.privacy.secagg.messages import LARGEST_ID

Value = bytes | int | list[int] | list[bytes]
Record = dict[str, Value]


class Reader:
    """A record that is read field by field.

    Args:
        what: names the record in messages, such as ``"unmasking"``.
        record: any mapping; only the types that fields are asked for are accepted.
    """

    def __init__(self, what: str, record: Mapping[str, object]) -> None:
        self.what, self.record = what, record

    def expect(self, names: Iterable[str]) -> None:
        """Refuse a record that has not exactly these fields."""
        expected, found = set(names), set(self.record)
        if expected != found:
            lacks, extra = sorted(expected - found), sorted(map(str, found - expected))
            self.refuse(f"lacks the fields {lacks} and has {extra} too many")

    def integer(self, name: str, low: int = 0, high: int = LARGEST_ID) -> int:
        """Return an integer from ``low`` to ``high``."""
        return self._integer(name, self._get(name), low, high)

    def blob(self, name: str, low: int, high: int | None = None) -> bytes:
        """Return bytes of a length from ``low`` to ``high``, or of exactly ``low``."""
        return self._blob(name, self._get(name), low, low if high is None else high)

    def ids(self, name: str) -> tuple[int, ...]:
        """Return ids, which have to be in ascending order, so that none is there twice."""
        values = [self._integer(name, value, 0, LARGEST_ID) for value in self._list(name)]
        for before, after in pairwise(values):
            if before >= after:
                self.refuse(f"{name}: {after} follows {before}; ids ascend, each there once")
        return tuple(values)

    def blobs(self, name: str, count: int, length: int) -> list[bytes]:
        """Return so many pieces of bytes, each of this length."""
        values = self._list(name)
        if len(values) != count:
            self.refuse(f"{name}: {len(values)} entries where {count} belong")
        return [self._blob(name, value, length, length) for value in values]

    def by_id(self, name: str, blobs: str, length: int) -> dict[int, bytes]:
        """Return the pieces of the field ``blobs`` by the ids of the field ``name``."""
        owners = self.ids(name)
        return dict(zip(owners, self.blobs(blobs, len(owners), length), strict=True))

    def refuse(self, problem: str) -> NoReturn:
        """Raise what is wrong with the record."""
        raise SecureAggregationRefused(f"{self.what}: {problem}; it is damaged, ask for it again")

    def _get(self, name: str) -> object:
        if name not in self.record:
            self.refuse(f"lacks the field {name}")
        return self.record[name]

    def _list(self, name: str) -> Sequence[object]:
        value = self._get(name)
        if not isinstance(value, list):
            self.refuse(f"{name}: {type(value).__name__} where a list belongs")
        return value

    def _integer(self, name: str, value: object, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(f"{name}: {type(value).__name__} where an integer belongs")
        if not low <= value <= high:
            self.refuse(f"{name}: {value}, where {low} to {high} are possible")
        return value

    def _blob(self, name: str, value: object, low: int, high: int) -> bytes:
        if not isinstance(value, bytes):
            self.refuse(f"{name}: {type(value).__name__} where bytes belong")
        if not low <= len(value) <= high:
            length = f"{low}" if low == high else f"{low} to {high}"
            self.refuse(f"{name}: {len(value)} bytes where {length} belong")
        return value


def columns(blobs: Mapping[int, bytes], name: str, values: str) -> Record:
    """Return a mapping by id as two fields, which :meth:`Reader.by_id` reads."""
    return {name: sorted(blobs), values: [blobs[owner] for owner in sorted(blobs)]}
