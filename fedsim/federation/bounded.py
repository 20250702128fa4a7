"""A mean that no client can move far: updates are cut to a norm, weigh the same, and are noised.

With w the model, D_i the update of client i, C the clipping norm, m the expected cohort (those that
answered, where nothing is noised here), z the noise multiplier (McMahan et al. 2018, algorithm 1)::

    s_i  = min(1, C / |D_i|)                            in multiples of 2^-24, rounded down
    mean = (sum_i s_i D_i + N(0, (z C)^2 I)) / m

The sum of models S = sum_i s_i (w + D_i) is formed where clients are trained, as every other sum
of fedsim is, so that sum_i s_i D_i = S - (sum_i s_i) w. Any strategy that looks at the mean alone
is then given w + mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fedsim.algorithms.sums import WeightedSum
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.federation.replies import Update
from fedsim.federation.strategy import Aggregator, make_aggregator
from fedsim.flower import Instruction
from fedsim.privacy.clipping import (
    UNIT,
    AdaptiveClipping,
    add_noise,
    default_count_noise,
    delta_noise_multiplier,
)
from fedsim.privacy.noise import NoiseSource
from fedsim.privacy.shares import client_noise_std, noise_share
from fedsim.settings import PrivacyTable

Arrays = Mapping[str, np.ndarray]
Source = Callable[[int, str], NoiseSource]  # of a round and a purpose
CLIPPING = "privacy/clipping_norm"


class BoundedMean:
    """An aggregator around a linear one; see the module's docstring."""

    clients_keep_state = False

    def __init__(
        self,
        inner: Aggregator,
        arrays: Arrays,
        *,
        clipping_norm: float | AdaptiveClipping = math.inf,
        expected_cohort: float = 0.0,
        noise: Callable[[float], float] | None = None,
        client_noise_std: float = 0.0,
        source: Source | None = None,
    ) -> None:
        """Bound what an aggregator is given.

        Args:
            inner: linear.
            arrays: the initial model.
            clipping_norm: C, or what moves it from round to round; infinite: updates only weigh
                the same.
            expected_cohort: m; 0: as many as answered.
            noise: from C to the deviation of the noise that the sum shall have; None: no noise.
            client_noise_std: of the noise that is in each coordinate of an update already; what the
                sum then lacks, as fewer answered, is added here.
            source: where noise comes from.

        Raises:
            ConfigError: an array of whole numbers, which cannot be clipped or noised.
        """
        whole = [name for name, array in arrays.items() if array.dtype.kind != "f"]
        if whole:
            raise ConfigError(
                [
                    f"model.name: its array {whole[0]} holds whole numbers, such as a count of "
                    "batches, which cannot be clipped or noised; use a model without it"
                ]
            )
        self._inner, self._clipping, self._expected = inner, clipping_norm, expected_cohort
        self._noise, self._client_std, self._source = noise, client_noise_std, source
        self._figures: dict[str, float] = {}

    @property
    def aggregate_sum(self) -> Callable[[int, Arrays, WeightedSum], dict[str, Any]]:
        """See :class:`Aggregator`."""
        return self._aggregate_sum

    @property
    def survives_nobody(self) -> bool:
        """Whether a round in which nobody was drawn has a next model: noise alone."""
        return self._noise is not None

    @property
    def clipping_norm(self) -> float:
        """C of the next round."""
        moved = self._clipping
        return moved.clipping_norm if isinstance(moved, AdaptiveClipping) else moved

    def instruct(
        self, round: int, arrays: Arrays, learning_rate: float, nodes: Sequence[int]
    ) -> Instruction:
        """Ask what the inner aggregator does, and for updates of at most this norm."""
        asked = self._inner.instruct(round, arrays, learning_rate, nodes)
        return replace(asked, clipping_norm=self.clipping_norm)

    def aggregate(self, round: int, arrays: Arrays, updates: Sequence[Update]) -> dict[str, Any]:
        """Refuse: a sum is all that this looks at."""
        raise TypeError("a bounded mean is made of a sum of updates")

    def _aggregate_sum(self, round: int, arrays: Arrays, total: WeightedSum) -> dict[str, Any]:
        count = self._expected or total.clients
        mean = mean_update(arrays, total, count)
        here, there = self._noise_stds(total.clients)
        self._figures = self._figures_of(mean, total, math.hypot(here, there) / count)
        if here and self._source:
            mean = add_noise(mean, here / count, self._source(round, "noise"))
        if isinstance(self._clipping, AdaptiveClipping) and self._source:
            self._clipping = self._clipping.updated(
                count_below=total.whole,
                clients=total.clients,
                expected_clients=count,
                noise=float(self._source(round, "clipping").normal(1)[0]),
            )
        moved = {name: array + mean[name] for name, array in arrays.items()}
        given = WeightedSum(arrays=moved, weight=1, clients=total.clients)
        assert self._inner.aggregate_sum is not None  # linear, as fedsim.promises makes sure
        return self._inner.aggregate_sum(round, arrays, given)

    def _noise_stds(self, clients: int) -> tuple[float, float]:
        """Return the deviations of the sum's noise: what is added here, and what clients added."""
        there = self._client_std * math.sqrt(clients)
        wanted = self._noise(self.clipping_norm) if self._noise else 0.0
        return math.sqrt(max(0.0, wanted**2 - there**2)), there

    def _figures_of(self, mean: Arrays, total: WeightedSum, std: float) -> dict[str, float]:
        """Return the round's figures; what they say of updates is said before the noise."""
        found: dict[str, float] = {}
        if math.isfinite(self.clipping_norm):
            found["clipping_norm"] = self.clipping_norm
            if total.clients:
                found["clipped_fraction"] = 1 - total.whole / total.clients
        if std:
            found["noise_std"] = std
        if std and not self._client_std:  # otherwise there is noise in the mean already
            size = sum(array.size for array in mean.values())
            norm = math.sqrt(sum(float(np.square(array).sum()) for array in mean.values()))
            found["signal_to_noise"] = norm / (std * math.sqrt(size))
        return found

    def figures(self) -> Mapping[str, float]:
        """See :class:`Aggregator`."""
        return self._figures

    def state(self) -> dict[str, np.ndarray]:
        """Return the inner state, and the norm where it moves."""
        moves = isinstance(self._clipping, AdaptiveClipping)
        return self._inner.state() | ({CLIPPING: np.array(self.clipping_norm)} if moves else {})

    def restore(self, state: Arrays) -> None:
        """Put both back."""
        self._inner.restore({name: value for name, value in state.items() if name != CLIPPING})
        if isinstance(self._clipping, AdaptiveClipping):
            self._clipping = replace(self._clipping, clipping_norm=float(state[CLIPPING]))


def make_bounded(
    experiment: Experiment,
    arrays: Arrays,
    *,
    clients: int,
    noise_multiplier: float | None,
    source: Source,
) -> Aggregator:
    """Return the aggregator that the experiment names, bounded and noised as it says.

    Args:
        experiment: complete and checked.
        arrays: the initial model.
        clients: how many the federation has.
        noise_multiplier: z, where privacy is promised.
        source: where noise comes from.
    """
    inner = make_aggregator(experiment, arrays, clients=clients)
    table, server = experiment.privacy, experiment.server
    z, cohort = noise_multiplier or 0.0, server.clients_per_round
    bounded = partial(BoundedMean, inner, arrays)
    if table.level == "user":
        return bounded(expected_cohort=cohort, source=source, **noise_of(table, z, cohort))
    if table.level == "local":
        return bounded(client_noise_std=client_noise_std(table, z, cohort))
    if server.norm_bound:
        return bounded(clipping_norm=server.norm_bound)
    if server.weighting == "equal" or table.secure_aggregation:
        return bounded()
    return inner


def noise_of(table: PrivacyTable, z: float, cohort: int) -> dict[str, Any]:
    """Return how level ``user`` clips and noises, as arguments of :class:`BoundedMean`."""
    norm, share = table.clipping_norm, noise_share(table, cohort)
    if table.noise_by == "clients" or table.secure_aggregation:  # clients clip their own
        by_clients = table.noise_by == "clients"
        std = client_noise_std(table, z, cohort) if by_clients else 0.0
        return {"noise": lambda _: z * norm * share, "client_noise_std": std}
    if table.clipping == "fixed":
        return {"noise": lambda c: z * c * share, "clipping_norm": norm}
    adaptive = AdaptiveClipping(
        clipping_norm=norm,
        target_quantile=table.target_quantile,
        learning_rate=table.clipping_learning_rate,
        count_noise=default_count_noise(cohort),
    )
    # As it would be in the larger cohort, where that is imitated.
    rest = share * delta_noise_multiplier(z, adaptive.count_noise / share)
    return {"noise": lambda c: rest * c, "clipping_norm": adaptive}


def mean_update(arrays: Arrays, total: WeightedSum, count: float) -> dict[str, np.ndarray]:
    """Return the sum of the scaled updates over ``count``, float64; zeros of nobody.

    Args:
        arrays: the model w that they are relative to.
        total: of models, each times a whole number of 1 / UNIT; or of updates.
        count: how many to divide by.
    """
    if not total.clients:
        return {name: np.zeros(array.shape) for name, array in arrays.items()}
    if total.of_updates:
        return {name: array / count for name, array in total.arrays.items()}
    factor = 1 / (UNIT * count)
    return {
        name: (total.arrays[name] - total.weight * array.astype(np.float64)) * factor
        for name, array in arrays.items()
    }
