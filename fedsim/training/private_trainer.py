"""Trains the clients of a cohort by DP-SGD, one after another; torch alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import Module

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.training.cohort import Arrays, Recipe
from fedsim.training.local import LocalResult
from fedsim.training.orders import steps_of
from fedsim.training.private import Source, refuse_batch_norm, train_privately
from fedsim.training.private_fast import sum_for
from fedsim.training.vectorised import Tensors, TorchTrainer

# A control variate is made of gradients without noise.
CORRECTED = (
    "server.strategy = 'scaffold': its corrections are not covered by privacy.level = 'example'; "
    "use fedavg"
)
# What a client draws from, given the generator that would order its batches in plain training.
SourceOf = Callable[[np.random.Generator], Source]


class PrivateTrainer(TorchTrainer):
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
        super().__init__(model, dataset, recipe, device=device, precision=precision)
        self._summed = sum_for(self._trained, dataset.input_shape)
        self._clipping_norm, self._noise_multiplier = clipping_norm, noise_multiplier
        self._source_of = source_of

    def prepare(
        self,
        arrays: Arrays,
        clients: Sequence[npt.NDArray[np.int64]],
        *,
        corrected: bool = False,
    ) -> None:
        """Take a step that changes nothing, so that what a process loads once is loaded.

        Raises:
            ConfigError: there will be corrections.
        """
        if corrected:
            raise ConfigError([CORRECTED])
        super().prepare(arrays, clients)

    def _warm_up(self, x: Tensor, y: Tensor) -> None:
        """Add up a batch that is thrown away."""
        self._summed(self._trained, x, y, self._clipping_norm)

    def _train_one(
        self,
        held: npt.NDArray[np.int64],
        learning_rate: float,
        rng: np.random.Generator,
        correction: Tensors | None,
    ) -> LocalResult:
        """Train the model in place on a client's examples.

        Raises:
            ConfigError: there are corrections.
        """
        if correction is not None:
            raise ConfigError([CORRECTED])
        recipe = self._recipe
        steps = steps_of(
            len(held), epochs=recipe.epochs, steps=recipe.steps, batch_size=recipe.batch_size
        )
        return train_privately(
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
