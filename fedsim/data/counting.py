"""Exact division of whole numbers, and random ranks: what splits and partitions are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.data.dataset import Ints


def apportion(total: int, weights: npt.NDArray[Any]) -> Ints:
    """Divide ``total`` in proportion to ``weights``, by Hamilton's largest remainders.

    Each share is its exact quota rounded down or up, so whole-number weights that sum to at least
    ``total`` bound the shares; the shares sum to ``total``. Ties go to the lower index.

    Args:
        total: what is divided, at least 0.
        weights: shape (k,), at least 0, with a positive sum.
    """
    quota = total * weights / weights.sum()
    shares: Ints = np.floor(quota).astype(np.int64)
    leftover = total - int(shares.sum())
    shares[np.argsort(shares - quota, kind="stable")[:leftover]] += 1
    return shares


def random_ranks(groups: Ints, rng: np.random.Generator) -> Ints:
    """Rank each element within its group, from 0, in random order.

    Args:
        groups: shape (n,), the group of each element, from 0.
        rng: one permutation of n is drawn.
    """
    shuffled = rng.permutation(len(groups))
    grouped = shuffled[np.argsort(groups[shuffled], kind="stable")]
    sizes = np.bincount(groups)
    ranks = np.empty(len(groups), np.int64)
    ranks[grouped] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks
