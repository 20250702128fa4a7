"""Asking and answering: which stage the server is at, whose replies fit, and what is sent.

A reply that does not fit is refused, and the reason kept; it harms nobody but, unless a fitting one
came in its name too, the client that it names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from fedsim.errors import SecureAggregationRefused
from fedsim.privacy.secagg.messages import STAGES, Message, Session, payload_bytes

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


class Exchange:
    """The server's requests and the replies to them, stage by stage.

    Attributes:
        session: what every message has to name.
        stage: the one whose replies are to come; -1 before the first, 4 after the last.
        refused: why a message in a client's name was refused, the last one of several.
        downlink_bytes, uplink_bytes: content of all messages of a stage, refused ones included.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.stage = -1
        self.refused: dict[int, str] = {}
        self.downlink_bytes = [0] * len(STAGES)
        self.uplink_bytes = [0] * len(STAGES)
        self._asked: frozenset[int] = frozenset()

    def ask(self, requests: dict[int, Request]) -> dict[int, Request]:
        """Go on to the next stage, with those who are asked."""
        self.stage += 1
        self._asked = frozenset(requests)
        self.downlink_bytes[self.stage] = sum(map(payload_bytes, requests.values()))
        return requests

    def end(self) -> None:
        """Take no more replies."""
        self.stage = len(STAGES)

    def refuse(self, client: int, why: str) -> None:
        """Note why a message in a client's name was refused."""
        self.refused[client] = f"client {client}, stage {self.stage}: {why}"

    def fitting(self, stage: int, replies: Sequence[Reply], kind: type[Reply]) -> list[Reply]:
        """Return the replies that are of this session and stage, by somebody who was asked.

        Raises:
            SecureAggregationRefused: the stage is not the one whose replies are to come.
        """
        if stage != self.stage:
            raise SecureAggregationRefused(
                f"secure aggregation, {self.session}: the server takes replies of stage {stage} "
                f"once, after asking for them; it is at stage {self.stage}"
            )
        self.uplink_bytes[stage] = sum(map(payload_bytes, replies))
        return [reply for reply in replies if self._is_due(reply, kind)]

    def answers(
        self, fitting: Sequence[Reply], problem: Callable[[Reply], str]
    ) -> dict[int, Reply]:
        """Return the replies that nothing is wrong with, in the order of their clients.

        Args:
            fitting: what :meth:`fitting` returned.
            problem: says what is wrong with a reply, an empty text if nothing is.
        """
        names = Counter(reply.client for reply in fitting)
        answers: dict[int, Reply] = {}
        for reply in sorted(fitting, key=lambda reply: reply.client):
            count = names[reply.client]
            twice = f"{count} messages in its name; which is true, nobody can tell"
            if why := twice if count > 1 else problem(reply):
                self.refuse(reply.client, why)
            else:
                answers[reply.client] = reply
        return answers

    def _is_due(self, reply: Message, kind: type[Message]) -> bool:
        why = ""
        if not isinstance(reply, kind):
            why = f"{type(reply).__name__} where {kind.__name__} is due; it is replayed"
        elif reply.session != self.session:
            why = f"a message of {reply.session}; it is replayed"
        elif reply.client not in self._asked:
            why = "it was not asked"
        if why:
            self.refuse(reply.client, why)
        return not why
