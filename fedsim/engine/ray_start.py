"""Ray itself: started on this machine or joined by its address, beside whatever else starts."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from fedsim.errors import EngineError

CONNECT_SECONDS = 10.0
START_SECONDS = 60.0  # joining takes two, starting on a busy machine ten
# Up to so many bytes, an argument or a reply travels inside its call. Ray's default sends the
# model of a small network through the object store, which takes three times as long. Only whoever
# starts Ray can set it.
OUR_INLINE_BYTES, RAYS_INLINE_BYTES = 4 * 2**20, 100_000


class RaySession:
    """Ray, for as long as it is needed; starting takes place in a thread.

    The thread stays until the end: what Ray starts on this machine is tied to the thread that
    started it, and would end with it. ``then`` runs in it as soon as Ray is up.
    ``inline_bytes`` says how large a call may be without a detour over the object store.

    Raises:
        EngineError: nobody answers at the address.
    """

    def __init__(self, cores: int, address: str, then: Callable[[], None]) -> None:
        if address:
            knock(address)
        self.inline_bytes = RAYS_INLINE_BYTES
        self._until = time.monotonic() + START_SECONDS
        self._arguments = (cores, address, then)
        self._up = threading.Event()
        self._over = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._keep, name="fedsim-ray", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until Ray is up.

        Raises:
            EngineError: it could not be started or reached.
        """
        if not self._settled():
            self._problem = EngineError(unreachable(self._arguments[1], "no answer in time"))
        if self._problem is not None:
            raise self._problem

    def close(self, before: Callable[[], None]) -> None:
        """Shut Ray down, if it was started or joined here; ``before`` runs while it is up."""
        if self._settled():
            before()
            self._over.set()
            self._thread.join()

    def _settled(self) -> bool:
        """Wait until Ray is up or has failed; return False if neither happens in time.

        It waits for ever for somebody who listens and is no Ray. The thread then stays behind; it
        does not keep the program from ending.
        """
        left = self._until - time.monotonic()
        return self._up.wait(max(0.0, left))

    def _keep(self) -> None:
        cores, address, then = self._arguments
        ours = False
        try:
            ours = start_ray(cores, address)
            if ours and not address:
                self.inline_bytes = OUR_INLINE_BYTES
            then()
        except BaseException as problem:  # whatever it is, it belongs to who waits
            self._problem = problem
        self._up.set()
        self._over.wait()
        if ours and ray.is_initialized():
            ray.shutdown()


def start_ray(cores: int, address: str) -> bool:
    """Start or join Ray; return whether it must be shut down by whoever called.

    Raises:
        EngineError: Ray cannot be started or reached.
    """
    if ray.is_initialized():
        return False
    # JAX, where something was trained in this process before, warns of forks that go on as they
    # are. Ray's become other programs at once.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    # "local" is a node of our own, whatever another driver left running, or left behind.
    options: dict[str, Any] = {"address": address or "local"}
    if not address:
        options |= {
            "num_cpus": cores,
            "include_dashboard": False,
            "_system_config": {"max_direct_call_object_size": OUR_INLINE_BYTES},
        }
    try:
        with contextlib.nullcontext() if address else impatience():
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
        raise EngineError(unreachable(address, first_line(error))) from error
    return True


@contextlib.contextmanager
def impatience() -> Iterator[None]:
    """Let ``ray.init`` see at once that its node is there.

    Ray looks for it, sleeps a whole second, and looks again, which is a fifth of the time from
    ``fedsim run`` to the end of a first round. Nothing public changes that; where Ray's inside
    looks different from what it is in the version that Flower pins, nothing is changed here.
    """
    try:
        from ray._private import services
        from ray._private.state import GlobalState

        look, options = services.get_node, services._get_gcs_client_options
    except (ImportError, AttributeError):
        yield
        return

    def get_node(address: str, node_id: str) -> Any:
        state = GlobalState()  # type: ignore[no-untyped-call]
        state._initialize_global_state(options(address))  # type: ignore[no-untyped-call]
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            nodes = state.node_table()  # type: ignore[no-untyped-call]
            if any(node["NodeID"] == node_id for node in nodes):
                break
            time.sleep(0.02)
        return look(address, node_id)  # type: ignore[no-untyped-call]

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = look


def unreachable(address: str, why: str) -> str:
    """Say that Ray could not be started, or reached, and what to do about it."""
    if not address:
        return f'Ray could not be started on this machine: {why}; use engine.name = "inline"'
    return (
        f"the Ray cluster at {address!r} could not be reached: {why} (tried for up to "
        f"{START_SECONDS:g} s); check engine.address, or leave it empty to start Ray here"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def knock(address: str) -> None:
    """Refuse an address ``host:port`` at which nobody listens; Ray would try for minutes.

    Other forms of address (``auto``, ``ray://...``) are left to Ray.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and "/" not in host):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise EngineError(unreachable(address, str(error))) from error


def cores_here() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def own_cores(workers: int) -> dict[int, int]:
    """Return a core for each worker by its number, if there is exactly one for each.

    They are all on this machine then, and nobody would gain by moving: a worker that wanders from
    core to core leaves its caches behind, and takes a tenth longer for the 2NN's clients. Where
    cores are left over, where a container has a share of each, or on a cluster, the system decides.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return dict(enumerate(cores)) if len(nodes) == 1 and len(cores) == workers else {}


def places(workers: int, *, gpu: bool) -> tuple[int, float]:
    """Return how many workers to start on the Ray that is running, and each one's share of a GPU.

    Args:
        workers: as many as asked for; 0 means one for each CPU that Ray has, on all nodes.
        gpu: the workers share the GPUs that Ray has, evenly.

    Raises:
        EngineError: Ray has no GPU, or no CPU.
    """
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    count = workers or int(resources.get("CPU", 0))
    if count < 1:
        raise EngineError("Ray has no CPU at all: give its nodes some, or set engine.workers")
    if not gpu:
        return count, 0.0
    gpus = int(resources.get("GPU", 0))
    if gpus < 1:
        raise EngineError(
            'engine.device = "cuda": Ray sees no GPU on any of its nodes; use engine.device = "cpu"'
        )
    return count, gpu_share(count, gpus)


def gpu_share(workers: int, gpus: int) -> float:
    """Return the share of a GPU with which so many workers fit onto so many GPUs.

    Ray counts in ten-thousandths; the share is rounded down to them, so that the last one fits.
    """
    on_one = -(-workers // gpus)
    return (10_000 // on_one) / 10_000
