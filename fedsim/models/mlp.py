"""The multilayer perceptron; by default the 2NN of McMahan et al. (2017)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from fedsim.models.initialise import OUTPUT, undrawn


def mlp(
    *,
    input_shape: tuple[int, ...],
    classes: int,
    width: int,
    depth: int,
    activation: Callable[[], nn.Module],
) -> nn.Sequential:
    """Return ``depth`` dense layers of ``width`` units, each with its activation, and the logits.

    Takes (batch, \\*input_shape), of any shape; gives (batch, classes). With width 200 and depth 2
    on 28 x 28 images and 10 classes: 784-200-200-10, 199,210 parameters. The weights hold a
    draw of torch's until they are initialised.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    features = math.prod(input_shape)
    for i in range(1, depth + 1):
        layers[f"dense{i}"] = dense(features, width)
        layers[f"activation{i}"] = activation()
        features = width
    layers[OUTPUT] = dense(features, classes)
    return nn.Sequential(layers)


def dense(features: int, units: int) -> nn.Linear:
    """Return a dense layer, whose weights are drawn later."""
    with undrawn():
        return nn.Linear(features, units)
