"""The parts that reports of runs and of studies have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim import units
from fedsim.ledger.read import Run
from fedsim.measure.machines import unlike_machines
from fedsim.records import Kind
from fedsim.report.containers import MARK, MARKED
from fedsim.report.page import Section
from fedsim.study.figures import COSTS

# What a report shows, and whether that is counted, measured or modelled.
SHOWN: dict[str, Kind] = {
    "test accuracy": "counted",
    "rounds": COSTS["rounds"],
    "bytes (serialised messages)": COSTS["bytes"],
    "training arithmetic": COSTS["train_flops"],
    "activation health": "counted",
    "client CPU (local training alone)": COSTS["cpu_seconds"],
    "wall time": COSTS["wall_seconds"],
    "peak memory": "measured",
    "seconds and joules of a device": "modelled",
}
MOST_ROWS = 50  # of a table of failures
MEANINGS: dict[Kind, str] = {
    "counted": "exact; the same on every machine",
    "measured": "by the clocks of the machine below, under its conditions",
    "modelled": "counted figures and a device profile",
}


def failures_section(
    runs: Mapping[str, Run],
    failed: Sequence[str],
    tuning: Sequence[str] = (),
    missing: int = 0,
) -> Section:
    """Say what failed: runs, and clients in rounds that went on without them.

    Args:
        runs: by what they are called.
        failed: results that failed, and why.
        tuning: runs that served to choose, which fail where a grid goes too far.
        missing: results that are not there.
    """
    rows: list[tuple[str, ...]] = []
    for name, run in runs.items():
        bad = run.clients[run.clients.status != "ok"]
        for (status, error), found in bad.groupby(["status", "error"], dropna=False, sort=True):
            rows.append((name, str(len(found)), str(status), str(error)))
    silent = max(0, missing - len(failed))
    text = tuple(failed) or (() if silent else ("No run failed.",))
    if silent:
        text += (
            f"Results that are missing, and no ledger says why: {silent}. Run the study again.",
        )
    if tuning:
        text += (f"Tuning runs that failed, at the ends of their grids: {'; '.join(tuning)}",)
    if not rows:
        text += ("Every client that was asked gave an update that could be used.",)
    head = ("run", "client updates", "status", "because")
    return Section(name="failures", title="What failed", text=text, table=(head, rows[:MOST_ROWS]))


def method_section(runs: Sequence[Run], statistics: Sequence[str] = ()) -> Section:
    """Say which figures are counted, measured or modelled, and under which conditions."""
    threads = distinct(str(run.manifest.threads) for run in runs)
    cohorts = [run.clients.cohort.dropna() for run in runs]
    most = max((int(c.max()) for c in cohorts if len(c)), default=0)
    unlike = tuple(
        f"The runs were timed under unlike conditions ({line}): timings are averaged below, and no "
        "verdict pools them."
        for line in unlike_machines([run.manifest for run in runs])
    )
    together = f", up to {most} clients trained in one call" if most else ""
    text = (
        f"Times were taken with {threads} thread(s) a worker{together}. A client's CPU seconds are "
        "those of its training thread, so that what else ran on the machine slows them little; "
        "wall seconds are of everything.",
        *unlike,
        *statistics,
    )
    rows: list[tuple[str, ...]] = [(what, kind, MEANINGS[kind]) for what, kind in SHOWN.items()]
    if any(run.clients[MARKED].notna().any(axis=None) for run in runs):
        means = "by the counters of a client's container, of all that runs in it"
        rows.append(("containers: start-up, CPU, memory, interfaces", MARK, means))
    return Section(
        name="method",
        title="How it was measured",
        text=text,
        table=(("figure", "kind", "which means"), rows),
    )


def manifest_section(runs: Sequence[Run], asked: Mapping[str, Any]) -> Section:
    """Say what ran, on what; values that differ between runs are all listed."""
    manifests = [run.manifest for run in runs]
    rows: list[tuple[str, ...]] = [
        (name, distinct(str(getattr(m, name)) for m in manifests))
        for name in ("processor", "cores", "platform", "python", "commit")
    ]
    versions = distinct(
        ", ".join(f"{k} {v}" for k, v in sorted(m.versions.items()) if v) for m in manifests
    )
    rows.append(("versions", versions))
    engines = distinct(engine_text(m.engine) for m in manifests)
    seconds = [m.wall_seconds for m in manifests if m.wall_seconds]
    rows.append(("engine", engines))
    rows.append(("runs", f"{len(runs)}, {units.seconds(sum(seconds))} in all (measured)"))
    rows.append(("begun", f"{min(m.created for m in manifests)} or later"))
    return Section(
        name="manifest",
        title="What ran, and on what",
        table=(("what", "is"), rows),
        code=json.dumps(asked, indent=1, default=str),
    )


def engine_text(engine: Mapping[str, Any]) -> str:
    """Say what executed the clients."""
    workers = engine.get("workers")
    if engine.get("name") == "inline":
        return "inline, in one process"
    return f"{engine.get('name')}, {f'{workers} workers' if workers else 'a worker a core'}"


def distinct(values: Any) -> str:
    """Return the different values, in their order."""
    return "; ".join(dict.fromkeys(values))
