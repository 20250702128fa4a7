"""A client's state between messages, as bytes, integers and lists of them (no pickle).

It holds secrets: whoever reads it while the session lasts can take part in the client's name. A
finished client's state holds none, only which session it was in.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedsim.errors import SecureAggregationRefused
from fedsim.privacy.secagg.client import ClientSide
from fedsim.privacy.secagg.fields import Reader, Record, columns
from fedsim.privacy.secagg.messages import (
    KEY_BYTES,
    LONGEST_RUN_BYTES,
    STAGES,
    Invitation,
    Neighbour,
    Session,
)

VERSION = 1
SECRETS = ("mask_private", "share_private", "seed")


def begin(invitation: Invitation, state: Mapping[str, object] | None = None) -> ClientSide:
    """Return a client that may answer an invitation.

    Args:
        invitation: of the server.
        state: what the client kept of an earlier session, if anything.

    Raises:
        SecureAggregationRefused: the client was in this round, or a later one, of the same run: the
            invitation is replayed, and a second sum with other members would give single ones away.
    """
    if state:
        earlier = from_state(state)
        same = (earlier.session.run, earlier.client) == (invitation.session.run, invitation.client)
        if same and earlier.session.round >= invitation.session.round:
            raise SecureAggregationRefused(
                f"secure aggregation: client {invitation.client} was in round "
                f"{earlier.session.round} and refuses an invitation to {invitation.session}; "
                "give every start of a server a run of its own"
            )
    return ClientSide(session=invitation.session, client=invitation.client)


def to_state(side: ClientSide) -> Record:
    """Return everything that :func:`from_state` needs."""
    held = side.held
    return {
        "version": VERSION,
        "run": side.session.run,
        "round": side.session.round,
        "client": side.client,
        "stage": side.stage,
        **{name: getattr(side, name) for name in SECRETS},
        "threshold": side.threshold,
        **columns({n.client: n.mask_key for n in side.neighbours.values()}, "peers", "mask_keys"),
        "share_keys": [side.neighbours[one].share_key for one in sorted(side.neighbours)],
        **columns({one: shares[0] for one, shares in held.items()}, "owners", "seed_shares"),
        "key_shares": [held[one][1] for one in sorted(held)],
    }


def from_state(state: Mapping[str, object]) -> ClientSide:
    """Return the client that a state is of.

    Raises:
        SecureAggregationRefused: a state that is damaged or of another version.
    """
    read = Reader("state of a client of secure aggregation", state)
    read.expect(to_state(ClientSide(session=Session(run=b"-", round=0), client=0)))
    read.integer("version", VERSION, VERSION)
    stage = read.integer("stage", 0, len(STAGES))
    secret_bytes = KEY_BYTES if stage in (1, 2) else 0
    mask_keys = read.by_id("peers", "mask_keys", KEY_BYTES)
    share_keys = read.by_id("peers", "share_keys", KEY_BYTES)
    seed_shares = read.by_id("owners", "seed_shares", KEY_BYTES)
    key_shares = read.by_id("owners", "key_shares", KEY_BYTES)
    return ClientSide(
        session=Session(run=read.blob("run", 1, LONGEST_RUN_BYTES), round=read.integer("round")),
        client=read.integer("client"),
        stage=stage,
        mask_private=read.blob("mask_private", secret_bytes),
        share_private=read.blob("share_private", secret_bytes),
        seed=read.blob("seed", secret_bytes),
        threshold=read.integer("threshold"),
        neighbours={
            one: Neighbour(client=one, mask_key=mask_keys[one], share_key=share_keys[one])
            for one in mask_keys
        },
        held={one: (seed_shares[one], key_shares[one]) for one in seed_shares},
    )
