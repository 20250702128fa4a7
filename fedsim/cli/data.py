"""``fedsim data``: datasets on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim import units
from fedsim.cli.options import DataDirectory
from fedsim.cli.progress import say

if TYPE_CHECKING:
    from fedsim.data.fetch import Advance


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
