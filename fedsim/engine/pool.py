"""The executor on Ray: workers that keep the app and its data, and clients that travel together.

What a round shares (the global model) travels once. A worker that dies is replaced, and its
clients run again; a client whose worker dies every time is given up, with an error reply, so that
one client cannot stop a federation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import ray

from fedsim.engine.actor import Worker, keep_freed_memory
from fedsim.engine.apps import AppSource
from fedsim.engine.arrays import register_array_serializer
from fedsim.engine.chunks import Chunk, chunks_of, without
from fedsim.engine.cohort import Cohort, Usage
from fedsim.engine.crew import Crew, Load
from fedsim.engine.executor import Job, Outcome
from fedsim.engine.federations import Federation, FederationLoad
from fedsim.engine.prediction import CostModel
from fedsim.engine.ray_start import RaySession, cores_here, own_cores, places
from fedsim.engine.units import Round, usage_of

LINGER_SECONDS = 10.0  # a second copy of what was answered may take so long to come to its end
QUIET: dict[str, Any] = {"enable_task_events": False}  # nobody looks at Ray's own record of calls


class RayExecutor:
    """A crew of workers on this machine, or on the cluster at ``address``.

    It starts in the background: whoever asks first waits until a worker is there.
    """

    def __init__(
        self, source: AppSource, *, workers: int = 0, address: str = "", gpu: bool = False
    ) -> None:
        keep_freed_memory()
        self._source, self._workers, self._gpu = source, workers, gpu
        self._outcomes: list[Outcome] = []
        self._model = CostModel()
        self.usage: Usage | None = None
        self._started: Crew | None = None
        self._session: RaySession | None = RaySession(
            workers or cores_here(), address, self._start_crew
        )

    def _start_crew(self) -> None:
        register_array_serializer()
        count, share = places(self._workers, gpu=self._gpu)
        # SPREAD: as evenly over a cluster's nodes as their CPUs allow.
        actor = ray.remote(num_cpus=1, num_gpus=share, scheduling_strategy="SPREAD")(Worker)
        cores = own_cores(count) if not share else {}
        self._started = Crew(
            lambda number: actor.options(**QUIET).remote(self._source, cores.get(number)), count
        )

    @property
    def _crew(self) -> Crew:
        if self._session is None:
            raise RuntimeError("this executor was closed")
        self._session.wait()
        assert self._started is not None
        return self._started

    @property
    def offers_cohorts(self) -> bool:
        """Whether the app takes blocks of clients; waits until a worker has loaded it."""
        self.wait_ready()
        return self._crew.offers_cohorts

    def wait_ready(self) -> None:
        """Wait until a worker has loaded the app.

        Raises:
            EngineError: Ray or the workers could not start, or the app could not be loaded.
        """
        self._crew.wait_ready()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Pack jobs into chunks and hand out as many as the workers take."""
        if jobs:
            crew = self._crew
            crew.add(chunks_of(jobs, crew.strength(), self._outcomes))

    def collect(self, deadline: float) -> list[Outcome]:
        """Wait for a chunk, replacing workers that died in the meantime."""
        crew = self._crew
        while not self._outcomes and crew.busy(Chunk) and crew.step(deadline):
            pass
        outcomes = self._outcomes[:]
        self._outcomes.clear()
        return outcomes

    def abandon(self, message_ids: Collection[str]) -> None:
        """Drop what has not started, and end the workers that are busy with what has."""
        gone = set(message_ids)

        def without_gone(load: Load) -> Sequence[Load]:
            return without(load, gone) if isinstance(load, Chunk) else [load]

        self._crew.reduce(without_gone)

    def run_cohort(self, cohort: Cohort, deadline: float) -> None:
        """Run a cohort's blocks; see :class:`Executor`."""
        started = time.perf_counter()
        crew, session = self._crew, self._session
        assert session is not None
        this = Round.of(cohort, self._model, len(crew.handles), session.inline_bytes)
        crew.add(this.units(crew.strength()))
        try:
            while this.missing and crew.step(deadline):
                pass
        finally:  # also where whoever takes the answers raised: nothing of this may come later
            crew.reduce(partial(self._kept, this))
            self.usage = usage_of(this, started)

    def _kept(self, this: Round, load: Load) -> Sequence[Load]:
        """Return what is left of a load at the end of a cohort.

        Nothing of what was missed may go on; nor, for ever, a second copy of what was answered.
        """
        lingers = load.answered and time.monotonic() - load.answered > LINGER_SECONDS
        gone = this.missing if this.has(load) else lingers
        return [] if gone else [load]

    @property
    def places(self) -> int:
        """How many federations run at once; waits until Ray is up."""
        return len(self._crew.handles)

    def begin(self, make: Callable[[], Federation], tell: Callable[[str], None]) -> None:
        """Queue a whole federation for one worker; see :class:`FederationLoad`."""
        self._crew.add([FederationLoad(make, tell)])

    def wait(self, seconds: float) -> None:
        """Wait until something happened to the federations, for at most so many seconds."""
        self._crew.step(time.monotonic() + seconds)

    def close(self) -> None:
        """End the workers, and Ray if it was started or joined here."""
        session, self._session = self._session, None
        if session is None:
            return
        session.close(before=self._end_crew)

    def _end_crew(self) -> None:
        # Nothing of Ray's may outlive it here: a reference that is dropped after Ray was started
        # anew would count for another object, since Ray numbers them from the beginning again.
        if self._started is not None:
            self._started.close()
        self._started = None
