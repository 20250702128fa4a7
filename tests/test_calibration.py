"""Timing activations: what is timed and attributed, intervals, files; never how long it took."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim import runs
from fedsim.calibration import calibrate_experiments
from fedsim.cli.calibrate import calibration_of
from fedsim.config import Experiment
from fedsim.errors import ConfigError, DataError
from fedsim.ledger.lock import RunLock
from fedsim.measure import calibration, profile, stability, timing
from fedsim.measure.calibration import CONTROL, calibrate
from fedsim.measure.profile import profile_steps, training_step
from fedsim.measure.stability import instabilities, median_interval, pinned
from fedsim.measure.timing import Block, make_arm, make_step_data, without_activation
from fedsim.measure.timings import REMEDY, Calibration, Interval, Timing, read_calibration
from fedsim.models import ACTIVATIONS, MODELS, build_model
from fedsim.randomness import stream
from fedsim.training.local import train_locally

SHAPES = {"mlp": (8,), "cnn": (1, 8, 8), "small_cnn": (1, 14, 14)}
DATA = make_step_data((8,), 3, 4, stream(0, "data"))
ACTIVATION_NAMES = [name for name in ACTIVATIONS if name != "identity"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: more wait for each other where cores are busy. Keep the cores."""
    threads, cores = torch.get_num_threads(), stability.allowed_cores()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    assert stability.allowed_cores() == cores


def small(activation: str, name: str = "mlp", depth: int = 2) -> nn.Module:
    return build_model(
        name,
        input_shape=SHAPES[name],
        classes=3,
        width=5,
        depth=depth,
        activation=activation,
        seed=1,
    )


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


# The step.


def test_the_step_is_that_of_local_training() -> None:
    ours, reference = small("prelu"), small("prelu")
    order = torch.from_numpy(stream(0, "order").permutation(len(DATA.y)))
    loss = training_step(ours, DATA.x, DATA.y, order, learning_rate=0.25)
    result = train_locally(
        reference,
        DATA.x,
        DATA.y,
        epochs=1,
        steps=0,
        batch_size=0,
        learning_rate=0.25,
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=0.0,
        proximal_mu=0.0,
        rng=stream(0, "order"),
    )
    assert loss.item() == result.loss_last_step
    assert same(state(ours), state(reference))
    assert not same(state(ours), state(small("prelu")))


def test_a_step_of_length_zero_moves_nothing() -> None:
    model = small("tanh")
    training_step(model, DATA.x, DATA.y, DATA.batch, learning_rate=0.0)
    assert same(state(model), state(small("tanh")))


# Which operations are an activation's.


class Doubled(torch.autograd.Function):
    """An operation that torch does not know, slow in both directions."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return (x.exp() * 0 + 2) * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.sin() * 0 + 2 * gradient


class Synthetic(nn.Module):
    """An activation of many operations, some of which leave nothing in the backward graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.detach()
        y = Doubled.apply(x).sin()
        with torch.no_grad():
            y.cos()
        y.detach()
        return y


EXPECTED = {
    "identity": ((), ()),
    "relu": (("relu",), ("Relu",)),
    "gelu": (("gelu",), ("Gelu",)),
    "tempered_sigmoid": (("mul", "sigmoid", "mul", "sub"), ("Sub", "Mul", "Sigmoid", "Mul")),
    "relu_squared": (("relu", "square"), ("Pow", "Relu")),
    "prelu": (("prelu",), ("PreluKernel", "View")),
}


def profiled(model: nn.Module, layers: Sequence[nn.Module], steps: int = 2) -> Any:
    data = make_step_data((8,), 3, 4, stream(0, "data"))
    return profile_steps(
        lambda: training_step(model, data.x, data.y, data.batch, learning_rate=0.0),
        layers,
        steps=steps,
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_what_an_activation_runs_and_leaves_for_backward_is_attributed_to_it(name: str) -> None:
    model = small(name)
    layers = list(timing.activation_layers(model, name).values())
    forward, backward = EXPECTED[name]
    found = profiled(model, layers)
    assert len(found) == 2
    for step in found:
        assert step.forward == tuple(f"aten::{op}" for op in forward) * 2
        assert step.backward == tuple(f"{node}Backward0" for node in backward) * 2
        assert (step.activation_us == 0) == (name == "identity")
        assert step.activation_us < step.step_us


def test_an_activation_that_torch_does_not_know_is_attributed_as_well() -> None:
    model = without_activation(small("relu", depth=1), "relu")
    model.set_submodule("activation1", Synthetic())
    layer = model.get_submodule("activation1")
    (step,) = profiled(model, [layer], steps=1)
    assert step.forward == (*("aten::detach", "Doubled", "aten::sin", "aten::cos", "aten::detach"),)
    assert step.backward == ("SinBackward0", "DoubledBackward")


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_every_activation_is_found_in_every_model(name: str, model_name: str) -> None:
    model = small(name, model_name)
    data = make_step_data(SHAPES[model_name], 3, 4, stream(0, "data"))
    arm = make_arm(model, name, data, stream(0, "inputs"))
    widths = {
        "mlp": ((4, 5),) * 2,
        "cnn": ((4, 32, 8, 8), (4, 64, 4, 4), (4, 5)),
        "small_cnn": ((4, 16, 7, 7), (4, 32, 2, 2), (4, 5)),
    }
    assert arm.shapes == widths[model_name]
    (step,) = profile_steps(
        lambda: training_step(arm.model, data.x, data.y, data.batch, learning_rate=0.0),
        arm.layers,
        steps=1,
    )
    kinds = {node.removesuffix("0") for node in step.backward}
    assert len(step.forward) >= len(arm.layers)
    assert len(step.backward) >= len(arm.layers)
    assert not kinds & {"AddmmBackward", "TBackward", "ConvolutionBackward", "NllLossBackward"}
    assert not kinds & {"MaxPool2DWithIndicesBackward", "LogSoftmaxBackward"}


def event(name: str, start: float, end: float, parent: Any = None, sequence: int = -1) -> Any:
    span = SimpleNamespace(start=start, elapsed_us=lambda: end - start)
    return SimpleNamespace(name=name, time_range=span, cpu_parent=parent, sequence_nr=sequence)


def test_a_share_is_added_up_by_hand() -> None:
    events = []
    for zero in (0.0, 100.0):
        number = int(zero)
        step = event(profile.STEP, zero, zero + 50)
        dense = event("aten::linear", zero + 1, zero + 10, step, number)
        made = event("aten::addmm", zero + 2, zero + 9, dense, number)
        layer = event(profile.ACTIVATION, zero + 10, zero + 20, step)
        act = event("aten::act", zero + 11, zero + 14, layer, number + 1)
        inner = event("aten::exp", zero + 12, zero + 13, act)
        view = event("aten::detach", zero + 15, zero + 15.5, layer, number + 2)
        loss = event("aten::loss", zero + 21, zero + 22, step, number + 2)
        nodes = [
            event(f"{profile.BACKWARD}Loss", zero + 30, zero + 31, step, number + 2),
            event(f"{profile.BACKWARD}Act", zero + 32, zero + 36, step, number + 1),
            event(f"{profile.BACKWARD}Addmm", zero + 40, zero + 49, step, number),
            event(f"{profile.BACKWARD}torch::autograd::AccumulateGrad", zero + 49, zero + 50, step),
        ]
        own = event("Act", zero + 32.5, zero + 35, nodes[1], number + 1)
        events += [step, dense, made, layer, act, inner, view, loss, *nodes[:2], own, *nodes[2:]]
    one, other = profile.attribute(events)
    assert one == other
    assert one.forward == ("aten::act", "aten::detach")
    assert one.backward == ("Act",)
    assert one.activation_us == 3 + 0.5 + 4
    assert one.step_us == 50


def test_the_profiler_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    model = small("relu")
    layer = model.get_submodule("activation1")
    profiled(model, [layer])
    with pytest.raises(IndexError), profile.marked([layer]):
        model(torch.zeros(1, 3, 3)[:, :, :, 0])
    with pytest.raises(ValueError, match="stop"):
        profile_steps(lambda: stop(model), [layer], steps=1)
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    assert profile.LOG_LEVEL[0] not in os.environ
    assert capfd.readouterr() == ("", "")


def stop(model: nn.Module) -> None:
    model(torch.zeros(1, 8))
    raise ValueError("stop")


def test_a_log_level_of_the_user_s_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINETO_LOG_LEVEL", "7")
    with profile.announced_to_nobody():
        assert os.environ["KINETO_LOG_LEVEL"] == "7"
    assert os.environ["KINETO_LOG_LEVEL"] == "7"


# What is timed.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clocks by one that only moves when it is told to, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_forward_and_backward_are_timed_apart_and_per_pass(clock: Callable[[float], None]) -> None:
    takes = [2**-4, 2**-2]

    class Timed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            clock(takes[0])
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            clock(takes[1])
            return gradient

    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Timed.apply(x)

        def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
            return Layer()

    layers = [Layer(), Layer()]
    inputs = [torch.ones(3, requires_grad=True), torch.ones(5, requires_grad=True)]
    arm = timing.Arm(
        model=nn.Sequential(*layers),
        layers=tuple(layers),
        shapes=((3,), (5,)),
        evaluations=tuple(zip(layers, inputs, strict=True)),
        elements=8,
    )
    forward, backward, passes = timing.time_elements(arm, seconds=2.0)
    assert passes == math.ceil(2.0 / (2 * 2**-4 + 2 * 2**-2))
    assert forward == passes * 2 * 2**-4
    assert backward == passes * 2 * 2**-2
    assert timing.time_steps(lambda: clock(0.25), seconds=1.1) == (1.25, 5)
    assert timing.time_steps(lambda: clock(0.25), seconds=0.0) == (0.25, 1)
    # A block is never too short for the clock, however little time there is.
    takes[:] = [2**-13, 2**-2]
    assert timing.time_elements(arm, seconds=0.0) == (9 * 2**-12, 9 * 2**-1, 9)
    assert timing.time_steps(lambda: clock(2**-11), seconds=0.0) == (5 * 2**-11, 5)


def test_a_visit_leaves_the_model_as_it_was() -> None:
    arm = make_arm(small("prelu"), "prelu", DATA, stream(0, "inputs"))
    timing.visit(arm, DATA, seconds=0.0)
    assert same(state(arm.model), state(small("prelu")))


def test_a_visit_gives_seconds_per_element_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = make_arm(small("relu"), "relu", DATA, stream(0, "inputs"))
    monkeypatch.setattr(timing, "time_elements", lambda arm, seconds: (6.0, 12.0, 3))
    monkeypatch.setattr(timing, "time_steps", lambda step, seconds: (10.0, 4))
    steps = [SimpleNamespace(activation_us=value) for value in (9e6, 2e6, 1e6)]
    monkeypatch.setattr(timing, "profile_steps", lambda step, layers, steps_=steps, **_: steps_)
    assert timing.visit(arm, DATA, seconds=0.0) == Block(
        forward=2.0 / arm.elements,
        backward=4.0 / arm.elements,
        step=2.5,
        activation=2.0,
        forward_total=6.0,
        backward_total=12.0,
        step_total=10.0,
    )


def test_an_arm_evaluates_modules_of_their_own_on_standard_normal_inputs() -> None:
    model = small("prelu")
    before = state(model)
    arm = make_arm(model, "prelu", DATA, stream(0, "inputs"))
    assert same(state(model), before)
    assert arm.model is not model
    modules = [module for module, _ in arm.evaluations]
    assert len(set(map(id, modules))) == len(modules) == timing.EVALUATIONS
    assert arm.elements == sum(values.numel() for _, values in arm.evaluations) == 16 * 40
    assert [tuple(values.shape) for _, values in arm.evaluations[:2]] == [(4, 5), (4, 5)]
    large = make_step_data((8,), 3, 2**16, stream(0, "data"))
    wide = make_arm(model, "prelu", large, stream(0, "inputs"))
    assert len(wide.evaluations) == 2  # a pass of a large network is one of all its layers
    values = wide.evaluations[0][1].detach()
    assert abs(values.mean().item()) < 0.01
    assert values.var().item() == pytest.approx(1, abs=0.02)


def test_the_control_is_the_model_without_its_activation() -> None:
    model = small("prelu")
    control = without_activation(model, "prelu")
    assert [type(layer).__name__ for layer in control.children()] == [
        *("Flatten", "Linear", "Identity", "Linear", "Identity", "Linear"),
    ]
    assert len(timing.activation_layers(model, "prelu")) == 2
    assert same(state(control), {k: v for k, v in state(model).items() if "activation" not in k})


# Turns and medians.


def blocks_of(text: str, number: int) -> Block:
    """Return a block whose times no two arms or turns share."""
    base = {"relu": 1.0, "tanh": 2.0, CONTROL: 0.5}[text]
    return Block(
        forward=1e-9 * base * (1 + number / 100),
        backward=2e-9 * base,
        step=1.0 + base + number / 10,
        activation=base / 4,
        forward_total=1.0,
        backward_total=1.0,
        step_total=1.0,
    )


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace measuring by made-up blocks, and return the list that names whose turn it was."""
    taken: list[str] = []

    def visit(arm: timing.Arm, data: timing.StepData, seconds: float) -> Block:
        kinds = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Identity: CONTROL}
        taken.append(kinds[type(arm.layers[0])])
        return blocks_of(taken[-1], (len(taken) - 1) // 3)

    monkeypatch.setattr(calibration, "visit", visit)
    return taken


def made_up(blocks: int = 10, **changed: Any) -> Calibration:
    arguments: dict[str, Any] = {
        "input_shape": (8,),
        "classes": 3,
        "batch_size": 4,
        "blocks": blocks,
        "seconds": 1.0,
        "seed": 0,
    }
    return calibrate({"relu": small("relu"), "tanh": small("tanh")}, **{**arguments, **changed})


def test_every_block_visits_every_arm_once_in_an_order_of_its_own(turns: list[str]) -> None:
    told: list[tuple[int, int]] = []
    made_up(progress=lambda done, blocks, left: told.append((done, blocks)))
    rounds = [tuple(turns[i : i + 3]) for i in range(0, len(turns), 3)]
    assert len(rounds) == 11
    assert {frozenset(order) for order in rounds} == {frozenset({"relu", "tanh", CONTROL})}
    assert len(set(rounds)) > 3
    assert told == [(done, 10) for done in (0, *range(11))]
    first = turns.copy()
    turns.clear()
    made_up()
    assert turns == first
    turns.clear()
    made_up(seed=1)
    assert turns != first


def test_figures_are_medians_over_the_blocks_but_the_first(turns: list[str]) -> None:
    found = made_up()
    assert (found.batch_size, found.blocks, found.shapes) == (4, 10, ((4, 5), (4, 5)))
    assert list(found.activations) == ["relu", "tanh"]
    blocks = {name: [blocks_of(name, i) for i in range(1, 11)] for name in ("relu", "tanh")}
    control = [blocks_of(CONTROL, i) for i in range(1, 11)]
    for name, mine in blocks.items():
        timed = found.activations[name]
        expected = {
            "forward_ns": [1e9 * b.forward for b in mine],
            "backward_ns": [1e9 * b.backward for b in mine],
            "step_seconds": [b.step for b in mine],
            "share_of_step": [b.activation / b.step for b in mine],
            "share_by_difference": [
                1 - c.step / b.step for b, c in zip(mine, control, strict=True)
            ],
            "times_relu": [
                (b.forward + b.backward) / (r.forward + r.backward)
                for b, r in zip(mine, blocks["relu"], strict=True)
            ],
        }
        for figure, values in expected.items():
            interval = getattr(timed, figure)
            assert interval.estimate == pytest.approx(statistics.median(values), rel=1e-12)
            assert min(values) <= interval.low * (1 + 1e-12)
            assert interval.high <= max(values) * (1 + 1e-12)
            assert interval.low <= interval.estimate <= interval.high
            assert (interval.low < interval.high) == (max(values) - min(values) > 1e-12)
    assert found.control.share_by_difference == Interval(estimate=0.0, low=0.0, high=0.0)
    assert found.control.step_seconds.estimate == statistics.median(b.step for b in control)


def test_without_relu_nothing_is_a_multiple_of_it(turns: list[str]) -> None:
    found = calibrate(
        {"tanh": small("tanh")},
        input_shape=(8,),
        classes=3,
        batch_size=4,
        blocks=2,
        seconds=1.0,
        seed=0,
    )
    assert found.activations["tanh"].times_relu is None
    assert found.control.times_relu is None


@pytest.mark.parametrize(
    "models",
    [
        {},
        {"relu": small("relu"), "tanh": small("tanh", depth=1)},
        {"relu": small("tanh")},  # which has no relu
        {"relu": small("relu"), "tanh": small("relu")},
    ],
)
def test_models_that_cannot_be_compared_are_refused(models: dict[str, nn.Module]) -> None:
    with pytest.raises(ValueError, match="same shapes"):
        calibrate(models, input_shape=(8,), classes=3, batch_size=4, blocks=5, seconds=0.01, seed=0)


def test_a_real_calibration_is_complete_and_disturbs_nothing(tmp_path: Path) -> None:
    model = small("prelu").train()
    model.get_submodule("dense1").eval()
    before, threads = copy.deepcopy(model), torch.get_num_threads()
    allowed = stability.allowed_cores()
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist()
    found = calibrate(
        {"prelu": model, "relu": small("relu")},
        input_shape=(8,),
        classes=3,
        batch_size=4,
        blocks=3,
        seconds=0.01,
        seed=0,
    )
    assert same(state(model), state(before))
    assert all(p.grad is None for p in model.parameters())
    modes = [[m.training for m in tree.modules()] for tree in (model, before)]
    assert modes[0] == modes[1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.random.get_state()[1].tolist() == generators[1]
    assert torch.get_num_threads() == threads
    assert stability.allowed_cores() == allowed
    for timed in (*found.activations.values(), found.control):
        figures = [getattr(timed, f.name) for f in dataclasses.fields(timed)]
        assert all(math.isfinite(f.estimate) and f.low <= f.estimate <= f.high for f in figures)
        assert all(f.estimate > 0 for f in (timed.forward_ns, timed.backward_ns))
        assert timed.step_seconds.low > 0
    assert found.machine.threads == 1
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(found.as_json(), allow_nan=False))
    assert read_calibration(path) == found
    assert calibration.same_machine(found) is None


# Intervals, and when not to believe them.

values = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(values, st.integers(0, 3))
@example([263.1423154439005] * 2, 0)  # whose resamples SciPy does not interpolate exactly
def test_an_interval_surrounds_the_median_and_scales_with_it(data: list[float], seed: int) -> None:
    found = median_interval(data, stream(seed, "test"))
    assert found.estimate == statistics.median(data)
    assert found.low <= found.estimate <= found.high
    assert min(data) <= found.low * (1 + 1e-12)
    assert found.high <= max(data) * (1 + 1e-12)
    assert median_interval(data, stream(seed, "test")) == found
    twice = median_interval([2 * v for v in data], stream(seed, "test"))
    assert twice == Interval(estimate=2 * found.estimate, low=2 * found.low, high=2 * found.high)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = stream(0, "coverage")
    held = 0
    for _ in range(300):
        found = median_interval(rng.normal(5.0, 1.0, size=25).tolist(), rng)
        held += found.low <= 5.0 <= found.high
    assert 0.90 <= held / 300 <= 0.99


def test_one_wild_block_moves_nothing() -> None:
    steady = [1.0 + i / 1000 for i in range(21)]
    calm = median_interval(steady, stream(0, "test"))
    wild = median_interval([*steady[:-1], 1e6], stream(0, "test"))
    assert wild == calm


def test_instability_is_told_as_pyperf_tells_it() -> None:
    steady = [1.0, 1.1, 0.9, 1.0]
    assert instabilities("step", {"relu": steady}, 1e-3) == []
    # A deviation of exactly 10% of the mean, and one below.
    assert instabilities("step", {"relu": [0.9, 1.0, 1.1]}, 1.0) == [
        "step: the standard deviation of the blocks is 10.0% of their mean (relu)"
    ]
    assert instabilities("step", {"relu": [0.91, 1.0, 1.09]}, 1.0) == []
    # One block of twenty that is half as long again as the mean, and one that is just not.
    far = [1.0] * 199 + [1.5 * 199 / 198.5]
    assert instabilities("step", {"relu": far, "tanh": steady}, 1.0) == [
        "step: a block is 50.0% away from the mean of the blocks (relu)"
    ]
    assert instabilities("step", {"relu": [1.0] * 199 + [1.5]}, 1.0) == []
    short = [1.0] * 199 + [0.4]
    assert instabilities("step", {"relu": far, "tanh": short}, 0.9e-3) == [
        "step: a block is 59.9% away from the mean of the blocks (tanh and 1 more)",
        "step: the shortest block took only 900 us",
    ]


def test_the_warnings_of_a_calibration_name_what_was_timed() -> None:
    calm = [blocks_of("relu", 0)] * 5
    assert calibration.reasons({"relu": calm}) == []
    for name in ("forward", "backward", "step"):
        wild = dataclasses.replace(calm[0], **{name: 3 * getattr(calm[0], name)})
        lines = calibration.reasons({"relu": [*calm, wild]})
        assert len(lines) == 2
        assert all(line.startswith(f"{name}: ") for line in lines)
        short = dataclasses.replace(calm[0], **{f"{name}_total": 5e-4})
        assert calibration.reasons({"relu": calm, "tanh": [short] * 2}) == [
            f"{name}: the shortest block took only 500 us"
        ]


# The thread and the machine.


def test_a_pinned_thread_has_one_core_and_afterwards_its_own() -> None:
    threads, allowed = torch.get_num_threads(), stability.allowed_cores()
    torch.set_num_threads(2)
    try:
        with pinned() as machine:
            assert torch.get_num_threads() == machine.threads == 1
            if machine.pinned is not None:
                assert stability.allowed_cores() == {machine.pinned}
                assert machine.pinned in allowed
                assert machine.cores == len(allowed)
        assert torch.get_num_threads() == 2
        assert stability.allowed_cores() == allowed
        with pytest.raises(KeyError), pinned():
            raise KeyError
        assert torch.get_num_threads() == 2
        assert stability.allowed_cores() == allowed
    finally:
        torch.set_num_threads(threads)


def test_where_a_thread_cannot_be_pinned_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, cores: set[int]) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with pinned() as machine:
        assert machine.pinned is None
        assert machine.cores == len(stability.allowed_cores())
    monkeypatch.setattr(stability, "allowed_cores", set)
    assert stability.here().pinned is None
    assert stability.here().cores >= 1


def test_timings_of_unlike_machines_are_not_pooled(turns: list[str]) -> None:
    found = made_up()
    assert calibration.same_machine(found) is None

    def elsewhere(**changed: Any) -> str | None:
        machine = dataclasses.replace(found.machine, **changed)
        return calibration.same_machine(dataclasses.replace(found, machine=machine))

    why = elsewhere(processor="Z80", cores=1000)
    assert why is not None
    assert f"processor: Z80 -> {found.machine.processor}" in why
    assert f"cores: 1000 -> {found.machine.cores}" in why
    assert "torch" in (elsewhere(torch="1.0") or "")
    assert "platform" in (elsewhere(platform="plan9") or "")
    assert "threads" in (elsewhere(threads=2) or "")
    if found.machine.pinned is not None:
        assert elsewhere(pinned=found.machine.pinned + 1) is None
        assert elsewhere(pinned=None) == (
            "measured under other conditions: pinned: to no core -> to a core"
        )


# The file.


def test_the_file_says_that_it_is_measured(turns: list[str], tmp_path: Path) -> None:
    found = made_up()
    document = json.loads(json.dumps(found.as_json()))
    assert (document["format"], document["kind"]) == (1, "measured")
    assert set(document["activations"]) == {"relu", "tanh"}
    timed = document["activations"]["tanh"]
    assert all(set(figure) == {"estimate", "low", "high"} for figure in timed.values())
    assert set(timed) == {
        *("forward_ns", "backward_ns", "times_relu", "step_seconds", "share_of_step"),
        "share_by_difference",
    }
    assert set(document["machine"]) == {
        *("processor", "cores", "platform", "torch", "threads", "pinned"),
    }
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(document))
    assert read_calibration(path) == found


def broken(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def write(text: str) -> str:
        document = json.loads(text)
        change(document)
        return json.dumps(document)

    return write


DAMAGES: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[:-20],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "nested": lambda text: "[" * 100_000,
    "lacks": broken(lambda d: d.pop("machine")),
    "unlike": broken(lambda d: d["machine"].update(colour="red")),
    "no figure": broken(lambda d: d["activations"]["tanh"].pop("forward_ns")),
    "unknown": broken(lambda d: d["activations"]["tanh"].update(luck=1)),
    "text": broken(lambda d: d["activations"]["tanh"]["forward_ns"].update(low="1")),
    "nan": broken(lambda d: d["control"]["forward_ns"].update(low=math.nan)),
    "null": broken(lambda d: d["control"].update(forward_ns=None)),
    "order": broken(lambda d: d["control"]["forward_ns"].update(low=1e9)),
    "names": broken(lambda d: d.update(activations=["relu"])),
    "often": broken(lambda d: d.update(unstable="often")),
    "true": broken(lambda d: d["control"]["forward_ns"].update(low=True)),
    "number": broken(lambda d: d["control"].update(forward_ns=3.0)),
    "bytes": lambda text: "\xff",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(turns: list[str], tmp_path: Path, damage: str) -> None:
    path = tmp_path / "calibration.json"
    text = DAMAGES[damage](json.dumps(made_up(blocks=2).as_json()))
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError) as caught:
        read_calibration(path)
    assert str(caught.value).startswith(f"{path} is no calibration, or a damaged one (")
    assert str(caught.value).endswith(REMEDY)


def test_a_file_that_is_missing_or_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    with pytest.raises(DataError, match="No such file"):
        read_calibration(path)
    path.write_text('{"format": 2}')
    with pytest.raises(DataError, match="format 2, and this fedsim reads format 1") as caught:
        read_calibration(path)
    assert str(caught.value).endswith(REMEDY)
    for way in ("fedsim bench activations --out", "measure.calibrate=true"):
        assert way in REMEDY


# Experiments.


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Catch what experiments ask to have calibrated."""
    import fedsim.calibration as composition

    asked: dict[str, Any] = {}

    def catch(models: dict[str, nn.Module], **arguments: Any) -> str:
        asked.update(models=models, **arguments)
        return "measured"

    monkeypatch.setattr(composition, "calibrate", catch)
    return asked


def test_experiments_are_calibrated_by_their_activation(
    make_experiment: Callable[..., Any], calibrated: dict[str, Any]
) -> None:
    experiments = [
        make_experiment(model={"activation": name}, experiment={"seed": seed})
        for seed in (3, 4)
        for name in ("tanh", "leaky_relu(0.1)")
    ]
    assert calibrate_experiments(experiments, blocks=5, seconds=2.0) == "measured"
    models = calibrated.pop("models")
    assert list(models) == ["tanh", "leaky_relu(0.1)"]
    for name, model in models.items():
        assert len(timing.activation_layers(model, name)) == 1
    assert calibrated == {
        "input_shape": (1, 8, 8),
        "classes": 10,
        "batch_size": 32,
        "blocks": 5,
        "seconds": 2.0,
        "seed": 3,
        "progress": None,
    }


def test_full_batches_are_the_mean_client_s(
    make_experiment: Callable[..., Any], calibrated: dict[str, Any]
) -> None:
    from fedsim import parts

    experiment = make_experiment(train={"batch_size": 0})
    calibrate_experiments([experiment])
    examples = len(parts.dataset(experiment).y_train)
    assert 8 * (calibrated["batch_size"] - 1) < examples <= 8 * calibrated["batch_size"]


def test_experiments_of_several_models_are_refused_with_every_problem(
    make_experiment: Callable[..., Any], calibrated: dict[str, Any]
) -> None:
    experiments = [
        make_experiment(model={"width": 4}, train={"batch_size": 8}),
        make_experiment(model={"width": 8}, train={"batch_size": 16}),
    ]
    with pytest.raises(ConfigError) as caught:
        calibrate_experiments(experiments, blocks=4, seconds=math.nan)
    assert caught.value.problems == (
        "blocks = 4: must be at least 5 for intervals",
        "seconds = nan: must be finite and above 0",
        "model.width = 4 and 8: a calibration is of one; choose one",
        "train.batch_size = 8 and 16: a calibration is of one; choose one",
    )
    with pytest.raises(ConfigError, match="at least one experiment"):
        calibrate_experiments([])
    assert calibrated == {}


# The command.

FAST = ("--blocks", "5", "--seconds", "0.01", "-s", "model.width=4", "-s", "train.batch_size=2")


def test_the_command_prints_a_table_and_keeps_a_file(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    names = "tempered_sigmoid(2, 2, 1),relu"
    answer = cli("bench", "activations", *FAST, "--activations", names, "--out", "c.json")
    assert answer.code == 0
    for words in ("forward, ns/element", "backward, ns/element", "x relu", "share of a step"):
        assert words in answer.out
    lines = [line.strip() for line in answer.out.splitlines()]
    for name in ("tempered_sigmoid(2, 2, 1) ", "relu ", "(control: identity) "):
        assert sum(line.startswith(name) for line in lines) == 1
    assert "all measured: medians of 5 blocks [95% interval], one thread, " in answer.out
    assert "inputs 2x4, 2x4; " in answer.out
    told = [line for line in answer.err.splitlines() if not line.startswith("unstable: ")]
    assert told[0].startswith(
        "timing 2 activations and the control: 0 of 5 blocks, about 10 ms left"
    )
    assert told[-1].startswith("timing 2 activations and the control: 4 of 5 blocks, about ")
    found = read_calibration(tmp_path / "c.json")
    assert set(found.activations) == {"tempered_sigmoid(2, 2, 1)", "relu"}
    assert found.unstable == tuple(
        line.removeprefix("unstable: ") for line in answer.err.splitlines() if line not in told
    )


def test_the_command_gives_json_and_is_quiet(cli: Callable[..., Any]) -> None:
    answer = cli(
        *("bench", "activations", *FAST, "--activations", "tanh", "-q", "--format", "json")
    )
    assert answer.code == 0
    assert (answer.json["kind"], list(answer.json["activations"])) == ("measured", ["tanh"])
    assert all(line.startswith("unstable: ") for line in answer.err.splitlines())


def test_the_default_is_the_whole_registry_and_the_experiment_s_own() -> None:
    from fedsim.cli.bench import read_experiments

    found = [e.model.activation for e in read_experiments(None, [], None)]
    assert found == ACTIVATION_NAMES
    own = ["model.activation=leaky_relu(0.3)"]
    found = [e.model.activation for e in read_experiments(None, own, None)]
    assert found == [*ACTIVATION_NAMES, "leaky_relu(0.3)"]
    found = [e.model.activation for e in read_experiments(None, own, "tanh, identity,tanh")]
    assert found == ["tanh", "identity"]


def test_the_command_asks_for_as_much_as_a_study_does() -> None:
    from fedsim.cli.bench import activations

    command, call = (inspect.signature(f).parameters for f in (activations, calibrate_experiments))
    for name in ("blocks", "seconds"):
        assert command[name].default == call[name].default


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--activations", "rellu"), "model.activation = 'rellu': unknown; did you mean 'relu'?"),
        (("--activations", ""), "model.activation = '': unknown"),
        (("--activations", "tanh,elu(0)"), "model.activation = 'elu(0)': alpha must be above 0"),
        (("--blocks", "4"), "blocks = 4: must be at least 5"),
        (("--seconds", "0"), "seconds = 0.0: must be finite and above 0"),
        (("--seconds", "-1"), "seconds = -1.0: must be finite and above 0"),
        (("--out", "missing/c.json"), "missing is no directory"),
        (("--out", "."), "is a directory"),
        (("missing.toml",), "missing.toml: no such file"),
        (("-s", "train.batchsize=3"), "train.batchsize = 3: unknown key; did you mean"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    cli: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    answer = cli("bench", "activations", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert all(line.startswith("error: ") for line in answer.err.splitlines())
    assert message in answer.err


# On start.


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace measuring by a made-up result of the real shapes; return what was asked for."""
    asked: list[dict[str, Any]] = []

    def calibrate_at_once(models: dict[str, nn.Module], **arguments: Any) -> Calibration:
        asked.append({"models": list(models), **arguments})
        if arguments["progress"]:
            arguments["progress"](0, 20, 25.0)
        shape, batch = arguments["input_shape"], arguments["batch_size"]
        data = make_step_data(shape, arguments["classes"], batch, stream(0, "data"))
        (name, model), *_ = models.items()
        figures = {f.name: STEADY for f in dataclasses.fields(Timing)}
        return Calibration(
            machine=stability.here(),
            unstable=("step: the blocks are wild",),
            batch_size=batch,
            shapes=make_arm(model, name, data, stream(0, "inputs")).shapes,
            blocks=20,
            seconds=25.0,
            control=Timing(**figures),
            activations={text: Timing(**figures) for text in models},
        )

    monkeypatch.setattr("fedsim.calibration.calibrate", calibrate_at_once)
    return asked


STEADY = Interval(estimate=0.25, low=0.125, high=0.5)
ASKING = {"calibrate": True}


def keep(path: Path, found: bytes | None) -> None:
    assert found is not None
    path.write_bytes(found)


def test_who_does_not_ask_waits_for_nothing(
    make_experiment: Callable[..., Any], calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "c.json").write_text("{}")
    assert calibration_of([make_experiment()], tmp_path / "c.json") is None
    assert calls == []


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"train": {"batch_size": 0}},
        {"model": {"name": "cnn", "width": 8, "depth": 2, "activation": "leaky_relu(0.1)"}},
        {"model": {"activation": "prelu", "depth": 3}},
    ],
)
def test_a_calibration_serves_again(
    make_experiment: Callable[..., Any],
    calls: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tables: dict[str, Any],
) -> None:
    experiment, path = make_experiment(**tables, measure=ASKING), tmp_path / "c.json"
    keep(path, calibration_of([experiment, make_experiment()], path))
    assert capsys.readouterr().err.splitlines() == [
        "timing 1 activation and the control: 0 of 20 blocks, about 25 s left",
        "unstable: step: the blocks are wild",
    ]
    assert calls[0]["models"] == [experiment.model.activation]
    other = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, learning_rate=0.5, epochs=3)
    )
    assert calibration_of([experiment, other], path) is None
    assert len(calls) == 1
    path.unlink()
    assert calibration_of([experiment], path, quiet=True) is not None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"model": {"activation": "tanh"}}, "lacks tanh"),
        ({"model": {"width": 9}}, "32 examples of 8 elements -> 32 examples of 9 elements"),
        ({"model": {"depth": 2}}, "32 examples of 8 elements -> 32 examples of 8, 8 elements"),
        ({"train": {"batch_size": 8}}, "32 examples of 8 elements -> 8 examples of 8 elements"),
        (
            {"train": {"batch_size": 0}, "data": {"clients": 5}},
            "32 examples of 8 elements -> 288 examples of 8 elements",
        ),
    ],
)
def test_a_calibration_of_something_else_does_not_serve(
    make_experiment: Callable[..., Any],
    calls: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tables: dict[str, Any],
    why: str,
) -> None:
    path = tmp_path / "c.json"
    keep(path, calibration_of([make_experiment(measure=ASKING)], path, quiet=True))
    assert calibration_of([make_experiment(**tables, measure=ASKING)], path) is not None
    assert len(calls) == 2
    told = capsys.readouterr().err.splitlines()[0]
    assert told.startswith(f"{path}: ")
    assert told.endswith(f"{why}; timing anew")


def moved(path: Path) -> bytes:
    """Make a calibration one of another machine, and return the file."""
    document = json.loads(path.read_text())
    document["machine"]["processor"] = "Z80"
    path.write_text(json.dumps(document))
    return path.read_bytes()


def test_a_calibration_of_another_machine_does_not_serve(
    make_experiment: Callable[..., Any],
    calls: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment, path = make_experiment(measure=ASKING), tmp_path / "c.json"
    keep(path, calibration_of([experiment], path, quiet=True))
    moved(path)
    assert calibration_of([experiment], path) is not None
    told = capsys.readouterr().err.splitlines()[0]
    assert told.startswith(f"{path}: measured under other conditions: processor: Z80 -> ")
    path.write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        calibration_of([experiment], path)


def test_experiments_of_several_shapes_are_told_which_setting_asked(
    make_experiment: Callable[..., Any], calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    experiments = [make_experiment(model={"width": w}, measure=ASKING) for w in (4, 8)]
    with pytest.raises(ConfigError) as caught:
        calibration_of(experiments, tmp_path / "c.json")
    assert caught.value.problems == (
        "model.width = 4 and 8: a calibration is of one; choose one",
        "measure.calibrate = true: leave it out: -s measure.calibrate=false, or in [set] of a "
        "study",
    )
    assert calls == []


# A run's.

CALIBRATE = ("-s", "measure.calibrate=true")
CLI = Callable[..., Any]


def test_a_run_keeps_and_shows_its_timings(
    cli: CLI, tiny: tuple[str, ...], calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    answer = cli("run", *tiny, *CALIBRATE, "--out", "a")
    assert answer.code == 0
    assert answer.out.splitlines()[-1] == (
        "  relu            0.25 ns/element forward, 0.25 backward, 25.0% of a training step "
        "(measured)"
    )
    assert answer.err.splitlines()[:3] == [
        "timing 1 activation and the control: 0 of 20 blocks, about 25 s left",
        "unstable: step: the blocks are wild",
        "quickstart: starting the inline engine",
    ]
    assert set(read_calibration(tmp_path / "a" / "calibration.json").activations) == {"relu"}
    summary = cli("run", "--resume", "a", "--format", "json", "-q").json
    steady = {"kind": "measured", **dataclasses.asdict(STEADY)}
    assert summary["calibration"]["forward_ns"] == steady
    assert len(calls) == 1


def test_a_run_that_is_there_can_be_given_timings(
    cli: CLI, tiny: tuple[str, ...], calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    first = cli("run", *tiny, "--out", "a", "--format", "json").json
    assert (first["calibration"], calls) == (None, [])
    again = cli("run", "--resume", "a", *CALIBRATE, "--format", "json").json
    assert again["calibration"]["share_of_step"]["estimate"] == 0.25
    assert again["model_sha256"] == first["model_sha256"]
    assert len(calls) == 1


def refusals() -> dict[str, tuple[str, ...]]:
    return {
        "occupied": ("-s", "experiment.seed=3", "--out", "a"),
        "another experiment": ("--resume", "a", "-s", "model.activation=tanh"),
        "locked": ("--resume", "a", "-s", "engine.workers=1"),
    }


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("case", refusals())
def test_a_run_that_is_refused_times_nothing_and_keeps_the_other_s_file(
    cli: CLI,
    tiny: tuple[str, ...],
    calls: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    late: bool,
) -> None:
    cli("run", *tiny, *CALIBRATE, "--out", "a", "-q")
    path = tmp_path / "a" / "calibration.json"
    before = moved(path)
    if late:  # what is against it came only while the activations were timed
        monkeypatch.setattr("fedsim.cli.run.may_begin", lambda experiment: True)
    lock = RunLock(tmp_path / "a" / "run.lock") if case == "locked" else None
    arguments = refusals()[case]
    settings = tiny if "--out" in arguments else ()
    answer = cli("run", *settings, *arguments, *CALIBRATE, "-q")
    if lock:
        lock.release()
    assert answer.code == (1 if case == "locked" else 2)
    assert answer.err.startswith(f"error: {tmp_path / 'a'} ")
    assert len(calls) == (2 if late else 1)
    assert path.read_bytes() == before


def test_a_run_that_another_process_began_while_this_one_timed_is_not_written_to(
    cli: CLI,
    tiny: tuple[str, ...],
    calls: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin_elsewhere(experiment: Experiment) -> bool:
        with runs.open_run(experiment):
            return True

    monkeypatch.setattr("fedsim.cli.run.may_begin", begin_elsewhere)
    answer = cli("run", *tiny, *CALIBRATE, "--out", "a", "-q")
    assert answer.code == 2
    assert answer.err.startswith(f"error: {tmp_path / 'a'} already holds a run")
    assert len(calls) == 1
    assert not (tmp_path / "a" / "calibration.json").exists()


def test_a_directory_that_holds_anything_is_refused_before_timing(
    cli: CLI, tiny: tuple[str, ...], calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("")
    (tmp_path / "file").write_text("")
    for out in ("a", "file"):
        assert cli("run", *tiny, *CALIBRATE, "--out", out).code == 2
    assert calls == []
    (tmp_path / "b").mkdir()
    assert cli("run", *tiny, *CALIBRATE, "--out", "b").code == 0
    assert len(calls) == 1


def test_a_run_that_fails_or_is_interrupted_keeps_its_timings_and_one_that_never_began_none(
    cli: CLI,
    tiny: tuple[str, ...],
    calls: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    diverging = ("-s", "train.learning_rate=1e30")
    assert cli("run", *tiny, *CALIBRATE, *diverging, "--out", "failed").code == 1
    assert (tmp_path / "failed" / "calibration.json").is_file()

    class Interrupt(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    interrupt = Interrupt()
    logging.getLogger("flwr.fedsim").addHandler(interrupt)
    try:
        assert cli("run", *tiny, *CALIBRATE, "--out", "stopped").code == 130
    finally:
        logging.getLogger("flwr.fedsim").removeHandler(interrupt)
    path = tmp_path / "stopped" / "calibration.json"
    before = moved(path)

    def stop(experiment: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.simulation.open_engine", stop)
    assert cli("run", "--resume", "stopped", *CALIBRATE).code == 130
    assert cli("run", *tiny, *CALIBRATE, "--out", "never").code == 130
    monkeypatch.setattr(
        "fedsim.simulation.open_engine", lambda experiment: SimpleNamespace(close=lambda: None)
    )
    monkeypatch.setattr("fedsim.simulation.simulate", lambda experiment, executor: stop(None))
    assert cli("run", "--resume", "stopped", *CALIBRATE).code == 130
    assert path.read_bytes() == before
    assert len(calls) == 5
    assert not (tmp_path / "never").exists()


# A study's.


def test_a_study_times_only_where_runs_are_missing(
    cli: CLI, calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    tiny = 'data.clients = 5\nserver.clients_per_round = 2\nengine.name = "inline"\n'
    (tmp_path / "base.toml").write_text(f"experiment.rounds = 1\nmodel.width = 8\n{tiny}")
    axes = '[axes]\n"model.activation" = ["relu", "tanh"]'
    (tmp_path / "small.toml").write_text(f'base = "base.toml"\nseeds = 1\n{axes}')
    path = tmp_path / "runs" / "small" / "calibration.json"

    cli("study", "small.toml")
    assert not path.exists()
    cli("study", "small.toml", *CALIBRATE)  # all has run already, and nothing is timed yet
    assert (len(calls), path.exists()) == (1, True)
    path.unlink()
    calls.clear()
    (tmp_path / "small.toml").write_text(f'base = "base.toml"\nseeds = 2\n{axes}')
    answer = cli("study", "small.toml", *CALIBRATE)
    assert answer.code == 0
    assert calls[0]["models"] == ["relu", "tanh"]
    assert "another machine" not in answer.out
    assert "warning: the timings may not repeat: step: the blocks are wild" in answer.out

    before = moved(path)
    answer = cli("study", "small.toml", *CALIBRATE)
    assert (answer.code, len(calls), path.read_bytes()) == (0, 1, before)
    here = stability.here().processor
    warning = f"the timings are of another machine than the runs: processor: Z80 -> {here}"
    assert answer.out.count(f"warning: {warning}\n") == 1
    document = cli("study", "small.toml", "--format", "json").json
    assert document["calibration_elsewhere"] == [f"processor: Z80 -> {here}"]
    (tmp_path / "small.toml").write_text(f'base = "base.toml"\nseeds = 3\n{axes}')
    answer = cli("study", "small.toml", *CALIBRATE)
    assert (answer.code, len(calls)) == (0, 2)
    assert "processor: Z80 -> " in answer.err.splitlines()[0]
    assert "another machine" not in answer.out


def test_a_study_of_several_shapes_is_told_how_to_go_without(
    cli: CLI, calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "base.toml").write_text("measure.calibrate = true\n")
    axes = '[axes]\n"train.batch_size" = [4, 8]'
    (tmp_path / "small.toml").write_text(f'base = "base.toml"\nseeds = 1\n{axes}')
    answer = cli("study", "small.toml")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines() == [
        "error: train.batch_size = 4 and 8: a calibration is of one; choose one",
        "error: measure.calibrate = true: leave it out: -s measure.calibrate=false, or in [set] "
        "of a study",
    ]
    assert not (tmp_path / "runs").exists()
