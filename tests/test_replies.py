"""What the server accepts of a client's answer, and what it writes down."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MessageType, MetricRecord, RecordDict

from fedsim.engine.apps import assume_identity
from fedsim.federation.replies import Judged, judge
from fedsim.flower import LAYERS, Instruction, encode_instruction, encode_reply, encode_sent
from fedsim.ledger.schema import CLIENTS
from fedsim.records import ClientRow, LayerRow

MODEL = {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.array(0.5, np.float32)}
PLAIN = Instruction(round=3, arrays=MODEL, learning_rate=0.1)
FIGURES: dict[str, Any] = {
    "examples": 40,
    "steps": 4,
    "loss_first_step": 2.5,
    "loss_last_step": 1.5,
    "cpu_seconds": 0.25,
    "wall_seconds": 0.5,
    "saved_bytes": 28,
    "update_norm": 3.0,
}
GOOD_ROW = ClientRow(round=3, client=0, **FIGURES)


@pytest.fixture(autouse=True)
def identity() -> None:
    """Let this process create Flower messages."""
    assume_identity(1)


def asked(clients: Iterable[int], instruction: Instruction = PLAIN) -> dict[int, Message]:
    """Return a message to each client, with the id that a grid would give it."""
    content = encode_instruction(instruction)
    messages = {c: Message(content, c + 1, MessageType.TRAIN) for c in clients}
    for client, message in messages.items():
        message.metadata.__dict__["_message_id"] = f"message-{client}"
    return messages


def answer(
    to: Message,
    *,
    arrays: Mapping[str, np.ndarray] = MODEL,
    figures: Mapping[str, Any] = FIGURES,
    layers: Mapping[str, list[Any]] | None = None,
    control_change: Mapping[str, np.ndarray] | None = None,
) -> Message:
    """Return a good answer, with some of it changed."""
    return encode_reply(encode_sent(arrays, control_change), figures, layers or {}, to=to)


def judged(
    spoil: Callable[[RecordDict], None], instruction: Instruction = PLAIN, **settings: Any
) -> Judged:
    """Judge the answer of client 0, spoiled."""
    messages = asked([0], instruction)
    reply = answer(messages[0], **settings)
    spoil(reply.content)
    return judge(instruction, asked=messages, replies=[reply], timeout_seconds=9)


def test_a_good_answer() -> None:
    result = judged(lambda content: None)
    (update,) = result.updates
    assert (update.client, update.examples, update.control_change) == (0, 40, None)
    assert list(update.arrays) == ["w", "b"]
    for name, array in MODEL.items():
        assert update.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(update.arrays[name], array)
    assert result.clients == [GOOD_ROW]
    assert result.layers == []


def with_array(name: str, array: np.ndarray | Array | None) -> Callable[[RecordDict], None]:
    """Return what puts another array into the answer, or takes one out."""

    def spoil(content: RecordDict) -> None:
        record = content.array_records["arrays"]
        if array is None:
            del record[name]
        else:
            record[name] = array if isinstance(array, Array) else Array(array)

    return spoil


def with_value(value: float) -> Callable[[RecordDict], None]:
    w = MODEL["w"].copy()
    w[1, 1] = value
    return with_array("w", w)


def with_bytes(data: bytes) -> Callable[[RecordDict], None]:
    return with_array("w", Array("float32", (3, 2), "numpy.ndarray", data))


def with_metric(name: str, value: Any) -> Callable[[RecordDict], None]:
    """Return what puts another figure into the answer, or takes one out."""

    def spoil(content: RecordDict) -> None:
        metrics = content.metric_records["metrics"]
        if value is None:
            del metrics[name]
        else:
            metrics[name] = value

    return spoil


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, w=MODEL["w"])
    return file.getvalue()


GOOD = npy(MODEL["w"])
DIVERGED = r" \(if training diverged, lower train.learning_rate\)"
BAD_ARRAYS: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "nan": (with_value(np.nan), f"arrays: w holds NaN{DIVERGED}"),
    "infinity": (with_value(-np.inf), f"arrays: w holds infinity{DIVERGED}"),
    "shape": (
        with_array("w", MODEL["w"].T),
        r"arrays: w has shape \(2, 3\), not \(3, 2\)",
    ),
    "scalar": (with_array("b", np.zeros(1, np.float32)), r"arrays: b has shape \(1,\), not \(\)"),
    "dtype": (
        with_array("w", MODEL["w"].astype(np.float64)),
        "arrays: w has dtype float64, not float32",
    ),
    "byte order": (
        with_array("w", MODEL["w"].astype(">f4")),
        "arrays: w has dtype >f4, not float32",
    ),
    "missing name": (
        with_array("b", None),
        r"arrays: wrong names; missing \['b'\], unknown \[\]",
    ),
    "extra name": (
        with_array("c", MODEL["b"]),
        r"arrays: wrong names; missing \[\], unknown \['c'\]",
    ),
    "no record": (lambda content: content.pop("arrays"), "the reply has no 'arrays' record"),
    "empty": (with_bytes(b""), "arrays: cannot be decoded: .+"),
    "rubbish": (with_bytes(b"rubbish"), "arrays: cannot be decoded: .+"),
    "pickle": (with_bytes(pickle.dumps(MODEL["w"])), "arrays: cannot be decoded: .+"),
    "cut": (with_bytes(GOOD[:-1]), "arrays: cannot be decoded: .+"),
    "header": (with_bytes(GOOD.replace(b"(3, 2)", b"((((((")), "arrays: cannot be decoded: .+"),
    "objects": (with_bytes(GOOD.replace(b"<f4", b"|O8")), "arrays: cannot be decoded: .+"),
    # 109 TiB by its header: the memory is asked for before the bytes are read.
    "bomb": (
        with_bytes(GOOD.replace(b"(3, 2), }" + b" " * 9, b"(30000000000000,)}")),
        "arrays: cannot be decoded: .+",
    ),
    "zip": (with_bytes(b"PK\x03\x04rubbish"), "arrays: cannot be decoded: .+"),
    "npz": (with_bytes(npz()), "arrays: w is not an array"),
    "library": (
        with_array("w", Array("float32", (3, 2), "another.format", GOOD)),
        "arrays: cannot be decoded: .+",
    ),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays_are_rejected_and_the_figures_kept(kind: str) -> None:
    spoil, text = BAD_ARRAYS[kind]
    result = judged(spoil)
    assert result.updates == []
    assert result.layers == []
    (row,) = result.clients
    assert row == ClientRow(round=3, client=0, **FIGURES, status="rejected", error=row.error)
    assert row.error is not None
    assert re.fullmatch(text, row.error, re.DOTALL)


BAD_METRICS: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "no record": (lambda content: content.pop("metrics"), "the reply has no 'metrics' record"),
    "no examples": (with_metric("num-examples", None), "metric num-examples is missing"),
    "no loss": (with_metric("loss_last_step", None), "metric loss_last_step is missing"),
    "list": (with_metric("steps", [1, 2]), "metric steps is [1, 2]"),
    "zero examples": (
        with_metric("num-examples", 0),
        "metric num-examples = 0 is not a count of at least 1",
    ),
    "negative examples": (
        with_metric("num-examples", -5),
        "metric num-examples = -5 is not a count of at least 1",
    ),
    "half an example": (
        with_metric("num-examples", 2.5),
        "metric num-examples = 2.5 is not a count of at least 1",
    ),
    "nan examples": (
        with_metric("num-examples", float("nan")),
        "metric num-examples = nan is not a count of at least 1",
    ),
    "infinite examples": (
        with_metric("num-examples", float("inf")),
        "metric num-examples = inf is not a count of at least 1",
    ),
    "more examples than can be stored": (
        with_metric("num-examples", 2**63),
        "metric num-examples = 9223372036854775808 is not a count of at least 1",
    ),
    "no steps": (with_metric("steps", 0), "metric steps = 0 is not a count of at least 1"),
    "negative bytes": (
        with_metric("saved_bytes", -1),
        "metric saved_bytes = -1 is not a count of at least 0",
    ),
    "negative time": (
        with_metric("cpu_seconds", -0.5),
        "metric cpu_seconds = -0.5 is not a finite amount",
    ),
    "endless time": (
        with_metric("wall_seconds", float("inf")),
        "metric wall_seconds = inf is not a finite amount",
    ),
}


@pytest.mark.parametrize("kind", BAD_METRICS)
def test_bad_figures_are_rejected_and_none_is_kept(kind: str) -> None:
    spoil, text = BAD_METRICS[kind]
    result = judged(spoil)
    assert result.updates == []
    assert result.clients == [ClientRow(round=3, client=0, status="rejected", error=text)]


def test_an_extra_metric_is_accepted_and_noted() -> None:
    def spoil(content: RecordDict) -> None:
        content.metric_records["metrics"]["temperature"] = 36.6
        content.metric_records["metrics"]["battery"] = 1

    result = judged(spoil)
    assert len(result.updates) == 1
    (row,) = result.clients
    assert (row.status, row.error) == ("ok", "ignored metrics: battery, temperature")
    assert (row.examples, row.steps) == (40, 4)


def test_an_extra_record_is_accepted() -> None:
    result = judged(lambda content: content.__setitem__("more", MetricRecord({"x": 1})))
    assert result.clients == [GOOD_ROW]
    assert len(result.updates) == 1


def test_whole_numbers_may_come_as_floats() -> None:
    result = judged(with_metric("num-examples", 40.0))
    assert result.clients == [GOOD_ROW]
    assert type(result.clients[0].examples) is int
    assert type(result.updates[0].examples) is int


def test_losses_may_be_anything_that_the_ledger_can_store() -> None:
    result = judged(with_metric("loss_last_step", float("nan")))
    assert [row.status for row in result.clients] == ["ok"]
    assert len(list(CLIENTS.values(result.clients))) == 1


def test_arrays_come_in_the_order_of_the_model() -> None:
    result = judged(lambda content: None, arrays=dict(reversed(MODEL.items())))
    assert list(result.updates[0].arrays) == ["w", "b"]


def test_clients_that_failed_or_said_nothing() -> None:
    messages = asked([2, 5, 7, 8])
    replies = [
        answer(messages[8]),
        Message(Error(code=6, reason="ValueError: no disk"), reply_to=messages[5]),
        Message(Error(code=5), reply_to=messages[7]),
    ]
    result = judge(PLAIN, asked=messages, replies=replies, timeout_seconds=0.5)
    assert [update.client for update in result.updates] == [8]
    assert [(row.client, row.status, row.error) for row in result.clients] == [
        (2, "timeout", "no reply within 0.5 s"),
        (5, "failed", "ValueError: no disk"),
        (7, "failed", "error code 5"),
        (8, "ok", None),
    ]
    assert all(row.round == 3 for row in result.clients)
    assert all(row.examples is None for row in result.clients[:3])


def test_replies_belong_to_the_message_they_answer() -> None:
    """Flower gives the reply in the name of a dead node the id of another."""
    messages = asked([0, 1])
    reply = Message(Error(code=5, reason="node unavailable"), reply_to=messages[1])
    reply.metadata.__dict__["_src_node_id"] = 1  # which is client 0's
    result = judge(PLAIN, asked=messages, replies=[reply, answer(messages[0])], timeout_seconds=1)
    assert [(row.client, row.status) for row in result.clients] == [(0, "ok"), (1, "failed")]


def test_a_reply_to_nothing_that_was_asked_is_ignored() -> None:
    messages = asked([0, 1, 2])
    stray = answer(messages.pop(2))
    result = judge(PLAIN, asked=messages, replies=[stray], timeout_seconds=1)
    assert [row.status for row in result.clients] == ["timeout", "timeout"]
    assert result.updates == []


def test_the_order_of_replies_is_of_no_account() -> None:
    messages = asked([4, 6, 9])
    replies = [answer(m, figures={**FIGURES, "examples": client}) for client, m in messages.items()]
    results = [
        judge(PLAIN, asked=messages, replies=order, timeout_seconds=1)
        for order in (replies, replies[::-1], [replies[1], replies[2], replies[0]])
    ]
    for result in results:
        assert [update.client for update in result.updates] == [4, 6, 9]
        assert [row.examples for row in result.clients] == [4, 6, 9]


CONTROLLED = Instruction(round=3, arrays=MODEL, learning_rate=0.1, control=MODEL)


def test_a_control_variate_is_due_where_one_was_sent() -> None:
    result = judged(lambda content: None, CONTROLLED, control_change=MODEL)
    change = result.updates[0].control_change
    assert change is not None
    np.testing.assert_array_equal(change["w"], MODEL["w"])
    missing = judged(lambda content: None, CONTROLLED)
    assert missing.updates == []
    assert missing.clients[0].error == "the reply has no 'control' record"


def test_a_control_variate_is_judged_as_the_model_is() -> None:
    spoiled = {**MODEL, "b": np.array(np.nan, np.float32)}
    result = judged(lambda content: None, CONTROLLED, control_change=spoiled)
    assert result.updates == []
    assert (result.clients[0].error or "").startswith("control: b holds NaN")


def test_a_control_variate_that_nobody_asked_for_is_ignored() -> None:
    result = judged(lambda content: None, control_change={"x": np.array([np.nan])})
    assert result.clients == [GOOD_ROW]
    assert result.updates[0].control_change is None


FAIR = Instruction(round=3, arrays=MODEL, learning_rate=0.1, initial_loss=True)


def test_an_initial_loss_is_due_where_it_was_asked_for() -> None:
    good = judged(lambda content: None, FAIR, figures={**FIGURES, "initial_loss": 2.0})
    assert [row.status for row in good.clients] == ["ok"]
    for value, text in ((None, "is missing"), (float("nan"), "= nan is not a finite amount")):
        figures = FIGURES if value is None else {**FIGURES, "initial_loss": value}
        bad = judged(lambda content: None, FAIR, figures=figures)
        assert bad.updates == []
        assert bad.clients[0].error == f"metric initial_loss {text}"


LAYER_COLUMNS: dict[str, list[Any]] = {
    "layer": ["dense1", "dense1"],
    "phase": ["before", "after"],
    "parameters": [520, 520],
    "zero_fraction": [0.5, 0.25],
    "gradient_norm": [2.0, float("inf")],
    "update_norm": [float("nan"), 1.5],
}


def test_columns_of_layers_become_rows() -> None:
    result = judged(lambda content: None, layers=LAYER_COLUMNS)
    both = {"round": 3, "client": 0, "layer": "dense1", "parameters": 520}
    assert result.layers == [
        LayerRow(**both, phase="before", zero_fraction=0.5, gradient_norm=2.0),
        LayerRow(
            **both, phase="after", zero_fraction=0.25, gradient_norm=float("inf"), update_norm=1.5
        ),
    ]
    assert result.clients == [GOOD_ROW]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"phase": ["before"]}, "no equally long columns of layer and phase"),
        ({"layer": 3}, "no equally long columns of layer and phase"),
        ({"phase": ["before", "global"]}, "a phase that is unknown"),
        ({"phase": ["after", "after"]}, "a layer that is named twice"),
        ({"zero_fraction": [0.5]}, "zero_fraction is no column of 2 figures"),
        ({"zero_fraction": [0.5, -1.0]}, "zero_fraction = -1.0 is not a finite amount"),
        ({"zero_fraction": ["a", "b"]}, "zero_fraction = 'a' is no number"),
        ({"parameters": [1, 2**63]}, "parameters = 9223372036854775808 is not a finite amount"),
    ],
    ids=str,
)
def test_layers_that_cannot_be_are_left_out_and_noted(change: dict[str, Any], text: str) -> None:
    result = judged(lambda content: None, layers={**LAYER_COLUMNS, **change})
    assert result.layers == []
    (row,) = result.clients
    assert row.status == "ok"
    assert (row.error or "").startswith("ignored layers: ")
    assert text in (row.error or "")
    assert len(result.updates) == 1


def test_a_record_of_layers_that_is_of_another_kind_is_ignored() -> None:
    spoil = lambda content: content.__setitem__(LAYERS, MetricRecord({"x": 1}))  # noqa: E731
    assert judged(spoil).clients == [GOOD_ROW]


def test_figures_that_only_the_server_knows_are_not_taken_from_a_client() -> None:
    result = judged(lambda content: None, figures={**FIGURES, "wire_bytes": 5, "drift_cosine": 1.0})
    (row,) = result.clients
    assert (row.wire_bytes, row.drift_cosine) == (None, None)
    assert row.error == "ignored metrics: drift_cosine, wire_bytes"


def test_an_answer_without_content_is_no_answer() -> None:
    messages = asked([0])
    empty = Message(RecordDict({"arrays": ArrayRecord()}), reply_to=messages[0])
    result = judge(PLAIN, asked=messages, replies=[empty], timeout_seconds=1)
    assert result.clients[0].error == "the reply has no 'metrics' record"
