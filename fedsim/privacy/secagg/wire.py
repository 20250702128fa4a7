"""Messages as records of bytes, integers and lists of them, which is what Flower's can hold.

Each record names the protocol's version, its kind, and the session. ``unpack`` takes nothing for
granted: exactly the fields of its kind, of the right types and lengths, ids in ascending order. It
tells damage and foreign messages; what a message may say at this point, the two sides check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from fedsim.privacy.secagg.fields import Reader, Record, columns
from fedsim.privacy.secagg.keys import BOX_BYTES, VERSION
from fedsim.privacy.secagg.masks import WORDS
from fedsim.privacy.secagg.messages import (
    KEY_BYTES,
    LONGEST_RUN_BYTES,
    Advertisement,
    Delivery,
    Invitation,
    MaskedInput,
    Message,
    Neighbour,
    Neighbourhood,
    SealedShares,
    Session,
    Unmasking,
    UnmaskRequest,
)

AnyMessage = TypeVar("AnyMessage", bound=Message)
LARGEST_MASKED_BYTES = 2**31 - 1  # no message of Flower's is longer

KINDS: tuple[type[Message], ...] = (
    *(Invitation, Advertisement, Neighbourhood, SealedShares),
    *(Delivery, MaskedInput, UnmaskRequest, Unmasking),
)


def pack(message: Message) -> Record:
    """Return a message as a record."""
    return {
        "version": VERSION,
        "kind": KINDS.index(type(message)),
        "run": message.session.run,
        "round": message.session.round,
        "client": message.client,
        **content(message),
    }


def unpack(kind: type[AnyMessage], record: Mapping[str, object]) -> AnyMessage:
    """Return the message of a record.

    Args:
        kind: the class of the message that is due.
        record: what :func:`pack` made of it, or anything else.

    Raises:
        SecureAggregationRefused: a ``ValueError`` that names the field and what is wrong with it.
    """
    read = Reader(f"{kind.__name__} of secure aggregation", record)
    number = KINDS.index(kind)
    read.integer("version", VERSION, VERSION)
    read.integer("kind", number, number)
    read.expect(("version", "kind", "run", "round", "client", *FIELDS[kind]))
    session = Session(run=read.blob("run", 1, LONGEST_RUN_BYTES), round=read.integer("round"))
    inside = READ[kind](read) if kind in READ else {}
    return kind(session=session, client=read.integer("client"), **inside)


def content(message: Message) -> Record:
    """Return the fields that only this kind of message has."""
    match message:
        case Advertisement():
            return {name: getattr(message, name) for name in FIELDS[Advertisement]}
        case Neighbourhood():
            around = sorted(message.neighbours, key=lambda neighbour: neighbour.client)
            return {
                "threshold": message.threshold,
                "neighbours": [neighbour.client for neighbour in around],
                "mask_keys": [neighbour.mask_key for neighbour in around],
                "share_keys": [neighbour.share_key for neighbour in around],
            }
        case SealedShares() | Delivery():
            return columns(message.boxes, "others", "boxes")
        case MaskedInput():
            words = message.words
            return {
                "word_bits": 8 * words.itemsize,
                "words": words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes(),
            }
        case UnmaskRequest():
            return {"survivors": sorted(message.survivors), "dropped": sorted(message.dropped)}
        case Unmasking():
            return columns(message.seed_shares, "survivors", "seed_shares") | columns(
                message.key_shares, "dropped", "key_shares"
            )
    return {}


def read_neighbourhood(read: Reader) -> dict[str, Any]:
    """Read the neighbours, and how many of them recover a secret."""
    mask_keys = read.by_id("neighbours", "mask_keys", KEY_BYTES)
    share_keys = read.by_id("neighbours", "share_keys", KEY_BYTES)
    return {
        "threshold": read.integer("threshold", 1, len(mask_keys)),
        "neighbours": tuple(
            Neighbour(client=one, mask_key=mask_keys[one], share_key=share_keys[one])
            for one in mask_keys
        ),
    }


def read_masked_input(read: Reader) -> dict[str, Any]:
    """Read the words; they are not copied, and cannot be written to."""
    bits = read.integer("word_bits", min(WORDS), max(WORDS))
    if bits not in WORDS:
        read.refuse(f"word_bits: {bits}, where {list(WORDS)} are possible")
    words = read.blob("words", 0, LARGEST_MASKED_BYTES)
    if len(words) % (bits // 8):
        read.refuse(f"words: {len(words)} bytes are no whole number of words of {bits} bits")
    found = np.frombuffer(words, WORDS[bits].newbyteorder("<"))
    return {"words": found.astype(WORDS[bits], copy=False)}


def read_boxes(read: Reader) -> dict[str, Any]:
    """Read the sealed shares by the other client's id."""
    return {"boxes": read.by_id("others", "boxes", BOX_BYTES)}


FIELDS: dict[type[Message], tuple[str, ...]] = {
    Invitation: (),
    Advertisement: ("mask_key", "share_key", "commitment"),
    Neighbourhood: ("threshold", "neighbours", "mask_keys", "share_keys"),
    SealedShares: ("others", "boxes"),
    Delivery: ("others", "boxes"),
    MaskedInput: ("word_bits", "words"),
    UnmaskRequest: ("survivors", "dropped"),
    Unmasking: ("survivors", "seed_shares", "dropped", "key_shares"),
}

READ: dict[type[Message], Callable[[Reader], dict[str, Any]]] = {
    Advertisement: lambda read: {
        name: read.blob(name, KEY_BYTES) for name in FIELDS[Advertisement]
    },
    Neighbourhood: read_neighbourhood,
    SealedShares: read_boxes,
    Delivery: read_boxes,
    MaskedInput: read_masked_input,
    UnmaskRequest: lambda read: {name: read.ids(name) for name in FIELDS[UnmaskRequest]},
    Unmasking: lambda read: {
        "seed_shares": read.by_id("survivors", "seed_shares", KEY_BYTES),
        "key_shares": read.by_id("dropped", "key_shares", KEY_BYTES),
    },
}
