"""What hostile clients make of their updates before they send them.

With w the model that came and w_i what training made of it, a hostile client sends::

    w + factor (w_i - w)

The factor is -1 where it turns its update around, and large where it wants to be heard above the
others: with factor n / eta the mean of n clients becomes the model of one (Bagdasaryan et al. 2020,
"How To Backdoor Federated Learning", equation 3).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, np.ndarray]


def factor_of(kind: str, scale: float) -> float:
    """Return what a hostile client multiplies its update by; 1: it sends what it trained.

    Args:
        kind: as in ``adversary.kind``.
        scale: as in ``adversary.scale``.
    """
    return {"sign_flip": -1.0, "scaled": scale, "backdoor": scale}.get(kind, 1.0)


def multiplied(
    start: Arrays, stacks: Arrays, factors: npt.NDArray[np.float64]
) -> dict[str, np.ndarray]:
    """Return clients' models with their updates multiplied; where that is by 1, not a bit changes.

    Args:
        start: the model that all started from.
        stacks: by name, (clients, \\*shape), theirs; they are left as they are. Whole numbers, such
            as counts of batches, stay.
        factors: (clients,).
    """
    places = np.flatnonzero(factors != 1)
    changed = {}
    for name, stack in stacks.items():
        changed[name] = stack
        if stack.dtype.kind == "f" and len(places):
            old, new = start[name].astype(np.float64), np.array(stack)
            with np.errstate(over="ignore", invalid="ignore"):  # an infinity is refused as ever
                for place in places:
                    new[place] = old + factors[place] * (new[place] - old)
            changed[name] = new
    return changed
