"""Secure aggregation's messages and states as records: they come back, and damage is told."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import SecureAggregationRefused
from fedsim.privacy.secagg import ClientSide, ServerSide, Session, from_state, to_state, wire
from fedsim.privacy.secagg.fields import Record
from fedsim.privacy.secagg.messages import LARGEST_ID, MaskedInput, Message, payload_bytes

SESSION = Session(run=b"sixteen bytes ..", round=2)
CLIENTS = (0, 3, 4, 2**63 - 1)


def round_of_messages() -> tuple[list[Message], list[Record]]:
    """A session in which all goes over the wire: every message, and a state of every stage."""
    server = ServerSide(SESSION, CLIENTS, words=6, word_bits=64)
    sides = {one: ClientSide(session=SESSION, client=one) for one in CLIENTS}
    vectors = {one: np.full(6, one, np.uint64) for one in CLIENTS}
    messages: list[Message] = []
    states: list[Record] = []

    def over(message: Any) -> Any:
        messages.append(message)
        return wire.unpack(type(message), wire.pack(message))

    requests: Any = server.invite()
    for stage, step in enumerate((server.introduce, server.deliver, server.request, server.unmask)):
        replies = []
        for one, request in requests.items():
            if (stage, one) == (2, 4):
                continue  # drops out, so that stage 3 has somebody in either list
            side = from_state(to_state(sides[one]))
            arrived = over(request)
            if stage == 2:
                reply: Message = side.mask(arrived, vectors[one])
            else:
                reply = (side.advertise, side.share_keys, side.mask, side.unmask)[stage](arrived)  # type: ignore[call-arg,arg-type]
            replies.append(over(reply))
            sides[one] = side
            states.append(to_state(side))
        requests = step(replies)
    assert requests.clients == (0, 3, 2**63 - 1)
    assert requests.words.tolist() == [3 + 2**63 - 1] * 6
    return messages, states


MESSAGES, STATES = round_of_messages()
KINDS = {type(message): message for message in MESSAGES}
RECORDS = [*((kind, wire.pack(message)) for kind, message in KINDS.items()), (None, STATES[1])]
RECORDS += [(None, STATES[5]), (None, STATES[9])]


def read(kind: type[Message] | None, record: Any) -> Record:
    """Unpack a record, of a message or of a state, and pack it again."""
    return to_state(from_state(record)) if kind is None else wire.pack(wire.unpack(kind, record))


def test_every_kind_of_message_was_sent() -> None:
    assert set(KINDS) == set(wire.KINDS) == set(wire.FIELDS)


@pytest.mark.parametrize("kind", wire.KINDS)
def test_a_message_comes_back_and_its_record_holds_what_is_counted(kind: type[Message]) -> None:
    record = wire.pack(KINDS[kind])
    assert read(kind, record) == record
    counted = sum(size(value) for value in record.values())
    header = 8 + 8 + (8 if kind is MaskedInput else 0)  # version, kind; bits of a word
    assert counted == payload_bytes(KINDS[kind]) + header


def size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(size, value))
    return 8 if isinstance(value, int) else len(value)


@pytest.mark.parametrize("kind", wire.KINDS)
def test_a_message_is_none_of_another_kind(kind: type[Message]) -> None:
    for other in wire.KINDS:
        if other is not kind:
            with pytest.raises(ValueError, match=f"{other.__name__} of .*kind"):
                wire.unpack(other, wire.pack(KINDS[kind]))


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=80),
    st.lists(st.integers(-1, LARGEST_ID + 1), max_size=5),
    st.lists(st.binary(max_size=40), max_size=5),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[type[Message] | None, dict[Any, Any]]:
    """A record in which something was put elsewhere, left out, added, cut or turned."""
    kind, original = draw(st.sampled_from(RECORDS))
    record: dict[Any, Any] = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(original)))
        value = record.get(name)
        how = draw(st.sampled_from(["drop", "add", "replace", "bend"]))
        if how == "drop":
            record.pop(name, None)
        elif how == "add":
            record[draw(st.sampled_from(["more", 7, b"x", None]))] = draw(anything)
        elif how == "replace" or not value:
            record[name] = draw(anything)
        elif isinstance(value, bytes):
            record[name] = draw(st.sampled_from([value[:-1], value + b"x", value[1:], b""]))
        elif isinstance(value, int):
            record[name] = draw(st.sampled_from([value + 1, -value - 1, value << 64, float(value)]))
        elif isinstance(value, list):
            turned = [value[::-1], value[:-1], value + value[-1:], [*value[:-1], None]]
            record[name] = draw(st.sampled_from(turned))
    return kind, record


@settings(max_examples=250, deadline=None)
@given(damaged())
def test_a_damaged_record_is_refused_or_is_another_sound_one(case: Any) -> None:
    kind, record = case
    with contextlib.suppress(SecureAggregationRefused):
        assert read(kind, record) == record


def test_a_refusal_is_a_value_error() -> None:
    assert issubclass(SecureAggregationRefused, ValueError)


@pytest.mark.parametrize("kind", wire.KINDS)
def test_every_field_is_checked(kind: type[Message]) -> None:
    record = wire.pack(KINDS[kind])
    for name in record:
        for wrong in (None, "text", 1.0, True, (1, 2)):
            with pytest.raises(ValueError, match=rf"{kind.__name__} of .*{name}"):
                wire.unpack(kind, {**record, name: wrong})
        with pytest.raises(ValueError, match=f"{kind.__name__} of .*{name}"):
            wire.unpack(kind, {key: value for key, value in record.items() if key != name})


def test_ids_ascend_so_that_none_is_there_twice() -> None:
    record = wire.pack(KINDS[wire.Delivery])
    others = record["others"]
    assert isinstance(others, list)
    for wrong in (others[::-1], [others[0], others[0], *others[2:]]):
        with pytest.raises(ValueError, match="ids ascend, each there once"):
            wire.unpack(wire.Delivery, {**record, "others": wrong})


def test_words_are_whole_and_cannot_be_written_to() -> None:
    record = wire.pack(MaskedInput(session=SESSION, client=1, words=np.arange(3, dtype=np.uint32)))
    assert record["words"] == bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])
    message = wire.unpack(MaskedInput, record)
    assert message.words.dtype == np.uint32
    assert not message.words.flags.writeable
    for field, wrong, why in (("words", b"12345", "no whole"), ("word_bits", 48, "32, 64")):
        with pytest.raises(ValueError, match=why):
            wire.unpack(MaskedInput, {**record, field: wrong})


def test_a_state_holds_bytes_and_integers_alone_and_no_secret_at_the_end() -> None:
    for state in STATES:
        for value in state.values():
            for item in value if isinstance(value, list) else [value]:
                assert type(item) in (bytes, int)
    last = STATES[-1]
    assert last["stage"] == 4
    assert not any(last[name] for name in ("seed", "mask_private", "share_private", "owners"))


def test_a_record_fits_into_flowers_own() -> None:
    from flwr.common import ConfigRecord

    for kind, record in RECORDS:
        assert read(kind, dict(ConfigRecord(record))) == record
