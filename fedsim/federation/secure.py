"""A cohort that is asked for the sum of its updates alone, by secure aggregation.

The protocol is :mod:`fedsim.privacy.secagg`; here its stages travel as Flower's messages, and what
comes of them becomes rows and a sum. Its docstring says what this protects against.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedsim.algorithms.sums import WeightedSum
from fedsim.errors import SecureAggregationAborted, SecureAggregationRefused
from fedsim.federation.asking import left_out_rows
from fedsim.federation.exchange import plain, send_and_receive
from fedsim.federation.replies import Judged
from fedsim.federation.wire import content_bytes, envelope_bytes, message_bytes
from fedsim.flower import METRICS, SECURE, Instruction, encode_instruction
from fedsim.measure.payload import dense_bytes, floating_names
from fedsim.privacy.secagg import FixedPoint, SecureSum, ServerSide, Session
from fedsim.privacy.secagg.graph import LEAST_COHORT
from fedsim.privacy.secagg.messages import (
    Advertisement,
    MaskedInput,
    SealedShares,
    Unmasking,
)
from fedsim.privacy.secagg.messages import Message as Stage
from fedsim.privacy.secagg.wire import pack, unpack
from fedsim.records import ClientRow

Arrays = Mapping[str, np.ndarray]
Reply = TypeVar("Reply", bound=Stage)
QUERY = f"query.{SECURE}"


@dataclass
class Bill:
    """What one client's messages came to."""

    uplink: int = 0
    downlink: int = 0
    wire: int | None = None  # of the masked update
    downlink_wire: int | None = None
    cpu_seconds: float | None = None
    problem: tuple[str, str] | None = None  # what became of it, and why


@dataclass
class Conversation:
    """The messages of one round, by client."""

    grid: Grid
    node_of: Callable[[int], int]
    round: int
    timeout_seconds: float
    bills: dict[int, Bill]
    waited_seconds: float = 0.0

    def ask(
        self,
        kind: type[Reply],
        requests: Mapping[int, Stage],
        *,
        content: RecordDict | None = None,
    ) -> list[Reply]:
        """Send each client its request; return the replies that can be read.

        Args:
            kind: what they are to be.
            requests: by client.
            content: of the training that goes with them, if it does.
        """
        trains = content is not None
        messages = {
            client: Message(
                RecordDict({**(content or {}), SECURE: ConfigRecord(pack(request))}),  # type: ignore[arg-type]
                self.node_of(client),
                MessageType.TRAIN if trains else QUERY,
                group_id=str(self.round),
            )
            for client, request in requests.items()
        }
        with self._waiting() if trains else nullcontext():
            came = send_and_receive(
                self.grid, list(messages.values()), timeout_seconds=self.timeout_seconds
            )
        by_message = {reply.metadata.reply_to_message_id: reply for reply in came}
        found: list[Reply] = []
        for client, message in messages.items():
            reply = by_message.get(message.metadata.message_id)
            self._bill(self.bills[client], message, reply, trains=trains)
            found += self._read(kind, client, reply)
        return found

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Time what is the clients' training, and no cost of the protocol."""
        begun = time.perf_counter()
        yield
        self.waited_seconds += time.perf_counter() - begun

    def _bill(self, bill: Bill, sent: Message, came: Message | None, *, trains: bool) -> None:
        down = envelope_bytes(sent) + content_bytes(sent)
        up = 0 if came is None or not came.has_content() else message_bytes(came)
        if trains:
            bill.downlink_wire, bill.wire = down, up or None
        else:
            bill.downlink, bill.uplink = bill.downlink + down, bill.uplink + up
        if up and came is not None and METRICS in came.content:
            spent = came.content.metric_records[METRICS].get("secure_cpu_seconds")
            if isinstance(spent, (int, float)) and 0 <= spent < float("inf"):
                bill.cpu_seconds = (bill.cpu_seconds or 0.0) + float(spent)

    def _read(self, kind: type[Reply], client: int, reply: Message | None) -> list[Reply]:
        """Return a client's reply, or note why there is none."""
        bill = self.bills[client]
        if reply is None:
            bill.problem = "timeout", f"no reply within {self.timeout_seconds:g} s"
        elif reply.has_error():
            reason = plain(reply.error.reason) or f"error code {reply.error.code}"
            bill.problem = "failed", reason
        else:
            try:
                read = unpack(kind, reply.content.config_records[SECURE])
                if read.client != client:
                    raise SecureAggregationRefused(f"it speaks in the name of client {read.client}")
                return [read]
            except (KeyError, SecureAggregationRefused) as problem:
                bill.problem = "rejected", plain(str(problem))
        return []


@dataclass(frozen=True, kw_only=True)
class SecureAsker:
    """Asks a cohort for the sum of its updates; see :class:`fedsim.federation.asking.Asker`.

    Attributes:
        run: bytes that no other start of a server has, to which keys and messages are bound.
        clients: how many the federation has, by which the fixed point is chosen: a cohort's size is
            drawn, and its step must not tell it.
        value_range: parts of an update beyond it are cut by the clients.
    """

    grid: Grid
    node_of: Callable[[int], int]
    timeout_seconds: float
    run: bytes
    clients: int
    value_range: float
    left_out: Mapping[int, str] = field(default_factory=dict)

    def __call__(
        self, instruction: Instruction, received: Arrays, arrays: Arrays, clients: Sequence[int]
    ) -> Judged:
        """See :class:`Asker`."""
        begun = time.perf_counter()
        present = [client for client in clients if client not in self.left_out]
        absent = left_out_rows(instruction.round, clients, self.left_out)
        if len(present) < LEAST_COHORT:
            return Judged(
                updates=[],
                clients=[*absent, *too_few_rows(instruction.round, present)],
                layers=[],
                total=WeightedSum(arrays={}, weight=0, clients=0),
                skipped=True,
            )
        talk = Conversation(
            grid=self.grid,
            node_of=self.node_of,
            round=instruction.round,
            timeout_seconds=self.timeout_seconds,
            bills={client: Bill() for client in present},
        )
        encoding = FixedPoint.fitting(value_range=self.value_range, clients=self.clients)
        size = sum(arrays[name].size for name in floating_names(arrays))
        server = ServerSide(
            Session(run=self.run, round=instruction.round),
            present,
            words=size + 1,
            word_bits=encoding.word_bits,
        )
        members: Collection[int] = ()
        total, ended = WeightedSum(arrays={}, weight=0, clients=0), None
        try:
            found = converse(talk, server, replace(instruction, secure_clients=self.clients))
            total, members = summed(found, encoding, arrays), found.clients
        except (SecureAggregationAborted, SecureAggregationRefused) as problem:
            ended = plain(str(problem))
            give_up(talk, ended)
        rows = rows_of(talk, server, members, dense_bytes(arrays), instruction.round)
        rows = sorted([*rows, *absent], key=lambda row: row.client)
        return Judged(
            updates=[],
            clients=rows,
            layers=[],
            total=total,
            ended=ended,
            secure_wall_seconds=time.perf_counter() - begun - talk.waited_seconds,
        )


def converse(talk: Conversation, server: ServerSide, instruction: Instruction) -> SecureSum:
    """Go through the four stages; the third one trains.

    Raises:
        SecureAggregationAborted: too few are left.
        SecureAggregationRefused: shares that do not open what they should.
    """
    keys = talk.ask(Advertisement, server.invite())
    shares = talk.ask(SealedShares, server.introduce(keys))
    content = encode_instruction(replace(instruction, clipping_norm=None))
    inputs = talk.ask(MaskedInput, server.deliver(shares), content=content)
    return server.unmask(talk.ask(Unmasking, server.request(inputs)))


def summed(total: SecureSum, encoding: FixedPoint, arrays: Arrays) -> WeightedSum:
    """Return the sum of the updates by array: exact, since it is one of whole numbers.

    Raises:
        SecureAggregationRefused: it cannot be one of updates, each counted once.
    """
    values, clients = encoding.decode(total.words)
    if clients != len(total.clients):
        raise SecureAggregationRefused(
            f"secure aggregation: {clients} updates are counted in a sum of {len(total.clients)}; "
            "a client sent something other than its update, and masks hide which"
        )
    flat, found, first = values * (1.0 / encoding.unit), dict[str, np.ndarray](), 0
    for name in floating_names(arrays):
        size, shape = arrays[name].size, arrays[name].shape
        found[name] = flat[first : first + size].reshape(shape)
        first += size
    return WeightedSum(arrays=found, weight=0, clients=clients, of_updates=True)


def give_up(talk: Conversation, reason: str) -> None:
    """Note why nobody's update could be used, but for those with a reason of their own."""
    for bill in talk.bills.values():
        bill.problem = bill.problem or ("failed", reason)


def rows_of(
    talk: Conversation, server: ServerSide, in_sum: Collection[int], dense: int, round: int
) -> list[ClientRow]:
    """Return the clients' rows: what was said of each, never what it trained on."""
    rows = []
    for client, bill in talk.bills.items():
        status, error = standing(bill, server.exchange.refused.get(client), client in in_sum)
        rows.append(
            ClientRow(
                round=round,
                client=client,
                dense_bytes=dense if client in in_sum else None,
                wire_bytes=bill.wire,
                downlink_dense_bytes=dense if bill.downlink_wire else None,
                downlink_wire_bytes=bill.downlink_wire,
                secure_uplink_bytes=bill.uplink,
                secure_downlink_bytes=bill.downlink,
                secure_cpu_seconds=bill.cpu_seconds,
                status=status,  # type: ignore[arg-type]
                error=error,
            )
        )
    return rows


def standing(bill: Bill, refused: str | None, in_sum: bool) -> tuple[str, str | None]:
    """Return what became of a client, and why; one in the sum may have failed afterwards."""
    if in_sum:
        return "ok", bill.problem[1] if bill.problem else None
    if refused:
        return "rejected", plain(refused)
    return bill.problem or ("failed", "left the protocol")


def too_few_rows(round: int, clients: Sequence[int]) -> list[ClientRow]:
    """Return the rows of a cohort that was drawn too small to hide in."""
    error = f"not asked: secure aggregation hides an update among {LEAST_COHORT} at least"
    return [
        ClientRow(round=round, client=client, status="failed", error=error) for client in clients
    ]
