"""Run a ServerApp against simulated clients."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

import numpy as np
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.engine.apps import SERVER_NODE_ID, AppSource
from fedsim.engine.executor import Executor
from fedsim.engine.grid import SimulationGrid
from fedsim.engine.inline import InlineExecutor
from fedsim.errors import EngineError


def open_executor(
    name: str, source: AppSource, *, workers: int = 0, address: str = "", gpu: bool = False
) -> Executor:
    """Return an executor by name, ready to run clients of one app.

    Args:
        name: ``"ray"`` or ``"inline"``.
        source: the ClientApp.
        workers: Ray worker processes; 0 means one per core.
        address: an existing Ray cluster to join; empty starts Ray on this machine.
        gpu: the workers share a GPU.

    Raises:
        EngineError: Ray cannot be started or reached, or the app cannot be loaded.
    """
    if name == "inline":
        return InlineExecutor(source.load())
    if name != "ray":
        raise EngineError(f"engine {name!r}: unknown; valid: inline, ray")
    for variable, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }.items():
        os.environ.setdefault(variable, value)
    from fedsim.engine.pool import RayExecutor  # Ray is not imported where nobody asks for it

    return RayExecutor(source, workers=workers, address=address, gpu=gpu)


def run_server_app(
    server_app: ServerApp,
    executor: Executor,
    *,
    nodes: int,
    run_config: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Context:
    """Run a ServerApp on an executor and return its context.

    The global generators of Python and NumPy are seeded first, so that Flower's own strategies,
    which sample clients from them, choose the same clients in every run of one seed.
    """
    grid = SimulationGrid(executor, nodes=nodes, run_config=run_config, seed=seed)
    context = Context(
        run_id=grid.run.run_id,
        node_id=SERVER_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config or {}),  # type: ignore[arg-type]
    )
    random.seed(seed)
    np.random.seed(seed % 2**32)
    server_app(grid=grid, context=context)
    return context


def run_simulation(
    server_app: ServerApp,
    client_app: ClientApp,
    num_supernodes: int,
    *,
    workers: int | None = None,
    ray_address: str | None = None,
    seed: int = 0,
) -> Context:
    """Run anybody's Flower apps with many simulated clients on Ray.

    Args:
        server_app: the ServerApp; it runs in this process.
        client_app: the ClientApp; every worker gets a copy of it.
        num_supernodes: simulated clients. ``Context.node_config`` carries ``partition-id`` (from
            0) and ``num-partitions``; node ids are partition-id + 1; ``Context.state`` persists.
        workers: Ray worker processes; None for one per core, 0 for none (everything in this
            process, for debugging).
        ray_address: an existing Ray cluster; None starts Ray on this machine.
        seed: fixes which clients Flower's strategies sample, and seeds Python's, NumPy's and
            torch's global generators before each message, whichever worker gets it.

    Returns:
        The ServerApp's context.

    Raises:
        ValueError: ``num_supernodes`` or ``workers`` is out of range.
        EngineError: the engine could not start.
    """
    if num_supernodes < 1:
        raise ValueError(f"num_supernodes = {num_supernodes}: must be at least 1")
    if workers is not None and workers < 0:
        raise ValueError(f"workers = {workers}: must be None, 0 or more")
    executor: Executor
    if workers == 0:
        executor = InlineExecutor(client_app)
    else:
        source = AppSource.of(client_app)
        executor = open_executor("ray", source, workers=workers or 0, address=ray_address or "")
    try:
        return run_server_app(server_app, executor, nodes=num_supernodes, seed=seed)
    finally:
        executor.close()
