"""Who is hostile, and what hostile clients make of their examples.

The examples are as a dataset stores them, so that poisoned images take no more room than others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsim.data.dataset import Features, Ints

# A patch of 3 x 3 pixels in an image of 28 x 28, and as much of others (Gu et al. 2017, "BadNets").
PATCH_SHARE, SMALLEST_PATCH = 3 / 28, 2
COLUMNS = 3  # of a table


def hostile_clients(clients: int, fraction: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw who is hostile: so large a share of the clients, rounded down, in increasing order.

    Args:
        clients: how many there are.
        fraction: in [0, 1].
        rng: draws them.
    """
    count = math.floor(fraction * clients + 1e-9)  # 0.29 x 100 is not quite 29
    chosen = rng.choice(clients, size=count, replace=False)
    chosen.sort()
    return tuple(chosen.tolist())


def flip_labels(y: Ints, *, classes: int, source: int, target: int) -> Ints:
    """Return labels turned around, y -> classes - 1 - y, or one class called another.

    Args:
        y: (n,), from 0 to classes - 1.
        source: the class that is relabelled; -1: every label is turned around.
        target: what it is called.
    """
    if source < 0:
        return classes - 1 - y
    return np.where(y == source, target, y)


@dataclass(frozen=True, eq=False)
class Trigger:
    """What marks an example for a backdoor: some features at values that they rarely have together.

    Attributes:
        places: (k,), in the flat example.
        values: (k,), as the dataset stores them.
    """

    places: Ints
    values: npt.NDArray[np.generic]

    def stamp(self, x: Features) -> Features:
        """Return examples, (n, \\*shape), with the mark on each of them."""
        flat = x.reshape(len(x), -1).copy()
        flat[:, self.places] = self.values
        return flat.reshape(x.shape)


def trigger_for(x: Features) -> Trigger:
    """Return the mark for examples like these.

    Of images (channels, height, width) it is a square in the lower right corner as bright as
    anything in them, of tables the last features at the largest value that each of them has.

    Args:
        x: (n, \\*shape), at least one.
    """
    shape = x.shape[1:]
    places = np.arange(math.prod(shape)).reshape(shape)
    if len(shape) == 1:
        chosen = places[-COLUMNS:]
        return Trigger(chosen, x[:, chosen].max(axis=0))
    sides = [min(n, max(SMALLEST_PATCH, round(PATCH_SHARE * n))) for n in shape[-2:]]
    chosen = places[..., -sides[0] :, -sides[1] :].reshape(-1)
    return Trigger(chosen, np.full(len(chosen), x.max(), x.dtype))


def plant_backdoor(
    x: Features, y: Ints, *, trigger: Trigger, target: int, rng: np.random.Generator
) -> tuple[Features, Ints]:
    """Return a client's examples with half of them (rounded up) marked and called the target.

    Args:
        x, y: (n, \\*shape) and (n,); they are left as they are.
        rng: draws which half.
    """
    marked = rng.choice(len(y), size=(len(y) + 1) // 2, replace=False)
    features, labels = x.copy(), y.copy()
    features[marked] = trigger.stamp(x[marked])
    labels[marked] = target
    return features, labels
