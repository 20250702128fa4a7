"""What the server adds to the clients' rows, and the row of the round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode

from fedsim.federation.cohorts import CohortAnswer
from fedsim.federation.replies import LARGEST_COUNT, Judged, Update
from fedsim.federation.singles import error_bytes, reply_bytes, request_bytes
from fedsim.federation.wire import content_bytes, envelope_bytes, message_bytes
from fedsim.flower import CLIP_SCALE, Instruction
from fedsim.measure.devices import load_profile, modelled
from fedsim.measure.energy import Energy
from fedsim.measure.health import LayerHealth
from fedsim.measure.payload import cosine, dense_bytes, flat_update, update_statistics
from fedsim.records import SERVER, ClientRow, LayerRow, RoundRow
from fedsim.table import Clients, ClientTable, blank, column

Arrays = Mapping[str, np.ndarray]
Price = Callable[[ClientRow], Mapping[str, float]]

# Errors that stand in for a client which said nothing: Flower's, and the simulation's own.
MADE_UP = {
    ErrorCode.UNKNOWN,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
}

# What a device's seconds and joules are modelled from, and the columns that hold it.
MODELLED_FROM = {
    **{name: name for name in ("train_flops", "bias_flops", "optimizer_flops")},
    **{f"{kind}_ops": f"{kind}_ops" for kind in ("compare", "multiply_add", "division")},
    "transcendental_ops": "transcendental_ops",
    "uplink_bytes": "wire_bytes",
    "downlink_bytes": "downlink_wire_bytes",
}
WAITING = "waiting_seconds"
GIVEN_BY_CLIENTS = {
    "cpu_seconds": "a client gave none: its clock stood still or stepped back",
    "wall_seconds": "a client gave none: its clock stood still or stepped back",
    **{
        column: f"a client gave none: it is from {path}, which Linux has and containers may forbid"
        for column, path in (
            ("peak_memory_bytes", "/proc/self/clear_refs and status"),
            (WAITING, "/proc/thread-self/schedstat"),
            ("others_cpu_seconds", "/proc/stat"),
        )
    },
}
# Of a deployed node. Its limit of memory is not here: where there is none, blank is the answer.
GROUPS = "it is from the container's control group"
INTERFACES = "it is from /proc/net/dev, beside what FEDSIM_NODE_DIR holds of the previous visit"
GIVEN_BY_CONTAINERS = {
    "startup_cpu_seconds": "a client's container gave none: its process had served before",
    "startup_wall_seconds": "a client's container gave none: its process had served before, or "
    "there is no /proc/self/stat",
    "container_cpu_seconds": f"a client's container gave none: {GROUPS}",
    "container_peak_memory_bytes": f"a client's container gave none: {GROUPS}",
    "container_received_bytes": f"a client's container gave none: {INTERFACES}",
    "container_sent_bytes": f"a client's container gave none: {INTERFACES}",
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The new model on the test part: accuracy in [0, 1], mean loss, and its layers at ``full``.

    ``attack_success`` is the share of its victims that an attack has taken for what it wants.
    """

    accuracy: float | None = None
    loss: float | None = None
    layers: Sequence[LayerHealth] = ()
    attack_success: float | None = None


def bill_clients(
    judged: Judged, instruction: Instruction, asked: Mapping[int, Message], price: Price | None
) -> Clients:
    """Return the clients' rows with the figures that only the server has.

    Args:
        judged: a cohort's answers, before they are aggregated.
        instruction: what they were asked, with the model that they are relative to.
        asked: the messages that were sent, by client.
        price: from a row to its modelled figures, on the device of ``measure.device``.
    """
    if instruction.level == "off":
        return judged.clients
    # Arrays as large as the model, twice with a control variate: the same for every client.
    dense = dense_bytes(instruction.arrays) + dense_bytes(instruction.control or {})
    drift = drift_cosines(judged.updates, instruction.arrays) if instruction.level == "full" else {}
    # One content serves the whole cohort.
    content = content_bytes(next(iter(asked.values())))
    rows: list[ClientRow] = []
    for row in judged.clients:
        reply = judged.replies.get(row.client)
        billed = replace(
            row,
            dense_bytes=dense if row.status == "ok" else None,
            wire_bytes=message_bytes(reply) if reply and crossed(reply) else None,
            downlink_dense_bytes=dense if pulled(reply) else None,
            downlink_wire_bytes=envelope_bytes(asked[row.client]) + content
            if pulled(reply)
            else None,
            drift_cosine=drift.get(row.client),
        )
        rows.append(replace(billed, **price(billed)) if price else billed)  # type: ignore[arg-type]
    return rows


def bill_table(
    answer: CohortAnswer, judged: Judged, content: RecordDict, price: Price | None
) -> Clients:
    """Return the rows of clients that were asked in blocks, with the figures of the server.

    A client is billed for the two messages that it would exchange if it were asked alone: blocks
    are how a simulation travels, not what it simulates.

    Args:
        answer: what came back of the blocks.
        judged: the same, judged.
        content: of the message that asked them.
        price: as in :func:`bill_clients`.
    """
    table, instruction = judged.clients, answer.instruction
    if instruction.level == "off" or not isinstance(table, ClientTable):
        return table
    dense = dense_bytes(instruction.arrays)
    drift = drift_cosines(judged.updates, instruction.arrays) if instruction.level == "full" else {}
    nodes = np.asarray(table.column("client"), np.int64) + 1
    billed = table.with_columns(
        {
            "dense_bytes": dense
            if table.all_ok
            else [dense if status == "ok" else None for status in table.column("status")],
            "wire_bytes": replies_bytes(answer, table, nodes),
            "downlink_dense_bytes": dense,
            "downlink_wire_bytes": request_bytes(content, nodes, answer.numbers, instruction.round),
            "drift_cosine": [drift.get(client) for client in table.column("client")]
            if drift
            else None,
        }
    )
    if price is None:
        return billed
    prices = [price(row) for row in billed.rows()]
    return billed.with_columns(
        {name: [p.get(name) for p in prices] for name in ("modelled_seconds", "modelled_joules")}
    )


def replies_bytes(answer: CohortAnswer, table: ClientTable, nodes: np.ndarray) -> Any:
    """Return the bytes of each client's reply, (clients,); None where none came over the wire."""
    like = answer.instruction.arrays
    shapes = tuple((name, array.shape, array.dtype.str) for name, array in like.items())
    sizes = reply_bytes(
        table,
        [name for name in answer.sent if name != CLIP_SCALE],
        shapes,
        nodes,
        answer.numbers,
        layers=answer.layer_columns,
    )
    if not answer.errors:
        return sizes
    found: list[int | None] = sizes.tolist()
    for place, error in answer.errors.items():
        came = error is not None and error.code not in MADE_UP
        node, number = int(nodes[place]), int(answer.numbers[place])
        found[place] = error_bytes(error, node, number, table.round) if error and came else None
    return found


def crossed(reply: Message) -> bool:
    """Say whether a reply came over the wire; some errors are made up on the server's side."""
    return reply.has_content() or reply.error.code not in MADE_UP


def pulled(reply: Message | None) -> bool:
    """Say whether a client may have fetched its request: not from a node that is not there."""
    return reply is None or reply.has_content() or reply.error.code != ErrorCode.NODE_UNAVAILABLE


def drift_cosines(updates: Sequence[Update], model: Arrays) -> dict[int, float | None]:
    """Return the cosine of each client's update with the cohort's unweighted mean update.

    The mean points where the sum does.
    """
    total = np.zeros(sum(a.size for a in model.values() if a.dtype.kind == "f"))
    for update in updates:  # and once more below, so that one flat copy is there at a time
        total += flat_update(model, update.arrays)
    return {u.client: cosine(flat_update(model, u.arrays), total) for u in updates}


def bill_model(model: Arrays, level: str) -> dict[str, Any]:
    """Return the figures of the model that came down, one copy, as columns of the round."""
    if level != "full":
        return {}
    flat = flat_update({name: np.zeros_like(value) for name, value in model.items()}, model)
    statistics = update_statistics(flat, blank=None)
    statistics["zero_fraction"] = statistics.pop("zero_fraction_without_blank")
    return {f"model_{name}": value for name, value in statistics.items()}


def bill_round(
    round: int, rows: Sequence[ClientRow], evaluation: Evaluation, **figures: Any
) -> RoundRow:
    """Return the round's row: its own figures, and the sums over the clients' rows."""

    def total(name: str) -> Any:
        values = [value for value in column(rows, name) if value is not None]
        summed = sum(values)
        # Figures are what clients claim: a sum that no ledger can hold is left blank.
        return summed if values and summed <= LARGEST_COUNT else None

    trained = column(rows, "status").count("ok")
    return RoundRow(
        round=round,
        test_accuracy=evaluation.accuracy,
        test_loss=evaluation.loss,
        clients_trained=trained,
        clients_failed=len(rows) - trained,
        uplink_bytes=added(total("wire_bytes"), total("secure_uplink_bytes")),
        downlink_bytes=added(total("downlink_wire_bytes"), total("secure_downlink_bytes")),
        uplink_dense_bytes=total("dense_bytes"),
        downlink_dense_bytes=total("downlink_dense_bytes"),
        train_flops=total("train_flops"),
        cpu_seconds=total("cpu_seconds"),
        attack_success_fraction=evaluation.attack_success,
        **figures,
    )


def added(messages: int | None, others: int | None) -> int | None:
    """Return the bytes of a round's training with those of secure aggregation, where it is on."""
    return messages if messages is None or others is None else messages + others


def global_layers(round: int, evaluation: Evaluation) -> list[LayerRow]:
    """Return the rows of the new model's layers."""
    return [
        LayerRow(round=round, client=SERVER, phase="global", **asdict(layer))
        for layer in evaluation.layers
    ]


def modelled_price(device: str) -> Price | None:
    """Return what models a client's visit on a device; None where no device is named.

    Args:
        device: as in ``measure.device``.

    Raises:
        ConfigError: there is no such profile, or it is wrong.
    """
    if not device:
        return None
    profile = load_profile(device)

    def price(row: ClientRow) -> dict[str, float]:
        counts = {name: getattr(row, column) for name, column in MODELLED_FROM.items()}
        if any(value is None for value in counts.values()):
            return {}
        cost = modelled(profile, **counts)
        return {"modelled_seconds": cost.seconds, "modelled_joules": cost.joules}

    return price


def why_blank(clients: Clients, energy: Energy, *, own_threads: bool = False) -> dict[str, str]:
    """Return the figures that were asked for and could not be had, and why.

    Only a client in a container is asked for that one's figures, and gives some of them.

    Args:
        clients: the round's rows.
        energy: the round's.
        own_threads: training runs in threads of its own, which nobody knows to be waiting.
    """
    blanks = {} if energy.reason is None else {"package_joules": energy.reason}
    trained = np.array([status == "ok" for status in column(clients, "status")], bool)
    billed = trained & ~blank(clients, "train_flops")
    for name, reason in GIVEN_BY_CLIENTS.items():
        expected = name != WAITING or not own_threads
        if expected and (billed & blank(clients, name)).any():
            blanks[name] = reason
    missing = {name: blank(clients, name) for name in GIVEN_BY_CONTAINERS}
    contained = billed & ~np.logical_and.reduce([*missing.values()])
    for name, reason in GIVEN_BY_CONTAINERS.items():
        if (contained & missing[name]).any():
            blanks[name] = reason
    return blanks
