"""What the server does for privacy: who is drawn, where noise comes from, what has been spent."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from fedsim import parts
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.federation.sampling import Whereabouts, choose_clients, draw_clients
from fedsim.federation.secure import SecureAsker
from fedsim.privacy.accounting import rounded_up, statement
from fedsim.privacy.noise import LARGEST_DRAW, NoiseSource, source_of
from fedsim.privacy.shares import client_noise_std
from fedsim.spending import Spending, spending_of

Choose = Callable[[int], list[int]]

log = logging.getLogger("flwr.fedsim")


def noise_source(experiment: Experiment, round: int, purpose: str) -> NoiseSource:
    """Return where the server's noise comes from: nobody can know it, unless the run says so."""
    seed = experiment.experiment.seed if experiment.privacy.reproducible_noise else None
    return source_of(seed, purpose, round=round)


def chooser(experiment: Experiment, clients: int) -> Choose:
    """Return who takes part in a round: so many, or at level ``user`` each by a draw of its own."""
    cohort = experiment.server.clients_per_round
    if experiment.privacy.level != "user":
        return partial(choose_clients, experiment.experiment.seed, clients=clients, cohort=cohort)

    def draw(round: int) -> list[int]:
        source = noise_source(experiment, round, "sampling")
        return draw_clients(source, clients=clients, probability=cohort / clients)

    return draw


def secure_asker(experiment: Experiment, grid: Grid, at: Whereabouts) -> SecureAsker | None:
    """Return what asks a cohort for its sum alone; its keys are bound to this start of the run."""
    if not experiment.privacy.secure_aggregation:
        return None
    return SecureAsker(
        grid=grid,
        node_of=at.node_of,
        timeout_seconds=experiment.server.round_timeout_seconds,
        run=secrets.token_bytes(16),
        clients=parts.clients(experiment),
        value_range=experiment.privacy.value_range,
        left_out=at.left_out,
    )


def account(
    experiment: Experiment,
    *,
    clients: int,
    sizes: npt.NDArray[np.int64] | None,
    choose: Choose,
    absent: int = 0,
) -> Spending | None:
    """Return the run's account of privacy, and say what the whole run will come to.

    Raises:
        ConfigError: the promise cannot be made to those who are there.
    """
    spending = spending_of(experiment, clients=clients, sizes=sizes, choose=choose, absent=absent)
    if spending is not None:
        if math.isinf(spending.epsilon(spending.rounds)):
            raise ConfigError(
                [
                    f"privacy.noise_multiplier = {spending.noise_multiplier}: so little noise "
                    "promises nothing (epsilon is infinite); raise it, or give a target_epsilon"
                ]
            )
        last = spending.last_round()
        if not last:
            budget, first = experiment.privacy.epsilon_budget, spending.epsilon(1)
            raise ConfigError(
                [
                    f"privacy.epsilon_budget = {budget}: the first round alone would spend "
                    f"{first:.4g}; raise it, or privacy.noise_multiplier"
                ]
            )
        check_range(experiment, spending.noise_multiplier)
        log.info("planned: %s", statement(spending.guarantee(last)))
    return spending


def check_range(experiment: Experiment, noise_multiplier: float) -> None:
    """Refuse masks that would cut the tails off the noise that clients add beneath them.

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


def spent(spending: Spending | None, round: int) -> Mapping[str, float]:
    """Return what the rounds so far came to, as a column of the round; blank between marks."""
    if spending is None or round not in spending.marks:
        return {}
    return {"epsilon": spending.epsilon(round)}
