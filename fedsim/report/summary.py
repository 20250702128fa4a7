"""What a run came to, from its ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import units
from fedsim.ledger.read import Run, load
from fedsim.measure.convergence import (
    area_under_curve,
    best_accuracy,
    final_accuracy,
)
from fedsim.study.figures import curve, local_accuracy, total

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

NAME = 15  # columns of a line's name
INDENT = NAME + 3  # where its text begins

# What is told of containers.
CONTAINERS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("CPU", "container_cpu_seconds", units.seconds),
    ("CPU before it, in start-up", "startup_cpu_seconds", units.seconds),
    ("highest peak of memory", "container_peak_memory_bytes", units.size),
    ("received", "container_received_bytes", units.size),
    ("sent", "container_sent_bytes", units.size),
)


def run_summary(path: Path) -> dict[str, Any]:
    """Return a run's figures as JSON values; None where there is none.

    Accuracies are in [0, 1]; ``test_accuracy`` and ``test_loss`` are of the last evaluated round.

    - Counted: ``epsilon`` (spent in the end; ``guarantee`` says of what),
      ``attack_success_fraction`` (of the last evaluated round), ``uplink_bytes`` and
      ``downlink_bytes`` (serialised messages), the dense payloads in them, ``train_flops``,
      ``local_accuracy`` (of the clients' own models after training, in the last round that looked).
    - Measured: ``cpu_seconds`` (local training alone, summed over clients), ``wall_seconds`` (the
      whole run), ``package_joules`` (the whole processor, during the rounds), and what containers
      spent: sums over the visits of clients whose update was used, and the highest peak of memory.
    - Modelled: ``modelled_seconds`` and ``modelled_joules``, summed over the clients whose update
      was used: what the others did is not known.

    A sum over rounds of which one has no figure is None, since the others' sum is no total.
    """
    run = load(path)
    rounds, used = run.rounds, run.clients[run.clients.status == "ok"]
    evaluated, accuracy = curve(run)
    losses = [float(value) for value in rounds.test_loss[rounds.test_accuracy.notna()]]
    return {
        "run": str(path),
        "name": run.manifest.name,
        "status": run.status,
        "error": run.manifest.error,
        "rounds": run.last_round,
        "test_accuracy": final_accuracy(accuracy),
        "best_accuracy": best_accuracy(accuracy),
        "area_under_curve": area_under_curve(evaluated, accuracy),
        "test_loss": losses[-1] if losses and math.isfinite(losses[-1]) else None,
        "local_accuracy": local_accuracy(run),
        "clients_trained": int(rounds.clients_trained.sum()),
        "clients_failed": clients_failed(run),
        "uplink_bytes": total(rounds.uplink_bytes),
        "downlink_bytes": total(rounds.downlink_bytes),
        "uplink_dense_bytes": total(rounds.uplink_dense_bytes),
        "downlink_dense_bytes": total(rounds.downlink_dense_bytes),
        "train_flops": total(rounds.train_flops),
        "cpu_seconds": total(rounds.cpu_seconds),
        "wall_seconds": run.manifest.wall_seconds,
        # No round was ever free of charge: a sum of 0 is one over no rounds.
        "package_joules": total(rounds.package_joules) or None,
        **containers(used),
        "device": run.config.get("measure", {}).get("device") or None,
        "modelled_seconds": total(used.modelled_seconds) or None,
        "modelled_joules": total(used.modelled_joules) or None,
        "epsilon": run.manifest.epsilon,
        "adversary": adversary(run.config),
        "attack_success_fraction": last_value(rounds.attack_success_fraction),
        "secure_aggregation": run.config.get("privacy", {}).get("secure_aggregation", False),
        "guarantee": run.manifest.guarantee,
        "blanks": run.manifest.blanks,
        "model_sha256": run.manifest.model_sha256,
    }


def adversary(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what hostile clients did, and which share of the clients they are; None: no one."""
    table = config.get("adversary", {})
    if table.get("kind", "none") == "none":
        return None
    return {"kind": table["kind"], "fraction": table["fraction"]}


def last_value(column: pd.Series[float]) -> float | None:
    """Return the last figure of a column that is not blank in every round."""
    known = column.dropna()
    return float(known.iloc[-1]) if len(known) else None


def containers(used: pd.DataFrame) -> dict[str, int | float | None]:
    """Return what the clients' containers spent; None where there was none, or one does not say."""
    peak = "container_peak_memory_bytes"
    known = [name for _, name, _ in CONTAINERS if len(used) and not used[name].isna().any()]
    sums = {name: total(used[name]) if name in known else None for _, name, _ in CONTAINERS}
    return {**sums, peak: int(used[peak].max()) if peak in known else None}


def clients_failed(run: Run) -> int:
    """Count the client-rounds without a usable update, those of a failed last round included."""
    return int((run.clients.status != "ok").sum())


def run_lines(summary: dict[str, Any]) -> list[str]:
    """Return the summary as lines for people; a figure that nobody asked for has none."""
    head = f"{summary['name']}: {summary['status']} after {summary['rounds']} rounds"
    return [head, *(f"  {name:<{NAME}} {text}" for name, text in details(summary) if text)]


def details(summary: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield what there is to say of a run by name; of some, nothing."""
    percent, seconds, size, joules = units.percent, units.seconds, units.size, units.joules

    def shown(name: str, unit: Callable[[float], str] = units.number) -> str:
        return units.shown(summary[name], unit)

    best, average = shown("best_accuracy", percent), shown("area_under_curve", percent)
    more = f" (counted; best {best}, mean of the curve {average})"
    looked = "" if summary["best_accuracy"] is None else more
    local = summary["local_accuracy"]

    yield "error", summary["error"]
    yield "test accuracy", shown("test_accuracy", percent) + looked
    yield "test loss", f"{shown('test_loss')} (counted)"
    if local:
        spread = f"worst tenth of the clients {percent(local['worst_decile'])}"
        even = f"Gini {units.number(local['gini'])}"
        text = f"{percent(local['mean'])} (counted, in round {local['round']}; {spread}, {even})"
        yield "local accuracy", text
    if attack := summary["adversary"]:
        yield "hostile clients", f"{percent(attack['fraction'])} of all: {attack['kind']}"
    if summary["attack_success_fraction"] is not None:
        yield "attack success", f"{shown('attack_success_fraction', percent)} (counted)"
    yield "privacy", summary["guarantee"]
    if summary["secure_aggregation"]:
        yield "aggregation", "secure: the server saw sums of updates, and no single one"
    yield "client updates", f"{summary['clients_trained']} used, {summary['clients_failed']} not"
    for way in ("uplink", "downlink"):
        sent, dense = shown(f"{way}_bytes", size), shown(f"{way}_dense_bytes", size)
        if {sent, dense} != {units.MISSING}:
            yield way, f"{sent} (counted, serialised; dense {dense})"
    if summary["train_flops"] is not None:
        yield "training", f"{shown('train_flops', units.flops)} (counted, matrix products)"
    if not summary["secure_aggregation"]:  # where clients say nothing of themselves
        yield "client CPU", f"{shown('cpu_seconds', seconds)} (measured, training alone)"
    found = [(title, shown(name, unit)) for title, name, unit in CONTAINERS]
    spent = [f"{title} {text}" for title, text in found if text != units.MISSING]
    if spent:
        yield "containers", f"{', '.join(spent)} (measured (container), all visits)"
    yield "wall time", f"{shown('wall_seconds', seconds)} (measured)"
    if summary["package_joules"] is not None:
        yield "energy", f"{shown('package_joules', joules)} (measured, whole processor)"
    if summary["modelled_seconds"] is not None:
        modelled = shown("modelled_seconds", seconds), shown("modelled_joules", joules)
        yield f"on {summary['device']}", f"{', '.join(modelled)} (modelled, summed over clients)"
    for figure, reason in summary["blanks"].items():
        yield "blank", f"{figure}: {reason}"
    yield "model sha256", summary["model_sha256"] or units.MISSING
    yield "run", summary["run"]
