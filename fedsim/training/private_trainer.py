"""Trains the clients of a cohort by DP-SGD, one after another; torch alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import Module

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.training.cohort import Arrays, CohortResult, Recipe
from fedsim.training.orders import steps_of
from fedsim.training.parameters import load_arrays, read_arrays
from fedsim.training.precision import PRECISIONS, Lowered, floating_type
from fedsim.training.private import Source, refuse_batch_norm, train_privately
from fedsim.training.private_fast import sum_for
from fedsim.training.results import Collected

# What a client draws from, given the generator that would order its batches in plain training.
SourceOf = Callable[[np.random.Generator], Source]


class PrivateTrainer:
    """Trains clients one after another by ``train_privately``: any module, any device.

    The interface is :class:`fedsim.training.cohort.CohortTrainer`. A client of n examples takes
    ``recipe.steps`` steps, or ``recipe.epochs * ceil(n / batch_size)``, each on a Poisson sample of
    ``batch_size`` expected examples.
    """

    def __init__(
        self,
        model: Module,
        dataset: Dataset,
        recipe: Recipe,
        *,
        clipping_norm: float,
        noise_multiplier: float,
        source_of: SourceOf,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        """Keep a copy of the model on the device.

        Args:
            model: as for ``train_privately``; is left as it is.
            clipping_norm: C, of each example's gradient.
            noise_multiplier: z.
            source_of: called once for each client, with its generator of ``train``: a secret
                source ignores that, and a reproducible one draws from it.
            device: ``cpu`` or ``cuda``.
            precision: a key of ``PRECISIONS``, for forward and backward. Gradients are clipped and
                summed in the parameters' type; in another precision example by example.

        Raises:
            ConfigError: normalisation by the batch, or ``recipe.clip_norm`` beside this clipping.
        """
        refuse_batch_norm(model)
        if recipe.clip_norm:
            raise ConfigError(
                [
                    f"train.clip_norm = {recipe.clip_norm}: privacy.level = 'example' clips the "
                    "gradient of every example to privacy.clipping_norm; leave train.clip_norm at 0"
                ]
            )
        self._model = copy.deepcopy(model).to(device)
        lower = PRECISIONS[precision]
        self._trained = self._model if lower is None else Lowered(self._model, lower)
        self._summed = sum_for(self._trained, dataset.input_shape)
        self._dataset, self._recipe, self._device = dataset, recipe, device
        self._clipping_norm, self._noise_multiplier = clipping_norm, noise_multiplier
        self._source_of, self._dtype = source_of, floating_type(model)

    def prepare(
        self,
        arrays: Arrays,
        clients: Sequence[npt.NDArray[np.int64]],
        *,
        corrected: bool = False,
    ) -> None:
        """Add up a batch that is thrown away, so that what a process loads once is loaded."""
        _refuse_corrections(corrected)
        load_arrays(self._model, arrays)
        size = self._recipe.batch_size or len(clients[0])
        self._summed(self._trained, *self._examples(clients[0][:size]), self._clipping_norm)

    def _examples(self, held: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        x, y = map(torch.from_numpy, self._dataset.train(held))
        return x.to(self._device, self._dtype), y.to(self._device)

    def train(
        self,
        arrays: Arrays,
        clients: Sequence[npt.NDArray[np.int64]],
        *,
        learning_rate: float,
        rngs: Iterable[np.random.Generator],
        corrections: Sequence[Arrays] | None = None,
    ) -> CohortResult:
        """Train each client from the same model; see ``CohortTrainer``.

        Raises:
            ConfigError: there are corrections.
            ValueError: a client holds no examples.
        """
        _refuse_corrections(corrections is not None)
        recipe, out = self._recipe, Collected(arrays, clients)
        for place, (held, rng) in enumerate(zip(clients, rngs, strict=True)):
            load_arrays(self._model, arrays)
            steps = steps_of(
                len(held), epochs=recipe.epochs, steps=recipe.steps, batch_size=recipe.batch_size
            )
            done = train_privately(
                self._trained,
                *self._examples(held),
                steps=int(steps),
                batch_size=recipe.batch_size,
                learning_rate=learning_rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                proximal_mu=recipe.proximal_mu,
                clipping_norm=self._clipping_norm,
                noise_multiplier=self._noise_multiplier,
                source=self._source_of(rng),
                summed=self._summed,
            )
            out.put(
                np.array([place]),
                {name: array[None] for name, array in read_arrays(self._model).items()},
                steps=[done.steps],
                losses=([done.loss_first_step], [done.loss_last_step]),
            )
        return out.result()


def _refuse_corrections(corrected: bool) -> None:
    """Refuse SCAFFOLD's corrections: a control variate is made of gradients without noise."""
    if corrected:
        raise ConfigError(
            [
                "server.strategy = 'scaffold': its corrections are not covered by privacy.level = "
                "'example'; use fedavg"
            ]
        )
