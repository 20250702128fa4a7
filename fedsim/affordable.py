"""Whether those who are there can be given what an experiment promises, before anybody trains."""

from __future__ import annotations

import math
from functools import partial

from fedsim import parts
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.federation.bounded import noise_of
from fedsim.federation.sampling import choose_clients
from fedsim.privacy.accounting import rounded_up
from fedsim.privacy.noise import LARGEST_DRAW
from fedsim.privacy.secagg import FixedPoint
from fedsim.privacy.shares import client_noise_std
from fedsim.spending import Spending, spending_of

# Steps of fixed point to a standard deviation of a client's noise, from which on rounding leaves a
# Gaussian what it is: sums of rounded ones differ by exp(-2 pi^2 steps^2) and less.
LEAST_STEPS = 64


def planned(experiment: Experiment) -> Spending | None:
    """Return the account of a run of all its clients from its start; None without a promise.

    Raises:
        ConfigError, PrivacyError: as :func:`fedsim.spending.spending_of`.
    """
    clients, server = parts.clients(experiment), experiment.server
    return spending_of(
        experiment,
        clients=clients,
        sizes=parts.partition(experiment).sizes,
        choose=partial(
            choose_clients,
            experiment.experiment.seed,
            clients=clients,
            cohort=server.clients_per_round,
        ),
        absent=server.absent,
    )


def check_affordable(experiment: Experiment, spending: Spending) -> None:
    """Refuse an account that promises nothing, or ends before its first round.

    Raises:
        ConfigError: with the value and what to choose instead.
        PrivacyError: no noise gives ``privacy.target_epsilon``, or adaptive clipping has no room
            in it.
    """
    if math.isinf(spending.epsilon(spending.rounds)):
        raise ConfigError(
            [
                f"privacy.noise_multiplier = {spending.noise_multiplier}: so little noise "
                "promises nothing (epsilon is infinite); raise it, or give a target_epsilon"
            ]
        )
    if not spending.last_round():
        raise ConfigError(
            [
                f"privacy.epsilon_budget = {experiment.privacy.epsilon_budget}: the first round "
                "alone would spend "
                f"{spending.epsilon(1):.4g}; raise it, or privacy.noise_multiplier"
            ]
        )
    z = spending.noise_multiplier
    if experiment.privacy.level == "user":  # refuses adaptive clipping without room in the noise
        noise_of(experiment.privacy, z, experiment.server.clients_per_round)
    check_range(experiment, z)


def check_range(experiment: Experiment, noise_multiplier: float) -> None:
    """Refuse masks that would cut off the tails of noise that clients add, or round it away.

    What is left of a Gaussian would not be one, and the sum's guarantee rests on it.

    Raises:
        ConfigError: with the range that holds a clipped update and all noise that there can be.
    """
    table, cohort = experiment.privacy, experiment.server.clients_per_round
    adds = table.noise_by == "clients" or table.level == "local"
    if not (table.secure_aggregation and adds):
        return
    std = client_noise_std(table, noise_multiplier, cohort)
    needed = table.clipping_norm + LARGEST_DRAW * std
    if table.value_range < needed:
        raise ConfigError(
            [
                f"privacy.value_range = {table.value_range}: would cut the noise that clients add, "
                f"of deviation {std:.3g} on parts of up to privacy.clipping_norm = "
                f"{table.clipping_norm}; give {rounded_up(needed, 2)} or more"
            ]
        )
    clients = parts.clients(experiment)
    unit = FixedPoint.fitting(value_range=table.value_range, clients=clients).unit
    if std * unit < LEAST_STEPS:
        raise ConfigError(
            [
                f"privacy.value_range = {table.value_range}: the sum of {clients:,} clients goes "
                f"in steps of {1 / unit:.2g}, too coarse for the noise that clients add, of "
                f"deviation {std:.3g}; lower it, to {rounded_up(needed, 2)} at least, or raise "
                "privacy.clipping_norm"
            ]
        )
