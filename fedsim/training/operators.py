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
from jax import Array, lax

from fedsim.training.layers import (
    adaptive_avg_pool2d,
    avg_pool2d,
    batch_norm,
    convolution,
    group_norm,
    layer_norm,
    max_pool2d,
)

Axes = Sequence[int]

# Up to how many examples the gradient of a small matrix (of so many numbers) is added up example by
# example, in one pass with the update; and up to how many x is turned beforehand for another one.
ADDED_UP, SMALL = 16, 20_000
TURNED = 12


def _add(x: Array, y: Array | float, alpha: float = 1) -> Array:
    return x + (y if alpha == 1 else alpha * y)


def _sub(x: Array, y: Array | float, alpha: float = 1) -> Array:
    return x - (y if alpha == 1 else alpha * y)


def _rsub(x: Array, y: Array | float, alpha: float = 1) -> Array:
    return y - (x if alpha == 1 else alpha * x)


def _div(x: Array, y: Array | float, rounding_mode: str | None = None) -> Array:
    if rounding_mode is None:
        return x / y
    return jnp.floor(x / y) if rounding_mode == "floor" else jnp.trunc(x / y)


@jax.custom_vjp
def _product(x: Array, y: Array) -> Array:
    """Return ``x @ y`` of matrices, with the gradient of y in the form that is fast for its shape.

    A processor takes as long to arrange x for the usual form as to multiply it where batches are
    small: the steps of the 2NN at B = 10 are 10% faster for it, those of smaller networks twice.
    """
    return x @ y


def _product_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ y, (x, y)


def _product_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, y = saved
    batch = len(x)
    if not _on_processor() or x.dtype.itemsize < 4:  # a sum of bfloat16 would round each time
        return g @ y.T, x.T @ g
    if batch <= ADDED_UP and y.size <= SMALL:
        # Barriers, so that x and g are not computed anew for every element.
        x, g = lax.optimization_barrier((x, g))  # type: ignore[no-untyped-call]
        return g @ y.T, sum((x[i][:, None] * g[i] for i in range(1, batch)), x[0][:, None] * g[0])
    turned = lax.optimization_barrier(x.T) if batch <= TURNED else x.T  # type: ignore[no-untyped-call]
    return g @ y.T, turned @ g


def _on_processor() -> bool:
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    return getattr(device, "platform", "cpu") == "cpu"


_product.defvjp(_product_forward, _product_backward)


def _addmm(bias: Array, x: Array, y: Array, beta: float = 1, alpha: float = 1) -> Array:
    product = _product(x, y) if alpha == 1 else alpha * _product(x, y)
    return product + (bias if beta == 1 else beta * bias)


def _identity(x: Array, *_: Any, **__: Any) -> Array:
    return x


def _relu(x: Array) -> Array:
    return jnp.where(x <= 0, jnp.zeros_like(x), x)  # as in torch: no gradient at 0, NaN stays NaN


def _leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    return jnp.where(x > 0, x, negative_slope * x)


def _prelu(x: Array, weight: Array) -> Array:
    shape = (1, -1, *[1] * (x.ndim - 2)) if x.ndim > 1 else (-1,)
    return jnp.where(x > 0, x, weight.reshape(shape) * x)


def _hardtanh(x: Array, low: float = -1, high: float = 1) -> Array:
    # The gradient is 1 strictly inside and 0 at the bounds, as in torch.
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


def _clamp(x: Array, low: Any = None, high: Any = None) -> Array:
    # The gradient is 1 at the bounds too, as in torch.
    x = x if low is None else jnp.where(x < low, low, x)
    return x if high is None else jnp.where(x > high, high, x)


def _elu(x: Array, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Array:
    # expm1 sees no positive number: where it overflows, 0 * inf would spoil the gradient.
    negative = alpha * jnp.expm1(jnp.where(x > 0, 0, x) * input_scale)
    return scale * jnp.where(x > 0, x, negative)


def _softplus(x: Array, beta: float = 1, threshold: float = 20) -> Array:
    linear = x * beta > threshold
    return jnp.where(linear, x, jnp.log1p(jnp.exp(jnp.where(linear, 0, x * beta))) / beta)


def _gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


def _silu(x: Array) -> Array:
    return x * jax.nn.sigmoid(x)


def _mish(x: Array) -> Array:
    return x * jnp.tanh(_softplus(x))


def _log_sigmoid(x: Array) -> tuple[Array]:
    return (jax.nn.log_sigmoid(x),)


def _glu(x: Array, dim: int = -1) -> Array:
    return jax.nn.glu(x, axis=dim)


def _hardsigmoid(x: Array) -> Array:
    return _hardtanh(x + 3, 0, 6) / 6


def _hardswish(x: Array) -> Array:
    return x * _hardsigmoid(x)


def _power(x: Any, exponent: Any) -> Array:
    if isinstance(exponent, int | float) and exponent == int(exponent):
        return lax.integer_pow(x, int(exponent))
    return jnp.power(x, exponent)


def _where(condition: Array, x: Any, y: Any) -> Array:
    return jnp.where(condition, x, y)


def _softmax(x: Array, dim: int, half_to_float: bool = False) -> Array:
    return jax.nn.softmax(x, axis=dim)


def _log_softmax(x: Array, dim: int, half_to_float: bool = False) -> Array:
    return jax.nn.log_softmax(x, axis=dim)


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return the operator of a jax.numpy reduction; no dimensions, or an empty list, means all."""

    def reduce(x: Array, dim: Axes | int | None = None, keepdim: bool = False, **_: Any) -> Array:
        axis = tuple(dim) if isinstance(dim, list | tuple) else dim
        return function(x, axis=None if axis == () else axis, keepdims=keepdim)

    return reduce


def _variance(
    x: Array, dim: Axes | None = None, correction: int | None = 1, keepdim: bool = False
) -> Array:
    axis = tuple(dim) if dim else None
    return jnp.var(x, axis=axis, ddof=1 if correction is None else correction, keepdims=keepdim)


def _var_mean(x: Array, dim: Axes | None = None, **more: Any) -> tuple[Array, Array]:
    keepdim = more.get("keepdim", False)
    return _variance(x, dim, **more), _reduction(jnp.mean)(x, dim, keepdim)


def _view(x: Array, size: Axes) -> Array:
    return x.reshape(tuple(size))


def _expand(x: Array, size: Axes, implicit: bool = False) -> Array:
    lead = len(size) - x.ndim
    shape = [x.shape[i - lead] if n == -1 else n for i, n in enumerate(size)]
    return jnp.broadcast_to(x, shape)


def _slice(
    x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    index: list[Any] = [slice(None)] * x.ndim
    index[dim] = slice(start, end, step)
    return x[tuple(index)]


def _select(x: Array, dim: int, index: int) -> Array:
    return lax.index_in_dim(x, index, dim, keepdims=False)


def _transpose(x: Array, first: int, second: int) -> Array:
    return jnp.swapaxes(x, first, second)


def _squeeze(x: Array, dim: Axes | int | None = None) -> Array:
    axes = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return jnp.squeeze(x, tuple(axis for axis in axes if x.shape[axis] == 1))


def _cat(parts: Sequence[Array], dim: int = 0) -> Array:
    return jnp.concatenate(parts, axis=dim)


def _split(x: Array, size: int, dim: int = 0) -> tuple[Array, ...]:
    return tuple(jnp.split(x, list(range(size, x.shape[dim], size)), axis=dim))


def _constant_pad(x: Array, pad: Axes, value: float = 0) -> Array:
    edges = [(0, 0)] * x.ndim
    for i in range(len(pad) // 2):
        edges[x.ndim - 1 - i] = (pad[2 * i], pad[2 * i + 1])
    return jnp.pad(x, edges, constant_values=value)


def _zeros(size: Axes, **_: Any) -> Array:
    return jnp.zeros(tuple(size))


def _full(size: Axes, value: float, **_: Any) -> Array:
    return jnp.full(tuple(size), value)


def _full_like(x: Array, value: float, **_: Any) -> Array:
    return jnp.full(x.shape, value)


def _scalar_tensor(value: float, **_: Any) -> Array:
    return jnp.asarray(value)


def _arange(start: float, end: float | None = None, step: float = 1, **_: Any) -> Array:
    return jnp.arange(start, end, step)


def _embedding(weight: Array, indices: Array, *_: Any) -> Array:
    return jnp.take(weight, indices, axis=0)


# By the operator's name without its overload, or with it where overloads mean different things.
OPERATORS: dict[str, Callable[..., Any]] = {
    # arithmetic
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": jnp.multiply,
    "div": _div,
    "pow": _power,
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
    "where": _where,
    # activations
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": _softplus,
    "elu": _elu,
    "gelu": _gelu,
    "silu": _silu,
    "mish": _mish,
    "hardsigmoid": _hardsigmoid,
    "log_sigmoid_forward": _log_sigmoid,
    "glu": _glu,
    "hardswish": _hardswish,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    # products, convolutions, pooling
    "mm": _product,
    "bmm": jnp.matmul,
    "addmm": _addmm,
    "convolution": convolution,
    "max_pool2d_with_indices": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "_adaptive_avg_pool2d": adaptive_avg_pool2d,
    "embedding": _embedding,
    # reductions and what is made of them
    "sum": _reduction(jnp.sum),
    "mean": _reduction(jnp.mean),
    "amax": _reduction(jnp.max),
    "amin": _reduction(jnp.min),
    "var": _variance,
    "var_mean": _var_mean,
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "native_batch_norm": batch_norm,
    # shapes
    "view": _view,
    "_unsafe_view": _view,
    "reshape": _view,
    "t": jnp.transpose,
    "permute": jnp.transpose,
    "transpose": _transpose,
    "unsqueeze": jnp.expand_dims,
    "squeeze": _squeeze,
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "cat": _cat,
    "split": _split,
    "constant_pad_nd": _constant_pad,
    "alias": _identity,
    "clone": _identity,
    "detach": lax.stop_gradient,
    "_to_copy": _identity,
    # new values
    "empty": _zeros,
    "zeros": _zeros,
    "full": _full,
    "full_like": _full_like,
    "zeros_like": jnp.zeros_like,
    "ones_like": jnp.ones_like,
    "scalar_tensor": _scalar_tensor,
    "arange": _arange,
}
