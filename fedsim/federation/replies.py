"""Judge what came back: which updates may be aggregated, and a row for every client asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict

from fedsim.algorithms.sums import WeightedSum
from fedsim.federation.exchange import plain
from fedsim.flower import (
    ARRAYS,
    CONTROL,
    LAYERS,
    METRICS,
    WEIGHT,
    Instruction,
    decode_arrays,
    describe_not_finite,
)
from fedsim.records import ClientRow, LayerRow, figures

Arrays = Mapping[str, np.ndarray]

# Without these an answer is not accepted; the other figures of a ClientRow may be blank.
REQUIRED = (WEIGHT, "steps", "loss_first_step", "loss_last_step")
# What the server knows better.
OWN = {"examples", "dense_bytes", "wire_bytes", "downlink_dense_bytes", "downlink_wire_bytes"} | {
    *("drift_cosine", "modelled_seconds", "modelled_joules", "clip_scale"),
}
REPORTED = {name: f for name, f in figures(ClientRow).items() if name not in OWN}
POSITIVE = (WEIGHT, "steps")
INITIAL_LOSS = "initial_loss"  # an amount, where it was asked for
LARGEST_COUNT = 2**63 - 1  # that the ledger can store


class Rejected(Exception):
    """This update must not be aggregated; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """An accepted update: arrays of the expected names, shapes and dtypes, all finite."""

    client: int
    arrays: Arrays
    examples: int  # which Flower's strategies weigh it by
    weight: int  # in a sum: the examples, or its share of a whole where updates are clipped
    initial_loss: float | None = None
    control_change: Arrays | None = None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A cohort's answers, in the order of the clients.

    Attributes:
        updates: those that may be aggregated, where every client sent its own.
        clients: a row for everybody who was asked.
        layers: of the clients that sent any.
        replies: the messages that came, by client, where every client sent its own.
        total: the sum of the acceptable updates, where clients were summed where they trained.
        idle_fraction: of the workers' time, where the grid knows it.
        secure_wall_seconds: of secure aggregation, without the training.
        skipped: nobody was asked, since the draw left nobody, or too few to hide among.
        ended: why all of them together came to nothing, where they did.
    """

    updates: list[Update]
    clients: Sequence[ClientRow]
    layers: list[LayerRow]
    replies: dict[int, Message] = field(default_factory=dict)
    total: WeightedSum | None = None
    idle_fraction: float | None = None
    secure_wall_seconds: float | None = None
    skipped: bool = False
    ended: str | None = None

    @property
    def usable(self) -> int:
        """How many updates may be aggregated."""
        return self.total.clients if self.total is not None else len(self.updates)


def judge(
    instruction: Instruction,
    *,
    asked: Mapping[int, Message],
    replies: Iterable[Message],
    timeout_seconds: float,
    read_update: Callable[[RecordDict], Arrays] | None = None,
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
        read_update: from a reply's content to the client's model, raising :class:`Rejected`; by
            default the arrays as they are.
    """
    by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
    rows: list[ClientRow] = []
    judged = Judged(updates=[], clients=rows, layers=[])
    round = instruction.round
    for client, message in asked.items():
        reply = by_message.get(message.metadata.message_id)
        if reply is None:
            error = f"no reply within {timeout_seconds:g} s"
            rows.append(ClientRow(round=round, client=client, status="timeout", error=error))
            continue
        judged.replies[client] = reply
        if reply.has_error():
            error = plain(reply.error.reason) or f"error code {reply.error.code}"
            rows.append(ClientRow(round=round, client=client, status="failed", error=error))
        else:
            rows.append(judge_content(judged, instruction, client, reply, read_update))
    return judged


def judge_content(
    judged: Judged,
    instruction: Instruction,
    client: int,
    reply: Message,
    read_update: Callable[[RecordDict], Arrays] | None,
) -> ClientRow:
    """Return one client's row, and add its update to the judged if it is acceptable."""
    round, like, content = instruction.round, instruction.arrays, reply.content
    metrics: MetricRecord | None = None
    try:
        metrics = read_metrics(content, with_initial_loss=instruction.initial_loss)
        arrays = read_update(content) if read_update else read_arrays(content, ARRAYS, like)
        change = None if instruction.control is None else read_arrays(content, CONTROL, like)
    except Rejected as reason:
        return client_row(round, client, metrics, status="rejected", error=str(reason))
    extra = sorted(set(metrics) - set(REPORTED) - {WEIGHT, INITIAL_LOSS})
    notes = [f"ignored metrics: {', '.join(extra)}"] if extra else []
    try:
        judged.layers.extend(layer_rows(round, client, content.config_records.get(LAYERS)))
    except ValueError as problem:
        notes.append(f"ignored layers: {problem}")
    initial = metrics[INITIAL_LOSS] if instruction.initial_loss else None
    update = Update(
        client=client,
        arrays=arrays,
        examples=int(metrics[WEIGHT]),  # type: ignore[arg-type]
        weight=int(metrics[WEIGHT]),  # type: ignore[arg-type]
        initial_loss=initial,  # type: ignore[arg-type]
        control_change=change,
    )
    judged.updates.append(update)
    note = "; ".join(notes) or None
    return client_row(round, client, metrics, status="ok", error=note)


def read_metrics(content: RecordDict, *, with_initial_loss: bool) -> MetricRecord:
    """Return the client's figures, those that are required and each of them possible.

    Raises:
        Rejected: naming the figure.
    """
    if METRICS not in content.metric_records:
        raise Rejected(f"the reply has no {METRICS!r} record")
    metrics = content.metric_records[METRICS]
    required = (*REQUIRED, INITIAL_LOSS) if with_initial_loss else REQUIRED
    for name in required:
        if name not in metrics:
            raise Rejected(f"metric {name} is missing")
    for name in dict.fromkeys((*required, *(name for name in REPORTED if name in metrics))):
        check_figure(name, metrics[name])
    return metrics


def check_figure(name: str, value: object) -> None:
    """Refuse a figure that cannot be.

    Raises:
        Rejected: it is no number, or out of its range.
    """
    declared = REPORTED.get(name)
    if not isinstance(value, (int, float)):
        raise Rejected(f"metric {name} is {value!r}")
    if name == WEIGHT or (declared and declared.type == "int | None"):
        least = 1 if name in POSITIVE else 0
        if not (least <= value <= LARGEST_COUNT and value == int(value)):
            raise Rejected(f"metric {name} = {value} is not a count of at least {least}")
        return
    signed = declared is not None and declared.metadata["signed"]
    if not signed and not (math.isfinite(value) and value >= 0):
        raise Rejected(f"metric {name} = {value} is not a finite amount")


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
            raise Rejected(describe_not_finite(record, name, array))
    return arrays


def client_row(
    round: int, client: int, metrics: MetricRecord | None, *, status: str, error: str | None
) -> ClientRow:
    """Return the ledger's row; figures stay empty where the client gave none."""
    given: dict[str, Any] = {}
    if metrics is not None:
        given = {name: whole(name, metrics[name]) for name in REPORTED if name in metrics}
        given["examples"] = int(metrics[WEIGHT])  # type: ignore[arg-type]
    return ClientRow(round=round, client=client, status=status, error=error, **given)  # type: ignore[arg-type]


def whole(name: str, value: Any) -> int | float:
    """Return a count as an int: Flower's other clients may send it as a float."""
    return int(value) if REPORTED[name].type == "int | None" else value


def layer_rows(round: int, client: int, columns: Mapping[str, Any] | None) -> list[LayerRow]:
    """Return the rows of a client's layers, where it sent their columns (not None).

    NaN stands for a figure that is blank.

    Raises:
        ValueError: saying what is wrong with the columns.
    """
    if columns is None:
        return []
    names, phases = columns.get("layer"), columns.get("phase")
    if not isinstance(names, list) or not isinstance(phases, list) or len(names) != len(phases):
        raise ValueError("no equally long columns of layer and phase")
    if not set(phases) <= {"before", "after"} or len(set(zip(names, phases, strict=True))) < len(
        names
    ):
        raise ValueError("a phase that is unknown, or a layer that is named twice")
    rows: list[dict[str, Any]] = [
        {"layer": str(name), "phase": phase} for name, phase in zip(names, phases, strict=True)
    ]
    for column, declared in figures(LayerRow).items():
        values = columns.get(column)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != len(rows):
            raise ValueError(f"{column} is no column of {len(rows)} figures")
        for row, value in zip(rows, values, strict=True):
            row[column] = layer_figure(column, value, signed=declared.metadata["signed"])
    return [LayerRow(round=round, client=client, **row) for row in rows]


def layer_figure(column: str, value: Any, *, signed: bool) -> int | float | None:
    """Return one figure of a layer; None for NaN.

    Raises:
        ValueError: it is not possible.
    """
    if not isinstance(value, (int, float)):
        raise ValueError(f"{column} = {value!r} is no number")
    if math.isnan(value):
        return None
    if not signed and not 0 <= value <= LARGEST_COUNT:
        raise ValueError(f"{column} = {value} is not a finite amount")
    return int(value) if column == "parameters" else value
