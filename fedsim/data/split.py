"""Parts held out: to test on where a dataset has no test part, and to tune on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim import randomness
from fedsim.data.counting import apportion, random_ranks
from fedsim.data.dataset import Dataset, Ints
from fedsim.errors import DataError


def without_test(data: Dataset, fraction: float) -> Dataset:
    """Return a dataset whose test part is held out of its training part: to tune without testing.

    The original test part is not in it at all.

    Args:
        data: the dataset as it is published.
        fraction: of the training part to hold out, in (0, 1).

    Raises:
        DataError: no example could be held out, or a natural client would have none left.
    """
    train, held = hold_out(data.y_train, fraction, data.name, part="validation")
    clients = None if data.clients is None else data.clients[train]
    if clients is not None and len(np.unique(clients)) < len(data.client_names):
        raise DataError(
            f"{data.name}: data.validation_fraction = {fraction} leaves a client without any "
            "example; lower it"
        )
    return replace(
        data,
        x_train=data.x_train[train],
        y_train=data.y_train[train],
        x_test=data.x_train[held],
        y_test=data.y_train[held],
        clients=clients,
    )


def hold_out(labels: Ints, fraction: float, place: str, *, part: str = "test") -> tuple[Ints, Ints]:
    """Split examples into a training part and another one, stratified by label.

    The draw has a stream of its own, which the experiment's seed does not enter: the same examples
    are held out whatever the seed, so no run trains on what another run is tested on.

    Args:
        labels: shape (n,), classes from 0.
        fraction: the part to hold out, in (0, 1). Every class keeps at least one training
            example, so the test part can be smaller than that.
        place: what the error calls the data.
        part: what is held out; ``data.<part>_fraction`` is the key that asks for it.

    Returns:
        The training indices and those of the other part, each ascending.

    Raises:
        DataError: ``fraction`` is out of range, or holds nothing out.
    """
    if not 0 < fraction < 1:
        raise DataError(f"data.{part}_fraction = {fraction}: must be between 0 and 1")
    sizes = np.bincount(labels)
    wanted = apportion(round(fraction * len(labels)), sizes)
    taken = np.minimum(wanted, np.maximum(sizes - 1, 0))
    if not taken.any():
        raise DataError(
            f"{place}: data.{part}_fraction = {fraction} of {len(labels)} examples leaves no "
            f"{part} example; raise it"
            + (", or name a test part of its own" if part == "test" else "")
        )
    ranks = random_ranks(labels, randomness.stream(0, f"{part} split"))
    held = ranks < taken[labels]
    return np.flatnonzero(~held), np.flatnonzero(held)
