"""Which clients take part in a round, and where they are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.data import Form
from fedsim.errors import RunFailed
from fedsim.federation.exchange import knows_its_nodes, plain, send_and_receive
from fedsim.flower import PARTITION
from fedsim.privacy.noise import NoiseSource
from fedsim.randomness import stream

POLL_SECONDS = 1.0
NAMED = "server.left_out names it"

log = logging.getLogger("flwr.fedsim")


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where a federation's clients are.

    Attributes:
        node_of: from partition id to node id, of those that are not left out.
        left_out: clients whose nodes have no data to train on, and why; they are never asked.
        sizes: (clients,), the examples that each says it holds, 0 for those left out; None where
            the grid knows its nodes, so that nobody was asked.
    """

    node_of: Callable[[int], int]
    left_out: Mapping[int, str] = field(default_factory=dict)
    sizes: npt.NDArray[np.int64] | None = None


def choose_clients(seed: int, round: int, *, clients: int, cohort: int) -> list[int]:
    """Draw a cohort of distinct partition ids, in increasing order.

    The draw is keyed by seed and round, so it does not depend on node ids, on who answered
    before, or on whether the run was resumed.
    """
    chosen = stream(seed, "sampling", round=round).choice(clients, size=cohort, replace=False)
    chosen.sort()
    ids: list[int] = chosen.tolist()
    return ids


def draw_clients(source: NoiseSource, *, clients: int, probability: float) -> list[int]:
    """Draw each client by itself (Poisson sampling), in increasing order; perhaps nobody.

    What makes this a sampling that privacy accountants know is that no draw depends on another,
    and that nobody else knows them.
    """
    return [int(client) for client in np.flatnonzero(source.bernoulli(probability, clients))]


def locate_clients(
    grid: Grid,
    clients: int,
    *,
    form: Form,
    timeout_seconds: float,
    absent: Collection[int] = (),
) -> Whereabouts:
    """Return where the clients are, once every partition has a node that answered for it.

    fedsim's grid knows its nodes. Any other (Flower's, whose node ids are random in every run)
    is asked with a query to each node, again and again until all partitions are there. A node
    also says whether its data can be used: if not, its client is left out, and not waited for.

    Args:
        grid: where the nodes are.
        clients: how many there have to be.
        form: that their examples must have.
        timeout_seconds: how long to wait for a node's answer, and for partitions to appear.
        absent: clients that the experiment leaves out, whatever their nodes say.

    Raises:
        RunFailed: partitions are still missing when the time is up, or no client has usable data.
    """
    if knows_its_nodes(grid):
        named = dict.fromkeys(absent, NAMED)
        return Whereabouts(node_of=grid.node_of, left_out=named)  # type: ignore[attr-defined]
    roll = RollCall(clients, absent)
    deadline = time.monotonic() + timeout_seconds
    while True:
        nodes = [n for n in grid.get_node_ids() if n not in roll.heard]
        for node, reply in ask_partitions(grid, nodes, form, timeout_seconds):
            roll.take(node, reply)
        missing = set(range(clients)) - roll.node_of.keys() - roll.left_out.keys()
        if not missing:
            return roll.whereabouts()
        log.info("waiting for %d of %d clients", len(missing), clients)
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{len(missing)} of {clients} clients never appeared (the first: partition "
                f"{min(missing)}); start as many nodes as data.clients, or set data.clients to "
                f"the {clients - len(missing)} that are there"
            )
        time.sleep(POLL_SECONDS)


class RollCall:
    """Who has answered for which partition; what is out of order is logged and goes no further.

    Attributes:
        node_of: by partition, the node that holds it: the first with usable data.
        left_out: by partition, why its node has no data to train on.
        heard: nodes that need not be asked again.
    """

    def __init__(self, clients: int, absent: Collection[int] = ()) -> None:
        self.node_of: dict[int, int] = {}
        self.left_out: dict[int, str] = dict.fromkeys(absent, NAMED)
        self._absent = frozenset(absent)
        self.heard: set[int] = set()
        self._clients = clients
        self._sizes = np.zeros(clients, np.int64)
        self._failing: dict[int, str] = {}  # by node, what was logged

    def take(self, node: int, reply: Message) -> None:
        """Take down what a node answered."""
        if not reply.has_content():  # it may be starting: it is asked again
            reason = plain(reply.error.reason) or f"error code {reply.error.code}"
            if self._failing.get(node) != reason:
                log.warning("node %d does not say what it holds: %s", node, reason)
            self._failing[node] = reason
            return
        self.heard.add(node)
        try:
            client, examples, problem = read_inventory(reply)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("node %d is ignored: its answer cannot be read: %r", node, error)
            return
        if not 0 <= client < self._clients:
            text = "node %d is ignored: it has partition-id=%d, and data.clients = %d"
            log.warning(text, node, client, self._clients)
        elif client in self._absent:
            log.info("node %d is not asked: client %d is in server.left_out", node, client)
        elif client in self.node_of:
            text = "node %d is ignored: partition %d is at node %d; give every node its own"
            log.warning(text, node, client, self.node_of[client])
        elif problem:
            log.warning("client %d (node %d) is left out: %s", client, node, problem)
            self.left_out[client] = problem
        else:
            self.left_out.pop(client, None)
            self.node_of[client], self._sizes[client] = node, examples

    def whereabouts(self) -> Whereabouts:
        """Return what was found, once no partition is missing.

        Raises:
            RunFailed: no client has usable data.
        """
        if not self.node_of:
            reasons = list(self.left_out.values())
            common = max(set(reasons), key=reasons.count)
            raise RunFailed(
                f"none of {self._clients} clients has usable data; {reasons.count(common)} x "
                f"{common}"
            )
        return Whereabouts(
            node_of=self.node_of.__getitem__, left_out=self.left_out, sizes=self._sizes
        )


def ask_partitions(
    grid: Grid, nodes: Sequence[int], form: Form, timeout_seconds: float
) -> list[tuple[int, Message]]:
    """Return what nodes answer, in the order in which they are given.

    Nodes are told apart by the message that they answer: an error about a dead node comes in the
    name of another.
    """
    content = RecordDict({PARTITION: ConfigRecord(form.values())})
    asked = [Message(content, node, f"query.{PARTITION}") for node in nodes]
    if not asked:
        return []
    replies = send_and_receive(grid, asked, timeout_seconds=timeout_seconds)
    by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
    answers = [
        (node, by_message.get(message.metadata.message_id))
        for node, message in zip(nodes, asked, strict=True)
    ]
    return [(node, reply) for node, reply in answers if reply is not None]


def read_inventory(reply: Message) -> tuple[int, int, str]:
    """Return the partition that a node holds, its examples, and why they cannot be used.

    Raises:
        KeyError, TypeError, ValueError: the answer does not say.
    """
    held = reply.content.config_records[PARTITION]
    client, problem = int(str(held["partition-id"])), plain(str(held.get("problem", "")))
    if problem:
        return client, 0, problem
    examples = held["examples"]
    if not isinstance(examples, int) or not 1 <= examples < 2**40:
        raise ValueError(f"it claims to hold {examples!r} examples")
    return client, examples, ""
