"""Judge what came back: which updates may be aggregated, and a row for every client asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict

from fedsim.flower import (
    ARRAYS,
    CONTROL,
    LAYER_NORMS,
    METRICS,
    WEIGHT,
    Instruction,
    decode_arrays,
)
from fedsim.records import ClientRow, LayerRow

Arrays = Mapping[str, np.ndarray]

# What a client reports, the ledger's columns: counts with the smallest that makes sense, amounts,
# and what may be any number, since it is not finite where training diverged.
COUNTS = {WEIGHT: 1, "steps": 1, "dense_bytes": 0}
AMOUNTS = ("cpu_seconds", "wall_seconds")
NUMBERS = ("loss_first_step", "loss_last_step", "update_norm")
INITIAL_LOSS = "initial_loss"  # an amount, where it was asked for
KNOWN = {*COUNTS, *AMOUNTS, *NUMBERS, INITIAL_LOSS, LAYER_NORMS}
LARGEST_COUNT = 2**63 - 1  # that the ledger can store


class Rejected(Exception):
    """This update must not be aggregated; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """An accepted update: arrays of the expected names, shapes and dtypes, all finite."""

    client: int
    reply: Message
    arrays: Arrays
    metrics: MetricRecord
    control_change: Arrays | None

    @property
    def examples(self) -> int:
        """The client's examples, which Flower's strategies weigh it by."""
        return int(self.metrics[WEIGHT])  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A cohort's answers, in the order of the clients."""

    updates: list[Update]
    clients: list[ClientRow]
    layers: list[LayerRow]


def judge(
    instruction: Instruction,
    *,
    asked: Mapping[int, Message],
    replies: Iterable[Message],
    timeout_seconds: float,
) -> Judged:
    """Accept or reject each client's answer, and record it either way.

    Replies are matched to clients by the message that they answer: Flower gives the reply in the
    name of a dead node another node's id.

    Args:
        instruction: what the clients were asked. An update has the names, shapes and dtypes of its
            model; where it sent a control variate, a second set of such arrays is due (SCAFFOLD).
        asked: the messages that were sent, by client, in the order of the clients.
        replies: what came back, in any order.
        timeout_seconds: how long was waited, for the text.
    """
    by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
    judged = Judged(updates=[], clients=[], layers=[])
    round = instruction.round
    for client, message in asked.items():
        reply = by_message.get(message.metadata.message_id)
        if reply is None:
            error = f"no reply within {timeout_seconds:g} s"
            judged.clients.append(
                ClientRow(round=round, client=client, status="timeout", error=error)
            )
        elif reply.has_error():
            error = reply.error.reason or f"error code {reply.error.code}"
            judged.clients.append(
                ClientRow(round=round, client=client, status="failed", error=error)
            )
        else:
            judge_content(judged, instruction, client, reply)
    return judged


def judge_content(judged: Judged, instruction: Instruction, client: int, reply: Message) -> None:
    """Add one client's answer to the judged: its row, and its update if it is acceptable."""
    round, like, content = instruction.round, instruction.arrays, reply.content
    metrics: MetricRecord | None = None
    try:
        metrics = read_metrics(content, with_initial_loss=instruction.initial_loss)
        arrays = read_arrays(content, ARRAYS, like)
        change = None if instruction.control is None else read_arrays(content, CONTROL, like)
    except Rejected as reason:
        row = client_row(round, client, metrics, status="rejected", error=str(reason))
        judged.clients.append(row)
        return
    extra = sorted(set(metrics) - KNOWN)
    note = f"ignored metrics: {', '.join(extra)}" if extra else None
    judged.updates.append(
        Update(client=client, reply=reply, arrays=arrays, metrics=metrics, control_change=change)
    )
    judged.clients.append(client_row(round, client, metrics, status="ok", error=note))
    judged.layers.extend(layer_rows(round, client, metrics, like))


def read_metrics(content: RecordDict, *, with_initial_loss: bool) -> MetricRecord:
    """Return the client's figures, each present and possible.

    Raises:
        Rejected: naming the figure.
    """
    if METRICS not in content.metric_records:
        raise Rejected(f"the reply has no {METRICS!r} record")
    metrics = content.metric_records[METRICS]
    amounts = (*AMOUNTS, INITIAL_LOSS) if with_initial_loss else AMOUNTS
    for name in (*COUNTS, *amounts, *NUMBERS):
        value = metrics.get(name)
        if not isinstance(value, (int, float)):
            raise Rejected(f"metric {name} is {'missing' if value is None else repr(value)}")
        if name in COUNTS and not (COUNTS[name] <= value <= LARGEST_COUNT and value == int(value)):
            raise Rejected(f"metric {name} = {value} is not a count of at least {COUNTS[name]}")
        if name in amounts and not (math.isfinite(value) and value >= 0):
            raise Rejected(f"metric {name} = {value} is not a finite amount")
    return metrics


def read_arrays(content: RecordDict, record: str, like: Arrays) -> dict[str, np.ndarray]:
    """Return the arrays of one record, in the model's order.

    Raises:
        Rejected: other names, shapes or dtypes than the model's, or a value that is not finite.
    """
    if record not in content.array_records:
        raise Rejected(f"the reply has no {record!r} record")
    received = content.array_records[record]
    if set(received) != set(like):
        missing, extra = sorted(set(like) - set(received)), sorted(set(received) - set(like))
        raise Rejected(f"{record}: wrong names; missing {missing}, unknown {extra}")
    try:
        arrays = decode_arrays({name: received[name] for name in like})
    except Exception as error:  # NumPy's reader raises what it trips over, MemoryError included
        raise Rejected(f"{record}: cannot be decoded: {error}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # an .npz archive, which NumPy's reader takes too
            raise Rejected(f"{record}: {name} is not an array")
        if array.shape != like[name].shape:
            raise Rejected(f"{record}: {name} has shape {array.shape}, not {like[name].shape}")
        if array.dtype != like[name].dtype:
            raise Rejected(f"{record}: {name} has dtype {array.dtype}, not {like[name].dtype}")
        if not np.isfinite(array).all():
            kind = "NaN" if np.isnan(array).any() else "infinity"
            remedy = "if training diverged, lower train.learning_rate"
            raise Rejected(f"{record}: {name} holds {kind} ({remedy})")
    return arrays


def client_row(
    round: int, client: int, metrics: MetricRecord | None, *, status: str, error: str | None
) -> ClientRow:
    """Return the ledger's row; figures stay empty where the client gave none."""
    figures: dict[str, int | float] = {}
    if metrics is not None:
        figures = {name: metrics[name] for name in (*AMOUNTS, *NUMBERS)}  # type: ignore[misc]
        figures |= {"steps": int(metrics["steps"]), "dense_bytes": int(metrics["dense_bytes"])}  # type: ignore[arg-type]
        figures["examples"] = int(metrics[WEIGHT])  # type: ignore[arg-type]
    return ClientRow(round=round, client=client, status=status, error=error, **figures)  # type: ignore[arg-type]


def layer_rows(round: int, client: int, metrics: MetricRecord, like: Arrays) -> Sequence[LayerRow]:
    """Return a row per array, where the client reported norms (``measure.level = "full"``)."""
    norms = metrics.get(LAYER_NORMS)
    if not isinstance(norms, list) or len(norms) != len(like):
        return []
    return [
        LayerRow(
            round=round, client=client, layer=name, parameters=array.size, update_norm=float(norm)
        )
        for (name, array), norm in zip(like.items(), norms, strict=True)
    ]
