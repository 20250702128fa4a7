"""``fedsim deploy``: the same server and clients, each in a container."""

from __future__ import annotations

import json
import logging
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli.options import Format, OutputFormat, Quiet, Settings
from fedsim.cli.progress import LOGGER, progress, say, teller
from fedsim.errors import ConfigError, RunFailed
from fedsim.telling import read_round

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedsim.config import Experiment
    from fedsim.deployment.superlink import Standing, SuperLink

DEFAULT = Path("deployment")
COLUMNS = ("service", "container", "node", "client", "device")  # of the status
WORTH_TELLING = ("WARNING", "ERROR", "waiting for", "left out")

Where = Annotated[
    Path, typer.Option("--dir", "-d", help="The deployment's folder; default: deployment.")
]
Seconds = Annotated[
    float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for the nodes.")
]


def init(
    directory: Annotated[Path, typer.Argument(help="The folder to make.")] = DEFAULT,
    nodes: Annotated[int, typer.Option(help="How many nodes, a client in each.")] = 3,
    data: Annotated[
        Path | None,
        typer.Option(help="Each node's own examples: what fedsim data split wrote."),
    ] = None,
    own: Annotated[
        list[Path] | None,
        typer.Option(help="A node's own file or folder, once for each node; --data for the test."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Limit nodes to a device of configs/devices; dealt out in turn."),
    ] = None,
    port: Annotated[int, typer.Option(help="The server's, on this machine's loopback.")] = 8000,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Another name or address that nodes reach this machine by."),
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS:PORT",
            help="Let nodes on other machines in there; they need a --host to reach it by.",
        ),
    ] = None,
) -> None:
    """Make the keys of a deployment and the plan of its nodes.

    A certificate authority, the server's certificate, a key for each node, and a file for Compose.
    Nothing is started. Keep the folder to yourself.

    Examples:

        fedsim deploy init --nodes 3
        fedsim deploy init hospitals --nodes 5 --data split
        fedsim deploy init wide --nodes 2 --host fl.example.org --publish 0.0.0.0:8443
        fedsim deploy init two --nodes 2 --data card --own north/ --own south/patients.csv
        fedsim deploy init slow --nodes 4 --device phone --device laptop
    """
    from fedsim.deployment import folder
    from fedsim.deployment.compose import write_files

    made = folder.create(
        directory,
        nodes=nodes,
        data=data,
        own=own or [],
        devices=device or [],
        port=port,
        hosts=host or [],
        publish=publish or "",
    )
    write_files(made)
    typer.echo(f"{directory}: keys of an authority, a server and {nodes} nodes")
    typer.echo(f"bring it up with: fedsim deploy up{option(directory)}")


def up(
    directory: Where = DEFAULT,
    build: Annotated[bool, typer.Option("--build", help="Build the image anew.")] = False,
    wait: Seconds = 180.0,
    quiet: Quiet = False,
) -> None:
    """Start the server and the nodes, register the nodes' keys, and wait until all are online.

    What is up already stays up. The image is built where there is none.

    Examples:

        fedsim deploy up
        fedsim deploy up --dir hospitals --build
    """
    from fedsim.deployment import folder, operate

    made = folder.load(directory)
    online = operate.up(made, teller(quiet=quiet), seconds=wait, build=build)
    typer.echo(f"{len(online)} nodes are online; the server listens at {made.address}")
    typer.echo(f"run an experiment with: fedsim deploy submit CONFIG{option(directory)}")


def submit(
    file: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    settings: Settings = None,
    directory: Where = DEFAULT,
    out: Annotated[
        Path | None, typer.Option(help="The run directory; default: a new one under runs/.")
    ] = None,
    show_report: Annotated[
        bool, typer.Option("--open", help="Make its report and open it in a browser.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--superlink",
            metavar="HOST:PORT",
            help="A server that no folder here describes; the ledger stays with it.",
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="With --superlink: the authority that it is trusted by.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="With --superlink: without TLS.")
    ] = False,
    output: Format = OutputFormat.text,
    quiet: Quiet = False,
) -> None:
    """Run an experiment on the nodes, follow it, and fetch its ledger.

    It ends with an error where the run does. Ctrl-C leaves the run to itself; fedsim deploy stop
    ends it.

    Examples:

        fedsim deploy submit configs/quickstart.toml
        fedsim deploy submit configs/quickstart.toml -s experiment.rounds=5 --open
        fedsim deploy submit CONFIG --superlink fl.example.org:8000 --certificate ca.crt
    """
    from fedsim import config
    from fedsim.cli.run import show
    from fedsim.deployment import folder, operate
    from fedsim.errors import RunExists
    from fedsim.runs import new_directory
    from fedsim.vocabulary import vocabulary

    asked = config.read(file, settings or [], vocabulary=vocabulary())
    if address is not None:
        submit_elsewhere(asked, address, certificate, insecure=insecure, quiet=quiet)
        return
    made = folder.load(directory)
    experiment = operate.placed(operate.fitted(asked, made, teller(quiet=quiet)))
    target = out or new_directory(experiment.experiment.name)
    if target.exists():
        raise RunExists(f"{target}: is there already; name another directory with --out")
    with operate.connect(made) as superlink:
        standing = run_there(superlink, experiment, quiet=quiet)
    operate.collect(made, experiment, standing, target)
    show(target, output)
    if show_report:
        open_report(target)


def submit_elsewhere(
    asked: Experiment, address: str, certificate: Path | None, *, insecure: bool, quiet: bool
) -> None:
    """Run an experiment on a server that is known by its address alone."""
    from fedsim.deployment import operate
    from fedsim.deployment.superlink import SuperLink

    if insecure == (certificate is not None):
        raise ConfigError(
            [f"--superlink {address}: give either its --certificate, or --insecure without TLS"]
        )
    with SuperLink(address, certificate) as superlink:
        standing = run_there(superlink, operate.packed(asked), quiet=quiet)
    if not standing.completed:
        raise RunFailed(f"the run failed: {standing}")
    typer.echo("completed; the server keeps the ledger")


def run_there(superlink: SuperLink, experiment: Experiment, *, quiet: bool) -> Standing:
    """Start a run, show it until it ends, and return how it ended."""
    from fedsim.deployment import operate
    from fedsim.simulation import app_directory

    run = operate.submit(superlink, experiment, app_directory())
    say(f"{experiment.experiment.name}: run {run} at {superlink.address}", quiet=quiet)
    try:
        shown(operate.follow(superlink, run), quiet=quiet)
    except KeyboardInterrupt:
        say(f"run {run} goes on without you; end it with: fedsim deploy stop {run}")
        if out := experiment.run.out:
            say(f"its ledger will be in the server's volume: docker cp CONTAINER:{out} runs")
        raise
    return superlink.standing(run)


def shown(lines: Iterable[str], *, quiet: bool) -> None:
    """Show a run's rounds as any run's, and of the rest what somebody should know."""
    with progress(quiet=quiet):
        for line in lines:
            if told := read_round(line):
                row, rounds = told
                logging.getLogger(LOGGER).info(line, extra={"row": row, "rounds": rounds})
            elif any(word in line for word in WORTH_TELLING):
                say(line.strip(), quiet=quiet)


def open_report(run: Path) -> None:
    """Make a run's report and open it."""
    from fedsim.cli.report import page_of
    from fedsim.ledger.files import write_atomically
    from fedsim.report.page import html_of

    path = run / "report.html"
    write_atomically(path, html_of(page_of(run, None)).encode())
    typer.echo(str(path))
    if not webbrowser.open(path.absolute().as_uri()):
        typer.echo("no browser was found; open the file yourself", err=True)


def stop(
    run: Annotated[int, typer.Argument(help="Its number, as submit prints it.")],
    directory: Where = DEFAULT,
) -> None:
    """End a run that was submitted.

    Examples:

        fedsim deploy stop 4611686018427387904
    """
    from fedsim.deployment import folder, operate

    with operate.connect(folder.load(directory)) as superlink:
        superlink.stop(run)
    typer.echo(f"run {run} is stopped")


def status(directory: Where = DEFAULT, output: Format = OutputFormat.text) -> None:
    """Show the containers and the nodes of a deployment.

    Examples:

        fedsim deploy status
        fedsim deploy status --dir hospitals --format json
    """
    from fedsim.deployment import folder, operate
    from fedsim.deployment.compose import Compose

    made = folder.load(directory)
    containers = Compose(made).containers()
    with operate.connect(made) as superlink:
        healthy = superlink.healthy()
        known = operate.nodes_by_name(made, superlink) if healthy else {}
    services = [*operate.SERVICES, *(node.name for node in made.nodes)]
    plans = {node.name: node for node in made.nodes}
    rows = []
    for name in services:
        node, plan = known.get(name), plans.get(name)
        rows.append(
            {
                "service": name,
                "container": containers.get(name, ("", "none"))[1],
                "node": "revoked" if name in made.revoked else node.status if node else None,
                "node_id": node.id if node else None,
                "client": plan.partition if plan else None,
                "device": (plan.device or None) if plan else None,
            }
        )
    if output is OutputFormat.json:
        typer.echo(json.dumps({"address": made.address, "healthy": healthy, "services": rows}))
        return
    from rich import box
    from rich.table import Table

    from fedsim.report.tables import show

    table = Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*("-" if row[name] is None else str(row[name]) for name in COLUMNS))
    show(table)
    typer.echo(f"server at {made.address}: {'answers' if healthy else 'does not answer'}")


def logs(
    service: Annotated[
        str | None, typer.Argument(help="superlink, superexec, gate or a node; default: all.")
    ] = None,
    directory: Where = DEFAULT,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option(metavar="N", help="The last N lines of each.")] = 100,
) -> None:
    """Show what the containers said.

    Examples:

        fedsim deploy logs node-1
        fedsim deploy logs --follow
    """
    from fedsim.deployment import folder
    from fedsim.deployment.compose import Compose

    made = folder.load(directory)
    more = ["--follow"] if follow else []
    Compose(made)("logs", f"--tail={tail}", *more, *([service] if service else []))


def down(
    directory: Where = DEFAULT,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Remove the server's state and its ledgers, too.")
    ] = False,
) -> None:
    """Remove the containers and networks; state and ledgers stay unless --volumes is given.

    Examples:

        fedsim deploy down
        fedsim deploy down --volumes
    """
    from fedsim.deployment import folder, operate

    operate.down(folder.load(directory), volumes=volumes)


def rotate(
    node: Annotated[str, typer.Argument(help="Its name, such as node-1.")],
    directory: Where = DEFAULT,
) -> None:
    """Give a node a new key; the old one is shut out.

    Examples:

        fedsim deploy rotate node-1
    """
    from fedsim.deployment import folder, operate

    operate.rotate(folder.load(directory), node, typer.echo)


def revoke(
    node: Annotated[str, typer.Argument(help="Its name, such as node-1.")],
    directory: Where = DEFAULT,
) -> None:
    """Shut a node out for good, and remove its key and its container.

    Examples:

        fedsim deploy revoke node-1
    """
    from fedsim.deployment import folder, operate

    operate.revoke(folder.load(directory), node, typer.echo)


def option(directory: Path) -> str:
    """Return how a folder is named on the command line, where it is not the default."""
    return "" if directory == DEFAULT else f" --dir {directory}"
