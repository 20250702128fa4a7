"""What a run came to, for people: a figure that nobody asked for has no line."""

from __future__ import annotations

from typing import Any

import pytest

from fedsim.report.summary import run_lines

# What every level fills.
ALWAYS: dict[str, Any] = {
    **{"run": "runs/a", "name": "a", "status": "completed", "error": None, "rounds": 2},
    **{"test_accuracy": 0.5, "best_accuracy": 0.5, "area_under_curve": 0.5, "test_loss": 1.0},
    **{"local_accuracy": None, "clients_trained": 4, "clients_failed": 0},
    **{"cpu_seconds": 1.5, "wall_seconds": 2.5, "model_sha256": "abc"},
    **{"device": "phone", "blanks": {}, "guarantee": None, "attack_success_fraction": None},
    **{"adversary": None, "secure_aggregation": False},
}
# What nobody asked for at level off.
LATER = (
    *("uplink_bytes", "downlink_bytes", "uplink_dense_bytes", "downlink_dense_bytes"),
    *("train_flops", "package_joules", "modelled_seconds", "modelled_joules"),
    *("startup_cpu_seconds", "container_cpu_seconds", "container_peak_memory_bytes"),
    *("container_received_bytes", "container_sent_bytes"),
)


def names(**figures: Any) -> list[str]:
    """Return the names of the lines of a run with these figures and those of level off."""
    summary = {**ALWAYS, **dict.fromkeys(LATER), **figures}
    return [line[2:17].strip() for line in run_lines(summary)[1:]]


def test_at_level_off() -> None:
    lines = ["test accuracy", "test loss", "client updates", "client CPU", "wall time"]
    assert names() == [*lines, "model sha256", "run"]


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        ({"uplink_bytes": 0}, "uplink"),
        ({"uplink_dense_bytes": 32}, "uplink"),  # all that a ledger of format 1 has
        ({"downlink_bytes": 5}, "downlink"),
        ({"train_flops": 0}, "training"),
        ({"package_joules": 3.0}, "energy"),
        ({"modelled_seconds": 3.0, "modelled_joules": 2.0}, "on phone"),
        ({"startup_cpu_seconds": 0.0}, "containers"),
        ({"container_peak_memory_bytes": 1, "container_sent_bytes": 0}, "containers"),
        ({"blanks": {"package_joules": "no counter"}}, "blank"),
        ({"adversary": {"kind": "sign_flip", "fraction": 0.2}}, "hostile clients"),
    ],
)
def test_what_was_asked_for_has_a_line(figures: dict[str, Any], line: str) -> None:
    assert set(names(**figures)) - set(names()) == {line}


def test_clocks_that_clients_keep_to_themselves_have_no_line() -> None:
    """Under secure aggregation clients say nothing of themselves, and a line says why."""
    assert "aggregation" in names(secure_aggregation=True)
    assert "client CPU" not in names(cpu_seconds=None, secure_aggregation=True)
