"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class OutputFormat(StrEnum):
    """How results are printed."""

    text = "text"
    json = "json"


Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="TABLE.KEY=VALUE",
        help="Override a setting of the file; may be repeated.",
    ),
]
DataDirectory = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Where datasets lie; default: $FEDSIM_DATA_DIR, then the user's cache.",
    ),
]
Format = Annotated[
    OutputFormat, typer.Option("--format", help="text for people, json for programs.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def with_data_directory(settings: list[str] | None, directory: Path | None) -> list[str]:
    """Return the overrides with the data directory among them."""
    chosen = [] if directory is None else [f"run.data_dir={directory.expanduser().absolute()}"]
    return [*(settings or []), *chosen]
