"""What the server does for privacy: who is drawn, and what has been spent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from fedsim.affordable import check_affordable
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.federation.sampling import choose_clients, draw_clients
from fedsim.privacy.accounting import statement
from fedsim.privacy.noise import source_of
from fedsim.spending import Spending, spending_of

Choose = Callable[[int], list[int]]

BASIS = "account"  # of the manifest's engine

log = logging.getLogger("flwr.fedsim")


def chooser(experiment: Experiment, clients: int) -> Choose:
    """Return who takes part in a round: so many, or at level ``user`` each by a draw of its own."""
    cohort = experiment.server.clients_per_round
    if experiment.privacy.level != "user":
        return partial(choose_clients, experiment.experiment.seed, clients=clients, cohort=cohort)

    def draw(round: int) -> list[int]:
        source = source_of(experiment.noise_seed, "sampling", round=round)
        return draw_clients(source, clients=clients, probability=cohort / clients)

    return draw


def account(
    experiment: Experiment,
    *,
    clients: int,
    sizes: npt.NDArray[np.int64] | None,
    choose: Choose,
    absent: Collection[int] = (),
) -> Spending | None:
    """Return the run's account of privacy, and say what the whole run will come to.

    Raises:
        ConfigError, PrivacyError: the promise cannot be made to those who are there.
    """
    spending = spending_of(experiment, clients=clients, sizes=sizes, choose=choose, absent=absent)
    if spending is not None:
        check_affordable(experiment, spending)
        log.info("planned: %s", statement(spending.guarantee(spending.last_round())))
    return spending


def check_basis(begun: Mapping[str, object], spending: Spending) -> None:
    """Refuse to go on with a run whose clients or data are no longer those that it began with.

    Args:
        begun: what the run's manifest says of the engine.
        spending: the account of this start.

    Raises:
        ConfigError: what is promised of the rounds before could no longer be told.
    """
    if begun.get(BASIS, spending.basis()) != spending.basis():
        raise ConfigError(
            [
                "run.resume = true: the clients, how many examples they hold, or which of them "
                "have data, are no longer what they were, and the privacy of the rounds before "
                "was promised to those; give them back as they were, or begin a new run"
            ]
        )


def spent(spending: Spending | None, round: int) -> Mapping[str, float]:
    """Return what the rounds so far came to, as a column of the round; blank between marks."""
    if spending is None or round not in spending.marks:
        return {}
    return {"epsilon": spending.epsilon(round)}
