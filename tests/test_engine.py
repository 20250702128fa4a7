"""The Grid, as Flower apps see it, on the executor without processes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

import fedsim
from fedsim.engine import AppSource, InlineExecutor, SimulationGrid, open_executor
from fedsim.engine.apps import load_server_app
from fedsim.errors import EngineError


def app_that(answer) -> ClientApp:
    """Return a ClientApp whose reply to a query carries ``answer(message, context)``."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        content = RecordDict({"answer": ConfigRecord(answer(message, context))})
        return Message(content, reply_to=message)

    return app


def grid_of(answer, nodes: int = 4, **settings) -> SimulationGrid:
    return SimulationGrid(InlineExecutor(app_that(answer)), nodes=nodes, **settings)


def ask(grid: SimulationGrid, nodes, content: RecordDict | None = None, timeout=None):
    messages = [Message(content or RecordDict(), node, "query") for node in nodes]
    return list(grid.send_and_receive(messages, timeout=timeout))


def answers(replies) -> list[dict]:
    return [dict(reply.content["answer"]) for reply in replies]


def test_a_client_knows_its_partition_and_the_run_config():
    grid = grid_of(
        lambda message, context: {**context.node_config, **context.run_config},
        run_config={"train.learning_rate": 0.5},
    )
    assert list(grid.get_node_ids()) == [1, 2, 3, 4]
    assert answers(ask(grid, [3])) == [
        {"partition-id": 2, "num-partitions": 4, "train.learning_rate": 0.5}
    ]


def test_replies_come_in_the_order_of_the_messages():
    grid = grid_of(lambda message, context: {"node": context.node_id})
    assert [a["node"] for a in answers(ask(grid, [4, 2, 3, 1]))] == [4, 2, 3, 1]
    reply = ask(grid, [2])[0]
    assert reply.metadata.src_node_id == 2


def test_state_persists_from_message_to_message():
    def count(message, context):
        seen = context.state["seen"]["times"] + 1 if "seen" in context.state else 1
        context.state["seen"] = MetricRecord({"times": seen})
        return {"times": seen}

    grid = grid_of(count)
    ask(grid, [1, 2])
    ask(grid, [2])
    assert answers(ask(grid, [1, 2])) == [{"times": 2}, {"times": 3}]
    assert set(grid.client_states) == {1, 2}


def test_a_client_that_fails_keeps_the_state_it_had():
    def fail_once(message, context):
        tries = context.state["tries"]["n"] + 1 if "tries" in context.state else 1
        context.state["tries"] = MetricRecord({"n": tries})
        if "fail" in message.content:
            raise ValueError("asked to")
        return {"tries": tries}

    grid = grid_of(fail_once)
    ask(grid, [1])
    (failed,) = ask(grid, [1], RecordDict({"fail": ConfigRecord()}))
    assert failed.has_error()
    assert answers(ask(grid, [1])) == [{"tries": 2}]


def test_what_a_client_raises_becomes_an_error_that_says_what_and_where():
    def broken(message, context):
        raise ValueError("no such tensor")

    (reply,) = ask(grid_of(broken), [1])
    assert reply.has_error()
    assert reply.error.reason.startswith("ValueError: no such tensor (")
    assert "test_engine.py" in reply.error.reason


def test_a_client_that_returns_no_message_is_an_error():
    app = ClientApp()
    app.query()(lambda message, context: None)
    (reply,) = ask(SimulationGrid(InlineExecutor(app), nodes=1), [1])
    assert "instead of a Message" in reply.error.reason


def test_a_client_cannot_change_what_the_next_one_receives():
    def spoil(message, context):
        config, arrays = message.content["config"], message.content["arrays"]
        seen = {"rate": config["rate"], "names": ",".join(arrays)}
        config["rate"] = 99.0
        arrays.clear()
        return seen

    content = RecordDict(
        {"config": ConfigRecord({"rate": 0.1}), "arrays": ArrayRecord([np.ones(2)])}
    )
    replies = answers(ask(grid_of(spoil), [1, 2, 3], content))
    assert replies == [{"rate": 0.1, "names": "0"}] * 3
    assert list(content["arrays"]) == ["0"]


def test_an_unknown_node_answers_with_an_error_that_names_the_nodes():
    replies = ask(grid_of(lambda message, context: {}), [1, 9])
    assert replies[0].has_content()
    assert replies[1].error.reason == "node 9: unknown; this federation has nodes 1 to 4"


def test_messages_can_be_pushed_and_pulled_apart():
    grid = grid_of(lambda message, context: {"node": context.node_id})
    ids = list(grid.push_messages([Message(RecordDict(), node, "query") for node in (1, 2)]))
    pulled = []
    while len(pulled) < 2:
        pulled += grid.pull_messages(ids)
    assert sorted(a["node"] for a in answers(pulled)) == [1, 2]
    assert list(grid.pull_messages(ids)) == []


def test_a_timeout_returns_what_is_there_and_gives_up_the_rest():
    ran = []
    grid = grid_of(lambda message, context: {"n": len(ran.append(1) or ran)})
    assert ask(grid, [1, 2], timeout=-1.0) == []
    assert len(ask(grid, [3])) == 1
    assert ran == [1]  # neither of the two that were given up


@pytest.mark.parametrize("seed", [0, 7])
def test_global_generators_are_seeded_for_each_message(seed):
    def draw(message, context):
        draws = random.random(), float(np.random.rand()), float(torch.rand(1))
        return {"draws": list(draws)}

    first = answers(ask(grid_of(draw, seed=seed), [1, 2]))
    again = answers(ask(grid_of(draw, seed=seed), [1, 2]))
    other = answers(ask(grid_of(draw, seed=seed + 1), [1, 2]))
    assert first == again
    assert first[0] != first[1]
    assert all(a != b for a, b in zip(first, other, strict=True))


def sampled_by_fedavg(seed: int) -> list[list[int]]:
    """Return whom Flower's own FedAvg asks in three rounds."""
    app, asked = app_that(lambda message, context: {}), []
    server = ServerApp()

    @server.main()
    def main(grid, context):
        strategy = FedAvg(fraction_train=0.3)
        for _ in range(3):
            messages = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
            asked.append([message.metadata.dst_node_id for message in messages])

    fedsim.run_simulation(server, app, 20, workers=0, seed=seed)
    return asked


def test_the_seed_fixes_whom_flowers_strategies_sample():
    assert sampled_by_fedavg(1) == sampled_by_fedavg(1)
    assert sampled_by_fedavg(1) != sampled_by_fedavg(2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"num_supernodes": 0}, "num_supernodes = 0"), ({"workers": -1}, "workers = -1")],
)
def test_run_simulation_refuses_impossible_numbers(settings, text):
    arguments = {"num_supernodes": 2, "workers": 0} | settings
    nodes = arguments.pop("num_supernodes")
    with pytest.raises(ValueError, match=text):
        fedsim.run_simulation(ServerApp(), ClientApp(), nodes, **arguments)


def test_an_app_that_is_not_there_is_named():
    with pytest.raises(EngineError, match=r"nowhere\.app:app"):
        AppSource("nowhere.app:app", "/").load()
    with pytest.raises(EngineError, match=r"nowhere\.app:app"):
        load_server_app("nowhere.app:app", "/")


def test_an_unknown_engine_is_refused():
    with pytest.raises(EngineError, match="valid: inline, ray"):
        open_executor("threads", AppSource.of(ClientApp()))
