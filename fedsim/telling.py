"""A round in a line: as a server logs it, and as whoever follows it from afar reads it again."""

from __future__ import annotations

import re

from fedsim.records import RoundRow

NOT_EVALUATED = "not evaluated"
ROUND = re.compile(
    r"round (?P<round>\d+)/(?P<rounds>\d+): "
    rf"(?:test accuracy (?P<accuracy>\S+), test loss (?P<loss>\S+)|{NOT_EVALUATED}), "
    r"(?P<trained>\d+) clients trained, (?P<failed>\d+) failed, (?P<seconds>\S+) s"
)


def round_line(row: RoundRow, rounds: int) -> str:
    """Say how a round went, for people; the ledger holds the figures as they are."""
    tested = (
        NOT_EVALUATED
        if row.test_accuracy is None
        else f"test accuracy {row.test_accuracy:.4f}, test loss {row.test_loss:.4g}"
    )
    return (
        f"round {row.round}/{rounds}: {tested}, {row.clients_trained} clients trained, "
        f"{row.clients_failed} failed, {row.wall_seconds or 0:.3g} s"
    )


def read_round(text: str) -> tuple[RoundRow, int] | None:
    """Return the round that a line tells of, as far as it tells, and how many there are to be."""
    found = ROUND.search(text)
    if found is None:
        return None
    accuracy, loss = found["accuracy"], found["loss"]
    row = RoundRow(
        round=int(found["round"]),
        test_accuracy=float(accuracy) if accuracy else None,
        test_loss=float(loss) if loss else None,
        clients_trained=int(found["trained"]),
        clients_failed=int(found["failed"]),
        wall_seconds=float(found["seconds"]),
    )
    return row, int(found["rounds"])
