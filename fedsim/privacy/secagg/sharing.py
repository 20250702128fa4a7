"""Shamir's secret sharing of 32 bytes: any ``threshold`` shares give them back, fewer say nothing.

The scheme is pycryptodome's, over GF(2^128), which shares 16 bytes: a secret is two halves, each
with a polynomial of its own, and a share is two points at the same place. The place of a holder is
its rank among the holders, from 1, so that nobody needs to send it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from Crypto.Protocol.SecretSharing import Shamir

from fedsim.errors import SecureAggregationRefused
from fedsim.privacy.secagg.messages import KEY_BYTES

HALF = KEY_BYTES // 2
LEAST_THRESHOLD = 2  # a share alone must not be the secret


def split(secret: bytes, holders: Iterable[int], threshold: int) -> dict[int, bytes]:
    """Return each holder's share, 32 bytes, of a secret of 32 bytes.

    Raises:
        SecureAggregationRefused: the threshold is below 2 or above the number of holders.
    """
    order = sorted(holders)
    if not LEAST_THRESHOLD <= threshold <= len(order):
        raise SecureAggregationRefused(
            f"a secret cannot be shared among {len(order)} so that {threshold} recover it; "
            f"the threshold is from {LEAST_THRESHOLD} to the number of holders"
        )
    halves = zip(
        Shamir.split(threshold, len(order), secret[:HALF], ssss=False),
        Shamir.split(threshold, len(order), secret[HALF:], ssss=False),
        strict=True,
    )
    return {
        holder: first + second
        for holder, ((_, first), (_, second)) in zip(order, halves, strict=True)
    }


def combine(shares: Mapping[int, bytes], places: Mapping[int, int]) -> bytes:
    """Return what these shares, exactly a threshold of them, give: 32 bytes, right or not."""
    return b"".join(
        Shamir.combine(
            [(places[holder], share[half]) for holder, share in shares.items()], ssss=False
        )
        for half in (slice(None, HALF), slice(HALF, None))
    )


def recover(
    shares: Mapping[int, bytes],
    *,
    owner: int,
    holders: Iterable[int],
    threshold: int,
    genuine: Callable[[bytes], bool],
) -> tuple[bytes, frozenset[int]]:
    """Return the secret, and the holders whose shares were found wrong on the way.

    A wrong share is looked for only once the first shares do not give the secret. Whoever gave it
    is found for certain if nobody else did and there is a share more than needed.

    Args:
        shares: of each holder that answered, at least ``threshold``.
        owner: whose secret it is, for the message.
        holders: everybody who was given a share.
        threshold: how many shares it takes.
        genuine: whether a secret is the one that its owner stands by.

    Raises:
        SecureAggregationRefused: no choice of shares gives a genuine secret.
    """
    places = {holder: place for place, holder in enumerate(sorted(holders), start=1)}
    for chosen in windows(sorted(shares), threshold):
        secret = combine({holder: shares[holder] for holder in chosen}, places)
        if genuine(secret):
            break
    else:
        raise SecureAggregationRefused(
            f"client {owner}: the shares of its secret, from clients {listed(shares)}, do not give "
            f"what it stands by; a holder's share is wrong, or client {owner} gave out wrong ones"
        )
    if chosen == sorted(shares)[:threshold]:
        return secret, frozenset()
    others = chosen[1:]  # together with one more, right or wrong, a threshold of them
    wrong = [
        holder
        for holder in sorted(set(shares) - set(chosen))
        if combine({h: shares[h] for h in (*others, holder)}, places) != secret
    ]
    return secret, frozenset(wrong)


def windows(holders: list[int], threshold: int) -> Iterator[list[int]]:
    """Yield runs of so many holders, the first ones first, around the ring of them."""
    turns = len(holders) if len(holders) > threshold else 1
    for start in range(turns):
        yield [holders[(start + step) % len(holders)] for step in range(threshold)]


def listed(clients: Iterable[int], most: int = 12) -> str:
    """Return ids as a person reads them, the first few of many."""
    ids = sorted(clients)
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return (", ".join(map(str, ids[:most])) or "none") + more
