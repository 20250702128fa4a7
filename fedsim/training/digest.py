"""What a cohort's training came to: one weighted sum of its models, and the size of each update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.training.cohort import Arrays, CohortResult

Floats = npt.NDArray[np.float64]

# Elements that are worked on at once, so that they stay in the processor's nearer caches.
BLOCK = 2**15


@dataclass(frozen=True, kw_only=True)
class Digest:
    """Of the updates (after - before) of a cohort's clients, over the floating tensors.

    Attributes:
        sum: by name in the model's order, float64: the clients' models times their weights, added
            in the order of the clients; those that are not ``finite`` left out. Integer buffers are
            summed too.
        squares: (clients, tensors), float64, squared Euclidean norms by tensor.
        names: of the tensors, as the columns of ``squares``.
        zeros: (clients,), int64, coordinates that are exactly zero.
        elements: coordinates of an update.
        finite: (clients,), whether all of a client's model is.
    """

    sum: dict[str, Floats]
    squares: Floats
    names: tuple[str, ...]
    zeros: npt.NDArray[np.int64]
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


def digest(
    start: Arrays, result: CohortResult, *, weights: npt.NDArray[np.int64] | None = None
) -> Digest:
    """Return the sum and the sizes of the updates of a cohort.

    Args:
        start: the model that all started from.
        result: what became of it.
        weights: (clients,), whole numbers below 2^29, so that a product with a float32 is exact;
            by default the clients' examples.
    """
    weights = result.examples if weights is None else weights
    if result.digest_there is not None:
        return result.digest_there(weights)
    return digest_arrays(start, result.arrays, weights)


def digest_arrays(start: Arrays, arrays: Arrays, weights: npt.NDArray[np.int64]) -> Digest:
    """Return the digest of models, (clients, \\*shape) each; other arguments as for `digest`."""
    count = len(weights)
    floating = [name for name, array in start.items() if array.dtype.kind == "f"]
    sums = {name: np.zeros(array.shape) for name, array in start.items()}
    squares, zeros = np.zeros((count, len(floating))), np.zeros(count, np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in parts({name: start[name].size for name in floating}):
            old = np.concatenate([p.of(start[floating[p.tensor]][None]) for p in part], axis=1)[0]
            new = [p.of(arrays[floating[p.tensor]]) for p in part]
            total = np.zeros(old.size)
            _digest_part(part, old, new, weights, total, squares, zeros)
            for p in part:
                sums[floating[p.tensor]].reshape(-1)[p.first : p.last] = total[p.place]
        finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(squares).all(axis=1))
    for i in np.flatnonzero(~finite):  # may be squares that are too large
        finite[i] = all(np.isfinite(stack[i]).all() for stack in arrays.values())
    again = start if not finite.all() else [name for name in start if name not in floating]
    for name in again:
        sums[name] = plain_sum(arrays[name][finite], weights[finite])
    return Digest(
        sum=sums,
        squares=squares,
        names=tuple(floating),
        zeros=zeros,
        elements=sum(start[name].size for name in floating),
        finite=finite,
    )


def digest_of(
    start: Arrays,
    weights: npt.NDArray[np.int64],
    *,
    sums: Arrays,
    squares: Floats,
    zeros: npt.NDArray[np.int64],
    finite: npt.NDArray[np.bool_],
) -> Digest:
    """Return the digest of models of which only some arrays were trained.

    Args:
        sums: of the arrays that were, as in :class:`Digest`; the others are as at the start.
        squares: (clients, trained arrays), in the order of ``sums``.
        zeros: (clients,), of the trained arrays.
        finite: (clients,).
    """
    floating = [name for name, array in start.items() if array.dtype.kind == "f"]
    untouched = [name for name in start if name not in sums]
    columns = np.zeros((len(weights), len(floating)))
    columns[:, [floating.index(name) for name in sums]] = squares
    unmoved = 0
    for name in (name for name in untouched if name in floating):
        with np.errstate(invalid="ignore"):
            moved = start[name] - start[name]  # NaN where a number is not finite
        columns[:, floating.index(name)] = np.square(moved).sum()
        unmoved += int(np.count_nonzero(moved == 0))
        finite = finite & bool(np.isfinite(start[name]).all())
    good = weights[finite]
    others = {
        name: plain_sum(np.broadcast_to(start[name], (len(good), *start[name].shape)), good)
        for name in untouched
    }
    return Digest(
        sum={name: sums[name] if name in sums else others[name] for name in start},
        squares=columns,
        names=tuple(floating),
        zeros=zeros + unmoved,
        elements=sum(start[name].size for name in floating),
        finite=finite,
    )


def plain_sum(stack: npt.NDArray[Any], weights: npt.NDArray[np.int64]) -> Floats:
    """Return sum_i weights_i stack_i, one after another, in float64."""
    total = np.zeros(stack.shape[1:])
    for weight, array in zip(weights, stack, strict=True):
        total += np.multiply(array, float(weight), dtype=np.float64)
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


def _digest_part(
    part: Sequence[Piece],
    old: npt.NDArray[Any],
    new: Sequence[npt.NDArray[Any]],
    weights: npt.NDArray[np.int64],
    total: Floats,
    squares: Floats,
    zeros: npt.NDArray[np.int64],
) -> None:
    """Add a part's sum, squared norms and zeros to ``total``, ``squares`` and ``zeros``.

    Args:
        old: (coordinates,), before training.
        new: for each piece, (clients, its coordinates), after it.
    """
    before, offsets = old.astype(np.float64), [piece.place.start for piece in part]
    tensors = [piece.tensor for piece in part]
    rows, factors = max(1, BLOCK // old.size), weights.astype(np.float64)
    work, change = np.empty((rows, old.size)), np.empty((rows, old.size))
    for at in range(0, len(weights), rows):
        here = slice(at, at + rows)
        after, moved = work[: len(weights[here])], change[: len(weights[here])]
        for piece, stack in zip(part, new, strict=True):
            after[:, piece.place] = stack[here]
        np.subtract(after, before, out=moved)
        zeros[here] += [np.count_nonzero(row == 0) for row in moved]
        np.square(moved, out=moved)
        if len(part) == 1:  # twice as fast
            squares[here, tensors[0]] += moved.sum(axis=1)
        else:
            squares[here, tensors] += np.add.reduceat(moved, offsets, axis=1)
        np.multiply(after, factors[here, None], out=after)
        for row in after:  # one after another: the order is part of the result
            total += row
