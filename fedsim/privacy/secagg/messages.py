"""What clients and server send each other, stage by stage.

=====  ==================  =====================  =====================
stage  name                server to client       client to server
=====  ==================  =====================  =====================
0      advertise keys      ``Invitation``         ``Advertisement``
1      share keys          ``Neighbourhood``      ``SealedShares``
2      masked input        ``Delivery``           ``MaskedInput``
3      unmask              ``UnmaskRequest``      ``Unmasking``
=====  ==================  =====================  =====================

Every message names its session, and the client that it comes from or goes to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from fedsim.errors import SecureAggregationRefused

STAGES = ("advertise keys", "share keys", "masked input", "unmask")
KEY_BYTES = 32
LARGEST_ID = 2**63 - 1  # what a signed integer of 8 bytes holds
LONGEST_RUN_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class Session:
    """One execution of the protocol; all keys and messages are bound to it.

    Attributes:
        run: 1 to 64 bytes that no other run has; 16 random ones at each start of a server will do.
        round: the federated round.
    """

    run: bytes
    round: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.run) <= LONGEST_RUN_BYTES:
            raise SecureAggregationRefused(
                f"session: its run has {len(self.run)} bytes; give it 1 to {LONGEST_RUN_BYTES}"
            )
        check_id("session: round", self.round)

    def __str__(self) -> str:
        return f"round {self.round} of run {self.run.hex()[:8]}"


@dataclass(frozen=True, kw_only=True)
class Message:
    """What all messages have; ``client`` is the one that it comes from or goes to."""

    session: Session
    client: int

    def __post_init__(self) -> None:
        check_id(f"{type(self).__name__}: client", self.client)


@dataclass(frozen=True, kw_only=True)
class Invitation(Message):
    """Stage 0, down: the client is of the cohort."""


@dataclass(frozen=True, kw_only=True)
class Advertisement(Message):
    """Stage 0, up: two X25519 public keys, and what the self-mask's seed will be held to."""

    mask_key: bytes
    share_key: bytes
    commitment: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mask_key", "share_key", "commitment"):
            check_length(f"advertisement of client {self.client}: {name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """What a client is told of one that it shares masks and secrets with."""

    client: int
    mask_key: bytes
    share_key: bytes

    def __post_init__(self) -> None:
        check_id("neighbour", self.client)
        check_length(f"neighbour {self.client}: mask_key", self.mask_key)
        check_length(f"neighbour {self.client}: share_key", self.share_key)


@dataclass(frozen=True, kw_only=True)
class Neighbourhood(Message):
    """Stage 1, down: the client's neighbours, and how many of them can recover its secrets."""

    threshold: int
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, kw_only=True)
class SealedShares(Message):
    """Stage 1, up: to each neighbour, encrypted, its shares of the client's two secrets."""

    boxes: Mapping[int, bytes]


@dataclass(frozen=True, kw_only=True)
class Delivery(Message):
    """Stage 2, down: what the neighbours encrypted for the client, by who did."""

    boxes: Mapping[int, bytes]


@dataclass(frozen=True, kw_only=True)
class MaskedInput(Message):
    """Stage 2, up: the vector with all masks, of uint32 or uint64."""

    words: np.ndarray


@dataclass(frozen=True, kw_only=True)
class UnmaskRequest(Message):
    """Stage 3, down: which of those that delivered shares are in the sum, and which are not."""

    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Unmasking(Message):
    """Stage 3, up: shares of survivors' self-mask seeds and of dropped clients' mask keys."""

    seed_shares: Mapping[int, bytes]
    key_shares: Mapping[int, bytes]

    def __post_init__(self) -> None:
        super().__post_init__()
        for owner, share in [*self.seed_shares.items(), *self.key_shares.items()]:
            check_length(f"client {self.client}: its share of client {owner}'s secret", share)


def check_id(what: str, value: int) -> None:
    """Refuse what is no non-negative integer of 8 bytes."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_ID:
        raise SecureAggregationRefused(f"{what} = {value!r}: give an integer from 0 to 2^63 - 1")


def check_length(what: str, value: bytes, length: int = KEY_BYTES) -> None:
    """Refuse bytes of another length."""
    if not isinstance(value, bytes) or len(value) != length:
        found = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        raise SecureAggregationRefused(
            f"{what}: {found} where {length} bytes belong; it is damaged"
        )


def payload_bytes(value: object) -> int:
    """Count what a message holds: its bytes and words, and 8 for every integer.

    Names and lengths of fields, which the transport adds, are not in it.
    """
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, int):
        return 8
    if isinstance(value, Mapping):
        return sum(payload_bytes(key) + payload_bytes(item) for key, item in value.items())
    if isinstance(value, tuple):
        return sum(map(payload_bytes, value))
    if isinstance(value, Message | Neighbour | Session):
        return sum(payload_bytes(getattr(value, field.name)) for field in fields(value))
    raise TypeError(f"a message holds no {type(value).__name__}")
