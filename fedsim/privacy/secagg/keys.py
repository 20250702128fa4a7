"""Keys: X25519 pairs, what two clients agree on, and boxes that only one of them opens.

Agreement is X25519 (RFC 7748), derivation HKDF-SHA256 (RFC 5869), encryption ChaCha20-Poly1305
(RFC 8439), all by the library ``cryptography``. What is derived is bound to the protocol's version,
its purpose, the run, the round and both clients: a key of one use is of no use in another.
"""

from __future__ import annotations

import hashlib
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsim.errors import SecureAggregationRefused
from fedsim.privacy.secagg.messages import KEY_BYTES, Session

VERSION = 1
NONCE_BYTES, TAG_BYTES = 12, 16
CONTENT = struct.Struct(f"<QQ{KEY_BYTES}s{KEY_BYTES}s")  # sender, recipient, seed's, key's share
BOX_BYTES = NONCE_BYTES + CONTENT.size + TAG_BYTES


def fresh_secret() -> bytes:
    """Return 32 bytes of the operating system's randomness: a seed, or a private key."""
    return os.urandom(KEY_BYTES)


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key, 32 bytes, of 32 bytes that are a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def commitment(seed: bytes, session: Session, client: int) -> bytes:
    """Return the hash, 32 bytes, that a client's self-mask seed is held to when it is recovered.

    A seed has 256 bits of entropy, so its hash says nothing about it.
    """
    return hashlib.sha256(label("self-mask seed", session, client) + seed).digest()


def mask_seed(private: bytes, public: bytes, session: Session, own: int, other: int) -> bytes:
    """Return the seed, 32 bytes, of the mask between two clients; both get the same one.

    Raises:
        SecureAggregationRefused: the other's public key is of low order, so that anybody would
            know the seed.
    """
    low, high = sorted((own, other))
    return agree(private, public, label("pairwise mask", session, low, high), other)


def seal(
    private: bytes,
    public: bytes,
    session: Session,
    *,
    sender: int,
    recipient: int,
    seed_share: bytes,
    key_share: bytes,
) -> bytes:
    """Return the sender's two shares, encrypted to the recipient: 108 bytes.

    The key serves for this sender, this recipient and this session alone; the nonce is random all
    the same, for the case that somebody restores an old state and goes on from it.
    """
    about = label("box of shares", session, sender, recipient)
    key, nonce = agree(private, public, about, recipient), os.urandom(NONCE_BYTES)
    content = CONTENT.pack(sender, recipient, seed_share, key_share)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, content, about)


def unseal(
    private: bytes, public: bytes, session: Session, *, sender: int, recipient: int, box: bytes
) -> tuple[bytes, bytes]:
    """Return the share of the sender's self-mask seed, and that of its mask key.

    Raises:
        SecureAggregationRefused: the box is damaged, or of another sender, recipient, round or run.
    """
    about = label("box of shares", session, sender, recipient)
    key = agree(private, public, about, sender)
    try:
        content = ChaCha20Poly1305(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], about)
        named_sender, named_recipient, seed_share, key_share = CONTENT.unpack(content)
    except (InvalidTag, ValueError, struct.error) as problem:
        raise SecureAggregationRefused(
            f"shares from client {sender} to client {recipient} do not open in {session}: they are "
            "damaged, replayed, or of somebody else"
        ) from problem
    if (named_sender, named_recipient) != (sender, recipient):
        raise SecureAggregationRefused(
            f"shares from client {sender} to client {recipient} say that they go from "
            f"{named_sender} to {named_recipient}"
        )
    return seed_share, key_share


def agree(private: bytes, public: bytes, about: bytes, other: int) -> bytes:
    """Return the key, 32 bytes, that both sides derive for one purpose, and nobody else can."""
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as problem:
        raise SecureAggregationRefused(
            f"client {other}: its public key {public.hex()} agrees with every key on the same "
            "secret (it is of low order); leave that client out"
        ) from problem
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=about).derive(shared)


def label(purpose: str, session: Session, *clients: int) -> bytes:
    """Say in bytes what something is for; unlike uses never have the same label."""
    parts = (f"fedsim secagg {VERSION}".encode(), purpose.encode(), session.run)
    numbers = (session.round, *clients)
    return b"".join(struct.pack("<H", len(part)) + part for part in parts) + struct.pack(
        f"<{len(numbers)}Q", *numbers
    )
