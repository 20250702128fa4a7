"""How a cohort is cut into blocks, and how the clients of a block are trained: fixed rules.

A rule sees the model, the recipe and the clients' sizes, never the machine: floating-point sums
depend on the blocks, and a run shall give the same bits on every machine.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

Ints = npt.NDArray[np.int64]

# Parameters up to which clients train together on a processor. The parameters of all lanes then
# lie in its nearer caches; the products of larger networks keep it busy by themselves, and many
# such networks at once only leave the cache. benchmarks/cohorts.py measures it.
SMALL = 20_000
# On a GPU one client's products keep next to nothing busy; the bound is memory. (Not measured.)
SMALL_ON_GPU = 5_000_000
# Clients that train in step; also, that one call of a program takes one after another.
LANES = 32
# Clients a block, at most, of small networks and of large ones.
MOST_SMALL, MOST_LARGE = 2 * LANES, 16
# Blocks that a cohort of large networks has, if it has so many clients: they balance the workers.
BLOCKS = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How clients of a model are trained.

    Attributes:
        together: in step; or else one after another.
        lanes: clients that a program takes.
        most: clients a block.
        blocks: that a cohort has, if it has so many clients.
    """

    together: bool
    lanes: int
    most: int
    blocks: int


def plan_for(model: nn.Module, *, vectorize: str = "auto", device: str = "cpu") -> Plan:
    """Return the plan for a model.

    Args:
        vectorize: ``auto`` for the rule, ``always`` for together, ``never`` for one after another.
        device: ``cpu`` or ``cuda``.
    """
    parameters = sum(p.numel() for p in model.parameters())
    small = parameters <= (SMALL if device == "cpu" else SMALL_ON_GPU)
    convolves = any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in model.modules())
    together = small and not convolves if vectorize == "auto" else vectorize == "always"
    return Plan(
        together=together,
        lanes=LANES if small or together else 1,
        most=MOST_SMALL if small else MOST_LARGE,
        blocks=1 if small else BLOCKS,
    )


def cut_blocks(steps: Ints, *, plan: Plan, size: int = 0) -> list[Ints]:
    """Return the positions of each block's clients, ascending; blocks by their first position.

    Blocks cost about the same. Where clients train in step, a block costs its longest client, so
    that clients of like length go together; elsewhere it costs the sum.

    Args:
        steps: (clients,), of each client, see :func:`fedsim.training.orders.steps_of`.
        plan: see :func:`plan_for`.
        size: clients a block, at most; 0 for the plan.
    """
    clients = len(steps)
    if not clients:
        return []
    count = -(-clients // (size or plan.most))
    if not size:
        count = max(count, min(plan.blocks, clients))
    if plan.together:
        ranked = np.argsort(-steps, kind="stable")
        groups = [np.sort(part) for part in np.array_split(ranked, count)]
    else:
        groups = _balanced(steps, count, most=size or clients)
    return sorted(groups, key=lambda group: int(group[0]))


def _balanced(steps: Ints, count: int, *, most: int) -> list[Ints]:
    """Deal clients, the longest first, each to the block that has the least to do (Graham, 1969).

    Args:
        most: clients that a block takes.
    """
    loads = [(0, block) for block in range(count)]
    groups: list[list[int]] = [[] for _ in range(count)]
    for client in np.argsort(-steps, kind="stable").tolist():
        load, block = heapq.heappop(loads)
        groups[block].append(client)
        if len(groups[block]) < most:
            heapq.heappush(loads, (load + int(steps[client]), block))
    return [np.sort(np.array(group, np.int64)) for group in groups if group]
