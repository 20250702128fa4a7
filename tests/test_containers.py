"""The federation in real containers: brought up, run, broken in every way, and taken down.

The tests of this file go in order, on one deployment: each stage's time is printed. Start an
engine, and make the base image, with tests/containers/engine and tests/containers/base-image.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from fedsim.config import flatten, read_toml
from fedsim.deployment import folder, keys, operate
from fedsim.deployment.compose import write_files
from fedsim.ledger.read import load

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[1]
IMAGE = "fedsim-test"
NODES = 3
LARGEST_IMAGE_BYTES = 1.4e9
UP_SECONDS = 300
# "required" where a missing engine is a failure and no reason to skip; "none" where none runs.
REQUIRED = "FEDSIM_CONTAINERS"
OOM_MEMORY = "96m"
TOLD = "told at the end"  # as in conftest.py


def docker(*arguments: str, check: bool = True, timeout: float = 120) -> str:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout + ("" if check else done.stderr)


@pytest.fixture(scope="module")
def stages() -> list[str]:
    """What was timed and is not told yet."""
    return []


@pytest.fixture(scope="module")
def stage(stages: list[str]) -> Callable[[str], Any]:
    """Take down how long a block took, for the end of the session."""

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        stages.append(f"containers: {name}: {time.monotonic() - started:.1f} s")

    return timed


@pytest.fixture(autouse=True)
def told(stages: list[str], record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Have conftest.py tell the times, whichever process measured them."""
    yield
    for line in stages:
        record_property(TOLD, line)
    stages.clear()


@pytest.fixture(scope="module")
def engine() -> None:
    """A container engine answers, and Compose."""
    if os.environ.get(REQUIRED) == "none":
        pytest.skip("no container runs here: tests/containers/engine check")
    missing = next((t for t in ("docker", "docker-compose") if shutil.which(t) is None), None)
    if missing is None and subprocess.run(["docker", "info"], capture_output=True).returncode:
        missing = "a running engine"
    if missing:
        text = f"{missing} is missing; start one with: tests/containers/engine start"
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)(text)


@pytest.fixture(scope="module")
def image(engine: None, stage: Callable[[str], Any]) -> str:
    """Build the image from this checkout, with the torch that these tests run with."""
    wheels = ROOT / "wheels"
    wanted = f"torch=={torch.__version__}"
    if not list(wheels.glob(f"torch-{torch.__version__}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", wanted]
        subprocess.run([*command, "-d", str(wheels)], check=True, timeout=600)
    with stage("build the image"):
        build(f"TORCH={wanted}")
    return IMAGE


def build(*arguments: str) -> None:
    """Build with BuildKit where a docker has it: the first one on the path may not."""
    options = [part for argument in arguments for part in ("--build-arg", argument)]
    said = ""
    for client, kit in (("docker", "1"), ("/usr/bin/docker", "1"), ("docker", "0")):
        done = subprocess.run(
            [client, "build", "--tag", IMAGE, *options, str(ROOT)],
            env={**os.environ, "DOCKER_BUILDKIT": kit},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode == 0:
            return
        said = done.stdout[-4000:]
        if "buildx" not in said:
            break
    pytest.fail(said)


@dataclass
class Deployed:
    """A deployment under test, and how its operator's commands are called."""

    directory: Path
    split: Path
    variables: dict[str, str]
    home: Path

    @property
    def made(self) -> folder.Deployment:
        return folder.load(self.directory)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "fedsim", *arguments]

    def deploy(self, action: str, *arguments: str, code: int = 0) -> str:
        """Call ``fedsim deploy``; return what it printed, both ways."""
        done = subprocess.run(
            self.command("deploy", action, *arguments, "--dir", str(self.directory)),
            env=self.variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=UP_SECONDS + 60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        label = f"label=com.docker.compose.project={self.made.name}"
        own = f"label=com.docker.compose.service={service}"
        return docker("ps", "--all", "--quiet", "--filter", label, "--filter", own).strip()

    def inspect(self, service: str, what: str) -> str:
        return docker("inspect", "--format", what, self.container(service)).strip()

    def kill(self, service: str) -> None:
        """End a container's process as a crash would: "docker kill" starts no restart."""
        os.kill(int(self.inspect(service, "{{.State.Pid}}")), signal.SIGKILL)

    def online(self) -> dict[str, int]:
        """Return the ids of the nodes that are online, by name."""
        with operate.connect(self.made) as superlink:
            return {n.name: n.id for n in superlink.nodes() if n.status == operate.ONLINE}

    def wait_gone(self, name: str, seconds: float = 120) -> None:
        """Wait until the SuperLink has noticed that a node is not there."""
        deadline = time.monotonic() + seconds
        while name in self.online():
            assert time.monotonic() < deadline, f"{name} is online"
            time.sleep(1)

    def wait_online(self, names: set[str], seconds: float = 120) -> dict[str, int]:
        deadline = time.monotonic() + seconds
        while not names <= (found := self.online()).keys():
            assert time.monotonic() < deadline, f"online: {sorted(found)}"
            time.sleep(1)
        return found


def noisy_digits(path: Path) -> Path:
    """Write the quickstart's digits with noise: the digits themselves are in every image."""
    x, y = load_digits(return_X_y=True)
    noise = np.random.default_rng(0).normal(0, 0.05, x.shape)
    np.savez(path, x=(x / 16 + noise).astype(np.float32).reshape(-1, 8, 8), y=y)
    return path


@pytest.fixture(scope="module")
def deployed(
    image: str, stage: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    """Three nodes, each with its part of the quickstart's data; all is removed at the end."""
    home = tmp_path_factory.mktemp("deployment")
    found = Deployed(
        directory=home / "deployment",
        split=home / "split",
        variables={**os.environ, "FEDSIM_IMAGE": image},
        home=home,
    )
    settings = {
        "data.dataset": "file",
        "data.path": noisy_digits(home / "noisy.npz"),
        "experiment.rounds": 5,
        "data.clients": NODES,
        "server.clients_per_round": NODES,
        "train.compiler": "torch",
        "server.round_timeout_seconds": 25,
    }
    overrides = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
    quickstart = str(ROOT / "configs" / "quickstart.toml")
    for command in (
        ["data", "split", quickstart, "--out", str(found.split), *overrides],
        [
            *("deploy", "init", str(found.directory), "--nodes", str(NODES)),
            *("--data", str(found.split), "--port", "18443"),
        ],
    ):
        subprocess.run(found.command(*command), cwd=home, check=True, timeout=120)
    try:
        with stage(f"bring up {NODES} nodes, with TLS and authentication"):
            found.deploy("up", "--wait", str(UP_SECONDS))
        yield found
    finally:
        subprocess.run(
            found.command("deploy", "down", "--volumes", "--dir", str(found.directory)),
            env=found.variables,
            cwd=home,
            capture_output=True,
            check=False,
            timeout=120,
        )


@pytest.mark.parametrize("compose", [("docker-compose",), ("docker", "compose")], ids=" ".join)
def test_the_files_suit_both_versions_of_compose(
    compose: tuple[str, ...], engine: None, tmp_path: Path
) -> None:
    if subprocess.run([*compose, "version"], capture_output=True, check=False).returncode:
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)(
            f"no {' '.join(compose)}"
        )
    made = folder.create(tmp_path / "plan", nodes=2, devices=["phone", "laptop"])
    write_files(made)
    base, own = ROOT / "docker-compose.yml", made.directory / "compose.yaml"
    for files in ([base], [ROOT / "docker-compose.dev.yml"], [base, own]):
        named = [part for file in files for part in ("--file", str(file))]
        variables = ["--env-file", str(made.directory / "compose.env")]
        done = subprocess.run(
            [*compose, *variables, *named, "config", "--quiet"], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_is_small_and_has_no_more_than_it_needs(
    image: str, stage: Callable[[str], Any]
) -> None:
    described = json.loads(docker("image", "inspect", image))[0]
    settings = described["Config"]
    with stage(f"look at the image, {described['Size'] / 1e9:.2f} GB"):
        assert described["Size"] < LARGEST_IMAGE_BYTES
        assert settings["User"] == "10001"
        assert settings["Healthcheck"]["Test"]
        assert settings["Labels"]["org.opencontainers.image.title"] == "fedsim"
        looked = docker(
            *("run", "--rm", "--user", "0", image, "python", "-c"),
            "import importlib.util as u, pathlib as p, shutil, torch, pandas, io\n"
            "b = io.BytesIO(); pandas.DataFrame({'a': [1]}).to_parquet(b); pandas.read_parquet(b)\n"
            "d = p.Path(torch.__file__).parent\n"
            "print([bool(u.find_spec(m)) for m in ('pip', 'ray', 'fedsim', 'flwr')])\n"
            "print(len(list(d.rglob('*.pyc'))) > 0.99 * len(list(d.rglob('*.py'))) > 1000)\n"
            "cache = p.Path('~root').expanduser() / '.cache'\n"
            "print([shutil.which('gcc'), shutil.which('cc'), cache.exists()])",
        )
    assert looked.splitlines() == [
        *("[False, False, True, True]", "True", "[None, None, False]"),
    ]


def test_the_quickstart_gives_the_very_model_of_the_simulation(
    deployed: Deployed, stage: Callable[[str], Any]
) -> None:
    experiment, run = deployed.split / "experiment.toml", deployed.home / "runs" / "quickstart"
    with stage("five rounds of the quickstart on three nodes"):
        said = deployed.deploy("submit", str(experiment), "--out", str(run))
    assert "round 5/5" in said
    simulated = deployed.home / "runs" / "simulated"
    command = ["run", str(experiment), "-q", "--out", str(simulated), "-s", "engine.name=inline"]
    subprocess.run(deployed.command(*command), cwd=deployed.home, check=True, timeout=120)
    ours, theirs = load(run), load(simulated)
    assert ours.manifest.model_sha256 == theirs.manifest.model_sha256
    assert ours.rounds.test_loss.to_list() == theirs.rounds.test_loss.to_list()
    counted = ["round", "client", "examples", "steps", "train_flops", "loss_last_step"]
    assert ours.clients[counted].equals(theirs.clients[counted])


def test_the_ledger_holds_what_each_container_cost(deployed: Deployed) -> None:
    rows = rows_of(deployed.home / "runs" / "quickstart")
    assert len(rows) == 5 * NODES
    for row in rows:
        assert row.startup_cpu_seconds > 0
        assert row.startup_wall_seconds > 0
        # The container's CPU is that of all its processes, the client's own among them.
        assert row.container_cpu_seconds >= 0.5 * row.cpu_seconds > 0
        assert 50e6 < row.container_peak_memory_bytes <= 2**30
    later = [row for row in rows if row.round > 1]
    assert all(row.container_received_bytes > row.downlink_wire_bytes for row in later)
    assert all(row.container_sent_bytes > row.wire_bytes for row in later)
    page = deployed.home / "report.html"
    run = deployed.home / "runs" / "quickstart"
    command = deployed.command("report", str(run), "--out", str(page))
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    assert "measured (container)" in page.read_text(encoding="utf-8")


# Three clients are too few to promise users something behind masks: one fewer, and no sum opens.
PROMISES: dict[str, dict[str, object]] = {
    "users": {"privacy.level": "user", "privacy.noise_multiplier": 0.5},
    "each client's own messages": {
        "privacy.level": "local",
        "privacy.noise_multiplier": 0.1,
        "privacy.secure_aggregation": "true",
    },
}


@pytest.mark.parametrize("whom", PROMISES)
def test_a_promise_holds_in_containers_as_in_a_simulation(
    whom: str, deployed: Deployed, stage: Callable[[str], Any]
) -> None:
    """Noised by the server, or masked, clipped and noised at the nodes; the noise from the seed."""
    name = str(PROMISES[whom]["privacy.level"])
    experiment, run = deployed.split / "experiment.toml", deployed.home / "runs" / name
    settings = {
        "experiment.rounds": 2,
        "privacy.clipping_norm": 1.0,
        "privacy.delta": 0.01,
        "privacy.reproducible_noise": "true",
        **PROMISES[whom],
    }
    overrides = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
    with stage(f"two rounds with a promise to {whom}, on three nodes"):
        said = deployed.deploy("submit", str(experiment), "--out", str(run), *overrides)
    assert f"differential privacy for {whom}" in " ".join(said.replace("-d", " d").split())
    simulated = deployed.home / "runs" / f"{name}-simulated"
    command = ["run", str(experiment), "-q", "--out", str(simulated), "-s", "engine.name=inline"]
    subprocess.run(
        deployed.command(*command, *overrides), cwd=deployed.home, check=True, timeout=120
    )
    ours, theirs = load(run), load(simulated)
    assert ours.manifest.guarantee == theirs.manifest.guarantee
    assert ours.manifest.model_sha256 == theirs.manifest.model_sha256
    if "privacy.secure_aggregation" in settings:
        assert ours.clients.examples.isna().all()  # how many would tell what masks hide
        assert (ours.clients.secure_uplink_bytes > 0).all()


def test_no_node_holds_an_example_of_another(
    deployed: Deployed, stage: Callable[[str], Any]
) -> None:
    parts = {
        k: load_file(next((deployed.split / f"client-{k:03d}").glob("*.safetensors")))["x"]
        for k in range(NODES)
    }
    rows = {k: {np.ascontiguousarray(row).tobytes() for row in x} for k, x in parts.items()}
    script = """
import os, sys
needles = [bytes.fromhex(line) for line in sys.stdin.read().split()]
found, seen = set(), 0
for top, dirs, files in os.walk("/"):
    dirs[:] = [d for d in dirs if os.path.join(top, d) not in ("/proc", "/sys", "/dev")]
    for name in files:
        path = os.path.join(top, name)
        if os.path.islink(path):
            continue
        try:
            content = open(path, "rb").read()
        except OSError:
            continue
        seen += 1
        found |= {n for n, needle in enumerate(needles) if needle in content}
print(seen > 1000, sorted(found))
"""
    with stage("search a node's files for the others' examples"):
        # The last needle is its own: the search does find what is there.
        foreign = sorted((rows[1] | rows[2]) - rows[0])[:20]
        needles = [*foreign, next(iter(rows[0] - rows[1] - rows[2]))]
        done = subprocess.run(
            ["docker", "exec", "-i", deployed.container("node-0"), "python", "-c", script],
            input="\n".join(needle.hex() for needle in needles),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.stdout.split() == ["True", f"[{len(foreign)}]"], done.stdout + done.stderr


def test_what_is_secret_is_not_in_the_image(
    deployed: Deployed, stage: Callable[[str], Any]
) -> None:
    secret = {
        path.read_bytes().strip()
        for path in deployed.directory.rglob("*")
        if path.is_file() and path.name in ("ca.key", "server.key", "key", "superexec.secret")
    }
    assert len(secret) == 4 + NODES  # of the authority, the SuperLink, the gate, and one secret
    certificates = {path.read_bytes().strip() for path in deployed.directory.rglob("*.crt")}
    needles = [*secret, *certificates, b"BEGIN OPENSSH PRIVATE KEY"]
    overlap = max(map(len, needles))
    found, rest = set(), b""
    with stage("search the image's layers for keys"):
        with subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE) as saved:
            assert saved.stdout is not None
            while chunk := saved.stdout.read(2**24):
                window = rest + chunk
                found |= {n for n, needle in enumerate(needles) if needle in window}
                rest = window[-overlap:]
        assert saved.returncode == 0
    # The library that writes such keys names them: the search does find what is there.
    assert found == {len(needles) - 1}


def test_containers_are_hardened_where_they_run(deployed: Deployed) -> None:
    for service in (*operate.SERVICES, *(node.name for node in deployed.made.nodes)):
        (described,) = json.loads(docker("inspect", deployed.container(service)))
        host = described["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] in (["ALL"], ["all"]), service
        assert any("no-new-privileges" in option for option in host["SecurityOpt"]), service
        assert host["Init"], service
        assert not host["Privileged"], service
        assert host["Memory"] > 0, service
        assert host["NanoCpus"] > 0, service
        assert host["PidsLimit"] > 0, service
        assert host["LogConfig"]["Config"]["max-size"] == "10m", service
        assert described["Config"]["User"].split(":")[0] not in ("", "0", "root"), service
        ports = [p for bound in (host["PortBindings"] or {}).values() for p in bound]
        assert [p["HostIp"] for p in ports] == (["127.0.0.1"] if service == "superlink" else [])
        mounts = {m["Destination"]: m["RW"] for m in described["Mounts"]}
        assert {path for path, writable in mounts.items() if writable} <= {"/state"}, service


def test_a_node_reaches_what_is_for_nodes_alone(deployed: Deployed) -> None:
    """It may not start runs, which is to run code at every node; nor see the SuperLink at all."""
    script = """
import http.client, ssl
context = ssl.create_default_context(cafile="/node/ca.crt")
for host, path in (
    ("gate", "/health"), ("gate", "/v1/control/list-runs"), ("gate", "/v1/control/start-run"),
    ("gate", "/v1/runtime/acquire-task"), ("gate", "/v1/fleet/../control/list-runs"),
    ("gate", "/v1/fleet/%2e%2e/control/list-runs"), ("superlink", "/health"),
):
    connection = http.client.HTTPSConnection(host, 8000, timeout=5, context=context)
    try:
        connection.request("GET" if path == "/health" else "POST", path, b"")
        print(host, path, connection.getresponse().status)
    except OSError:
        print(host, path, "unreachable")
"""
    container = deployed.container("node-0")
    said = [line.split() for line in docker("exec", container, "python", "-c", script).splitlines()]
    first, *refused, last = said
    assert first == ["gate", "/health", "200"]
    assert len(refused) == 5
    assert {status for _, _, status in refused} == {"404"}
    assert last == ["superlink", "/health", "unreachable"]


def test_a_stranger_is_given_nothing(
    deployed: Deployed, stage: Callable[[str], Any], tmp_path: Path
) -> None:
    """One whose key nobody registered, one that trusts another authority, and one without TLS."""
    made = deployed.made
    stranger, deceived = tmp_path / "stranger", tmp_path / "deceived"
    for directory in (stranger, deceived):
        keys.make_node_key(directory)
    keys.make_authority(tmp_path / "other", "other")
    shutil.copy(made.authority, stranger / "ca.crt")
    shutil.copy(tmp_path / "other" / "ca.crt", deceived / "ca.crt")
    containers = {}
    with stage("three strangers"):
        for directory in (stranger, deceived):
            folder.give(directory)
            containers[directory.name] = docker(
                *("run", "--detach", "--read-only", "--tmpfs", "/tmp:mode=1777"),
                *("--user", folder.container_user(), "--network", f"{made.name}_fleet"),
                *("--volume", f"{directory}:/node:ro", IMAGE),
                *("python", "-m", "fedsim.deployment.node", "--superlink=gate:8000"),
                *("--root-certificates=/node/ca.crt", "--auth-supernode-private-key=/node/key"),
                *("--partition-id=0", "--partitions=3", "--max-wait-time=15"),
            ).strip()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=10)
            connection.request("GET", "/health")
            with pytest.raises((http.client.HTTPException, OSError)):
                connection.getresponse()
            said = {}
            for name, container in containers.items():
                docker("wait", container, timeout=90)
                said[name] = docker("logs", container, check=False)
        finally:
            docker("rm", "--force", *containers.values())
    assert "Exit Code: 305" in said["stranger"]
    assert "SuperNode ID" not in said["deceived"]
    assert "CERTIFICATE_VERIFY_FAILED" in said["deceived"]
    with operate.connect(made) as superlink:
        assert {node.name for node in superlink.nodes()} == {f"node-{k}" for k in range(NODES)}


def rows_of(run: Path) -> list[Any]:
    """Return a ledger's clients as rows; a blank figure is NaN."""
    return list(load(run).clients.itertuples())


class Following:
    """A run that was submitted, and the rounds that it has told of."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line)

    def so_far(self) -> int:
        """Return the last round that was told of."""
        told = [line.split("/")[0] for line in self._lines if line.startswith("round ")]
        return int(told[-1].split()[1]) if told else 0

    def until_round(self, round: int) -> None:
        """Wait until a round is told of."""
        while self.so_far() < round:
            assert self._process.poll() is None, f"no round {round}: {''.join(self._lines)}"
            time.sleep(0.2)

    def end(self) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        code = self._process.wait(timeout=300)
        self._reader.join()
        assert code == 0, "".join(self._lines) + said


def test_a_federation_outlives_its_faults(deployed: Deployed, stage: Callable[[str], Any]) -> None:
    """A node and the SuperLink killed, a network cut, too little memory, and a client of NaN."""
    run, nodes, rounds = deployed.home / "runs" / "faults", deployed.wait_online(NAMES), 36
    network = f"{deployed.made.name}_fleet"
    command = deployed.command(
        *("deploy", "submit", str(deployed.split / "experiment.toml")),
        *("--dir", str(deployed.directory), "--out", str(run)),
        *("-s", f"experiment.rounds={rounds}", "-s", "train.epochs=40"),
    )
    with (
        stage(f"{rounds} rounds with faults"),
        subprocess.Popen(
            command,
            env=deployed.variables,
            cwd=deployed.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        following = Following(process)
        following.until_round(2)
        poison(deployed, client=2)
        time.sleep(1.5)  # until it trains
        deployed.kill("node-0")
        deployed.wait_gone("node-0")
        deployed.wait_online(NAMES)  # Flower lets it in when its last heartbeat is a minute old
        killed = following.so_far()
        following.until_round(killed + 2)
        deployed.kill("superlink")
        following.until_round(killed + 4)
        docker("network", "disconnect", network, deployed.container("node-0"))
        time.sleep(20)
        docker("network", "connect", network, deployed.container("node-0"))
        cut = following.so_far()
        following.until_round(cut + 2)
        docker("stop", "--time", "1", deployed.container("node-1"))
        limits = ("--memory-swap", OOM_MEMORY, "--memory", OOM_MEMORY)
        docker("update", *limits, deployed.container("node-1"))
        since = str(int(time.time()))
        docker("start", deployed.container("node-1"))
        wait_for_kill_by_kernel("node-1", since)
        following.until_round(following.so_far() + 2)
        docker("stop", "--time", "1", deployed.container("node-1"))
        docker("update", "--memory-swap", "2g", "--memory", "1g", deployed.container("node-1"))
        docker("start", deployed.container("node-1"))
        following.end()
    ledger = load(run)
    assert ledger.manifest.status == "completed"
    assert ledger.rounds["round"].to_list() == list(range(1, rounds + 1))
    story = {k: [row for row in rows_of(run) if row.client == k] for k in range(NODES)}
    assert all(len(rows) == rounds for rows in story.values())
    for client in (0, 1):  # each was lost for a while, with a reason, and is used again
        lost = [row for row in story[client] if row.status in ("failed", "timeout")]
        assert lost, client
        assert all(row.error for row in lost)
        assert story[client][-1].status == "ok"
    assert any(row.status == "ok" for row in story[0] if killed < row.round <= cut)
    waited = ledger.rounds.wall_seconds[ledger.rounds["round"].between(cut - 1, cut + 1)].max()
    assert waited > 10  # for the node without a network, in vain or not
    poisoned = [row for row in story[2] if row.round > 4]
    assert {row.status for row in poisoned} <= {"rejected", "failed", "timeout"}
    assert any(row.status == "rejected" and "nan" in str(row.error).lower() for row in poisoned)
    assert np.isfinite(ledger.rounds.test_loss).all()
    assert deployed.wait_online(NAMES) == nodes  # under their own ids


NAMES = {f"node-{k}" for k in range(NODES)}


def wait_for_kill_by_kernel(service: str, since: str) -> None:
    """Return when the kernel has ended a process of a container for want of memory."""
    deadline = time.monotonic() + 60
    while True:
        found = docker(
            *("events", "--since", since, "--until", str(int(time.time()) + 1)),
            *("--filter", "event=oom", "--format", "{{.Actor.Attributes.name}}"),
        )
        if service in found:
            return
        assert time.monotonic() < deadline, f"{service} lives on {OOM_MEMORY}"


def poison(deployed: Deployed, *, client: int) -> None:
    """Let a client scale its features so that no network survives them.

    Its data was looked at when the run began, and is read again at every message.
    """
    path = deployed.split / f"client-{client:03d}" / "dataset.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**card, "scale": 3e38}), encoding="utf-8")


def test_keys_are_rotated_and_revoked(deployed: Deployed, stage: Callable[[str], Any]) -> None:
    before = deployed.wait_online(NAMES)
    with stage("rotate a key, and revoke another"):
        deployed.deploy("rotate", "node-1")
        after = deployed.wait_online(NAMES)
        deployed.deploy("revoke", "node-2")
    assert after["node-1"] != before["node-1"]
    assert after["node-0"] == before["node-0"]
    assert "node-2" not in deployed.online()
    assert not (deployed.directory / "nodes" / "node-2").exists()
    status = json.loads(deployed.deploy("status", "--format", "json"))
    by_name = {row["service"]: row for row in status["services"]}
    assert by_name["node-2"]["node"] == "revoked"
    assert by_name["node-1"]["node"] == "online"


def test_down_leaves_nothing_but_what_was_asked_for(
    deployed: Deployed, stage: Callable[[str], Any]
) -> None:
    name = deployed.made.name

    def left(kind: str) -> list[str]:
        """Return what Docker still has of the deployment."""
        what = {"container": ("ps", "--all"), "network": ("network", "ls")}
        command = what.get(kind, ("volume", "ls"))
        label = f"label=com.docker.compose.project={name}"
        return docker(*command, "--quiet", "--filter", label).split()

    with stage("take it down"):
        deployed.deploy("down")
        assert left("container") == left("network") == []
        assert len(left("volume")) == 2
        deployed.deploy("down", "--volumes")
    assert left("volume") == []
    alive = subprocess.run(
        ["pgrep", "--full", "fedsim.deployment.node --superlink=gate"],
        capture_output=True,
        check=False,
    )
    assert alive.returncode == 1
    assert flatten(read_toml(deployed.directory / folder.FILE))["name"] == name
