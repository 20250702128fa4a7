"""How many bytes a message is on Flower's wire, counted without writing it there.

Flower 1.41 (``flwr/supercore/inflatable``) sends a message as a tree of objects, each known by the
SHA-256 of its content and sent in an HTTP body of its own: the message, its ``RecordDict``, the
records, the arrays, and the arrays' bytes in chunks of at most 5 MiB. An object is::

    <type> <ids of the objects below it, comma between> <bytes of the body>\\0<body>

and its body is a protobuf (message, metrics, config), a JSON object from names to ids
(``RecordDict``, ``ArrayRecord``), JSON of dtype, shape and chunks (``Array``), or bytes (chunk).
Equal objects are one object. Nothing is compressed.

docs/decisions/0008-wire-bytes.md says what is counted and what is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES

ID = "0" * 64  # as long as every object's id
FINGERPRINT_BYTES = 64
LARGEST_INT64 = 2**63 - 1


def message_bytes(message: Message) -> int:
    """Return the bytes of the objects that carry this message between SuperLink and SuperNode.

    They are what Flower puts into ``object_content``, to the byte. What it wraps around them is
    framing: HTTP headers, the ids beside each object, the announcement of the message,
    acknowledgements, polling.

    An object that occurs twice in a message goes up once and comes down twice: a SuperNode asks
    for what its message's tree lists, and offers each object once. So a reply is counted without
    its repetitions and any other message with them. What the other side has already from another
    message is counted all the same.

    Arrays are neither copied nor hashed; two are compared where length and last bytes agree.
    """
    envelope = envelope_bytes(message)
    return envelope + content_bytes(message) if message.has_content() else envelope


def envelope_bytes(message: Message) -> int:
    """Return the bytes of a message's first object, which holds its metadata or its error."""
    # Flower announces a message by this stand-in, whose content has an id of the same length.
    return len(remove_content_from_message(message).deflate())


def content_bytes(message: Message) -> int:
    """Return the bytes of a message's other objects; equal for requests with equal content."""
    objects = Objects()
    content = add_content(objects, message.content)
    is_reply = bool(message.metadata.reply_to_message_id)
    return sum(objects.sizes) if is_reply else objects.trees[content]


class Objects:
    """The different objects of one message, numbered as they come.

    ``sizes`` are their bytes, ``trees`` their bytes with those of everything below them, repeated
    where it hangs below several.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self.sizes: list[int] = []
        self.trees: list[int] = []

    def add(self, key: Hashable, size: int, below: Iterable[int] = ()) -> int:
        """Return the number of the object with this content, which is new or known."""
        number = self._numbers.setdefault(key, len(self.sizes))
        if number == len(self.sizes):
            self.sizes.append(size)
            self.trees.append(size + sum(self.trees[child] for child in below))
        return number


class Content:
    """An object's content as a key: read only to compare it with one of the same fingerprint."""

    def __init__(self, fingerprint: Hashable, read: Callable[[], bytes | memoryview]) -> None:
        self.fingerprint, self.read = fingerprint, read

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Content) or self.fingerprint != other.fingerprint:
            return False
        mine, others = (np.frombuffer(part.read(), np.uint8) for part in (self, other))
        return np.array_equal(mine, others)


def add_content(objects: Objects, content: RecordDict) -> int:
    """Add a message's content and everything in it; return its number."""
    records = [add_record(objects, record) for record in content.values()]
    below = dict.fromkeys(records)
    size = references_bytes("RecordDict", tuple(content), len(below))
    return objects.add(("RecordDict", *content, *records), size, below)


def add_record(objects: Objects, record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    """Add a record and its arrays; return its number."""
    if isinstance(record, ArrayRecord):
        arrays = [add_array(objects, array) for array in record.values()]
        below = dict.fromkeys(arrays)
        size = references_bytes("ArrayRecord", tuple(record), len(below))
        return objects.add(("ArrayRecord", *record, *arrays), size, below)
    kind = "MetricRecord" if isinstance(record, MetricRecord) else "ConfigRecord"
    body = sum(item_bytes(name, value_bytes(value)) for name, value in record.items())
    size = object_bytes(kind, 0, body)
    return objects.add(Content((kind, size), record.deflate), size)


def add_array(objects: Objects, array: Array) -> int:
    """Add an array and its chunks; return its number."""
    content = serialised(array)
    chunks = [
        add_chunk(objects, content[start : start + CHUNK_BYTES])
        for start in range(0, len(content), CHUNK_BYTES)
    ]
    below = list(dict.fromkeys(chunks))
    form = (array.dtype, array.shape, array.stype)
    size = array_bytes(*form, tuple(below.index(chunk) for chunk in chunks), len(below))
    return objects.add(("Array", *form, *chunks), size, below)


def add_chunk(objects: Objects, chunk: memoryview) -> int:
    """Add a chunk; return its number."""
    fingerprint = (len(chunk), bytes(chunk[-FINGERPRINT_BYTES:]))
    size = object_bytes("ArrayChunk", 0, len(chunk))
    return objects.add(Content(fingerprint, lambda: chunk), size)


def serialised(array: Array) -> memoryview:
    """Return an array's bytes where they lie."""
    # What lies in Ray's object store (engine.arrays.SharedArray) has parts; its ``data`` copies.
    parts = getattr(array, "parts", None)
    return memoryview(array.data if parts is None else parts()[-1]).cast("B")


def object_bytes(kind: str, children: int, body: int) -> int:
    """Return the size of an object, from its type's name, its children and its body's bytes."""
    ids = children * (len(ID) + 1) - 1 if children else 0
    return len(f"{kind}  {body}\0") + ids + body


@lru_cache(maxsize=1024)
def references_bytes(kind: str, names: tuple[str, ...], children: int) -> int:
    """Return the size of an object whose body says which name stands for which object."""
    return object_bytes(kind, children, len(json.dumps(dict.fromkeys(names, ID))))


@lru_cache(maxsize=1024)
def array_bytes(
    dtype: str, shape: tuple[int, ...], stype: str, chunks: tuple[int, ...], children: int
) -> int:
    """Return the size of an array without its chunks, which it lists by position."""
    body = {"dtype": dtype, "shape": shape, "stype": stype, "arraychunk_ids": chunks}
    return object_bytes("Array", children, len(json.dumps(body)))


@lru_cache(maxsize=4096)
def item_bytes(name: str, value: int) -> int:
    """Return the size of a metric or setting in ``flwr/proto/recorddict.proto``.

    An item is a field of its record: its name (left out if it is empty) and its value, of as many
    bytes as are given.
    """
    text = len(name.encode())
    return field_bytes((field_bytes(text) if text else 0) + field_bytes(value))


def value_bytes(value: Any) -> int:
    """Return the size of a value: a field that holds a number, a text or a list of these.

    Its tag is one byte, for lists two.
    """
    if isinstance(value, float):
        return 9
    if isinstance(value, int):
        return 1 + integer_bytes(value)
    if isinstance(value, list):
        return 1 + field_bytes(list_bytes(value))
    return field_bytes(text_bytes(value))


def list_bytes(values: list[Any]) -> int:
    """Return the size of a list: numbers are packed into one field, texts have one each."""
    if not values:
        return 0
    if isinstance(values[0], float):
        return field_bytes(8 * len(values))
    if isinstance(values[0], int):
        size = varint_bytes if max(values) > LARGEST_INT64 else integer_bytes
        return field_bytes(sum(map(size, values)))
    return sum(field_bytes(text_bytes(value)) for value in values)


def integer_bytes(value: int) -> int:
    """Return the size of an integer or truth value: a varint, its sign in the lowest bit (zigzag).

    Above 63 bits Flower sends it without a sign, which is ten bytes as well.
    """
    return varint_bytes(value << 1 if value >= 0 else ~(value << 1))


def text_bytes(value: str | bytes) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(value.encode() if isinstance(value, str) else value)


def field_bytes(length: int) -> int:
    """Return the size of a field of that many bytes: its tag (one byte), its length, itself."""
    return 1 + varint_bytes(length) + length


def varint_bytes(value: int) -> int:
    """Return the size of a number of at least 0 in protobuf: seven bits to the byte."""
    return ((value | 1).bit_length() + 6) // 7
