"""Wire bytes on a real socket: a SuperLink and two SuperNodes, each behind a proxy that listens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from itertools import chain, zip_longest
from pathlib import Path
from urllib.request import urlopen

import pytest
from flwr.app import Message
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

import fedsim
from fedsim.federation.wire import message_bytes
from fedsim.ledger.read import Run, load

pytestmark = pytest.mark.flower

ROOT = Path(fedsim.__file__).parent.parent
SCRIPTS = Path(sys.executable).parent
CLIENTS, ROUNDS = 2, 2
PUSH_OBJECT, PULL_OBJECT = "/v1/fleet/push-object", "/v1/fleet/pull-object"

# SCAFFOLD's first control variate is zero, as the biases are: one array under several names, in
# one record and in two.
EXPERIMENT = """
[experiment]
rounds = {rounds}
[data]
clients = {clients}
[model]
width = 512
depth = 2
[server]
strategy = "scaffold"
clients_per_round = {clients}
[run]
out = "{out}"
"""


@dataclass
class Exchange:
    """One HTTP request and its response, as they were on the socket."""

    path: str
    request_head: int
    request: bytes
    response_head: int
    response: bytes

    @property
    def pushed(self) -> tuple[str, bytes] | None:
        """The object that went up, where one did."""
        if self.path != PUSH_OBJECT or not PushObjectResponse.FromString(self.response).stored:
            return None
        request = PushObjectRequest.FromString(self.request)
        return request.object_id, request.object_content

    @property
    def pulled(self) -> bytes:
        """The object that came down, where one did."""
        if self.path != PULL_OBJECT:
            return b""
        return PullObjectResponse.FromString(self.response).object_content


@dataclass
class Proxy:
    """Passes connections on to the SuperLink and keeps every byte, by connection and way."""

    port: int
    target: int
    streams: list[tuple[bytearray, bytearray]] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        """Accept connections until the listener is shut down, and see them end."""
        threads = []
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                break
            threads.append(threading.Thread(target=self.connect, args=(client,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join(timeout=5)

    def connect(self, client: socket.socket) -> None:
        """Pass on one connection, both ways, until both have ended."""
        up, down = bytearray(), bytearray()
        self.streams.append((up, down))
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            other = threading.Thread(target=pump, args=(server, client, down), daemon=True)
            other.start()
            pump(client, server, up)
            other.join()

    @property
    def socket_bytes(self) -> tuple[int, int]:
        """All bytes up and all bytes down."""
        return sum(len(up) for up, _ in self.streams), sum(len(down) for _, down in self.streams)

    def exchanges(self) -> Iterator[Exchange]:
        """Take the streams apart; every byte of them is of some exchange."""
        for up, down in self.streams:
            requests, responses = list(http_messages(bytes(up))), list(http_messages(bytes(down)))
            # A node that is ended may leave one request behind.
            assert len(requests) - len(responses) in (0, 1)
            unanswered = ("HTTP/1.1 200", 0, b"")
            for request, response in zip_longest(requests, responses, fillvalue=unanswered):
                assert response[0].split()[1] == "200", (request[0], response[0])
                yield Exchange(request[0].split()[1], *request[1:], *response[1:])


def pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    """Pass bytes on until the source ends, and say so to the sink."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            kept += data
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def http_messages(stream: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yield the first line, the head's bytes and the body of each HTTP message in a stream."""
    while stream:
        head, end, rest = stream.partition(b"\r\n\r\n")
        assert end, "a message without an end of its head"
        first, _, lines = head.partition(b"\r\n")
        headers = BytesHeaderParser().parsebytes(lines)
        assert "transfer-encoding" not in headers
        assert "content-encoding" not in headers
        length = int(headers["content-length"])
        assert len(rest) >= length, "a body that was cut off"
        yield first.decode(), len(head) + len(end), rest[:length]
        stream = rest[length:]


@dataclass
class Deployment:
    """What a run left: its ledger, and what was on each SuperNode's socket."""

    run: Run
    proxies: list[Proxy]
    exchanges: list[list[Exchange]]  # by node

    def messages(self, way: str) -> list[list[Message]]:
        """Return the messages that each node was sent (``down``) or sent (``up``)."""
        return [list(inflate(objects(node, way))) for node in self.exchanges]


def objects(exchanges: list[Exchange], way: str) -> list[bytes]:
    """Return the objects that were on one node's socket, each as often as it was."""
    if way == "down":
        return [e.pulled for e in exchanges if e.pulled]
    return [e.pushed[1] for e in exchanges if e.pushed]


def inflate(objects: list[bytes]) -> Iterator[Message]:
    """Yield the messages that objects make up."""
    contents = {get_object_id(content): content for content in objects}
    for name, content in contents.items():
        if content.startswith(b"Message "):
            message = inflate_object_from_contents(name, contents, keep_object_contents=True)
            assert isinstance(message, Message)
            yield message


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Proxy(listener.getsockname()[1], target)
        thread = threading.Thread(target=made.serve, args=(listener,), daemon=True)
        thread.start()
        yield made
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, as closing alone does not
        thread.join(timeout=10)


@contextmanager
def started(command: list[str], environment: dict[str, str], cwd: Path) -> Iterator[None]:
    """Run a command in the background; its output goes to a file in its directory."""
    with (cwd / f"{command[0]}-{time.monotonic_ns()}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(SCRIPTS / command[0]), *command[1:]],
            env=environment,
            cwd=cwd,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def processes_of(home: Path) -> list[int]:
    """Return the processes that were started with this FLWR_HOME, also by one another."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@contextmanager
def nothing_left_of(home: Path) -> Iterator[None]:
    """Afterwards end what the processes that we started have started, and did not end."""
    try:
        yield
    finally:
        deadline = time.monotonic() + 10
        while (left := processes_of(home)) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def wait_for(what: str, condition: Callable[[], bool], logs: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            ends = [f"{path.name}:\n{path.read_text()[-3000:]}" for path in logs.glob("*.log")]
            pytest.fail("\n".join([f"no {what} within {seconds} s", *ends]))
        time.sleep(0.1)


def healthy(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ended(run: Path) -> bool:
    manifest = run / "manifest.json"
    return manifest.exists() and json.loads(manifest.read_text())["status"] != "running"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Deployment:
    """Run the experiment on a SuperLink and two SuperNodes, and end them all."""
    cwd = tmp_path_factory.mktemp("deployment")
    port, run = free_port(), cwd / "run"
    home = cwd / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        "[superlink]\ndefault = 'test'\n"
        f"[superlink.test]\naddress = '127.0.0.1:{port}'\ninsecure = true\n"
    )
    config = cwd / "experiment.toml"
    config.write_text(EXPERIMENT.format(rounds=ROUNDS, clients=CLIENTS, out=run))
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
    }
    with ExitStack() as stack:
        stack.enter_context(nothing_left_of(home))
        link = ["flower-superlink", "--insecure", "--port", str(port)]
        stack.enter_context(started(link, environment, cwd))
        wait_for("SuperLink", lambda: healthy(port), cwd)
        proxies = [stack.enter_context(proxy(port)) for _ in range(CLIENTS)]
        for number, between in enumerate(proxies):
            node = ["flower-supernode", "--insecure", "--port", str(free_port())]
            node += ["--superlink", f"127.0.0.1:{between.port}", "--node-config"]
            node += [f"partition-id={number} num-partitions={CLIENTS}"]
            stack.enter_context(started(node, environment, cwd))
        command = [str(SCRIPTS / "flwr"), "run", str(ROOT), "test", "--run-config", str(config)]
        submitted = subprocess.run(
            command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=100
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        wait_for("end of the run", lambda: ended(run), cwd)
    assert processes_of(home) == []
    assert load(run).manifest.status == "completed", load(run).manifest.error
    return Deployment(load(run), proxies, [list(each.exchanges()) for each in proxies])


@pytest.mark.parametrize("way", ["up", "down"])
def test_the_objects_on_each_socket_are_what_is_counted(deployment, way):
    for exchanges, messages in zip(deployment.exchanges, deployment.messages(way), strict=True):
        types = Counter(message.metadata.message_type for message in messages)
        assert types["train"] == ROUNDS
        on_the_socket = sum(map(len, objects(exchanges, way)))
        assert on_the_socket == sum(map(message_bytes, messages)) > 2_000_000 * ROUNDS


def test_something_came_down_twice_and_nothing_went_up_twice(deployment):
    """The rule about repetitions is put to the test by this experiment."""
    for exchanges in deployment.exchanges:
        down, up = (Counter(objects(exchanges, way)) for way in ("down", "up"))
        assert max(down.values()) > 1
        assert max(up.values()) == 1


def test_the_ledger_counts_what_was_on_the_sockets(deployment):
    """The server counts what it sends before it is sent, and what it receives as it arrives."""
    rounds, clients = deployment.run.rounds, deployment.run.clients
    for way, total, column in (
        ("up", "uplink_bytes", "wire_bytes"),
        ("down", "downlink_bytes", "downlink_wire_bytes"),
    ):
        found = Counter()
        for message in chain.from_iterable(deployment.messages(way)):
            if message.metadata.message_type == "train":
                found[int(message.metadata.group_id)] += message_bytes(message)
        assert dict(zip(rounds["round"], rounds[total], strict=True)) == found
        assert dict(clients.groupby("round")[column].sum()) == found


def test_the_rest_is_framing(deployment):
    """Whatever was on the sockets is an object or framing; ``pytest -s`` shows the framing."""
    calls: Counter[str] = Counter()
    heads: Counter[str] = Counter()  # HTTP's first lines and headers
    beside: Counter[str] = Counter()  # what is in the bodies beside the objects
    payload = 0
    for exchange in chain.from_iterable(deployment.exchanges):
        call = exchange.path.removeprefix("/v1/fleet/")
        carried = len(exchange.pushed[1] if exchange.pushed else exchange.pulled)
        calls[call] += 1
        heads[call] += exchange.request_head + exchange.response_head
        beside[call] += len(exchange.request) + len(exchange.response) - carried
        payload += carried
    total = sum(sum(each.socket_bytes) for each in deployment.proxies)
    assert total == payload + heads.total() + beside.total()

    print(f"\n{total:,} bytes on {CLIENTS} sockets, {payload:,} of them objects; framing:")
    for call in sorted(calls):
        print(f"{calls[call]:>5} {call:26} {heads[call]:>9,} heads {beside[call]:>9,} in bodies")
    # The app itself comes down once; of the rest, very little is no object.
    assert 0.96 < payload / (total - beside["get-fab"]) < 1
    assert calls["push-messages"] == CLIENTS * (ROUNDS + 1)  # one asks for the partition
