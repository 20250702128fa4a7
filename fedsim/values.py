"""One value of an experiment: how its key is declared, and what is wrong with what was given."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import field
from typing import Any

from fedsim.errors import nearest

Value = str | int | float | bool


def setting(
    default: Value,
    about: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a key: its default, one line of help, and the values it may take."""
    limits = {"low": low, "high": high, "above": above, "below": below}
    return field(default=default, metadata={"about": about, "choices": choices, **limits})


def convert(
    key: str, value: Any, declared: dataclasses.Field[Any], names: Collection[str]
) -> tuple[Any, str | None]:
    """Return the value in its declared type, or what is wrong with it."""
    kind: type = type(declared.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or not isinstance(value, (str, int, float)):
        wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        return None, f"{key} = {value!r}: must be {wanted[kind]}"
    problem = range_problem(key, value, declared) or name_problem(key, value, declared, names)
    return value, problem


def range_problem(key: str, value: Value, declared: dataclasses.Field[Any]) -> str | None:
    """Say which bound a number breaks."""
    if isinstance(value, (str, bool)):
        return None
    limits = declared.metadata
    if not math.isfinite(value):
        return f"{key} = {value}: must be finite"
    if isinstance(value, int) and abs(value) >= 2**63:
        return f"{key} = {value}: must fit in 64 bits"
    low, high, above, below = (limits[name] for name in ("low", "high", "above", "below"))
    if low is not None and value < low:
        return f"{key} = {value}: must be at least {low:g}"
    if high is not None and value > high:
        return f"{key} = {value}: must be at most {high:g}"
    if above is not None and value <= above:
        return f"{key} = {value}: must be greater than {above:g}"
    if below is not None and value >= below:
        return f"{key} = {value}: must be less than {below:g}"
    return None


def name_problem(
    key: str, value: Value, declared: dataclasses.Field[Any], names: Collection[str]
) -> str | None:
    """Say that a name is unknown, and which was probably meant."""
    allowed = names or declared.metadata["choices"]
    if not isinstance(value, str) or not allowed:
        return None
    # An activation may carry parameters, as in leaky_relu(0.1); its registry reads those.
    name = value.partition("(")[0].strip() if key == "model.activation" else value
    return None if name in allowed else f"{key} = {value!r}: unknown; {nearest(value, allowed)}"
