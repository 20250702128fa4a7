"""A Ray cluster of two nodes on this machine: workers on both, and a node that is lost."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim.engine import AppSource, Block, InlineExecutor, SimulationGrid, crew, open_executor
from fedsim.engine.ray_start import gpu_share
from fedsim.errors import EngineError

# Where an earlier test trained with JAX, that warns of Ray's forks, which become other programs.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
ray_test = pytest.mark.ray
BLOCKS = [Block((2 * i, 2 * i + 1), (2.0,)) for i in range(12)]


def slow_app(seconds: float) -> ClientApp:
    """Return an app whose blocks take a while, draw from the clients' streams, say where they ran.

    "Where" is the Ray node, or nothing outside Ray.
    """
    app = ClientApp()

    @app.train("cohort")
    def train(message: Message, context: Context) -> Message:
        import ray

        clients = list(message.content["cohort"]["partition-ids"])
        time.sleep(seconds)
        draws = [np.random.default_rng(client).standard_normal(50) for client in clients]
        inside = ray.is_initialized()
        node = ray.get_runtime_context().get_node_id() if inside else ""
        content = {"sum": ArrayRecord([sum(draws)]), "at": ConfigRecord({"node": node})}
        return Message(RecordDict(content), reply_to=message)

    return app


def sums(replies: list[list[Message]]) -> list[list[bytes]]:
    """Return the bits of every reply."""
    return [[reply.content["sum"]["0"].numpy().tobytes() for reply in parts] for parts in replies]


def nodes_of(replies: list[list[Message]]) -> set[str]:
    """Return the Ray nodes that blocks ran on."""
    return {str(reply.content["at"]["node"]) for parts in replies for reply in parts}


@contextmanager
def cluster_of(*cpus: int, gpus: int = 0):
    """Start a Ray cluster on this machine: a node for each number of CPUs, the first with GPUs."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": cpus[0], "num_gpus": gpus, "object_store_memory": 2 * 10**8}
    head["include_dashboard"] = False
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for count in cpus[1:]:
            cluster.add_node(num_cpus=count, object_store_memory=2 * 10**8)
        yield cluster
    finally:
        cluster.shutdown()


def start_all(executor) -> None:
    """Wait until every worker has started."""
    while not all(handle.at_work for handle in executor._crew.handles):
        executor._crew.step(time.monotonic() + 30)


@ray_test
@pytest.mark.slow
def test_a_node_that_is_lost_costs_its_clients_time_and_nothing_else(caplog, monkeypatch):
    monkeypatch.setattr(crew, "PLACE_SECONDS", 2.0)
    reference = SimulationGrid(InlineExecutor(slow_app(0.0)), nodes=24)
    expected = [sums(reference.send_cohort(RecordDict(), BLOCKS)) for _ in range(5)]
    with cluster_of(1, 1) as cluster:
        executor = open_executor("ray", AppSource.of(slow_app(0.3)), address=cluster.address)
        try:
            grid = SimulationGrid(executor, nodes=24)
            start_all(executor)
            whole = grid.send_cohort(RecordDict(), BLOCKS)
            assert sums(whole) == expected[0]
            assert len(nodes_of(whole)) == 2  # one worker for each CPU, spread

            def lose() -> None:
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

            timer = threading.Timer(0.8, lose)
            timer.start()
            with caplog.at_level(logging.WARNING, logger="fedsim"):
                for turn in (1, 2, 3):
                    replies = grid.send_cohort(RecordDict(), BLOCKS)
                    timer.join()
                    assert sums(replies) == expected[turn]
            assert len(nodes_of(replies)) == 1
            told = [record.message for record in caplog.records]
            assert len(told) == 1
            assert told[0].startswith("1 of 2 workers found a place; going on with those")

            cluster.add_node(num_cpus=1, object_store_memory=2 * 10**8)
            start_all(executor)
            replies = grid.send_cohort(RecordDict(), BLOCKS)
            assert sums(replies) == expected[4]
            assert len(nodes_of(replies)) == 2
        finally:
            executor.close()


@ray_test
def test_workers_without_a_place_are_done_without(caplog, monkeypatch):
    monkeypatch.setattr(crew, "PLACE_SECONDS", 0.5)
    reference = SimulationGrid(InlineExecutor(slow_app(0.0)), nodes=24)
    with cluster_of(2) as cluster:
        source = AppSource.of(slow_app(0.1))
        executor = open_executor("ray", source, workers=3, address=cluster.address)
        try:
            grid = SimulationGrid(executor, nodes=24)
            with caplog.at_level(logging.WARNING, logger="fedsim"):
                replies = grid.send_cohort(RecordDict(), BLOCKS)
            assert sums(replies) == sums(reference.send_cohort(RecordDict(), BLOCKS))
            assert "of 3 workers found a place" in caplog.text
        finally:
            executor.close()


@ray_test
def test_workers_share_a_gpu():
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        seen = ConfigRecord({"gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "pid": os.getpid()})
        time.sleep(0.2)
        return Message(RecordDict({"seen": seen}), reply_to=message)

    with cluster_of(3, gpus=1) as cluster:
        executor = open_executor(
            "ray", AppSource.of(app), workers=3, address=cluster.address, gpu=True
        )
        try:
            start_all(executor)
            grid = SimulationGrid(executor, nodes=12)
            messages = [Message(RecordDict(), node, "query") for node in range(1, 13)]
            seen = [reply.content["seen"] for reply in grid.send_and_receive(messages)]
        finally:
            executor.close()
    assert {record["gpu"] for record in seen} == {"0"}
    assert len({record["pid"] for record in seen}) == 3


@ray_test
def test_a_gpu_that_ray_does_not_see_is_an_error_that_says_so():
    with cluster_of(1) as cluster:
        executor = open_executor(
            "ray", AppSource.of(ClientApp()), address=cluster.address, gpu=True
        )
        try:
            with pytest.raises(EngineError, match="sees no GPU"):
                executor.wait_ready()
        finally:
            executor.close()


@pytest.mark.parametrize(
    ("workers", "gpus", "share"),
    [(1, 1, 1.0), (2, 1, 0.5), (3, 1, 0.3333), (8, 2, 0.25), (5, 2, 0.3333), (1, 4, 1.0)],
)
def test_workers_fit_onto_the_gpus(workers, gpus, share):
    assert gpu_share(workers, gpus) == share
    assert int(1 / share) * gpus >= workers


@ray_test
def test_an_address_where_somebody_else_listens_is_an_error_in_time():
    script = """
import socket
from flwr.clientapp import ClientApp
from fedsim.engine import AppSource, open_executor, ray_start
from fedsim.errors import EngineError
ray_start.START_SECONDS = 3.0
with socket.create_server(("127.0.0.1", 0)) as server:
    address = "127.0.0.1:%d" % server.getsockname()[1]
    executor = open_executor("ray", AppSource.of(ClientApp()), workers=1, address=address)
    try:
        executor.wait_ready()
    except EngineError as error:
        print(error)
    executor.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert "could not be reached: no answer in time (tried for up to 3 s)" in done.stdout
    assert "check engine.address" in done.stdout


def test_a_worker_that_runs_out_of_memory_names_the_setting():
    from ray.exceptions import ActorDiedError, OutOfMemoryError

    error = OutOfMemoryError("Task was killed due to the node running low on memory.")
    assert crew.is_death(error)
    assert "lower engine.workers or train.batch_size" in crew.cause_of_death(error)
    assert crew.is_death(ActorDiedError())
    assert "engine.workers" not in crew.cause_of_death(ActorDiedError())
