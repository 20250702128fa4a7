"""The bytes of the messages that clients of a block would exchange if each were asked alone.

They are counted on real messages of Flower's, one of every kind that occurs: a reply's size follows
from its counts (which take as many bytes as they are large), from which amounts it gives (eight
bytes each, whatever they are), and from the lengths of its ids. Its arrays are as large as the
model's, and are taken to differ: two that are equal (of layers that did not move from one start)
would travel as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from fedsim.federation.wire import Objects, add_record, content_bytes, envelope_bytes
from fedsim.flower import ARRAYS, CONFIG, LAYERS, MEASURED, METRICS, WEIGHT, encode_arrays
from fedsim.records import ClientRow, figures
from fedsim.table import NAMES, ClientTable

Shapes = tuple[tuple[str, tuple[int, ...], str], ...]
Bytes = npt.NDArray[np.int64]
COUNTS = {name for name, figure in figures(ClientRow).items() if figure.type == "int | None"}
# From these on a decimal number, a varint, or a zigzag varint (sint64) is longer.
POWERS_OF_10 = 10 ** np.arange(1, 19)
POWERS_OF_128 = 128 ** np.arange(1, 9)
ZIGZAG = 64 * 128 ** np.arange(0, 9)
LENGTHS = (0, *ZIGZAG.tolist())  # a count of each length
OF_BLOCKS = ("summed", "clipping-norm")  # what a client alone is not told
ABSENT = -1  # in place of a length


def request_bytes(content: RecordDict, nodes: Bytes, numbers: Bytes, round: int) -> Bytes:
    """Return the bytes of the messages that would ask the clients one by one, (clients,).

    Args:
        content: of the message that asked them in blocks.
        nodes: (clients,), their node ids.
        numbers: (clients,), of the clients' own messages.
        round: that they are asked in.
    """
    config = ConfigRecord(
        {k: v for k, v in content.config_records[CONFIG].items() if k not in OF_BLOCKS}
    )
    alone = RecordDict({**content, CONFIG: config})
    body = content_bytes(Message(alone, 1, MessageType.TRAIN))
    return body + _by_ids(nodes, numbers, _request_envelope, round)


def reply_bytes(
    table: ClientTable,
    sent: Sequence[str],
    shapes: Shapes,
    nodes: Bytes,
    numbers: Bytes,
    *,
    layers: Mapping[int, Mapping[str, Any]],
) -> Bytes:
    """Return the bytes of the replies that the clients would give one by one, (clients,).

    Args:
        table: the clients' rows.
        sent: the columns that they gave.
        shapes: name, shape and dtype of each array of the model.
        nodes, numbers: as for :func:`request_bytes`.
        layers: by place in the table, the columns of the client's layer rows.
    """
    envelopes = _by_ids(nodes, numbers, _reply_envelope, table.round)
    kinds: dict[bytes, int] = {}
    kind_of = [kinds.setdefault(row.tobytes(), len(kinds)) for row in _kinds(table, sent)]
    told = tuple(sent)
    metrics = np.array([_metrics_bytes(told, kind) for kind in kinds], np.int64)
    total = envelopes + metrics[kind_of] + model_bytes(shapes, with_layers=False)
    for place, columns in layers.items():
        more = model_bytes(shapes, with_layers=True) - model_bytes(shapes, with_layers=False)
        total[place] += more + record_bytes(ConfigRecord(dict(columns)))
    return total


def error_bytes(error: Error, node: int, number: int, round: int) -> int:
    """Return the bytes of the error that a client would send in place of a reply."""
    return envelope_bytes(Message(error, reply_to=_request(node, number, str(round))))


def record_bytes(record: MetricRecord | ConfigRecord) -> int:
    """Return the bytes of one record as it travels."""
    objects = Objects()
    return objects.sizes[add_record(objects, record)]


@lru_cache(maxsize=16)
def model_bytes(shapes: Shapes, *, with_layers: bool) -> int:
    """Return the bytes of a reply's content without those of its other records."""
    arrays = {
        name: np.full(shape, i, dtype) for i, (name, shape, dtype) in enumerate(shapes, start=1)
    }
    others: dict[str, MetricRecord | ConfigRecord] = {METRICS: MetricRecord()}
    if with_layers:
        others[LAYERS] = ConfigRecord()
    content = RecordDict({ARRAYS: encode_arrays(arrays), **others})
    reply = Message(content, reply_to=_request(1, 1, "1"))
    return content_bytes(reply) - sum(record_bytes(record) for record in others.values())


def _kinds(table: ClientTable, sent: Sequence[str]) -> npt.NDArray[np.int8]:
    """Return what decides the size of a client's metrics, (clients, columns).

    That is the length of a count, 0 for any amount, and ``ABSENT`` for what it did not give.
    """
    kinds = np.zeros((len(table), len(sent)), np.int8)
    for place, name in enumerate(sent):
        if name in NAMES:
            if is_counted(name):
                kinds[:, place] = np.searchsorted(ZIGZAG, table.counts(name), side="right")
            kinds[table.blank(name), place] = ABSENT
    return kinds


def is_counted(name: str) -> bool:
    """Say whether a column's numbers travel as whole ones."""
    return name in COUNTS and name not in MEASURED


@lru_cache(maxsize=1024)
def _metrics_bytes(sent: tuple[str, ...], kind: bytes) -> int:
    """Return the bytes of a client's metrics of that kind."""
    lengths = np.frombuffer(kind, np.int8).tolist()
    return record_bytes(
        MetricRecord(
            {
                WEIGHT if name == "examples" else name: LENGTHS[length] if is_counted(name) else 0.0
                for name, length in zip(sent, lengths, strict=True)
                if length != ABSENT
            }
        )
    )


def _by_ids(
    nodes: Bytes, numbers: Bytes, size: Callable[[int, int, str], int], round: int
) -> Bytes:
    """Return what ``size`` says of each client's request; it is asked once for equal lengths."""
    digits = np.searchsorted(POWERS_OF_10, numbers, side="right")
    varints = np.searchsorted(POWERS_OF_128, nodes, side="right")
    kinds, kind_of = np.unique(16 * digits + varints, return_inverse=True)
    group = "1" * len(str(round))
    sizes = [size(128 ** (kind % 16), 10 ** (kind // 16), group) for kind in kinds.tolist()]
    return np.array(sizes, np.int64)[kind_of]


@lru_cache(maxsize=1024)
def _request_envelope(node: int, number: int, group: str) -> int:
    return envelope_bytes(_request(node, number, group))


@lru_cache(maxsize=1024)
def _reply_envelope(node: int, number: int, group: str) -> int:
    return envelope_bytes(Message(RecordDict(), reply_to=_request(node, number, group)))


def _request(node: int, number: int, group: str) -> Message:
    """Return an empty message like the one that would ask a client alone."""
    request = Message(RecordDict(), node, MessageType.TRAIN, group_id=group)
    request.metadata.__dict__["_message_id"] = f"1-{number}"
    return request
