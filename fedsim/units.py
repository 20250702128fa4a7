"""How figures are printed. Nothing is rounded before this point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

MISSING = "-"
ROUNDS_UP = 999.5  # to 1000 at three digits, which is 1 of the next unit


def percent(value: float) -> str:
    """A share in [0, 1], in percent."""
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference of shares, in percentage points, with its sign."""
    return f"{100 * value:+.2f} points"


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.3g}x"


def seconds(value: float) -> str:
    """A duration, in the unit that suits it."""
    if value == 0:
        return "0 s"
    for limit, factor, unit in ((ROUNDS_UP, 1e6, "us"), (ROUNDS_UP, 1e3, "ms"), (119.5, 1.0, "s")):
        if abs(value) * factor < limit:
            return f"{value * factor:.3g} {unit}"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(value: float) -> str:
    """Bytes, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < ROUNDS_UP:
            return f"{value:.3g} {unit}" if unit != "B" else f"{value:.0f} B"
        value /= 1000
    return f"{value:.3g} TB"


def flops(value: float) -> str:
    """Floating-point operations, in powers of 1000."""
    return scaled(value, "FLOP", ("", "k", "M", "G", "T", "P", "E"))


def joules(value: float) -> str:
    """An energy, in powers of 1000."""
    return scaled(value * 1e6, "J", ("u", "m", "", "k", "M", "G"))


def scaled(value: float, unit: str, prefixes: Sequence[str]) -> str:
    """A figure to three digits with the prefix that suits it; ``value`` is in the first one's."""
    *smaller, largest = prefixes if value else [""]
    for prefix in smaller:
        if abs(value) < ROUNDS_UP:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} {largest}{unit}"


def number(value: float) -> str:
    """A plain figure, to three digits."""
    return f"{value:.3g}"


def shown(value: float | None, unit: Callable[[float], str] = number) -> str:
    """Format a figure that may be missing."""
    return MISSING if value is None or math.isnan(value) else unit(value)
