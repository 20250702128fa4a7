"""Arithmetic of local training, counted: the same on every machine.

What is counted is a copy of the network, on the processor: the network that was given stays as it
is, and so does torch's global generator.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.flop_counter import FlopCounterMode

from fedsim.models import ACTIVATIONS, Activation, Cost, make_activation, parse_activation

WITHOUT_PRODUCTS = (nn.Flatten, nn.MaxPool2d)


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What one layer costs for one example: one pass forward and one backward.

    FLOPs are of matrix products and convolutions, a multiply-add being two; the products with the
    zeros of a padding count. Pooling, reshaping and the loss are not captured.

    Attributes:
        layer: the module's name in the network.
        forward_flops: forward.
        backward_flops: of the gradients of weights and of the layer's input. The first layer has
            no gradient of its input, as in training nobody needs it.
        bias_flops: an addition for each element of the output forward, and one backward, where
            their gradients are summed.
        activation_elements: what the activation function is applied to.
        forward_ops: elementwise operations that this takes for all of them, by kind.
        backward_ops: those of its gradient.
    """

    layer: str
    forward_flops: int = 0
    backward_flops: int = 0
    bias_flops: int = 0
    activation_elements: int = 0
    forward_ops: Cost = field(default_factory=Cost)
    backward_ops: Cost = field(default_factory=Cost)

    @property
    def ops(self) -> Cost:
        """The activation's elementwise operations, both passes."""
        return summed([self.forward_ops, self.backward_ops])


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """What a network costs for one example in a training step, by layer; properties: the sums."""

    layers: tuple[LayerCost, ...]

    @cached_property
    def forward_flops(self) -> int:
        """Matrix products and convolutions forward."""
        return sum(layer.forward_flops for layer in self.layers)

    @cached_property
    def backward_flops(self) -> int:
        """Matrix products and convolutions backward."""
        return sum(layer.backward_flops for layer in self.layers)

    @property
    def train_flops(self) -> int:
        """Matrix products and convolutions, both passes."""
        return self.forward_flops + self.backward_flops

    @cached_property
    def bias_flops(self) -> int:
        """Additions of biases and sums of their gradients."""
        return sum(layer.bias_flops for layer in self.layers)

    @cached_property
    def activation_elements(self) -> int:
        """Elements that activation functions are applied to."""
        return sum(layer.activation_elements for layer in self.layers)

    @cached_property
    def ops(self) -> Cost:
        """The activations' elementwise operations, both passes."""
        return summed(layer.ops for layer in self.layers)


def model_cost(model: Module, input_shape: tuple[int, ...], *, activation: str) -> ModelCost:
    """Count what one example costs in a training step; everything is linear in the examples.

    A layer is a module that has no modules in it; arithmetic outside of them is not captured. All
    parameters are trained, as in :func:`fedsim.training.train_locally`.

    Args:
        model: takes (batch, \\*input_shape).
        activation: such as ``"leaky_relu(0.1)"``. The layers of its module's class are the
            activations; what they cost is in ``fedsim.models.ACTIVATIONS``.

    Raises:
        ConfigError: no such activation.
    """
    function = ACTIVATIONS[parse_activation(activation)[0]]
    kind = type(make_activation(activation))
    twin = copy_of(model)
    calls = record_calls(twin)
    with torch.random.fork_rng(devices=[]):
        twin(torch.zeros(1, *input_shape))
        return ModelCost(
            layers=tuple(
                activation_cost(name, calls[name], function)
                if isinstance(layer, kind)
                else layer_cost(name, layer, calls[name])
                for name, layer in leaves(twin).items()
            )
        )


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a layer in a training step."""

    inputs: tuple[Tensor, ...]
    output: Tensor

    @property
    def gradient_of_input(self) -> bool:
        """Whether anything before the layer is trained."""
        return any(x.requires_grad for x in self.inputs)


def copy_of(model: Module) -> Module:
    """Return a copy of a network, on the processor, to be run in place of it."""
    return copy.deepcopy(model).cpu()


def leaves(model: Module) -> dict[str, Module]:
    """Return the modules that have no modules in them, by name and in order."""
    return {name: m for name, m in model.named_modules() if not list(m.children())}


def record_calls(model: Module) -> dict[str, list[Call]]:
    """Return the calls of every leaf by name, to be filled as the model is called."""
    calls: dict[str, list[Call]] = {}
    for name, layer in leaves(model).items():
        found = calls.setdefault(name, [])
        layer.register_forward_hook(
            lambda _, inputs, output, found=found: found.append(Call(inputs=inputs, output=output))
        )
    return calls


def activation_cost(name: str, calls: Sequence[Call], function: Activation) -> LayerCost:
    """Count an activation by its elements; backward only where a gradient passes through it."""
    elements = sum(call.output.numel() for call in calls)
    trained = sum(call.output.numel() for call in calls if call.output.requires_grad)
    return LayerCost(
        layer=name,
        activation_elements=elements,
        forward_ops=times(function.forward, elements),
        backward_ops=times(function.backward, trained),
    )


def layer_cost(name: str, layer: Module, calls: Sequence[Call]) -> LayerCost:
    """Count a layer that is no activation."""
    flops = [product_flops(layer, call) for call in calls]
    biased = getattr(layer, "bias", None) is not None
    return LayerCost(
        layer=name,
        forward_flops=sum(forward for forward, _ in flops),
        backward_flops=sum(backward for _, backward in flops),
        bias_flops=2 * biased * sum(call.output.numel() for call in calls),
    )


def product_flops(layer: Module, call: Call) -> tuple[int, int]:
    """Count the products of a layer's call, forward and backward.

    A dense layer or a convolution multiplies every weight once for each position of its output,
    as does the gradient of the weights, and that of the input. Other layers are left to torch's
    counter, which tests hold equal to this: using it means to load torch's compiler, which would
    take every worker most of a second.
    """
    if isinstance(layer, WITHOUT_PRODUCTS):
        return 0, 0
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return product_flops_by_torch(layer, call)
    positions = call.output.numel() // layer.weight.shape[0]
    forward = 2 * layer.weight.numel() * positions
    return forward, forward * (1 + call.gradient_of_input)


def product_flops_by_torch(layer: Module, call: Call) -> tuple[int, int]:
    """Count as :func:`product_flops` by running the layer alone under torch's own counter."""
    inputs = [x.detach().requires_grad_(x.requires_grad) for x in call.inputs]
    wanted = [t for t in (*inputs, *layer.parameters()) if t.requires_grad]
    with FlopCounterMode(display=False) as counter:
        # Past the hooks on modules: the counter's miss backward where a layer returns its input.
        output = layer.forward(*inputs)
        forward = counter.get_total_flops()
        if wanted:
            torch.autograd.grad(output, wanted, torch.ones_like(output))
    return forward, counter.get_total_flops() - forward


def summed(costs: Iterable[Cost]) -> Cost:
    """Add operations kind by kind."""
    costs = list(costs)
    return Cost(**{kind.name: sum(getattr(c, kind.name) for c in costs) for kind in fields(Cost)})


def times(cost: Cost, elements: int) -> Cost:
    """Return the operations of so many elements."""
    return Cost(**{kind.name: elements * getattr(cost, kind.name) for kind in fields(Cost)})


def optimizer_flops(
    parameters: int,
    *,
    momentum: bool,
    weight_decay: bool,
    clip: bool,
    proximal: bool,
    correction: bool,
) -> int:
    """Count one optimiser step of :func:`fedsim.training.train_locally`, element by element.

    For every parameter: w - learning_rate v, 2; clipping, 3 (a square and its sum, a scaling);
    weight_decay w, 2; proximal_mu (w - w0), 3; the correction, 1; momentum v + g, 2. What clipping
    does once a tensor, such as a square root, does not count.

    Args:
        parameters: how many numbers are trained.
    """
    each = 2 + 3 * clip + 2 * weight_decay + 3 * proximal + correction + 2 * momentum
    return each * parameters


def examples_processed(examples: int, *, steps: int, batch_size: int) -> int:
    """Count the examples that go through the network in local training, over all its steps.

    Whole passes see every example once; a pass that is cut short sees its first batches, which
    are full (see :func:`fedsim.training.local.batches`).

    Args:
        examples: of the client, at least 1.
        steps: optimiser steps taken.
        batch_size: examples a step; 0 for all.
    """
    size = batch_size or examples
    passes, rest = divmod(steps, -(-examples // size))
    return passes * examples + rest * size
