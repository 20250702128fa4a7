"""Between fedsim's types and Flower's records: every conversion, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim import records
from fedsim.config import Experiment, from_flat
from fedsim.npy import NPY_1_0, read_header, write_header

Arrays = Mapping[str, np.ndarray]

# The names of the records in our messages; "arrays", "config" and "metrics" are Flower's defaults.
ARRAYS, CONFIG, METRICS, CONTROL, PARTITION = "arrays", "config", "metrics", "control", "partition"
CODED, PROBLEM, LAYERS, RESIDUAL = "coded", "problem", "layers", "residual"
SECURE = "secure"  # of messages of secure aggregation
# Of messages to and from blocks of clients: "cohort" is the engine's.
COHORT, SUM, STACK, FIGURES, COLUMNS = "cohort", "sum", "stack", "figures", "columns"
WEIGHT = "num-examples"
CLIP_SCALE = "clip_scale"  # a column that a block has, and that the server finds for a client alone
PAYLOAD = "payload"  # the array of a coded record
MEASURED = {
    name
    for name, figure in records.figures(records.ClientRow).items()
    if figure.metadata["kind"] == "measured"
}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What the server asks of a client in one round.

    ``arrays`` is the model that the client starts from; ``coded`` is its compressed form, where it
    travels as such. ``level`` says how much is measured (``measure.level``). ``initial_loss`` asks
    for the loss of the global model on all of the client's examples, which q-FedAvg weighs clients
    by. ``control`` is SCAFFOLD's server control variate. ``summed`` asks a block of clients for the
    sum of their models in place of each. ``clipping_norm`` is what updates are scaled down to, all
    of equal weight (infinity: as they are); None: they weigh by examples. ``noise_multiplier`` is
    for clients that add noise themselves; ``secure_clients`` how many could be summed behind masks.
    """

    round: int
    arrays: Arrays
    learning_rate: float
    level: str = "light"
    initial_loss: bool = False
    control: Arrays | None = None
    coded: bytes | None = None
    summed: bool = False
    clipping_norm: float | None = None
    noise_multiplier: float | None = None
    secure_clients: int | None = None


@dataclass(frozen=True, kw_only=True)
class BlockReply:
    """What a block of clients answers, in the order of its clients.

    Attributes:
        clients: partition ids.
        counts: by column of the ledger, (clients,) int64.
        amounts: by column of the ledger, (clients,) float64; NaN is blank.
        problems: by place in ``clients``, what became of those that are not ``ok``: their status
            and why.
        arrays: by name in the model's order. Summed: the float64 sum of the models of those that
            are ``ok``, each times its examples. Otherwise each client's model, (clients, *shape).
        summed: which of the two.
        layers: by place in ``clients``, the columns of the client's layer rows.
    """

    clients: Sequence[int]
    counts: Mapping[str, np.ndarray]
    amounts: Mapping[str, np.ndarray]
    problems: Mapping[int, tuple[str, str]]
    arrays: Arrays
    summed: bool
    layers: Mapping[int, Mapping[str, list[Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, clients: Sequence[int], columns: Arrays, **others: Any) -> BlockReply:
        """Return a reply whose columns are told apart by their type."""
        return cls(
            clients=clients,
            counts={name: c for name, c in columns.items() if c.dtype.kind == "i"},
            amounts={name: c for name, c in columns.items() if c.dtype.kind == "f"},
            **others,
        )


def experiment_of(run_config: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a Flower run-config describes.

    Names are not looked up in the registries: the server has done that before the first message.
    """
    return _experiment_of(tuple(sorted(run_config.items())))


@lru_cache(maxsize=16)
def _experiment_of(items: tuple[tuple[str, Any], ...]) -> Experiment:
    return from_flat(dict(items), vocabulary={})


def encode_arrays(arrays: Arrays) -> ArrayRecord:
    """Serialise named arrays."""
    record = ArrayRecord()
    for name, value in arrays.items():
        # Not ascontiguousarray: it gives a scalar parameter the shape (1,).
        record[name] = encode_array(np.asarray(value, order="C"))
    return record


def encode_array(values: np.ndarray) -> Array:
    """Serialise a C-ordered array to the bytes of ``Array(values)``, which copies them twice.

    Raises:
        ValueError: it holds objects, which only a pickle can.
    """
    dtype, shape = values.dtype, values.shape
    if dtype.hasobject:
        raise ValueError("arrays of objects are not sent")
    data = b"".join((write_header(dtype, shape), values.reshape(-1).view(np.uint8).data))
    return Array(str(dtype), shape, "numpy.ndarray", data)


def decode_arrays(record: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Deserialise named arrays; the result is writable and owns its memory."""
    return {name: decode_array(array) for name, array in record.items()}


def decode_array(array: Array, *, copy: bool = True) -> np.ndarray:
    """Deserialise an array as ``Array.numpy`` does, without parsing a known header again.

    Args:
        array: of Flower's.
        copy: give the result memory of its own; otherwise it may only be read.
    """
    # What lies in Ray's object store (engine.arrays.SharedArray) has parts; its ``data`` copies.
    parts = getattr(array, "parts", None)
    data = memoryview(array.data if parts is None else parts()[-1]).cast("B")
    start = 10 + int.from_bytes(data[8:10], "little")
    if array.stype != "numpy.ndarray" or data[:8] != NPY_1_0 or len(data) < start:
        return array.numpy()
    shape, fortran_order, dtype = read_header(bytes(data[:start]))
    values = np.frombuffer(data, dtype, offset=start)
    values = values.reshape(shape, order="F" if fortran_order else "C")
    return values.copy(order="K") if copy else values


def describe_not_finite(record: str, name: str, array: np.ndarray) -> str:
    """Say why an array of a client's reply must not be used."""
    kind = "NaN" if np.isnan(array).any() else "infinity"
    return f"{record}: {name} holds {kind} (if training diverged, lower train.learning_rate)"


RecordKind = TypeVar("RecordKind", ArrayRecord, ConfigRecord, MetricRecord)


def record_of(content: RecordDict, name: str, kind: type[RecordKind]) -> RecordKind:
    """Return a record of a message.

    Not by ``content.array_records`` and its like, which make a checked copy of all records of a
    kind at every call: a third of what it takes to read a block's reply.

    Raises:
        KeyError: there is none of that name and kind.
    """
    found = content[name]
    if not isinstance(found, kind):
        raise KeyError(f"{name} is a {type(found).__name__}, not a {kind.__name__}")
    return found


def encode_payload(payload: bytes) -> ArrayRecord:
    """Put bytes into a record, as an array that any Flower app can read."""
    return encode_arrays({PAYLOAD: np.frombuffer(payload, np.uint8)})


def decode_payload(record: Mapping[str, Array]) -> bytes:
    """Return the bytes of :func:`encode_payload`.

    Raises:
        ValueError: the record holds something else.
    """
    if set(record) != {PAYLOAD}:
        raise ValueError(f"it holds {sorted(record)}, not {PAYLOAD!r} alone")
    array = record[PAYLOAD].numpy()
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ValueError(f"its payload is {array.dtype} of shape {array.shape}, not bytes")
    return array.tobytes()


def encode_instruction(instruction: Instruction) -> RecordDict:
    """Return the content of a training message; one content serves a whole cohort."""
    coded = instruction.coded
    model = (
        {ARRAYS: encode_arrays(instruction.arrays)}
        if coded is None
        else {CODED: encode_payload(coded)}
    )
    config = ConfigRecord(
        {
            "server-round": instruction.round,
            "learning-rate": instruction.learning_rate,
            "measure-level": instruction.level,
            "initial-loss": instruction.initial_loss,
        }
    )
    if instruction.summed:
        config["summed"] = True
    if instruction.clipping_norm is not None:
        config["clipping-norm"] = instruction.clipping_norm
    if instruction.noise_multiplier is not None:
        config["noise-multiplier"] = instruction.noise_multiplier
    if instruction.secure_clients is not None:
        config["secure-clients"] = instruction.secure_clients
    content = RecordDict({**model, CONFIG: config})
    if instruction.control is not None:
        content[CONTROL] = encode_arrays(instruction.control)
    return content


def decode_instruction(message: Message, decode: Callable[[bytes], Arrays]) -> Instruction:
    """Read a training message.

    Args:
        message: as :func:`encode_instruction` made it.
        decode: from a coded model to its arrays.
    """
    content = message.content
    config: Mapping[str, Any] = record_of(content, CONFIG, ConfigRecord)
    control = record_of(content, CONTROL, ArrayRecord) if CONTROL in content else None
    return Instruction(
        round=int(config["server-round"]),
        arrays=decode(decode_payload(record_of(content, CODED, ArrayRecord)))
        if CODED in content
        else decode_arrays(record_of(content, ARRAYS, ArrayRecord)),
        learning_rate=float(config["learning-rate"]),
        level=str(config["measure-level"]),
        initial_loss=bool(config["initial-loss"]),
        control=None if control is None else decode_arrays(control),
        summed=bool(config.get("summed", False)),
        clipping_norm=optional(config, "clipping-norm"),
        noise_multiplier=optional(config, "noise-multiplier"),
        secure_clients=int(config.get("secure-clients", 0)) or None,
    )


def optional(config: Mapping[str, Any], key: str) -> float | None:
    """Return a number of a message's config; None where it says nothing."""
    return None if key not in config else float(config[key])


def asked_clients(message: Message) -> list[int]:
    """Return the partition ids of the block that a message is for."""
    ids: Any = record_of(message.content, COHORT, ConfigRecord)["partition-ids"]
    return [int(client) for client in ids]


def encode_block(reply: BlockReply, *, to: Message) -> Message:
    """Return the message that carries a block's reply; :func:`decode_block` reads it."""
    places = list(reply.problems)
    columns = ConfigRecord(
        {
            "partition-ids": [int(client) for client in reply.clients],
            "counts": list(reply.counts),
            "amounts": list(reply.amounts),
            "problem-places": places,
            "problem-statuses": [reply.problems[place][0] for place in places],
            "problem-reasons": [reply.problems[place][1] for place in places],
        }
    )
    figures = {
        "counts": matrix(reply.counts, np.int64, len(reply.clients)),
        "amounts": matrix(reply.amounts, np.float64, len(reply.clients)),
    }
    content = RecordDict({COLUMNS: columns, FIGURES: encode_arrays(figures)})
    content[SUM if reply.summed else STACK] = encode_arrays(reply.arrays)
    for place, layers in reply.layers.items():
        content[f"{LAYERS}/{place}"] = ConfigRecord(dict(layers))
    return Message(content, reply_to=to)


def matrix(columns: Arrays, dtype: type, clients: int) -> np.ndarray:
    """Return columns as the rows of a matrix, (columns, clients)."""
    return np.array(list(columns.values()), dtype).reshape(len(columns), clients)


def decode_block(content: RecordDict) -> BlockReply:
    """Return a block's reply; its models lie where the message does, and may only be read.

    Raises:
        KeyError, ValueError: it is no such reply.
    """
    columns: Mapping[str, Any] = record_of(content, COLUMNS, ConfigRecord)
    clients = columns["partition-ids"]
    figures = decode_arrays(record_of(content, FIGURES, ArrayRecord))
    for kind in ("counts", "amounts"):
        if figures[kind].shape != (len(columns[kind]), len(clients)):
            raise ValueError(f"{kind} of shape {figures[kind].shape} for {len(clients)} clients")
    summed = SUM in content
    models = record_of(content, SUM if summed else STACK, ArrayRecord)
    told = zip(columns["problem-statuses"], columns["problem-reasons"], strict=True)
    return BlockReply(
        clients=clients,
        counts=dict(zip(columns["counts"], figures["counts"], strict=True)),
        amounts=dict(zip(columns["amounts"], figures["amounts"], strict=True)),
        problems=dict(zip(columns["problem-places"], told, strict=True)),
        arrays={name: decode_array(a, copy=False) for name, a in models.items()},
        summed=summed,
        layers={
            int(name.removeprefix(f"{LAYERS}/")): record_of(content, name, ConfigRecord)  # type: ignore[misc]
            for name in content
            if name.startswith(f"{LAYERS}/")
        },
    )


def encode_sent(
    sent: Arrays | bytes | str, control_change: Arrays | None
) -> dict[str, ArrayRecord | ConfigRecord]:
    """Return the records that carry a client's model and its control.

    Args:
        sent: the model, or a coded update, or why it could not be coded.
        control_change: SCAFFOLD's.
    """
    if isinstance(sent, str):
        return {PROBLEM: ConfigRecord({"reason": sent})}
    content: dict[str, ArrayRecord | ConfigRecord] = {}
    if isinstance(sent, bytes):
        content[CODED] = encode_payload(sent)
    else:
        content[ARRAYS] = encode_arrays(sent)
    if control_change is not None:
        content[CONTROL] = encode_arrays(control_change)
    return content


def encode_reply(
    sent: Mapping[str, ArrayRecord | ConfigRecord],
    figures: Mapping[str, int | float | None],
    layers: Mapping[str, list[Any]],
    *,
    to: Message,
) -> Message:
    """Return the message that carries a client's reply.

    Args:
        sent: as :func:`encode_sent` made it.
        figures: by the ledger's column; what is None is left out. ``examples`` is required.
        layers: the columns of the client's layer rows; empty for none.
        to: what it answers.
    """
    metrics = MetricRecord(
        {
            # What is measured takes the same bytes whatever it is: messages stay reproducible.
            name: float(value) if name in MEASURED else value
            for name, value in figures.items()
            if value is not None and name != "examples"
        }
    )
    metrics[WEIGHT] = figures["examples"]  # type: ignore[assignment]
    content = RecordDict({**sent, METRICS: metrics})
    if layers:
        content[LAYERS] = ConfigRecord(dict(layers))
    return Message(content, reply_to=to)


def decode_state(state: RecordDict) -> dict[str, np.ndarray]:
    """Return a client's state as arrays named ``record/array``, as the ledger stores it."""
    return {
        f"{record}/{name}": value
        for record, arrays in state.array_records.items()
        for name, value in decode_arrays(arrays).items()
    }


def encode_state(arrays: Arrays) -> RecordDict:
    """Return the state that :func:`decode_state` was given."""
    records: dict[str, dict[str, np.ndarray]] = {}
    for path, value in arrays.items():
        record, _, name = path.partition("/")
        records.setdefault(record, {})[name] = value
    return RecordDict({record: encode_arrays(named) for record, named in records.items()})
