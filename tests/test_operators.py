"""ATen operators in JAX against torch: values and gradients of small modules, and tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812, as everybody calls it

from fedsim.models import ACTIVATIONS, make_activation
from fedsim.training.traced import Traced, Untranslatable, trace
from fedsim.training.xla import load_jax


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


class Does(nn.Module):
    """A layer, a function under test, and the mean over what remains, to (batch, 4)."""

    def __init__(self, layer: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.layer(x))
        return y.flatten(1)[:, :4]


def dense(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    return lambda: Does(nn.Linear(6, 8), function)


def planes(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    layer = nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (1, 2, 3)))
    return lambda: Does(layer, lambda x: function(x.expand(-1, 4, -1, -1)))


CASES: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)),
    "group norm": lambda: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Linear(8, 4)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval(),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2, padding=1, groups=2), nn.Flatten()
    ),
    "strides": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, (1, 2), stride=2, dilation=1), nn.Flatten()
    ),
    "overlapping maxima": lambda: nn.Sequential(
        nn.Linear(6, 25), nn.Unflatten(1, (1, 5, 5)), nn.MaxPool2d(3, 2, padding=1), nn.Flatten()
    ),
    "maxima of uneven windows": lambda: nn.Sequential(
        nn.Linear(6, 25), nn.Unflatten(1, (1, 5, 5)), nn.MaxPool2d(2), nn.Flatten()
    ),
    "averages": lambda: nn.Sequential(
        nn.Linear(6, 32), nn.Unflatten(1, (2, 4, 4)), nn.AvgPool2d(2), nn.Flatten()
    ),
    "adaptive averages": lambda: nn.Sequential(
        nn.Linear(6, 64), nn.Unflatten(1, (4, 4, 4)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "in place": lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True)),
    "softmax": dense(lambda x: F.softmax(x, dim=1)),
    "softsign": dense(F.softsign),
    "logsigmoid": dense(F.logsigmoid),
    "celu": dense(lambda x: F.celu(x, 0.5)),
    "gated": dense(lambda x: F.glu(x, dim=1)),
    "clamped": dense(lambda x: x.clamp(-0.1, 0.2) + x.clamp_min(0.3)),
    "arithmetic": dense(lambda x: (1 - x * x).abs().sqrt() / (2 + x.exp()) - x.sin() * x.cos()),
    "powers": dense(lambda x: x**3 + (x * x + 1) ** 0.5 + 1 / (3 + x.square())),
    "with alpha": dense(lambda x: torch.add(x, x.tanh(), alpha=0.5) - torch.rsub(x, 2, alpha=3)),
    "selections": dense(lambda x: torch.where((x > 0) & (x <= 0.5), x, -x).minimum(x + 1)),
    "reductions": dense(
        lambda x: x - x.mean(1, keepdim=True) + x.amax(1)[:, None] * x.var(1, keepdim=True)
    ),
    "joined": dense(lambda x: torch.cat([x[:, ::2], x[:, 1:4], F.pad(x, (1, 2))], dim=1)),
    "stacked": dense(lambda x: torch.stack([x[:, 0], x[:, 1] * 2, x[:, 2], x[:, 3]], dim=1)),
    "products": dense(lambda x: (x.view(-1, 4, 2) @ x.view(-1, 2, 4)).transpose(1, 2)),
    "halves": dense(lambda x: torch.cat(x.split(3, dim=1)[::-1], dim=1)),
    "planes": planes(lambda x: x.permute(0, 2, 1, 3).sum(dim=(1, 3))[:, :, None, None] * x),
    "new values": dense(lambda x: x + torch.ones_like(x) * torch.arange(8) + torch.full((8,), 2.0)),
    "cut off": dense(lambda x: x * x.detach()),
    **{name: lambda name=name: nn.Sequential(nn.Linear(6, 4), make_activation(name))
       for name in ACTIVATIONS},
}  # fmt: skip


def both(model: nn.Module, traced: Traced, x: Tensor) -> tuple[Any, Any, Any, Any]:
    """Return scores and the gradient of a function of them, of torch and of JAX."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    scores = functional_call(model, parameters, (x,))
    loss = (
        scores * torch.linspace(0.5, 2.0, scores.numel(), dtype=torch.float64).view_as(scores)
    ).sum()
    gradient = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    jax = load_jax()
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    weights = np.linspace(0.5, 2.0, scores.numel()).reshape(scores.shape)

    def in_jax(trained: Any) -> Any:
        scores = traced({**arrays, **trained}, x.numpy())
        return (scores * weights).sum(), scores

    with jax.enable_x64(True):
        trained = {name: arrays[name] for name in parameters}
        (_, got), got_gradient = jax.jit(jax.value_and_grad(in_jax, has_aux=True))(trained)
    return scores, gradient, got, [got_gradient[name] for name in parameters]


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case: str) -> None:
    torch.manual_seed(1)
    model = CASES[case]().double()
    x = torch.randn(5, 6, dtype=torch.float64)
    if not list(model.parameters()):
        model = nn.Sequential(nn.Linear(6, 6), model).double()
    scores, gradient, got, got_gradient = both(
        model, trace(model, (6,), batch=5, precision="float32"), x
    )
    np.testing.assert_allclose(got, scores.detach().numpy(), rtol=1e-12, atol=1e-12)
    for a, b in zip(got_gradient, gradient, strict=True):
        assert b is not None
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_slopes_everywhere(activation: str) -> None:
    """At kinks, far out, and at what is not finite, XLA's arithmetic agrees with torch's."""
    points = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 19.9, 20.1, -40.0, 1e4, -1e4, np.nan]
    model = nn.Sequential(nn.Linear(1, 1, bias=False), make_activation(activation)).double()
    nn.init.ones_(model[0].weight)
    x = torch.tensor(points, dtype=torch.float64)[:, None].requires_grad_()
    y = model(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    traced = trace(model, (1,), batch=len(points), precision="float32")
    jax = load_jax()
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with jax.enable_x64(True):
        values, back = jax.vjp(lambda x: traced(arrays, x), x.detach().numpy())
        (slopes,) = back(np.ones((len(points), 1)))
    np.testing.assert_allclose(values, y.detach().numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(slopes[:-1], slope.numpy()[:-1], rtol=1e-10, atol=1e-14)


def test_parameters_are_held_as_they_are_used() -> None:
    model = nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2), nn.Flatten(), nn.Linear(8, 3), nn.PReLU()
    )
    for precision in ("float32", "bfloat16"):
        traced = trace(model, (6,), batch=2, precision=precision)
        assert traced.held == {"1.weight": (2, 1, 0), "3.weight": (1, 0)}
        assert traced.convolves


class Tied(nn.Module):
    """Its weight is used in both orders."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight @ self.weight.T


def test_a_weight_that_is_used_in_two_orders_is_held_in_its_own() -> None:
    assert trace(Tied(), (6,), batch=2, precision="float32").held == {}


def shared() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    return model


def idle() -> nn.Module:
    model = nn.Linear(6, 6)
    model.extra = nn.Parameter(torch.ones(3))
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (dense(lambda x: x.cumsum(1)), r"aten\.cumsum"),
        (dense(lambda x: x + torch.rand(8)), r"aten\.(rand|uniform|bernoulli)"),
        (dense(lambda x: x * x.sum().item()), r"aten\._local_scalar_dense"),
        (dense(lambda x: F.max_pool1d(x, 3, ceil_mode=True)), "ceil_mode"),
        (shared, "share parameters"),
        (idle, "extra is not used"),
        (lambda: nn.Linear(7, 6), "cannot be multiplied"),
    ],
)
def test_reasons(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(Untranslatable, match=reason):
        trace(make(), (6,), batch=2, precision="float32")
