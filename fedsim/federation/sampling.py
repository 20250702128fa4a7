"""Which clients take part in a round, and where they are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsim.errors import RunFailed
from fedsim.flower import PARTITION
from fedsim.randomness import stream

POLL_SECONDS = 1.0

log = logging.getLogger("flwr.fedsim")


def choose_clients(seed: int, round: int, *, clients: int, cohort: int) -> list[int]:
    """Draw a cohort of distinct partition ids, in increasing order.

    The draw is keyed by seed and round, so it does not depend on node ids, on who answered
    before, or on whether the run was resumed.
    """
    chosen = stream(seed, "sampling", round=round).choice(clients, size=cohort, replace=False)
    chosen.sort()
    ids: list[int] = chosen.tolist()
    return ids


def locate_clients(grid: Grid, clients: int, *, timeout_seconds: float) -> Callable[[int], int]:
    """Return a function from partition id to node id, once every partition has a node.

    fedsim's grid knows its nodes. Any other (Flower's, whose node ids are random in every run)
    is asked with a query to each node, again and again until all partitions are there.

    Raises:
        RunFailed: partitions are still missing when the time is up.
    """
    node_of = getattr(grid, "node_of", None)
    if node_of is not None:
        return node_of  # type: ignore[no-any-return]
    found: dict[int, int] = {}
    deadline = time.monotonic() + timeout_seconds
    while True:
        nodes = [n for n in grid.get_node_ids() if n not in found.values()]
        found.update(ask_partitions(grid, nodes, timeout_seconds))
        missing = set(range(clients)) - found.keys()
        if not missing:
            return found.__getitem__
        log.info("waiting for %d of %d clients", len(missing), clients)
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{len(missing)} of {clients} clients never appeared (the first: partition "
                f"{min(missing)}); start as many nodes as data.clients, or set data.clients to "
                f"the {len(found)} that are there"
            )
        time.sleep(POLL_SECONDS)


def ask_partitions(grid: Grid, nodes: list[int], timeout_seconds: float) -> dict[int, int]:
    """Return the nodes that answered, by the partition that each holds."""
    asked = [Message(RecordDict(), node, f"query.{PARTITION}") for node in nodes]
    replies = grid.send_and_receive(asked, timeout=timeout_seconds) if asked else []
    node_by_message = {m.metadata.message_id: m.metadata.dst_node_id for m in asked}
    return {
        held_partition(reply): node_by_message[reply.metadata.reply_to_message_id]
        for reply in replies
        if reply.has_content()
    }


def held_partition(reply: Message) -> int:
    """Read which partition a node says that it holds."""
    return int(str(reply.content.config_records[PARTITION]["partition-id"]))
