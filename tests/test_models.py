"""Networks: what they are made of, and where their initial weights come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fedsim.models
from fedsim.errors import ConfigError
from fedsim.models import ACTIVATIONS, MODELS, activation_gain, build_model, input_problem
from fedsim.randomness import stream


def weights(
    activation: str = "relu", *, name: str = "mlp", init_gain: float = 0.0, seed: int = 3
) -> dict[str, torch.Tensor]:
    """Return the state of a small network, without the activations' own parameters."""
    shape = {"mlp": (6,), "cnn": (2, 4, 5), "small_cnn": (2, 14, 15)}[name]
    model = build_model(
        name,
        input_shape=shape,
        classes=3,
        width=7,
        activation=activation,
        init_gain=init_gain,
        seed=seed,
    )
    return {k: v for k, v in model.state_dict().items() if not k.startswith("activation")}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_exported_names() -> None:
    assert fedsim.models.__all__ == [
        "ACTIVATIONS",
        "MODELS",
        "Activation",
        "Cost",
        "Model",
        "activation_gain",
        "build_model",
        "input_problem",
        "make_activation",
        "parse_activation",
    ]


def test_2nn_of_mcmahan() -> None:
    model = build_model("mlp", input_shape=(1, 28, 28), classes=10, seed=0)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == {
        "dense1.weight": (200, 784),
        "dense1.bias": (200,),
        "dense2.weight": (200, 200),
        "dense2.bias": (200,),
        "output.weight": (10, 200),
        "output.bias": (10,),
    }
    assert count(model) == 199_210


def test_cnn_of_mcmahan() -> None:
    model = build_model("cnn", input_shape=(1, 28, 28), classes=10, seed=0)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == {
        "conv1.weight": (32, 1, 5, 5),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 5, 5),
        "conv2.bias": (64,),
        "dense1.weight": (512, 3136),
        "dense1.bias": (512,),
        "output.weight": (10, 512),
        "output.bias": (10,),
    }
    assert count(model) == 1_663_370


def test_small_cnn_of_opacus_example() -> None:
    """Its SampleConvNet (examples/mnist.py), layer by layer."""
    model = build_model("small_cnn", input_shape=(1, 28, 28), classes=10, seed=0)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == {
        "conv1.weight": (16, 1, 8, 8),
        "conv1.bias": (16,),
        "conv2.weight": (32, 16, 4, 4),
        "conv2.bias": (32,),
        "dense1.weight": (32, 512),
        "dense1.bias": (32,),
        "output.weight": (10, 32),
        "output.bias": (10,),
    }
    assert count(model) == 26_010
    conv1, conv2 = model.get_submodule("conv1"), model.get_submodule("conv2")
    assert isinstance(conv1, nn.Conv2d)
    assert isinstance(conv2, nn.Conv2d)
    assert (conv1.stride, conv1.padding, conv2.stride, conv2.padding) == (
        *((2, 2), (3, 3), (2, 2), (0, 0)),
    )
    for pool in ("pool1", "pool2"):
        layer = model.get_submodule(pool)
        assert isinstance(layer, nn.MaxPool2d)
        assert (layer.kernel_size, layer.stride) == (2, 1)


def test_layers_come_in_the_papers_order() -> None:
    def names(name: str, shape: tuple[int, ...]) -> list[str]:
        model = build_model(name, input_shape=shape, classes=2, width=3, seed=0)
        return [layer for layer, _ in model.named_children()]

    dense = ["dense1", "activation1", "dense2", "activation2", "output"]
    assert names("mlp", (5,)) == ["flatten", *dense]
    blocks = ["conv1", "activation1", "pool1", "conv2", "activation2", "pool2"]
    assert names("cnn", (1, 4, 4)) == [*blocks, "flatten", "dense1", "activation3", "output"]
    assert names("small_cnn", (1, 14, 14)) == names("cnn", (1, 4, 4))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    classes=st.integers(1, 12),
    width=st.integers(1, 9),
    depth=st.integers(1, 4),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_mlp_takes_any_shape(
    shape: tuple[int, ...], classes: int, width: int, depth: int, activation: str
) -> None:
    model = build_model(
        "mlp",
        input_shape=shape,
        classes=classes,
        width=width,
        depth=depth,
        activation=activation,
        seed=1,
    )
    logits = model(torch.ones(4, *shape))
    assert (logits.shape, logits.dtype) == ((4, classes), torch.float32)


@settings(max_examples=20, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 19),
    breadth=st.integers(1, 19),
    depth=st.integers(1, 4),
    classes=st.integers(1, 12),
)
def test_cnn_takes_every_image_that_is_large_enough(
    channels: int, height: int, breadth: int, depth: int, classes: int
) -> None:
    shape = (channels, height, breadth)
    if min(height, breadth) < 2**depth:
        with pytest.raises(ConfigError, match=f"not {height} x {breadth}"):
            build_model("cnn", input_shape=shape, classes=classes, width=2, depth=depth, seed=0)
    else:
        model = build_model("cnn", input_shape=shape, classes=classes, width=2, depth=depth, seed=0)
        assert model(torch.ones(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(
    ("name", "shape", "width", "depth", "problem"),
    [
        ("mpl", (4,), 0, 0, "model.name = 'mpl': unknown; did you mean 'mlp'?"),
        ("mlp", (), 0, 0, "model.name = 'mlp': an example of shape () holds no numbers"),
        ("mlp", (3, 0), 0, 0, "model.name = 'mlp': an example of shape (3, 0) holds no numbers"),
        ("mlp", (4,), -1, 0, "model.width = -1: must be at least 1, or 0 for the default"),
        ("mlp", (4,), 0, -2, "model.depth = -2: must be at least 1, or 0 for the default"),
        (
            "cnn",
            (30,),
            0,
            0,
            "model.name = 'cnn': needs images of shape (channels, height, width), not (30,); use "
            "model.name = 'mlp'",
        ),
        (
            "cnn",
            (3, 4, 9),
            0,
            3,
            "model.depth = 3: a cnn needs images with height and width of at least 2^depth, since "
            "each block halves them, not 4 x 9; lower it to 2, or use model.name = 'mlp'",
        ),
        (
            "small_cnn",
            (30,),
            0,
            0,
            "model.name = 'small_cnn': needs images of shape (channels, height, width), not (30,); "
            "use model.name = 'mlp'",
        ),
        (
            "small_cnn",
            (1, 28, 28),
            0,
            3,
            "model.depth = 3: a small_cnn always has 2 convolutions; use 0, or model.name = 'cnn'",
        ),
        (
            "small_cnn",
            (1, 28, 13),
            0,
            0,
            "model.name = 'small_cnn': needs images of at least 14 x 14, not 28 x 13; use "
            "model.name = 'mlp'",
        ),
        (
            "cnn",
            (3, 1, 9),
            0,
            0,
            "model.depth = 2: a cnn needs images with height and width of at least 2^depth, since "
            "each block halves them, not 1 x 9; use model.name = 'mlp'",
        ),
    ],
)
def test_problems(name: str, shape: tuple[int, ...], width: int, depth: int, problem: str) -> None:
    assert input_problem(name, shape, width, depth) == problem
    with pytest.raises(ConfigError) as caught:
        build_model(name, input_shape=shape, classes=2, width=width, depth=depth, seed=0)
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_problem_with_images(name: str) -> None:
    assert input_problem(name, (3, 32, 32), 0, 0) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"classes": 0}, "classes = 0: must be at least 1"),
        ({"init_gain": -1.0}, "model.init_gain = -1.0: must be positive, or 0 for the default"),
        ({"init_gain": math.inf}, "model.init_gain = inf: must be positive, or 0 for the default"),
        ({"activation": "rulu"}, "model.activation = 'rulu': unknown; did you mean 'relu'?"),
    ],
)
def test_build_refuses(change: dict[str, object], problem: str) -> None:
    arguments: dict[str, object] = {"input_shape": (4,), "classes": 2, "seed": 0, **change}
    with pytest.raises(ConfigError) as caught:
        build_model("mlp", **arguments)  # type: ignore[arg-type]
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_initial_draw_is_the_same_for_every_activation(name: str, activation: str) -> None:
    relu, other = weights(name=name, init_gain=1), weights(activation, name=name, init_gain=1)
    assert list(relu) == list(other)
    assert all(torch.equal(relu[key], other[key]) for key in relu)
    own = weights(activation, name=name)
    for key, unit in relu.items():
        gain = 1.0 if key.startswith("output") else activation_gain(activation)
        torch.testing.assert_close(own[key], gain * unit, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "key", "fan_in", "gain"),
    [
        ("mlp", "dense1.weight", 6, 5 / 3),
        ("mlp", "dense2.weight", 7, 5 / 3),
        ("mlp", "output.weight", 7, 1),
        ("cnn", "conv1.weight", 2 * 25, 5 / 3),
        ("cnn", "conv2.weight", 32 * 25, 5 / 3),
        ("cnn", "dense1.weight", 64, 5 / 3),
    ],
)
def test_weights_are_the_streams_normals_times_the_gain(
    name: str, key: str, fan_in: int, gain: float
) -> None:
    drawn = weights("tanh", name=name, seed=11)[key]
    normals = stream(11, f"init/{key}").standard_normal(tuple(drawn.shape), dtype=np.float32)
    expected = torch.from_numpy(normals * np.float32(gain / math.sqrt(fan_in)))
    assert torch.equal(drawn, expected)


def test_biases_are_zero_and_an_activation_keeps_its_own_parameters() -> None:
    assert all(not v.any() for k, v in weights().items() if k.endswith("bias"))
    model = build_model("mlp", input_shape=(4,), classes=2, activation="prelu(0.1)", seed=0)
    slopes = {k: v.tolist() for k, v in model.state_dict().items() if k.startswith("activation")}
    assert slopes == {
        "activation1.weight": pytest.approx([0.1]),
        "activation2.weight": pytest.approx([0.1]),
    }


def test_the_seed_alone_decides() -> None:
    first = weights(seed=5)
    torch.manual_seed(1)
    again, other = weights(seed=5), weights(seed=6)
    for key, value in first.items():
        assert torch.equal(value, again[key])
        assert key.endswith("bias") or not torch.equal(value, other[key])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_global_generator_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    weights("prelu", name=name)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_parameter_learns(name: str, activation: str) -> None:
    shape = (1, 28, 28) if name == "small_cnn" else (1, 8, 8)
    model = build_model(name, input_shape=shape, classes=3, width=16, activation=activation, seed=0)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((8, *shape), np.float32))
    loss = nn.functional.cross_entropy(model(images), torch.arange(8) % 3)
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        assert torch.isfinite(gradient).all()
        assert gradient.any()
