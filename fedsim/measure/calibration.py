"""What activations cost on this machine, at a model's own shapes, and their share of a step."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedsim.errors import DataError
from fedsim.measure.stability import (
    Interval,
    Machine,
    here,
    instabilities,
    median_interval,
    pinned,
    unlike,
)
from fedsim.measure.timing import (
    Arm,
    Block,
    StepData,
    make_arm,
    make_step_data,
    visit,
    without_activation,
)
from fedsim.randomness import stream

FORMAT = 1
RELU = "relu"
CONTROL = "the control"

Progress = Callable[[int, int, float], None]


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


def calibrate(
    models: Mapping[str, nn.Module],
    *,
    input_shape: tuple[int, ...],
    classes: int,
    batch_size: int,
    blocks: int,
    seconds: float,
    seed: int,
    progress: Progress | None = None,
) -> Calibration:
    """Time activations in turns, on one pinned thread, and return medians over blocks.

    Every block visits every activation and the control once, in an order drawn anew. A visit
    times the activation alone (forward, and ``torch.autograd.grad`` through it, on standard
    normal inputs of the model's own shapes), whole training steps, and profiled ones. Times are
    the thread's CPU seconds; those of a profile are wall time. A first block is forgotten.

    It does not capture what cold caches or busy neighbours cost: inputs are warm, and the thread
    is alone on its core as far as the system allows. Steps are plain, of train.batch_size
    examples, without momentum, clipping and the like, and always on the processor.

    Args:
        models: by activation, such as ``"leaky_relu(0.1)"``; otherwise alike. They stay as they
            are: copies are measured.
        input_shape: of one example.
        classes: at least 1.
        batch_size: examples a step, at least 1.
        blocks: at least 2.
        seconds: for everything, about; above 0. A visit has its least amount of work, so that
            large models take longer.
        seed: of inputs, orders and resamples.
        progress: called at the start and after every block, with blocks done, blocks in all, and
            the seconds left, about.

    Raises:
        ValueError: no models, or models whose activations do not see the same shapes.
    """
    started = time.monotonic()
    step_data = make_step_data(input_shape, classes, batch_size, stream(seed, "calibration/data"))
    arms = make_arms(models, step_data, seed)
    with pinned() as machine:
        order = stream(seed, "calibration/order")
        measured = take_turns(arms, step_data, blocks, seconds, order, progress or unseen)
    resamples = stream(seed, "calibration/resamples")
    timings = {
        text: timing(values, measured[CONTROL], measured.get(RELU), resamples)
        for text, values in measured.items()
    }
    return Calibration(
        machine=machine,
        unstable=tuple(reasons(measured)),
        batch_size=batch_size,
        shapes=arms[CONTROL].shapes,
        blocks=blocks,
        seconds=time.monotonic() - started,
        control=timings.pop(CONTROL),
        activations=timings,
    )


def unseen(done: int, blocks: int, left_seconds: float) -> None:
    """Tell nobody about the progress."""


def make_arms(models: Mapping[str, nn.Module], data: StepData, seed: int) -> dict[str, Arm]:
    """Prepare the models, all with the same inputs of their activations, and the control."""
    arms = {
        text: make_arm(model, text, data, stream(seed, "calibration/preactivations"))
        for text, model in models.items()
    }
    if len({arm.shapes for arm in arms.values()}) != 1 or not all(a.shapes for a in arms.values()):
        raise ValueError("calibrate needs models that pass activations, all of the same shapes")
    text = next(iter(models))
    control = without_activation(models[text], text)
    rng = stream(seed, "calibration/preactivations")
    return {**arms, CONTROL: make_arm(control, "identity", data, rng)}


def take_turns(
    arms: Mapping[str, Arm],
    data: StepData,
    blocks: int,
    seconds: float,
    order: np.random.Generator,
    progress: Progress,
) -> dict[str, list[Block]]:
    """Visit every arm once in every block, in a new order each time; the first is forgotten."""
    visit_seconds = seconds / (blocks + 1) / len(arms)
    measured: dict[str, list[Block]] = {text: [] for text in arms}
    started = time.monotonic()
    progress(0, blocks, seconds)
    for done in range(blocks + 1):
        for text in order.permutation(list(arms)):
            measured[text].append(visit(arms[text], data, visit_seconds))
        pace = (time.monotonic() - started) / (done + 1)
        progress(done, blocks, pace * (blocks - done))
    return {text: found[1:] for text, found in measured.items()}


def timing(
    blocks: Sequence[Block],
    control: Sequence[Block],
    relu: Sequence[Block] | None,
    rng: np.random.Generator,
) -> Timing:
    """Return the medians of an activation's blocks.

    Comparisons are made within a block, so that what slows a whole block falls out of them.
    """
    pairs = list(zip(blocks, control, strict=True))
    ratios = [a.alone / b.alone for a, b in zip(blocks, relu, strict=True)] if relu else []
    return Timing(
        forward_ns=median_interval([1e9 * b.forward for b in blocks], rng),
        backward_ns=median_interval([1e9 * b.backward for b in blocks], rng),
        times_relu=median_interval(ratios, rng) if relu else None,
        step_seconds=median_interval([b.step for b in blocks], rng),
        share_of_step=median_interval([b.activation / b.step for b in blocks], rng),
        share_by_difference=median_interval([1 - b.step / a.step for a, b in pairs], rng),
    )


def reasons(measured: Mapping[str, Sequence[Block]]) -> list[str]:
    """Say why the blocks of a calibration may not repeat; empty where nothing speaks against."""
    found = []
    for name in ("forward", "backward", "step"):
        blocks = {text: [getattr(b, name) for b in values] for text, values in measured.items()}
        totals = [getattr(b, f"{name}_total") for values in measured.values() for b in values]
        found += instabilities(name, blocks, min(totals))
    return found


def read_calibration(path: Path) -> Calibration:
    """Read what :meth:`Calibration.as_json` gave, from a JSON file.

    Raises:
        DataError: the file is missing, damaged, or of another format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise DataError(
                f"{path}: format {values['format']}, and this fedsim reads format {FORMAT}; "
                "measure anew: fedsim bench activations --out FILE"
            )
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
            "measure anew: fedsim bench activations --out FILE"
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


def same_machine(calibration: Calibration) -> str | None:
    """Say why the timings of this machine may not be pooled with a calibration's; None: they may.

    The number of the core that was pinned does not matter, but that one was.
    """
    changed = unlike(calibration.machine, here())
    return f"measured under other conditions: {'; '.join(changed)}" if changed else None
