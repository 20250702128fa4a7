"""From an experiment to an audit of what it promises: fedsim's own mechanisms, by their own parts.

What is audited is what runs: the sampling, clipping, summing and noise of a round at the level
``user``, and of a step of DP-SGD at the level ``example``. Only people are made up: contributions
come from an audit in place of training.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from fedsim import parts
from fedsim.affordable import planned
from fedsim.algorithms.sums import WeightedSum
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.federation.bounded import BoundedMean, make_bounded
from fedsim.federation.sampling import draw_clients
from fedsim.privacy.audit import AuditReport, audit
from fedsim.privacy.audit_claims import Claims, Floats, Ints, Make, Mechanism
from fedsim.privacy.clipping import (
    UNIT,
    clip_weights,
    default_count_noise,
    delta_noise_multiplier,
)
from fedsim.privacy.noise import NoiseSource, source_of
from fedsim.randomness import stream
from fedsim.settings import PrivacyTable
from fedsim.spending import Spending
from fedsim.training import CohortResult, digest
from fedsim.training.private import Source as PrivateSource
from fedsim.training.private import noised_mean, poisson_batches
from fedsim.training.private_fast import sum_for

UPDATE = "update"  # the one array of a model that is a contribution
Source = Callable[[int, str], NoiseSource]  # of a round and a purpose


class UserLevel:
    """A round of the federation: who is drawn, and how the server bounds and noises their sum."""

    def __init__(self, bounded: BoundedMean, *, probability: float, cohort: int, source: Source):
        """Audit an aggregator.

        Args:
            bounded: its mean is over ``cohort`` clients.
            probability: of each client, in each round.
            source: of the draws of clients; the aggregator has its own.
        """
        self._bounded, self._probability, self._cohort = bounded, probability, cohort
        self._source, self._round = source, 0

    @property
    def clipping_norm(self) -> float:
        """See :class:`Mechanism`."""
        return self._bounded.clipping_norm

    def sample(self, people: int) -> Ints:
        """See :class:`Mechanism`."""
        self._round += 1
        source = self._source(self._round, "sampling")
        drawn = draw_clients(source, clients=people, probability=self._probability)
        return np.array(drawn, np.int64)

    def release(self, contributions: Floats, examples: Ints) -> Floats:
        """See :class:`Mechanism`; the model is zero, so that a client's is its update."""
        self._round += 1
        start = {UPDATE: np.zeros(contributions.shape[1])}
        total = WeightedSum(arrays={}, weight=0, clients=0)
        if len(contributions):
            result = trained(contributions, examples)
            found = digest(start, result, weigh=lambda n: clip_weights(n, self.clipping_norm))
            total = WeightedSum(
                arrays=found.sum,
                weight=int(found.weights.sum()),
                clients=len(found.weights),
                whole=int((found.weights == UNIT).sum()),
            )
        mean = self._bounded.aggregate_sum(self._round, start, total)[UPDATE]
        return np.asarray(mean * self._cohort)


def trained(contributions: Floats, examples: Ints) -> CohortResult:
    """Return what clients would have come to, whose updates are these."""
    nothing = np.zeros(len(examples))
    return CohortResult(
        arrays={UPDATE: contributions},
        examples=examples,
        steps=np.ones(len(examples), np.int64),
        loss_first_step=nothing,
        loss_last_step=nothing,
    )


class ExampleLevel:
    """A step of DP-SGD: which examples are drawn, and how their gradients are summed and noised.

    A dense layer without bias that maps x to two classes, at zero, has the gradient (-x/2, x/2)
    for an example of class 0. So x = sqrt(2) g has a gradient as long as g, in a direction that
    stands for g's.
    """

    def __init__(
        self,
        clipping_norm: float,
        *,
        noise_multiplier: float,
        examples: int,
        batch: int,
        source: PrivateSource,
    ):
        """Audit the training of a client.

        Args:
            clipping_norm: C, of each gradient.
            noise_multiplier: z.
            examples: that the client holds.
            batch: how many of them are expected in a step.
            source: of batches and noise.
        """
        self.clipping_norm = clipping_norm
        self._deviation = noise_multiplier * clipping_norm
        self._examples, self._batch, self._source = examples, batch, source
        self._model = torch.nn.Linear(1, 2, bias=False)

    def sample(self, people: int) -> Ints:
        """See :class:`Mechanism`; where people are more than a client holds, of several clients."""
        drawn = []
        for first in range(0, people, self._examples):
            (batch,) = poisson_batches(
                self._examples, expected=self._batch, steps=1, source=self._source
            )
            drawn.append(batch.numpy() + first)
        together = np.concatenate(drawn) if drawn else np.zeros(0, np.int64)
        return together[together < people]

    def release(self, contributions: Floats, examples: Ints) -> Floats:
        """See :class:`Mechanism`."""
        dimension = contributions.shape[1]
        if self._model.in_features != dimension:
            self._model = torch.nn.Linear(dimension, 2, bias=False)
            torch.nn.init.zeros_(self._model.weight)
            self._summed = sum_for(self._model, (dimension,))
        x = torch.from_numpy(math.sqrt(2) * contributions).float()
        y = torch.zeros(len(x), dtype=torch.int64)
        sums, _ = self._summed(self._model, x, y, self.clipping_norm)
        (mean,) = noised_mean(sums, self._batch, deviation=self._deviation, source=self._source)
        class_0, class_1 = mean.double().numpy() * self._batch
        return np.asarray((class_1 - class_0) / math.sqrt(2))


def audit_experiment(experiment: Experiment, *, canaries: int, seed: int) -> AuditReport:
    """Audit what an experiment promises, over all its rounds.

    Args:
        experiment: complete and checked; its data is at hand.
        canaries: see :func:`fedsim.privacy.audit.audit`.
        seed: of canaries and coins. Noise and sampling are secret, unless
            ``privacy.reproducible_noise`` has it otherwise.

    Raises:
        ConfigError: it promises nothing that an audit of releases could be about.
        PrivacyError: what it promises cannot be.
    """
    table = experiment.privacy
    refuse(table)
    spending = planned(experiment)
    assert spending is not None
    claims = claims_of(experiment, spending)
    make = MAKERS[table.level](experiment, claims, spending.noise_multiplier)
    return audit(make, claims, canaries=canaries, seed=seed)


def refuse(table: PrivacyTable) -> None:
    """Refuse what is no mechanism of this audit.

    Raises:
        ConfigError: with the key, and what to set it to.
    """
    problem = ""
    if table.level not in MAKERS:
        problem = f"privacy.level = {table.level!r}: there is nothing to audit in one run; use "
        problem += " or ".join(repr(level) for level in MAKERS)
    elif table.noise_by != "server" and table.level == "user":
        problem = f"privacy.noise_by = {table.noise_by!r}: clients' shares of the noise are not "
        problem += "audited; use 'server'"
    elif table.secure_aggregation:
        problem = "privacy.secure_aggregation = true: clients clip behind masks, which is not "
        problem += "audited; use false, whose mechanism is the same"
    elif table.noise_cohort:
        problem = f"privacy.noise_cohort = {table.noise_cohort}: promises nothing to these clients "
        problem += "that could be audited; set it to 0"
    if problem:
        raise ConfigError([problem])


def claims_of(experiment: Experiment, spending: Spending) -> Claims:
    """Return what the experiment says of its mechanism, all of its rounds together."""
    table, rounds = experiment.privacy, experiment.experiment.rounds
    promised = spending.guarantee(rounds)
    example = table.level == "example"
    cohort = experiment.train.batch_size if example else experiment.server.clients_per_round
    adaptive = table.level == "user" and table.clipping == "adaptive"
    z = spending.noise_multiplier
    if adaptive:  # what is left of the noise beside that on a count
        z = delta_noise_multiplier(z, default_count_noise(cohort))
    return Claims(
        level=table.level,
        clipping_norm=table.clipping_norm,
        noise_multiplier=z,
        sampling_probability=promised.sampling_probability,
        rounds=promised.steps,
        cohort=cohort,
        delta=promised.delta,
        epsilon=promised.epsilon,
        accountant=promised.accountant,
        target_quantile=table.target_quantile if adaptive else None,
    )


def user_level(experiment: Experiment, claims: Claims, noise_multiplier: float) -> Make:
    """Return what makes the server's mechanism, anew for each clipping norm that it begins with."""
    sources = fresh_sources(experiment)

    def make(clipping_norm: float) -> Mechanism:
        source = next(sources)
        # Any linear strategy is given the same mean, and makes of it what it likes.
        server = dataclasses.replace(experiment.server, strategy="fedavg", learning_rate=0.0)
        table = dataclasses.replace(experiment.privacy, clipping_norm=clipping_norm)
        bounded = make_bounded(
            dataclasses.replace(experiment, server=server, privacy=table),
            {UPDATE: np.zeros(1)},
            clients=experiment.data.clients,
            noise_multiplier=noise_multiplier,
            source=source,
        )
        assert isinstance(bounded, BoundedMean)
        return UserLevel(
            bounded,
            probability=claims.sampling_probability,
            cohort=claims.cohort,
            source=source,
        )

    return make


def example_level(experiment: Experiment, claims: Claims, noise_multiplier: float) -> Make:
    """Return what makes the mechanism of the client that spends most, with a client's own noise."""
    reproducible, seed = experiment.privacy.reproducible_noise, experiment.experiment.seed
    noise_of = parts.seeded_noise if reproducible else parts.secret_noise
    numbers = itertools.count()
    held = max(1, round(claims.cohort / claims.sampling_probability))
    return lambda clipping_norm: ExampleLevel(
        clipping_norm,
        noise_multiplier=noise_multiplier,
        examples=held,
        batch=min(claims.cohort, held),
        source=noise_of(stream(seed, "audit-noise", client=next(numbers))),
    )


MAKERS: dict[str, Callable[[Experiment, Claims, float], Make]] = {
    "user": user_level,
    "example": example_level,
}


def fresh_sources(experiment: Experiment) -> Iterator[Source]:
    """Yield, for one mechanism after another, where it draws from; no two draw the same."""
    reproducible = experiment.privacy.reproducible_noise
    seed = experiment.experiment.seed if reproducible else None
    for number in itertools.count():

        def source(round: int, purpose: str, number: int = number) -> NoiseSource:
            return source_of(seed, f"audit-{purpose}", round=round, client=number)

        yield source
