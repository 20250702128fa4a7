"""Messages out, replies in, on whatever grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

log = logging.getLogger("flwr.fedsim")

# Between two looks for replies; Flower's own loop waits three seconds.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, GROWTH = 0.05, 0.5, 1.5
# A call that takes longer was tried again and again.
AWAY_SECONDS = 2.0
LONGEST_TEXT = 500  # characters of what a client says
PUSHES = 5


def knows_its_nodes(grid: Grid) -> bool:
    """Say whether a grid is fedsim's own, which also waits for replies without looking."""
    return hasattr(grid, "node_of")


def send_and_receive(
    grid: Grid, messages: Iterable[Message], *, timeout_seconds: float
) -> list[Message]:
    """Send messages and return the replies that come in time, in any order.

    A message that the grid does not take (it gives it no id) has no reply, and is not waited for.
    Nor does the clients' time run while the grid itself is away: Flower's waits inside a call until
    a SuperLink that was started again answers.
    """
    if knows_its_nodes(grid):
        return list(grid.send_and_receive(messages, timeout=timeout_seconds))
    deadline = time.monotonic() + timeout_seconds
    waiting = {message_id for message_id in push(grid, list(messages)) if message_id is not None}
    replies: list[Message] = []
    pause = FIRST_PAUSE_SECONDS
    while waiting:
        asked = time.monotonic()
        came = list(grid.pull_messages(waiting))
        took = time.monotonic() - asked
        deadline += took if took > AWAY_SECONDS and not came else 0
        replies += came
        waiting -= {reply.metadata.reply_to_message_id for reply in came}
        left = deadline - time.monotonic()
        if not waiting or left <= 0:
            break
        time.sleep(min(pause, left))
        pause = min(pause * GROWTH, LAST_PAUSE_SECONDS)
    return replies


def push(grid: Grid, messages: list[Message]) -> list[str | None]:
    """Push messages, again where a SuperLink ended in the midst of it; return their ids.

    An object whose receipt was lost with the SuperLink is refused when Flower sends it once more,
    although it is there. To push the same messages again is safe: they keep their ids, and only
    what is missing travels.

    Raises:
        ObjectPushError: also at the last attempt.
    """
    for _ in range(PUSHES - 1):
        try:
            return list(grid.push_messages(messages))
        except ObjectPushError as error:
            log.warning("messages are pushed again: %s", error)
    return list(grid.push_messages(messages))


def plain(text: str | None) -> str:
    """Return what a client says as one line of bounded length, fit for logs, tables and terminals.

    A client could otherwise forge lines of a log, or send as much as it likes.
    """
    shown = "".join(c if c.isprintable() else " " for c in (text or "")[: LONGEST_TEXT + 1])
    return shown if len(shown) <= LONGEST_TEXT else f"{shown[:LONGEST_TEXT]}..."
