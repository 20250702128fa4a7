"""Random streams keyed by (seed, purpose, round, client).

A draw never depends on which worker made it, on what ran before, or on a library's global
generator. That is what makes a retried or resumed piece of work give the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np


def stream(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return the generator of one purpose; equal keys give equal streams, in any process.

    Args:
        seed: the experiment's seed.
        purpose: what the draws are for, such as ``"sampling"``; unlike purposes never share draws.
        round: the federated round, from 1; 0 where there is none.
        client: the client's partition id; 0 where there is none.

    The key is hashed to the 128-bit key of a Philox counter-based generator (Salmon et al., 2011),
    so neighbouring seeds, rounds and clients are as unlike each other as any two.
    """
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, round, client)))


def key(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """Return the 128-bit integer that names a stream, for generators other than NumPy's."""
    text = f"{seed}/{purpose}/{round}/{client}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def streams(
    seed: int, purpose: str, *, round: int = 0, clients: Iterable[int]
) -> Iterator[np.random.Generator]:
    """Yield the generator of each client, which gives the draws that :func:`stream` would.

    It is one object, set to the next client's stream whenever that is asked for: use one up before
    taking the next. To set it takes a fifth of the time that making a generator does.
    """
    philox = np.random.Philox(key=0)
    generator, state = np.random.Generator(philox), philox.state
    for client in clients:
        number = key(seed, purpose, round, client)
        state["state"]["key"] = np.array([number & (2**64 - 1), number >> 64], np.uint64)
        philox.state = state
        yield generator
