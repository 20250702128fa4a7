"""``fedsim study --plan``: what a study would run, and for how long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedsim import units
from fedsim.cli.options import OutputFormat

if TYPE_CHECKING:
    from fedsim.study.design import Study


def show_plan(asked: Study, directory: Path, output: OutputFormat) -> None:
    """Print the cells, the clients' updates and the time that a study would take; run nothing."""
    plan = plan_of(asked, directory)
    if output is OutputFormat.json:
        typer.echo(json.dumps(plan))
        return
    done, seconds = plan["cells_complete"], plan["modelled_seconds"]
    typer.echo(
        f"{asked.name}: {plan['cells']} cells ({plan['arms']} arms x {plan['seeds']} seeds), "
        f"{done} complete"
    )
    if asked.tune is not None:
        typer.echo(
            f"tuning: at least {plan['tuning_runs']} runs ({asked.tune.endpoint}, "
            f"{asked.tune.split} split), {plan['tuning_runs_complete']} complete; more where the "
            "best value is at the edge of the grid"
        )
    more = "" if asked.tune is None else ", and more where a grid grows"
    typer.echo(f"client updates to go: {plan['client_updates']:,}{more} (counted)")
    typer.echo(
        f"time to go: about {units.seconds(seconds)} on {plan['cores']} cores, rounds in full "
        f"({plan['seconds_from']})"
    )
    if asked.budget_seconds:
        enough = "enough" if seconds <= asked.budget_seconds else "too little in one call"
        typer.echo(f"budget: {units.seconds(asked.budget_seconds)}, which looks {enough}")
    for h in asked.hypotheses:
        typer.echo(f"hypothesis: {h.text} (margin {h.margin:g})")


def plan_of(asked: Study, directory: Path) -> dict[str, Any]:
    """Return what a study would run as JSON values.

    Its time is modelled from the experiments' arithmetic; where runs are complete, it is scaled
    to what they took.
    """
    from fedsim.choices import run_seconds
    from fedsim.config import Experiment
    from fedsim.ledger.read import load
    from fedsim.measure.cores import allowed_cores
    from fedsim.simulation import prepare
    from fedsim.study.execute import StudyRuns
    from fedsim.vocabulary import vocabulary

    runs = StudyRuns(study=asked, directory=directory, vocabulary=vocabulary())
    first = {
        (cell.arm, cell.tuning): prepare(cell.experiment)
        for arm in asked.arms
        for cell in asked.first_cells(arm, vocabulary())
    }
    missing = runs.wanted()
    untuned = [arm for arm in asked.arms if runs.tuned(arm)[0] is None]
    to_go: list[Experiment] = [first[cell.arm, cell.tuning] for cell in missing]
    # On the test split the runs that tune are the results.
    later = [] if asked.tune and asked.tune.split == "test" else untuned
    to_go += [first[arm, False] for arm in later for _ in asked.seeds]
    tuning = [cell for arm in asked.arms for cell in runs.tuned(arm)[1] if not runs.result(cell)]
    modelled = {key: run_seconds(experiment) for key, experiment in first.items()}
    known = [(modelled[r.cell.arm, r.cell.tuning], r.directory) for r in runs.results.values()]
    took = sum(load(path).manifest.wall_seconds or 0.0 for _, path in known)
    scale = took / sum(expected for expected, _ in known) if known else 1.0
    cores = len(allowed_cores()) or 1
    seconds = sum(modelled[cell.arm, cell.tuning] for cell in missing)
    seconds += sum(modelled[arm, False] for arm in later) * len(asked.seeds)
    complete_tuning = sum(not t.failed and t.runs for c in runs.curves.values() for t in c.tried)
    return {
        "study": asked.name,
        "arms": len(asked.arms),
        "seeds": len(asked.seeds),
        "cells": len(asked.arms) * len(asked.seeds),
        "cells_complete": len(runs.complete()),
        "tuning_runs": len(tuning) + complete_tuning,
        "tuning_runs_complete": complete_tuning,
        "client_updates": sum(e.experiment.rounds * e.server.clients_per_round for e in to_go),
        "cores": cores,
        "modelled_seconds": scale * seconds / cores,
        "seconds_from": "modelled, scaled to the runs that are complete" if known else "modelled",
        "hypotheses": [h.text for h in asked.hypotheses],
    }
