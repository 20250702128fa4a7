"""Which examples a client takes in which step, as arrays of the shapes that programs want.

A client's batches are those of :func:`fedsim.training.local.batches`, drawn from its generator in
the same way. Steps and batch sizes differ between clients; shapes of arrays do in a few sizes only,
so that few programs serve all. How wide a client's batches are depends on the client alone; how
many steps there is room for, which changes no result, on the longest client of the call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedsim.training.cohort import Recipe

Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]

# Batches up to this size have that width at every client; wider ones fit the client's examples.
NARROW = 64


@dataclass(frozen=True, order=True)
class Shape:
    """Of a client's array of indices: (steps, width), with room to spare."""

    steps: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Clients of one shape that a program takes at once.

    Attributes:
        places: (count,), of the clients in the call, ascending.
        order: (steps, lanes, width), int32: dataset indices; lanes beyond ``count`` hold zeros.
        sizes: (steps, lanes), int32: how many of a step's indices are its batch.
        taken: (lanes,), int32: steps that each client takes; lanes beyond ``count`` take none.
    """

    shape: Shape
    places: Ints
    order: Indices
    sizes: Indices
    taken: Indices


def steps_of(examples: npt.ArrayLike, *, epochs: int, steps: int, batch_size: int) -> Ints:
    """Return how many steps clients with so many examples take; arguments as ``train_locally``."""
    held = np.asarray(examples, np.int64)
    if steps:
        return np.full(held.shape, steps, np.int64)
    per_epoch = -(-held // batch_size) if batch_size else np.ones_like(held)
    return epochs * per_epoch


def shapes_of(examples: npt.ArrayLike, recipe: Recipe) -> list[Shape]:
    """Return the shape of each client's indices, where clients with so many examples are a call.

    Steps are those of the longest client of the same width, rounded up to a power of four, from 16
    on; what is not taken costs memory and next to no time.

    Args:
        examples: (clients,).

    Raises:
        ValueError: a client holds no examples.
    """
    held = np.asarray(examples, np.int64)
    if (held < 1).any():
        raise ValueError("this client holds no examples")
    taken = steps_of(
        held, epochs=recipe.epochs, steps=recipe.steps, batch_size=recipe.batch_size
    ).tolist()
    widths = [_width(n, recipe.batch_size) for n in held.tolist()]
    most: dict[int, int] = {}
    for width, steps in zip(widths, taken, strict=True):
        most[width] = max(steps, most.get(width, 0))
    shapes = {width: Shape(_room(steps), width) for width, steps in most.items()}
    return [shapes[width] for width in widths]


def _room(steps: int) -> int:
    room = 16
    while room < steps:
        room *= 4
    return room


def _width(examples: int, batch_size: int) -> int:
    if 0 < batch_size <= NARROW:
        return batch_size
    return _roomy(min(batch_size or examples, examples), batch_size)


def _roomy(width: int, most: int) -> int:
    """Return the next of 8, 16, 24, 32, 40, 48, 56, 64, 80, ..., four to each power of two.

    At most ``most``, unless that is 0.
    """
    unit = max(8, (1 << (width.bit_length() - 1)) // 4)
    roomy = -(-width // unit) * unit
    return min(roomy, most) if most else roomy


def chunks(
    clients: Sequence[npt.NDArray[np.int64]],
    rngs: Iterable[np.random.Generator],
    recipe: Recipe,
    *,
    lanes: int,
) -> Iterator[Chunk]:
    """Yield a call's clients in chunks of one shape, each filled in the order of the clients.

    Args:
        clients: their dataset indices.
        rngs: one for each client; it is used up before the next one is taken.
        lanes: clients a chunk.

    Raises:
        ValueError: a client holds no examples.
    """
    shapes = shapes_of([len(held) for held in clients], recipe)
    waiting: dict[Shape, list[Draw]] = {}
    for place, (held, shape, rng) in enumerate(zip(clients, shapes, rngs, strict=True)):
        drawn = waiting.setdefault(shape, [])
        drawn.append(Draw(place, held, _passes(len(held), rng, recipe)))
        if len(drawn) == lanes:
            yield _chunk_of(waiting.pop(shape), shape, lanes, recipe)
    for shape in sorted(waiting):
        yield _chunk_of(waiting[shape], shape, lanes, recipe)


class Draw(NamedTuple):
    """A client: its place in the call, its dataset indices, and an order of them for each pass."""

    place: int
    held: Ints
    passes: list[Ints]


def _passes(examples: int, rng: np.random.Generator, recipe: Recipe) -> list[Ints]:
    """Draw the orders in which a client goes through its examples, as ``batches`` does."""
    count = recipe.epochs
    if recipe.steps:
        count = -(-recipe.steps // -(-examples // (recipe.batch_size or examples)))
    return [rng.permutation(examples) for _ in range(count)]


def _chunk_of(drawn: Sequence[Draw], shape: Shape, lanes: int, recipe: Recipe) -> Chunk:
    places = np.array([client.place for client in drawn], np.int64)
    chunk = dataclasses.replace(_blank(shape, lanes), places=places)
    alike: dict[int, list[int]] = {}
    for lane, client in enumerate(drawn):
        alike.setdefault(len(client.held), []).append(lane)
    for mine in alike.values():
        _write_orders(chunk, mine, [drawn[lane] for lane in mine], recipe)
    return chunk


def idle_chunk(shape: Shape, lanes: int) -> Chunk:
    """Return a chunk with one client, which takes one step with the first example."""
    chunk = dataclasses.replace(_blank(shape, lanes), places=np.zeros(1, np.int64))
    chunk.taken[0] = 1
    return chunk


def _blank(shape: Shape, lanes: int) -> Chunk:
    return Chunk(
        shape=shape,
        places=np.empty(0, np.int64),
        order=np.zeros((shape.steps, lanes, shape.width), np.int32),
        sizes=np.ones((shape.steps, lanes), np.int32),
        taken=np.zeros(lanes, np.int32),
    )


def _write_orders(
    chunk: Chunk, lanes: Sequence[int], drawn: Sequence[Draw], recipe: Recipe
) -> None:
    """Write the batches, their sizes and their number for clients with equally many examples.

    A batch that is smaller than the width repeats its first example, a real one: what is computed
    for it in vain is as finite as the client's data are.
    """
    count, width = len(drawn), chunk.shape.width
    held = np.stack([client.held for client in drawn])
    n = held.shape[1]
    size = min(recipe.batch_size or n, n)
    per_pass = -(-n // size)
    steps = recipe.steps or recipe.epochs * per_pass
    last = n - (per_pass - 1) * size
    chunk.taken[lanes] = steps
    chunk.sizes[:steps, lanes] = size
    chunk.sizes[per_pass - 1 : steps : per_pass, lanes] = last
    for i, start in enumerate(range(0, steps, per_pass)):
        order = np.take_along_axis(held, np.stack([client.passes[i] for client in drawn]), axis=1)
        batches = min(per_pass, steps - start)
        whole = min(batches, n // size)
        rows = np.empty((batches, count, width), np.int32)
        full = order[:, : whole * size].reshape(count, whole, size)
        rows[:whole, :, :size] = full.swapaxes(0, 1)
        rows[:whole, :, size:] = rows[:whole, :, :1]
        if whole < batches:
            rows[whole, :, :last] = order[:, whole * size :]
            rows[whole, :, last:] = order[:, whole * size, None]
        chunk.order[start : start + batches, lanes] = rows
