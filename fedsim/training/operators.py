"""Core ATen operators in JAX: what a traced torch module consists of, one small function each.

Arguments are those of the ATen schemas, in their order. Element types need no care here: whoever
interprets a graph casts each result to the type that torch gave it (see ``traced.py``).

To add one: its function, if ``jax.numpy`` has none that takes the same arguments, and its line in
``OPERATORS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Axes = Sequence[int]


def add(x: Array, y: Array | float, alpha: float = 1) -> Array:
    return x + (y if alpha == 1 else alpha * y)


def sub(x: Array, y: Array | float, alpha: float = 1) -> Array:
    return x - (y if alpha == 1 else alpha * y)


def rsub(x: Array, y: Array | float, alpha: float = 1) -> Array:
    return y - (x if alpha == 1 else alpha * x)


def div(x: Array, y: Array | float, rounding_mode: str | None = None) -> Array:
    if rounding_mode is None:
        return x / y
    return jnp.floor(x / y) if rounding_mode == "floor" else jnp.trunc(x / y)


def addmm(bias: Array, x: Array, y: Array, beta: float = 1, alpha: float = 1) -> Array:
    product = x @ y if alpha == 1 else alpha * (x @ y)
    return product + (bias if beta == 1 else beta * bias)


def identity(x: Array, *_: Any, **__: Any) -> Array:
    return x


def relu(x: Array) -> Array:
    return jnp.where(x <= 0, jnp.zeros_like(x), x)  # as in torch: no gradient at 0, NaN stays NaN


def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    return jnp.where(x > 0, x, negative_slope * x)


def prelu(x: Array, weight: Array) -> Array:
    shape = (1, -1, *[1] * (x.ndim - 2)) if x.ndim > 1 else (-1,)
    return jnp.where(x > 0, x, weight.reshape(shape) * x)


def hardtanh(x: Array, low: float = -1, high: float = 1) -> Array:
    # The gradient is 1 strictly inside and 0 at the bounds, as in torch.
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


def clamp(x: Array, low: Any = None, high: Any = None) -> Array:
    # The gradient is 1 at the bounds too, as in torch.
    x = x if low is None else jnp.where(x < low, low, x)
    return x if high is None else jnp.where(x > high, high, x)


def elu(x: Array, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Array:
    # expm1 sees no positive number: where it overflows, 0 * inf would spoil the gradient.
    negative = alpha * jnp.expm1(jnp.where(x > 0, 0, x) * input_scale)
    return scale * jnp.where(x > 0, x, negative)


def softplus(x: Array, beta: float = 1, threshold: float = 20) -> Array:
    linear = x * beta > threshold
    return jnp.where(linear, x, jnp.log1p(jnp.exp(jnp.where(linear, 0, x * beta))) / beta)


def gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


def silu(x: Array) -> Array:
    return x * jax.nn.sigmoid(x)


def mish(x: Array) -> Array:
    return x * jnp.tanh(softplus(x))


def log_sigmoid(x: Array) -> tuple[Array]:
    return (jax.nn.log_sigmoid(x),)


def glu(x: Array, dim: int = -1) -> Array:
    return jax.nn.glu(x, axis=dim)


def hardsigmoid(x: Array) -> Array:
    return hardtanh(x + 3, 0, 6) / 6


def hardswish(x: Array) -> Array:
    return x * hardsigmoid(x)


def power(x: Any, exponent: Any) -> Array:
    if isinstance(exponent, int | float) and exponent == int(exponent):
        return lax.integer_pow(x, int(exponent))
    return jnp.power(x, exponent)


def where(condition: Array, x: Any, y: Any) -> Array:
    return jnp.where(condition, x, y)


def softmax(x: Array, dim: int, half_to_float: bool = False) -> Array:
    return jax.nn.softmax(x, axis=dim)


def log_softmax(x: Array, dim: int, half_to_float: bool = False) -> Array:
    return jax.nn.log_softmax(x, axis=dim)


def reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return the operator of a jax.numpy reduction; no dimensions, or an empty list, means all."""

    def reduce(x: Array, dim: Axes | int | None = None, keepdim: bool = False, **_: Any) -> Array:
        axis = tuple(dim) if isinstance(dim, list | tuple) else dim
        return function(x, axis=None if axis == () else axis, keepdims=keepdim)

    return reduce


def variance(
    x: Array, dim: Axes | None = None, correction: int | None = 1, keepdim: bool = False
) -> Array:
    axis = tuple(dim) if dim else None
    return jnp.var(x, axis=axis, ddof=1 if correction is None else correction, keepdims=keepdim)


def var_mean(x: Array, dim: Axes | None = None, **more: Any) -> tuple[Array, Array]:
    keepdim = more.get("keepdim", False)
    return variance(x, dim, **more), reduction(jnp.mean)(x, dim, keepdim)


def layer_norm(
    x: Array, shape: Axes, weight: Array | None, bias: Array | None, eps: float
) -> tuple[Array, Array, Array]:
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
        raise NotImplementedError("normalisation by the batch")
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
    if transposed:
        raise NotImplementedError("transposed convolution")
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
        raise NotImplementedError("max_pool2d with ceil_mode or dilation")
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
    if ceil_mode or any(padding):
        raise NotImplementedError("avg_pool2d with ceil_mode or padding")
    kernel, stride = pair(kernel), pair(stride or kernel)
    total = over_windows(x, 0, lax.add, kernel, stride, "VALID")
    return jnp.divide(total, divisor_override or math.prod(kernel))


def adaptive_avg_pool2d(x: Array, size: Axes) -> Array:
    kernel = (x.shape[-2] // size[0], x.shape[-1] // size[1])
    if (kernel[0] * size[0], kernel[1] * size[1]) != x.shape[-2:]:
        raise NotImplementedError("adaptive_avg_pool2d into windows of unequal size")
    return avg_pool2d(x, kernel)


def pair(values: Sequence[int]) -> tuple[int, int]:
    """Return (height, width): one number stands for both."""
    return (values[0], values[-1])


def view(x: Array, size: Axes) -> Array:
    return x.reshape(tuple(size))


def expand(x: Array, size: Axes, implicit: bool = False) -> Array:
    lead = len(size) - x.ndim
    shape = [x.shape[i - lead] if n == -1 else n for i, n in enumerate(size)]
    return jnp.broadcast_to(x, shape)


def slice_(
    x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    index: list[Any] = [slice(None)] * x.ndim
    index[dim] = slice(start, end, step)
    return x[tuple(index)]


def select(x: Array, dim: int, index: int) -> Array:
    return lax.index_in_dim(x, index, dim, keepdims=False)


def transpose(x: Array, first: int, second: int) -> Array:
    return jnp.swapaxes(x, first, second)


def squeeze(x: Array, dim: Axes | int | None = None) -> Array:
    axes = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return jnp.squeeze(x, tuple(axis for axis in axes if x.shape[axis] == 1))


def cat(parts: Sequence[Array], dim: int = 0) -> Array:
    return jnp.concatenate(parts, axis=dim)


def split(x: Array, size: int, dim: int = 0) -> tuple[Array, ...]:
    return tuple(jnp.split(x, list(range(size, x.shape[dim], size)), axis=dim))


def constant_pad(x: Array, pad: Axes, value: float = 0) -> Array:
    edges = [(0, 0)] * x.ndim
    for i in range(len(pad) // 2):
        edges[x.ndim - 1 - i] = (pad[2 * i], pad[2 * i + 1])
    return jnp.pad(x, edges, constant_values=value)


def zeros(size: Axes, **_: Any) -> Array:
    return jnp.zeros(tuple(size))


def full(size: Axes, value: float, **_: Any) -> Array:
    return jnp.full(tuple(size), value)


def full_like(x: Array, value: float, **_: Any) -> Array:
    return jnp.full(x.shape, value)


def scalar_tensor(value: float, **_: Any) -> Array:
    return jnp.asarray(value)


def arange(start: float, end: float | None = None, step: float = 1, **_: Any) -> Array:
    return jnp.arange(start, end, step)


def embedding(weight: Array, indices: Array, *_: Any) -> Array:
    return jnp.take(weight, indices, axis=0)


# By the operator's name without its overload, or with it where overloads mean different things.
OPERATORS: dict[str, Callable[..., Any]] = {
    # arithmetic
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "mul": jnp.multiply,
    "div": div,
    "pow": power,
    "neg": jnp.negative,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "reciprocal": jnp.reciprocal,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "square": jnp.square,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "erf": lax.erf,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    # comparisons
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_not": jnp.bitwise_not,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_not": jnp.logical_not,
    "where": where,
    # activations
    "relu": relu,
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "_prelu_kernel": prelu,
    "hardtanh": hardtanh,
    "clamp": clamp,
    "clamp_min": clamp,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": softplus,
    "elu": elu,
    "gelu": gelu,
    "silu": silu,
    "mish": mish,
    "hardsigmoid": hardsigmoid,
    "log_sigmoid_forward": log_sigmoid,
    "glu": glu,
    "hardswish": hardswish,
    "_softmax": softmax,
    "_log_softmax": log_softmax,
    # products, convolutions, pooling
    "mm": jnp.matmul,
    "bmm": jnp.matmul,
    "addmm": addmm,
    "convolution": convolution,
    "max_pool2d_with_indices": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "_adaptive_avg_pool2d": adaptive_avg_pool2d,
    "embedding": embedding,
    # reductions and what is made of them
    "sum": reduction(jnp.sum),
    "mean": reduction(jnp.mean),
    "amax": reduction(jnp.max),
    "amin": reduction(jnp.min),
    "var": variance,
    "var_mean": var_mean,
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "native_batch_norm": batch_norm,
    # shapes
    "view": view,
    "_unsafe_view": view,
    "reshape": view,
    "t": jnp.transpose,
    "permute": jnp.transpose,
    "transpose": transpose,
    "unsqueeze": jnp.expand_dims,
    "squeeze": squeeze,
    "expand": expand,
    "slice": slice_,
    "select": select,
    "cat": cat,
    "split": split,
    "constant_pad_nd": constant_pad,
    "alias": identity,
    "clone": identity,
    "detach": lax.stop_gradient,
    "_to_copy": identity,
    # new values
    "empty": zeros,
    "zeros": zeros,
    "full": full,
    "full_like": full_like,
    "zeros_like": jnp.zeros_like,
    "ones_like": jnp.ones_like,
    "scalar_tensor": scalar_tensor,
    "arange": arange,
}
