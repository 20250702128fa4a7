"""Activation health: what a network's layers do on a client's data; that looking is harmless."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.errors import ConfigError
from fedsim.measure import evaluation
from fedsim.measure.evaluation import evaluate
from fedsim.measure.health import Health, LayerHealth, look, probe_indices, recognise
from fedsim.models import ACTIVATIONS, build_model, make_activation
from fedsim.randomness import stream

SHAPES = {"mlp": (6,), "cnn": (2, 4, 5), "small_cnn": (1, 14, 15)}
SIZES = {"mlp": {"width": 7}, "cnn": {"width": 7, "depth": 1}, "small_cnn": {"width": 7}}
LAYERS = {
    "mlp": ["dense1", "dense2", "output"],
    "cnn": ["conv1", "dense1", "output"],
    "small_cnn": ["conv1", "conv2", "dense1", "output"],
}
# Exactly 0 for inputs below 0; hardswish is below -3, the others only where float32 underflows.
RECTIFIERS = {"relu", "relu6", "relu_squared"}
EVERY = slice(None)


def network(name: str, activation: str, seed: int = 3) -> nn.Module:
    """Return a small network; the gain is given because working it out takes long.

    It is small, so that few inputs of a gelu reach -5, where its float32 underflows to 0.
    """
    return build_model(
        name,
        input_shape=SHAPES[name],
        classes=3,
        activation=activation,
        init_gain=1.0,
        seed=seed,
        **SIZES[name],
    )


def examples(name: str, count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = stream(seed, f"examples/{name}")
    x = torch.from_numpy(draw.standard_normal((count, *SHAPES[name]), np.float32))
    return x, torch.from_numpy(draw.integers(0, 3, count))


def dense(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def stacked(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict((f"m{i}", layer) for i, layer in enumerate(layers)))


def layer_of(health: Health, name: str) -> LayerHealth:
    (found,) = [layer for layer in health.layers if layer.layer == name]
    return found


# By hand: three units see 1 - x, x - 1 and -1 for x in 0, 1, 2, 3.
WEIGHT, BIAS = [[-1.0], [1.0], [0.0]], [1.0, -1.0, -1.0]
X, Y = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 1, 0, 1])


def test_a_dead_unit_by_hand() -> None:
    model = stacked(dense(WEIGHT, BIAS), nn.ReLU(), dense([[0.0] * 3] * 2, [1.0, 0.0]))
    health = look(model, X, Y, probe=slice(1, 4), activation="relu")
    assert (health.accuracy, health.loss) == (0.5, pytest.approx(math.log(1 + math.e) - 0.5))
    first, last = health.layers
    # Pre-activations of the probe: 0 -1 -2, 0 1 2, -1 -1 -1.
    assert (first.layer, first.parameters) == ("m0", 6)
    assert first.zero_fraction == 7 / 9
    assert first.dead_fraction == 1 / 3  # on the probe alone it would be 2 / 3
    assert first.saturated_fraction is None
    assert first.preactivation_mean == pytest.approx(-1 / 3, rel=1e-15)
    assert first.preactivation_std == pytest.approx(math.sqrt(13 / 9 - 1 / 9), rel=1e-15)
    assert first.gradient_norm == 0.0  # nothing comes through the weights of 0
    assert last == LayerHealth(
        layer="m2",
        parameters=8,
        zero_fraction=None,
        dead_fraction=None,
        saturated_fraction=None,
        preactivation_mean=0.5,
        preactivation_std=0.5,
        gradient_norm=last.gradient_norm,
    )
    # Scores (1, 0) give p = e / (1 + e) for class 0; inputs are (0, 0 or 1 or 2, 0).
    p = math.e / (1 + math.e)
    slopes = [p, p - 1, p]  # of the probe's labels 1, 0, 1
    by_bias, by_weight = sum(slopes) / 3, (slopes[1] * 1 + slopes[2] * 2) / 3
    assert last.gradient_norm == pytest.approx(math.sqrt(2) * math.hypot(by_bias, by_weight))
    assert health.gradient_ratio == 0.0


def test_a_dead_channel_by_hand() -> None:
    """A channel is alive if any of its positions is, in any example."""
    conv = nn.Conv2d(1, 3, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0, 1.0]).reshape(3, 1, 1, 1))
        conv.bias.copy_(torch.tensor([0.0, 0.0, -5.0]))
    model = stacked(conv, nn.ReLU(), nn.Flatten(), dense([[0.0] * 12], [0.0]))
    x = torch.zeros(2, 1, 2, 2)
    x[1, 0, 1, 0] = 4.0
    layer = look(model, x, torch.tensor([0, 0]), probe=EVERY, activation="relu").layers[0]
    assert layer.dead_fraction == 2 / 3  # the second sees -x, the third x - 5
    assert layer.zero_fraction == 23 / 24
    assert layer.parameters == 6


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [
        ("tanh", -1, 1),
        ("sigmoid", 0, 1),
        ("hardtanh", -1, 1),
        ("relu6", 0, 6),
        ("tempered_sigmoid", -1, 1),
        ("tempered_sigmoid(3, 0.001, 0.5)", -0.5, 2.5),
    ],
)
def test_saturation_by_hand(activation: str, low: float, high: float) -> None:
    kind, bounds = recognise(activation)
    assert kind is type(make_activation(activation))
    assert bounds == (low, high)
    # Pre-activations so large that one unit is at the upper bound and one at the lower.
    far = 1e5
    model = stacked(
        dense([[0.0], [0.0], [0.0], [0.0]], [far, -far, 0.3, 0.3]),
        make_activation(activation),
        dense([[0.0] * 4], [0.0]),
    )
    layer = look(model, X, Y * 0, probe=EVERY, activation=activation).layers[0]
    assert layer.saturated_fraction == 0.5
    assert layer.dead_fraction == (0.25 if low == 0 else 0.0)


def test_saturated_means_within_1_percent_of_the_range() -> None:
    model = stacked(dense([[1.0]], [0.0]), nn.ReLU6(), dense([[0.0]], [0.0]))
    x = torch.tensor([[-1.0], [0.059], [0.061], [3.0], [5.939], [5.941], [9.0]])
    health = look(model, x, torch.zeros(7, dtype=torch.long), probe=EVERY, activation="relu6")
    assert health.layers[0].saturated_fraction == 4 / 7


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS)))
def test_only_bounded_activations_saturate(activation: str) -> None:
    _, bounds = recognise(activation)
    assert (bounds is not None) == ACTIVATIONS[activation].bounded
    if bounds is not None:
        x = torch.linspace(-50, 50, 1001)
        y = make_activation(activation)(x)
        assert bounds == (pytest.approx(float(y.min())), pytest.approx(float(y.max())))


def reference(model: nn.Sequential, x: Tensor, y: Tensor, probe: Tensor, activation: str) -> Health:
    """Return the same by the definitions, module by module, in NumPy."""
    model = copy.deepcopy(model)
    kind = type(make_activation(activation))
    bounds = recognise(activation)[1]
    names = [name for name, _ in model.named_children()]
    outputs: dict[str, Tensor] = {}
    whole: dict[str, np.ndarray] = {}
    value, every = x[probe], x
    for name, module in model.named_children():
        value, every = module(value), module(every)
        outputs[name], whole[name] = value, every.detach().numpy()
    cross_entropy(value, y[probe]).backward()
    layers = []
    for name, after in pairwise([*names, ""]):
        own = list(model.get_submodule(name).parameters())
        if not own or isinstance(model.get_submodule(name), kind):
            continue
        active = bool(after) and isinstance(model.get_submodule(after), kind)
        zero = dead = saturated = None
        if active:
            own += model.get_submodule(after).parameters()
            out = outputs[after].detach().numpy()
            units = np.moveaxis(whole[after], 1, 0).reshape(whole[after].shape[1], -1)
            zero, dead = np.mean(out == 0), np.mean([not unit.any() for unit in units])
        if active and bounds is not None:
            margin = 0.01 * (bounds[1] - bounds[0])
            saturated = np.mean((out <= bounds[0] + margin) | (out >= bounds[1] - margin))
        before = outputs[name].detach().double().numpy()
        layers.append(
            LayerHealth(
                layer=name,
                parameters=sum(p.numel() for p in own),
                zero_fraction=zero,
                dead_fraction=dead,
                saturated_fraction=saturated,
                preactivation_mean=pytest.approx(before.mean(), rel=1e-12, abs=1e-12),
                preactivation_std=pytest.approx(before.std(), rel=1e-12),
                gradient_norm=pytest.approx(
                    math.hypot(*(float(p.grad.double().norm()) for p in own)), rel=1e-6
                ),
            )
        )
    accuracy, loss = evaluate(model, x, y)
    first, last = (math.hypot(layer.gradient_norm.expected) for layer in (layers[0], layers[-1]))
    return Health(
        loss=loss,
        accuracy=accuracy,
        gradient_ratio=pytest.approx(first / last, rel=1e-6) if last else None,
        layers=tuple(layers),
    )


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    seed=st.integers(0, 1000),
    count=st.integers(1, 12),
    data=st.data(),
)
def test_look_is_the_definition(
    name: str, activation: str, seed: int, count: int, data: st.DataObject
) -> None:
    model, (x, y) = network(name, activation, seed), examples(name, count, seed)
    size = data.draw(st.integers(1, count))
    probe = torch.from_numpy(probe_indices(count, stream(seed, "probe"), size))
    with torch.no_grad():  # so that units die and saturate
        model.get_parameter(f"{LAYERS[name][0]}.bias").copy_(
            torch.linspace(-9, 9, {"mlp": 7, "cnn": 32, "small_cnn": 16}[name])
        )
    expected = reference(model, x, y, probe, activation)
    assert look(model, x, y, probe=probe, activation=activation) == expected


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_activation_in_every_network(name: str, activation: str) -> None:
    model, (x, y) = network(name, activation), examples(name)
    health = look(model, x, y, probe=slice(0, 8), activation=activation)
    assert [layer.layer for layer in health.layers] == LAYERS[name]
    assert sum(layer.parameters or 0 for layer in health.layers) == sum(
        p.numel() for p in model.parameters()
    )
    *hidden, output = health.layers
    for layer in hidden:
        assert layer.zero_fraction is not None
        if activation in RECTIFIERS:
            assert 0 < layer.zero_fraction < 1
        elif not ACTIVATIONS[activation].kinks:
            assert layer.zero_fraction < 1e-3  # where float32 underflows
            assert layer.dead_fraction == 0
        assert (layer.saturated_fraction is None) == (not ACTIVATIONS[activation].bounded)
    assert output.zero_fraction is output.dead_fraction is output.saturated_fraction is None
    for layer in health.layers:
        assert layer.gradient_norm is not None
        assert layer.gradient_norm > 0
        assert layer.preactivation_std is not None
        assert layer.preactivation_std > 0
    assert (health.accuracy, health.loss) == evaluate(model, x, y)
    assert health == look(model, x, y, probe=slice(0, 8), activation=activation)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", "prelu"])
def test_looking_changes_nothing(activation: str, training: bool) -> None:
    model, (x, y) = network("cnn", activation).train(training), examples("cnn")
    model.get_submodule("dense1").train(not training)
    features = x.clone()

    def everything() -> tuple[object, ...]:
        state = {k: v.numpy().tobytes() for k, v in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        generator = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
        return state, modes, generator, torch.get_num_threads(), torch.is_grad_enabled()

    before = everything()
    look(model, x, y, probe=slice(0, 8), activation=activation)
    assert everything() == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x, features)
    assert hooks(model) == 0


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


class Breaks(nn.Module):
    """Breaks on a batch of a given size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == self.size:
            raise ArithmeticError("broken")
        return x


@pytest.mark.parametrize("size", [2, 4])  # of the probe, of all examples
def test_hooks_go_whatever_happens(size: int) -> None:
    model = stacked(dense(WEIGHT, BIAS), nn.ReLU(), Breaks(size), dense([[1.0] * 3] * 2, [0, 0]))
    with pytest.raises(ArithmeticError, match="broken"):
        look(model, X, Y, probe=slice(0, 2), activation="relu")
    assert hooks(model) == 0


def test_an_activation_that_does_not_exist() -> None:
    model = stacked(dense([[1.0]], [0.0]))
    with pytest.raises(ConfigError, match="relux"):
        look(model, X, Y, probe=EVERY, activation="relux")
    assert hooks(model) == 0


@pytest.mark.parametrize("batch", [1, 3, 7, 19])
def test_health_does_not_depend_on_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = network("mlp", "relu"), examples("mlp")
    with torch.no_grad():
        model.get_parameter("dense1.bias").copy_(torch.linspace(-6, 0, 7))
    whole = look(model, x, y, probe=slice(0, 4), activation="relu")
    assert {layer.dead_fraction for layer in whole.layers} > {0, None}
    monkeypatch.setattr(evaluation, "BATCH_EXAMPLES", batch)
    parts = look(model, x, y, probe=slice(0, 4), activation="relu")
    assert parts.layers == whole.layers
    assert (parts.accuracy, parts.loss) == (whole.accuracy, pytest.approx(whole.loss, rel=1e-6))


def test_a_unit_that_lives_in_one_batch_alone_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stacked(dense(WEIGHT, BIAS), nn.ReLU(), dense([[0.0] * 3] * 2, [0, 0]))
    monkeypatch.setattr(evaluation, "BATCH_EXAMPLES", 1)
    health = look(model, X, Y, probe=slice(1, 2), activation="relu")
    assert health.layers[0].dead_fraction == 1 / 3
    assert health.layers[0].zero_fraction == 1.0


def test_the_probe_is_slice_or_indices_and_touches_no_other_figure() -> None:
    model, (x, y) = network("mlp", "relu"), examples("mlp")
    one = look(model, x, y, probe=slice(2, 9), activation="relu")
    same = look(model, x, y, probe=torch.arange(2, 9), activation="relu")
    other = look(model, x, y, probe=slice(9, 16), activation="relu")
    assert one == same
    assert (one.loss, one.accuracy) == (other.loss, other.accuracy)
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.dead_fraction == b.dead_fraction
        assert a.gradient_norm != b.gradient_norm
        assert a.preactivation_mean != b.preactivation_mean


def test_gradients_are_taken_inside_no_grad_and_only_if_asked() -> None:
    model, (x, y) = network("mlp", "relu"), examples("mlp")
    asked = look(model, x, y, probe=EVERY, activation="relu")
    with torch.no_grad():
        assert look(model, x, y, probe=EVERY, activation="relu") == asked
    without = look(model, x, y, probe=EVERY, activation="relu", gradients=False)
    assert without.gradient_ratio is None
    for a, b in zip(asked.layers, without.layers, strict=True):
        assert b.gradient_norm is None
        assert a.zero_fraction == b.zero_fraction
        assert a.preactivation_std == b.preactivation_std


def test_frozen_parameters_have_no_gradient() -> None:
    model, (x, y) = network("mlp", "relu"), examples("mlp")
    model.get_submodule("dense1").requires_grad_(False)
    health = look(model, x, y, probe=EVERY, activation="relu")
    norms = [layer.gradient_norm for layer in health.layers]
    assert norms[0] is None
    assert health.gradient_ratio == norms[1] / norms[2]
    frozen = look(model.requires_grad_(False), x, y, probe=EVERY, activation="relu")
    assert frozen.gradient_ratio is None
    assert {layer.gradient_norm for layer in frozen.layers} == {None}


def test_an_activations_own_parameter_counts_with_its_layer() -> None:
    model, (x, y) = network("mlp", "prelu"), examples("mlp")
    health = look(model, x, y, probe=EVERY, activation="prelu")
    assert [layer.parameters for layer in health.layers] == [7 * 7 + 1, 8 * 7 + 1, 8 * 3]
    cross_entropy(model(x), y).backward()
    for layer, slope in (("dense1", "activation1"), ("dense2", "activation2")):
        own = [*model.get_submodule(layer).parameters(), *model.get_submodule(slope).parameters()]
        norm = math.hypot(*(float(p.grad.norm()) for p in own))
        assert layer_of(health, layer).gradient_norm == pytest.approx(norm, rel=1e-5)


def test_which_modules_make_a_layer() -> None:
    """A first activation is alone, one module may serve many, others may run between."""
    shared = nn.ReLU()
    model = nn.Sequential(
        OrderedDict(
            scale=shared,
            one=dense([[1.0], [-1.0]], [0.0, 0.0]),
            clip=nn.Hardtanh(-0.5, 0.5),
            between=shared,
            again=nn.Tanh(),
            two=dense([[1.0, 1.0]] * 3, [-9.0, 0.0, 1.0]),
            after=shared,
            twice=nn.ReLU(),
            three=dense([[1.0] * 3] * 2, [0.0, 0.0]),
        )
    )
    health = look(model, X - 1, Y * 0, probe=EVERY, activation="relu")
    assert [layer.layer for layer in health.layers] == ["scale", "one", "two", "twice", "three"]
    scale, one, two, twice, three = health.layers
    assert (scale.parameters, scale.gradient_norm, scale.preactivation_mean) == (0, None, 0.5)
    assert (scale.zero_fraction, scale.dead_fraction) == (0.5, 0.0)
    assert (one.zero_fraction, one.dead_fraction) == (6 / 8, 1 / 2)
    assert one.preactivation_std == math.sqrt(1 / 8)  # as clipped, not as the layer gave it
    assert (two.dead_fraction, twice.dead_fraction) == (1 / 3, 1 / 3)
    assert twice.preactivation_mean > two.preactivation_mean
    assert three.zero_fraction is None
    assert health.gradient_ratio == one.gradient_norm / three.gradient_norm


def test_a_network_of_one_layer() -> None:
    health = look(dense([[1.0], [2.0]], [0.0, 0.0]), X, Y, probe=EVERY, activation="relu")
    (layer,) = health.layers
    assert (layer.layer, layer.parameters, layer.zero_fraction) == ("model", 4, None)
    assert health.gradient_ratio == 1.0


def test_no_ratio_to_a_gradient_of_zero() -> None:
    model = stacked(dense([[1.0]], [1.0]), nn.ReLU(), dense([[0.0], [0.0]], [1000.0, 0.0]))
    health = look(model, X, Y * 0, probe=EVERY, activation="relu")
    assert [layer.gradient_norm for layer in health.layers] == [0.0, 0.0]
    assert health.gradient_ratio is None
    assert health.loss == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_reported_as_it_is(value: float) -> None:
    model = stacked(dense([[0.0], [0.0]], [value, 1.0]), nn.ReLU(), dense([[1.0] * 2] * 2, [0, 0]))
    health = look(model, X, Y, probe=EVERY, activation="relu")
    assert math.isnan(health.loss)
    first = health.layers[0]
    assert first.preactivation_mean == pytest.approx(value, nan_ok=True)
    assert math.isnan(first.preactivation_std)
    assert (first.zero_fraction, first.dead_fraction) == (0.0, 0.0)
    assert math.isnan(first.gradient_norm)
    assert math.isnan(health.gradient_ratio)


def test_gradients_do_not_overflow_in_float32() -> None:
    model = stacked(
        dense([[1.0]] * 2, [0.0] * 2), nn.ReLU(), dense([[0.0] * 2, [1e30] * 2], [0, 0])
    )
    health = look(model, X[1:2], Y[1:2] * 0, probe=EVERY, activation="relu")
    assert health.layers[0].gradient_norm == pytest.approx(2e30, rel=1e-6)


def test_probe_indices() -> None:
    chosen = probe_indices(1000, stream(0, "probe"))
    assert (chosen.shape, chosen.dtype) == ((32,), np.int64)
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen[0] < 200
    assert 800 < chosen[-1] < 1000
    assert (chosen == probe_indices(1000, stream(0, "probe"))).all()
    assert (chosen != probe_indices(1000, stream(1, "probe"))).any()
    assert probe_indices(5, stream(0, "probe")).tolist() == [0, 1, 2, 3, 4]
    assert probe_indices(9, stream(0, "probe"), 3).shape == (3,)
