"""What examples are, whoever holds them, and what a file has to hold to become such examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.data.dataset import Dataset

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form of examples: all who take part in a federation share it.

    Attributes:
        input_shape: of one example.
        dtype: of the stored values: ``uint8`` or ``float32``.
        scale: what stored values are multiplied by to give features.
        class_names: what each class is called, in order.
    """

    input_shape: tuple[int, ...]
    dtype: str
    scale: float
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, data: Dataset) -> Form:
        """Return the form of a dataset."""
        return cls(
            input_shape=data.input_shape,
            dtype=str(data.x_test.dtype),
            scale=data.scale,
            class_names=data.class_names,
        )

    def values(self) -> Values:
        """Return the form as plain values, which JSON and Flower's records can hold."""
        return {
            "input_shape": list(self.input_shape),
            "dtype": self.dtype,
            "scale": self.scale,
            "class_names": list(self.class_names),
        }

    def difference(self, expected: Mapping[str, Any]) -> str:
        """Say in what this form is not the expected one, given as plain values; empty if equal."""
        for name, mine in self.values().items():
            if mine != expected.get(name):
                return f"{name} is {shortened(mine)}, not {shortened(expected.get(name))}"
        return ""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """What a client's own file holds, and how features come of its values v.

    They are (v - shift) / spread where there are such, or scale v, plus the offset.

    Attributes:
        dtype: of v in an .npz: ``uint8`` (pixels), or ``float32`` for any other numbers.
        scale: of v as stored.
        offset: added to every feature at the end.
        label: the column of labels; in an .npz the array.
        columns: the table's columns of features, in order; empty if it is no table with names.
        shift, spread: by feature, where columns are standardised.
        problem: why no file of a client's own can become such examples; empty where one can.
    """

    dtype: str
    scale: float
    offset: float = 0.0
    label: str = "y"
    columns: tuple[str, ...] = ()
    shift: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    problem: str = ""


def shortened(value: object, length: int = 80) -> str:
    """Return a value as text, cut where it is too long for a line."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
