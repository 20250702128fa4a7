"""Between fedsim's types and Flower's records: every conversion, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim import records
from fedsim.config import Experiment, from_flat

Arrays = Mapping[str, np.ndarray]

# The names of the records in our messages; "arrays", "config" and "metrics" are Flower's defaults.
ARRAYS, CONFIG, METRICS, CONTROL, PARTITION = "arrays", "config", "metrics", "control", "partition"
CODED, PROBLEM, LAYERS, RESIDUAL = "coded", "problem", "layers", "residual"
WEIGHT = "num-examples"
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
    by. ``control`` is SCAFFOLD's server control variate.
    """

    round: int
    arrays: Arrays
    learning_rate: float
    level: str = "light"
    initial_loss: bool = False
    control: Arrays | None = None
    coded: bytes | None = None


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
        record[name] = Array(np.asarray(value, order="C"))
    return record


def decode_arrays(record: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Deserialise named arrays; the result is writable and owns its memory."""
    return {name: array.numpy() for name, array in record.items()}


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
    config: Mapping[str, Any] = content.config_records[CONFIG]
    coded, control = (content.array_records.get(name) for name in (CODED, CONTROL))
    return Instruction(
        round=int(config["server-round"]),
        arrays=decode_arrays(content.array_records[ARRAYS])
        if coded is None
        else decode(decode_payload(coded)),
        learning_rate=float(config["learning-rate"]),
        level=str(config["measure-level"]),
        initial_loss=bool(config["initial-loss"]),
        control=None if control is None else decode_arrays(control),
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
