"""Counted arithmetic against closed forms, torch's counter and the operations torch dispatches."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fedsim.errors import ConfigError
from fedsim.measure.compute import (
    Call,
    LayerCost,
    ModelCost,
    examples_processed,
    model_cost,
    optimizer_flops,
    product_flops,
    product_flops_by_torch,
)
from fedsim.models import ACTIVATIONS, MODELS, Cost, build_model
from fedsim.training import train_locally
from fedsim.training.local import batches

Shape = tuple[int, ...]
Flops = dict[str, tuple[int, int]]  # by layer, forward and backward
IMAGES = (1, 28, 28)
SMALL = (1, 14, 14)  # as small as every model takes
CLASSES = 10


def build(name: str, shape: Shape = IMAGES, **settings: Any) -> nn.Module:
    return build_model(name, input_shape=shape, classes=CLASSES, seed=0, **settings)


def cost_of(name: str, shape: Shape = IMAGES, activation: str = "relu", **size: int) -> ModelCost:
    model = build(name, shape, activation=activation, **size)
    return model_cost(model, shape, activation=activation)


def mlp_flops(shape: Shape, width: int, depth: int) -> Flops:
    """A dense layer takes 2 in x out forward, as much for its weights and for its input."""
    sizes = [math.prod(shape), *[width] * depth]
    found = {
        f"dense{i}": (2 * a * b, (2 if i == 1 else 4) * a * b)
        for i, (a, b) in enumerate(itertools.pairwise(sizes), 1)
    }
    return {**found, "output": (2 * width * CLASSES, 4 * width * CLASSES)}


def cnn_flops(shape: Shape, width: int, depth: int) -> Flops:
    """A convolution is a dense layer of 25 x channels to filters, at every pixel."""
    channels, height, breadth = shape
    found = {}
    for i in range(1, depth + 1):
        filters = 32 * 2 ** (i - 1)
        products = 25 * channels * filters * height * breadth
        found[f"conv{i}"] = (2 * products, (2 if i == 1 else 4) * products)
        channels, height, breadth = filters, height // 2, breadth // 2
    inputs = channels * height * breadth
    found["dense1"] = (2 * inputs * width, 4 * inputs * width)
    return {**found, "output": (2 * width * CLASSES, 4 * width * CLASSES)}


def small_cnn_flops(shape: Shape, width: int, depth: int) -> Flops:
    """Kernels of 8 x 8 and 4 x 4 at every other pixel; a pool takes one off height and width."""
    channels, found = shape[0], {}
    for i, (height, breadth) in enumerate(small_cnn_maps(shape), 1):
        filters, kernel = ((16, 8), (32, 4))[i - 1]
        products = kernel**2 * channels * filters * height * breadth
        found[f"conv{i}"] = (2 * products, (2 if i == 1 else 4) * products)
        channels, inputs = filters, filters * (height - 1) * (breadth - 1)
    found["dense1"] = (2 * inputs * width, 4 * inputs * width)
    return {**found, "output": (2 * width * CLASSES, 4 * width * CLASSES)}


def small_cnn_maps(shape: Shape) -> list[Shape]:
    first = [(n + 6 - 8) // 2 + 1 for n in shape[1:]]
    return [tuple(first), tuple((n - 1 - 4) // 2 + 1 for n in first)]


def mlp_elements(shape: Shape, width: int, depth: int) -> list[int]:
    return [width] * depth


def cnn_elements(shape: Shape, width: int, depth: int) -> list[int]:
    _, height, breadth = shape
    maps = [32 * 2**i * (height >> i) * (breadth >> i) for i in range(depth)]
    return [*maps, width]


def small_cnn_elements(shape: Shape, width: int, depth: int) -> list[int]:
    (a, b), (c, d) = small_cnn_maps(shape)
    return [16 * a * b, 32 * c * d, width]


CLOSED: dict[str, Callable[[Shape, int, int], Flops]] = {
    "mlp": mlp_flops,
    "cnn": cnn_flops,
    "small_cnn": small_cnn_flops,
}
ELEMENTS: dict[str, Callable[[Shape, int, int], list[int]]] = {
    "mlp": mlp_elements,
    "cnn": cnn_elements,
    "small_cnn": small_cnn_elements,
}
SIZES: dict[str, list[tuple[Shape, int, int]]] = {
    "mlp": [(IMAGES, 200, 2), ((7,), 1, 1), ((3, 5, 2), 17, 4), ((64,), 30, 9)],
    "cnn": [(IMAGES, 512, 2), ((3, 32, 32), 16, 3), ((2, 9, 7), 5, 1), ((1, 13, 22), 8, 3)],
    "small_cnn": [(IMAGES, 32, 2), ((3, 32, 32), 5, 2), ((2, 14, 19), 7, 2)],
}
each_size = pytest.mark.parametrize(
    ("name", "shape", "width", "depth"),
    [(name, *size) for name, sizes in SIZES.items() for size in sizes],
)
each_model = pytest.mark.parametrize("name", MODELS)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def test_every_model_has_a_closed_form() -> None:
    assert set(CLOSED) == set(ELEMENTS) == set(SIZES) == set(MODELS)


@each_size
def test_flops_of_every_layer(name: str, shape: Shape, width: int, depth: int) -> None:
    cost = cost_of(name, shape, width=width, depth=depth)
    found = {c.layer: (c.forward_flops, c.backward_flops) for c in cost.layers}
    assert {layer: flops for layer, flops in found.items() if any(flops)} == CLOSED[name](
        shape, width, depth
    )


@each_size
@pytest.mark.parametrize("activation", ["identity", "tanh", "gelu", "prelu"])
def test_elements_and_operations_of_every_activation(
    name: str, shape: Shape, width: int, depth: int, activation: str
) -> None:
    cost = cost_of(name, shape, activation, width=width, depth=depth)
    elements = ELEMENTS[name](shape, width, depth)
    expected = {f"activation{i}": n for i, n in enumerate(elements, 1)}
    found = {c.layer: c for c in cost.layers if c.activation_elements}
    assert {layer: c.activation_elements for layer, c in found.items()} == expected
    function = ACTIVATIONS[activation]
    for layer, n in expected.items():
        for ops, each in (
            (found[layer].forward_ops, function.forward),
            (found[layer].backward_ops, function.backward),
        ):
            assert vars(ops) == {kind: n * count for kind, count in vars(each).items()}
    assert sum(elements) == cost.activation_elements


def test_the_2nn_to_the_last_digit() -> None:
    cost = cost_of("mlp")
    weights = 784 * 200 + 200 * 200 + 200 * 10
    assert (cost.forward_flops * 10, cost.train_flops * 10) == (3_976_000, 8_792_000)
    assert cost.forward_flops == 2 * weights
    assert cost.backward_flops == 2 * weights + 2 * (200 * 200 + 200 * 10)
    assert cost.bias_flops == 2 * (200 + 200 + 10)
    assert cost.activation_elements == 400
    assert [c.layer for c in cost.layers] == [
        *("flatten", "dense1", "activation1", "dense2", "activation2", "output")
    ]


@pytest.mark.parametrize(
    ("activation", "forward", "backward"),
    [("relu", 0, 0), ("gelu", 1, 2), ("tanh", 1, 0), ("mish", 3, 4), ("leaky_relu(0.3)", 0, 0)],
)
def test_transcendentals_by_hand(activation: str, forward: int, backward: int) -> None:
    cost = cost_of("mlp", activation=activation)
    assert sum(c.forward_ops.transcendental for c in cost.layers) == 400 * forward
    assert sum(c.backward_ops.transcendental for c in cost.layers) == 400 * backward
    assert cost.ops.transcendental == 400 * (forward + backward)


@each_size
def test_a_bias_is_added_once_and_its_gradient_summed_once(
    name: str, shape: Shape, width: int, depth: int
) -> None:
    cost = cost_of(name, shape, width=width, depth=depth)
    hidden = [width] * depth if name == "mlp" else ELEMENTS[name](shape, width, depth)
    assert [c.bias_flops for c in cost.layers if c.bias_flops] == [
        2 * n for n in (*hidden, CLASSES)
    ]


def counted_by_torch(model: nn.Module, shape: Shape, examples: int, grad: bool = False) -> int:
    """Count a real training step, on the processor."""
    x = torch.ones(examples, *shape, requires_grad=grad)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(x), torch.zeros(examples, dtype=torch.int64)).backward()
    return int(counter.get_total_flops())


@each_size
def test_a_real_step_of_any_batch_is_so_many_examples(
    name: str, shape: Shape, width: int, depth: int
) -> None:
    model = build(name, shape, width=width, depth=depth)
    each = model_cost(model, shape, activation="relu").train_flops
    for examples in (1, 7, 10):
        assert counted_by_torch(model, shape, examples) == examples * each


@each_size
@pytest.mark.parametrize("trained_before", [False, True])
def test_products_are_what_torch_counts_layer_by_layer(
    name: str, shape: Shape, width: int, depth: int, trained_before: bool
) -> None:
    model = build(name, shape, width=width, depth=depth)
    x = torch.ones(2, *shape, requires_grad=trained_before)
    for layer in model.children():
        call = Call(inputs=(x,), output=(x := layer(x)))
        assert product_flops(layer, call) == product_flops_by_torch(layer, call)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(3, 4, 3, stride=2),
        nn.Conv2d(3, 4, 3, stride=2, dilation=2, bias=False),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 2)),
        nn.Linear(8, 5),  # at every position
    ],
)
def test_layers_that_no_model_has_yet(layer: nn.Module) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.ReLU(), nn.LazyLinear(CLASSES))
    model(torch.ones(1, 3, 8, 8))
    cost = model_cost(model, (3, 8, 8), activation="relu")
    assert cost.train_flops > cost.layers[-1].forward_flops * 3
    assert cost.train_flops * 4 == counted_by_torch(model, (3, 8, 8), 4)


def test_counting_loads_no_compiler() -> None:
    script = """if True:
        import sys, torch
        from fedsim.measure.compute import model_cost
        from fedsim.measure.memory import saved_model
        from fedsim.models import build_model
        for name in ("mlp", "cnn"):
            model = build_model(name, input_shape=(1, 4, 4), classes=2, width=2, seed=0)
            model_cost(model, (1, 4, 4), activation="relu"), saved_model(model, (1, 4, 4))
        print("torch._dynamo" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@each_model
def test_training_takes_no_gradient_of_the_input(name: str) -> None:
    model = build(name)
    cost = model_cost(model, IMAGES, activation="relu")
    first = next(c for c in cost.layers if c.forward_flops)
    with_gradient = counted_by_torch(model, IMAGES, 3, grad=True)
    assert with_gradient == 3 * (cost.train_flops + first.forward_flops)


@each_activation
@each_model
def test_flops_do_not_depend_on_the_activation(name: str, activation: str) -> None:
    cost = cost_of(name, SMALL, activation, width=6)
    closed = CLOSED[name](SMALL, 6, 2).values()
    assert (cost.forward_flops, cost.backward_flops) == tuple(map(sum, zip(*closed, strict=True)))


def test_sums_are_of_the_layers() -> None:
    one = LayerCost(
        layer="a", forward_flops=1, backward_flops=2, bias_flops=3, activation_elements=4,
        forward_ops=Cost(compare=1, divide=2), backward_ops=Cost(divide=3, transcendental=4),
    )  # fmt: skip
    cost = ModelCost(layers=(one, one, LayerCost(layer="b")))
    sums = (cost.forward_flops, cost.backward_flops, cost.train_flops, cost.bias_flops)
    assert (*sums, cost.activation_elements) == (2, 4, 6, 6, 8)
    assert cost.ops == Cost(compare=2, divide=10, transcendental=8)


def test_what_needs_no_gradient_costs_none() -> None:
    model = nn.Sequential(nn.GELU(), nn.Linear(3, 2, bias=False), nn.GELU())
    first, dense, last = model_cost(model, (3,), activation="gelu").layers
    assert first.forward_ops.transcendental == 3
    assert first.backward_ops == Cost()
    assert (dense.forward_flops, dense.backward_flops, dense.bias_flops) == (12, 12, 0)
    assert last.backward_ops.transcendental == 2 * 2


def test_a_module_that_is_called_twice_costs_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.act = nn.Linear(4, 4), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.dense(self.act(self.dense(x))))

    dense, act = model_cost(Twice(), (4,), activation="tanh").layers
    assert (dense.forward_flops, dense.backward_flops, dense.bias_flops) == (64, 96, 16)
    assert (act.activation_elements, act.forward_ops.transcendental) == (8, 8)


def test_a_layer_inside_others_has_its_whole_name() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Linear(3, 2))
    costs = {c.layer: c for c in model_cost(model, (4,), activation="relu").layers}
    assert list(costs) == ["0", "1.0", "1.1", "2"]
    assert [c.forward_flops for c in costs.values()] == [0, 24, 0, 12]
    assert costs["1.1"].activation_elements == 3


def test_no_such_activation() -> None:
    with pytest.raises(ConfigError, match="did you mean 'relu'"):
        model_cost(build("mlp"), IMAGES, activation="relo")


@each_model
def test_the_model_is_not_touched(name: str) -> None:
    model = build(name, SMALL, width=4).eval()
    model.append(nn.BatchNorm1d(CLASSES).eval())  # type: ignore[operator]
    model.append(nn.Dropout().train())  # type: ignore[operator]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    identities = [(id(p), p.data_ptr(), p.device) for p in model.parameters()]
    torch_state, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index]
    model_cost(model, SMALL, activation="relu")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [(id(p), p.data_ptr(), p.device) for p in model.parameters()] == identities
    assert all(p.grad is None for p in model.parameters())
    assert [module.training for module in model.children()][-2:] == [False, True]
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.get_num_threads() == threads
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]


# The optimiser, against what local training dispatches.


def flops_of(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Count an operation on all parameters: a scaled addition is two, a norm squares and sums."""
    each = {
        "_foreach_add_": 2 if kwargs.get("alpha", 1) != 1 else 1,
        "_foreach_sub": 1,
        "_foreach_mul_": 1,
        "_foreach_norm": 2,
    }[name]
    return each * sum(tensor.numel() for tensor in args[0])


class Spy(TorchDispatchMode):
    """Counts the arithmetic of operations on lists of tensors: all that the optimiser does."""

    flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith("_foreach"):
            self.flops += flops_of(name, args, kwargs or {})
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("momentum", "weight_decay", "clip", "proximal", "correction"),
    list(itertools.product([False, True], repeat=5)),
)
def test_optimizer_flops_are_those_of_local_training(
    steps: int, momentum: bool, weight_decay: bool, clip: bool, proximal: bool, correction: bool
) -> None:
    model = build("mlp", (5,), width=3, depth=1)
    parameters = sum(p.numel() for p in model.parameters())
    given_correction = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    with Spy() as spy:
        train_locally(
            model,
            torch.ones(6, 5),
            torch.zeros(6, dtype=torch.int64),
            epochs=1,
            steps=steps,
            batch_size=2,
            learning_rate=0.1,
            momentum=0.9 * momentum,
            weight_decay=0.01 * weight_decay,
            clip_norm=0.5 * clip,
            proximal_mu=0.1 * proximal,
            rng=np.random.default_rng(0),
            correction=given_correction if correction else None,
        )
    assert spy.flops == steps * optimizer_flops(
        parameters,
        momentum=momentum,
        weight_decay=weight_decay,
        clip=clip,
        proximal=proximal,
        correction=correction,
    )


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 50),
    st.integers(0, 30),
    st.integers(1, 3),
)
def test_examples_processed_are_those_of_the_batches(
    examples: int, batch_size: int, steps: int, epochs: int
) -> None:
    order = np.random.default_rng(0)
    sizes = [
        len(batch)
        for batch in batches(examples, batch_size=batch_size, epochs=epochs, steps=steps, rng=order)
    ]
    assert examples_processed(examples, steps=len(sizes), batch_size=batch_size) == sum(sizes)


def test_examples_processed_by_hand() -> None:
    assert examples_processed(600, steps=60, batch_size=10) == 600
    assert examples_processed(25, steps=3, batch_size=10) == 25
    assert examples_processed(25, steps=5, batch_size=10) == 25 + 20
    assert examples_processed(25, steps=2, batch_size=0) == 50
    assert examples_processed(5, steps=2, batch_size=10) == 10
