"""How well scores tell members from others: area under the curve, and the curve's foot."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def auc(scores: Floats, members: Bools) -> float:
    """Return the probability that a member scores above another, ties counting half.

    By ranks (Mann and Whitney, 1947): (sum of the members' ranks - n (n + 1) / 2) / (n m).

    Args:
        scores: (k,), higher for a likely member.
        members: (k,), with some of both.
    """
    from scipy.stats import rankdata

    n = int(members.sum())
    ranks = float(rankdata(scores)[members].sum())
    return (ranks - n * (n + 1) / 2) / (n * (len(members) - n))


def tpr_at_fpr(scores: Floats, members: Bools, rate: float) -> float:
    """Return the largest share of members found while at most ``rate`` of the others are accused.

    Whoever scores at least a threshold is accused; no interpolation between thresholds.

    Args:
        scores, members: as in :func:`auc`.
        rate: in [0, 1).
    """
    others = np.sort(scores[~members])[::-1]
    allowed = int(rate * len(others) + 1e-9)
    return float(np.mean(scores[members] > others[allowed]))
