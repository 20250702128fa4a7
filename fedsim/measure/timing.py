"""Timings of one activation: alone at a model's shapes, in whole steps, and in profiled ones."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.errors import EngineError
from fedsim.measure.profile import profile_steps, training_step
from fedsim.measure.stability import without_collections
from fedsim.models import make_activation

# What a visit does first, and the share of its time for the elements; the rest is for whole steps.
PROFILED_STEPS = 2
ELEMENTS_SHARE = 0.25
# No timed block is shorter, whatever the visit's time: clocks and warm-up would weigh in it.
LEAST_SECONDS = 2e-3
# So long after its end a visit waits for the CPU clock to show that much.
PATIENCE_SECONDS = 30.0
# Batches in the data that steps draw from.
BATCHES = 16
# So many evaluations go into one backward pass, unless they hold more elements than that.
EVALUATIONS, ELEMENTS = 32, 2**18


@dataclass(frozen=True, kw_only=True)
class StepData:
    """What steps train on: features (examples, *input shape), labels, a mini-batch's indices."""

    x: Tensor
    y: Tensor
    batch: Tensor


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model to measure, its activation layers, and as many of their evaluations as make a pass.

    ``evaluations`` are pairs of a module and its input; each module is a copy of its own, since a
    learned parameter of a shared one would add up its gradients, as none does in a network.
    """

    model: nn.Module
    layers: tuple[nn.Module, ...]
    shapes: tuple[tuple[int, ...], ...]
    evaluations: tuple[tuple[nn.Module, Tensor], ...]
    elements: int  # of a pass


@dataclass(frozen=True, kw_only=True)
class Block:
    """What one visit to an arm measured; all in seconds, the first two per element.

    ``activation`` is of the activation's operations in one profiled step. The totals are of all
    that was timed in the visit.
    """

    forward: float
    backward: float
    step: float
    activation: float
    forward_total: float
    backward_total: float
    step_total: float

    @property
    def alone(self) -> float:
        """The activation without the rest of the step, forward and backward, per element."""
        return self.forward + self.backward


def activation_layers(model: nn.Module, text: str) -> dict[str, nn.Module]:
    """Return the modules of a model that are of the activation's class, by name."""
    kind = type(make_activation(text))
    return {name: module for name, module in model.named_modules() if type(module) is kind}


def without_activation(model: nn.Module, text: str) -> nn.Module:
    """Return a copy of the model with the identity in place of its activation."""
    model = copy.deepcopy(model)
    for name in activation_layers(model, text):
        model.set_submodule(name, nn.Identity())
    return model


def make_step_data(
    input_shape: tuple[int, ...], classes: int, batch_size: int, rng: np.random.Generator
) -> StepData:
    """Draw standard normal features and uniform labels, for steps of ``batch_size`` examples."""
    examples = BATCHES * batch_size
    return StepData(
        x=torch.from_numpy(rng.standard_normal((examples, *input_shape), dtype=np.float32)),
        y=torch.from_numpy(rng.integers(classes, size=examples)),
        batch=torch.from_numpy(rng.permutation(examples)[:batch_size]),
    )


def make_arm(model: nn.Module, text: str, data: StepData, rng: np.random.Generator) -> Arm:
    """Prepare a copy of a model; its activations' inputs are drawn, standard normal."""
    model = copy.deepcopy(model)
    layers = tuple(activation_layers(model, text).values())
    passed = passes_of(model, layers, data.x[data.batch])
    shapes = tuple(shape for _, shape in passed)
    elements = sum(math.prod(shape) for shape in shapes)
    copies = max(1, min(EVALUATIONS // max(1, len(shapes)), ELEMENTS // max(1, elements)))
    inputs = [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]
    return Arm(
        model=model,
        layers=layers,
        shapes=shapes,
        evaluations=tuple(
            (copy.deepcopy(layer), values.detach().requires_grad_())
            for _ in range(copies)
            for (layer, _), values in zip(passed, inputs, strict=True)
        ),
        elements=copies * elements,
    )


def passes_of(
    model: nn.Module, layers: Sequence[nn.Module], x: Tensor
) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Return which layers a forward pass goes through, in order, with the shapes they are given."""
    passed: list[tuple[nn.Module, tuple[int, ...]]] = []

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        passed.append((layer, tuple(arguments[0].shape)))

    with ExitStack() as hooks, torch.no_grad():
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(note))
        model(x)
    return passed


def visit(arm: Arm, data: StepData, seconds: float) -> Block:
    """Measure an arm for about so many wall seconds; each part is done at least once."""

    def step() -> None:
        training_step(arm.model, data.x, data.y, data.batch, learning_rate=0.0)

    end_of_time = time.monotonic() + seconds
    profiles = profile_steps(step, arm.layers, steps=PROFILED_STEPS)
    with without_collections():
        forward, backward, passes = time_elements(arm, ELEMENTS_SHARE * seconds)
        taken, steps = time_steps(step, end_of_time - time.monotonic())
    return Block(
        forward=forward / passes / arm.elements,
        backward=backward / passes / arm.elements,
        step=taken / steps,
        activation=1e-6 * statistics.median(profile.activation_us for profile in profiles),
        forward_total=forward,
        backward_total=backward,
        step_total=taken,
    )


def time_elements(arm: Arm, seconds: float) -> tuple[float, float, int]:
    """Return the CPU seconds of all forward and of all backward passes, and how many there were.

    One backward pass goes through all evaluations, as it goes through all layers of a network, so
    that what starting it costs is shared. Freeing what a pass leaves is not timed.

    Raises:
        EngineError: the CPU clock stands still.
    """
    wanted = [values for _, values in arm.evaluations]
    wanted += [p for module, _ in arm.evaluations for p in module.parameters()]
    incoming = [torch.ones_like(values) for _, values in arm.evaluations]
    forward = backward = 0.0
    passes, end_of_time = 0, time.monotonic() + seconds
    while goes_on(min(forward, backward), end_of_time):
        start = time.thread_time()
        outputs = [module(values) for module, values in arm.evaluations]
        middle = time.thread_time()
        gradients = torch.autograd.grad(outputs, wanted, incoming)
        end = time.thread_time()
        del outputs, gradients
        forward += middle - start
        backward += end - middle
        passes += 1
    return forward, backward, passes


def time_steps(step: Callable[[], object], seconds: float) -> tuple[float, int]:
    """Return the CPU seconds of all the steps that fit into the time, and how many there were.

    One more is done first, so that caches hold what steps need.

    Args:
        seconds: below 0 where the visit is late already.

    Raises:
        EngineError: the CPU clock stands still.
    """
    step()
    total = 0.0
    steps, end_of_time = 0, time.monotonic() + max(0.0, seconds)
    while goes_on(total, end_of_time):
        start = time.thread_time()
        step()
        total += time.thread_time() - start
        steps += 1
    return total, steps


def goes_on(cpu_seconds: float, end_of_time: float) -> bool:
    """Say whether timing is to go on: there is time left, or too little was timed so far.

    Args:
        cpu_seconds: that were timed so far.
        end_of_time: on the monotonic clock.

    Raises:
        EngineError: the CPU clock stands still.
    """
    late = time.monotonic() - end_of_time
    if cpu_seconds < LEAST_SECONDS and late > PATIENCE_SECONDS:
        raise EngineError(
            f"this machine's CPU clock stands still: time.thread_time shows {cpu_seconds} s of "
            f"work, {late:.0f} s after a measurement should have ended; measure on a machine "
            "whose clock runs"
        )
    return late < 0 or cpu_seconds < LEAST_SECONDS
