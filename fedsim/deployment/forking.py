"""A task executor that forks: Flower starts a process for every message, and this one is ready.

Flower's own executor starts ``flwr-clientapp``, which imports torch again for each message: four
seconds of CPU to train a small network for a few milliseconds. Here a process imports once what
every client needs and forks for each message, so a message still has a process of its own, which
takes with it whatever it leaves behind.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supernode.runtime.run_clientapp import run_clientapp

log = logging.getLogger("flwr.fedsim")

# What a client of ours imports, in the order in which it is found missing. Without running
# anything: threads would not survive a fork.
PRELOADED = (
    "torch",
    "sklearn.datasets",
    "fedsim.codecs",
    "fedsim.costs",
    "fedsim.flower",
    "fedsim.measure.bill",
    "fedsim.measure.health",
    "fedsim.parts",
    "fedsim.training",
)


# What ends a task from outside. A node's own handlers wait for its tasks: no child is to run them.
ENDING = (signal.SIGTERM, signal.SIGINT)


class ForkingExecutor:
    """Runs each ClientApp task in a fork of this process (Flower's ``Executor``).

    This process must have one thread only. What else a SuperNode may be asked to run (agents,
    models, connectors) is none of a client's business and is refused.

    Args:
        preload: modules that every task would import.
        max_tasks: tasks at a time; the others wait at the SuperNode.
    """

    def __init__(self, preload: Sequence[str] = PRELOADED, *, max_tasks: int = 1) -> None:
        for module in preload:
            importlib.import_module(module)
        self._max_tasks = max_tasks
        self._running: dict[int, int] = {}  # task by process

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """Return which tasks may be acquired now, and no preferred bundles."""
        free = len(self._running) < self._max_tasks
        return (supported_task_types & {TaskType.CLIENT_APP} if free else set()), set()

    def wait_for_capacity(
        self,
        task_type: TaskType | None = None,
        *,
        fab_hash: str | None = None,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> None:
        """Wait until the next task may start."""
        while len(self._running) >= self._max_tasks:
            self._forget(*os.waitpid(next(iter(self._running)), 0))

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork, and run the task in the child."""
        if spec.task_type is not TaskType.CLIENT_APP:
            return LaunchResult.failed(f"a client's node runs no {spec.task_type} tasks")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or the child prints it again
        # A signal that came before the child has handlers of its own would run the node's in it.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            child = os.fork()
            if child == 0:
                run_and_exit(lambda: run_task(spec), blocked)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._running[child] = spec.task_id
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Forget the tasks whose process has ended."""
        for running in list(self._running):  # and no other child, which is somebody else's
            child, status = os.waitpid(running, os.WNOHANG)
            if child:
                self._forget(child, status)

    @property
    def busy(self) -> bool:
        """Whether a task is under way."""
        return bool(self._running)

    def close(self) -> None:
        """End what still runs; the SuperNode tells the server that it never answered."""
        for child in self._running:
            os.kill(child, signal.SIGTERM)
        for child in list(self._running):
            self._forget(*os.waitpid(child, 0))

    def _forget(self, child: int, status: int) -> None:
        task, code = self._running.pop(child), os.waitstatus_to_exitcode(status)
        if code < 0:  # Flower notices that the task has fallen silent, a minute later
            log.error("task %s: its process was ended by signal %d", task, -code)


def run_task(spec: ExecutionSpec) -> None:
    """Run one message through its ClientApp, as ``flwr-clientapp`` would."""
    root = spec.root_certificates_path
    run_clientapp(
        runtime_api_address=spec.runtime_api_address,
        token=spec.token,
        insecure=spec.insecure,
        certificates=Path(root).read_bytes() if root else None,
        parent_pid=spec.parent_pid,
        runtime_dependency_install=spec.runtime_dependency_install,
    )


def run_and_exit(run: Callable[[], None], mask: Iterable[int] = ()) -> NoReturn:
    """Run in a forked child and end it without the clean-up that is its parent's.

    Args:
        run: the child's work.
        mask: of signals, to be restored once those that end the child do.
    """
    code = 1
    try:
        for ending in ENDING:
            signal.signal(ending, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        run()
        code = 0
    except SystemExit as error:  # how Flower ends a task
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            os._exit(code)
