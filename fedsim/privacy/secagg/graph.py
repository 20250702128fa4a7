"""Who shares masks with whom: a regular graph of as few neighbours as the assumptions allow.

With n clients on a ring, in random order, each is a neighbour of the k/2 next ones on either side
(a Harary graph; Bell et al. 2020, section 3). A client's neighbours hold shares of its secrets, and
t of them recover one. What is wanted, and how k and t follow, with g = floor(colluding * n) clients
that tell the server what they know, d = floor(dropping * n) that vanish, both chosen without
knowledge of the graph, sigma = ``security_bits`` and eta = ``correctness_bits``:

1. *No secret is known to those who collude.* The colluding among k neighbours are hypergeometric:
   n * P[Hyp(n - 1, g, k) >= t] <= 2^-sigma.
2. *The honest and present hang together*, so that their masks hide all but their sum. A ring breaks
   only where two runs of k/2 clients are gone, of n^2 / 2 pairs of runs:
   n^2 / 2 * ((g + d) / n)^k <= 2^-sigma.
3. *Enough shares are left*: n * P[Hyp(n - 1, n - 1 - d, k) < t] <= 2^-eta.
4. *t > k / 2*, so that no two disjoint groups of neighbours can recover both secrets of a client,
   each believing the other was asked for nothing.

The smallest even k is taken, with the smallest t. Up to 30 clients, and where no such k exists, all
are neighbours of all, t is a majority of them, and what holds is plain: fewer than t colluding
neighbours learn nothing, and up to n - 1 - t may vanish.

The default of a tenth each is a choice. For n = 100 it gives k = 24 and t = 13; with a fifth each,
k = 42 and t = 22 (twice the work), and with a third each, k = 88 and t = 45.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from math import comb

from fedsim.errors import SecureAggregationRefused

LEAST_COHORT = 3  # of two, each would know the other's vector from the sum
COMPLETE_UP_TO = 30


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the graph withstands: shares of the clients, but for a probability of 2^-bits."""

    colluding: float = 0.1
    dropping: float = 0.1
    security_bits: int = 40
    correctness_bits: int = 30

    def __post_init__(self) -> None:
        if min(self.colluding, self.dropping) < 0 or not self.colluding + self.dropping < 1:
            raise SecureAggregationRefused(
                f"colluding = {self.colluding}, dropping = {self.dropping}: shares of the clients, "
                "which together stay below 1"
            )


@dataclass(frozen=True, kw_only=True)
class Degree:
    """k and t: the neighbours of a client, and how many of them recover its secrets."""

    neighbours: int
    threshold: int


@lru_cache
def degree(clients: int, assumptions: Assumptions) -> Degree:
    """Return k and t for so many clients.

    Raises:
        SecureAggregationRefused: fewer than 3 clients.
    """
    if clients < LEAST_COHORT:
        raise SecureAggregationRefused(
            f"a cohort of {clients}: from its sum the server, or one of two clients, would know a "
            f"single update; secure aggregation takes at least {LEAST_COHORT} clients a round"
        )
    if clients > COMPLETE_UP_TO:
        for neighbours in range(2, clients - 1, 2):
            if threshold := _threshold(clients, neighbours, assumptions):
                return Degree(neighbours=neighbours, threshold=threshold)
    return Degree(neighbours=clients - 1, threshold=(clients - 1) // 2 + 1)


def draw_graph(clients: Collection[int], neighbours: int) -> dict[int, tuple[int, ...]]:
    """Return each client's neighbours, in the order of their ids; the ring's order is secure.

    Args:
        clients: distinct ids.
        neighbours: k: even, or one less than there are clients.
    """
    ring = secrets.SystemRandom().sample(sorted(clients), len(clients))
    if neighbours == len(ring) - 1:
        return {one: tuple(sorted(set(ring) - {one})) for one in ring}
    steps = [step for side in range(1, neighbours // 2 + 1) for step in (side, -side)]
    return {
        one: tuple(sorted(ring[(place + step) % len(ring)] for step in steps))
        for place, one in enumerate(ring)
    }


def _threshold(clients: int, neighbours: int, assumptions: Assumptions) -> int:
    """Return the smallest t that keeps all four rules, 0 if there is none."""
    colluding = int(assumptions.colluding * clients)
    dropping = int(assumptions.dropping * clients)
    insecure, incorrect = 2.0**-assumptions.security_bits, 2.0**-assumptions.correctness_bits
    gone = (colluding + dropping) / clients
    if clients**2 / 2 * gone**neighbours > insecure:
        return 0
    known = _chances(clients - 1, colluding, neighbours)
    left = _chances(clients - 1, clients - 1 - dropping, neighbours)
    for threshold in range(neighbours // 2 + 1, neighbours + 1):
        if clients * sum(known[threshold:]) <= insecure:
            return threshold if clients * sum(left[:threshold]) <= incorrect else 0
    return 0


def _chances(population: int, marked: int, drawn: int) -> list[float]:
    """Return the hypergeometric probabilities of 0, 1, ..., ``drawn`` marked ones among them."""
    ways = comb(population, drawn)
    return [
        comb(marked, found) * comb(population - marked, drawn - found) / ways
        for found in range(drawn + 1)
    ]
