"""The initial draw of a network: the same for every activation, up to one factor a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fedsim.randomness import stream

# The name of the layer that gives the logits. No activation follows it, so its gain is 1.
OUTPUT = "output"


@contextmanager
def undrawn() -> Iterator[None]:
    """Leave torch's global generator alone while layers are built, whose weights are drawn later.

    torch draws weights for every new layer. Building layers on the device ``meta`` spares the draw,
    and imports torch's symbolic shapes, which takes hundreds of times as long.
    """
    with torch.random.fork_rng(devices=[]):
        yield


def initialise(model: nn.Module, *, gain: float, seed: int) -> None:
    """Draw the weights of every dense and convolutional layer in place; biases become zero.

    A weight is N(0, gain^2 / fan_in) in float32 (He et al., 2015): a standard normal from the
    stream ``init/<parameter name>``, times the gain. Arms that differ in their activation thus
    start from the same draw. As in He et al. the first layer has the gain too, although its input
    is data. An activation's own parameters keep the values they were built with.

    Args:
        model: its dense and convolutional weights may be uninitialised.
        gain: of every layer except the output, whose gain is 1.
        seed: the experiment's.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in = layer.weight[0].numel()
            deviation = (1.0 if name == OUTPUT else gain) / math.sqrt(fan_in)
            draw = stream(seed, f"init/{name}.weight").standard_normal(
                tuple(layer.weight.shape), dtype=np.float32
            )
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(draw * np.float32(deviation)))
                if layer.bias is not None:
                    layer.bias.zero_()
