"""How a client protects its own update before it leaves: cut to a norm, and noised."""

from __future__ import annotations

import numpy as np

from fedsim import flower
from fedsim.config import Experiment
from fedsim.measure.payload import difference
from fedsim.privacy.clipping import add_noise, clip_update
from fedsim.privacy.noise import source_of
from fedsim.privacy.shares import client_noise_std


def protects_itself(experiment: Experiment) -> bool:
    """Say whether clients clip and noise their updates themselves."""
    table = experiment.privacy
    hidden = table.noise_by == "clients" or table.secure_aggregation
    return table.level == "local" or (table.level == "user" and hidden)


def protect(
    experiment: Experiment, asked: flower.Instruction, client: int, after: flower.Arrays
) -> flower.Arrays:
    """Return a client's model as it may be seen; as it is where nothing is promised here."""
    if not protects_itself(experiment):
        return after
    update = protected_update(experiment, asked, client, after)
    return {
        name: (array + update[name]).astype(array.dtype) for name, array in asked.arrays.items()
    }


def protected_update(
    experiment: Experiment,
    asked: flower.Instruction,
    client: int,
    after: flower.Arrays,
    *,
    unit: float | None = None,
) -> flower.Arrays:
    """Return a client's update as it may be seen, float64 where it was touched.

    Args:
        experiment: complete and checked.
        asked: with the model that the client started from.
        client: its partition id.
        after: its model.
        unit: of the fixed point that it will be rounded to, in steps of 1 / unit. A clipped update
            is rounded towards zero first, as otherwise it could become longer than it was clipped
            to; noise comes after that, so that nothing makes it smaller.

    Raises:
        ValueError: the server names no noise multiplier, or less than was agreed.
    """
    update = difference(after, asked.arrays)
    if not protects_itself(experiment):
        return update
    multiplier = agreed_noise(experiment, asked)
    table, cohort = experiment.privacy, experiment.server.clients_per_round
    adds = table.level == "local" or table.noise_by == "clients"
    std = client_noise_std(table, multiplier, cohort) if adds else 0.0
    source = source_of(experiment.noise_seed, "client-noise", round=asked.round, client=client)
    clipped = clip_update(update, table.clipping_norm)
    if unit is not None:
        clipped = {name: np.trunc(array * unit) / unit for name, array in clipped.items()}
    return add_noise(clipped, std, source)


def agreed_noise(experiment: Experiment, asked: flower.Instruction) -> float:
    """Return the noise multiplier that the server names: it has solved for it, or was given it.

    Raises:
        ValueError: it names none, or less than the experiment says.
    """
    named, least = asked.noise_multiplier, experiment.privacy.noise_multiplier
    if named is None or not named > 0 or named < least:
        raise ValueError(
            f"the server asks for noise of {named} clipping norms, and the experiment promises "
            f"{least or 'some'}: nothing is sent"
        )
    return named
