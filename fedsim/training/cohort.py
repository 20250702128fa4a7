"""Local training of many clients in one call: what every way of doing it takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fedsim.training.digest import Digest, Weigh

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What local training is told and no round changes; see :func:`train_locally`."""

    epochs: int
    steps: int
    batch_size: int
    momentum: float
    weight_decay: float
    clip_norm: float
    proximal_mu: float


@dataclass(frozen=True, kw_only=True)
class CohortResult:
    """What training did to each client, in the order in which they were given.

    Attributes:
        arrays: by name in the model's order, (clients, \\*shape), each client's model afterwards;
            they may be fetched from where they were trained when they are first looked at.
        examples: (clients,), int64, that the client holds.
        steps: (clients,), int64, optimiser steps taken.
        loss_first_step, loss_last_step: (clients,), float64, as in ``LocalResult``.
        digest_there: digests the models where they were trained, and weighs them; see
            :func:`fedsim.training.digest.digest`. None where that is no faster.
    """

    arrays: Arrays
    examples: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    loss_first_step: npt.NDArray[np.float64]
    loss_last_step: npt.NDArray[np.float64]
    digest_there: Callable[[Weigh], Digest] | None = None


class CohortTrainer(Protocol):
    """One model, one recipe, one dataset in memory; trains clients by the indices they hold.

    Made by :func:`fedsim.training.making.make_trainer`.
    """

    def prepare(
        self,
        arrays: Arrays,
        clients: Sequence[npt.NDArray[np.int64]],
        *,
        corrected: bool = False,
    ) -> None:
        """Load and compile what training these clients needs; trains nobody.

        Args:
            arrays: a model, as for ``train``; its values do not matter.
            clients: at least one, as for ``train``.
            corrected: ``train`` will be given corrections.
        """

    def train(
        self,
        arrays: Arrays,
        clients: Sequence[npt.NDArray[np.int64]],
        *,
        learning_rate: float,
        rngs: Iterable[np.random.Generator],
        corrections: Sequence[Arrays] | None = None,
    ) -> CohortResult:
        """Train each client from the same model.

        A client's result does not depend on the others in the call, nor on its place among them.

        Args:
            arrays: the model that all start from, by name: parameters and buffers.
            clients: at least one; for each, the indices of its examples in the dataset, at least
                one.
            learning_rate: of this round.
            rngs: for each client, the generator that orders its examples. It is used up before the
                next one is taken, so that one object may serve them all.
            corrections: for each client, what is added to every gradient, by parameter (SCAFFOLD).

        Raises:
            ValueError: a client holds no examples.
        """
