"""A SuperLink as its operator talks to it: Flower's Control API, with TLS."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.retry import RetryInvoker, exponential

from fedsim.errors import EngineError

HEALTH_POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0  # a SuperLink that is started again is back by then


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node as the SuperLink knows it; ``status`` is Flower's: registered, online, offline."""

    id: int
    name: str
    status: str
    public_key: bytes


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands: ``status`` and ``sub_status`` are Flower's."""

    status: str
    sub_status: str
    details: str

    @property
    def over(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self.status == "finished"

    @property
    def completed(self) -> bool:
        """Whether it has ended well."""
        return self.over and self.sub_status == "completed"

    def __str__(self) -> str:
        """Say it in a line."""
        return ": ".join(part for part in (self.sub_status or self.status, self.details) if part)


class SuperLink:
    """A connection to a SuperLink's Control API; use it in a ``with`` block.

    Args:
        address: host and port.
        certificate: the authority's that signed the server's; None talks in plain text.
    """

    def __init__(self, address: str, certificate: Path | None) -> None:
        self.address = address
        self._certificate = certificate
        self._client = self._connect(
            # It also closes a connection that was idle for five seconds.
            RetryInvoker(
                lambda: exponential(base_delay=0.1, max_delay=2),
                httpx.TransportError,
                max_tries=None,
                max_time=PATIENCE_SECONDS,
            )
        )

    def _connect(self, retry_invoker: RetryInvoker | None) -> ControlHttpClient:
        authority = self._certificate
        return ControlHttpClient.from_server_address(
            server_address=self.address,
            insecure=authority is None,
            root_certificates=None if authority is None else authority.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="fedsim")],
            retry_invoker=retry_invoker,
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._client.close()

    def healthy(self) -> bool:
        """Say whether it answers."""
        scheme = "http" if self._certificate is None else "https"
        verify = self._certificate is None or str(self._certificate)
        try:
            answer = httpx.get(
                f"{scheme}://{self.address}/health", verify=verify, timeout=2, trust_env=False
            )
        except httpx.HTTPError:
            return False
        return answer.is_success

    def wait_until_healthy(self, seconds: float) -> None:
        """Return once it answers.

        Raises:
            EngineError: it does not within that time.
        """
        deadline = time.monotonic() + seconds
        while not self.healthy():
            if time.monotonic() > deadline:
                raise EngineError(
                    f"the SuperLink at {self.address} gave no answer in {seconds:g} s"
                )
            time.sleep(HEALTH_POLL_SECONDS)

    def nodes(self) -> list[Node]:
        """Return the nodes that are registered."""
        with answered(self.address):
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [
            Node(id=n.node_id, name=n.name, status=n.status, public_key=n.public_key)
            for n in found
            if n.status != "unregistered"
        ]

    def register(self, public_key: Path, name: str) -> int:
        """Let a node in by its public key (OpenSSH), and return the id that it gets."""
        with answered(self.address):
            answer = self._client.RegisterNode(
                RegisterNodeRequest(public_key=key_bytes(public_key), name=name)
            )
        return int(answer.node_id)

    def unregister(self, node: int) -> None:
        """Shut a node out, whatever it holds of a key."""
        with answered(self.address):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def start(self, bundle: bytes) -> int:
        """Start a run of an app bundle and return its id.

        It is asked for once: where the answer is lost, another try could start a second run.
        """
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        once = self._connect(None)
        try:
            with answered(self.address):
                answer = once.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
        finally:
            once.close()
        if not answer.HasField("run_id"):
            raise EngineError(f"the SuperLink started no run: {answer.note or 'it says no more'}")
        return int(answer.run_id)

    def stop(self, run: int) -> None:
        """Stop a run."""
        with answered(self.address):
            self._client.StopRun(StopRunRequest(run_id=run))

    def standing(self, run: int) -> Standing:
        """Say where a run stands."""
        with answered(self.address):
            status = self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status
        return Standing(status=status.status, sub_status=status.sub_status, details=status.details)

    def logs(self, run: int, after: float = 0.0) -> Iterator[tuple[float, str]]:
        """Yield what a run logs as it comes, with the time to go on from, until it ends."""
        request = StreamLogsRequest(run_id=run, after_timestamp=after)
        with answered(self.address):
            for answer in self._client.StreamLogs(request):
                yield answer.latest_timestamp, answer.log_output


@contextmanager
def answered(address: str) -> Iterator[None]:
    """Turn what goes wrong between here and a SuperLink into an EngineError.

    Raises:
        EngineError: naming the address, and what the SuperLink said.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise EngineError(f"the SuperLink at {address} refused: {error.response.text}") from error
    except httpx.HTTPError as error:
        raise EngineError(
            f"the SuperLink at {address} cannot be reached ({error}); is it up? "
            "fedsim deploy status"
        ) from error


def key_bytes(public_key: Path) -> bytes:
    """Return a public key of OpenSSH's format as Flower's API takes it."""
    return public_key_to_bytes(load_ssh_public_key(public_key.read_bytes()))  # type: ignore[arg-type]
