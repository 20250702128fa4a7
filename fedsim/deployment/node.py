"""A client's node: Flower's SuperNode, and beside it a process that forks for each message.

    python -m fedsim.deployment.node --superlink HOST:8000 --root-certificates ca.crt ...

It takes the options of ``flower-supernode``, and runs it with process isolation: that is Flower's
own interface for an executor that somebody else brings. Two processes then wait for each other,
and wake each other over a pipe instead of asking again every half second; and the SuperNode asks
the SuperLink for messages often while a run is on, and seldom while there is none.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from fedsim.deployment.claims import claim_partition

# How long the SuperNode waits before it asks the SuperLink again: from FIRST on, each time
# GROWTH as long, up to what Flower waits. A round on the server takes about a second.
FIRST_POLL_SECONDS, POLL_GROWTH = 0.1, 1.3
# How often the executor looks whether the SuperNode is still there.
PARENT_POLL_SECONDS = 5.0
RUNTIME_PORT = 9094
NODE_DIR = "FEDSIM_NODE_DIR"  # see fedsim.measure.container
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@dataclass(frozen=True)
class Bell:
    """A pipe that one process rings and another waits at."""

    reader: int
    writer: int

    @classmethod
    def new(cls) -> Bell:
        """Return one that neither side blocks on."""
        ends = os.pipe()
        for end in ends:
            os.set_blocking(end, False)
        return cls(*ends)

    def ring(self) -> None:
        """Wake whoever waits; a full pipe wakes as well."""
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.writer, b"!")

    def wait(self, seconds: float) -> bool:
        """Return True when it rang, False after so many seconds."""
        rang = bool(select.select([self.reader], [], [], seconds)[0])
        if rang:
            os.read(self.reader, 4096)
        return rang


class Patience:
    """Stands for the module ``time`` in Flower's SuperNode, which only sleeps.

    It sleeps 3 s when the SuperLink had no message, and half a second as often as the client is
    not done yet. See docs/decisions/0019-nodes-that-fork.md.
    """

    def __init__(self, work: Bell, done: Bell) -> None:
        self._work, self._done = work, done
        self._idle_seconds = FIRST_POLL_SECONDS

    def sleep(self, seconds: float) -> None:
        """Wait as long as is sensible in place of so many seconds."""
        if seconds < 1:  # a message waits for the client, or the client is at it
            self._work.ring()
            self._done.wait(seconds)
            self._idle_seconds = FIRST_POLL_SECONDS
        else:
            time.sleep(min(self._idle_seconds, seconds))
            self._idle_seconds = min(seconds, POLL_GROWTH * self._idle_seconds)


def serve(supernode: int, work: Bell, done: Bell, address: str) -> NoReturn:
    """Fork for each of a SuperNode's messages, until the SuperNode is gone.

    Args:
        supernode: its process, which is this one's parent.
        work: rung when there is a message.
        done: to ring when a client is done.
        address: of the SuperNode's Runtime API, on this machine.
    """
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supercore.superexec.plugin import AutoExecPlugin

    from fedsim.deployment.forking import ForkingExecutor

    executor = ForkingExecutor()
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # it is this machine's loopback
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    plugin = AutoExecPlugin(address, True, None, False, executor=executor)
    signal.signal(signal.SIGCHLD, lambda *_: done.ring())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while os.getppid() == supernode:
            # Not before the bell: the SuperNode registers a task before it has the whole message,
            # and a client that comes early waits a second before it asks for the rest again.
            rang = work.wait(PARENT_POLL_SECONDS)
            executor.reconcile()
            types, bundles = executor.get_eligible_capacity(set(plugin.supported_task_types))
            if not rang or not types:
                continue
            got = client.AcquireTask(
                AcquireTaskRequest(supported_task_types=types, agentapp_fab_hashes=bundles)
            )
            if got.HasField("task") and got.token:
                plugin.launch_task(token=got.token, task=got.task)
    finally:
        executor.close()
        client.close()
    sys.exit(0)


def end_with_parent() -> None:
    """Have Linux end this process when its parent has ended, whatever it waits for then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def private_directory() -> Iterator[None]:
    """Give this node's processes a directory that lasts as long as they do."""
    with tempfile.TemporaryDirectory(prefix="fedsim-node-") as directory:
        os.environ[NODE_DIR] = directory
        try:
            yield
        finally:
            os.environ.pop(NODE_DIR, None)


def main() -> None:
    """Run a node until it is stopped."""
    options, others = arguments().parse_known_args()
    config = [f"partition-id={partition_of(options)}"]
    if options.data:
        config.append(f'data="{options.data}"')
    if options.partitions:
        config.append(f"num-partitions={options.partitions}")
    with private_directory():
        run_supernode([*others, "--node-config", " ".join(config)], options.runtime_port)


def arguments() -> argparse.ArgumentParser:
    """Return the options that are the node's own; all others go to Flower."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsim.deployment.node",
        description=__doc__.splitlines()[0],
        epilog="All other options are those of flower-supernode, see flower-supernode --help.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--partition-id", type=int, metavar="K", help="the client that this is")
    which.add_argument(
        "--claim",
        type=Path,
        metavar="DIR",
        help="take the first client that no other node on this machine has claimed in DIR",
    )
    parser.add_argument("--partitions", type=int, metavar="N", help="how many clients there are")
    parser.add_argument(
        "--runtime-port",
        type=int,
        default=RUNTIME_PORT,
        metavar="PORT",
        help=f"of the API between the node's own processes, on loopback (default: {RUNTIME_PORT})",
    )
    parser.add_argument("--data", metavar="PATH", help="where this client's own examples lie")
    return parser


def partition_of(options: argparse.Namespace) -> int:
    """Return which client this is."""
    if options.claim is None:
        return int(options.partition_id)
    return claim_partition(options.claim, options.partitions)


def run_supernode(options: list[str], port: int) -> None:
    """Run Flower's SuperNode in this process, with an executor as its child.

    Args:
        options: of ``flower-supernode``.
        port: of the API between the two.
    """
    work, done, own = Bell.new(), Bell.new(), os.getpid()
    child = os.fork()  # before there are threads
    if child == 0:
        end_with_parent()
        serve(own, work, done, f"127.0.0.1:{port}")

    from flwr.supercore.exit import add_exit_handler
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    def child_ended(*_: object) -> None:
        # Flower starts short-lived processes too. A node is nothing without its executor.
        if os.waitpid(child, os.WNOHANG)[0]:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.kill(own, signal.SIGTERM)

    def end_child() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.kill(child, signal.SIGTERM)

    start_client_internal.time = Patience(work, done)  # type: ignore[assignment,attr-defined]
    add_exit_handler(end_child)
    signal.signal(signal.SIGCHLD, child_ended)
    child_ended()  # it may have ended before anybody listened
    isolated = ["--isolation", "process", "--port", str(port)]
    sys.argv = ["flower-supernode", *isolated, *options]
    flower_supernode()


if __name__ == "__main__":
    main()
