"""What all runners share: the clock of the rounds, and the line that they print."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from benchmarks.processes import memory
from benchmarks.spec import Spec

# Lines that the suite looks for on standard output; it watches foreign load between the first two.
BEGIN, END, RESULT = "BENCH BEGIN", "BENCH END", "BENCH RESULT "


class Rounds:
    """Collects when rounds end, tells the suite when the timed ones begin and end."""

    def __init__(self, spec: Spec, clock: Callable[[], float] = time.perf_counter) -> None:
        self._spec, self._clock = spec, clock
        self.moments: list[float] = []
        self.memory: dict[str, Any] = {}

    def start(self) -> None:
        """Say that the first round starts."""
        self._note()

    def end(self) -> None:
        """Say that a round has ended."""
        self._note()

    def _note(self) -> None:
        self.moments.append(self._clock())
        done = len(self.moments) - 1
        if done == self._spec.warm_up:
            print(BEGIN, flush=True)
        if done == self._spec.total_rounds:
            print(END, flush=True)
        if done in (*self._spec.memory_at, self._spec.total_rounds):
            self.memory[str(done)] = memory()

    def result(self) -> dict[str, Any]:
        """Return the seconds of each timed round, of the first one, and memory at the end."""
        seconds = [b - a for a, b in pairwise(self.moments)]
        last = self.memory[str(self._spec.total_rounds)]
        return {
            "first_round_seconds": seconds[0],
            "round_seconds": seconds[self._spec.warm_up :],
            "memory": last,
            **({"memory_at": self.memory} if self._spec.memory_at else {}),
        }


def main(measure: Callable[[Spec], dict[str, Any]]) -> None:
    """Run the measurement that the command line describes and print its result."""
    os.environ.update(QUIET)
    result = measure(Spec.decode(sys.argv[1]))
    if result:
        print(RESULT + json.dumps(result), flush=True)


QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}
