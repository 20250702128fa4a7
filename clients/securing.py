"""A client's part in secure aggregation: it agrees on keys, masks its update, opens the sum.

Stages 0, 1 and 3 are queries of their own; stage 2 comes with the training, whose result leaves
masked. Between messages a client's side lives in Flower's context. What else a client would say of
its training (how many examples, how long, which loss) it keeps to itself: it would tell what the
masks hide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedsim import flower
from fedsim.config import Experiment
from fedsim.measure.bill import Bill
from fedsim.measure.payload import floating_names
from fedsim.privacy.secagg import ClientSide, FixedPoint, begin, from_state, to_state
from fedsim.privacy.secagg.messages import (
    Delivery,
    Invitation,
    Neighbourhood,
    UnmaskRequest,
)
from fedsim.privacy.secagg.messages import Message as Stage
from fedsim.privacy.secagg.wire import pack, unpack

Request = TypeVar("Request", bound=Stage)


def agree(message: Message, context: Context) -> Message:
    """Answer stage 0, 1 or 3.

    Raises:
        SecureAggregationRefused: the message is damaged, replayed, or asks for too much.
    """
    bill = Bill()
    with bill.clock("secure"):
        record = flower.record_of(message.content, flower.SECURE, ConfigRecord)
        kind, answer = STAGES[int(record["kind"])]  # type: ignore[arg-type]
        request = unpack(kind, record)
        side = side_of(context, request)
        reply = answer(side, request)
        keep(context, side)
    return secure_reply(reply, bill, to=message)


def encoding_of(experiment: Experiment, asked: flower.Instruction) -> FixedPoint:
    """Return the fixed point that all clients of the federation share.

    Raises:
        SecureAggregationRefused: the server does not say how many they are, or they do not fit.
    """
    return FixedPoint.fitting(
        value_range=experiment.privacy.value_range, clients=int(asked.secure_clients or 0)
    )


def send_masked(
    message: Message,
    context: Context,
    encoding: FixedPoint,
    asked: flower.Instruction,
    update: flower.Arrays,
) -> Message:
    """Answer stage 2: this client's update in fixed point, behind its masks."""
    bill = Bill()
    with bill.clock("secure"):
        record = flower.record_of(message.content, flower.SECURE, ConfigRecord)
        request = unpack(Delivery, record)
        names = floating_names(asked.arrays)
        flat = np.concatenate([np.asarray(update[n], np.float64).reshape(-1) for n in names])
        words, _ = encoding.encode(flat)
        side = from_state(state_of(context))
        reply = side.mask(request, words)
        keep(context, side)
    return secure_reply(reply, bill, to=message)


def secure_reply(reply: Stage, bill: Bill, *, to: Message) -> Message:
    """Return a message with a stage's answer, and what it took."""
    seconds = bill.at("light").get("secure_cpu_seconds")
    metrics = MetricRecord({} if seconds is None else {"secure_cpu_seconds": float(seconds)})
    records: dict[str, Any] = {
        flower.SECURE: ConfigRecord(pack(reply)),  # type: ignore[arg-type]
        flower.METRICS: metrics,
    }
    return Message(RecordDict(records), reply_to=to)


def side_of(context: Context, request: Stage) -> ClientSide:
    """Return this client's side: a new one for an invitation, else as it was left."""
    if isinstance(request, Invitation):
        known = flower.SECURE in context.state
        return begin(request, state_of(context) if known else None)
    return from_state(state_of(context))


def state_of(context: Context) -> dict[str, Any]:
    """Return what was kept.

    Raises:
        KeyError: nothing was.
    """
    return dict(context.state.config_records[flower.SECURE])


def keep(context: Context, side: ClientSide) -> None:
    """Keep a side until the next message; it holds secrets until the session ends."""
    context.state[flower.SECURE] = ConfigRecord(to_state(side))  # type: ignore[arg-type]


Answer = Callable[[ClientSide, Any], Stage]
STAGES: dict[int, tuple[type[Stage], Answer]] = {
    0: (Invitation, ClientSide.advertise),
    2: (Neighbourhood, ClientSide.share_keys),
    6: (UnmaskRequest, ClientSide.unmask),
}
