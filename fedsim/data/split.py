"""The test part of datasets that come without one."""

from __future__ import annotations

import numpy as np

from fedsim import randomness
from fedsim.data.counting import apportion, random_ranks
from fedsim.data.dataset import Ints
from fedsim.errors import DataError


def hold_out(labels: Ints, fraction: float, place: str) -> tuple[Ints, Ints]:
    """Split examples into a training and a test part, stratified by label.

    The draw has a stream of its own, which the experiment's seed does not enter: the same examples
    are held out whatever the seed, so no run trains on what another run is tested on.

    Args:
        labels: shape (n,), classes from 0.
        fraction: the part to hold out, in (0, 1). Every class keeps at least one training
            example, so the test part can be smaller than that.
        place: what the error calls the data.

    Returns:
        The training and the test indices, each ascending.

    Raises:
        DataError: ``fraction`` is out of range, or leaves no test example.
    """
    if not 0 < fraction < 1:
        raise DataError(f"data.test_fraction = {fraction}: must be between 0 and 1")
    sizes = np.bincount(labels)
    wanted = apportion(round(fraction * len(labels)), sizes)
    taken = np.minimum(wanted, np.maximum(sizes - 1, 0))
    if not taken.any():
        raise DataError(
            f"{place}: data.test_fraction = {fraction} of {len(labels)} examples leaves no test "
            "example; raise it, or name a test part of its own"
        )
    ranks = random_ranks(labels, randomness.stream(0, "test split"))
    held = ranks < taken[labels]
    return np.flatnonzero(~held), np.flatnonzero(held)
