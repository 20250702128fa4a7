"""What a run came to, from its ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsim import units
from fedsim.ledger.read import Run, load


def run_summary(path: Path) -> dict[str, Any]:
    """Return a run's figures as JSON values; None where there is none.

    ``test_accuracy`` (in [0, 1]) and ``test_loss`` are of the last evaluated round; the bytes are
    counted dense payloads; ``cpu_seconds`` is measured, local training alone, summed over
    clients; ``wall_seconds`` covers the whole run.
    """
    run = load(path)
    rounds, tested = run.rounds, run.rounds.dropna(subset=["test_accuracy"])
    last = tested.iloc[-1] if len(tested) else None
    return {
        "run": str(path),
        "name": run.manifest.name,
        "status": run.status,
        "error": run.manifest.error,
        "rounds": run.last_round,
        "test_accuracy": None if last is None else float(last.test_accuracy),
        "test_loss": None if last is None or last.isna().test_loss else float(last.test_loss),
        "clients_trained": int(rounds.clients_trained.sum()),
        "clients_failed": clients_failed(run),
        "uplink_bytes": int(rounds.uplink_bytes.sum()),
        "downlink_bytes": int(rounds.downlink_bytes.sum()),
        "cpu_seconds": float(rounds.cpu_seconds.sum()),
        "wall_seconds": run.manifest.wall_seconds,
        "model_sha256": run.manifest.model_sha256,
    }


def clients_failed(run: Run) -> int:
    """Count the client-rounds without a usable update, those of a failed last round included."""
    return int((run.clients.status != "ok").sum())


def run_lines(summary: dict[str, Any]) -> list[str]:
    """Return the summary as lines for people."""
    lines = [
        f"{summary['name']}: {summary['status']} after {summary['rounds']} rounds",
        f"  test accuracy   {units.shown(summary['test_accuracy'], units.percent)}",
        f"  test loss       {units.shown(summary['test_loss'])}",
        f"  client updates  {summary['clients_trained']} used, {summary['clients_failed']} not",
        f"  uplink          {units.size(summary['uplink_bytes'])} (counted, dense payload)",
        f"  client CPU      {units.seconds(summary['cpu_seconds'])} (measured, training alone)",
        f"  wall time       {units.shown(summary['wall_seconds'], units.seconds)}",
        f"  model sha256    {summary['model_sha256'] or units.MISSING}",
        f"  run             {summary['run']}",
    ]
    if summary["error"]:
        lines.insert(1, f"  error           {summary['error']}")
    return lines
