"""The calibration of experiments: from their settings to what their activations cost here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from fedsim import parts
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.measure.calibration import Progress, calibrate
from fedsim.measure.timings import Calibration

BLOCKS = 20
SECONDS = 25.0
LEAST_BLOCKS = 5


def calibrate_experiments(
    experiments: Sequence[Experiment],
    *,
    blocks: int = BLOCKS,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Calibration:
    """Time the activations of experiments, one for each ``model.activation``, on this machine.

    Of experiments with the same activation the first counts; all have to be of one model and one
    batch size. With ``train.batch_size = 0`` that is the mean client's examples. Learning rates,
    seeds, partitions and the like may differ, for they change no shape.

    Args:
        experiments: at least one.
        blocks: how often everything is measured, at least 5.
        seconds: for everything, about; above 0.
        progress: see :func:`fedsim.measure.calibration.calibrate`.

    Raises:
        ConfigError: they are of several models or batch sizes, or there is too little to measure;
            a line for each problem.
        DataError: the data, whose shape the model needs, cannot be read.
    """
    found = problems(experiments, blocks, seconds)
    if found:
        raise ConfigError(found)
    arms = {e.model.activation: e for e in reversed(experiments)}
    first = experiments[0]
    examples = parts.dataset(first)
    return calibrate(
        {text: parts.initial_model(arms[text]) for text in reversed(arms)},
        input_shape=examples.input_shape,
        classes=examples.classes,
        batch_size=batch_size(first),
        blocks=blocks,
        seconds=seconds,
        seed=first.experiment.seed,
        progress=progress,
    )


def problems(experiments: Sequence[Experiment], blocks: int, seconds: float) -> list[str]:
    """Say why the experiments cannot be calibrated together."""
    found = [] if experiments else ["a calibration needs at least one experiment"]
    if blocks < LEAST_BLOCKS:
        found.append(f"blocks = {blocks}: must be at least {LEAST_BLOCKS} for intervals")
    if not 0 < seconds < math.inf:
        found.append(f"seconds = {seconds}: must be finite and above 0")
    shaping = [shaped_by(experiment) for experiment in experiments]
    for key in shaping[0] if shaping else ():
        values = list(dict.fromkeys(str(one[key]) for one in shaping))
        if len(values) > 1:
            found.append(f"{key} = {' and '.join(values)}: a calibration is of one; choose one")
    return found


def shaped_by(experiment: Experiment) -> dict[str, object]:
    """Return what decides the shapes in a training step; equal for what is calibrated together."""
    examples, model = parts.dataset(experiment), experiment.model
    return {
        "input shape": examples.input_shape,
        "classes": examples.classes,
        "model.name": model.name,
        "model.width": model.width,
        "model.depth": model.depth,
        "train.batch_size": batch_size(experiment),
    }


def batch_size(experiment: Experiment) -> int:
    """Return the examples of a step: as set, or all that the mean client has, rounded up."""
    if experiment.train.batch_size:
        return experiment.train.batch_size
    clients = len(parts.partition(experiment))
    return -(-len(parts.dataset(experiment).y_train) // clients)


def calibration_bytes(calibration: Calibration) -> bytes:
    """Return the calibration as a JSON file, for :func:`fedsim.ledger.files.write_atomically`."""
    return (json.dumps(calibration.as_json(), indent=2, allow_nan=False) + "\n").encode()
