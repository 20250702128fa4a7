"""Is a network healthy: its loss on a client's data, and what its activations do there.

A *layer* is a module with parameters of its own that is no activation, together with the activation
that runs after it; an activation without such a predecessor is a layer by itself. Layers come in
the order of the forward pass and are found by forward hooks, which are removed whatever happens.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.measure.evaluation import evaluate
from fedsim.models import ACTIVATIONS, make_activation, parse_activation

# An output is saturated within this share of its range from either bound.
SATURATION = 0.01

See = Callable[[str, nn.Module, Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class LayerHealth:
    """One layer. Figures of an activation are None in a layer without one, as the logits'.

    - ``parameters``: how many, the activation's own among them.
    - ``zero_fraction``: of the activation's outputs on the probe, those that are exactly 0.
    - ``dead_fraction``: of the activation's units (features of a dense layer, channels of a
      convolution), those whose output is exactly 0 for all examples and positions. A smooth
      activation is never exactly zero but where float32 underflows or the pre-activation is 0: its
      dead fraction is 0 by definition and no sign of health; look at the gradient instead.
    - ``saturated_fraction``: of the outputs on the probe, those within 1% of the activation's range
      of either bound; None unless it is bounded on both sides. The 0 of relu6 is a bound.
    - ``preactivation_mean``, ``preactivation_std``: of the activation's input, or of the logits, on
      the probe; the deviation is the population's.
    - ``gradient_norm``: Euclidean norm of the gradient of the probe's mean loss with respect to the
      layer's parameters; None where there are none, or nobody asked.

    Fractions are in [0, 1]. Numbers that are not finite are reported as they are.
    """

    layer: str
    parameters: int | None
    zero_fraction: float | None
    dead_fraction: float | None
    saturated_fraction: float | None
    preactivation_mean: float | None
    preactivation_std: float | None
    gradient_norm: float | None


@dataclass(frozen=True, kw_only=True)
class Health:
    """A network on one client's data, or on the test part.

    ``loss`` (mean cross-entropy) and ``accuracy`` (in [0, 1]) are of all examples.
    ``gradient_ratio`` is the first layer's gradient norm over the last one's, among the layers that
    have one; None where there is none, or the last is 0.
    """

    loss: float
    accuracy: float
    gradient_ratio: float | None
    layers: tuple[LayerHealth, ...]


def probe_indices(examples: int, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """Choose the examples of a probe, uniformly without replacement: (at most ``size``,), int64.

    The indices are sorted. Streams of equal keys choose equal probes, so that probes can be the
    same in every round and arm.
    """
    chosen = rng.choice(examples, size=min(size, examples), replace=False)
    return np.sort(chosen).astype(np.int64)


def look(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    probe: Tensor | slice,
    activation: str,
    gradients: bool = True,
) -> Health:
    """Return the health of a network; the network is as before, ``.grad`` and mode included.

    It takes one pass over all examples, in batches that bound the memory, and one over the probe,
    forward and (with ``gradients``) backward. Sums are in float64. The forward pass must neither
    draw nor keep statistics (no dropout, no batch normalisation), and runs every layer once; one
    activation module may serve many.

    Args:
        model: maps ``x`` to class scores.
        x: features, (examples, \\*input shape), float32; at least one example.
        y: labels, (examples,), int64.
        probe: which examples the figures of layers are taken from, at least one: indices, int64,
            or a slice.
        activation: the registry's text, such as ``"leaky_relu(0.1)"``; modules of its class are
            the activations.
        gradients: whether to take the gradient norms.

    Raises:
        ConfigError: there is no such activation.
    """
    kind, bounds = recognise(activation)
    layers, norms = _probe(model, x[probe], y[probe], kind, gradients)
    active = [layer for layer in layers if layer.output is not None]
    accuracy, loss, alive = _whole(model, x, y, kind, len(active))
    units = iter(alive)
    known = [norm for norm in norms if norm is not None]
    return Health(
        loss=loss,
        accuracy=accuracy,
        gradient_ratio=known[0] / known[-1] if known and known[-1] != 0 else None,
        layers=tuple(
            _figures(layer, norm, None if layer.output is None else next(units), bounds)
            for layer, norm in zip(layers, norms, strict=True)
        ),
    )


@functools.cache
def recognise(activation: str) -> tuple[type[nn.Module], tuple[float, float] | None]:
    """Return the class of an activation's modules, and its bounds if it has one on both sides.

    The bounds are what it gives at -inf and at inf.

    Raises:
        ConfigError: there is no such activation.
    """
    module = make_activation(activation)
    if not ACTIVATIONS[parse_activation(activation)[0]].bounded:
        return type(module), None
    low, high = module(torch.tensor([-math.inf, math.inf])).tolist()
    return type(module), (low, high)


@dataclass
class _Layer:
    """What a forward pass showed of a layer; ``output`` is the activation's, if it has one."""

    name: str
    parameters: list[nn.Parameter]
    preactivation: Tensor
    output: Tensor | None = None


@contextmanager
def _watching(model: nn.Module, kind: type[nn.Module], see: See) -> Iterator[None]:
    """Call ``see(name, module, input, output)`` for every layer and activation that runs."""

    def hook(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        see(name, module, inputs[0], output)

    handles = []
    try:
        for name, module in model.named_modules():
            if type(module) is kind or _own_parameters(module):
                named = functools.partial(hook, name or "model")
                handles.append(module.register_forward_hook(named))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _probe(
    model: nn.Module, x: Tensor, y: Tensor, kind: type[nn.Module], gradients: bool
) -> tuple[list[_Layer], list[float | None]]:
    """Return the layers as the probe shows them, and their gradient norms."""
    layers: list[_Layer] = []

    def see(name: str, module: nn.Module, before: Tensor, after: Tensor) -> None:
        if type(module) is not kind:
            layers.append(_Layer(name, _own_parameters(module), after.detach()))
            return
        if not layers or layers[-1].output is not None:
            layers.append(_Layer(name, [], before.detach()))
        layers[-1].parameters += _own_parameters(module)
        layers[-1].preactivation, layers[-1].output = before.detach(), after.detach()

    with torch.set_grad_enabled(gradients), _watching(model, kind, see):
        loss = cross_entropy(model(x), y)
    return layers, _gradient_norms(loss, layers) if gradients else [None] * len(layers)


def _gradient_norms(loss: Tensor, layers: list[_Layer]) -> list[float | None]:
    """Return the norm of the loss's gradient by layer; None where nothing can be trained."""
    trained = [[p for p in layer.parameters if p.requires_grad] for layer in layers]
    flat = [parameter for parameters in trained for parameter in parameters]
    if not flat:
        return [None] * len(layers)
    found = iter(torch.autograd.grad(loss, flat, materialize_grads=True, allow_unused=True))
    return [
        math.hypot(*(_norm(next(found)) for _ in parameters)) if parameters else None
        for parameters in trained
    ]


def _norm(gradient: Tensor) -> float:
    return float(torch.linalg.vector_norm(gradient, dtype=torch.float64))


def _whole(
    model: nn.Module, x: Tensor, y: Tensor, kind: type[nn.Module], activations: int
) -> tuple[float, float, list[Tensor]]:
    """Return accuracy and loss on all examples, and which units of each activation are alive."""
    alive: list[Tensor] = []
    turn = itertools.cycle(range(activations))  # a module may serve several layers

    def see(name: str, module: nn.Module, before: Tensor, after: Tensor) -> None:
        if type(module) is not kind:
            return
        others = tuple(dim for dim in range(after.dim()) if dim != 1)
        # NumPy's pass takes a third of torch's; NaN is not 0, and so alive.
        seen = torch.from_numpy(after.cpu().numpy().any(others))
        position = next(turn)
        if position == len(alive):
            alive.append(seen)
        else:
            alive[position] |= seen

    with _watching(model, kind, see):
        accuracy, loss = evaluate(model, x, y)
    return accuracy, loss, alive


def _figures(
    layer: _Layer,
    gradient_norm: float | None,
    alive: Tensor | None,
    bounds: tuple[float, float] | None,
) -> LayerHealth:
    """Return the figures of a layer; ``alive`` is given with its activation."""
    mean, std = _moments(layer.preactivation)
    zero = dead = saturated = None
    if layer.output is not None and alive is not None:
        zero = _share(layer.output == 0)
        dead = _share(~alive)
        saturated = _saturated(layer.output, bounds) if bounds else None
    return LayerHealth(
        layer=layer.name,
        parameters=sum(p.numel() for p in layer.parameters),
        zero_fraction=zero,
        dead_fraction=dead,
        saturated_fraction=saturated,
        preactivation_mean=mean,
        preactivation_std=std,
        gradient_norm=gradient_norm,
    )


def _moments(values: Tensor) -> tuple[float, float]:
    """Return mean and population standard deviation."""
    wide = values.double()
    mean = wide.mean()
    return float(mean), math.sqrt(float((wide - mean).square().mean()))


def _saturated(output: Tensor, bounds: tuple[float, float]) -> float:
    """Return the share of outputs near a bound."""
    low, high = bounds
    margin = SATURATION * (high - low)
    return _share((output <= low + margin) | (output >= high - margin))


def _share(values: Tensor) -> float:
    """Return the share of True."""
    return int(values.count_nonzero()) / values.numel()
