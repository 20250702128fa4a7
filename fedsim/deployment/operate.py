"""What an operator does with a deployment: bring it up, let nodes in and out, run experiments."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from fedsim.config import Experiment, from_flat
from fedsim.deployment import folder
from fedsim.deployment.bundle import make_bundle
from fedsim.deployment.compose import DATA, Compose, base_file, docker, has_image, write_files
from fedsim.deployment.folder import Deployment
from fedsim.deployment.superlink import (
    PATIENCE_SECONDS,
    Node,
    Standing,
    SuperLink,
    key_bytes,
)
from fedsim.errors import ConfigError, EngineError, RunFailed
from fedsim.ledger.files import MANIFEST

SERVICES = ("superlink", "superexec", "gate")
RUNS = "/state/runs"  # in the SuperExec's container
POLL_SECONDS = 1.0
ONLINE = "online"
OWN_HOST = "127.0.0.1"
# Datasets that a node has without anybody giving it any: they are part of the installation.
INSTALLED = ("digits",)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")

Tell = Callable[[str], None]


def connect(made: Deployment) -> SuperLink:
    """Return a connection to a deployment's SuperLink, which no proxy stands before."""
    for variable in ("NO_PROXY", "no_proxy"):
        others = os.environ.get(variable, "")
        if OWN_HOST not in others:
            os.environ[variable] = f"{others},{OWN_HOST}".lstrip(",")
    return SuperLink(made.address, made.authority)


def up(made: Deployment, tell: Tell, *, seconds: float, build: bool = False) -> list[Node]:
    """Bring a deployment up, and return its nodes once all are online.

    Args:
        made: its plan.
        tell: is told of every step.
        seconds: to wait for the SuperLink, and then for the nodes.
        build: build the image also if there is one.

    Raises:
        EngineError: it did not come up in time, or Docker refused.
    """
    compose = Compose(made)
    write_files(made)
    if build or not has_image(image()):
        build_image(tell)
    tell("starting the server")
    compose("up", "--detach", "--no-build", *SERVICES)
    with connect(made) as superlink:
        superlink.wait_until_healthy(seconds)
        register(made, superlink, tell)
        tell(f"starting {len(made.active)} nodes")
        compose("up", "--detach", "--no-build", "--remove-orphans")
        return wait_for_nodes(made, superlink, tell, seconds)


def image() -> str:
    """Return the name of the image: $FEDSIM_IMAGE, or ``fedsim``."""
    return os.environ.get("FEDSIM_IMAGE") or "fedsim"


def build_image(tell: Tell) -> None:
    """Build the image from the Dockerfile of a source checkout.

    That is the one that this runs from, or the one that it is called in.

    Raises:
        EngineError: there is none.
    """
    root = next(filter(is_checkout, (base_file().parent, Path.cwd())), None)
    if root is None:
        raise EngineError(
            f"there is no image {image()!r}, and this is no checkout of the source to build it "
            "from; go to one and call this again, or build it there: docker build -t fedsim ."
        )
    tell(f"building the image {image()} from {root} (some minutes)")
    if not list((root / "wheels").glob("torch-*.whl")):
        tell(
            "wheels/ holds no torch, so the image gets pip's own choice, which on Linux may carry "
            "CUDA, some gigabytes of it; docs/deployment.md has the remedy"
        )
    docker("build", "--tag", image(), str(root))


def is_checkout(directory: Path) -> bool:
    """Say whether a directory is the top of fedsim's source."""
    return (directory / "Dockerfile").is_file() and (directory / "fedsim" / "deployment").is_dir()


def register(made: Deployment, superlink: SuperLink, tell: Tell) -> None:
    """Let every node in that belongs here, and shut out every other: keys of other times."""
    wanted = {key_bytes(made.folder_of(node) / "key.pub"): node for node in made.active}
    for node in superlink.nodes():
        if wanted.pop(node.public_key, None) is None:
            superlink.unregister(node.id)
            tell(f"{node.name or node.id}: an unknown key is shut out")
    for key in wanted.values():
        superlink.register(made.folder_of(key) / "key.pub", key.name)
        tell(f"{key.name}: key registered")


def nodes_by_name(made: Deployment, superlink: SuperLink) -> dict[str, Node]:
    """Return the nodes of a deployment that a SuperLink knows.

    By key: it remembers nodes of other times, that may have had the same names.
    """
    own = {key_bytes(made.folder_of(node) / "key.pub"): node.name for node in made.active}
    return {own[n.public_key]: n for n in superlink.nodes() if n.public_key in own}


def wait_for_nodes(
    made: Deployment, superlink: SuperLink, tell: Tell, seconds: float
) -> list[Node]:
    """Return the nodes once all that belong here are online."""
    deadline, told = time.monotonic() + seconds, -1
    wanted = {node.name for node in made.active}
    while True:
        known = nodes_by_name(made, superlink)
        online = {name: node for name, node in known.items() if node.status == ONLINE}
        if len(online) != told:
            told = len(online)
            tell(f"{told} of {len(wanted)} nodes online")
        if told == len(wanted):
            return list(online.values())
        if time.monotonic() > deadline:
            missing = wanted - online.keys()
            raise EngineError(
                f"{len(missing)} of {len(wanted)} nodes did not come online in {seconds:g} s: "
                f"{', '.join(sorted(missing))}; what they say: fedsim deploy logs "
                f"{min(missing)} --dir {made.directory}"
            )
        time.sleep(POLL_SECONDS)


def down(made: Deployment, *, volumes: bool) -> None:
    """Remove a deployment's containers and networks, and its volumes only where that is asked."""
    write_files(made)
    Compose(made)("down", "--remove-orphans", *(["--volumes"] if volumes else []))


def rotate(made: Deployment, name: str, tell: Tell) -> None:
    """Give a node a new key, and shut the old one out."""
    folder.make_node(made, made.node(name))
    with connect(made) as superlink:
        register(made, superlink, tell)
    write_files(made)
    Compose(made)("up", "--detach", "--no-build", "--force-recreate", "--no-deps", name)
    tell(f"{name}: has a new key; the old one is worth nothing")


def revoke(made: Deployment, name: str, tell: Tell) -> Deployment:
    """Shut a node out for good, and stop its container."""
    node = made.node(name)
    # First of all written down: whatever fails from here on, "up" does not let it in again.
    left = dataclasses.replace(made, revoked=(*made.revoked, name))
    folder.save(left)
    Compose(made)("rm", "--force", "--stop", name)
    with connect(left) as superlink:
        register(left, superlink, tell)
    write_files(left)
    shutil.rmtree(left.folder_of(node))
    tell(f"{name}: is shut out, and its key removed")
    return left


def fitted(experiment: Experiment, made: Deployment, tell: Tell) -> Experiment:
    """Return an experiment with as many clients as there are nodes, and data where it lies.

    Clients whose node was shut out are left out: the others keep their numbers.

    Raises:
        ConfigError: its data is not at the nodes, it is of another number of clients, or so few
            nodes do not do.
    """
    data, server, nodes = experiment.data, experiment.server, len(made.nodes)
    if data.dataset == "split":
        if not made.server_data:
            raise ConfigError(
                [
                    f"data.path = {data.path!r}: no node was given a part of it; make a deployment "
                    f"that does: fedsim deploy init DIR --nodes {data.clients} --data {data.path}"
                ]
            )
        if data.clients != nodes:
            raise ConfigError(
                [
                    f"data.clients = {data.clients}: there are {nodes} nodes in {made.directory}; "
                    f"make a deployment with as many, or split the data for {nodes}"
                ]
            )
        if Path(data.path).absolute() not in (
            server_data := Path(made.server_data),
            server_data.parent,
        ):
            raise ConfigError(
                [
                    f"data.path = {data.path!r}: the nodes were given {server_data.parent}; "
                    f"submit {server_data.parent / 'experiment.toml'}"
                ]
            )
        data = dataclasses.replace(data, path=DATA)
    elif made.server_data:
        raise ConfigError(
            [
                f"data.dataset = {data.dataset!r}: the nodes have their own data, and would train "
                f"on that; submit {Path(made.server_data).parent / 'experiment.toml'}, or make "
                "another deployment"
            ]
        )
    elif data.dataset not in INSTALLED:
        raise ConfigError(
            [
                f"data.dataset = {data.dataset!r}: no node has it; give each its part: fedsim data "
                "split CONFIG --out DATA, then fedsim deploy init DIR --data DATA"
            ]
        )
    cohort = min(server.clients_per_round, nodes)
    if (data.clients, server.clients_per_round) != (nodes, cohort):
        tell(
            f"{nodes} nodes: data.clients = {nodes} (was {data.clients}), "
            f"server.clients_per_round = {cohort} (was {server.clients_per_round})"
        )
        data = dataclasses.replace(data, clients=nodes)
        server = dataclasses.replace(server, clients_per_round=cohort)
    gone = [str(node.partition) for node in made.nodes if node not in made.active]
    if gone:
        tell(f"left out, as their nodes are revoked: clients {', '.join(gone)}")
        both = sorted({*server.absent, *map(int, gone)})
        server = dataclasses.replace(server, left_out=",".join(map(str, both)))
    fit = dataclasses.replace(experiment, data=data, server=server)
    return from_flat(fit.flat(), vocabulary={})  # a cohort may be too small for its strategy now


def packed(experiment: Experiment) -> Experiment:
    """Return an experiment whose models travel as one array, to wherever its server puts it.

    A SuperLink keeps and hands out every array by itself, and is busy with that for most of a
    round of little work.
    """
    run = dataclasses.replace(experiment.run, out="", resume=False, data_dir="")
    update = dataclasses.replace(experiment.update, packed=True)
    return dataclasses.replace(experiment, run=run, update=update)


def placed(experiment: Experiment) -> Experiment:
    """Return an experiment as :func:`packed` does, with a new directory on the server's volume."""
    name = f"{experiment.experiment.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    sent = packed(experiment)
    return dataclasses.replace(sent, run=dataclasses.replace(sent.run, out=f"{RUNS}/{name}"))


def submit(superlink: SuperLink, experiment: Experiment, apps: Path) -> int:
    """Start a run and return Flower's id of it."""
    return superlink.start(make_bundle(experiment, apps))


def follow(superlink: SuperLink, run: int) -> Iterator[str]:
    """Yield what a run's server logs, line by line, until the run has ended.

    A SuperLink that is started again meanwhile is waited for.
    """
    after, rest = 0.0, ""
    while True:
        whole = True
        try:
            for timestamp, text in superlink.logs(run, after):
                after = timestamp
                *lines, rest = (rest + text).split("\n")
                yield from (COLOURS.sub("", line) for line in lines)
        except EngineError:
            whole = False
            if not superlink.healthy():
                superlink.wait_until_healthy(PATIENCE_SECONDS)
        if superlink.standing(run).over and whole:
            if rest:
                yield COLOURS.sub("", rest)
            return
        time.sleep(POLL_SECONDS)


def fetch(made: Deployment, experiment: Experiment, to: Path) -> None:
    """Copy a run's directory here from the server's volume.

    Args:
        made: the deployment.
        experiment: as it was submitted.
        to: a directory that is not there yet; it appears whole.

    Raises:
        EngineError: the server holds no such directory.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.parent) as parts:
        part = Path(parts) / to.name
        Compose(made).copy("superexec", experiment.run.out, part)
        os.replace(part, to)


def collect(made: Deployment, experiment: Experiment, standing: Standing, to: Path) -> None:
    """Fetch a run's directory, and return if the run ended well.

    Args:
        made: the deployment.
        experiment: as it was submitted.
        standing: where the run stood at its end.
        to: a directory that is not there yet.

    Raises:
        RunFailed: it did not, with why; what there is of its ledger was fetched.
    """
    try:
        fetch(made, experiment, to)
    except EngineError as error:
        if standing.completed:
            raise
        old = "No module named" in standing.details
        remedy = "; the image is of another version: fedsim deploy up --build" if old else ""
        raise RunFailed(f"the run failed before its first round: {standing}{remedy}") from error
    manifest = json.loads((to / MANIFEST).read_text(encoding="utf-8"))
    if manifest["status"] != "completed":
        raise RunFailed(
            f"the run is {manifest['status']}: {manifest['error'] or standing}; its ledger: {to}"
        )
