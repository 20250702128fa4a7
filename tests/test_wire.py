"""Wire bytes: the formula against Flower's own serialisation, to the byte."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from unittest import mock

import flwr.app.message.array
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable import inflatable_object
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim.federation.wire
from fedsim.engine.apps import assume_identity
from fedsim.engine.arrays import SharedArray
from fedsim.federation.strategy import held
from fedsim.federation.wire import message_bytes


def flowers_bytes(message: Message) -> int:
    """Serialise everything, and let Flower's own store say what it then wants to be sent."""
    content = {name: obj.deflate() for name, obj in get_all_nested_objects(message).items()}
    wanted = InMemoryObjectStore().preregister(1, get_object_tree(message))
    if message.metadata.reply_to_message_id:  # a SuperNode pushes what it is asked for, as a set,
        wanted = set(wanted)
    return sum(len(content[name]) for name in wanted)  # and pulls what the store lacks, as a list


@contextmanager
def chunks_of(size: int):
    """Cut arrays into small chunks, on both sides."""
    with ExitStack() as patches:
        patches.enter_context(
            mock.patch.object(flwr.app.message.array, "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", size)
        )
        patches.enter_context(mock.patch.object(fedsim.federation.wire, "CHUNK_BYTES", size))
        yield


def instruction(content: RecordDict, node: int = 2**64 - 59, **metadata) -> Message:
    assume_identity(2**63 + 11)
    return Message(content, node, metadata.pop("message_type", "train"), **metadata)


def reply(content: RecordDict | Error, message_id: str = "b5" * 32) -> Message:
    request = instruction(RecordDict(), group_id="3")
    request.metadata.__dict__["_message_id"] = message_id
    return Message(content, reply_to=request)


def both(content: RecordDict) -> list[Message]:
    return [instruction(content, group_id="3"), reply(content)]


def arrays(**named: np.ndarray) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in named.items()})


# Few names and few values, so that equal things meet; and any text at all.
NAMES = st.sampled_from(["", "a", "w", "0.weight", 'qu"ote\\', "größe", "層\n", "🙂"]) | st.text()
INT64 = st.integers(-(2**63), 2**63 - 1)
UINT64 = st.integers(0, 2**64 - 1)
NUMBERS = [
    st.sampled_from([-1, 0, 1, 63, 64, 127, 128, 2**63 - 1, -(2**63)]) | INT64,
    UINT64,
    st.floats(),
]
TEXTS = [st.text(), st.binary(), st.booleans()]
DTYPES = ["f4", "f8", "f2", ">f4", "i1", "u1", "i8", "?", "c8", "U3", "M8[s]"]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 7, 64, 1000]), max_size=2).map(tuple)


def of_kinds(kinds: list) -> st.SearchStrategy:
    return st.one_of(*kinds, *[st.lists(kind, max_size=40) for kind in kinds])


@st.composite
def some_array(draw) -> Array:
    values = np.full(draw(SHAPES), draw(st.integers(0, 1))).astype(draw(st.sampled_from(DTYPES)))
    if values.ndim == 2 and draw(st.booleans()):
        values = np.asfortranarray(values)
    if draw(st.booleans()):
        return Array(values)
    data = draw(st.binary() | st.sampled_from([bytes(700), bytes(1000)]))  # a codec's own form
    return Array(str(values.dtype), values.shape, draw(st.text(max_size=5)), data)


RECORDS = st.one_of(
    st.dictionaries(NAMES, some_array(), max_size=6).map(ArrayRecord),
    st.dictionaries(NAMES, of_kinds(NUMBERS), max_size=6).map(MetricRecord),
    st.dictionaries(NAMES, of_kinds([*NUMBERS, *TEXTS]), max_size=6).map(ConfigRecord),
)
CONTENTS = st.dictionaries(NAMES, RECORDS, max_size=4).map(RecordDict)


@settings(max_examples=150, deadline=None)
@given(content=CONTENTS, chunk_bytes=st.sampled_from([64, 100, 128, 1000, 5 * 2**20]))
def test_a_message_has_the_bytes_that_flower_serialises(content, chunk_bytes):
    with chunks_of(chunk_bytes):
        for message in both(content):
            assert message_bytes(message) == flowers_bytes(message)


INTEGERS = [0, -1, 1, 63, 64, -64, -65, 2**62 - 1, 2**62, -(2**62) - 1, 2**63 - 1, -(2**63)]
LARGE = [2**63, 2**64 - 1]
NUMBERS_AT_THE_EDGE = [*INTEGERS, *LARGE, 0.0, -0.0, float("nan"), np.float64(2.5)]
LISTS_AT_THE_EDGE = [[], INTEGERS, LARGE, [5, 64, 2**63], [0.0], [1e308] * 16]
TEXTS_AT_THE_EDGE = ["", "größe", "x" * 127, "x" * 128, b"", b"\0" * 200, True, False]
TEXT_LISTS_AT_THE_EDGE = [["", "層", "x" * 300], [b"", b"\xff" * 130], [True, False]]


@pytest.mark.parametrize("value", [*NUMBERS_AT_THE_EDGE, *LISTS_AT_THE_EDGE])
def test_a_number_counts_at_the_edges_of_its_encoding(value):
    for record in (MetricRecord({"n": value}), ConfigRecord({"": value})):
        message = reply(RecordDict({"r": record}))
        assert message_bytes(message) == flowers_bytes(message)


@pytest.mark.parametrize("value", [*TEXTS_AT_THE_EDGE, *TEXT_LISTS_AT_THE_EDGE])
def test_a_text_counts_at_the_edges_of_its_encoding(value):
    message = reply(RecordDict({"r": ConfigRecord({"n": value})}))
    assert message_bytes(message) == flowers_bytes(message)


@settings(max_examples=50, deadline=None)
@given(
    node=UINT64,
    group_id=st.text(),
    ttl=st.floats(1, 1e6),
    message_type=st.sampled_from(["train", "evaluate", "query.größe"]),
    message_id=st.text(),
)
def test_the_metadata_counts_as_it_stands(node, group_id, ttl, message_type, message_id):
    request = instruction(RecordDict(), node, group_id=group_id, ttl=ttl, message_type=message_type)
    assert message_bytes(request) == flowers_bytes(request)
    # Its own id is no part of a message: that is computed from the rest.
    request.metadata.__dict__["_message_id"] = message_id
    assert message_bytes(request) == flowers_bytes(request)
    answer = Message(RecordDict(), reply_to=request)
    assert message_bytes(answer) == flowers_bytes(answer)


@given(code=INT64, reason=st.none() | st.text())
def test_an_error_is_its_code_and_reason(code, reason):
    message = reply(Error(code, reason))
    assert message_bytes(message) == flowers_bytes(message)


def test_a_message_by_hand():
    """Flower's format, written out: what this module's docstring says, on the smallest example."""
    message = reply(RecordDict({"m": MetricRecord({"n": 300, "x": 1.0})}), message_id="")
    items = (2 + (1 + 1 + 1) + (2 + (1 + 2))) + (2 + (1 + 1 + 1) + (2 + (1 + 8)))
    record = len(f"MetricRecord  {items}\0") + items
    content = len("RecordDict " + "0" * 64 + " 71\0" + '{"m": "' + "0" * 64 + '"}')
    metadata = message.metadata
    body = 2 * 9  # ttl and created_at, doubles
    body += 2 + len("train") + 2 + len("3")
    for number in (metadata.run_id, metadata.src_node_id, metadata.dst_node_id):
        body += 1 + -(-number.bit_length() // 7)
    body += sum(
        1 + max(1, -(-number.bit_length() // 7))
        for number in (metadata.src_task_id, metadata.dst_task_id)
        if number is not None
    )
    body += 2  # the metadata's own tag and length
    whole = len("Message " + "0" * 64 + f" {body}\0") + body + content + record
    assert items == 26
    assert message_bytes(message) == flowers_bytes(message) == whole


def test_a_large_array_travels_in_chunks_and_equal_chunks_once():
    rng = np.random.default_rng(0)
    zeros = np.zeros(4_000_000, np.float32)  # 16 MB: three chunks of 5 MiB and a rest
    noise = rng.standard_normal(2_000_000).astype(np.float32)
    for message in both(RecordDict({"arrays": arrays(zeros=zeros, noise=noise)})):
        assert message_bytes(message) == flowers_bytes(message)
        # The first chunk holds the header, the next two are equal.
        assert zeros.nbytes - 5.3e6 < message_bytes(message) - noise.nbytes < zeros.nbytes - 5.2e6


def test_a_chunk_that_just_fits_is_one():
    limit = 5 * 2**20
    sizes = [
        message_bytes(reply(RecordDict({"a": ArrayRecord({"a": Array("u1", (), "x", data)})})))
        for data in (bytes(limit), bytes(limit + 1))
    ]
    assert sizes[1] - sizes[0] == len("ArrayChunk  1\0") + 1 + len(", 1") + len("," + "0" * 64)


def test_what_occurs_twice_goes_up_once_and_comes_down_twice():
    zeros = np.zeros(500, np.float32)
    once, twice = (
        RecordDict({name: arrays(x=zeros, **{name: np.ones(3)}) for name in names})
        for names in ("a", "ab")
    )
    up = [message_bytes(reply(content)) for content in (once, twice)]
    down = [message_bytes(instruction(content)) for content in (once, twice)]
    assert up[1] - up[0] < zeros.nbytes < 2 * zeros.nbytes < down[1] - down[0] + zeros.nbytes
    for message in (*both(once), *both(twice)):
        assert message_bytes(message) == flowers_bytes(message)
    # Under two names of one record it is one object below that record, either way.
    for message in both(RecordDict({"a": arrays(x=zeros, y=zeros)})):
        assert message_bytes(message) == flowers_bytes(message) < 2 * zeros.nbytes


def test_arrays_that_differ_in_one_byte_are_two():
    a = np.zeros(1000, np.float32)
    for place in (0, 500, 999):
        b = a.copy()
        b[place] = 1
        for message in both(RecordDict({"arrays": arrays(a=a, b=b)})):
            assert message_bytes(message) == flowers_bytes(message) > 2 * a.nbytes


def test_arrays_in_the_object_store_count_without_a_copy():
    rng = np.random.default_rng(1)
    scalar = np.array(1, np.float32)
    plain = arrays(w=rng.random((30, 20)), v=np.zeros(7), u=np.zeros(7), scalar=scalar)
    shared = ArrayRecord()
    for name, array in plain.items():  # one by one: the constructor makes plain copies
        form = (array.dtype, array.shape, array.stype)
        shared[name] = SharedArray(*form, memoryview(array.data))
    for message, flowers in zip(
        *(both(RecordDict({"a": r})) for r in (shared, plain)), strict=True
    ):
        with chunks_of(1000):
            assert message_bytes(message) == flowers_bytes(flowers)
    assert all(set(vars(a)) == {"dtype", "shape", "stype", "_view"} for a in shared.values())


def test_arrays_held_for_a_strategy_count_as_what_they_would_serialise_to():
    values = {"w": np.ones((3, 4), np.float32), "b": np.zeros(4, np.float32)}
    wide = {name: value.astype(np.float64) for name, value in values.items()}
    ours, flowers = (reply(RecordDict({"a": r})) for r in (held(values), arrays(**wide)))
    assert message_bytes(ours) == flowers_bytes(flowers)


def test_no_array_is_hashed_and_nothing_is_kept(monkeypatch):
    hashed = []
    real = inflatable_object.get_object_id
    monkeypatch.setattr(
        inflatable_object, "get_object_id", lambda data: (hashed.append(len(data)), real(data))[1]
    )
    record = arrays(a=np.zeros(100_000), b=np.ones(100_000))
    message = reply(RecordDict({"arrays": record, "metrics": MetricRecord({"x": 1})}))
    before = [dict(vars(array)) for array in record.values()]
    assert message_bytes(message) > 2 * 800_000
    assert sum(hashed) < 1000
    assert [dict(vars(array)) for array in record.values()] == before
    assert not {"_object_id"} & {*vars(record), *vars(message), *vars(message.content)}


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_what_flower_cannot_send_it_still_refuses_itself(value):
    """The formula judges nothing; it is Flower that raises, when the message is sent."""
    with pytest.raises(ValueError, match="out of range"):
        flowers_bytes(reply(RecordDict({"m": MetricRecord({"x": value})})))
