"""The report of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.errors import LedgerError
from fedsim.ledger.read import Run, load
from fedsim.report.containers import containers_section
from fedsim.report.curves import arm_curve
from fedsim.report.details import bills, health, layer_health, partition
from fedsim.report.page import Page, Section
from fedsim.report.pictures import accuracy_by_cost, accuracy_by_round
from fedsim.report.privacy import run_sections
from fedsim.report.sections import failures_section, manifest_section, method_section
from fedsim.report.summary import details, run_summary


def run_page(path: Path, counts: npt.NDArray[np.int64] | None) -> Page:
    """Return the report of a run, also of one that goes on.

    Args:
        path: the run directory.
        counts: examples by client and label; None where the data is not at hand.

    Raises:
        LedgerError: there is no run, it is damaged, or no round of it was evaluated yet.
    """
    run = load(path)
    label = str(run.config.get("model", {}).get("activation", run.manifest.name))
    curve = arm_curve([run])
    if curve is None:
        raise LedgerError(
            f"{path}: no round was evaluated yet ({run.status} after {run.last_round} rounds), so "
            "there is nothing to report; run it first, or go on with: fedsim run --resume"
        )
    panels = {"": {label: curve}}
    summary = run_summary(path)
    rows: list[tuple[str, ...]] = [(name, text) for name, text in details(summary) if text]
    looked = health({"": {label: layer_health([run])}})
    bill = bills({label: [run]})
    contained = containers_section(run)
    failed = [f"{run.status}: {run.manifest.error}"] if run.manifest.error else []
    sections = [
        Section(name="summary", title="In figures", table=(("figure", "is"), rows)),
        *run_sections(run),
        Section(name="price", title="What accuracy cost", picture=accuracy_by_cost(panels, ())),
        Section(
            name="layers",
            title="Activation health",
            picture=looked,
            missing="" if looked else 'Nobody looked: measure.level = "full" would.',
        ),
        Section(
            name="visits",
            title="The clients' bills",
            picture=bill,
            missing="" if bill else "No client's update was used.",
        ),
        *([contained] if contained else []),
        shares(counts),
        failures_section({label: run}, failed),
        method_section([run]),
        manifest_section([run], run.config),
    ]
    return Page(
        title=f"{run.manifest.name}: fedsim",
        question=headline(run, summary),
        notice=notice_of(run),
        picture=accuracy_by_round(panels, ()),
        sections=sections,
    )


def headline(run: Run, summary: dict[str, Any]) -> str:
    """Say what the run came to."""
    accuracy = 100 * (summary["test_accuracy"] or 0.0)
    return f"{run.manifest.name}: {accuracy:.1f}% test accuracy after {run.last_round} rounds"


def notice_of(run: Run) -> str:
    """Say that a run is not at its end."""
    if run.status == "completed":
        return ""
    return (
        f"This run is {run.status}, after {run.last_round} of {run.manifest.rounds_planned} rounds."
    )


def shares(counts: npt.NDArray[np.int64] | None) -> Section:
    """Who holds what."""
    if counts is None:
        missing = "The data is not at hand, so that nobody can say who holds which label."
        return Section(name="shares", title="The partition", missing=missing)
    return Section(name="shares", title="The partition", picture=partition({"": counts}))
