"""Every activation against mathematics: one row of ``TABLE`` each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch._refs  # fills the table of decompositions
from torch import nn
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.measure.memory import saved_bytes
from fedsim.models import (
    ACTIVATIONS,
    Cost,
    activation_gain,
    build_model,
    make_activation,
    parse_activation,
)
from fedsim.models.gains import second_moment

INF = math.inf
DEPTH = 20  # layers through which the variance is followed


@dataclass
class Counted:
    """A tensor that tallies the operations done with it, as ``Cost`` defines them."""

    value: torch.Tensor
    tally: dict[str, int]
    product: bool = False  # may still be fused with an addition

    def count(self, kind: str, value: torch.Tensor, product: bool = False) -> Counted:
        self.tally[kind] = self.tally.get(kind, 0) + 1
        return Counted(value, self.tally, product)

    def __mul__(self, other: Counted | float) -> Counted:
        return self.count("multiply_add", self.value * plain(other), product=True)

    def __add__(self, other: Counted | float) -> Counted:
        total = self.value + plain(other)
        if self.product or (isinstance(other, Counted) and other.product):
            return Counted(total, self.tally)
        return self.count("multiply_add", total)

    def __neg__(self) -> Counted:
        return Counted(-self.value, self.tally, self.product)

    def __sub__(self, other: float) -> Counted:
        return self + -other

    def __rsub__(self, other: float) -> Counted:
        return -self + other

    def __truediv__(self, other: Counted | float) -> Counted:
        return self.count("divide", self.value / plain(other))

    def __rtruediv__(self, other: float) -> Counted:
        return self.count("divide", other / self.value)

    def __gt__(self, bound: float) -> Counted:
        return self.count("compare", self.value > bound)

    __rmul__, __radd__ = __mul__, __add__


def plain(x: Counted | float) -> torch.Tensor:
    return x.value if isinstance(x, Counted) else torch.tensor(x, dtype=torch.float64)


def choose(condition: Counted, yes: Counted | float, no: Counted | float) -> Counted:
    return Counted(torch.where(condition.value, plain(yes), plain(no)), condition.tally)


def saved(f: Callable[[torch.Tensor], torch.Tensor], x: Counted) -> Counted:
    """What forward computed and kept for backward."""
    return Counted(f(x.value), x.tally)


def exp(x: Counted) -> Counted:
    return x.count("transcendental", torch.exp(x.value))


def expm1(x: Counted) -> Counted:
    return x.count("transcendental", torch.expm1(x.value))


def log1p(x: Counted) -> Counted:
    return x.count("transcendental", torch.log1p(x.value))


def tanh(x: Counted) -> Counted:
    return x.count("transcendental", torch.tanh(x.value))


def erf(x: Counted) -> Counted:
    return x.count("transcendental", torch.erf(x.value))


def clamp(x: Counted, low: float, high: float) -> Counted:
    above = choose(x > low, x, low)
    return choose(above > high, high, above)


def inside(g: Counted, x: Counted, low: float, high: float) -> Counted:
    return choose(x > low, choose(x > high, 0.0, g), 0.0)


def sigmoid(x: Counted) -> Counted:
    return 1 / (1 + exp(-x))


def prelu_backward(g: Counted, x: Counted) -> Counted:
    positive = x > 0
    _sum_of_slope_gradient = choose(positive, 0.0, x * g) + 0.0
    return choose(positive, g, g * 0.25)


def sigmoid_backward(g: Counted, y: Counted) -> Counted:
    return g * (1 - y) * y


def softplus_backward(g: Counted, x: Counted) -> Counted:
    scaled = 1.0 * x
    z = exp(scaled)
    return choose(scaled > 20, g, g * z / (z + 1))


def gelu_backward(g: Counted, x: Counted) -> Counted:
    cdf = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    pdf = exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return g * (cdf + x * pdf)


BETA, KAPPA = math.sqrt(2 / math.pi), 0.044715


def gelu_tanh_backward(g: Counted, x: Counted) -> Counted:
    square = x * x
    t = tanh(BETA * (x + KAPPA * (square * x)))
    left, right = 0.5 * x, 1 + t
    inner = BETA * (1 + (3 * KAPPA) * square)
    return g * (0.5 * right + left * (1 - t * t) * inner)


def silu_backward(g: Counted, x: Counted) -> Counted:
    s = sigmoid(x)
    return g * s * (1 + x * (1 - s))


def mish_backward(g: Counted, x: Counted) -> Counted:
    t = tanh(log1p(exp(x)))
    return g * (t + x * sigmoid(x) * (1 - t * t))


SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
SELU = SELU_SCALE * SELU_ALPHA


@dataclass(frozen=True, kw_only=True)
class Row:
    """What mathematics says of an activation with its default parameters.

    ``forward`` and ``backward`` (gradient of the output, input) are the formulas of torch's
    kernels. ``kept`` is how many tensors a hidden layer keeps for backward: what its activation
    saves, and its result, which the next layer saves as its input; 1 where they are the same.
    ``settles`` is the variance that pre-activations keep. Where ``infinity_is_nan``, torch
    multiplies 0 by infinity and gives NaN in place of the limit.
    """

    forward: Callable[[Counted], Counted]
    backward: Callable[[Counted, Counted], Counted]
    limits: tuple[float, float]
    kept: int = 2
    infinity_is_nan: bool = False
    settles: float = 1.0
    variants: tuple[str, ...] = ()  # with other parameters


TABLE = {
    "identity": Row(forward=lambda x: x, backward=lambda g, x: g, limits=(-INF, INF), kept=1),
    "relu": Row(
        forward=lambda x: choose(x > 0, x, 0.0),
        backward=lambda g, x: choose(x > 0, g, 0.0),
        limits=(0, INF),
        kept=1,
    ),
    "leaky_relu": Row(
        forward=lambda x: choose(x > 0, x, x * 0.01),
        backward=lambda g, x: choose(x > 0, g, g * 0.01),
        limits=(-INF, INF),
        variants=("leaky_relu(0.3)", "leaky_relu(negative_slope=-1)"),
    ),
    "prelu": Row(
        forward=lambda x: choose(x > 0, x, 0.25 * x),
        backward=prelu_backward,
        limits=(-INF, INF),
        variants=("prelu(0.5)",),
    ),
    "relu6": Row(
        forward=lambda x: clamp(x, 0, 6),
        backward=lambda g, x: inside(g, x, 0, 6),
        limits=(0, 6),
    ),
    "relu_squared": Row(
        forward=lambda x: (r := choose(x > 0, x, 0.0)) * r,
        backward=lambda g, x: choose(x > 0, g * (2.0 * saved(torch.relu, x)), 0.0),
        limits=(0, INF),
    ),
    "hardtanh": Row(
        forward=lambda x: clamp(x, -1, 1),
        backward=lambda g, x: inside(g, x, -1, 1),
        limits=(-1, 1),
    ),
    "hardswish": Row(
        forward=lambda x: x * clamp(x + 3, 0, 6) / 6,
        backward=lambda g, x: choose(x > 3, g, choose(x > -3, g * (x / 3 + 0.5), 0.0)),
        limits=(0, INF),
        infinity_is_nan=True,
    ),
    "tanh": Row(
        forward=tanh,
        backward=lambda g, x: g * (1 - (y := saved(torch.tanh, x)) * y),
        limits=(-1, 1),
        kept=1,
        settles=1.178,
    ),
    "sigmoid": Row(
        forward=sigmoid,
        backward=lambda g, x: sigmoid_backward(g, saved(torch.sigmoid, x)),
        limits=(0, 1),
        kept=1,
        settles=5.855,
    ),
    "tempered_sigmoid": Row(
        forward=lambda x: 2.0 * sigmoid(2.0 * x) - 1,
        backward=lambda g, x: (
            2.0 * sigmoid_backward(2.0 * g, saved(lambda v: torch.sigmoid(2 * v), x))
        ),
        limits=(-1, 1),
        settles=1.178,
        variants=("tempered_sigmoid(1, 1, 0)", "tempered_sigmoid(1.58, offset=0.71)"),
    ),
    "softplus": Row(
        forward=lambda x: choose((s := 1.0 * x) > 20, x, log1p(exp(s)) / 1.0),
        backward=softplus_backward,
        limits=(0, INF),
        variants=("softplus(3)",),
    ),
    "elu": Row(
        forward=lambda x: choose(x > 0, x, 1.0 * expm1(x)),
        backward=lambda g, x: choose(x > 0, g, g * 1.0 * exp(x)),
        limits=(-1, INF),
        variants=("elu(0.5)",),
    ),
    "selu": Row(
        forward=lambda x: choose(x > 0, SELU_SCALE * x, SELU * expm1(x)),
        backward=lambda g, x: choose(x > 0, g * SELU_SCALE, g * SELU * exp(x)),
        limits=(-SELU, INF),
    ),
    "gelu": Row(
        forward=lambda x: x * 0.5 * (1 + erf(x * math.sqrt(0.5))),
        backward=gelu_backward,
        limits=(0, INF),
        infinity_is_nan=True,
    ),
    "gelu_tanh": Row(
        forward=lambda x: 0.5 * x * (1 + tanh(BETA * (x + KAPPA * (x * x * x)))),
        backward=gelu_tanh_backward,
        limits=(0, INF),
        infinity_is_nan=True,
    ),
    "silu": Row(
        forward=lambda x: x / (1 + exp(-x)),
        backward=silu_backward,
        limits=(0, INF),
        infinity_is_nan=True,
    ),
    "mish": Row(
        forward=lambda x: x * tanh(log1p(exp(x))),
        backward=mish_backward,
        limits=(0, INF),
        infinity_is_nan=True,
    ),
}

each = pytest.mark.parametrize("name", TABLE)
each_variant = pytest.mark.parametrize(
    "text", [text for name, row in TABLE.items() for text in (name, *row.variants)]
)
each_stable = pytest.mark.parametrize(
    "name", [name for name in TABLE if not ACTIVATIONS[name].unstable]
)


def away_from_kinks(name: str) -> torch.Tensor:
    x = torch.linspace(-7.9, 7.9, 159, dtype=torch.float64)
    for kink in ACTIVATIONS[name].kinks:
        x = x[(x - kink).abs() > 1e-3]
    return x


def gradient(module: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(module(x), x, upstream)
    return result


def test_every_activation_has_a_row() -> None:
    assert set(TABLE) == set(ACTIVATIONS)


@each
def test_formulas_and_their_cost(name: str) -> None:
    activation, row, module = ACTIVATIONS[name], TABLE[name], make_activation(name).double()
    x = away_from_kinks(name)
    upstream = torch.linspace(0.5, 2, len(x), dtype=torch.float64)
    forward: dict[str, int] = {}
    torch.testing.assert_close(row.forward(Counted(x, forward)).value, module(x).detach())
    assert Cost(**forward) == activation.forward
    backward: dict[str, int] = {}
    by_hand = row.backward(Counted(upstream, backward), Counted(x, backward)).value
    torch.testing.assert_close(by_hand, gradient(module, x, upstream))
    assert Cost(**backward) == activation.backward


# What the primitives are that torch's kernels come down to, and what moves or makes tensors.
PRIMITIVES = {
    **dict.fromkeys(("le", "lt", "ge", "gt"), "compare"),
    **dict.fromkeys(("mul", "add", "sub", "rsub", "sum"), "multiply_add"),
    **dict.fromkeys(("div", "true_divide"), "divide"),
    **dict.fromkeys(("exp", "expm1", "log1p", "tanh", "erf"), "transcendental"),
}
FREE = (
    *("where", "neg", "ne"),  # ne: whether it is NaN
    *("bitwise_and", "bitwise_or", "bitwise_not", "__and__", "__or__", "logical_and", "logical_or"),
    *("to", "clone", "view_of", "detach", "alias", "view", "expand", "broadcast_in_dim"),
    *("ones_like", "zeros_like", "full_like", "scalar_tensor"),
)


class Dispatched(TorchDispatchMode):
    """Tallies what torch dispatches, kernels being decomposed as torch's own table says."""

    def __init__(self) -> None:
        super().__init__()
        self.tally: dict[str, int] = {}
        self.seen: dict[Any, Any] = {}  # by operation and arguments: computed once
        self.products: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if func in decomposition_table and PRIMITIVES.get(name) != "multiply_add":
            with self:
                return decomposition_table[func](*args, **kwargs or {})
        result = func(*args, **kwargs or {})
        key = (name, *(id(a) if isinstance(a, torch.Tensor) else str(a) for a in args))
        if not self.is_free(name, args) and key not in self.seen:
            self.tally[PRIMITIVES[name]] = self.tally.get(PRIMITIVES[name], 0) + 1
        if name == "mul":
            self.products.add(id(result))
        self.seen[key] = (args, result)  # held, so that no other tensor gets their identities
        return result

    def is_free(self, name: str, args: Any) -> bool:
        by_one = name == "mul" and any(not torch.is_tensor(a) and a == 1 for a in args)
        fused = name in ("add", "sub", "rsub") and any(id(a) in self.products for a in args)
        return name in FREE or by_one or fused


# A parameter that is 1 counts although a multiplication by it does nothing.
NOT_ONE = {"elu": "elu(0.5)", "softplus": "softplus(3)"}
# Where torch's table is not what its processor kernel does: silu is x * sigmoid(x) there, one
# multiplication more than x / (1 + exp(-x)), and mish has the threshold of softplus.
MORE = {
    "silu": (Cost(multiply_add=1), Cost()),
    "mish": (Cost(compare=1), Cost(compare=1)),
}


def plus(cost: Cost, more: Cost) -> Cost:
    return Cost(**{kind: count + getattr(more, kind) for kind, count in vars(cost).items()})


@each
def test_cost_of_what_torch_dispatches(name: str) -> None:
    module = make_activation(NOT_ONE.get(name, name))
    x = torch.linspace(-7.9, 7.9, 16).requires_grad_()
    with Dispatched() as forward:
        y = module(x)
    with Dispatched() as backward:
        torch.autograd.grad(y, [x, *module.parameters()], torch.ones_like(y))
    function, more = ACTIVATIONS[name], MORE.get(name, (Cost(), Cost()))
    assert Cost(**forward.tally) == plus(function.forward, more[0])
    assert Cost(**backward.tally) == plus(function.backward, more[1])


def test_the_count_of_what_torch_dispatches_can_fail() -> None:
    x = torch.linspace(-1, 1, 5).requires_grad_()
    with Dispatched() as one:
        torch.tanh(x) * 2 + 1
    assert one.tally == {"transcendental": 1, "multiply_add": 1}
    with pytest.raises(KeyError, match="sin"), Dispatched():
        torch.sin(x)


@each
def test_tensors_kept_for_backward(name: str) -> None:
    model = build_model(
        "mlp", input_shape=(11,), classes=3, width=7, depth=4, activation=name, seed=0
    )
    saved = saved_bytes(model, torch.rand(5, 11), torch.zeros(5, dtype=torch.int64))
    hidden = sum(saved.values()) - saved["dense1"] - saved["loss"]
    assert hidden == TABLE[name].kept * 4 * (4 * 7 * 5)  # in each of four layers


def test_relu_and_its_kin_take_no_transcendentals() -> None:
    for name in ("identity", "relu", "leaky_relu", "prelu", "relu6", "hardtanh", "hardswish"):
        costs = (ACTIVATIONS[name].forward, ACTIVATIONS[name].backward)
        assert [cost.transcendental for cost in costs] == [0, 0]
    assert ACTIVATIONS["relu"].forward == ACTIVATIONS["relu"].backward == Cost(compare=1)


@each_variant
def test_gradient_equals_finite_differences(text: str) -> None:
    module, step = make_activation(text).double(), 1e-5
    x = away_from_kinks(parse_activation(text)[0])
    with torch.no_grad():
        differences = (module(x + step) - module(x - step)) / (2 * step)
    torch.testing.assert_close(
        gradient(module, x, torch.ones_like(x)), differences, rtol=1e-7, atol=1e-8
    )


def test_gradient_of_a_learnable_slope() -> None:
    module = make_activation("prelu").double()
    module(torch.tensor([-3.0, 2.0, -0.5], dtype=torch.float64)).sum().backward()
    assert [p.grad.tolist() for p in module.parameters() if p.grad is not None] == [[-3.5]]


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_type_are_kept(text: str, dtype: torch.dtype) -> None:
    module = make_activation(text).to(dtype)
    for shape in ((), (0,), (3,), (2, 3, 5, 4)):
        y = module(torch.full(shape, 0.5, dtype=dtype))
        assert (y.shape, y.dtype) == (shape, dtype)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_inputs(name: str, dtype: torch.dtype) -> None:
    row, module = TABLE[name], make_activation(name).to(dtype)
    tiny = torch.finfo(dtype).tiny / 4  # a denormal
    # Seventeen of each, so that vectorised and scalar code paths both see them.
    x = torch.tensor([-1e4, -tiny, 0.0, tiny, 1e4], dtype=dtype).repeat_interleave(17)
    y, slope = module(x).detach(), gradient(module, x, torch.ones_like(x))
    assert torch.isfinite(y).all()
    assert torch.isfinite(slope).all()
    torch.testing.assert_close(y[17:-17], y[34].expand(3 * 17))  # around zero
    for limit, output in zip(row.limits, (float(y[0]), float(y[-1])), strict=True):
        if math.isinf(limit):
            assert math.copysign(output, limit) == output
            assert abs(output) >= 50
        else:
            assert output == pytest.approx(limit, abs=1e-6)


@each
@pytest.mark.parametrize("side", [0, 1])
def test_infinite_inputs(name: str, side: int) -> None:
    row, module = TABLE[name], make_activation(name)
    for output in module(torch.full((17,), (-INF, INF)[side])).tolist():
        is_limit = output == pytest.approx(row.limits[side], abs=1e-6)
        assert is_limit or (row.infinity_is_nan and math.isnan(output))


@each
def test_bounded_means_both_limits_are_finite(name: str) -> None:
    assert ACTIVATIONS[name].bounded == all(map(math.isfinite, TABLE[name].limits))


def variances(name: str, start: float) -> Iterator[float]:
    """Yield the variance of pre-activations, layer by layer, in an infinitely wide network."""
    module, gain, q = make_activation(name).double(), activation_gain(name), start
    for _ in range(DEPTH):
        q = gain**2 * second_moment(module, q, ACTIVATIONS[name].kinks)
        yield q


@each_stable
def test_gain_keeps_the_variance_of_a_wide_network(name: str) -> None:
    settled = TABLE[name].settles
    assert list(variances(name, settled)) == pytest.approx([settled] * DEPTH, rel=1e-3)
    for start in (0.99, 1.01):
        assert all(0.5 < q / settled < 2 for q in variances(name, start * settled))


def test_no_gain_keeps_the_variance_of_relu_squared() -> None:
    assert [name for name in TABLE if ACTIVATIONS[name].unstable] == ["relu_squared"]
    assert list(variances("relu_squared", 1.0)) == pytest.approx([1.0] * DEPTH, rel=1e-3)
    for start in (0.99, 1.01):
        *_, tenth = itertools.islice(variances("relu_squared", start), 10)
        assert tenth == pytest.approx(start**1024, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "percent"),
    [("softplus", 0), ("relu", 1), ("gelu", 15), ("silu", 27), ("hardswish", 83)],
)
def test_growth_that_the_documentation_states(name: str, percent: float) -> None:
    *_, last = variances(name, 1.01)
    assert 100 * (last - 1) == pytest.approx(percent, abs=0.5)


def layer_variances(name: str) -> list[float]:
    """Return the variance of pre-activations in a real network, from exactly ``settles``."""
    model = build_model(
        "mlp", input_shape=(64,), classes=2, width=512, depth=DEPTH, activation=name, seed=0
    )
    draws = np.random.default_rng(0).standard_normal((16, 64), dtype=np.float32)
    layers = dict(model.named_children())
    with torch.no_grad():
        x = torch.from_numpy(draws)
        x *= (TABLE[name].settles / layers["dense1"](x).square().mean()).sqrt()
        found = []
        for label, layer in layers.items():
            x = layer(x)
            if label.startswith("dense"):
                found.append(float(x.square().mean()))
    return found


@each
def test_gain_keeps_the_variance_of_a_real_network(name: str) -> None:
    found = layer_variances(name)
    if ACTIVATIONS[name].unstable:
        assert not 1e-6 < found[-1] < 1e6
        return
    # Chance moves the variance by some 10% a layer at width 512; the repelling ones amplify it.
    assert 1e-2 < found[-1] / found[0] < 1e2
    module, gain, kinks = (
        make_activation(name).double(),
        activation_gain(name),
        ACTIVATIONS[name].kinks,
    )
    ratios = [b / (gain**2 * second_moment(module, a, kinks)) for a, b in itertools.pairwise(found)]
    assert all(0.7 < ratio < 1.5 for ratio in ratios)
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1, abs=0.08)
