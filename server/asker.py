"""What asks a cohort: for its sum behind masks, in blocks, or each client by itself."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from fedsim import parts
from fedsim.config import Experiment
from fedsim.federation.asking import Asker, Blocks, Cut, Part, Singles, takes_cohorts
from fedsim.federation.billing import modelled_price
from fedsim.federation.sampling import Whereabouts
from fedsim.federation.secure import SecureAsker
from fedsim.federation.strategy import Aggregator
from fedsim.federation.transport import Transport
from fedsim.settings import TrainTable
from fedsim.training import Plan, cut_blocks, steps_of


def asker(
    experiment: Experiment,
    grid: Grid,
    at: Whereabouts,
    *,
    aggregator: Aggregator,
    transport: Transport,
    cut: Cut,
) -> Asker:
    """Return what asks a run's cohorts.

    Args:
        experiment: complete.
        grid: which asks in blocks where it offers that.
        at: where the clients are.
        aggregator: what is made of the answers.
        transport: how the model comes down and updates go up.
        cut: from partition ids to the blocks in which they are summed.
    """
    timeout = experiment.server.round_timeout_seconds
    if experiment.privacy.secure_aggregation:
        return SecureAsker(
            grid=grid,
            node_of=at.node_of,
            timeout_seconds=timeout,
            run=secrets.token_bytes(16),  # keys are bound to this start of the run
            clients=parts.clients(experiment),
            value_range=experiment.privacy.value_range,
            left_out=at.left_out,
        )
    price = modelled_price(experiment.measure.device)
    own = noises_itself(experiment) or aggregator.clients_keep_state
    if takes_cohorts(grid) and not (own or transport.codes or at.left_out):
        linear = aggregator.aggregate_sum is not None
        return Blocks(grid=grid, cut=cut, linear=linear, timeout_seconds=timeout, price=price)
    return Singles(
        grid=grid,
        node_of=at.node_of,
        left_out=at.left_out,
        transport=transport,
        timeout_seconds=timeout,
        price=price,
    )


def noises_itself(experiment: Experiment) -> bool:
    """Say whether each client noises what it sends, which then is nobody's but its own."""
    table = experiment.privacy
    return table.level == "local" or table.noise_by == "clients"


def cut_cohort(
    train: TrainTable, plan: Plan, sizes: npt.NDArray[np.int64], clients: Sequence[int]
) -> list[Part]:
    """Return the blocks of a cohort, from its clients' sizes and the settings alone."""
    held = sizes[np.asarray(clients)]
    steps = steps_of(held, epochs=train.epochs, steps=train.steps, batch_size=train.batch_size)
    blocks = cut_blocks(steps, plan=plan, size=train.block_clients)
    return [
        Part(places=places, work=(float(steps[places].sum()), float(held[places].sum())))
        for places in blocks
    ]
