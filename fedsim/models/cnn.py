"""The convolutional network of McMahan et al. (2017), for images of any size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from fedsim.models.initialise import OUTPUT, undrawn
from fedsim.models.mlp import dense

CHANNELS = 32
KERNEL = 5


def cnn(
    *,
    input_shape: tuple[int, ...],
    classes: int,
    width: int,
    depth: int,
    activation: Callable[[], nn.Module],
) -> nn.Sequential:
    """Return ``depth`` convolution blocks, a dense layer of ``width`` units, and the logits.

    A block is a 5 x 5 convolution that keeps height and width, the activation, and a maximum over
    2 x 2; the first has 32 channels, each next one twice as many. Takes (batch, channels, height,
    width), gives (batch, classes). With width 512 and depth 2 on 1 x 28 x 28 images and 10
    classes: 1,663,370 parameters. The weights hold a
    draw of torch's until they are initialised.
    """
    channels, height, breadth = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, depth + 1):
        filters = CHANNELS * 2 ** (i - 1)
        with undrawn():
            layers[f"conv{i}"] = nn.Conv2d(channels, filters, KERNEL, padding=KERNEL // 2)
        layers[f"activation{i}"] = activation()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        channels, height, breadth = filters, height // 2, breadth // 2
    layers["flatten"] = nn.Flatten()
    layers["dense1"] = dense(channels * height * breadth, width)
    layers[f"activation{depth + 1}"] = activation()
    layers[OUTPUT] = dense(width, classes)
    return nn.Sequential(layers)


def cnn_problem(input_shape: tuple[int, ...], depth: int) -> str | None:
    """Say why the network cannot take this input; None where it can."""
    if len(input_shape) != 3:
        return (
            "model.name = 'cnn': needs images of shape (channels, height, width), not "
            f"{input_shape}; use model.name = 'mlp'"
        )
    _, height, breadth = input_shape
    halvings = min(height, breadth).bit_length() - 1
    if depth > halvings:
        smaller = f"lower it to {halvings}, or " if halvings else ""
        return (
            f"model.depth = {depth}: a cnn needs images with height and width of at least "
            f"2^depth, since each block halves them, not {height} x {breadth}; "
            f"{smaller}use model.name = 'mlp'"
        )
    return None
