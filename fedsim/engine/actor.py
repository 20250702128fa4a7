"""The worker: a Ray process that loads the app once, then runs what it is handed."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import pickle
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import Array, ArrayRecord, Context, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp

from fedsim.engine.apps import AppSource, assume_identity, load_server_app
from fedsim.engine.arrays import register_array_serializer
from fedsim.engine.cohort import Reply, Setting, offers_cohorts, run_block
from fedsim.engine.executor import Job, Outcome
from fedsim.engine.federations import Federation, problem_of
from fedsim.engine.inline import InlineExecutor
from fedsim.engine.simulation import run_server_app
from fedsim.engine.worker import Record, copy_record, delivered, run_job
from fedsim.errors import EngineError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
PICKLED_BYTES = 100_000  # replies with more bytes of arrays than this travel beside the pickle

Piece = tuple[tuple[int, ...], int]  # clients, and the message number of the first
Result = tuple[list[Reply], float]  # the parts of a block's reply, and the seconds it took


@dataclass(frozen=True, slots=True)
class Parcel:
    """A job as it travels: records that several jobs share are named by their place."""

    metadata: Metadata
    records: dict[str, Record]
    shared: dict[str, int]
    context: Context
    seed: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's first answer: whether the app takes cohorts, or why it could not be loaded."""

    offers_cohorts: bool = False
    problem: str = ""


class Worker:
    """Lives in a Ray process. Its methods are called one at a time."""

    def __init__(self, source: AppSource, core: int | None = None) -> None:
        """Load the app.

        Args:
            source: where it is.
            core: to stay on; None leaves that to the system.
        """
        keep_freed_memory()
        if core is not None:
            stay_on(core)
        register_array_serializer()
        assume_identity(0)
        self._app: ClientApp | None = None
        self._shared: tuple[Any, Any] = (None, None)
        try:
            self._app = source.load()
        except EngineError as error:
            self._problem = f"on {platform.node()}: {error}"

    def ready(self) -> Ready:
        """Answer, once the app was loaded."""
        if self._app is None:
            return Ready(problem=self._problem)
        return Ready(offers_cohorts=offers_cohorts(self._app))

    def run_jobs(self, shared: list[Any], parcels: list[Parcel]) -> list[Outcome]:
        """Run parcels one after another; ``shared`` holds the reference, so that Ray leaves it."""
        assert self._app is not None
        if self._shared[0] != shared[0]:
            self._shared = (shared[0], ray.get(shared[0]))
        records: list[Record] = self._shared[1]
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

    def run_blocks(self, shared: bytes | list[Any], pieces: bytes) -> bytes | list[Any]:
        """Run blocks of clients one after another.

        Args:
            shared: what the round's blocks share, pickled; or the reference to it, in a list.
            pieces: the blocks, a pickled list of :data:`Piece`.

        Returns:
            The seconds in here and a :data:`Result` for each block; pickled if it is small.
        """
        started = time.perf_counter()
        assert self._app is not None
        content, setting = self._unpack(shared)
        results: list[Result] = []
        for clients, number in pickle.loads(pieces):
            before = time.perf_counter()
            parts = run_block(self._app, content, clients, number, setting)
            results.append((parts, time.perf_counter() - before))
        small = sum(array_bytes(part) for parts, _ in results for part in parts) < PICKLED_BYTES
        answer = (time.perf_counter() - started, results)
        return pickle.dumps(answer, protocol=5) if small else list(answer)

    def run_federation(self, federation: Federation) -> str:
        """Run a ServerApp with the clients in here, to its end; return what went wrong, or ""."""
        assert self._app is not None
        logging.getLogger("flwr").setLevel(logging.ERROR)
        try:
            run_server_app(
                load_server_app(federation.reference, federation.directory),
                InlineExecutor(self._app),
                nodes=federation.nodes,
                run_config=federation.run_config,
                seed=federation.seed,
            )
        except Exception as error:
            return problem_of(error)
        return ""

    def _unpack(self, shared: bytes | list[Any]) -> tuple[RecordDict, Setting]:
        key = shared if isinstance(shared, bytes) else shared[0]
        if self._shared[0] != key:
            what = pickle.loads(shared) if isinstance(shared, bytes) else ray.get(shared[0])
            self._shared = (key, what)
        unpacked: tuple[RecordDict, Setting] = self._shared[1]
        return unpacked


def array_bytes(reply: Reply) -> int:
    """Return the bytes of the arrays in a reply."""
    if not isinstance(reply, RecordDict):
        return 0
    records = [record for record in reply.values() if isinstance(record, ArrayRecord)]
    return sum(size_of(array) for record in records for array in record.values())


def size_of(array: Array) -> int:
    """Return the bytes of an array without copying any out of the object store."""
    view = array.__dict__.get("_view")
    return len(array.data) if view is None else view.nbytes


def keep_freed_memory() -> None:
    """Tell glibc to keep large blocks of this process for the next client.

    Every client allocates and frees arrays of the model's size, here and in the driver. By
    default each one is fresh pages from the kernel, whose faults cost more than the copy itself
    (a quarter of a round with 100 clients that do no work).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, 2**28)
            libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def stay_on(core: int) -> None:
    """Keep all threads of this process on a core, those too that they start; or let it be."""
    if sys.platform == "linux" and core in os.sched_getaffinity(0):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread), {core})


def rejoined(answer: Any) -> tuple[float, Sequence[Result]]:
    """Return what :meth:`Worker.run_blocks` returned, whichever way it came."""
    seconds, results = pickle.loads(answer) if isinstance(answer, bytes) else answer
    return seconds, results
