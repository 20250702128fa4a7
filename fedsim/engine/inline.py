"""The executor without processes: one client after another, in this one."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Collection, Sequence

from flwr.clientapp import ClientApp

from fedsim.engine.cohort import Cohort, Usage, offers_cohorts, run_block
from fedsim.engine.executor import Job, Outcome
from fedsim.engine.worker import delivered, isolated, run_job


class InlineExecutor:
    """Runs jobs when their outcomes are asked for. A client that hangs cannot be interrupted."""

    def __init__(self, app: ClientApp) -> None:
        self._app = app
        self._queue: deque[Job] = deque()
        self.usage: Usage | None = None

    def wait_ready(self) -> None:
        """Return: this process is there."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; nothing runs yet."""
        self._queue.extend(jobs)

    def collect(self, deadline: float) -> list[Outcome]:
        """Run the next job to its end, whatever the deadline."""
        if not self._queue:
            return []
        job = self._queue.popleft()
        message = delivered(job.message.metadata, isolated(job.message.content))
        # A copy, as if it came from another process: a client that fails has changed nothing.
        context = dataclasses.replace(job.context, state=isolated(job.context.state))
        return [run_job(self._app, Job(message, context, job.seed))]

    def abandon(self, message_ids: Collection[str]) -> None:
        """Drop jobs that have not run."""
        self._queue = deque(
            job for job in self._queue if job.message.metadata.message_id not in message_ids
        )

    @property
    def offers_cohorts(self) -> bool:
        """Whether the app takes blocks of clients."""
        return offers_cohorts(self._app)

    def run_cohort(self, cohort: Cohort, deadline: float) -> None:
        """Run one block after another; those whose turn comes after the deadline are missed."""
        started = time.perf_counter()
        for i, (block, number) in enumerate(zip(cohort.blocks, cohort.numbers, strict=True)):
            if time.monotonic() <= deadline:
                setting = cohort.setting
                parts = run_block(self._app, cohort.content, block.clients, number, setting)
                cohort.answer(i, parts)
        seconds = time.perf_counter() - started
        self.usage = Usage(seconds, (seconds,))

    def close(self) -> None:
        """Forget what is queued."""
        self._queue.clear()
