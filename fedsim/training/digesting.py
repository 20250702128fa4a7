"""The programs that digest models where they were trained; see :mod:`fedsim.training.digest`.

Imported by ``compiled.py`` alone, as JAX is here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from fedsim.training.programs import Program, Tree, groups_of, put_lanes, take_lanes

Sizes = tuple[Array, Array, Array]


def sizing(lanes: int) -> Program:
    """Return the program that measures the updates of clients, ``lanes`` of them at once.

    It takes (models, begin, count) and gives (squares, zeros, finite). Models are as the training
    programs give them, the clients along the first axis, a multiple of ``lanes`` long; ``count`` is
    how many of them are clients. Of the updates: squared norms, (clients, parameters by name);
    coordinates that are zero, (clients,); whether a model is finite.
    """

    def program(models: Tree, begin: Tree, count: Array) -> Sizes:
        call = len(next(iter(models.values())))
        if call == lanes:
            return _sizes(models, begin)

        def body(g: Any, out: Sizes) -> Sizes:
            found = _sizes(take_lanes(models, g * lanes, lanes), begin)
            put: Sizes = put_lanes(out, found, g * lanes)
            return put

        blank = jnp.zeros((call, len(models))), jnp.zeros(call), jnp.zeros(call, bool)
        result: Sizes = lax.fori_loop(0, groups_of(count, lanes), body, blank)
        return result

    made: Program = jax.jit(program)
    return made


def adding(lanes: int) -> Program:
    """Return the program that adds up the models of clients, ``lanes`` of them at once.

    It takes (total, models, weights, included, count) and gives the total, by parameter, float64.
    Models and ``count`` are as for :func:`sizing`; their parameters are no wider than float32, so
    that a product with a weight is exact in float64. Weights are (clients,), float64; who is not
    included, (clients,), is left out.
    """

    def program(total: Tree, models: Tree, weights: Array, included: Array, count: Array) -> Tree:
        if len(weights) == lanes:
            return _added_up(total, models, weights, included)

        def body(g: Any, total: Tree) -> Tree:
            mine, factors, wanted = take_lanes((models, weights, included), g * lanes, lanes)
            return _added_up(total, mine, factors, wanted)

        result: Tree = lax.fori_loop(0, groups_of(count, lanes), body, total)
        return result

    made: Program = jax.jit(program, donate_argnums=0)
    return made


def _sizes(models: Tree, begin: Tree) -> Sizes:
    """Return squared norms, zeros and finiteness of some clients' updates."""
    squares = {
        name: _sum(jnp.square(stack.astype(jnp.float64) - begin[name].astype(jnp.float64)))
        for name, stack in models.items()
    }
    zeros = sum(_count(stack == begin[name]) for name, stack in models.items())
    columns = jnp.stack(list(squares.values()), axis=1)
    # The square of a finite float32 is a finite float64.
    return columns, jnp.asarray(zeros), jnp.isfinite(columns).all(axis=1)


def _added_up(total: Tree, models: Tree, weights: Array, included: Array) -> Tree:
    """Add models to a total, each times its weight, one client after another."""
    new, lanes = {}, range(len(weights))
    # In lax's own terms, which are traced in a third of the time that jax.numpy's take.
    factors, wanted = (
        [lax.index_in_dim(a, i, keepdims=False) for i in lanes] for a in (weights, included)
    )
    for name, stack in models.items():
        added = total[name]
        for lane in lanes:  # unrolled: one pass over the sum
            model = lax.index_in_dim(stack, lane, keepdims=False).astype(jnp.float64)
            chosen = lax.broadcast(wanted[lane], added.shape)
            added = lax.select(chosen, added + model * factors[lane], added)
        new[name] = added
    return new


def _sum(stack: Array) -> Array:
    """Add up each client's numbers, axis by axis from the outermost, so that many go at once."""
    while stack.ndim > 1:
        stack = jnp.sum(stack, axis=1)
    return stack


def _count(stack: Array) -> Array:
    """Count what is true of each client, in float64."""
    if stack.ndim == 1:
        return stack.astype(jnp.float64)
    # In float32, exact up to 2^24 in a row, XLA counts three times as fast as in integers.
    return _sum(jnp.sum(stack.astype(jnp.float32), axis=1).astype(jnp.float64))
