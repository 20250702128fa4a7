"""The executor on Ray: workers that keep the app and its data, and clients that travel in chunks.

What a round shares (the global model) enters the object store once. A worker that dies is
replaced, and its clients run again; a client whose worker dies every time is given up, with an
error reply, so that one client cannot stop a federation.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from ray.exceptions import RayActorError, RayError

from fedsim.engine.apps import AppSource, assume_identity
from fedsim.engine.arrays import register_array_serializer
from fedsim.engine.cohort import Cohort, Reply, offers_cohorts, run_block
from fedsim.engine.executor import Job, Outcome
from fedsim.engine.worker import Record, copy_record, delivered, run_job
from fedsim.errors import EngineError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
CONNECT_SECONDS = 10.0
START_SECONDS = 120.0
ATTEMPTS = 3  # a client that outlived so many workers is given up
CHUNKS_AHEAD = 2  # chunks handed to a worker before it has finished the first: hides the latency
CHUNKS_PER_WORKER = 4  # so that workers finish together ...
LARGEST_CHUNK = 16  # ... and a client that hangs takes few others with it


@dataclass(frozen=True, slots=True)
class Parcel:
    """A job as it travels: records that several jobs share are named by their place."""

    metadata: Metadata
    records: dict[str, Record]
    shared: dict[str, int]
    context: Context
    seed: int


@dataclass(slots=True, eq=False)
class Chunk:
    """Jobs that travel to one worker together."""

    jobs: list[Job]
    parcels: list[Parcel]
    shared: Any  # reference to the list of shared records
    attempts: int = 0

    def split(self) -> list[Chunk]:
        """Return each job as a chunk of its own, to find the one that kills its worker."""
        pairs = zip(self.jobs, self.parcels, strict=True)
        return [Chunk([job], [parcel], self.shared, self.attempts) for job, parcel in pairs]


@dataclass(slots=True, eq=False)
class Handle:
    """A worker process and the chunks that it was handed, oldest first."""

    actor: Any
    chunks: dict[Any, Chunk] = field(default_factory=dict)  # reference of the reply -> chunk


class Worker:
    """Lives in a Ray process: loads the app once, then runs parcel after parcel."""

    def __init__(self, source: AppSource) -> None:
        keep_freed_memory()
        register_array_serializer()
        assume_identity(0)
        self._app = source.load()
        self._shared: tuple[Any, list[Record]] = (None, [])

    def ready(self) -> bool:
        """Answer, which shows that the app could be loaded: whether it takes cohorts."""
        return offers_cohorts(self._app)

    def run_block(self, shared: list[Any], block: tuple[Any, ...]) -> list[Reply]:
        """Run one block of clients."""
        if self._shared[0] != shared[0]:
            self._shared = (shared[0], ray.get(shared[0]))
        content: Any = self._shared[1]
        return run_block(self._app, content, *block)

    def run(self, shared: list[Any], parcels: list[Parcel]) -> list[Outcome]:
        """Run parcels one after another; ``shared`` holds the reference, so that Ray leaves it."""
        if self._shared[0] != shared[0]:
            self._shared = (shared[0], ray.get(shared[0]))
        records = self._shared[1]
        outcomes: list[Outcome] = []
        contexts: dict[int, Context] = {}
        for parcel in parcels:
            content = dict(parcel.records)
            content.update({name: copy_record(records[i]) for name, i in parcel.shared.items()})
            # Two messages to one client in one chunk see the same state, as at a real node.
            context = contexts.setdefault(parcel.context.node_id, parcel.context)
            message = delivered(parcel.metadata, RecordDict(content))
            outcomes.append(run_job(self._app, Job(message, context, parcel.seed)))
        return outcomes


class RayExecutor:
    """A pool of workers on this machine, or on the cluster at ``address``."""

    def __init__(
        self, source: AppSource, *, workers: int = 0, address: str = "", gpu: bool = False
    ) -> None:
        self._count = workers or os.cpu_count() or 1
        self._owns_ray = start_ray(self._count, address)
        keep_freed_memory()
        register_array_serializer()
        share = 1.0 / self._count if gpu else 0.0
        self._actor_class = ray.remote(num_cpus=1, num_gpus=share)(Worker)
        self._source = source
        self._queue: deque[Chunk] = deque()
        self._outcomes: list[Outcome] = []
        self._handles = [Handle(self._spawn()) for _ in range(self._count)]
        self._await_workers()

    def _spawn(self) -> Any:
        return self._actor_class.remote(self._source)

    def _await_workers(self) -> None:
        ready = [handle.actor.ready.remote() for handle in self._handles]
        done, waiting = ray.wait(ready, num_returns=len(ready), timeout=START_SECONDS)
        try:
            self.offers_cohorts = any(ray.get(done))
        except RayError as error:
            self.close()
            cause = getattr(error, "cause", None) or error
            raise EngineError(f"the workers could not start: {cause}") from error
        if waiting:
            cpus = sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
            self.close()
            raise EngineError(
                f"{len(waiting)} of {self._count} workers found no place within "
                f"{START_SECONDS:g} s; Ray has {cpus:g} CPUs in all: lower engine.workers, or "
                "free some"
            )

    def submit(self, jobs: Sequence[Job]) -> None:
        """Pack jobs into chunks and hand out as many as the workers take."""
        if not jobs:
            return
        shared, places = share_records(jobs)
        reference = ray.put(shared)
        size = max(1, len(jobs) // (self._count * CHUNKS_PER_WORKER))
        for group in grouped_by_node(jobs, min(size, LARGEST_CHUNK)):
            parcels = [pack(job, places) for job in group]
            self._queue.append(Chunk(group, parcels, reference))
        self._dispatch()

    def _dispatch(self) -> None:
        for depth in range(CHUNKS_AHEAD):
            for handle in self._handles:
                if self._queue and len(handle.chunks) <= depth:
                    chunk = self._queue.popleft()
                    reference = handle.actor.run.remote([chunk.shared], chunk.parcels)
                    handle.chunks[reference] = chunk

    def collect(self, deadline: float) -> list[Outcome]:
        """Wait for a chunk, replacing workers that died in the meantime."""
        while not self._outcomes:
            running = {ref: handle for handle in self._handles for ref in handle.chunks}
            if not running:
                break
            timeout = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(list(running), num_returns=1, timeout=timeout)
            if not ready:
                break
            self._receive(ready[0], running[ready[0]])
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _receive(self, reference: Any, handle: Handle) -> None:
        try:
            outcomes = ray.get(reference)
        except RayActorError as error:
            self._replace(handle, str(error).splitlines()[0])
        except RayError as error:
            chunk = handle.chunks.pop(reference)
            self._outcomes += [given_up(job, f"engine: {error}") for job in chunk.jobs]
        else:
            del handle.chunks[reference]
            self._outcomes += outcomes
        self._dispatch()

    def _replace(self, handle: Handle, reason: str) -> None:
        """Start a new worker and queue the dead one's clients again, first in line."""
        chunks = list(handle.chunks.values())
        handle.actor, handle.chunks = self._spawn(), {}
        if chunks:
            chunks[0].attempts += 1  # the oldest was running; the others only waited behind it
            if chunks[0].attempts < ATTEMPTS:
                chunks[0:1] = chunks[0].split()
            elif len(chunks[0].jobs) == 1:
                job = chunks.pop(0).jobs[0]
                text = f"its worker died {ATTEMPTS} times; the last time: {reason}"
                self._outcomes.append(given_up(job, text))
        self._queue.extendleft(reversed(chunks))

    def run_cohort(self, cohort: Cohort, deadline: float) -> list[list[Reply]]:
        """Run a cohort's blocks; see :class:`Executor`."""
        # A plain first form: no second attempts, and a deadline that only looks at the end.
        shared = ray.put(cohort.content)
        references = [
            self._handles[i % self._count].actor.run_block.remote(
                [shared], (block.clients, cohort.numbers[i], cohort.setting)
            )
            for i, block in enumerate(cohort.blocks)
        ]
        timeout = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        done, _ = ray.wait(references, num_returns=len(references), timeout=timeout)
        finished = set(done)
        return [ray.get(r) if r in finished else [] for r in references]

    def abandon(self, message_ids: Collection[str]) -> None:
        """Drop what has not started, and end the workers that are busy with what has."""
        gone = set(message_ids)
        for handle in self._handles:
            if any(message_id(job) in gone for c in handle.chunks.values() for job in c.jobs):
                ray.kill(handle.actor)
                self._queue.extendleft(reversed(handle.chunks.values()))
                handle.actor, handle.chunks = self._spawn(), {}
        self._queue = deque(c for c in (without(c, gone) for c in self._queue) if c.jobs)
        self._dispatch()

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        handles, self._handles = self._handles if hasattr(self, "_handles") else [], []
        for handle in handles:
            ray.kill(handle.actor)
        self._queue.clear()
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()
            self._owns_ray = False


def start_ray(workers: int, address: str) -> bool:
    """Start or join Ray; return whether it must be shut down by whoever called."""
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"address": address} if address else {"num_cpus": workers}
    if not address:
        options["include_dashboard"] = False
    try:
        if address:
            knock(address)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address!r}" if address else "Ray on this machine"
        remedy = "check the address" if address else 'use engine.name = "inline"'
        raise EngineError(f"{where} could not be reached: {error}; {remedy}") from error
    return True


def knock(address: str) -> None:
    """Raise an OSError if nobody listens at ``host:port``; Ray would try for minutes.

    Other forms of address (``auto``, ``ray://...``) are left to Ray.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def keep_freed_memory() -> None:
    """Tell glibc to keep large blocks of this process for the next client.

    Every client allocates and frees arrays of the model's size, here and in the driver. By
    default each one is fresh pages from the kernel, whose faults cost more than the copy itself
    (a quarter of the round in ``benchmarks/dispatch.py``).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, 2**28)
            libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def message_id(job: Job) -> str:
    """Return the id of the job's message."""
    return job.message.metadata.message_id


def share_records(jobs: Sequence[Job]) -> tuple[list[Record], dict[int, int]]:
    """Return the records that more than one message carries, and the place of each by identity."""
    seen: set[int] = set()
    places: dict[int, int] = {}
    shared: list[Record] = []
    for job in jobs:
        for record in job.message.content.values():
            if id(record) in seen and id(record) not in places:
                places[id(record)] = len(shared)
                shared.append(record)
            seen.add(id(record))
    return shared, places


def grouped_by_node(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Cut jobs into groups of about ``size``, never separating the messages of one node."""
    by_node: dict[int, list[Job]] = {}
    for job in jobs:
        by_node.setdefault(job.context.node_id, []).append(job)
    groups: list[list[Job]] = [[]]
    for node_jobs in by_node.values():
        if len(groups[-1]) >= size:
            groups.append([])
        groups[-1] += node_jobs
    return groups


def pack(job: Job, places: dict[int, int]) -> Parcel:
    """Make a job ready to travel."""
    content = job.message.content
    return Parcel(
        metadata=job.message.metadata,
        records={k: r for k, r in content.items() if id(r) not in places},
        shared={k: places[id(r)] for k, r in content.items() if id(r) in places},
        context=job.context,
        seed=job.seed,
    )


def without(chunk: Chunk, gone: set[str]) -> Chunk:
    """Return the chunk without the jobs that were given up."""
    kept = [
        (job, parcel)
        for job, parcel in zip(chunk.jobs, chunk.parcels, strict=True)
        if message_id(job) not in gone
    ]
    return Chunk([j for j, _ in kept], [p for _, p in kept], chunk.shared, chunk.attempts)


def given_up(job: Job, reason: str) -> Outcome:
    """Answer in the place of a client that cannot."""
    error = Error(code=ErrorCode.UNKNOWN, reason=reason)
    return Outcome(message_id(job), Message(error, reply_to=job.message), job.context.state)
