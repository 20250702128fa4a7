"""Single messages on their way to a worker: packed into chunks, a few clients each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedsim.engine.actor import Parcel
from fedsim.engine.executor import Job, Outcome
from fedsim.engine.worker import Record

CHUNKS_PER_WORKER = 4  # so that workers finish together ...
LARGEST_CHUNK = 16  # ... and a client that hangs takes few others with it


@dataclass(slots=True, eq=False)
class Chunk:
    """Jobs that travel to one worker together; a load, as the crew calls it."""

    jobs: list[Job]
    parcels: list[Parcel]
    shared: Any  # reference to the list of shared records
    outcomes: list[Outcome]  # where answers go
    attempts: int = 0
    seconds: float = 0.0  # nobody predicts them; a worker always has a second chunk in hand
    answered: float = 0.0
    shareable: bool = False  # apps of all kinds, and clients' states: nothing runs twice

    def send(self, actor: Any) -> Any:
        """Call the actor."""
        return actor.run_jobs.remote([self.shared], self.parcels)

    def accept(self, answer: list[Outcome], worker: int) -> None:
        """Take the outcomes."""
        self.outcomes += answer

    def split(self) -> list[Chunk]:
        """Return each job as a chunk of its own, to find the one that kills its worker."""
        pairs = zip(self.jobs, self.parcels, strict=True)
        return [
            Chunk([job], [parcel], self.shared, self.outcomes, self.attempts)
            for job, parcel in pairs
        ]

    def give_up(self, reason: str) -> None:
        """Answer in the place of the clients."""
        self.outcomes += [given_up(job, reason) for job in self.jobs]


def chunks_of(jobs: Sequence[Job], workers: int, outcomes: list[Outcome]) -> list[Chunk]:
    """Pack jobs; what several of them share enters the object store once."""
    shared, places = share_records(jobs)
    reference = ray.put(shared)
    size = max(1, len(jobs) // (workers * CHUNKS_PER_WORKER))
    return [
        Chunk(group, [pack(job, places) for job in group], reference, outcomes)
        for group in grouped_by_node(jobs, min(size, LARGEST_CHUNK))
    ]


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


def without(chunk: Chunk, gone: set[str]) -> Sequence[Chunk]:
    """Return the chunk without the jobs that were given up, or nothing if none is left."""
    if not any(message_id(job) in gone for job in chunk.jobs):
        return [chunk]
    kept = [
        (job, parcel)
        for job, parcel in zip(chunk.jobs, chunk.parcels, strict=True)
        if message_id(job) not in gone
    ]
    jobs, parcels = [job for job, _ in kept], [parcel for _, parcel in kept]
    return [Chunk(jobs, parcels, chunk.shared, chunk.outcomes, chunk.attempts)] if kept else []


def given_up(job: Job, reason: str) -> Outcome:
    """Answer in the place of a client that cannot."""
    error = Error(code=ErrorCode.UNKNOWN, reason=reason)
    return Outcome(message_id(job), Message(error, reply_to=job.message), job.context.state)
