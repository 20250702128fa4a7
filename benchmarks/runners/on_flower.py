"""Flower's own simulation: its run_simulation on Ray, an actor a core, its FedAvg.

It keeps the mean of the clients' metrics, no row a client; nothing is evaluated.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks.runners.common import Rounds, main
from benchmarks.spec import Spec


def backend(workers: int) -> dict[str, Any]:
    """Return what tells Flower's Ray backend to use so many actors."""
    return {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": workers, "address": "local"},  # a Ray of its own
    }


def measure(spec: Spec) -> dict[str, Any]:
    """Run the app on Flower's simulation."""
    from benchmarks.runners import flower_apps

    os.environ[flower_apps.SPEC] = spec.encode()
    from flwr.simulation import run_simulation

    rounds = Rounds(spec)
    run_simulation(
        flower_apps.server_app(spec, rounds),
        flower_apps.client_app,
        spec.clients,
        backend_config=backend(spec.workers),
    )
    return rounds.result()


if __name__ == "__main__":
    main(measure)
