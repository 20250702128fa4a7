"""The convolutional network of private training (Papernot et al. 2021; Opacus' MNIST example)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from fedsim.models.initialise import OUTPUT, undrawn
from fedsim.models.mlp import dense

BLOCKS = 2
SMALLEST = 14  # height and width that leave the second pool something to take a maximum over


def small_cnn(
    *,
    input_shape: tuple[int, ...],
    classes: int,
    width: int,
    depth: int,
    activation: Callable[[], nn.Module],
) -> nn.Sequential:
    """Return two convolution blocks, a dense layer of ``width`` units, and the logits.

    The convolutions have 16 kernels of 8 x 8 and 32 of 4 x 4, both with stride 2; the first pads by
    3. After each come the activation and a maximum over 2 x 2 with stride 1. ``depth`` is always 2.
    Takes (batch, channels, height, width), gives (batch, classes). With width 32 on 1 x 28 x 28
    images and 10 classes: 26,010 parameters, 64 times fewer than the cnn, since the norm of the
    noise grows with their number. The weights hold a draw of torch's until they are initialised.
    """
    channels, height, breadth = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (filters, kernel, padding) in enumerate(((16, 8, 3), (32, 4, 0)), start=1):
        with undrawn():
            layers[f"conv{i}"] = nn.Conv2d(channels, filters, kernel, stride=2, padding=padding)
        layers[f"activation{i}"] = activation()
        layers[f"pool{i}"] = nn.MaxPool2d(2, stride=1)
        # The convolution's size, and one less for the pool.
        height, breadth = ((n + 2 * padding - kernel) // 2 for n in (height, breadth))
        channels = filters
    layers["flatten"] = nn.Flatten()
    layers["dense1"] = dense(channels * height * breadth, width)
    layers[f"activation{depth + 1}"] = activation()
    layers[OUTPUT] = dense(width, classes)
    return nn.Sequential(layers)


def small_cnn_problem(input_shape: tuple[int, ...], depth: int) -> str | None:
    """Say why the network cannot take this input; None where it can."""
    if len(input_shape) != 3:
        return (
            "model.name = 'small_cnn': needs images of shape (channels, height, width), not "
            f"{input_shape}; use model.name = 'mlp'"
        )
    if depth != BLOCKS:
        return (
            f"model.depth = {depth}: a small_cnn always has {BLOCKS} convolutions; use 0, or "
            "model.name = 'cnn'"
        )
    _, height, breadth = input_shape
    if min(height, breadth) < SMALLEST:
        return (
            f"model.name = 'small_cnn': needs images of at least {SMALLEST} x {SMALLEST}, not "
            f"{height} x {breadth}; use model.name = 'mlp'"
        )
    return None
