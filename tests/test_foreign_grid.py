"""A grid that is not fedsim's own: clients are found by asking, and the model is the same."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.run import Run as FlowerRun

from fedsim import parts
from fedsim.config import Experiment
from fedsim.data import Form, load_dataset
from fedsim.data.folders import write_split
from fedsim.engine import InlineExecutor, Job, SimulationGrid
from fedsim.engine.apps import SERVER_NODE_ID, assume_identity, load_server_app
from fedsim.errors import RunFailed
from fedsim.federation import exchange, sampling
from fedsim.federation.sampling import locate_clients
from fedsim.ledger.read import Run, load
from fedsim.simulation import SERVER_APP, app_directory
from fedsim.training import steps_of

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]


class ForeignGrid(Grid):
    """A grid as Flower's: node ids of its own, late nodes, and no view of the clients' state.

    Node ``ids[p]`` holds partition p, and the data at ``data[p]`` if any; it is there after
    ``late[p]`` looks. A node in ``claims`` says that it holds that partition. Replies come in
    a random order.
    """

    def __init__(
        self,
        app: ClientApp,
        ids: list[int],
        run_config: Mapping[str, Any],
        late: Mapping[int, int] | None = None,
        data: Mapping[int, object] | None = None,
        claims: Mapping[int, int] | None = None,
    ) -> None:
        assume_identity(1)
        self._executor = InlineExecutor(app)
        self._partition = {node: partition for partition, node in enumerate(ids)} | {
            **(claims or {})
        }
        self._data = data or {}
        self._states = {node: RecordDict() for node in self._partition}
        self._run_config = dict(run_config)
        self._late = late or {}
        self._asked: dict[str, int] = {}  # node by message
        self.sent: list[Message] = []
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
            self.sent.append(message)
            partition = self._partition[node]
            context = Context(
                run_id=1,
                node_id=node,
                node_config={
                    "partition-id": partition,
                    "num-partitions": len(self._partition),
                    **({"data": str(self._data[partition])} if partition in self._data else {}),
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
        random.Random(len(self._asked)).shuffle(replies)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise AssertionError("it would sleep for seconds between two looks, as Flower's does")

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


FORM = Form.of(load_dataset("digits"))
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
    at = locate_clients(grid, 8, form=FORM, timeout_seconds=60)
    assert [at.node_of(client) for client in range(8)] == NODES
    assert at.left_out == {}
    assert at.sizes is not None
    assert at.sizes.tolist() == parts.partition(make_experiment()).sizes.tolist()
    assert len(tries) == 3


def test_nodes_that_never_appear_are_counted(
    make_experiment: Make, client_app: ClientApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "POLL_SECONDS", 0.0)
    never = {2: 10**9, 6: 10**9}
    grid = ForeignGrid(client_app, NODES, make_experiment().flat(), late=never)
    with pytest.raises(RunFailed) as failure:
        locate_clients(grid, 8, form=FORM, timeout_seconds=0.02)
    assert str(failure.value) == (
        "2 of 8 clients never appeared (the first: partition 2); start as many nodes as "
        "data.clients, or set data.clients to the 6 that are there"
    )


def test_fedsims_own_grid_is_not_asked(client_app: ClientApp) -> None:
    app = ClientApp()  # would answer a query with an error
    grid = SimulationGrid(InlineExecutor(app), nodes=3)
    at = locate_clients(grid, 3, form=FORM, timeout_seconds=0)
    assert [at.node_of(client) for client in range(3)] == [1, 2, 3]
    assert at.sizes is None


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
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            dead = next((m for m in self.sent if m.metadata.message_type == "train"), None)
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


# Data that lies at the nodes.


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Return what the server logs, which a simulation in this process may have turned off."""
    caplog.set_level(logging.INFO, logger="flwr.fedsim")
    return caplog


UNEVEN = {"partition": "dirichlet"}


@pytest.fixture
def folders(make_experiment: Make, tmp_path: Path) -> Path:
    """Return the folder of a split of the small experiment's data."""
    small = make_experiment(data=UNEVEN)
    data, dealt = parts.dataset(small), parts.partition(small)
    write_split(data, dealt, tmp_path / "parts", experiment="", advance=lambda *_: None)
    return tmp_path / "parts"


@pytest.fixture
def deployed(make_experiment: Make, folders: Path) -> Make:
    """Return a function from tables to the experiment as a server without examples is given it."""

    def make(**tables: Mapping[str, Any]) -> Experiment:
        data = {"dataset": "split", "path": str(folders / "server"), "partition": "natural"}
        return make_experiment(**{**tables, "data": data | {**tables.get("data", {})}})

    return make


def at_nodes(folders: Path) -> dict[int, object]:
    """Return where each client's own examples lie."""
    return {client: folders / f"client-{client:03d}" for client in range(8)}


@pytest.mark.parametrize(
    "tables",
    [
        {"measure": {"level": "full"}, "train": {"block_clients": 2}},
        {"server": {"strategy": "scaffold"}, "train": {"batch_size": 7}},
        {"update": {"codec": "topk"}},
    ],
    ids=["fedavg", "scaffold", "topk"],
)
def test_data_at_the_nodes_gives_the_bits_of_the_simulation(
    tables: dict[str, Any],
    make_experiment: Make,
    deployed: Make,
    folders: Path,
    run_inline: RunInline,
    client_app: ClientApp,
    tmp_path: Path,
) -> None:
    own = run_inline(make_experiment(**tables, data=UNEVEN))
    experiment = deployed(**tables, run={"out": str(tmp_path / "deployed")})
    run = serve(
        experiment, ForeignGrid(client_app, NODES, experiment.flat(), data=at_nodes(folders))
    )
    assert run.manifest.model_sha256 == own.manifest.model_sha256
    assert run.rounds.test_loss.tolist() == own.rounds.test_loss.tolist()
    full = ("loss_after", "top_1_percent_energy") if "measure" in tables else ()
    for figure in ("examples", "loss_first_step", "update_norm", *full):
        assert run.clients[figure].tolist() == own.clients[figure].tolist()


def test_blocks_are_cut_by_what_the_nodes_hold(
    make_experiment: Make, deployed: Make, folders: Path, client_app: ClientApp
) -> None:
    """The server has no examples to count, and a sum depends on its blocks."""
    experiment = deployed(experiment={"rounds": 1}, server={"clients_per_round": 8})
    load_server_app(SERVER_APP, str(app_directory()))  # so that it is there to be looked at
    with pytest.MonkeyPatch.context() as patch:
        held: list[list[int]] = []

        def look(sizes: Any, **recipe: Any) -> Any:
            held.append(sizes.tolist())
            return steps_of(sizes, **recipe)

        patch.setattr(sys.modules["server.asker"], "steps_of", look)
        serve(experiment, ForeignGrid(client_app, NODES, experiment.flat(), data=at_nodes(folders)))
    (sizes,) = held
    assert sizes == parts.partition(make_experiment(data=UNEVEN)).sizes.tolist()
    assert len(set(sizes)) > 1


def broken(folders: Path, client: int) -> None:
    """Cut off a client's file."""
    path = folders / f"client-{client:03d}" / "examples.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def test_a_client_without_usable_data_is_left_out_and_never_asked(
    deployed: Make, folders: Path, client_app: ClientApp, told: pytest.LogCaptureFixture
) -> None:
    first, *others = sampling.choose_clients(0, 1, clients=8, cohort=4)
    broken(folders, first)
    experiment = deployed(experiment={"rounds": 1}, server={"round_timeout_seconds": 9.0})
    grid = ForeignGrid(client_app, NODES, experiment.flat(), data=at_nodes(folders))
    run = serve(experiment, grid)
    assert run.clients.client.tolist() == [first, *others]
    assert run.clients.status.tolist() == ["failed", "ok", "ok", "ok"]
    reason = run.clients.error.tolist()[0]
    assert reason.startswith("left out: ")
    assert "examples.safetensors: is not the file that dataset.json describes" in reason
    assert run.rounds.clients_failed.tolist() == [1]
    asked = [m.metadata.dst_node_id for m in grid.sent if m.metadata.message_type == "train"]
    assert asked == [NODES[client] for client in others]
    assert grid.looks == 1  # nobody waits for it
    assert f"client {first} (node {NODES[first]}) is left out: " in told.text


def test_a_client_that_the_experiment_leaves_out_needs_no_node(
    deployed: Make, folders: Path, client_app: ClientApp, run_inline: RunInline
) -> None:
    """Nobody waits for a node that was shut out, and a simulation without it gives the same."""
    first, *others = sampling.choose_clients(0, 1, clients=8, cohort=4)
    server = {"round_timeout_seconds": 9.0, "left_out": str(first)}
    experiment = deployed(experiment={"rounds": 1}, server=server)
    grid = ForeignGrid(
        client_app, NODES, experiment.flat(), late={first: 10**6}, data=at_nodes(folders)
    )
    run = serve(experiment, grid)
    assert run.clients.client.tolist() == [first, *others]
    assert run.clients.status.tolist() == ["failed", "ok", "ok", "ok"]
    assert run.clients.error.tolist()[0] == "left out: server.left_out names it"
    assert grid.looks == 1
    again = deployed(experiment={"rounds": 1}, server=server)
    whole = replace(
        again,
        data=replace(again.data, path=str(folders)),
        run=replace(again.run, out=f"{again.run.out}-simulated"),
    )
    simulated = run_inline(whole)
    assert simulated.clients.error.tolist()[0] == "left out: server.left_out names it"
    assert simulated.manifest.model_sha256 == run.manifest.model_sha256


def test_a_round_of_clients_that_are_all_left_out_fails_with_the_reason(
    deployed: Make, folders: Path, client_app: ClientApp
) -> None:
    experiment = deployed(server={"clients_per_round": 1})
    (chosen,) = sampling.choose_clients(0, 1, clients=8, cohort=1)
    broken(folders, chosen)
    grid = ForeignGrid(client_app, NODES, experiment.flat(), data=at_nodes(folders))
    with pytest.raises(RunFailed, match=r"round 1: none of 1 clients gave .* left out: .*SHA-256"):
        serve(experiment, grid)
    run = load(experiment.run.out)
    assert [run.clients.client.tolist(), run.clients.status.tolist()] == [[chosen], ["failed"]]


def left_out(experiment: Experiment, grid: Grid) -> Mapping[int, str]:
    at = locate_clients(grid, 8, form=parts.form(experiment), timeout_seconds=60)
    return at.left_out


def test_a_node_of_a_split_that_is_given_no_data_has_none(
    make_experiment: Make, deployed: Make, folders: Path, client_app: ClientApp
) -> None:
    """Not even where the folder that the server reads lies at the node too."""
    experiment, data = deployed(), at_nodes(folders)
    del data[5]
    for path in (experiment.data.path, folders / "nowhere", folders / "client-005"):
        config = experiment.flat() | {"data.path": str(path)}
        found = left_out(experiment, ForeignGrid(client_app, NODES, config, data=data))
        assert list(found) == [5]
        assert found[5].startswith("the node's configuration names no data; ")


def test_a_node_trains_on_its_own_data_whatever_dataset_the_server_has(
    make_experiment: Make, folders: Path, client_app: ClientApp
) -> None:
    experiment = make_experiment(experiment={"rounds": 1}, server={"clients_per_round": 8})
    grid = ForeignGrid(client_app, NODES, experiment.flat(), data={3: folders / "nowhere"})
    run = serve(experiment, grid)
    assert run.clients.status.tolist() == ["ok"] * 3 + ["failed"] + ["ok"] * 4
    assert run.clients.error.tolist()[3] == f"left out: {folders / 'nowhere'}: no such folder"


def test_data_of_another_client_or_form_is_not_used(
    make_experiment: Make, deployed: Make, folders: Path, client_app: ClientApp, tmp_path: Path
) -> None:
    shifted = make_experiment(data={"offset": -0.5})
    write_split(
        parts.dataset(shifted),
        parts.partition(shifted),
        tmp_path / "shifted",
        experiment="",
        advance=lambda *_: None,
    )
    data = at_nodes(folders)
    data |= {1: folders / "client-002", 4: tmp_path / "shifted" / "client-004"}
    data |= {6: folders / "server"}
    experiment = deployed()
    assert left_out(experiment, ForeignGrid(client_app, NODES, experiment.flat(), data=data)) == {
        1: f"{folders / 'client-002'}: is client 2's, and this node has partition-id=1",
        4: "its data is not of the server's form: dtype is float32, not uint8",
        6: f"{folders / 'server'}: holds no client's examples",
    }


def test_what_nobody_foresaw_is_told_without_the_values(
    deployed: Make, folders: Path, client_app: ClientApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = deployed()
    grid = ForeignGrid(client_app, NODES, experiment.flat(), data=at_nodes(folders))

    def refuse(*_: object) -> None:
        raise MemoryError("of patient 17")

    monkeypatch.setattr(parts, "indices", refuse)
    with pytest.raises(RunFailed) as failure:
        left_out(experiment, grid)
    assert str(failure.value) == (
        "none of 8 clients has usable data; 8 x its data cannot be read (MemoryError); see the "
        "node's log"
    )


def test_the_first_node_of_a_partition_keeps_it(
    deployed: Make, folders: Path, client_app: ClientApp, told: pytest.LogCaptureFixture
) -> None:
    experiment = deployed()
    claims = {1_000_000_000: 2, 1_000_000_001: 8, 1_000_000_002: -1}
    grid = ForeignGrid(client_app, NODES, experiment.flat(), data=at_nodes(folders), claims=claims)
    at = locate_clients(grid, 8, form=parts.form(experiment), timeout_seconds=60)
    assert [at.node_of(client) for client in range(8)] == NODES
    assert at.left_out == {}
    assert [line.partition("; ")[0] for line in told.messages] == [
        "node 1000000000 is ignored: partition 2 is at node 5550",
        "node 1000000001 is ignored: it has partition-id=8, and data.clients = 8",
        "node 1000000002 is ignored: it has partition-id=-1, and data.clients = 8",
    ]


def test_a_second_node_stands_in_for_one_without_usable_data(
    make_experiment: Make, client_app: ClientApp
) -> None:
    experiment, tries = make_experiment(), []
    app = ClientApp()

    @app.query("partition")
    def query(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2:
            tries.append(context.node_id)
            if len(tries) == 1:
                context.node_config["data"] = "/nowhere"
        return client_app(message, context)

    grid = ForeignGrid(app, NODES, experiment.flat(), claims={6000: 2})
    at = locate_clients(grid, 8, form=FORM, timeout_seconds=60)
    assert tries == [5550, 6000]
    assert (at.node_of(2), at.left_out) == (6000, {})


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"partition-id": 3},
        {"partition-id": "three", "examples": 5},
        {"partition-id": 3, "examples": 0},
        {"partition-id": 3, "examples": -5},
        {"partition-id": 3, "examples": "many"},
        {"partition-id": 3, "examples": 2**62},
    ],
    ids=str,
)
def test_an_answer_that_cannot_be_is_ignored(
    answer: dict[str, Any],
    make_experiment: Make,
    client_app: ClientApp,
    monkeypatch: pytest.MonkeyPatch,
    told: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sampling, "POLL_SECONDS", 0.0)
    app = ClientApp()

    @app.query("partition")
    def query(message: Message, context: Context) -> Message:
        if context.node_id == NODES[3]:
            content = RecordDict({"partition": ConfigRecord(answer)})
            return Message(content, reply_to=message)
        return client_app(message, context)

    grid = ForeignGrid(app, NODES, make_experiment().flat())
    with pytest.raises(RunFailed, match=r"1 of 8 clients never appeared .* partition 3"):
        locate_clients(grid, 8, form=FORM, timeout_seconds=0)
    assert "node 3 is ignored: its answer cannot be read" in told.text


# Messages and replies.


class Mailbox:
    """As much of a grid as sends messages: replies come at the ``arrival`` look."""

    def __init__(self, ids: list[str | None], arrival: dict[str, int]) -> None:
        self._ids, self._arrival = ids, arrival
        self.looked_for: list[set[str]] = []

    def push_messages(self, messages: list[Message]) -> list[str | None]:
        return self._ids[: len(messages)]

    def pull_messages(self, message_ids: set[str]) -> list[Any]:
        self.looked_for.append(set(message_ids))
        here = [m for m in message_ids if self._arrival.get(m, 10**9) <= len(self.looked_for)]
        return [SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=m)) for m in here]


def answered(box: Mailbox, timeout_seconds: float) -> set[str]:
    messages: Any = [None] * 3
    replies = exchange.send_and_receive(box, messages, timeout_seconds=timeout_seconds)  # type: ignore[arg-type]
    return {reply.metadata.reply_to_message_id for reply in replies}


def test_replies_are_looked_for_more_and_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(exchange.time, "sleep", pauses.append)
    box = Mailbox(["a", "b", "c"], {"a": 1, "b": 3, "c": 12})
    assert answered(box, 60) == {"a", "b", "c"}
    assert box.looked_for[:4] == [{"a", "b", "c"}, {"b", "c"}, {"b", "c"}, {"c"}]
    assert len(box.looked_for) == 12
    assert pauses[0] == 0.05
    assert pauses == sorted(pauses)
    assert pauses[-1] == 0.5


def test_what_a_grid_did_not_take_is_not_waited_for() -> None:
    box = Mailbox([None, "b", None], {"b": 1})
    assert answered(box, 60) == {"b"}
    assert box.looked_for == [{"b"}]
    assert answered(Mailbox([None] * 3, {}), 60) == set()


def test_the_time_for_replies_ends() -> None:
    started = time.monotonic()
    assert answered(Mailbox(["a", "b", "c"], {"b": 2}), 0.2) == {"b"}
    assert 0.2 <= time.monotonic() - started < 5


@pytest.mark.parametrize(("away_seconds", "replies"), [(0.1, set()), (30.0, {"b"})])
def test_the_time_does_not_run_while_the_grid_is_away(
    away_seconds: float, replies: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply at the third look, of which the first takes as long as a SuperLink's return."""
    now = 0.0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

        @staticmethod
        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds

    class Away(Mailbox):
        def pull_messages(self, message_ids: set[str]) -> list[Any]:
            if not self.looked_for:
                Clock.sleep(away_seconds)
            return super().pull_messages(message_ids)

    monkeypatch.setattr(exchange, "time", Clock)
    timeout_seconds = 0.15 if away_seconds < 1 else 1.0
    assert answered(Away([None, "b", None], {"b": 3}), timeout_seconds) == replies


def test_messages_are_pushed_again_where_a_superlink_ended_in_the_midst() -> None:
    pushed: list[int] = []

    class Ending(Mailbox):
        def push_messages(self, messages: list[Message]) -> list[str | None]:
            pushed.append(len(messages))
            if len(pushed) <= broken_pushes:
                raise ObjectPushError("object", 1, "session")
            return super().push_messages(messages)

    broken_pushes = 2
    assert answered(Ending(["a", "b", "c"], {"a": 1, "b": 1, "c": 1}), 60) == {"a", "b", "c"}
    assert pushed == [3, 3, 3]
    broken_pushes = 10**9
    with pytest.raises(ObjectPushError):
        answered(Ending(["a", "b", "c"], {}), 60)
