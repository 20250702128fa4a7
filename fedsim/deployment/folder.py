"""A deployment's folder: its keys, its nodes, and the files that Compose is given."""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedsim.config import read_toml
from fedsim.deployment import keys
from fedsim.errors import ConfigError
from fedsim.ledger.files import write_atomically
from fedsim.measure.devices import Limits, load_limits

FILE = "deployment.toml"
FORMAT = 1
CARD = "dataset.json"  # beside a node's own examples, see fedsim.data
IMAGE_USER = 10001  # of the Dockerfile
DEFAULT_PORT = 8000
# The server's name among the containers, and what it is called on this machine.
OWN_HOSTS = ("superlink", "gate", "localhost", "127.0.0.1")


@dataclass(frozen=True, kw_only=True)
class NodePlan:
    """One node: which client it is, what device it stands for, and where its data lies.

    ``data`` is a folder or a file on this machine; empty for a node that has none of its own.
    """

    name: str
    partition: int
    device: str = ""
    data: str = ""

    def limits(self) -> Limits | None:
        """Return what its device allows a container; None for what Compose gives any node."""
        return load_limits(self.device) if self.device else None


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What stands in ``deployment.toml``, and where.

    Attributes:
        directory: absolute.
        name: of the Compose project.
        port: of the SuperLink on this machine's loopback.
        hosts: names and addresses that its certificate is for.
        nodes: in the order of their partitions.
        server_data: the folder of the test part; empty where the dataset is part of fedsim.
        publish: address and port at which nodes elsewhere reach the gate; empty for nowhere.
        revoked: names of nodes that were shut out.
    """

    directory: Path
    name: str
    port: int
    hosts: tuple[str, ...]
    nodes: tuple[NodePlan, ...]
    server_data: str = ""
    publish: str = ""
    revoked: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """Where the SuperLink's control port is published."""
        return f"127.0.0.1:{self.port}"

    @property
    def authority(self) -> Path:
        """The certificate that everybody trusts."""
        return self.directory / "ca" / "ca.crt"

    @property
    def active(self) -> tuple[NodePlan, ...]:
        """The nodes that are let in."""
        return tuple(node for node in self.nodes if node.name not in self.revoked)

    def folder_of(self, node: NodePlan) -> Path:
        """Return the directory with a node's key, which it is given as a whole."""
        return self.directory / "nodes" / node.name

    def node(self, name: str) -> NodePlan:
        """Return a node by its name.

        Raises:
            ConfigError: there is none, or it was shut out.
        """
        by_name = {node.name: node for node in self.active}
        if name not in by_name:
            raise ConfigError(
                [f"{name!r}: no such node in {self.directory}; valid: {', '.join(by_name)}"]
            )
        return by_name[name]


def create(
    directory: Path,
    *,
    nodes: int,
    data: Path | None = None,
    own: Sequence[Path] = (),
    devices: Sequence[str] = (),
    port: int = DEFAULT_PORT,
    hosts: Sequence[str] = (),
    publish: str = "",
) -> Deployment:
    """Make keys and plans for a deployment.

    Args:
        directory: new or empty.
        nodes: how many.
        data: what ``fedsim data split`` wrote: each node is given its client's folder, and the
            server the test part.
        own: in place of the clients' folders, what each node has: a folder, or a file.
        devices: profiles in ``configs/devices``, dealt to the nodes in turn.
        port: on this machine's loopback.
        hosts: other names and addresses that nodes reach this machine by.
        publish: address and port at which nodes on other machines are let in.

    Raises:
        ConfigError: with every problem found.
    """
    directory = directory.absolute()
    problems = []
    if nodes < 1:
        problems.append(f"--nodes {nodes}: a federation has at least one")
    if not 1 <= port <= 65535:
        problems.append(f"--port {port}: must be between 1 and 65535")
    if publish and not is_endpoint(publish):
        problems.append(f"--publish {publish!r}: write an address and a port, such as 0.0.0.0:8443")
    elif publish and not hosts:
        problems.append(f"--publish {publish}: give the --host that nodes will reach it by, too")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        problems.append(
            f"{directory} is not empty; name another folder, or use what is there: fedsim deploy up"
        )
    folders, server = data_folders(data, own, nodes, problems)
    problems += [
        f"{path}: Compose reads {sign!r} in a path as something else; choose another place"
        for path in (str(directory), *folders, server)
        for sign in ":$#\"'\\\n"
        if sign in path
    ]
    checks = [*((load_limits, d) for d in devices), *((keys.alternative_name, h) for h in hosts)]
    for check, value in checks:
        try:
            check(value)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    made = Deployment(
        directory=directory,
        name=project_name(directory),
        port=port,
        hosts=tuple(dict.fromkeys((*OWN_HOSTS, *hosts))),
        nodes=tuple(
            NodePlan(
                name=f"node-{k}",
                partition=k,
                device=device_at(devices[k % len(devices)]) if devices else "",
                data=folders[k],
            )
            for k in range(nodes)
        ),
        server_data=server,
        publish=publish,
    )
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    write_atomically(directory / ".gitignore", b"# Keys.\n*\n")
    make_keys(made)
    save(made)
    return made


def data_folders(
    data: Path | None, own: Sequence[Path], nodes: int, problems: list[str]
) -> tuple[list[str], str]:
    """Return where each node's data lies, and the server's; append what is wrong."""
    if data is None:
        if own:
            problems.append(f"--own {own[0]}: needs --data, for what the server tests on")
        return [""] * nodes, ""
    found, server = list(own), data.absolute() / "server"
    if not server.is_dir():
        problems.append(
            f"--data {data}: holds no folder server; make it: fedsim data split CONFIG --out {data}"
        )
    for path in own:
        card = path.parent / CARD if path.is_file() else path / CARD
        if not card.is_file():
            problems.append(
                f"--own {path}: {card} is missing; the server's has what it is: fedsim data split "
                "CONFIG --server-only --out DIR"
            )
    found = found or sorted(data.glob("client-*"))
    if len(found) != nodes:
        what = "--own is given for" if own else f"--data {data}: is split for"
        problems.append(f"{what} {len(found)} nodes, --nodes says {nodes}; use one number")
        found = [Path()] * nodes
    return [str(path.absolute()) for path in found], str(server)


def device_at(name: str) -> str:
    """Return a device's name, or the absolute path of its file."""
    return str(Path(name).expanduser().absolute()) if name.endswith(".toml") else name


def is_endpoint(text: str) -> bool:
    """Say whether a text is an address of IPv4 and a port."""
    address, _, port = text.rpartition(":")
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return port.isascii() and port.isdigit() and 1 <= int(port) <= 65535


def project_name(directory: Path) -> str:
    """Return a name as Compose wants one; folders of one name in different places differ in it."""
    name = re.sub(r"[^a-z0-9_-]+", "-", directory.name.lower()).strip("-_")
    mark = hashlib.sha256(str(directory).encode()).hexdigest()[:6]
    return f"fedsim-{name}-{mark}" if name else f"fedsim-{mark}"


def make_keys(made: Deployment) -> None:
    """Write all keys, each where only its owner is given it."""
    root = made.directory
    authority, tls, server, gate = (root / name for name in ("ca", "tls", "server", "gate"))
    keys.make_authority(authority, made.name)
    keys.make_server_certificate(authority, tls, made.hosts)
    keys.make_secret(tls / "superexec.secret")
    keys.make_server_certificate(authority, gate, made.hosts)
    for folder in (tls, server, gate):
        folder.mkdir(exist_ok=True)
        shutil.copyfile(authority / "ca.crt", folder / "ca.crt")
    keys.write(server / "superexec.secret", (tls / "superexec.secret").read_bytes(), keys.PRIVATE)
    for node in made.nodes:
        make_node(made, node)
    for folder in (tls, server, gate):
        give(folder)


def make_node(made: Deployment, node: NodePlan) -> None:
    """Write a node's folder, with a new key."""
    folder = made.folder_of(node)
    keys.make_node_key(folder)
    shutil.copyfile(made.authority, folder / "ca.crt")
    give(folder)


def give(folder: Path) -> None:
    """Keep a folder of keys for the user of the containers.

    Where the superuser makes them, they become the image's user's; anybody else's containers run
    as themselves.
    """
    if os.getuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, IMAGE_USER, IMAGE_USER)
    folder.chmod(0o700)


def container_user() -> str:
    """Return who the containers run as: never the superuser."""
    user, group = os.getuid(), os.getgid()
    return f"{user}:{group}" if user else f"{IMAGE_USER}:{IMAGE_USER}"


def save(made: Deployment) -> None:
    """Write ``deployment.toml``."""
    content: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(made)}
    del content["directory"]
    write_atomically(made.directory / FILE, tomli_w.dumps(content).encode())


def load(directory: Path) -> Deployment:
    """Read the deployment of a folder.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    path = directory.absolute() / FILE
    if not path.is_file():
        raise ConfigError(
            [f"{directory} holds no deployment; make one: fedsim deploy init {directory} --nodes 3"]
        )
    content = read_toml(path)
    if content.get("format") != FORMAT:
        raise ConfigError([f"{path}: format {content.get('format')!r}; this fedsim reads {FORMAT}"])
    try:
        nodes = tuple(NodePlan(**node) for node in content["nodes"])
        return Deployment(
            directory=path.parent,
            nodes=nodes,
            hosts=tuple(content["hosts"]),
            revoked=tuple(content["revoked"]),
            **{key: content[key] for key in ("name", "port", "server_data", "publish")},
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(
            [f"{path}: is damaged: {error}; mend it, or make another folder: fedsim deploy init"]
        ) from error
