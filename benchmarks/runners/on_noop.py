"""Clients that do no work, on fedsim's engine or on Flower's simulation: the same apps."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.runners.common import Rounds, main
from benchmarks.spec import Spec


def measure(spec: Spec) -> dict[str, Any]:
    """Run the apps on the runtime of the spec."""
    from benchmarks.runners import noop_apps
    from benchmarks.runners.on_flower import backend

    os.environ[noop_apps.KIND] = spec.client
    rounds = Rounds(spec)
    server_app = noop_apps.server_app(spec, rounds)
    if spec.runtime == "fedsim":
        import fedsim

        fedsim.run_simulation(server_app, noop_apps.client_app, spec.clients, workers=spec.workers)
    else:
        from flwr.simulation import run_simulation

        run_simulation(
            server_app,
            noop_apps.client_app,
            spec.clients,
            backend_config=backend(spec.workers),
        )
    return rounds.result()


if __name__ == "__main__":
    main(measure)
