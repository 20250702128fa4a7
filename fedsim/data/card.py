"""The card of a folder of examples: a small JSON file that says what they are, and whose."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fedsim.data.form import Form, Raw, shortened
from fedsim.data.source import reading
from fedsim.errors import DataError

CARD = "dataset.json"
FORMAT_VERSION = 1  # 1: the first
ROLES = ("client", "server", "card")
MOST_CLIENTS = 10_000_000
DTYPES = ("uint8", "float32")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a folder of a split holds.

    Attributes:
        role: whose it is: a ``client``'s, the ``server``'s, or a ``card`` alone, for clients who
            bring files of their own.
        dataset: what the data is called.
        form: of the examples.
        clients: how many the federation has.
        client: which of them, from 0; None for the server's and for a card alone.
        examples: in the file beside the card; None for a card alone.
        sha256: of that file, in hexadecimal.
        raw: what a client's own file has to hold; clients whose examples were dealt have none.
    """

    role: str
    dataset: str
    form: Form
    clients: int
    client: int | None = None
    examples: int | None = None
    sha256: str | None = None
    raw: Raw | None = None

    def text(self) -> str:
        """Return the card as JSON."""
        values: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "role": self.role,
            "dataset": self.dataset,
            **self.form.values(),
            "classes": len(self.form.class_names),
            "clients": self.clients,
        }
        for name in ("client", "examples", "sha256"):
            if (value := getattr(self, name)) is not None:
                values[name] = value
        if self.raw is not None:
            values["own_file"] = vars(self.raw)
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def read_card(folder: Path) -> Card:
    """Read the card of a folder.

    Raises:
        DataError: it is missing, or is no card.
    """
    path = folder / CARD
    with reading(path):
        content = path.read_bytes()
    try:
        values = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON ({error}); {REMEDY}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: holds no JSON object; {REMEDY}")
    return _card(_Fields(values, str(path)))


REMEDY = "take the file again from whoever made the split"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


class _Fields:
    """Values by name, each checked when it is taken."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self._values, self._place = values, place

    def fail(self, name: str, wanted: str) -> NoReturn:
        """Raise a DataError about one value."""
        told = shortened(repr(self._values[name])) if name in self._values else "missing"
        raise DataError(f"{self._place}: {name} is {told}; must be {wanted}; {REMEDY}")

    def take(self, name: str, wanted: str, fits: Callable[[Any], bool]) -> Any:
        """Return a value that has to be there, and to fit."""
        if name not in self._values or not fits(self._values[name]):
            self.fail(name, wanted)
        return self._values[name]

    def inner(self, name: str) -> _Fields | None:
        """Return the fields of an object that may be there."""
        if name not in self._values:
            return None
        values = self.take(name, "an object", lambda value: isinstance(value, dict))
        return _Fields(values, f"{self._place}, {name}")


def _card(fields: _Fields) -> Card:
    fields.take("format_version", f"{FORMAT_VERSION}", lambda value: value == FORMAT_VERSION)
    role = fields.take("role", f"one of {', '.join(ROLES)}", lambda value: value in ROLES)
    clients = fields.take(
        "clients", f"a whole number, 1 to {MOST_CLIENTS}", _whole(1, MOST_CLIENTS + 1)
    )
    own = fields.inner("own_file")
    form = _form(fields)
    card = Card(
        role=role,
        dataset=fields.take("dataset", "text", _is_text),
        form=form,
        clients=clients,
        client=fields.take("client", f"a whole number below {clients}", _whole(0, clients))
        if role == "client"
        else None,
        examples=fields.take("examples", "a whole number", _whole(0)) if role != "card" else None,
        sha256=fields.take("sha256", "text", _is_text) if role != "card" else None,
        raw=None if own is None else _raw(own, form),
    )
    if role == "card" and card.raw is None:
        fields.fail("own_file", "there, on a card for clients' own files")
    return card


def _form(fields: _Fields) -> Form:
    names = fields.take(
        "class_names",
        "a list of two different texts or more",
        lambda value: _is_list(value, _is_text) and 2 <= len(value) == len(set(value)),
    )
    fields.take("classes", f"{len(names)}, as there are class names", lambda v: v == len(names))
    return Form(
        input_shape=tuple(
            fields.take(
                "input_shape",
                "the list of an example's sizes",
                lambda value: _is_list(value, _whole(1)) and 1 <= len(value) <= 4,
            )
        ),
        dtype=fields.take("dtype", f"one of {', '.join(DTYPES)}", lambda value: value in DTYPES),
        scale=float(fields.take("scale", "a number above 0", lambda v: _is_number(v) and v > 0)),
        class_names=tuple(names),
    )


def _raw(fields: _Fields, form: Form) -> Raw:
    features = math.prod(form.input_shape)
    as_many = f"a list of {features} numbers, or of none"

    def numbers(value: Any) -> bool:
        return _is_list(value, _is_number) and len(value) in (0, features)

    shift = fields.take("shift", as_many, numbers)
    return Raw(
        dtype=fields.take("dtype", f"one of {', '.join(DTYPES)}", lambda value: value in DTYPES),
        scale=float(fields.take("scale", "a number above 0", lambda v: _is_number(v) and v > 0)),
        offset=float(fields.take("offset", "a number", _is_number)),
        label=fields.take("label", "a name", lambda value: _is_text(value) and value != ""),
        columns=tuple(
            fields.take(
                "columns",
                f"a list of {features} different names, or of none",
                lambda value: (
                    _is_list(value, _is_text)
                    and len(value) == len(set(value))
                    and len(value) in (0, features)
                ),
            )
        ),
        shift=tuple(map(float, shift)),
        spread=tuple(
            map(
                float,
                fields.take(
                    "spread",
                    f"a list of {len(shift)} numbers other than 0",
                    lambda value: numbers(value) and len(value) == len(shift) and all(value),
                ),
            )
        ),
        problem=fields.take("problem", "text", _is_text),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # a whole number of JSON may be larger than any float


def _whole(low: int, below: int = 2**63) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value < below


def _is_list(value: Any, each: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(each, value))
