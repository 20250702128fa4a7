"""What a cohort's training came to: one weighted sum of its models, and the size of each update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsim.training.cohort import Arrays, CohortResult

Floats = npt.NDArray[np.float64]

# Elements that are worked on at once, so that they stay in the processor's nearest caches.
BLOCK = 2**13


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
            by default the clients' examples. A client of weight 0 adds nothing.
    """
    weights = result.examples if weights is None else weights
    names = tuple(name for name, array in start.items() if array.dtype.kind == "f")
    count = len(result.examples)
    squares, zeros = np.zeros((count, len(names))), np.zeros(count, np.int64)
    finite = np.ones(count, bool)
    with np.errstate(over="ignore", invalid="ignore"):
        for column, name in enumerate(names):
            before = start[name].ravel()
            after = result.arrays[name].reshape(count, -1)
            for at in range(0, before.size, BLOCK):
                part = slice(at, at + BLOCK)
                old = before[part].astype(np.float64)
                for i in range(count):
                    change = np.subtract(after[i, part], old, dtype=np.float64)
                    squares[i, column] += change @ change
                    zeros[i] += change.size - np.count_nonzero(change)
        finite &= np.isfinite(squares).all(axis=1)
    return Digest(
        sum=_sums(result.arrays, np.where(finite, weights, 0)),
        squares=squares,
        names=names,
        zeros=zeros,
        elements=sum(start[name].size for name in names),
        finite=finite,
    )


def _sums(stacks: Arrays, weights: npt.NDArray[np.int64]) -> dict[str, Floats]:
    """Return sum_i weights_i model_i by name; clients of weight 0 are left out."""
    total = {}
    counted = np.flatnonzero(weights)
    product = np.empty(BLOCK)
    for name, stack in stacks.items():
        flat = stack.reshape(len(stack), -1)
        out = np.zeros(flat.shape[1])
        for at in range(0, out.size, BLOCK):
            part = out[at : at + BLOCK]
            for i in counted:
                each = product[: part.size]
                np.multiply(flat[i, at : at + BLOCK], float(weights[i]), out=each, dtype=np.float64)
                part += each
        total[name] = out.reshape(stack.shape[1:])
    return total
