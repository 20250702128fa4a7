"""The server's side: four stages, each with whoever answered the one before.

Whose reply does not fit is left out from there on, as if it had not answered. Where too few are
left, ``SecureAggregationAborted`` ends the session. No single vector is revealed by that, since
nobody is asked for shares before it is known that they suffice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.errors import SecureAggregationAborted, SecureAggregationRefused
from fedsim.privacy.secagg import keys
from fedsim.privacy.secagg.exchange import Exchange
from fedsim.privacy.secagg.graph import LEAST_COHORT, Assumptions, degree, draw_graph
from fedsim.privacy.secagg.masks import WORDS, add_mask, subtract_mask
from fedsim.privacy.secagg.messages import (
    STAGES,
    Advertisement,
    Delivery,
    Invitation,
    MaskedInput,
    Neighbour,
    Neighbourhood,
    SealedShares,
    Session,
    Unmasking,
    UnmaskRequest,
)
from fedsim.privacy.secagg.sharing import listed, recover


@dataclass(frozen=True, kw_only=True)
class SecureSum:
    """What the server learns.

    Attributes:
        words: the sum of the vectors of ``clients``, modulo 2^bits.
        clients: whose vectors are in it, in order.
        refused: whose message was refused on the way, and why.
        downlink_bytes, uplink_bytes: content of all messages, stage by stage.
    """

    words: np.ndarray
    clients: tuple[int, ...]
    refused: Mapping[int, str]
    downlink_bytes: tuple[int, ...]
    uplink_bytes: tuple[int, ...]


class ServerSide:
    """The server in one session: ``invite``, ``introduce``, ``deliver``, ``request``, ``unmask``.

    Each but the first takes the replies to what the one before returned, all of them in one call.

    Args:
        session: a run and round that no other session has.
        clients: the cohort, at least 3 distinct ids.
        words: length of a vector.
        word_bits: 32 or 64.
        least_clients: how many must be in the sum; by default a majority of the cohort.
        assumptions: how many may collude or drop out; they decide how many neighbours there are.

    Raises:
        SecureAggregationRefused: a cohort that is too small or has a client twice.
    """

    def __init__(
        self,
        session: Session,
        clients: Sequence[int],
        *,
        words: int,
        word_bits: int,
        least_clients: int | None = None,
        assumptions: Assumptions | None = None,
    ) -> None:
        if twice := {one for one in clients if list(clients).count(one) > 1}:
            raise SecureAggregationRefused(
                f"secure aggregation: clients {listed(twice)} are in the cohort twice"
            )
        self.assumptions = assumptions or Assumptions()
        degree(len(clients), self.assumptions)  # refuses a cohort below 3
        self.session, self.cohort = session, tuple(sorted(clients))
        majority = len(clients) // 2 + 1
        self.least = max(LEAST_COHORT, majority if least_clients is None else least_clients)
        self.total = np.zeros(words, WORDS[word_bits])
        self.exchange = Exchange(session)
        self.threshold = 0
        self.advertised: dict[int, Advertisement] = {}
        self.graph: dict[int, tuple[int, ...]] = {}  # all who advertised, with their neighbours
        self.sharing: tuple[int, ...] = ()  # whose shares were delivered
        self.survivors: tuple[int, ...] = ()  # whose masked input is in the total

    def invite(self) -> dict[int, Invitation]:
        """Begin: ask the cohort for keys."""
        return self.exchange.ask(
            {one: Invitation(session=self.session, client=one) for one in self.cohort}
        )

    def introduce(self, replies: Sequence[Advertisement]) -> dict[int, Neighbourhood]:
        """Take the keys, draw the graph among those who sent some, and tell each its neighbours.

        Where two clients claim the same key, both are refused: who took it cannot be told.
        """
        fitting = self.exchange.fitting(0, replies, Advertisement)
        claims = Counter(key for sent in fitting for key in (sent.mask_key, sent.share_key))
        answers = self.exchange.answers(fitting, lambda sent: key_problem(sent, claims))
        self._check_count(answers)
        chosen = degree(len(answers), self.assumptions)
        self.advertised, self.threshold = answers, chosen.threshold
        self.graph = draw_graph(answers, chosen.neighbours)
        public = {
            one: Neighbour(client=one, mask_key=sent.mask_key, share_key=sent.share_key)
            for one, sent in answers.items()
        }
        return self.exchange.ask(
            {
                one: Neighbourhood(
                    session=self.session,
                    client=one,
                    threshold=self.threshold,
                    neighbours=tuple(public[other] for other in self.graph[one]),
                )
                for one in answers
            }
        )

    def deliver(self, replies: Sequence[SealedShares]) -> dict[int, Delivery]:
        """Take the sealed shares, and hand each client those that are for it.

        Who would have fewer neighbours than it takes to recover its secrets is left out.
        """
        answers = self.exchange.answers(
            self.exchange.fitting(1, replies, SealedShares), self._boxes_problem
        )
        present = set(answers)
        while lonely := {o for o in present if self._present(o, present) < self.threshold}:
            present -= lonely
        self._check_count(present, f", each with {self.threshold} neighbours")
        self.sharing = tuple(sorted(present))
        return self.exchange.ask(
            {
                one: Delivery(
                    session=self.session,
                    client=one,
                    boxes={
                        other: answers[other].boxes[one]
                        for other in self.graph[one]
                        if other in present
                    },
                )
                for one in self.sharing
            }
        )

    def request(self, replies: Sequence[MaskedInput]) -> dict[int, UnmaskRequest]:
        """Add the masked vectors up, and say to each survivor whose shares are needed."""
        answers = self.exchange.answers(
            self.exchange.fitting(2, replies, MaskedInput), self._input_problem
        )
        self._check_count(answers)
        self.survivors = tuple(answers)
        self._check_recoverable(self.survivors)
        for reply in answers.values():
            self.total += reply.words
        return self.exchange.ask({one: self._request(one) for one in self.survivors})

    def unmask(self, replies: Sequence[Unmasking]) -> SecureSum:
        """Recover the survivors' self-masks and the dropped ones' mask keys; return the sum.

        Raises:
            SecureAggregationAborted: too few answered.
            SecureAggregationRefused: shares that do not give what their owner advertised; the
                message names it.
        """
        answers = self.exchange.answers(
            self.exchange.fitting(3, replies, Unmasking), self._shares_problem
        )
        self._check_recoverable(answers)
        self.exchange.end()
        for one in self.survivors:
            shares = {h: answers[h].seed_shares[one] for h in self.graph[one] if h in answers}
            subtract_mask(self.total, self._recover(one, shares, self._genuine_seed(one)))
        for one in self._dropped():
            shares = {h: answers[h].key_shares[one] for h in self.graph[one] if h in answers}
            if shares:
                self._take_off(one, self._recover(one, shares, self._genuine_key(one)))
        return SecureSum(
            words=self.total,
            clients=self.survivors,
            refused=dict(self.exchange.refused),
            downlink_bytes=tuple(self.exchange.downlink_bytes),
            uplink_bytes=tuple(self.exchange.uplink_bytes),
        )

    def _boxes_problem(self, reply: SealedShares) -> str:
        if set(reply.boxes) != set(self.graph[reply.client]):
            return f"shares for clients {listed(reply.boxes)}, who are not its neighbours"
        wrong = [one for one, box in reply.boxes.items() if len(box) != keys.BOX_BYTES]
        return f"shares for clients {listed(wrong)} of a wrong length" if wrong else ""

    def _input_problem(self, reply: MaskedInput) -> str:
        found, expected = reply.words, self.total
        if found.shape == expected.shape and found.dtype == expected.dtype:
            return ""
        return (
            f"an array of {found.dtype} and shape {found.shape}, where {len(expected)} words of "
            f"{expected.dtype} belong; give it the same experiment"
        )

    def _shares_problem(self, reply: Unmasking) -> str:
        asked = self._request(reply.client)
        fits = (set(reply.seed_shares), set(reply.key_shares)) == (
            set(asked.survivors),
            set(asked.dropped),
        )
        return "" if fits else "shares of others than it was asked for"

    def _take_off(self, dropped: int, private: bytes) -> None:
        """Take the masks with a dropped client off, which its surviving neighbours put on."""
        for one in sorted(set(self.graph[dropped]) & set(self.survivors)):
            public = self.advertised[one].mask_key
            seed = keys.mask_seed(private, public, self.session, dropped, one)
            (subtract_mask if one < dropped else add_mask)(self.total, seed)

    def _recover(
        self, owner: int, shares: Mapping[int, bytes], genuine: Callable[[bytes], bool]
    ) -> bytes:
        secret, wrong = recover(
            shares,
            owner=owner,
            holders=self.graph[owner],
            threshold=self.threshold,
            genuine=genuine,
        )
        for holder in wrong:
            self.exchange.refuse(holder, f"its share of client {owner}'s secret is wrong")
        return secret

    def _genuine_seed(self, owner: int) -> Callable[[bytes], bool]:
        promised = self.advertised[owner].commitment
        return lambda seed: keys.commitment(seed, self.session, owner) == promised

    def _genuine_key(self, owner: int) -> Callable[[bytes], bool]:
        promised = self.advertised[owner].mask_key
        return lambda private: keys.public_key(private) == promised

    def _request(self, client: int) -> UnmaskRequest:
        around = set(self.graph[client])
        return UnmaskRequest(
            session=self.session,
            client=client,
            survivors=tuple(one for one in self.survivors if one in around),
            dropped=tuple(one for one in self._dropped() if one in around),
        )

    def _dropped(self) -> list[int]:
        """Return who shared its secrets and sent no input."""
        return sorted(set(self.sharing) - set(self.survivors))

    def _present(self, client: int, present: Iterable[int]) -> int:
        return len(set(self.graph[client]).intersection(present))

    def _check_recoverable(self, answered: Iterable[int]) -> None:
        """Abort where a secret that is needed has too few holders left."""
        present = set(answered)
        for one in (*self.survivors, *self._dropped()):
            left = self._present(one, present)
            needed = one in self.survivors or self._present(one, self.survivors) > 0
            if needed and left < self.threshold:
                problem = f", and client {one} has {left} neighbours left of {self.threshold}"
                raise self._aborted(present, self.threshold, problem)

    def _check_count(self, answered: Iterable[int], how: str = "") -> None:
        if len(present := set(answered)) < self.least:
            raise self._aborted(present, self.least, how)

    def _aborted(self, answered: set[int], needed: int, how: str) -> SecureAggregationAborted:
        stage = self.exchange.stage
        reasons = "".join(f"; {reason}" for reason in list(self.exchange.refused.values())[:3])
        return SecureAggregationAborted(
            f"secure aggregation, {self.session}: aborted at stage {stage} ({STAGES[stage]}): "
            f"{len(answered)} of {len(self.cohort)} clients take part ({listed(answered)}), "
            f"{needed} are needed{how}{reasons}",
            stage=stage,
            answered=sorted(answered),
            needed=needed,
        )


def key_problem(reply: Advertisement, claims: Mapping[bytes, int]) -> str:
    """Say what is wrong with a client's keys, given how often each key was claimed by anybody."""
    if max(claims[reply.mask_key], claims[reply.share_key]) == 1:
        return ""
    return "it claims a public key that another client claims too, or one key for two purposes"
