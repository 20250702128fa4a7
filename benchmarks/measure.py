"""Runs a measurement in a process of its own, and watches what the machine does meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import SYSTEMS, Entry
from benchmarks.environment import ROOT, python
from benchmarks.processes import TICKS, all_processes, busy_ticks, tree
from benchmarks.runners.common import BEGIN, END, QUIET, RESULT

LONGEST_SECONDS = 300.0
TOLERATED_CORES = 0.15  # foreign load, on average over the timed rounds
RETRIES = 2


class RunnerFailed(Exception):
    """A runner gave no result."""


@dataclass(frozen=True)
class Load:
    """What the machine had done by a moment: ticks of all cores, and of the suite itself."""

    seconds: float
    busy: int
    own: int

    @staticmethod
    def now() -> Load:
        """Read the kernel's counters."""
        busy = busy_ticks(Path("/proc/stat").read_text())
        own = sum(process.ticks for process in tree(os.getpid(), all_processes()))
        return Load(time.monotonic(), busy, own)

    def foreign_cores(self, since: Load) -> float:
        """Return how many cores others kept busy since then, on average."""
        seconds = self.seconds - since.seconds
        foreign = (self.busy - since.busy) - (self.own - since.own)
        return max(0.0, foreign / TICKS / seconds) if seconds > 0 else 0.0


def run(entry: Entry, data: Path) -> dict[str, Any]:
    """Run an entry once and return its row: the runner's result, and the foreign load.

    Raises:
        RunnerFailed: with the end of what the runner wrote.
    """
    spec = dataclasses.replace(entry.spec, path=str(data))
    system = SYSTEMS[entry.system]
    module = ["-m", f"benchmarks.runners.{system.runner}", spec.encode()]
    command = [python(system.environment), *system.launcher, *module]
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    with (
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
        ended(process),
    ):
        complaints: list[str] = []
        listener = threading.Thread(target=complaints.extend, args=(process.stderr,), daemon=True)
        listener.start()
        assert process.stdout is not None
        result, loads = listen(process.stdout)
        code = process.wait()
        listener.join(5)
    if result is None:
        raise RunnerFailed(f"{entry.label}: exit code {code}\n{''.join(complaints)[-3000:]}")
    foreign = loads[-1].foreign_cores(loads[0]) if len(loads) > 1 else None
    return {**result, "foreign_cores": foreign, "process_seconds": time.monotonic() - started}


def listen(lines: Iterable[str]) -> tuple[dict[str, Any] | None, list[Load]]:
    """Return the runner's result, and the load when its timed rounds began and ended."""
    result: dict[str, Any] | None = None
    begun: Load | None = None
    ended: Load | None = None
    for line in lines:
        if line.startswith(BEGIN):
            begun = begun or Load.now()
        elif line.startswith(END):
            ended = Load.now()
        elif line.startswith(RESULT):
            result = json.loads(line.removeprefix(RESULT))
    return result, [load for load in (begun, ended) if load is not None]


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Any:
    """See to it that a runner ends: when it takes too long, and when the suite is interrupted."""
    alarm = threading.Timer(LONGEST_SECONDS, stop, args=(process, signal.SIGKILL))
    alarm.start()
    try:
        yield
    except BaseException:
        stop(process, signal.SIGTERM)
        raise
    finally:
        alarm.cancel()


def stop(process: subprocess.Popen[str], signal_number: int) -> None:
    """Signal a runner and the processes of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal_number)


def undisturbed(
    entry: Entry, data: Path, *, tolerated: float, retries: int
) -> list[dict[str, Any]]:
    """Run an entry until a run is undisturbed, a few times at most; return every run.

    One row is marked ``counted``: the first undisturbed, or else the least disturbed one.
    """
    rows: list[dict[str, Any]] = []
    for attempt in range(retries + 1):
        rows.append(run(entry, data))
        foreign = rows[-1]["foreign_cores"] or 0.0
        if foreign <= tolerated:
            break
        if attempt < retries:
            print(
                f"  {entry.label}: others used {foreign:.2f} cores; again",
                file=sys.stderr,
                flush=True,
            )
    return marked(rows, tolerated)


def marked(rows: list[dict[str, Any]], tolerated: float) -> list[dict[str, Any]]:
    """Say of every run whether it was disturbed, and which one counts."""
    best = min(range(len(rows)), key=lambda place: rows[place]["foreign_cores"] or 0.0)
    return [
        {
            **row,
            "disturbed": (row["foreign_cores"] or 0.0) > tolerated,
            "counted": place == best,
        }
        for place, row in enumerate(rows)
    ]
