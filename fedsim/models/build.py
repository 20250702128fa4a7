"""From the settings of an experiment's model to the module, with its initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fedsim.errors import ConfigError, nearest
from fedsim.models.activations import activation_gain, make_activation
from fedsim.models.cnn import cnn, cnn_problem
from fedsim.models.initialise import initialise
from fedsim.models.mlp import mlp
from fedsim.models.small_cnn import small_cnn, small_cnn_problem


@dataclass(frozen=True, kw_only=True)
class Model:
    """An architecture: how its layers are made, its default size, and what it refuses."""

    layers: Callable[..., nn.Sequential]
    width: int
    depth: int
    problem: Callable[[tuple[int, ...], int], str | None] | None = None  # (input_shape, depth)


MODELS: dict[str, Model] = {
    "mlp": Model(layers=mlp, width=200, depth=2),
    "cnn": Model(layers=cnn, width=512, depth=2, problem=cnn_problem),
    "small_cnn": Model(layers=small_cnn, width=32, depth=2, problem=small_cnn_problem),
}


def build_model(
    name: str,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    width: int = 0,
    depth: int = 0,
    activation: str = "relu",
    init_gain: float = 0.0,
    seed: int,
) -> nn.Module:
    """Return a network in float32 on the processor, with its initial weights.

    It takes (batch, \\*input_shape) and gives logits, (batch, classes). Parameter names and shapes
    do not depend on the activation, except for parameters that an activation has of its own; nor
    does the initial draw, see :func:`fedsim.models.initialise.initialise`. Torch's global
    generator is neither read nor moved.

    Args:
        name: one of ``MODELS``.
        input_shape: of one example, as (features,) or (channels, height, width).
        classes: at least 1.
        width: units of a dense hidden layer; 0 for the architecture's default.
        depth: hidden layers of the mlp, convolution blocks of a cnn; 0 for the default.
        activation: such as ``"relu"`` or ``"leaky_relu(0.1)"``.
        init_gain: initialisation gain; 0 for the activation's own.
        seed: the experiment's.

    Raises:
        ConfigError: the network cannot be built so.
    """
    problem = input_problem(name, input_shape, width, depth)
    if problem is not None:
        raise ConfigError([problem])
    if classes < 1:
        raise ConfigError([f"classes = {classes}: must be at least 1"])
    if not (math.isfinite(init_gain) and init_gain >= 0):
        raise ConfigError(
            [f"model.init_gain = {init_gain}: must be positive, or 0 for the default"]
        )
    model = MODELS[name].layers(
        input_shape=input_shape,
        classes=classes,
        width=width or MODELS[name].width,
        depth=depth or MODELS[name].depth,
        activation=lambda: make_activation(activation),
    )
    initialise(model, gain=init_gain or activation_gain(activation), seed=seed)
    return model


def input_problem(name: str, input_shape: tuple[int, ...], width: int, depth: int) -> str | None:
    """Say why a network of this size cannot take this input; None where it can.

    Arguments as in :func:`build_model`; an unknown name is a problem too.
    """
    if name not in MODELS:
        return f"model.name = {name!r}: unknown; {nearest(name, MODELS)}"
    if not input_shape or min(input_shape) < 1:
        return f"model.name = {name!r}: an example of shape {input_shape} holds no numbers"
    for key, value in (("width", width), ("depth", depth)):
        if value < 0:
            return f"model.{key} = {value}: must be at least 1, or 0 for the default"
    model = MODELS[name]
    return model.problem(input_shape, depth or model.depth) if model.problem else None
