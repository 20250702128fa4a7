"""Between fedsim's types and Flower's records: every conversion, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.config import Experiment, from_flat

Arrays = Mapping[str, np.ndarray]

# The names of the records in our messages; "arrays", "config" and "metrics" are Flower's defaults.
ARRAYS, CONFIG, METRICS, CONTROL, PARTITION = "arrays", "config", "metrics", "control", "partition"
WEIGHT = "num-examples"
LAYER_NORMS = "layer_norms"


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What the server asks of a client in one round.

    ``initial_loss`` asks for the loss of the global model on all of the client's examples, which
    q-FedAvg weighs clients by. ``control`` is SCAFFOLD's server control variate.
    """

    round: int
    arrays: Arrays
    learning_rate: float
    initial_loss: bool = False
    control: Arrays | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a client answers: its arrays and its figures, named as the ledger's columns."""

    arrays: Arrays
    figures: Mapping[str, int | float]
    layer_norms: list[float] = field(default_factory=list)
    control_change: Arrays | None = None


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


def encode_instruction(instruction: Instruction) -> RecordDict:
    """Return the content of a training message; one content serves a whole cohort."""
    content = RecordDict(
        {
            ARRAYS: encode_arrays(instruction.arrays),
            CONFIG: ConfigRecord(
                {
                    "server-round": instruction.round,
                    "learning-rate": instruction.learning_rate,
                    "initial-loss": instruction.initial_loss,
                }
            ),
        }
    )
    if instruction.control is not None:
        content[CONTROL] = encode_arrays(instruction.control)
    return content


def decode_instruction(message: Message) -> Instruction:
    """Read a training message."""
    content = message.content
    config: Mapping[str, Any] = content.config_records[CONFIG]
    control = content.array_records.get(CONTROL)
    return Instruction(
        round=int(config["server-round"]),
        arrays=decode_arrays(content.array_records[ARRAYS]),
        learning_rate=float(config["learning-rate"]),
        initial_loss=bool(config["initial-loss"]),
        control=None if control is None else decode_arrays(control),
    )


def encode_reply(reply: Reply, *, to: Message) -> Message:
    """Return the message that carries a client's reply."""
    metrics = MetricRecord({k: v for k, v in reply.figures.items() if k != "examples"})
    metrics[WEIGHT] = int(reply.figures["examples"])
    if reply.layer_norms:
        metrics[LAYER_NORMS] = reply.layer_norms
    content = RecordDict({ARRAYS: encode_arrays(reply.arrays), METRICS: metrics})
    if reply.control_change is not None:
        content[CONTROL] = encode_arrays(reply.control_change)
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
