"""Which client holds which example, and how examples move to clients that have too few."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.data.counting import apportion, random_ranks
from fedsim.data.dataset import Ints


@dataclass(frozen=True, eq=False)
class Partition:
    """Examples grouped by client: each example belongs to exactly one.

    Attributes:
        order: shape (n,), example indices grouped by client, ascending within each.
        offsets: shape (clients + 1,); client c holds ``order[offsets[c]:offsets[c + 1]]``.
    """

    order: Ints
    offsets: Ints

    @classmethod
    def of(cls, owner: Ints, clients: int) -> Partition:
        """Group examples by their owner.

        Args:
            owner: shape (n,), the client of each example, in [0, clients).
            clients: number of clients; some may own nothing.
        """
        sizes = np.bincount(owner, minlength=clients)
        return cls(np.argsort(owner, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]))

    def __len__(self) -> int:
        """The number of clients."""
        return len(self.offsets) - 1

    def indices(self, client: int) -> Ints:
        """Return the ascending example indices of one client, from 0."""
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> Ints:
        """The number of examples of each client, shape (clients,)."""
        return np.diff(self.offsets)


def top_up(owner: Ints, clients: int, min_examples: int, rng: np.random.Generator) -> Ints:
    """Move examples so that every client owns ``min_examples`` or more; no more than needed move.

    Clients above the minimum give in proportion to what they have above it, and choose at random
    what they give. A receiver takes from one giver, or a few, so that its mix stays as uneven as
    theirs.

    Args:
        owner: shape (n,), the client of each example.
        clients: number of clients.
        min_examples: at least 0, and at most n / clients.
        rng: draws what is given.
    """
    above = np.bincount(owner, minlength=clients) - min_examples
    lacking = np.maximum(-above, 0)
    needed = int(lacking.sum())
    if not needed:
        return owner
    given = apportion(needed, np.maximum(above, 0))
    moved = np.flatnonzero(random_ranks(owner, rng) < given[owner])
    by_giver = moved[np.argsort(owner[moved], kind="stable")]
    topped_up = owner.copy()
    topped_up[by_giver] = np.repeat(np.arange(clients), lacking)
    return topped_up
