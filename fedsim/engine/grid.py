"""Flower's Grid over an executor: message ids, node ids, client state, order, deadlines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedsim.engine.apps import assume_identity
from fedsim.engine.cohort import Block, Cohort, Reply, Setting, Usage, metadata_of
from fedsim.engine.executor import Executor, Job
from fedsim.engine.worker import client_context, delivered


class SimulationGrid(Grid):
    """A federation of ``nodes`` simulated clients.

    Node ids are partition-id + 1. Replies come back in the order in which their messages were
    pushed, whichever client finished first. ``client_states`` is what the clients keep in
    ``Context.state``; it stays here, so it survives workers, and a run can store it.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        nodes: int,
        run_config: Mapping[str, object] | None = None,
        seed: int = 0,
        run_id: int = 1,
    ) -> None:
        self._executor = executor
        self._nodes = nodes
        self._run = Run.create_empty(run_id)
        self._run_config = dict(run_config or {})
        self._seed = seed
        self._pushed = 0
        self._order: dict[str, int] = {}  # message id -> when it was pushed
        self._waiting: dict[str, Message] = {}  # pushed, no reply yet
        self._replies: dict[str, Message] = {}  # replied, not pulled yet
        self.client_states: dict[int, RecordDict] = {}
        assume_identity(run_id)

    def set_run(self, run: Run) -> None:
        """Take over Flower's description of the run."""
        self._run = run
        assume_identity(run.run_id)

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message (Flower's older way; ``Message(...)`` does the same)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, 1 to the number of nodes."""
        return range(1, self._nodes + 1)

    def node_of(self, partition_id: int) -> int:
        """Return the node that holds a partition."""
        return partition_id + 1

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the executor and return their ids."""
        ids: list[str] = []
        jobs: list[Job] = []
        for message in messages:
            self._pushed += 1
            message_id = f"{self._run.run_id}-{self._pushed}"
            message.metadata.__dict__["_message_id"] = message_id
            ids.append(message_id)
            self._order[message_id] = self._pushed
            if 1 <= message.metadata.dst_node_id <= self._nodes:
                self._waiting[message_id] = message
                jobs.append(self._job(message))
            else:
                self._replies[message_id] = self._unknown_node(message)
        self._executor.submit(jobs)
        return ids

    def _job(self, message: Message) -> Job:
        node_id = message.metadata.dst_node_id
        context = client_context(
            run_id=self._run.run_id,
            node_id=node_id,
            nodes=self._nodes,
            state=self.client_states.get(node_id) or RecordDict(),
            run_config=self._run_config,
        )
        return Job(message, context, self._seed)

    def _unknown_node(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        reason = f"node {node_id}: unknown; this federation has nodes 1 to {self._nodes}"
        return Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason=reason), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, without waiting for more."""
        wanted = set(message_ids)
        if wanted & self._waiting.keys():
            self._collect(deadline=time.monotonic())
        return self._take(wanted)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and return the replies that come before the timeout.

        A client that has not answered by then is given up: it will not be running when the next
        round starts, and its late reply is never seen.
        """
        self._executor.wait_ready()  # starting is nobody's fault: the time counts from here
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        wanted = set(self.push_messages(messages))
        while (missing := wanted & self._waiting.keys()) and time.monotonic() <= deadline:
            self._collect(deadline)
        if missing:
            self._executor.abandon(missing)
            for message_id in missing:
                del self._waiting[message_id]
                del self._order[message_id]
        return self._take(wanted)

    def _collect(self, deadline: float) -> None:
        for outcome in self._executor.collect(deadline):
            message = self._waiting.pop(outcome.message_id, None)
            if message is None:
                continue  # abandoned in the meantime
            self._replies[outcome.message_id] = outcome.reply
            # A client that failed keeps the state it had: it will be asked again from there.
            if outcome.reply.has_content() and outcome.state:
                self.client_states[message.metadata.dst_node_id] = outcome.state

    def _take(self, wanted: set[str]) -> list[Message]:
        ready = sorted(wanted & self._replies.keys(), key=self._order.__getitem__)
        for message_id in ready:
            del self._order[message_id]
        return [self._replies.pop(message_id) for message_id in ready]

    @property
    def offers_cohorts(self) -> bool:
        """Whether the ClientApp takes blocks of clients (``@app.train("cohort")``)."""
        return self._executor.offers_cohorts

    @property
    def usage(self) -> Usage | None:
        """What became of the workers' time in the last cohort; None before the first."""
        return self._executor.usage

    def send_cohort(
        self,
        content: RecordDict,
        blocks: Sequence[Block],
        *,
        timeout: float | None = None,
        each: Callable[[int, list[Message]], None] | None = None,
    ) -> list[list[Message]]:
        """Let the ClientApp train blocks of clients; return each block's reply, in parts.

        A block's message carries ``content`` and a ConfigRecord ``cohort`` with its
        ``partition-ids``. Its context is that of the block's first client, with an empty state.

        Args:
            content: what all blocks share.
            blocks: who is asked; clients are partition ids of this federation.
            timeout: seconds until the blocks that have not answered are given up.
            each: is given the place of each block and the parts of its reply as soon as they are
                there, in any order; they are not kept then, and the lists returned are empty.

        Returns:
            For each block, in the order given: one message where all went well; one for each of
            its clients, in their order, where it had to be split, because its app raised or its
            worker died; none where it was missed at the deadline.

        Raises:
            ValueError: a block is empty, or names a client that is not there.
        """
        self._check(blocks)
        self._executor.wait_ready()
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        numbers = []
        for block in blocks:
            numbers.append(self._pushed + 1)
            self._pushed += len(block.clients)
        setting = Setting(self._run.run_id, self._nodes, self._seed, self._run_config)
        replies: list[list[Message]] = [[] for _ in blocks]

        def answer(i: int, parts: list[Reply]) -> None:
            (each or replies.__setitem__)(i, _messages(blocks[i], numbers[i], parts, setting))

        self._executor.run_cohort(Cohort(content, blocks, numbers, setting, answer), deadline)
        return replies

    def _check(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            if not block.clients:
                raise ValueError("a block without clients")
            if not 0 <= min(block.clients) <= max(block.clients) < self._nodes:
                raise ValueError(
                    f"clients {block.clients}: this federation has clients 0 to {self._nodes - 1}"
                )


def _messages(block: Block, number: int, parts: Sequence[Reply], setting: Setting) -> list[Message]:
    """Wrap a block's replies: those of single clients answer the clients' own numbers."""
    return [
        Message(
            part, reply_to=delivered(metadata_of(setting, number + place, client), RecordDict())
        )
        for place, (client, part) in enumerate(zip(block.clients, parts, strict=False))
    ]
