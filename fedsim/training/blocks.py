"""How a cohort is cut into blocks, and how the clients of a block are trained: fixed rules.

A rule sees the model, the recipe and the clients' sizes, never the machine: floating-point sums
depend on the blocks, and a run shall give the same bits on every machine.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

Ints = npt.NDArray[np.int64]

# Up to how many parameters clients train in step on a processor, and how many do. In step, small
# networks share what each operation costs by itself; larger ones keep a processor busy alone, and
# many at once only leave its caches. benchmarks/cohorts.py measures it.
TOGETHER = ((20_000, 32), (70_000, 16))
# On a GPU one client's products keep next to nothing busy; the bound is memory. (Not measured.)
TOGETHER_ON_GPU = ((20_000, 128), (5_000_000, 32))
# Clients of large networks that one call of a program takes one after another; of small networks
# it takes four times as many as go in step: a call has a price of its own.
CALL_LARGE, CALLS = 8, 4
# What a block of small networks should cost, in parameters x steps, so that its own price, some
# milliseconds, does not matter; and how many blocks a cohort then has, at most.
WORK, BLOCKS_SMALL = 2_500_000, 16
# Clients of large networks in a block, at most, and blocks that a cohort of such has, if it has so
# many clients.
MOST, BLOCKS = 16, 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How clients of a model are trained.

    Attributes:
        together: in step; or else one after another.
        lanes: clients that a program trains in step, or digests at once.
        call: clients that a call of the program takes, a multiple of ``lanes``.
        least, most: clients a block, where a cohort has so many.
        blocks: that a cohort has within these bounds, if each is worth ``work``.
        work: that a block should cost, in steps.
    """

    together: bool
    lanes: int
    call: int
    most: int
    blocks: int
    least: int = 1
    work: float = 0.0


def plan_for(model: nn.Module, *, vectorize: str = "auto", device: str = "cpu") -> Plan:
    """Return the plan for a model.

    Args:
        vectorize: ``auto`` for the rule, ``always`` for together, ``never`` for one after another.
        device: ``cpu`` or ``cuda``.
    """
    parameters = sum(p.numel() for p in model.parameters())
    table = TOGETHER if device == "cpu" else TOGETHER_ON_GPU
    fitting = next((lanes for most, lanes in table if parameters <= most), 0)
    convolves = any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in model.modules())
    together = vectorize == "always" or (vectorize == "auto" and fitting > 0 and not convolves)
    if together or (fitting and not convolves):
        lanes = fitting or table[-1][1]
        call = CALLS * lanes if fitting and device == "cpu" else lanes
        return Plan(
            together=together,
            lanes=lanes,
            call=call,
            most=2 * call,
            blocks=BLOCKS_SMALL,
            least=lanes,
            work=WORK / max(1, parameters),
        )
    return Plan(together=False, lanes=CALL_LARGE, call=CALL_LARGE, most=MOST, blocks=BLOCKS)


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
    count = -(-clients // size) if size else _count(steps, plan)
    if plan.together:
        ranked = np.argsort(-steps, kind="stable")
        groups = [np.sort(part) for part in np.array_split(ranked, count)]
    else:
        groups = _balanced(steps, count, most=size or clients)
    return sorted(groups, key=lambda group: int(group[0]))


def _count(steps: Ints, plan: Plan) -> int:
    """Return how many blocks a cohort is cut into.

    A power of two in between the bounds, which the cores of most machines share out evenly.
    """
    clients = len(steps)
    wanted = plan.blocks
    if plan.work:
        worth = max(float(steps.sum()) / plan.work, 2.0)  # two workers find something to do
        wanted = min(wanted, 2 ** round(math.log2(worth)))
    return max(-(-clients // plan.most), min(wanted, -(-clients // plan.least)))


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
