"""The calibration on start, where ``measure.calibrate`` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsim import units
from fedsim.cli.progress import say
from fedsim.config import Experiment


def calibration_of(
    experiments: Sequence[Experiment], known: Path, *, quiet: bool = False
) -> bytes | None:
    """Time the experiments' activations on this machine; None where that is not needed.

    Args:
        experiments: those that do not ask for it are left out.
        known: an earlier calibration, which serves if it is of this machine and of them all.
        quiet: say nothing.
    """
    asking = [e for e in experiments if e.measure.calibrate]
    if not asking:
        return None
    from fedsim.calibration import SECONDS, calibrate_experiments, calibration_bytes
    from fedsim.measure.calibration import read_calibration, same_machine

    arms = {e.model.activation for e in asking}
    if known.is_file():
        found = read_calibration(known)
        if arms <= set(found.activations) and same_machine(found) is None:
            return None
    say(f"timing {len(arms)} activations, about {units.seconds(SECONDS)}", quiet=quiet)
    return calibration_bytes(calibrate_experiments(asking))
