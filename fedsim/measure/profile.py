"""One training step of a model, and which of its operations belong to the activations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile, record_function

STEP, ACTIVATION = "fedsim:step", "fedsim:activation"
# How the profiler names the run of one node of the backward graph.
BACKWARD = "autograd::engine::evaluate_function: "
# Kineto announces every profile on standard error, but at this level; it asks when it begins.
LOG_LEVEL = ("KINETO_LOG_LEVEL", "99")


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """One profiled step: the names of the activations' operations in order, and microseconds.

    ``forward`` are operations inside the activations; ``backward`` the nodes of the backward
    graph that these operations left.
    """

    forward: tuple[str, ...]
    backward: tuple[str, ...]
    activation_us: float
    step_us: float


def training_step(
    model: nn.Module, x: Tensor, y: Tensor, batch: Tensor, *, learning_rate: float
) -> Tensor:
    """Do one step of :func:`fedsim.training.local.train_locally`, plain, and return its loss.

    Args:
        model: its parameters are changed, unless the learning rate is 0: then the step does the
            same work and leaves finite parameters as they were.
        x: features, (examples, *input shape), float32.
        y: labels, (examples,), int64.
        batch: indices of the mini-batch.
    """
    parameters = tuple(model.parameters())
    loss = cross_entropy(model(x[batch]), y[batch])
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        torch._foreach_add_(parameters, gradients, alpha=-learning_rate)
    return loss


def profile_steps(
    step: Callable[[], object], layers: Sequence[nn.Module], *, steps: int
) -> list[StepProfile]:
    """Profile a training step, several times, by torch's own profiler.

    The profiler costs about a microsecond an operation. That makes a step of small operations
    half as long again, and so ``step_us`` is no measure of an ordinary step; inside of
    ``activation_us`` it is only what the operations inside an operation cost. Python between the
    operations is no activation's, nor is the update of a parameter that an activation learns.

    Args:
        step: does one training step on the processor.
        layers: the activation modules that it runs.
        steps: how many to return, at least 1; one more is done first and forgotten.
    """
    with announced_to_nobody(), marked(layers), profile(activities=[ProfilerActivity.CPU]) as p:
        for _ in range(steps + 1):
            with record_function(STEP):
                step()
    return attribute(sorted(p.events(), key=lambda event: event.time_range.start))[1:]


def attribute(events: Sequence[Any]) -> list[StepProfile]:
    """Return the profile of every step in the events of torch's profiler, ordered by start.

    An operation belongs to an activation if it ran directly inside its module. A node of the
    backward graph belongs to the operation that made it: both carry the node's sequence number.
    An operation that makes no node carries the number of the next one, which is why the last
    operation with a number is its maker.
    """
    makers = {e.sequence_nr: e for e in events if e.sequence_nr >= 0 and not in_backward(e)}
    found: list[StepProfile] = []
    for step in (event for event in events if event.name == STEP):
        inside = [event for event in events if step in lineage(event) and event is not step]
        forward = [e for e in inside if e.cpu_parent.name == ACTIVATION]
        nodes = [e for e in inside if e.name.startswith(BACKWARD) and e.sequence_nr in makers]
        backward = [e for e in nodes if within(makers[e.sequence_nr], ACTIVATION)]
        found.append(
            StepProfile(
                forward=tuple(event.name for event in forward),
                backward=tuple(event.name.removeprefix(BACKWARD) for event in backward),
                activation_us=sum(e.time_range.elapsed_us() for e in (*forward, *backward)),
                step_us=step.time_range.elapsed_us(),
            )
        )
    return found


def in_backward(event: Any) -> bool:
    """Say whether an event is the run of a node of the backward graph, or part of one."""
    return any(above.name.startswith(BACKWARD) for above in lineage(event))


def within(event: Any, name: str) -> bool:
    """Say whether an event ran inside a range of that name."""
    return any(above.name == name for above in lineage(event) if above is not event)


def lineage(event: Any) -> Iterator[Any]:
    """Yield an event and all that it ran inside of, inmost first."""
    above = event
    while above is not None:
        yield above
        above = above.cpu_parent


@contextmanager
def marked(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Enclose each layer's forward pass in a range of the profiler; afterwards nothing is left."""
    ranges: list[ExitStack] = []

    def enter(layer: nn.Module, arguments: object) -> None:
        ranges.append(ExitStack())
        ranges[-1].enter_context(record_function(ACTIVATION))

    def leave(layer: nn.Module, arguments: object, output: object) -> None:
        ranges.pop().close()

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(enter))
            hooks.enter_context(layer.register_forward_hook(leave))
        yield


@contextmanager
def announced_to_nobody() -> Iterator[None]:
    """Keep the profiler from writing to standard error that it starts and stops."""
    name, level = LOG_LEVEL
    before = os.environ.get(name)
    os.environ.setdefault(name, level)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
