"""What a cohort's training came to: one weighted sum of its models, and the size of each update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.training.cohort import Arrays, CohortResult

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Elements that are worked on at once, so that they stay in the processor's nearer caches.
BLOCK = 2**15


# From the norms of updates, (clients,), to what the clients' models weigh: whole numbers below
# 2^29, so that a product with a float32 is exact.
Weigh = Callable[[Floats], Ints]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the updates (after - before) of a cohort's clients, over the floating tensors.

    Attributes:
        squares: (clients, tensors), float64, squared Euclidean norms by tensor.
        names: of the tensors, as the columns of ``squares``.
        zeros: (clients,), int64, coordinates that are exactly zero.
        elements: coordinates of an update.
        finite: (clients,), whether all of a client's model is.
    """

    squares: Floats
    names: tuple[str, ...]
    zeros: Ints
    elements: int
    finite: npt.NDArray[np.bool_]

    @property
    def update_norm(self) -> Floats:
        """Euclidean norms, (clients,); not finite where the model is not."""
        norms: Floats = np.sqrt(self.squares.sum(axis=1))
        return norms

    @property
    def zero_fraction(self) -> Floats:
        """The share of exact zeros, (clients,), in [0, 1]; NaN for updates without elements."""
        return self.zeros / self.elements if self.elements else np.full(len(self.zeros), np.nan)

    def tensor_norms(self, place: int) -> dict[str, float]:
        """Return one client's norms by tensor."""
        return dict(zip(self.names, np.sqrt(self.squares[place]).tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Digest(Sizes):
    """The sizes of a cohort's updates, and the sum of its models.

    Attributes:
        weights: (clients,), of the models in ``sum``.
        sum: by name in the model's order, float64: the clients' models times their weights, added
            in the order of the clients; those that are not ``finite`` left out. Integer buffers are
            summed too.
    """

    weights: Ints
    sum: dict[str, Floats]


def digest(start: Arrays, result: CohortResult, *, weigh: Weigh | None = None) -> Digest:
    """Return the sum of the models of a cohort, and the sizes of its updates.

    Args:
        start: the model that all started from.
        result: what became of it.
        weigh: by default a model weighs as much as its client has examples.
    """
    weigh = weigh or (lambda _: result.examples)
    if result.digest_there is not None:
        return result.digest_there(weigh)
    return digest_arrays(start, result.arrays, weigh)


def digest_arrays(start: Arrays, arrays: Arrays, weigh: Weigh) -> Digest:
    """Return the digest of models, (clients, \\*shape) each; other arguments as for `digest`."""
    sizes = sizes_of(start, arrays)
    weights = weigh(sizes.update_norm)
    with np.errstate(over="ignore", invalid="ignore"):  # a sum that overflows is found by its model
        total = {name: plain_sum(arrays[name], weights, sizes.finite) for name in start}
    return Digest(sum=total, weights=weights, **vars(sizes))


def sizes_of(start: Arrays, arrays: Arrays) -> Sizes:
    """Return the sizes of the updates of models, (clients, \\*shape) each."""
    count = len(next(iter(arrays.values())))
    floating = [name for name, array in start.items() if array.dtype.kind == "f"]
    squares, zeros = np.zeros((count, len(floating))), np.zeros(count, np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in parts({name: start[name].size for name in floating}):
            old = np.concatenate([p.of(start[floating[p.tensor]][None]) for p in part], axis=1)[0]
            new = [p.of(arrays[floating[p.tensor]]) for p in part]
            _size_part(part, old, new, squares, zeros)
        finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(squares).all(axis=1))
    for i in np.flatnonzero(~finite):  # may be squares that are too large
        finite[i] = all(np.isfinite(stack[i]).all() for stack in arrays.values())
    return Sizes(
        squares=squares,
        names=tuple(floating),
        zeros=zeros,
        elements=sum(start[name].size for name in floating),
        finite=finite,
    )


def sizes_of_trained(
    start: Arrays,
    names: Sequence[str],
    *,
    squares: Floats,
    zeros: Ints,
    finite: npt.NDArray[np.bool_],
) -> Sizes:
    """Return the sizes of updates of which only some arrays were trained.

    Args:
        start: the model; its other arrays are what they were.
        names: of those that were trained.
        squares: (clients, trained arrays), in the order of ``names``.
        zeros: (clients,), of the trained arrays.
        finite: (clients,), likewise.
    """
    floating = [name for name, array in start.items() if array.dtype.kind == "f"]
    columns = np.zeros((len(squares), len(floating)))
    columns[:, [floating.index(name) for name in names]] = squares
    unmoved = 0
    for name in (name for name in floating if name not in names):
        with np.errstate(invalid="ignore"):
            moved = start[name] - start[name]  # NaN where a number is not finite
        columns[:, floating.index(name)] = np.square(moved).sum()
        unmoved += int(np.count_nonzero(moved == 0))
        finite = finite & bool(np.isfinite(start[name]).all())
    return Sizes(
        squares=columns,
        names=tuple(floating),
        zeros=zeros + unmoved,
        elements=sum(start[name].size for name in floating),
        finite=finite,
    )


def plain_sum(stack: npt.NDArray[Any], weights: Ints, included: npt.NDArray[np.bool_]) -> Floats:
    """Return sum_i weights_i stack_i of those included, one after another, in float64."""
    total = np.zeros(stack.shape[1:])
    for i in np.flatnonzero(included):
        total += np.multiply(stack[i], float(weights[i]), dtype=np.float64)
    return total


@dataclass(frozen=True)
class Piece:
    """Coordinates ``first`` to ``last`` of a tensor, at ``place`` among those of a part."""

    tensor: int
    first: int
    last: int
    place: slice

    def of(self, stack: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return these coordinates of every client, (clients, coordinates)."""
        return stack.reshape(len(stack), -1)[:, self.first : self.last]


def parts(sizes: Mapping[str, int]) -> Iterator[list[Piece]]:
    """Yield parts of at most ``BLOCK`` coordinates: pieces of large tensors, small ones together.

    Args:
        sizes: coordinates of each tensor.
    """
    part: list[Piece] = []
    filled = 0
    for tensor, size in enumerate(sizes.values()):
        for first in range(0, size, BLOCK):
            last = min(first + BLOCK, size)
            if filled + last - first > BLOCK:
                yield part
                part, filled = [], 0
            part.append(Piece(tensor, first, last, slice(filled, filled + last - first)))
            filled += last - first
    if part:
        yield part


def _size_part(
    part: Sequence[Piece],
    old: npt.NDArray[Any],
    new: Sequence[npt.NDArray[Any]],
    squares: Floats,
    zeros: Ints,
) -> None:
    """Add a part's squared norms and zeros to ``squares`` and ``zeros``.

    Args:
        old: (coordinates,), before training.
        new: for each piece, (clients, its coordinates), after it.
    """
    before, offsets = old.astype(np.float64), [piece.place.start for piece in part]
    tensors = [piece.tensor for piece in part]
    rows = max(1, BLOCK // old.size)
    work = np.empty((rows, old.size))
    for at in range(0, len(zeros), rows):
        here = slice(at, at + rows)
        moved = work[: len(zeros[here])]
        for piece, stack in zip(part, new, strict=True):
            moved[:, piece.place] = stack[here]
        moved -= before
        zeros[here] += [np.count_nonzero(row == 0) for row in moved]
        np.square(moved, out=moved)
        if len(part) == 1:  # twice as fast
            squares[here, tensors[0]] += moved.sum(axis=1)
        else:
            squares[here, tensors] += np.add.reduceat(moved, offsets, axis=1)
