"""``fedsim compare``: runs that were made at different times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli.options import Format, OutputFormat

if TYPE_CHECKING:
    from fedsim.study.compare import Comparison
    from fedsim.study.verdicts import Verdict


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Runs, or directories of runs; the first one's arm is the reference."),
    ],
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="What to compare, such as rounds_to_0.95; may be repeated."),
    ] = None,
    output: Format = OutputFormat.text,
) -> None:
    """Compare runs that were made one by one, paired by seed.

    The statistics are those of a study. Runs are of one arm if they differ in their seed alone.
    Timings of unlike machines are not compared, and it says why.

    Examples:

        fedsim compare runs/relu-0 runs/relu-1 runs/tanh-0 runs/tanh-1
        fedsim compare runs/relu runs/tanh --endpoint rounds_to_0.9 --endpoint cpu_seconds_to_0.9
    """
    from fedsim.study.compare import ENDPOINTS, compare_runs
    from fedsim.study.verdicts import judge

    found = compare_runs(runs)
    hypotheses = found.hypotheses(endpoint or ENDPOINTS)
    verdicts = judge(hypotheses, found.seeds, found.runs)
    if output is OutputFormat.json:
        document = {
            "keys": list(found.keys),
            "seeds": list(found.seeds),
            "unpaired_seeds": list(found.unpaired),
            "verdicts": [verdict.as_json() for verdict in verdicts],
        }
        typer.echo(json.dumps(document))
    else:
        show(found, verdicts)


def show(found: Comparison, verdicts: list[Verdict]) -> None:
    """Print what was paired, and what came of it."""
    from fedsim.report.tables import show as print_table
    from fedsim.report.verdicts import verdicts_table
    from fedsim.study.compare import more_than_one
    from fedsim.study.design import label_of

    reference, *others = (label_of(arm) for arm in found.arms)
    pairs = f"{len(found.seeds)} pair{'s' if len(found.seeds) > 1 else ''}"
    typer.echo(f"{', '.join(others)} against {reference}: {pairs} by seed")
    if found.unpaired:
        left = ", ".join(map(str, found.unpaired))
        typer.echo(f"warning: left out, since not every arm has them: seeds {left}")
    if line := more_than_one(found):
        typer.echo(f"warning: {line}")
    print_table(verdicts_table(verdicts))
