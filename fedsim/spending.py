"""What a run spends of people's privacy: from an experiment to epsilon, round by round.

Three levels, and what composes in each:

- ``user``: a round is one Gaussian release of the sum of clipped updates, of clients each drawn
  with probability ``clients_per_round / clients``. Every round counts.
- ``local``: each client's own noised update is seen, so nothing is gained by the draw: the rounds
  in which a client takes part count, and the client that takes part most decides.
- ``example``: each step of a client is a Gaussian release over a Poisson batch of its examples.
  Steps of the rounds in which it takes part count; the client that spends most decides. Examples
  of different clients are different people's, so that clients do not add up.

Who takes part when is drawn without looking at anybody's data, and counts as known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.privacy import accounting
from fedsim.privacy.accounting import SENSITIVITY, Guarantee, guarantee, upwards
from fedsim.promises import LEAST_COHORT
from fedsim.settings import PrivacyTable
from fedsim.training import steps_of

Counts = npt.NDArray[np.int64]
MARKS = 20  # of a run, at most, where its epsilon is computed


@dataclass(frozen=True, kw_only=True)
class Releases:
    """A client's Gaussian releases in a visit: how many, and what each draws from."""

    sampling_probability: float
    steps: int


@dataclass(kw_only=True)
class Spending:
    """The account of one run.

    Attributes:
        table: the experiment's ``privacy``; its level is not ``none``.
        rounds: planned.
        protected: how many users or examples the promise is to: delta is below one over it.
        population: clients that there are.
        chance_of_few: that some round's cohort is too small to be summed behind masks, with one
            client more or less: then its presence decides whether others' updates count, which no
            noise covers.
        more_caveats: of this experiment's data.
        repeated: rounds that were begun, broken off and done again: what had been sent or told
            until then was, and only noise from the seed is the same again.
        visits: for each kind of client, what a visit releases.
        kinds: (clients,), which kind each is.
        choose: from a round to who takes part; None where every round counts for everybody.
        absent: clients that are chosen like all others, and never asked.
    """

    table: PrivacyTable
    rounds: int
    protected: float
    visits: Sequence[Releases]
    kinds: Counts
    choose: Callable[[int], Sequence[int]] | None
    absent: frozenset[int] = frozenset()
    population: int = 0
    chance_of_few: float = 0.0
    more_caveats: tuple[str, ...] = ()
    repeated: int = 0

    @property
    def delta(self) -> float:
        """What is left of delta for the noise."""
        return max(0.0, self.table.delta - self.chance_of_few * (1 + self.repeated / self.rounds))

    @cached_property
    def noise_multiplier(self) -> float:
        """The noise's standard deviation in clipping norms: given, or solved for."""
        table = self.table
        if table.noise_multiplier:
            return table.noise_multiplier
        return SENSITIVITY[table.level] * max(
            accounting.noise_multiplier_for(
                target_epsilon=table.target_epsilon,
                sampling_probability=part.sampling_probability,
                steps=part.steps,
                delta=self.delta,
                accountant=table.accountant,
            )
            for part in self.worst_parts(self.rounds)
        )

    def basis(self) -> dict[str, object]:
        """Return what epsilon rests on beside the config: a resumed run has to rest on the same."""
        visits = repr([(v.sampling_probability, v.steps) for v in self.visits]).encode()
        digest = hashlib.sha256(visits + self.kinds.astype("<i8").tobytes()).hexdigest()
        return {"noise_multiplier": self.noise_multiplier, "visits_sha256": digest}

    def worst_parts(self, rounds: int) -> list[Releases]:
        """Return what the clients that may have spent most have released in so many rounds.

        One with fewer releases, each from a smaller draw, has spent less.
        """
        taken = self.taken_part(rounds)
        total: dict[float, int] = {}
        for number, visit in enumerate(self.visits):
            most = int(taken[self.kinds == number].max(initial=0)) * visit.steps
            q = visit.sampling_probability
            total[q] = max(total.get(q, 0), most)
        worst: list[Releases] = []
        for q in sorted(total, reverse=True):
            if total[q] > max((part.steps for part in worst), default=0):
                worst.append(Releases(sampling_probability=q, steps=total[q]))
        return worst

    def taken_part(self, rounds: int) -> Counts:
        """Return in how many of the first rounds each client takes part, (clients,)."""
        again = 0 if self.table.reproducible_noise else self.repeated
        if self.choose is None:
            return np.full(len(self.kinds), rounds + again, np.int64)
        taken = np.zeros(len(self.kinds), np.int64)
        for round in range(1, rounds + 1):
            taken[np.asarray(self.choose(round), np.int64)] += 1
        taken += again
        taken[list(self.absent)] = 0
        return taken

    @cached_property
    def marks(self) -> frozenset[int]:
        """Rounds whose epsilon is written down: an accountant takes longer than a small round."""
        return frozenset(
            {1, self.last_round(), *(-(-self.rounds * k // MARKS) for k in range(1, MARKS + 1))}
        )

    def epsilon(self, rounds: int) -> float:
        """Return what the first rounds come to, at the table's delta."""
        parts = self.worst_parts(rounds)
        return max((self._epsilon(part, self.table.accountant) for part in parts), default=0.0)

    def _epsilon(self, part: Releases, accountant: str) -> float:
        return accounting.epsilon(
            sampling_probability=part.sampling_probability,
            noise_multiplier=self.noise_multiplier / SENSITIVITY[self.table.level],
            steps=part.steps,
            delta=self.delta,
            accountant=accountant,
        )

    def last_round(self) -> int:
        """Return the last round that the budget allows; 0 if not even the first."""
        budget = self.table.epsilon_budget
        if not budget or self.epsilon(self.rounds) <= budget:
            return self.rounds
        within, beyond = 0, self.rounds
        while beyond - within > 1:
            middle = (within + beyond) // 2
            if self.epsilon(middle) <= budget:
                within = middle
            else:
                beyond = middle
        return within

    def guarantee(self, rounds: int) -> Guarantee:
        """Return what is promised after so many rounds, with all that it rests on."""
        table = self.table
        nothing = Releases(sampling_probability=1.0, steps=0)
        parts = self.worst_parts(rounds) or [nothing]
        worst = max(parts, key=lambda part: self._epsilon(part, table.accountant))
        found = guarantee(
            level=table.level,
            sampling_probability=worst.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            steps=worst.steps,
            delta=self.delta,
            accountant=table.accountant,
            caveats=tuple(self.caveats()),
        )
        return replace(found, delta=table.delta)

    def caveats(self) -> list[str]:
        """Return what the guarantee does not cover, or rests on, in sentences."""
        table = self.table
        said = {
            "user": "It is of the models that the server releases: the server sees every update"
            + (" only in sums," if table.secure_aggregation else ",")
            + " and how many clients came, and figures of them and of clipping, told or in the "
            "ledger, are not covered.",
            "local": "It is of each update as it leaves the client; what clients send beside it, "
            "such as times and counts, is not covered.",
            "example": "It is of each client's models as they leave it; what clients send beside "
            "them, such as times and counts, is not covered.",
        }
        found = [said[table.level]]
        if table.secure_aggregation and table.level == "user":
            found.append("Who is drawn is to be unknown: clients that share keys know each other.")
        if table.level == "example":
            found.append("How many examples a client holds is public.")
        if table.noise_by == "clients":
            found.append(
                "Clients add the noise, and are trusted to; each rounds its share to fixed point "
                "before the sum, which the Gaussian's proof does not cover. Of the server's own "
                "view, which has the noise of those who came alone, nothing is said."
            )
        if self.chance_of_few:
            found.append(
                f"Of delta, {upwards(self.chance_of_few)} is for rounds whose cohort is too small "
                "to hide in."
            )
        if table.epsilon_budget and self.last_round() < self.rounds:
            found.append(
                f"privacy.epsilon_budget = {table.epsilon_budget} allows {self.last_round()} of "
                f"{self.rounds} rounds."
            )
        found += self.more_caveats
        if table.level == "user" and table.noise_cohort:
            found.append(
                f"It is NOT of these {self.population} clients: the noise is as small as in a "
                f"federation of {self.protected:g} clients with cohorts of "
                f"{table.noise_cohort} (privacy.noise_cohort), where it would hold."
            )
        if table.reproducible_noise:
            found.append(
                "The noise and the draws are from the run's seed (privacy.reproducible_noise): "
                "whoever knows the seed can take them off, so for them nothing is promised."
            )
        return found


def spending_of(
    experiment: Experiment,
    *,
    clients: int,
    sizes: npt.NDArray[np.int64] | None,
    choose: Callable[[int], Sequence[int]],
    absent: Collection[int] = (),
) -> Spending | None:
    """Return the account of a run; None where nothing is promised.

    Args:
        experiment: complete and checked.
        clients: how many there are.
        sizes: (clients,), the examples of each; only level ``example`` needs them.
        choose: from a round to its cohort, where cohorts have a fixed size.
        absent: clients that are never asked, and spend nothing.

    Raises:
        ConfigError: nobody says how many examples there are.
        PrivacyError: delta is too large for those who are protected.
    """
    table, server, train = experiment.privacy, experiment.server, experiment.train
    if not table.on:
        return None
    rounds = experiment.experiment.rounds
    if table.level == "example":
        if sizes is None:
            raise ConfigError(["privacy.level = 'example': nobody says how many examples it has"])
        held = np.maximum(np.asarray(sizes, np.int64), 1)
        distinct, kinds = np.unique(held, return_inverse=True)
        steps = steps_of(
            distinct, epochs=train.epochs, steps=train.steps, batch_size=train.batch_size
        )
        visits = [
            Releases(sampling_probability=min(1.0, train.batch_size / n), steps=int(s))
            for n, s in zip(distinct.tolist(), steps, strict=True)
        ]
        accounting.check_delta(table.delta, int(held.sum()))
        return Spending(
            table=table,
            rounds=rounds,
            protected=float(held.sum()),
            visits=visits,
            kinds=kinds.astype(np.int64),
            choose=choose,
            absent=frozenset(absent),
            more_caveats=data_caveats(experiment),
        )
    cohort = table.noise_cohort or server.clients_per_round
    scaled = clients * cohort / server.clients_per_round
    accounting.check_delta(table.delta, int(scaled))
    q = min(1.0, server.clients_per_round / clients) if table.level == "user" else 1.0
    hidden = table.secure_aggregation and table.level == "user"
    few = chance_of_few(clients - len(absent), q, rounds) if hidden else 0.0
    if few >= table.delta / 2:
        raise ConfigError(
            [
                f"server.clients_per_round = {server.clients_per_round}: with a probability of "
                f"{upwards(few)} some round draws fewer than {LEAST_COHORT}, too few for "
                f"privacy.secure_aggregation to hide in, which takes half of privacy.delta = "
                f"{table.delta} or more; ask more clients a round"
            ]
        )
    return Spending(
        table=table,
        rounds=rounds,
        protected=scaled,
        visits=[Releases(sampling_probability=q, steps=1)],
        kinds=np.zeros(clients, np.int64),
        choose=None if table.level == "user" else choose,
        absent=frozenset(absent),
        chance_of_few=few,
        more_caveats=data_caveats(experiment),
        population=clients,
    )


def chance_of_few(clients: int, probability: float, rounds: int) -> float:
    """Return the chance that some round's draw is below ``LEAST_COHORT``, one client aside."""
    from scipy.stats import binom

    once = float(binom.cdf(LEAST_COHORT - 1, clients - 1, probability))
    return min(1.0, rounds * once)


def data_caveats(experiment: Experiment) -> tuple[str, ...]:
    """Return what was done to the data with everybody's in view, and without noise."""
    table = experiment.data
    done = [
        text
        for used, text in (
            (table.standardize, "data.standardize"),
            (table.missing == "impute", 'data.missing = "impute"'),
        )
        if used
    ]
    if not done:
        return ()
    return (f"Statistics of all examples went into them without noise ({', '.join(done)}).",)
