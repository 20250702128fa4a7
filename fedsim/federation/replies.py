"""Judge what came back: which updates may be aggregated, and a row for every client asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict

from fedsim.flower import ARRAYS, CONTROL, LAYER_NORMS, METRICS, WEIGHT, decode_arrays
from fedsim.records import ClientRow, LayerRow

Arrays = Mapping[str, np.ndarray]

# What a client reports, with the smallest value that makes sense; the ledger's columns.
COUNTS = {WEIGHT: 1, "steps": 1, "dense_bytes": 0}
AMOUNTS = {"cpu_seconds": 0.0, "wall_seconds": 0.0, "update_norm": 0.0}
LOSSES = ("loss_first_step", "loss_last_step")
INITIAL_LOSS = "initial_loss"
KNOWN = {*COUNTS, *AMOUNTS, *LOSSES, INITIAL_LOSS, LAYER_NORMS}


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
    round: int,
    *,
    asked: Mapping[int, Message],
    replies: Iterable[Message],
    like: Arrays,
    with_control: bool,
    timeout_seconds: float,
) -> Judged:
    """Accept or reject each client's answer, and record it either way.

    Replies are matched to clients by the message that they answer: Flower gives the reply in the
    name of a dead node another node's id.

    Args:
        round: the round, for the rows.
        asked: the messages that were sent, by client, in the order of the clients.
        replies: what came back, in any order.
        like: the global model, whose names, shapes and dtypes an update must have.
        with_control: a second set of such arrays is due (SCAFFOLD).
        timeout_seconds: how long was waited, for the text.
    """
    by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
    judged = Judged(updates=[], clients=[], layers=[])
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
            judge_content(judged, round, client, reply, like, with_control)
    return judged


def judge_content(
    judged: Judged, round: int, client: int, reply: Message, like: Arrays, with_control: bool
) -> None:
    """Add one client's answer to the judged: its row, and its update if it is acceptable."""
    metrics: MetricRecord | None = None
    try:
        metrics = read_metrics(reply.content)
        update = Update(
            client=client,
            reply=reply,
            arrays=read_arrays(reply.content, ARRAYS, like),
            metrics=metrics,
            control_change=read_arrays(reply.content, CONTROL, like) if with_control else None,
        )
    except Rejected as reason:
        row = client_row(round, client, metrics, status="rejected", error=str(reason))
        judged.clients.append(row)
        return
    extra = sorted(set(metrics) - KNOWN)
    note = f"ignored metrics: {', '.join(extra)}" if extra else None
    judged.updates.append(update)
    judged.clients.append(client_row(round, client, metrics, status="ok", error=note))
    judged.layers.extend(layer_rows(round, client, metrics, like))


def read_metrics(content: RecordDict) -> MetricRecord:
    """Return the client's figures, each present and possible.

    Raises:
        Rejected: naming the figure.
    """
    if METRICS not in content.metric_records:
        raise Rejected(f"the reply has no {METRICS!r} record")
    metrics = content.metric_records[METRICS]
    for name in (*COUNTS, *AMOUNTS, *LOSSES):
        value = metrics.get(name)
        if not isinstance(value, (int, float)):
            raise Rejected(f"metric {name} is {'missing' if value is None else repr(value)}")
        if name in COUNTS and (value != int(value) or value < COUNTS[name]):
            raise Rejected(f"metric {name} = {value} is not a count of at least {COUNTS[name]}")
        if name in AMOUNTS and not (math.isfinite(value) and value >= AMOUNTS[name]):
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
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise Rejected(f"{record}: cannot be decoded: {error}") from error
    for name, array in arrays.items():
        if array.shape != like[name].shape:
            raise Rejected(f"{record}: {name} has shape {array.shape}, not {like[name].shape}")
        if array.dtype != like[name].dtype:
            raise Rejected(f"{record}: {name} has dtype {array.dtype}, not {like[name].dtype}")
        if not np.isfinite(array).all():
            kind = "NaN" if np.isnan(array).any() else "infinity"
            raise Rejected(f"{record}: {name} holds {kind}")
    return arrays


def client_row(
    round: int, client: int, metrics: MetricRecord | None, *, status: str, error: str | None
) -> ClientRow:
    """Return the ledger's row; figures stay empty where the client gave none."""
    figures: dict[str, int | float] = {}
    if metrics is not None:
        figures = {name: metrics[name] for name in (*AMOUNTS, *LOSSES)}  # type: ignore[misc]
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
