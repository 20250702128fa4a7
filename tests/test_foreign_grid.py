"""A grid that is not fedsim's own: clients are found by asking, and the model is the same."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun

from fedsim.config import Experiment
from fedsim.engine import InlineExecutor, Job, SimulationGrid
from fedsim.engine.apps import SERVER_NODE_ID, assume_identity, load_server_app
from fedsim.errors import RunFailed
from fedsim.federation import sampling
from fedsim.federation.sampling import locate_clients
from fedsim.ledger.read import Run, load
from fedsim.simulation import SERVER_APP, app_directory

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]


class ForeignGrid(Grid):
    """A grid as Flower's: node ids of its own, late nodes, and no view of the clients' state.

    Node ``ids[p]`` holds partition p; it is there after ``late[p]`` looks.
    """

    def __init__(
        self,
        app: ClientApp,
        ids: list[int],
        run_config: Mapping[str, Any],
        late: Mapping[int, int] | None = None,
    ) -> None:
        assume_identity(1)
        self._executor = InlineExecutor(app)
        self._partition = {node: partition for partition, node in enumerate(ids)}
        self._states = {node: RecordDict() for node in ids}
        self._run_config = dict(run_config)
        self._late = late or {}
        self._asked: dict[str, int] = {}  # node by message
        self.looks = 0

    def set_run(self, run: FlowerRun) -> None:
        raise AssertionError("the run is Flower's own; nobody sets another")

    @property
    def run(self) -> FlowerRun:
        return FlowerRun.create_empty(1)

    def create_message(self, *arguments: Any, **settings: Any) -> Message:
        raise AssertionError("messages are made by Message(...), not by Flower's older way")

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        nodes = sorted(self._partition)
        return [n for n in nodes if self._late.get(self._partition[n], 1) <= self.looks]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        jobs = []
        for message in messages:
            node = message.metadata.dst_node_id
            message_id = f"foreign-{len(self._asked)}"
            self._asked[message_id] = node
            message.metadata.__dict__["_message_id"] = message_id
            context = Context(
                run_id=1,
                node_id=node,
                node_config={
                    "partition-id": self._partition[node],
                    "num-partitions": len(self._partition),
                },
                state=self._states[node],
                run_config=self._run_config,
            )
            jobs.append(Job(message, context, 0))
        self._executor.submit(jobs)
        return [job.message.metadata.message_id for job in jobs]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        while found := self._executor.collect(time.monotonic() + 60):
            for outcome in found:
                self._states[self._asked[outcome.message_id]] = outcome.state
                replies.append(outcome.reply)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = list(self.pull_messages(self.push_messages(messages)))
        random.Random(len(self._asked)).shuffle(replies)
        return replies

    @property
    def asked(self) -> list[int]:
        """The nodes that messages went to, one after another."""
        return list(self._asked.values())


def serve(experiment: Experiment, grid: Grid) -> Run:
    """Run fedsim's ServerApp on a grid."""
    context = Context(
        run_id=1,
        node_id=SERVER_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=experiment.flat(),
    )
    load_server_app(SERVER_APP, str(app_directory()))(grid=grid, context=context)
    return load(experiment.run.out)


NODES = [901, 17, 5550, 3, 42, 77_000_001, 8, 230]


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_foreign_grid_gives_the_same_model(
    strategy: str,
    make_experiment: Make,
    run_inline: RunInline,
    client_app: ClientApp,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "POLL_SECONDS", 0.0)
    own = run_inline(make_experiment(server={"strategy": strategy}))
    elsewhere = str(tmp_path_factory.mktemp("foreign") / "run")
    experiment = make_experiment(server={"strategy": strategy}, run={"out": elsewhere})
    grid = ForeignGrid(client_app, NODES, experiment.flat(), late={2: 3, 5: 2})
    foreign = serve(experiment, grid)
    assert foreign.manifest.model_sha256 == own.manifest.model_sha256
    assert foreign.rounds.test_loss.tolist() == own.rounds.test_loss.tolist()
    assert foreign.clients.client.tolist() == own.clients.client.tolist()
    assert grid.looks == 3
    queries = grid.asked[: -3 * 4]
    assert sorted(queries) == sorted(NODES)  # each node is asked until it has answered, not after


def test_a_node_that_cannot_answer_yet_is_asked_again(
    make_experiment: Make, client_app: ClientApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "POLL_SECONDS", 0.0)
    tries = []
    app = ClientApp()

    @app.query("partition")
    def query(message: Message, context: Context) -> Message:
        if context.node_id == 3:
            tries.append(1)
            if len(tries) < 3:
                raise RuntimeError("not yet")
        return client_app(message, context)

    grid = ForeignGrid(app, NODES, make_experiment().flat())
    node_of = locate_clients(grid, 8, timeout_seconds=60)
    assert [node_of(client) for client in range(8)] == NODES
    assert len(tries) == 3


def test_nodes_that_never_appear_are_counted(
    make_experiment: Make, client_app: ClientApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "POLL_SECONDS", 0.0)
    never = {2: 10**9, 6: 10**9}
    grid = ForeignGrid(client_app, NODES, make_experiment().flat(), late=never)
    with pytest.raises(RunFailed) as failure:
        locate_clients(grid, 8, timeout_seconds=0.02)
    assert str(failure.value) == (
        "2 of 8 clients never appeared (the first: partition 2); start as many nodes as "
        "data.clients, or set data.clients to the 6 that are there"
    )


def test_fedsims_own_grid_is_not_asked(client_app: ClientApp) -> None:
    app = ClientApp()  # would answer a query with an error
    grid = SimulationGrid(InlineExecutor(app), nodes=3)
    node_of = locate_clients(grid, 3, timeout_seconds=0)
    assert [node_of(client) for client in range(3)] == [1, 2, 3]


def test_state_that_a_grid_cannot_restore_is_not_lost_in_silence(
    make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    scaffold = {"server": {"strategy": "scaffold"}}
    experiment = make_experiment(**scaffold)
    broken = ClientApp()

    @broken.train()
    def train(message: Message, context: Context) -> Message:
        if message.content.config_records["config"]["server-round"] == 2:
            raise OSError("the disk is full")
        return client_app(message, context)

    with pytest.raises(RunFailed):
        run_inline(experiment, broken)
    again = make_experiment(**scaffold, run={"out": experiment.run.out, "resume": True})
    with pytest.raises(RunFailed, match="cannot restore; resume it with fedsim run --resume"):
        serve(again, ForeignGrid(client_app, NODES, again.flat()))


def test_an_error_in_the_name_of_another_node(make_experiment: Make, client_app: ClientApp) -> None:
    """What Flower says when a node dies: an error with the id of another node."""
    experiment = make_experiment(experiment={"rounds": 1})

    class Dying(ForeignGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            replies = list(super().send_and_receive(messages, timeout=timeout))
            dead = next((m for m in messages if m.metadata.message_type == "train"), None)
            if dead is None:
                return replies
            error = Message(Error(code=5, reason="node unavailable"), reply_to=dead)
            error.metadata.__dict__["_src_node_id"] = 1
            answered = dead.metadata.message_id
            return [error] + [r for r in replies if r.metadata.reply_to_message_id != answered]

    run = serve(experiment, Dying(client_app, NODES, experiment.flat()))
    first, *others = sampling.choose_clients(0, 1, clients=8, cohort=4)
    assert run.clients.client.tolist() == [first, *others]
    assert run.clients.status.tolist() == ["failed", "ok", "ok", "ok"]
    assert run.clients.error.tolist()[0] == "node unavailable"
