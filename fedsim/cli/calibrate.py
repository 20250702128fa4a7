"""The calibration on start, where ``measure.calibrate`` asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim import units
from fedsim.cli.progress import say
from fedsim.config import Experiment
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.measure.timings import Calibration

# How often progress is told.
TOLD = 10


def calibration_of(
    experiments: Sequence[Experiment], known: Path, *, quiet: bool = False
) -> bytes | None:
    """Time the experiments' activations on this machine; None where that is not needed.

    Args:
        experiments: those that do not ask for it are left out.
        known: an earlier calibration, which serves if it is of this machine, and of the same
            activations at the same shapes.
        quiet: say nothing.

    Raises:
        ConfigError: the experiments are of several shapes.
        DataError: ``known`` is damaged, or of another format.
    """
    asking = [e for e in experiments if e.measure.calibrate]
    if not asking:
        return None
    from fedsim.calibration import calibrate_experiments, calibration_bytes
    from fedsim.measure.timings import read_calibration

    if known.is_file():
        why = unfit(read_calibration(known), asking)
        if why is None:
            return None
        say(f"{known}: {why}; timing anew", quiet=quiet)
    arms = len({e.model.activation for e in asking})
    try:
        found = calibrate_experiments(asking, progress=told(arms, quiet=quiet))
    except ConfigError as error:
        remedy = "leave it out: -s measure.calibrate=false, or in [set] of a study"
        raise ConfigError([*error.problems, f"measure.calibrate = true: {remedy}"]) from error
    for reason in found.unstable:
        say(f"unstable: {reason}", quiet=quiet)
    return calibration_bytes(found)


def unfit(found: Calibration, experiments: Sequence[Experiment]) -> str | None:
    """Say why an earlier calibration does not serve some experiments here; None: it does."""
    from fedsim.calibration import batch_size
    from fedsim.costs import experiment_cost
    from fedsim.measure.calibration import same_machine

    missing = {e.model.activation for e in experiments} - set(found.activations)
    if missing:
        return f"lacks {', '.join(sorted(missing))}"
    timed = found.batch_size, [math.prod(shape[1:]) for shape in found.shapes]
    for e in experiments:
        layers = experiment_cost(e).network.layers
        mine = batch_size(e), [n for n in (layer.activation_elements for layer in layers) if n]
        if mine != timed:
            return f"measured at other shapes: {shapes_text(*timed)} -> {shapes_text(*mine)}"
    return same_machine(found)


def shapes_text(batch: int, elements: Sequence[int]) -> str:
    """Print a step's examples, and the elements of each activation layer for one of them."""
    return f"{batch} examples of {', '.join(map(str, elements))} elements"


def told(arms: int, *, quiet: bool = False) -> Callable[[int, int, float], None]:
    """Return what tells the progress of a calibration of so many activations."""
    what = f"timing {arms} activation{'s' if arms > 1 else ''} and the control"

    def progress(done: int, blocks: int, left_seconds: float) -> None:
        if done % max(1, blocks // TOLD) == 0 and done < blocks:
            left = units.seconds(left_seconds)
            say(f"{what}: {done} of {blocks} blocks, about {left} left", quiet=quiet)

    return progress
