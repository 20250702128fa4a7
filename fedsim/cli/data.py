"""``fedsim data``: datasets on this machine, and their clients' parts for others."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim import units
from fedsim.cli.options import DataDirectory, Quiet, Settings, with_data_directory
from fedsim.cli.progress import say
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.config import Experiment
    from fedsim.data.fetch import Advance
    from fedsim.data.folders import Advance as SplitAdvance

# Without a terminal, a line every so often says how far a long split is.
LINE_SECONDS = 5.0


def fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion_mnist or cifar10.")],
    data_dir: DataDirectory = None,
    mirror: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", help="A mirror: where the published files lie."),
    ] = None,
) -> None:
    """Fetch a published dataset into the data directory.

    Files that are there with the published checksum are not fetched again. Prints the folder.

    Examples:

        fedsim data fetch mnist
        fedsim data fetch cifar10 --data-dir ~/data
        fedsim data fetch fashion_mnist --from https://mirror.example.org/fashion
    """
    from fedsim.data.fetch import fetch as fetch_dataset
    from fedsim.data.source import data_directory

    directory = data_directory("" if data_dir is None else str(data_dir))
    with bar() as advance:
        for file in fetch_dataset(name, directory, mirror=mirror or "", advance=advance):
            size = units.size(file.received_bytes) if file.received_bytes else "there already"
            say(f"{file.path.name}: {size}")
    typer.echo(directory / name)


@contextmanager
def bar() -> Iterator[Advance]:
    """Show the file that is under way, on a terminal; the block's own lines stand above it."""
    from fedsim.data.fetch import unseen

    if not sys.stderr.isatty():
        yield unseen
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("connecting", total=None)

        def advance(name: str, received_bytes: int, total_bytes: int | None) -> None:
            progress.update(task, description=name, completed=received_bytes, total=total_bytes)

        yield advance


def split(
    file: Annotated[Path, typer.Argument(help="The experiment whose data is split, a TOML file.")],
    out: Annotated[Path, typer.Option(help="The folder to write; empty, or not there.")],
    settings: Settings = None,
    server_only: Annotated[
        bool,
        typer.Option(
            "--server-only",
            help="The server's part alone, and a card for clients with files of their own.",
        ),
    ] = False,
    data_dir: DataDirectory = None,
    quiet: Quiet = False,
) -> None:
    """Give each client of a deployed federation a folder with its own examples.

    Writes client-000, client-001, ..., the test part as server, and experiment.toml, the same
    experiment over these folders, which fedsim run simulates. A node reads its folder, as
    data="/its/folder" in its configuration, and no other.

    Examples:

        fedsim data split configs/containers.toml --out parts
        fedsim data split configs/containers.toml --out parts -s data.clients=5
        fedsim data split configs/containers.toml --out shared --server-only
    """
    from fedsim import config, parts
    from fedsim.data.folders import SERVER, write_server, write_split
    from fedsim.vocabulary import vocabulary

    experiment = config.read(file, with_data_directory(settings, data_dir), vocabulary=vocabulary())
    out = out.expanduser().absolute()
    data = parts.dataset(experiment)
    if server_only:
        clients = experiment.data.clients
        if not clients:
            raise ConfigError(["data.clients = 0: with --server-only nobody counts them; give it"])
        text = over_folders(experiment, out / SERVER, clients)
        written = write_server(data, out, clients=clients, experiment=text)
    else:
        dealt = parts.partition(experiment)
        text = over_folders(experiment, out, len(dealt))
        with split_bar(quiet=quiet) as advance:
            written = write_split(data, dealt, out, experiment=text, advance=advance)
        size = units.size(written.client_bytes)
        typer.echo(f"clients  {written.clients}, {written.client_examples} examples, {size}")
    typer.echo(f"server   {written.server_examples} examples, {units.size(written.server_bytes)}")
    typer.echo(f"folder   {out}")


def over_folders(experiment: Experiment, path: Path, clients: int) -> str:
    """Return an experiment as TOML, with its data in folders and the rest as it was.

    What made the examples (held out, shifted, standardised) is done, and is not asked for again.

    Raises:
        ConfigError: it could not run there.
    """
    import tomli_w

    from fedsim.config import flatten, from_flat
    from fedsim.settings import DataTable
    from fedsim.vocabulary import vocabulary

    data = DataTable(
        dataset="split",
        path=str(path),
        clients=clients,
        partition="natural",
        min_examples=experiment.data.min_examples,
    )
    tables = dataclasses.replace(experiment, data=data).tables()
    del tables["run"]  # which is of the one who runs it
    from_flat(flatten(tables), vocabulary=vocabulary())
    about = f"# {experiment.experiment.name}, over the data in the folders beside this file.\n\n"
    return about + tomli_w.dumps(tables)


@contextmanager
def split_bar(*, quiet: bool) -> Iterator[SplitAdvance]:
    """Show how many clients have their folder: a bar on a terminal, else a line now and then."""
    if quiet or not sys.stderr.isatty():
        due = time.monotonic() + LINE_SECONDS

        def tell(done: int, clients: int) -> None:
            nonlocal due
            if time.monotonic() > due and done < clients:
                say(f"{done} of {clients} clients written", quiet=quiet)
                due = time.monotonic() + LINE_SECONDS

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("clients"), BarColumn(bar_width=20), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def move(done: int, clients: int) -> None:
            progress.update(task, total=clients, completed=done)

        yield move
