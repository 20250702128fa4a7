"""What activations cost on this machine, at a model's own shapes, and their share of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import nn

from fedsim.measure.stability import here, instabilities, median_interval, pinned
from fedsim.measure.timing import (
    Arm,
    Block,
    StepData,
    make_arm,
    make_step_data,
    visit,
    without_activation,
)
from fedsim.measure.timings import Calibration, Timing, unlike
from fedsim.randomness import stream

RELU = "relu"
CONTROL = "the control"

Progress = Callable[[int, int, float], None]


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


def same_machine(calibration: Calibration) -> str | None:
    """Say why the timings of this machine may not be pooled with a calibration's; None: they may.

    The number of the core that was pinned does not matter, but that one was.
    """
    changed = unlike(calibration.machine, here())
    return f"measured under other conditions: {'; '.join(changed)}" if changed else None
