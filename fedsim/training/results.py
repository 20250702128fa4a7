"""Puts together what a call's clients come to, in whatever pieces they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.training.cohort import Arrays, CohortResult
from fedsim.training.digest import Digest, Weigh


class Collected:
    """The results of a call, as they come."""

    def __init__(self, start: Arrays, clients: Sequence[npt.NDArray[np.int64]]) -> None:
        """Expect results for these clients, which start from this model."""
        self._start = start
        self._examples = np.array([len(held) for held in clients], np.int64)
        count = len(clients)
        self._steps, self._losses = np.zeros(count, np.int64), np.zeros((2, count))
        self._stacks: dict[str, np.ndarray] = {}

    def put(
        self,
        places: npt.NDArray[np.int64],
        models: Mapping[str, Any],
        *,
        steps: npt.ArrayLike,
        losses: Sequence[npt.ArrayLike],
    ) -> None:
        """Take the results of some clients; see :meth:`put_models` and :meth:`put_figures`."""
        self.put_figures(places, steps=steps, losses=losses)
        self.put_models(places, models)

    def put_figures(
        self,
        places: npt.NDArray[np.int64],
        *,
        steps: npt.ArrayLike,
        losses: Sequence[npt.ArrayLike],
    ) -> None:
        """Take the figures of some clients.

        Args:
            places: (k,), theirs in the call, ascending.
            steps, losses: (at least k,); of the losses there are two, of the first and last step.
        """
        k = len(places)
        self._steps[places] = np.asarray(steps)[:k]
        for row, values in zip(self._losses, losses, strict=True):
            row[places] = np.asarray(values)[:k]

    def put_models(self, places: npt.NDArray[np.int64], models: Mapping[str, Any]) -> None:
        """Take the models of some clients.

        Args:
            places: (k,), theirs in the call, ascending.
            models: by name, (at least k, \\*shape); what is missing is as it was at the start.
        """
        k, count = len(places), len(self._examples)
        if k == count and count > 1:  # everything at once: no copy
            self._stacks = {name: np.asarray(stack)[:k] for name, stack in models.items()}
            return
        for name, stack in models.items():
            if name not in self._stacks:
                before = self._start[name]
                self._stacks[name] = np.empty((count, *before.shape), before.dtype)
            self._stacks[name][places] = np.asarray(stack)[:k]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the models, (clients, \\*shape) each."""
        count = len(self._examples)
        return {
            name: self._stacks[name]
            if name in self._stacks
            else np.repeat(array[None], count, axis=0)
            for name, array in self._start.items()
        }

    def result(
        self,
        arrays: Arrays | None = None,
        digest_there: Callable[[Weigh], Digest] | None = None,
    ) -> CohortResult:
        """Return everything, in the order of the clients.

        Args:
            arrays: the models, if they were not taken here.
            digest_there: see :class:`CohortResult`.
        """
        return CohortResult(
            arrays=self.arrays() if arrays is None else arrays,
            examples=self._examples,
            steps=self._steps,
            loss_first_step=self._losses[0],
            loss_last_step=self._losses[1],
            digest_there=digest_there,
        )


class Deferred(Mapping[str, np.ndarray]):
    """Arrays that are fetched when one is first looked at."""

    def __init__(self, names: Sequence[str], fetch: Callable[[], Arrays]) -> None:
        self._names, self._fetch = tuple(names), fetch

    @cached_property
    def _arrays(self) -> Arrays:
        return self._fetch()

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stacked(clients: Sequence[Arrays], lanes: int) -> dict[str, np.ndarray]:
    """Return clients' arrays with the clients along the first axis, filled up with zeros."""
    stacks = {n: np.zeros((lanes, *array.shape), array.dtype) for n, array in clients[0].items()}
    for lane, arrays in enumerate(clients):
        for name, array in arrays.items():
            stacks[name][lane] = array
    return stacks
