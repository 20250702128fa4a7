"""The programs that XLA compiles: local training of one client after another, or of many at once.

The equations and their order are those of :func:`fedsim.training.local.train_locally`. Arrays of
parameters are held as the traced graph uses them (``Traced.held``); ``hold`` and ``release`` turn
them. Imported by ``compiled.py`` alone, as JAX is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fedsim.training.cohort import Recipe
from fedsim.training.traced import Traced

Tree = dict[str, Array]


class Examples(NamedTuple):
    """The dataset as it is stored: x is (examples, numbers) of any type, y is (examples,)."""

    x: Array
    y: Array


class Carry(NamedTuple):
    """What goes from step to step: parameters, velocity (empty without momentum), two losses."""

    w: Tree
    v: Tree
    first_loss: Array
    last_loss: Array


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of local training as a function of JAX arrays.

    ``parameters`` are those that are trained; the other arrays of the model are constants of it.
    """

    traced: Traced
    parameters: tuple[str, ...]
    recipe: Recipe
    input_shape: tuple[int, ...]
    scale: float

    def start(self, w: Tree) -> Carry:
        """Return what the first step starts from."""
        momentum = bool(self.recipe.momentum)
        v = {name: jnp.zeros_like(w[name]) for name in self.parameters} if momentum else {}
        blank = jnp.full((), jnp.nan, _widest(w))
        trained = {name: w[name] for name in self.parameters}
        return Carry(w=trained, v=v, first_loss=blank, last_loss=blank)

    def __call__(
        self,
        t: Array,
        carry: Carry,
        indices: Array,
        count: Array,
        *,
        examples: Examples,
        begin: Tree,
        learning_rate: Array,
        correction: Tree | None,
    ) -> Carry:
        """Take step ``t``.

        Args:
            t: (), from 0.
            indices: (width,).
            count: (), how many of the indices are the batch.
            begin: the model at the start: parameters as held, and buffers.
            correction: by parameter, as held.
        """
        recipe = self.recipe
        loss, g = self._gradient(carry.w, begin, indices, count, examples)
        if recipe.clip_norm:
            squares = [jnp.sum(jnp.square(part)) for part in g.values()]
            factor = jnp.minimum(recipe.clip_norm / jnp.sqrt(sum(squares)), 1)
            g = {name: part * factor.astype(part.dtype) for name, part in g.items()}
        if recipe.weight_decay:
            g = {name: part + recipe.weight_decay * carry.w[name] for name, part in g.items()}
        if recipe.proximal_mu:
            mu, w = recipe.proximal_mu, carry.w
            g = {name: part + mu * (w[name] - begin[name]) for name, part in g.items()}
        if correction is not None:
            g = {name: part + correction[name] for name, part in g.items()}
        if recipe.momentum:
            g = {name: recipe.momentum * carry.v[name] + part for name, part in g.items()}
        return Carry(
            w={n: w - learning_rate.astype(w.dtype) * g[n] for n, w in carry.w.items()},
            v=g if recipe.momentum else {},
            first_loss=jnp.where(t == 0, loss, carry.first_loss),
            last_loss=loss,
        )

    def _gradient(
        self, w: Tree, begin: Tree, indices: Array, count: Array, examples: Examples
    ) -> tuple[Array, Tree]:
        """Return the mean loss of the first ``count`` examples of a batch, and its gradient."""
        dtype = _widest(w)
        rows = jnp.take(examples.x, indices, axis=0, mode="clip")
        labels = jnp.take(examples.y, indices, mode="clip")
        # Stored values times the scale in float32, as the dataset gives its features.
        x = (rows.astype(jnp.float32) * np.float32(self.scale)).astype(dtype)
        x = x.reshape((-1, *self.input_shape))
        counted = jnp.arange(len(indices)) < count

        def mean_loss(w: Tree) -> Array:
            scores = self.traced(release({**begin, **w}, self.traced.held), x)
            log_p = jax.nn.log_softmax(scores)
            # Chosen by comparison: a gather's gradient would be a scatter, which is slow.
            chosen = jnp.arange(scores.shape[1]) == labels[:, None]
            losses = -jnp.where(chosen & counted[:, None], log_p, 0)
            return jnp.sum(losses) / count.astype(dtype)

        result: tuple[Array, Tree] = jax.value_and_grad(mean_loss)(w)
        return result


def _widest(arrays: Mapping[str, Any]) -> Any:
    """Return the floating type of a model, the widest if it has several."""
    return jnp.result_type(*(a.dtype for a in arrays.values() if a.dtype.kind == "f"))


def hold(arrays: Mapping[str, Any], held: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return arrays with their axes in the order in which training holds them."""
    return {n: a.transpose(held[n]) if n in held else a for n, a in arrays.items()}


def release(arrays: Mapping[str, Any], held: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Undo :func:`hold`."""
    back = {name: tuple(np.argsort(order)) for name, order in held.items()}
    return {n: a.transpose(back[n]) if n in back else a for n, a in arrays.items()}


def release_lanes(stacks: Mapping[str, Any], held: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Undo :func:`hold` of arrays that have the clients along the first axis."""
    lanes = {name: (0, *(axis + 1 for axis in order)) for name, order in held.items()}
    return release(stacks, lanes)


Program = Callable[..., Any]


def one_after_another(step: Step, *, call: int) -> Program:
    """Return the program that trains up to ``call`` clients, each to its end before the next.

    It takes (examples, begin, order, sizes, taken, count, learning_rate, corrections) and gives
    (models, first losses, last losses), each with the clients along the first axis. ``begin`` is
    the model that all start from, as held; so are the models. Order, sizes and taken are those of
    ``orders.Chunk``; ``count`` is how many of the lanes are clients; corrections are by parameter,
    (call, \\*shape), or None.
    """
    held = step.traced.held

    def program(
        examples: Examples, begin: Tree, order: Array, sizes: Array, taken: Array, count: Array,
        rate: Array, corrections: Tree | None,
    ) -> tuple[Tree, Array, Array]:  # fmt: skip
        corrections = _hold_lanes(corrections, held)

        def train(lane: Any) -> Carry:
            mine = None if corrections is None else {k: c[lane] for k, c in corrections.items()}

            def body(t: Array, carry: Carry) -> Carry:
                return step(
                    t, carry, order[t, lane], sizes[t, lane],
                    examples=examples, begin=begin, learning_rate=rate, correction=mine,
                )  # fmt: skip

            end: Carry = lax.fori_loop(0, taken[lane], body, step.start(begin))
            return end._replace(v={})

        def body(lane: Array, out: Carry) -> Carry:
            write = lax.dynamic_update_index_in_dim
            new: Carry = jax.tree.map(lambda o, a: write(o, a, lane, 0), out, train(lane))
            return new

        if call == 1:
            return _ended(jax.tree.map(lambda a: a[None], train(0)))
        like = jax.eval_shape(lambda: train(0))
        room = jax.tree.map(lambda a: jnp.zeros((call, *a.shape), a.dtype), like)
        return _ended(lax.fori_loop(0, count, body, room))

    made: Program = jax.jit(program)
    return made


def together(step: Step, *, lanes: int, call: int) -> Program:
    """Return the program that trains clients in step, ``lanes`` of them at once.

    Otherwise as :func:`one_after_another`; ``call`` is a multiple of ``lanes``.
    """
    held = step.traced.held

    def program(
        examples: Examples, begin: Tree, order: Array, sizes: Array, taken: Array, count: Array,
        rate: Array, corrections: Tree | None,
    ) -> tuple[Tree, Array, Array]:  # fmt: skip
        corrections = _hold_lanes(corrections, held)

        def lane(
            t: Array, carry: Carry, indices: Array, size: Array, taken: Array, mine: Tree | None
        ) -> Carry:
            new = step(
                t, carry, indices, size,
                examples=examples, begin=begin, learning_rate=rate, correction=mine,
            )  # fmt: skip
            # A client that has finished stays as it is.
            kept: Carry = jax.tree.map(lambda a, b: jnp.where(t < taken, a, b), new, carry)
            return kept

        every = jax.vmap(lane, in_axes=(None, 0, 0, 0, 0, None if corrections is None else 0))

        def train(place: Any) -> Carry:
            mine = None if corrections is None else take_lanes(corrections, place, lanes)
            indices, batches = (take_lanes(a, place, lanes, axis=1) for a in (order, sizes))
            steps = take_lanes(taken, place, lanes)

            def body(t: Array, carries: Carry) -> Carry:
                new: Carry = every(t, carries, indices[t], batches[t], steps, mine)
                return new

            first = step.start(begin)
            carries = jax.tree.map(lambda a: jnp.broadcast_to(a, (lanes, *a.shape)), first)
            end: Carry = lax.fori_loop(0, jnp.max(steps), body, carries)
            return end._replace(v={})

        if call == lanes:
            return _ended(train(0))
        like = jax.eval_shape(lambda: train(0))
        room = jax.tree.map(lambda a: jnp.zeros((call, *a.shape[1:]), a.dtype), like)

        def body(g: Array, out: Carry) -> Carry:
            new: Carry = put_lanes(out, train(g * lanes), g * lanes)
            return new

        return _ended(lax.fori_loop(0, groups_of(count, lanes), body, room))

    made: Program = jax.jit(program)
    return made


def step_by_step(step: Step) -> Program:
    """Return a function like that of :func:`one_after_another` for one client, looped by the host.

    Within a loop of XLA's, a processor's convolutions lose their fast kernels (a factor of 20).
    """
    held = step.traced.held

    @jax.jit
    def first(begin: Tree, corrections: Tree | None) -> tuple[Carry, Tree | None]:
        mine = _hold_lanes(corrections, held)
        # Copies, since the first step may write into what it is given.
        carry = jax.tree.map(lambda a: a.copy(), step.start(begin))
        return carry, None if mine is None else {k: c[0] for k, c in mine.items()}

    def one(
        carry: Carry, t: Array, order: Array, sizes: Array, examples: Examples, begin: Tree,
        rate: Array, correction: Tree | None,
    ) -> Carry:  # fmt: skip
        return step(
            t, carry, order[t, 0], sizes[t, 0],
            examples=examples, begin=begin, learning_rate=rate, correction=correction,
        )  # fmt: skip

    one_step = jax.jit(one, donate_argnums=0)

    @jax.jit
    def end(carry: Carry) -> tuple[Tree, Array, Array]:
        return _ended(jax.tree.map(lambda a: a[None], carry))

    def program(
        examples: Examples, begin: Tree, order: Any, sizes: Any, taken: Any, count: Any, rate: Any,
        corrections: Tree | None,
    ) -> Any:  # fmt: skip
        carry, correction = first(begin, corrections)
        order, sizes = jax.device_put((order, sizes))
        for t in range(int(taken[0])):
            carry = one_step(carry, np.int32(t), order, sizes, examples, begin, rate, correction)
        return end(carry)

    return program


def groups_of(count: Array, lanes: int) -> Array:
    """Return in how many groups of lanes so many clients are."""
    return (count + lanes - 1) // lanes


def take_lanes(arrays: Any, first: Any, count: int, *, axis: int = 0) -> Any:
    """Return so many lanes of each array."""
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, first, count, axis), arrays)


def put_lanes(room: Any, arrays: Any, first: Any) -> Any:
    """Return ``room`` with these arrays in its lanes from ``first`` on."""
    return jax.tree.map(lambda o, a: lax.dynamic_update_slice_in_dim(o, a, first, 0), room, arrays)


def _hold_lanes(stacks: Tree | None, held: Mapping[str, tuple[int, ...]]) -> Tree | None:
    """Return :func:`hold` of arrays that have the clients along the first axis."""
    turned: Tree | None = None if stacks is None else jax.vmap(lambda s: hold(s, held))(stacks)
    return turned


def _ended(end: Carry) -> tuple[Tree, Array, Array]:
    """Return the models and the losses of all lanes."""
    return end.w, end.first_loss, end.last_loss
