"""The client's side: four stages, each answered once.

What a client keeps to, whatever the server says, is the protocol's promise: of a neighbour it gives
away the share of the self-mask's seed or that of the mask key, never both; and it says nothing
where too few are left. See the package's docstring for what that does not protect against.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fedsim.errors import SecureAggregationRefused
from fedsim.privacy.secagg import keys
from fedsim.privacy.secagg.masks import add_mask, check_words, subtract_mask
from fedsim.privacy.secagg.messages import (
    STAGES,
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
from fedsim.privacy.secagg.sharing import LEAST_THRESHOLD, listed, split


@dataclass(kw_only=True)
class ClientSide:
    """A client in one session. A call that is refused changes nothing and reveals nothing.

    Attributes:
        session, client: whose state this is.
        stage: the stage that is to come; 4 when all are done.
        mask_private, share_private, seed: its secrets of 32 bytes; empty before they are drawn and
            once they have served.
        threshold: how many neighbours recover a secret.
        neighbours: what it was told of them.
        held: for each neighbour, that neighbour's two shares: of its seed, of its mask key.
    """

    session: Session
    client: int
    stage: int = 0
    mask_private: bytes = b""
    share_private: bytes = b""
    seed: bytes = b""
    threshold: int = 0
    neighbours: dict[int, Neighbour] = field(default_factory=dict)
    held: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def advertise(self, invitation: Invitation) -> Advertisement:
        """Stage 0: draw both key pairs and the self-mask's seed; give the public part."""
        self._enter(0, invitation)
        self.mask_private, self.share_private = keys.fresh_secret(), keys.fresh_secret()
        self.seed = keys.fresh_secret()
        self.stage = 1
        return Advertisement(
            session=self.session,
            client=self.client,
            mask_key=keys.public_key(self.mask_private),
            share_key=keys.public_key(self.share_private),
            commitment=keys.commitment(self.seed, self.session, self.client),
        )

    def share_keys(self, neighbourhood: Neighbourhood) -> SealedShares:
        """Stage 1: share the seed and the mask's private key among the neighbours.

        Raises:
            SecureAggregationRefused: a neighbour twice, a key twice, the client's own id or key
                among theirs, or a threshold that is no majority of them.
        """
        self._enter(1, neighbourhood)
        neighbours, threshold = neighbourhood.neighbours, neighbourhood.threshold
        ids = [neighbour.client for neighbour in neighbours]
        self._check_distinct("its neighbours", ids)
        published = [key for n in neighbours for key in (n.mask_key, n.share_key)]
        own = [keys.public_key(self.mask_private), keys.public_key(self.share_private)]
        if self.client in ids or len({*published, *own}) < len(published) + len(own):
            raise self._refusal("a neighbour has its id, or two clients claim the same public key")
        if not max(LEAST_THRESHOLD, len(ids) // 2 + 1) <= threshold <= len(ids):
            raise self._refusal(
                f"{threshold} of {len(ids)} neighbours are to recover its secrets; it takes a "
                f"majority of them, and at least {LEAST_THRESHOLD}"
            )
        seed_shares = split(self.seed, ids, threshold)
        key_shares = split(self.mask_private, ids, threshold)
        boxes = {
            neighbour.client: keys.seal(
                self.share_private,
                neighbour.share_key,
                self.session,
                sender=self.client,
                recipient=neighbour.client,
                seed_share=seed_shares[neighbour.client],
                key_share=key_shares[neighbour.client],
            )
            for neighbour in neighbours
        }
        self.neighbours = {neighbour.client: neighbour for neighbour in neighbours}
        self.threshold, self.stage = threshold, 2
        return SealedShares(session=self.session, client=self.client, boxes=boxes)

    def mask(self, delivery: Delivery, words: np.ndarray) -> MaskedInput:
        """Stage 2: return the vector plus its self-mask and the masks shared with neighbours.

        Of two neighbours the one of the smaller id adds their mask and the other one subtracts it.

        Args:
            delivery: the boxes of those neighbours that take part; masks are shared with them.
            words: uint32 or uint64, as ``FixedPoint.encode`` gives them; stays as it is.

        Raises:
            SecureAggregationRefused: shares of a stranger, fewer than the threshold, or ones that
                do not open (the message names the sender).
        """
        self._enter(2, delivery)
        check_words(f"client {self.client}", words)
        self._check_enough("delivered shares", delivery.boxes)
        held = {
            sender: keys.unseal(
                self.share_private,
                self.neighbours[sender].share_key,
                self.session,
                sender=sender,
                recipient=self.client,
                box=box,
            )
            for sender, box in delivery.boxes.items()
        }
        masked = words.copy()
        add_mask(masked, self.seed)
        for other in held:
            public = self.neighbours[other].mask_key
            seed = keys.mask_seed(self.mask_private, public, self.session, self.client, other)
            (add_mask if self.client < other else subtract_mask)(masked, seed)
        self.held, self.stage = held, 3
        self.mask_private = self.share_private = self.seed = b""
        return MaskedInput(session=self.session, client=self.client, words=masked)

    def unmask(self, request: UnmaskRequest) -> Unmasking:
        """Stage 3: give a survivor's seed share, or a dropped neighbour's key share.

        Raises:
            SecureAggregationRefused: somebody is in both lists or twice in one, the lists together
                are not exactly the neighbours whose shares were delivered, or the survivors are
                fewer than the threshold.
        """
        self._enter(3, request)
        self._check_distinct("survivors and dropped", [*request.survivors, *request.dropped])
        if {*request.survivors, *request.dropped} != set(self.held):
            raise self._refusal(
                f"survivors and dropped are clients {listed(request.survivors)} and "
                f"{listed(request.dropped)}, where shares were delivered from {listed(self.held)}"
            )
        self._check_enough("are in the sum", request.survivors)
        answer = Unmasking(
            session=self.session,
            client=self.client,
            seed_shares={owner: self.held[owner][0] for owner in request.survivors},
            key_shares={owner: self.held[owner][1] for owner in request.dropped},
        )
        self.held, self.neighbours, self.stage = {}, {}, len(STAGES)
        return answer

    def _enter(self, stage: int, message: Message) -> None:
        """Refuse a message of another session, to another client, or of another stage."""
        if message.session != self.session or message.client != self.client:
            raise self._refusal(
                f"a message to client {message.client} in {message.session}; it is replayed, or "
                "went astray"
            )
        if stage != self.stage:
            due = STAGES[self.stage] if self.stage < len(STAGES) else "nothing more"
            raise self._refusal(
                f"a message of stage {stage} ({STAGES[stage]}), where {due} is due; each stage is "
                "answered once"
            )

    def _check_distinct(self, what: str, ids: list[int]) -> None:
        if twice := {one for one in ids if ids.count(one) > 1}:
            raise self._refusal(f"{what}: clients {listed(twice)} are named more than once")

    def _check_enough(self, what: str, clients: Iterable[int]) -> None:
        """Refuse strangers, and fewer neighbours than the threshold."""
        if strangers := set(clients) - set(self.neighbours):
            raise self._refusal(f"clients {listed(strangers)} {what}, and are no neighbours of it")
        if len(set(clients)) < self.threshold:
            raise self._refusal(
                f"{len(set(clients))} neighbours {what}; below {self.threshold} it says nothing"
            )

    def _refusal(self, problem: str) -> SecureAggregationRefused:
        return SecureAggregationRefused(
            f"secure aggregation, {self.session}: client {self.client} refuses: {problem}"
        )
