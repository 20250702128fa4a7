"""The whole protocol in one process, as a round of it reads; for tests and the benchmark.

Between two stages a client is nothing but its state, as it is between two messages of Flower's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from fedsim.errors import SecureAggregationRefused
from fedsim.privacy.secagg.client import ClientSide
from fedsim.privacy.secagg.fields import Record
from fedsim.privacy.secagg.graph import Assumptions
from fedsim.privacy.secagg.messages import STAGES, Message, Session
from fedsim.privacy.secagg.server import SecureSum, ServerSide
from fedsim.privacy.secagg.state import from_state, to_state

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


@dataclass
class Seconds:
    """Wall seconds by stage: of all clients together, and of the server."""

    clients: list[float] = field(default_factory=lambda: [0.0] * len(STAGES))
    server: list[float] = field(default_factory=lambda: [0.0] * (len(STAGES) + 1))


def aggregate(
    vectors: Mapping[int, np.ndarray],
    *,
    drop_at: Mapping[int, int] | None = None,
    session: Session | None = None,
    least_clients: int | None = None,
    assumptions: Assumptions | None = None,
    seconds: Seconds | None = None,
) -> SecureSum:
    """Return the sum of the vectors of those who stay.

    Args:
        vectors: by client, all of one length and of uint32 or uint64.
        drop_at: the stage, 0 to 3, from which on a client does not answer. Who is there until
            stage 3 is in the sum.
        session: by default a fresh one.
        least_clients, assumptions: see :class:`ServerSide`.
        seconds: where to add the time that everything took; the server's fifth figure is what it
            does after the last reply.

    Raises:
        SecureAggregationAborted: too few stayed.
        SecureAggregationRefused: fewer than 3 vectors, or wrong ones.
    """
    first = next(iter(vectors.values()), np.zeros(0, np.uint32))
    session = session or Session(run=os.urandom(16), round=1)
    seconds = seconds or Seconds()
    leaves, states = drop_at or {}, dict[int, Record]()
    server = ServerSide(
        session,
        list(vectors),
        words=len(first),
        word_bits=8 * first.itemsize,
        least_clients=least_clients,
        assumptions=assumptions,
    )

    def ask(
        stage: int, requests: Mapping[int, Request], answer: Callable[[ClientSide, Request], Reply]
    ) -> list[Reply]:
        replies = []
        with timed(seconds.clients, stage):
            for client, request in requests.items():
                if leaves.get(client, len(STAGES)) <= stage:
                    continue
                side = (
                    from_state(states[client])
                    if stage
                    else ClientSide(session=session, client=client)
                )
                try:
                    replies.append(answer(side, request))
                except SecureAggregationRefused as refusal:
                    server.exchange.refuse(client, str(refusal))
                states[client] = to_state(side)
        return replies

    with timed(seconds.server, 0):
        invitations = server.invite()
    keys = ask(0, invitations, ClientSide.advertise)
    with timed(seconds.server, 1):
        neighbourhoods = server.introduce(keys)
    shares = ask(1, neighbourhoods, ClientSide.share_keys)
    with timed(seconds.server, 2):
        deliveries = server.deliver(shares)
    inputs = ask(2, deliveries, lambda side, request: side.mask(request, vectors[request.client]))
    with timed(seconds.server, 3):
        requests = server.request(inputs)
    unmaskings = ask(3, requests, ClientSide.unmask)
    with timed(seconds.server, 4):
        return server.unmask(unmaskings)


@contextmanager
def timed(seconds: list[float], place: int) -> Iterator[None]:
    """Add what a block takes, in wall seconds."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        seconds[place] += time.perf_counter() - begun
