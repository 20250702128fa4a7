"""What a calibration found, and its file: read, checked and compared without torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedsim.errors import DataError

FORMAT = 1
REMEDY = (
    "remove the file and measure anew: fedsim bench activations --out FILE, "
    "or a run or study with -s measure.calibrate=true"
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its 95% confidence interval, all in the unit of the figure's name."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What timings depend on. ``pinned`` is the core that the thread was kept on, if it could be.

    ``processor`` is the model's name, ``cores`` how many the process may use, ``torch`` the
    version, ``threads`` how many torch computed with.
    """

    processor: str
    cores: int
    platform: str
    torch: str
    threads: int
    pinned: int | None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one activation takes; shares are in [0, 1], and below 0 where noise exceeds them.

    ``forward_ns`` and ``backward_ns`` are nanoseconds per element, of the activation alone, raw:
    the calls are in them. ``times_relu`` is their sum over relu's, None where relu was not
    measured. ``step_seconds`` is of a whole training step. ``share_of_step`` is the time of the
    activation's operations in a profile, over that. ``share_by_difference`` is what the step with
    the identity in its place takes less: it has the work around the operations in it, Python's
    too.
    """

    forward_ns: Interval
    backward_ns: Interval
    times_relu: Interval | None
    step_seconds: Interval
    share_of_step: Interval
    share_by_difference: Interval


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measured timings of activations, with their conditions.

    ``unstable`` says why the timings may not repeat. ``shapes`` are those of the activations'
    inputs, batch first, in the order in which a step passes them. ``control`` is the identity:
    what it takes is the call alone, so that an activation's time less the control's is what the
    function itself costs.
    """

    machine: Machine
    unstable: tuple[str, ...]
    batch_size: int
    shapes: tuple[tuple[int, ...], ...]
    blocks: int
    seconds: float
    control: Timing
    activations: Mapping[str, Timing]

    def as_json(self) -> dict[str, Any]:
        """Return the calibration as JSON values, as :func:`read_calibration` takes them."""
        return {"format": FORMAT, "kind": "measured", **dataclasses.asdict(self)}


def read_calibration(path: Path) -> Calibration:
    """Read what :meth:`Calibration.as_json` gave, from a JSON file, as a study or a bench left it.

    Raises:
        DataError: the file is missing, damaged, or of another format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise DataError(
                f"{path}: format {values['format']}, and this fedsim reads format {FORMAT}; "
                f"{REMEDY}"
            )
        if not isinstance(values["unstable"], list):
            raise TypeError(f"unstable = {values['unstable']!r}: must be a list")
        return Calibration(
            machine=Machine(**values["machine"]),
            unstable=tuple(str(reason) for reason in values["unstable"]),
            batch_size=int(values["batch_size"]),
            shapes=tuple(tuple(int(n) for n in shape) for shape in values["shapes"]),
            blocks=int(values["blocks"]),
            seconds=float(values["seconds"]),
            control=Timing(**intervals(values["control"])),
            activations={
                text: Timing(**intervals(timing)) for text, timing in values["activations"].items()
            },
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is no calibration, or a damaged one ({type(error).__name__}: {error}); "
            f"{REMEDY}"
        ) from error


def intervals(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the intervals of one activation, each checked.

    Raises:
        ValueError: a figure that is no finite number, or lies outside of its interval.
    """
    found = {}
    for name, value in values.items():
        found[name] = None if value is None and name == "times_relu" else Interval(**value)
        numbers = [] if value is None else [value["low"], value["estimate"], value["high"]]
        if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise ValueError(f"{name} = {value}: must be finite numbers")
        if numbers != sorted(numbers):
            raise ValueError(f"{name} = {value}: the estimate lies outside of its interval")
    return found


def unlike(one: Machine, other: Machine) -> list[str]:
    """List what differs between two machines, as ``name: one -> other``; the core's number may."""
    before, after = (
        {f.name: getattr(m, f.name) for f in fields(m)}
        | {"pinned": "to no core" if m.pinned is None else "to a core"}
        for m in (one, other)
    )
    return [f"{k}: {before[k]} -> {after[k]}" for k in before if before[k] != after[k]]
