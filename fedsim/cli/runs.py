"""``fedsim ls`` and ``fedsim export``: the runs that are there."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.options import Format, OutputFormat


class ExportFormat(StrEnum):
    """File formats of an export."""

    csv = "csv"
    parquet = "parquet"
    jsonl = "jsonl"


def ls(
    root: Annotated[
        Path | None, typer.Argument(help="Where to look; default: $FEDSIM_RUNS_DIR, then runs/.")
    ] = None,
    output: Format = OutputFormat.text,
) -> None:
    """List runs with their status.

    "running" is said of a run that a live process writes; "killed" of one whose process died
    without a word, which --resume goes on with like any other that is not completed.

    Examples:

        fedsim ls
        fedsim ls runs/activations --format json
    """
    from fedsim.ledger.read import list_runs
    from fedsim.report.tables import runs_table, show
    from fedsim.runs import runs_root

    summaries = list_runs(root or runs_root())
    if output is OutputFormat.json:
        rows = [{**dataclasses.asdict(row), "path": str(row.path)} for row in summaries]
        typer.echo(json.dumps(rows))
    else:
        show(runs_table(summaries))


def export(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    to: Annotated[ExportFormat, typer.Option(help="The files' format.")] = ExportFormat.csv,
    out: Annotated[
        Path | None, typer.Option(help="Where the files go; default: RUN/export.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there.")
    ] = False,
) -> None:
    """Write a run's tables as files, every figure in full precision.

    The tables are rounds, clients and layers, a file each.

    Examples:

        fedsim export runs/quickstart-20261123-101500 --to csv --out tables
        fedsim export runs/quickstart-20261123-101500 --to parquet
    """
    from fedsim.ledger.export import export as write

    for path in write(run, out or run / "export", to.value, overwrite=overwrite):
        typer.echo(str(path))
