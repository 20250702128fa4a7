"""The workers on Ray: who has what to do, who died, who takes over.

The crew hands out *loads* without knowing what is in them. A worker that dies is replaced, and its
loads go back into the queue, the one that was running split into smaller ones, to find out what
kills workers; what has outlived ``ATTEMPTS`` workers is given up.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import (
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from fedsim.engine.actor import Ready
from fedsim.engine.ray_start import first_line
from fedsim.errors import EngineError

ATTEMPTS = 3  # a load that outlived so many workers is given up
AHEAD = 2  # loads handed to a worker before it has finished the first: hides the latency ...
AHEAD_SECONDS = 0.3  # ... which no longer matters beside so much work
START_SECONDS = 120.0  # without a single worker for so long, there is no point in going on
PLACE_SECONDS = 30.0  # a worker that has not started by then has found no place
BACK_OFF_SECONDS = (0.0, 0.5, 2.0, 8.0, 30.0)  # before a worker that died in starting starts again

MEMORY = (
    "a worker ran out of memory: lower engine.workers or train.batch_size, or give the machine "
    "more memory"
)

logger = logging.getLogger(__name__)


class Load(Protocol):
    """Something that one worker does in one call."""

    attempts: int  # workers that died of it
    seconds: float  # predicted; infinite where nobody knows
    answered: float  # time.monotonic() when it was; 0 before
    shareable: bool  # may run twice

    def send(self, actor: Any) -> Any:
        """Call the actor and return the reference to its answer."""

    def accept(self, answer: Any, worker: int) -> None:
        """Take the answer of the worker with this number."""

    def split(self) -> Iterable[Load]:
        """Return the load in smaller pieces, or by itself, to be tried again."""

    def give_up(self, reason: str) -> None:
        """Answer in the place of clients that cannot."""


@dataclass(slots=True, eq=False)
class Handle:
    """A place for a worker: the process that is in it now, and what that was handed."""

    number: int
    actor: Any = None
    starting: Any = None  # reference to its first answer, until that is there
    since: float = 0.0  # time.monotonic() when it was started, or may be
    deaths: int = 0  # in a row, in starting
    loads: dict[Any, Load] = field(default_factory=dict)  # reference -> load, oldest first

    @property
    def at_work(self) -> bool:
        """Whether it has started and lives, as far as anybody knows."""
        return self.actor is not None and self.starting is None

    @property
    def ahead_seconds(self) -> float:
        """How much work it has in hand, as predicted."""
        return sum(load.seconds for load in self.loads.values())


class Crew:
    """A fixed number of workers and one queue."""

    def __init__(self, spawn: Callable[[int], Any], count: int) -> None:
        """Start so many workers; ``spawn`` is given each one's number."""
        self._spawn = spawn
        self.handles = [Handle(number) for number in range(count)]
        self.queue: deque[Load] = deque()
        self.offers_cohorts = False
        self._told = False  # that there are fewer places than workers
        for handle in self.handles:
            self._start(handle)

    def _start(self, handle: Handle) -> None:
        handle.actor = self._spawn(handle.number)
        handle.starting = handle.actor.ready.remote()
        handle.since = time.monotonic()

    def _end(self, handle: Handle, *, wait: float = 0.0) -> None:
        """End a worker, if it is not dead yet, and leave its place free for ``wait`` seconds."""
        if handle.actor is not None:
            ray.kill(handle.actor)
        handle.actor = handle.starting = None
        handle.loads = {}
        handle.since = time.monotonic() + wait

    def strength(self) -> int:
        """Return how many workers there are, counting those that may be expected soon."""
        limit = time.monotonic() - PLACE_SECONDS
        return sum(handle.at_work or handle.since > limit for handle in self.handles) or 1

    def wait_ready(self) -> None:
        """Wait until there is a worker.

        Raises:
            EngineError: the app cannot be loaded, or nowhere is a place for a worker.
        """
        limit = time.monotonic() + START_SECONDS
        while not any(handle.at_work for handle in self.handles):
            if time.monotonic() >= limit:
                raise EngineError(no_place(len(self.handles)))
            self.step(limit)

    def add(self, loads: Iterable[Load]) -> None:
        """Take on loads, and hand out as many as the workers take."""
        self.queue.extend(loads)
        self._dispatch()

    def _dispatch(self) -> None:
        # Nothing waits behind another load that a worker which is about to start could take.
        expected = time.monotonic() - PLACE_SECONDS
        starting = any(not h.at_work and h.since > expected for h in self.handles)
        for depth in range(1 if starting else AHEAD):
            for handle in self.handles:
                free = handle.at_work and len(handle.loads) <= depth
                if self.queue and free and handle.ahead_seconds < AHEAD_SECONDS:
                    load = self.queue.popleft()
                    handle.loads[load.send(handle.actor)] = load

    def _share(self) -> None:
        """Let workers that have nothing to do take over what waits behind another load.

        Towards the end of a round they finish together that way, and a client that hangs keeps
        nobody else's answer. Ray cannot stop a call that has begun, which nobody here can see: the
        load then runs twice, the first answer counts, and the second is dropped.
        """
        idle = [h for h in self.handles if h.at_work and not h.loads] if not self.queue else []
        for handle, other in zip(idle, filter(self._has_spare, self.handles), strict=False):
            reference, load = list(other.loads.items())[-1]
            ray.cancel(reference)
            handle.loads[load.send(handle.actor)] = load

    def _has_spare(self, handle: Handle) -> bool:
        """Say whether a worker has a load behind another one, which no one else has."""
        if len(handle.loads) < 2:
            return False
        last = list(handle.loads.values())[-1]
        return last.shareable and not last.answered and self._holders(last) == 1

    def _holders(self, load: Load) -> int:
        """Return how many workers have a load in hand."""
        return sum(load in handle.loads.values() for handle in self.handles)

    def _is_lost(self, load: Load) -> bool:
        """Say whether a load has no answer, and nobody is left to give it."""
        return not load.answered and not self._holders(load) and load not in self.queue

    def step(self, deadline: float) -> bool:
        """Wait for something to happen; return False if nothing did until the deadline.

        Raises:
            EngineError: the app cannot be loaded, or no worker survives its start.
        """
        now = time.monotonic()
        due = self._start_due(now)
        waiting = {ref: handle for handle in self.handles for ref in handle.loads}
        starting = {h.starting: h for h in self.handles if h.starting is not None}
        references = [*waiting, *starting]
        until = min(deadline, due)
        if not references:
            time.sleep(max(0.0, min(until, now + 1.0) - now))
            return until < deadline
        timeout = None if until == float("inf") else max(0.0, until - now)
        ready, _ = ray.wait(references, num_returns=1, timeout=timeout)
        for reference in ready:
            if reference in waiting:
                self._receive(reference, waiting[reference])
            else:
                self._welcome(starting[reference])
        self._dispatch()
        self._share()
        return bool(ready) or until < deadline

    def _start_due(self, now: float) -> float:
        """Start the workers whose time has come; return when there is something to see to."""
        due = float("inf")
        for handle in self.handles:
            if handle.actor is None and handle.since <= now:
                self._start(handle)
            elif handle.actor is None:
                due = min(due, handle.since)
            elif handle.starting is not None and not self._told:
                if handle.since + PLACE_SECONDS > now:
                    due = min(due, handle.since + PLACE_SECONDS)
                else:
                    self._tell()
        return due

    def _tell(self) -> None:
        there = sum(handle.at_work for handle in self.handles)
        if there:
            self._told = True
            text = "%d of %d workers found a place; going on with those (Ray has %g CPUs)"
            logger.warning(text, there, len(self.handles), cpus())

    def _welcome(self, handle: Handle) -> None:
        """Let a worker that has started take part."""
        try:
            answer: Ready = ray.get(handle.starting)
        except RayError as error:
            self._stillborn(handle, cause_of_death(error))
            return
        if answer.problem:
            raise EngineError(f"the workers could not load the app {answer.problem}")
        self.offers_cohorts = answer.offers_cohorts
        handle.starting, handle.deaths = None, 0

    def _stillborn(self, handle: Handle, reason: str) -> None:
        handle.deaths += 1
        if handle.deaths >= len(BACK_OFF_SECONDS) and not any(h.at_work for h in self.handles):
            raise EngineError(f"the workers die as soon as they start: {reason}")
        logger.warning("worker %d died in starting: %s", handle.number, reason)
        self._end(handle, wait=BACK_OFF_SECONDS[min(handle.deaths, len(BACK_OFF_SECONDS) - 1)])

    def _receive(self, reference: Any, handle: Handle) -> None:
        try:
            answer = ray.get(reference)
        except TaskCancelledError:
            load = handle.loads.pop(reference)
            self._requeue([load])  # should the worker that took it over have died meanwhile
        except RayTaskError as error:  # not the app's: what that raises comes as an error reply
            load = handle.loads.pop(reference)
            if not load.answered:
                load.answered = time.monotonic()
                load.give_up(f"engine: {first_line(error)}")
        except RayError as error:
            if is_death(error):
                self._replace(handle, cause_of_death(error))
            else:  # the answer got lost on its way; the worker is well
                load = handle.loads.pop(reference)
                reason = f"its answer was lost {ATTEMPTS} times: {first_line(error)}"
                self.queue.extendleft(self._again(load, reason))
        else:
            load = handle.loads.pop(reference)
            if not load.answered:
                load.answered = time.monotonic()
                load.accept(answer, handle.number)

    def _replace(self, handle: Handle, reason: str) -> None:
        """Start a new worker and queue the dead one's loads again, first in line."""
        logger.info("worker %d died and is replaced: %s", handle.number, reason)
        loads = list(handle.loads.values())
        self._end(handle)
        # The others only waited behind the first.
        oldest, *others = [load for load in loads if not load.answered] or loads
        self._start(handle)
        self._requeue(others)
        text = f"its worker died {ATTEMPTS} times; the last time: {reason}"
        self.queue.extendleft(reversed(self._again(oldest, text)))

    def _requeue(self, loads: Sequence[Load]) -> None:
        """Put loads back, first in line, that nobody else has."""
        self.queue.extendleft(load for load in reversed(loads) if self._is_lost(load))

    def _again(self, load: Load, reason: str) -> list[Load]:
        if not self._is_lost(load):
            return []
        load.attempts += 1
        if load.attempts < ATTEMPTS:
            return list(load.split())
        load.answered = time.monotonic()
        load.give_up(reason)
        return []

    def busy(self, kind: type) -> bool:
        """Whether loads of a kind are waiting or running."""
        loads = [load for handle in self.handles for load in handle.loads.values()]
        return any(isinstance(load, kind) for load in (*loads, *self.queue))

    def reduce(self, kept: Callable[[Load], Sequence[Load]]) -> None:
        """Give up work: ``kept`` returns what shall be left of a load, itself or less.

        Workers that are busy with what was given up are ended; nothing of it runs any more.
        """
        for handle in self.handles:
            if any(list(kept(load)) != [load] for load in handle.loads.values()):
                loads = list(handle.loads.values())
                self._end(handle)
                self._requeue(loads)
                self._start(handle)
        self.queue = deque(part for load in self.queue for part in kept(load))
        self._dispatch()

    def close(self) -> None:
        """End all workers."""
        for handle in self.handles:
            self._end(handle, wait=float("inf"))
        self.queue.clear()


def is_death(error: RayError) -> bool:
    """Say whether an error means that the worker is dead, or cannot be reached, which is as bad."""
    return isinstance(error, (RayActorError, OutOfMemoryError, WorkerCrashedError))


def cause_of_death(error: RayError) -> str:
    """Say in one line what a worker died of, and which setting helps, where one does."""
    if isinstance(error, OutOfMemoryError):
        return MEMORY
    return first_line(error)


def cpus() -> float:
    """Return the CPUs of all nodes that are alive."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return float(sum(node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]))


def no_place(count: int) -> str:
    """Say that not one of so many workers could be started."""
    return (
        f"none of {count} workers found a place within {START_SECONDS:g} s; Ray has {cpus():g} "
        "CPUs in all: lower engine.workers, or free some"
    )
