"""The executor on Ray: the same bits as without it, whatever happens to the workers."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim import config, load, simulation
from fedsim.engine import AppSource, SimulationGrid, open_executor
from fedsim.engine.chunks import share_records
from fedsim.engine.executor import Job
from fedsim.errors import EngineError
from fedsim.vocabulary import vocabulary

pytestmark = pytest.mark.ray

SETTINGS = [
    *("engine.name=ray", "experiment.rounds=4"),
    *("data.clients=12", "server.clients_per_round=6"),
]


def run(out: Path, *settings: str, executor=None) -> str:
    """Run a small experiment and return the digest of its model."""
    experiment = simulation.prepare(
        config.read(None, [*SETTINGS, *settings, f"run.out={out}"], vocabulary=vocabulary())
    )
    own = executor or simulation.open_engine(experiment)
    try:
        simulation.simulate(experiment, own)
    finally:
        if executor is None:
            own.close()
    return load(out).manifest.model_sha256


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, str]:
    """Return the digests of runs without Ray, by their setting."""
    root = tmp_path_factory.mktemp("inline")
    return {
        setting: run(root / setting, setting, "engine.name=inline")
        for setting in (
            *("server.strategy=fedavg", "server.strategy=scaffold", "train.vectorize=always"),
            *("update.codec=topk", "update.codec=drive", "update.downlink=int8"),
        )
    }


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_bits_of_the_inline_engine(workers, reference, tmp_path):
    experiment = config.read(
        None, [*SETTINGS, f"engine.workers={workers}"], vocabulary=vocabulary()
    )
    executor = simulation.open_engine(experiment)
    try:
        digests = {
            setting: run(tmp_path / setting, setting, executor=executor) for setting in reference
        }
    finally:
        executor.close()
    assert digests == reference


def faulty_app(behave) -> ClientApp:
    """Return an app that answers a query with its node id, after ``behave(message, context)``."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        behave(message, context)
        reply = RecordDict({"answer": ConfigRecord({"node": context.node_id, "pid": os.getpid()})})
        return Message(reply, reply_to=message)

    return app


def ask(grid: SimulationGrid, nodes, timeout=None, content=None) -> dict[int, Message]:
    """Send a query to each node and return the replies by node."""
    content = content or RecordDict()
    messages = [Message(content, node, "query") for node in nodes]
    asked = {}
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    for message in messages:
        for reply in replies:
            if reply.metadata.reply_to_message_id == message.metadata.message_id:
                asked[message.metadata.dst_node_id] = reply
    return asked


@pytest.fixture
def open_grid():
    """Return a function that opens a grid on two workers; they end with the test."""
    executors = []

    def opened(app: ClientApp, nodes: int = 12) -> SimulationGrid:
        executors.append(open_executor("ray", AppSource.of(app), workers=2))
        return SimulationGrid(executors[-1], nodes=nodes)

    yield opened
    for executor in executors:
        executor.close()


def test_a_killed_worker_is_replaced_and_its_clients_run_again(open_grid, tmp_path):
    once = str(tmp_path / "killed")

    def die_once(message, context):
        if context.node_id == 5 and not os.path.exists(once):
            open(once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)

    grid = open_grid(faulty_app(die_once))
    replies = ask(grid, range(1, 13))
    assert os.path.exists(once)
    assert [replies[n].content["answer"]["node"] for n in range(1, 13)] == list(range(1, 13))


def test_a_client_that_kills_every_worker_is_given_up_and_harms_nobody(open_grid):
    def deadly(message, context):
        if context.node_id == 3:
            os._exit(1)

    grid = open_grid(faulty_app(deadly))
    replies = ask(grid, range(1, 9))
    assert replies[3].has_error()
    assert "its worker died 3 times" in replies[3].error.reason
    assert all(replies[n].has_content() for n in range(1, 9) if n != 3)


def test_a_client_that_hangs_is_missed_and_not_running_in_the_next_round(open_grid, tmp_path):
    late = str(tmp_path / "late")

    def hang(message, context):
        if context.node_id == 2 and "hang" in message.content:
            time.sleep(8)
            open(late, "w").close()

    grid = open_grid(faulty_app(hang), nodes=4)
    ask(grid, [1, 2, 3, 4])  # everything is loaded: the timeout below is the client's alone
    first = ask(grid, [1, 2, 3, 4], timeout=4.0, content=RecordDict({"hang": ConfigRecord()}))
    assert 2 not in first
    assert {1, 3, 4} >= set(first)
    second = ask(grid, [1, 2, 3, 4])
    assert set(second) == {1, 2, 3, 4}
    time.sleep(5)
    assert not os.path.exists(late)


def test_the_state_of_clients_survives_the_worker(open_grid):
    def remember(message, context):
        times = context.state["seen"]["times"] + 1 if "seen" in context.state else 1
        context.state["seen"] = MetricRecord({"times": times})
        if times == 2 and context.node_id == 1 and "die" in message.content:
            os._exit(1)

    grid = open_grid(faulty_app(remember), nodes=3)
    ask(grid, [1, 2, 3])
    ask(grid, [1], content=RecordDict({"die": ConfigRecord()}))
    ask(grid, [1, 2, 3])
    assert {n: s["seen"]["times"] for n, s in grid.client_states.items()} == {1: 2, 2: 2, 3: 2}


def test_arrays_arrive_writable_and_whole(open_grid):
    app = ClientApp()

    @app.query()
    def double(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"].to_numpy_ndarrays()
        for array in arrays:
            array *= 2
        return Message(RecordDict({"arrays": ArrayRecord(arrays)}), reply_to=message)

    grid = open_grid(app, nodes=3)
    sent = [np.arange(100_000, dtype=np.float32), np.asfortranarray(np.ones((3, 5))), np.array(7)]
    replies = ask(grid, [1, 2, 3], content=RecordDict({"arrays": ArrayRecord(sent)}))
    for reply in replies.values():
        received = reply.content["arrays"].to_numpy_ndarrays()
        for before, after in zip(sent, received, strict=True):
            assert after.dtype == before.dtype
            assert np.array_equal(after, 2 * before)
            after += 1  # its own memory
        again = ArrayRecord(dict(reply.content["arrays"]))  # as strategies copy records
        assert np.array_equal(again["0"].numpy(), 2 * sent[0])


def test_workers_that_cannot_load_the_app_are_an_error_at_the_start():
    executor = open_executor("ray", AppSource("missing_module:app", "/"), workers=1)
    try:
        with pytest.raises(EngineError, match=r"could not load the app on .*missing_module:app"):
            executor.wait_ready()
        with pytest.raises(EngineError, match="missing_module:app"):
            SimulationGrid(executor, nodes=1).send_and_receive([])
    finally:
        executor.close()


def test_what_all_messages_share_travels_once():
    shared, own = ArrayRecord([np.ones(3)]), [ConfigRecord({"n": n}) for n in range(3)]
    context = Context(1, 1, {}, RecordDict(), {})
    jobs = [
        Job(Message(RecordDict({"arrays": shared, "config": c}), 1, "query"), context, 0)
        for c in own
    ]
    records, places = share_records(jobs)
    assert records == [shared]
    assert places == {id(shared): 0}
    assert share_records(jobs[:1]) == ([], {})


def test_a_worker_killed_in_a_run_leaves_the_bits_as_they_were(reference, tmp_path):
    experiment = config.read(None, [*SETTINGS, "engine.workers=2"], vocabulary=vocabulary())
    executor = simulation.open_engine(experiment)
    try:
        import ray

        executor.wait_ready()
        ray.kill(next(handle.actor for handle in executor._crew.handles if handle.at_work))
        assert run(tmp_path / "run", executor=executor) == reference["server.strategy=fedavg"]
    finally:
        executor.close()
    assert dataclasses.asdict(load(tmp_path / "run").manifest)["status"] == "completed"


def test_an_existing_cluster_is_joined_and_left_running(reference, tmp_path):
    script = """
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
try:
    done = subprocess.run([*sys.argv[1:], "-s", f"engine.address={cluster.address}"])
    print("ALIVE", len([n for n in cluster.list_all_nodes() if n.any_processes_alive()]))
finally:
    cluster.shutdown()
sys.exit(done.returncode)
"""
    command = [str(Path(sys.executable).parent / "fedsim"), "run", "-q", "--format", "json"]
    command += [part for setting in SETTINGS for part in ("-s", setting)]
    command += ["-s", "engine.workers=2", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ALIVE 1" in done.stdout
    assert load(tmp_path / "run").manifest.model_sha256 == reference["server.strategy=fedavg"]


def test_an_address_that_nobody_listens_at_is_an_error_at_once():
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1.*check engine.address"):
        open_executor("ray", AppSource.of(ClientApp()), workers=1, address="127.0.0.1:1")


def test_another_cluster_that_is_named_somewhere_is_not_joined(monkeypatch):
    """Ray would join what its environment names, or what a killed driver left in its directory."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    executor = open_executor(
        "ray", AppSource.of(faulty_app(lambda message, context: None)), workers=1
    )
    try:
        replies = ask(SimulationGrid(executor, nodes=1), [1])
        assert all(reply.has_content() for reply in replies.values())
    finally:
        executor.close()


def test_what_is_left_of_a_closed_engine_harms_no_later_one():
    import ray

    app = faulty_app(lambda message, context: None)
    first = open_executor("ray", AppSource.of(app), workers=1)
    ask(SimulationGrid(first, nodes=2), [1, 2])
    first.close()
    second = open_executor("ray", AppSource.of(app), workers=1)
    try:
        grid = SimulationGrid(second, nodes=2)
        ask(grid, [1, 2])
        del first  # Ray numbers objects anew each time: these must not be taken for others
        gc.collect()
        ray.kill(second._crew.handles[0].actor)
        assert all(reply.has_content() for reply in ask(grid, [1, 2]).values())
    finally:
        second.close()
