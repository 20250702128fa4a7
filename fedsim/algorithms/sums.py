"""Weighted sums of models, in an order that nothing but the cohort decides.

With w_i the clients' models and n_i their examples, the clients of a block are added one after
another, S_b = sum_i n_i w_i, then the blocks, S = sum_b S_b; everything starts from zero and is in
float64. A product n_i w_i is exact there (weights below 2^29, parameters of float32), so that it
does not matter who multiplies. docs/decisions/0011-cohorts.md says why the order does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """A sum of models; ``arrays`` is empty where there was nothing to add.

    Attributes:
        arrays: by name in the model's order, float64.
        weight: the sum of the weights, at least 0.
        clients: how many models are in it.
        whole: how many of them were not scaled down, where updates are clipped.
        of_updates: it is of the updates themselves, each counted once, and not of models.
    """

    arrays: Mapping[str, np.ndarray]
    weight: int
    clients: int
    whole: int = 0
    of_updates: bool = False

    def mean(self) -> dict[str, np.ndarray]:
        """Return the weighted mean, float64, of its own.

        Raises:
            ZeroDivisionError: there is nothing in the sum.
        """
        if not self.weight:
            raise ZeroDivisionError("the mean of no models")
        return {name: total / self.weight for name, total in self.arrays.items()}


def block_sum(models: Iterable[tuple[Arrays, int]], *, unit: int = 0) -> WeightedSum:
    """Add the models of a block.

    Args:
        models: each with its weight, a whole number of at least 1, in the order of the clients.
        unit: the weight of a model whose update was not scaled down, where updates are clipped.
    """
    total: dict[str, np.ndarray] = {}
    weight = clients = whole = 0
    for arrays, n in models:
        if not total:
            total = {name: np.zeros(array.shape) for name, array in arrays.items()}
        for name, array in arrays.items():
            total[name] += np.multiply(array, float(n), dtype=np.float64)
        weight, clients, whole = weight + n, clients + 1, whole + (n == unit)
    return WeightedSum(arrays=total, weight=weight, clients=clients, whole=whole)


def sum_of(sums: Iterable[WeightedSum]) -> WeightedSum:
    """Add blocks, or the parts of a block, in their order."""
    total = RunningSum()
    for each in sums:
        total.add(each)
    return total.result()


class RunningSum:
    """A sum to which one block after another is added, and that holds none of them."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._weight = self._clients = self._whole = 0

    def add(self, block: WeightedSum) -> None:
        """Add a block; its arrays are read only now."""
        if not self._arrays:
            self._arrays = {name: array + 0.0 for name, array in block.arrays.items()}
        else:
            for name, array in block.arrays.items():
                self._arrays[name] += array
        self._weight += block.weight
        self._clients += block.clients
        self._whole += block.whole

    def result(self) -> WeightedSum:
        """Return the sum so far."""
        return WeightedSum(
            arrays=self._arrays,
            weight=self._weight,
            clients=self._clients,
            whole=self._whole,
        )
