"""ATen's convolutions, pooling and normalisation in JAX; see ``operators.py``.

A form that has no translation raises a ValueError that names it: torch then trains the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Axes = Sequence[int]


def layer_norm(
    x: Array, shape: Axes, weight: Array | None, bias: Array | None, eps: float
) -> tuple[Array, Array, Array]:
    """Normalise the last dimensions, of this shape; returns also the mean and the factor."""
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    mean = jnp.mean(x, axes, keepdims=True)
    scale = lax.rsqrt(jnp.var(x, axes, keepdims=True) + eps)
    result = (x - mean) * scale
    result = result if weight is None else result * weight
    return result if bias is None else result + bias, mean, scale


def group_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    examples: int,
    channels: int,
    area: int,
    groups: int,
    eps: float,
) -> tuple[Array, Array, Array]:
    """Normalise each group of channels; returns also the mean and the factor."""
    grouped = x.reshape(examples, groups, -1)
    mean = jnp.mean(grouped, -1)
    scale = lax.rsqrt(jnp.var(grouped, -1) + eps)
    result = ((grouped - mean[..., None]) * scale[..., None]).reshape(x.shape)
    per_channel = (1, channels, *[1] * (x.ndim - 2))
    result = result if weight is None else result * weight.reshape(per_channel)
    return result if bias is None else result + bias.reshape(per_channel), mean, scale


def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    variance: Array | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Array]:
    """Normalise by running statistics, as a module in evaluation mode does."""
    if training or mean is None or variance is None:
        raise ValueError("normalisation by the batch")
    shape = (1, -1, *[1] * (x.ndim - 2))
    result = (x - mean.reshape(shape)) * lax.rsqrt(variance.reshape(shape) + eps)
    result = result if weight is None else result * weight.reshape(shape)
    return (result if bias is None else result + bias.reshape(shape),)


def convolution(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Axes,
    padding: Axes,
    dilation: Axes,
    transposed: bool,
    output_padding: Axes,
    groups: int,
) -> Array:
    """Convolve the last dimensions of (batch, channels, ...)-arrays; one to three of them."""
    if transposed:
        raise ValueError("transposed convolution")
    spatial = "DHW"[3 - (x.ndim - 2) :]
    # Channels last, on a processor several times faster; the transpositions melt into layouts.
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    first, last = (0, *range(2, x.ndim), 1), (0, x.ndim - 1, *range(1, x.ndim - 1))
    result = lax.conv_general_dilated(
        jnp.transpose(x, first),
        jnp.transpose(weight, (*range(2, x.ndim), 1, 0)),
        window_strides=tuple(stride),
        padding=[(p, p) for p in padding],
        rhs_dilation=tuple(dilation),
        dimension_numbers=layout,
        feature_group_count=groups,
    )
    return jnp.transpose(result if bias is None else result + bias, last)


def max_pool2d(
    x: Array,
    kernel: Axes,
    stride: Axes = (),
    padding: Axes = (0, 0),
    dilation: Axes = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Array]:
    """Return the maxima alone: their places, which torch returns too, are not needed."""
    if ceil_mode or list(dilation) != [1] * len(dilation):
        raise ValueError("max_pool2d with ceil_mode or dilation")
    kernel, stride, padding = pair(kernel), pair(stride or kernel), pair(padding)
    if stride == kernel and padding == (0, 0):
        return (first_maximum(windows(x, kernel)),)
    edges = [(0, 0), (0, 0), *((p, p) for p in padding)]
    return (over_windows(x, -np.inf, lax.max, kernel, stride, edges),)


def over_windows(
    x: Array, initial: float, function: Any, kernel: Axes, stride: Axes, edges: Any
) -> Array:
    """Reduce windows of the last two dimensions; JAX must see the initial value to derive it."""
    blank = np.array(initial, x.dtype)
    sizes, strides = (1, 1, *kernel), (1, 1, *stride)
    result: Array = lax.reduce_window(x, blank, function, sizes, strides, edges)
    return result


def windows(x: Array, kernel: tuple[int, int]) -> list[Array]:
    """Return the elements of all windows that tile the last two dimensions, by place in them."""
    (h, w), (rows, columns) = kernel, (x.shape[-2] // kernel[0], x.shape[-1] // kernel[1])
    tiled = x[..., : rows * h, : columns * w].reshape(*x.shape[:-2], rows, h, columns, w)
    return [tiled[..., i, :, j] for i in range(h) for j in range(w)]


def first_maximum(parts: list[Array]) -> Array:
    """Return the greatest; among equals the first has the gradient, as in torch."""
    best = parts[0]
    for part in parts[1:]:
        best = jnp.where((part > best) | jnp.isnan(part), part, best)
    return best


def avg_pool2d(
    x: Array,
    kernel: Axes,
    stride: Axes = (),
    padding: Axes = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Return the means over windows of the last two dimensions."""
    if ceil_mode or any(padding):
        raise ValueError("avg_pool2d with ceil_mode or padding")
    kernel, stride = pair(kernel), pair(stride or kernel)
    total = over_windows(x, 0, lax.add, kernel, stride, "VALID")
    return jnp.divide(total, divisor_override or math.prod(kernel))


def adaptive_avg_pool2d(x: Array, size: Axes) -> Array:
    """Return the means over equal windows, so many that the result has this size."""
    kernel = (x.shape[-2] // size[0], x.shape[-1] // size[1])
    if (kernel[0] * size[0], kernel[1] * size[1]) != x.shape[-2:]:
        raise ValueError("adaptive_avg_pool2d into windows of unequal size")
    return avg_pool2d(x, kernel)


def pair(values: Sequence[int]) -> tuple[int, int]:
    """Return (height, width): one number stands for both."""
    return (values[0], values[-1])
