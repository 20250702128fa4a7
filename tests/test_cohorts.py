"""Cohorts: blocks of clients in one call of the app, on Ray as without it, to the bit."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim.engine import AppSource, Block, InlineExecutor, SimulationGrid, open_executor
from fedsim.engine.prediction import CostModel, plan

ray_test = pytest.mark.ray
NODES = 40
BLOCKS = [Block((7, 3, 5), (3.0,)), Block((0,), (1.0,)), Block((20, 21, 22, 23, 24), (5.0,))]


def cohort_app(behave=lambda client, message: None) -> ClientApp:
    """Return an app that sums its clients' draws and says who it was, after ``behave``."""
    app = ClientApp()

    @app.train("cohort")
    def train(message: Message, context: Context) -> Message:
        clients = list(message.content["cohort"]["partition-ids"])
        (arrays,) = message.content["arrays"].to_numpy_ndarrays()
        total = np.zeros(arrays.shape)
        for client in clients:
            behave(client, message)
            total += arrays * np.random.default_rng(client).standard_normal(arrays.shape)
        about = ConfigRecord(
            {
                "clients": clients,
                "id": message.metadata.message_id,
                "type": message.metadata.message_type,
                "nodes": [message.metadata.dst_node_id, context.node_id],
                "config": str(sorted(context.node_config.items())),
                "rate": float(context.run_config.get("rate", 0.0)),
                "kept": len(context.state),
                "draws": [random.random(), float(np.random.rand())],
            }
        )
        content = RecordDict({"sum": ArrayRecord([total]), "about": about})
        message.content["arrays"].clear()  # nobody else's
        return Message(content, reply_to=message)

    return app


def weights(size: int = 5) -> RecordDict:
    """Return content with so many weights."""
    drawn = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    return RecordDict({"arrays": ArrayRecord([drawn])})


def told(replies: list[list[Message]]) -> list[list[tuple]]:
    """Return what can be compared of replies: their content to the bit, or their error."""
    return [
        [
            (
                reply.metadata.reply_to_message_id,
                dict(reply.content["about"]),
                hashlib.sha256(reply.content["sum"]["0"].numpy().tobytes()).hexdigest(),
            )
            if reply.has_content()
            else (reply.metadata.reply_to_message_id, reply.error.reason.split(" (")[0])
            for reply in parts
        ]
        for parts in replies
    ]


def inline(app: ClientApp, **settings) -> SimulationGrid:
    """Return a grid in this process."""
    return SimulationGrid(InlineExecutor(app), nodes=NODES, **settings)


@pytest.fixture
def on_ray():
    """Return a function that opens a grid on Ray; its workers end with the test."""
    executors = []

    def opened(app: ClientApp, workers: int = 2, **settings) -> SimulationGrid:
        executors.append(open_executor("ray", AppSource.of(app), workers=workers))
        return SimulationGrid(executors[-1], **{"nodes": NODES, **settings})

    yield opened
    for executor in executors:
        executor.close()


def test_an_app_offers_cohorts_by_registering_for_them():
    plain = ClientApp()
    plain.train()(lambda message, context: message)
    assert inline(cohort_app()).offers_cohorts
    assert not inline(plain).offers_cohorts


def test_a_block_is_one_message_to_its_first_client():
    grid = inline(cohort_app(), run_config={"rate": 0.5})
    ((reply,), _, _) = grid.send_cohort(weights(), BLOCKS)
    about = dict(reply.content["about"])
    assert about.pop("draws")
    assert about == {
        **{"clients": [7, 3, 5], "id": "1-1", "type": "train.cohort", "nodes": [8, 8]},
        **{"config": str([("num-partitions", NODES), ("partition-id", 7)])},
        **{"rate": 0.5, "kept": 0},
    }
    assert reply.metadata.src_node_id == 8
    assert reply.metadata.reply_to_message_id == "1-1"
    expected = sum(np.random.default_rng(c).standard_normal(5) * sent() for c in (7, 3, 5))
    assert np.array_equal(reply.content["sum"]["0"].numpy(), expected)


def sent() -> np.ndarray:
    return weights()["arrays"]["0"].numpy()


def test_ids_advance_by_the_clients_and_replies_keep_the_blocks_order():
    grid = inline(cohort_app())
    first = grid.send_cohort(weights(), BLOCKS)
    again = grid.send_cohort(weights(), BLOCKS[::-1])
    ids = [[reply.content["about"]["id"] for reply in parts] for parts in first + again]
    assert ids == [["1-1"], ["1-4"], ["1-5"], ["1-10"], ["1-15"], ["1-16"]]
    clients = [list(parts[0].content["about"]["clients"]) for parts in first]
    assert clients == [list(block.clients) for block in BLOCKS]
    message = Message(RecordDict(), 1, "query")
    assert list(grid.push_messages([message])) == ["1-19"]


def test_global_generators_are_seeded_by_run_and_block_alone():
    draws = []
    for seed, size in ((0, 5), (0, 9), (1, 5)):
        replies = inline(cohort_app(), seed=seed).send_cohort(weights(size), BLOCKS)
        draws.append([parts[0].content["about"]["draws"] for parts in replies])
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))
    assert draws[0][0] != draws[0][1]


@pytest.mark.parametrize(
    ("block", "text"),
    [(Block(()), "without clients"), (Block((0, NODES)), "clients 0 to 39"), (Block((-1,)), "-1")],
)
def test_blocks_of_nobody_are_refused(block, text):
    with pytest.raises(ValueError, match=text):
        inline(cohort_app()).send_cohort(weights(), [block])


def raises_for(*clients: int):
    """Return a behaviour that raises for some clients."""

    def behave(client, message):
        if client in clients:
            raise ValueError(f"client {client} does")

    return behave


def test_where_one_client_raises_the_others_of_its_block_answer_for_themselves():
    parts = inline(cohort_app(raises_for(3, 22))).send_cohort(weights(), BLOCKS)
    assert [len(p) for p in parts] == [3, 1, 5]
    assert [reply.has_error() for reply in parts[0]] == [False, True, False]
    assert parts[0][1].error.reason.startswith("ValueError: client 3 does (")
    assert [list(p.content["about"]["clients"]) for p in parts[2] if p.has_content()] == [
        *([20], [21], [23], [24])
    ]
    assert [p.metadata.reply_to_message_id for p in parts[2]] == [f"1-{i}" for i in range(5, 10)]
    assert [p.metadata.src_node_id for p in parts[2]] == [21, 22, 23, 24, 25]
    ids = [p.content["about"]["id"] for p in parts[2] if p.has_content()]
    assert ids == ["1-5", "1-6", "1-8", "1-9"]  # seeded as if they had been asked alone


def test_replies_can_be_taken_as_they_come():
    taken = {}
    grid = inline(cohort_app())
    assert grid.send_cohort(weights(), BLOCKS, each=taken.__setitem__) == [[], [], []]
    expected = told(inline(cohort_app()).send_cohort(weights(), BLOCKS))
    assert told([taken[i] for i in range(3)]) == expected


def test_the_parts_of_a_split_block_add_up_to_the_block_to_the_bit():
    whole = inline(cohort_app()).send_cohort(weights(), BLOCKS)[2][0]
    fails = inline(cohort_app(lambda c, m: 1 / (len(m.content["cohort"]["partition-ids"]) < 2)))
    parts = fails.send_cohort(weights(), BLOCKS)[2]
    total = np.zeros(5)
    for part in parts:
        total += part.content["sum"]["0"].numpy()
    assert total.tobytes() == whole.content["sum"]["0"].numpy().tobytes()


def test_blocks_whose_turn_comes_after_the_deadline_are_missed():
    asked = []
    grid = inline(cohort_app(lambda client, message: (asked.append(client), time.sleep(0.3))))
    parts = grid.send_cohort(weights(), [Block((1,)), Block((2,)), Block((3,))], timeout=0.2)
    assert [len(p) for p in parts] == [1, 0, 0]
    assert asked == [1]


@ray_test
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_returns_the_inline_bits(on_ray, workers):
    app = cohort_app(raises_for(21))
    grid, reference = on_ray(app, workers), inline(app)
    assert grid.offers_cohorts
    assert grid.send_cohort(weights(), []) == []
    for blocks in (BLOCKS, [Block(tuple(range(i, i + 4)), (4.0, 1.0)) for i in range(0, 36, 4)]):
        for size in (5, 3_500, 1_500_000, 5):  # in the call, and by the object store
            expected = told(reference.send_cohort(weights(size), blocks))
            assert told(grid.send_cohort(weights(size), blocks)) == expected


def dies_in(path, client: int, times: int = 1):
    """Return a behaviour: a client that kills its worker, the first few times that it runs."""

    def behave(asked, message):
        if asked == client:
            for attempt in range(times):
                try:
                    os.close(os.open(path / str(attempt), os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)

    return behave


@ray_test
@pytest.mark.parametrize(("times", "split"), [(1, False), (2, True)])
def test_a_block_whose_worker_is_killed_runs_again(on_ray, tmp_path, times, split):
    grid = on_ray(cohort_app(dies_in(tmp_path, 21, times)))
    parts = grid.send_cohort(weights(), BLOCKS)
    assert len(list(tmp_path.iterdir())) == times
    expected = told(inline(cohort_app()).send_cohort(weights(), BLOCKS))
    assert told(parts)[:2] == expected[:2]
    if not split:
        assert told(parts) == expected
        return
    total = np.zeros(5)
    for part in parts[2]:
        total += part.content["sum"]["0"].numpy()
    assert hashlib.sha256(total.tobytes()).hexdigest() == expected[2][0][2]
    assert [part.content["about"]["id"] for part in parts[2]] == [f"1-{i}" for i in range(5, 10)]


@ray_test
def test_a_client_that_kills_every_worker_is_given_up_and_harms_nobody(on_ray, tmp_path):
    grid = on_ray(cohort_app(dies_in(tmp_path, 22, 9)))
    parts = grid.send_cohort(weights(), BLOCKS)
    assert [len(p) for p in parts] == [1, 1, 5]
    assert [reply.has_error() for reply in parts[2]] == [False, False, True, False, False]
    assert "its worker died 3 times" in parts[2][2].error.reason
    assert len(list(tmp_path.iterdir())) == 3


@ray_test
def test_a_worker_killed_in_every_round_changes_nothing(on_ray):
    import ray

    grid, reference = on_ray(cohort_app()), inline(cohort_app())
    for turn in range(3):
        crew = grid._executor._crew
        while not crew.handles[turn % 2].at_work:
            crew.step(time.monotonic() + 30)
        ray.kill(crew.handles[turn % 2].actor)
        expected = told(reference.send_cohort(weights(), BLOCKS))
        assert told(grid.send_cohort(weights(), BLOCKS)) == expected


@ray_test
def test_a_block_that_hangs_is_missed_and_not_running_afterwards(on_ray, tmp_path):
    late = tmp_path / "late"

    def hang(client, message):
        time.sleep(0.05)  # so that blocks are known not to be short, and travel one by one
        if client == 0 and "hang" in message.content:
            time.sleep(6)
            late.touch()

    grid = on_ray(cohort_app(hang))
    for _ in range(2):
        assert all(grid.send_cohort(weights(), BLOCKS))
    content = RecordDict({**weights(), "hang": ConfigRecord()})
    alone = [Block((0,), (100.0,)), *(b for b in BLOCKS if 0 not in b.clients)]
    parts = grid.send_cohort(content, alone, timeout=3.0)
    assert [len(p) for p in parts] == [0, 1, 1]
    assert all(grid.send_cohort(weights(), BLOCKS))  # on the worker that is left, and a new one
    time.sleep(5)
    assert not late.exists()


@ray_test
def test_whoever_takes_replies_may_raise_and_go_on(on_ray):
    grid, reference = on_ray(cohort_app()), inline(cohort_app())
    taken = []

    def refuse(place, parts):
        taken.append(place)
        raise KeyError("not mine")

    with pytest.raises(KeyError):
        grid.send_cohort(weights(), BLOCKS, each=refuse)
    reference.send_cohort(weights(), BLOCKS)
    again = told(grid.send_cohort(weights(), BLOCKS))
    assert again == told(reference.send_cohort(weights(), BLOCKS))
    assert len(taken) == 1


@ray_test
def test_messages_and_cohorts_share_the_workers(on_ray):
    app = cohort_app()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({"a": ConfigRecord({"node": context.node_id})}), reply_to=message)

    grid = on_ray(app)
    ids = list(grid.push_messages([Message(RecordDict(), node, "query") for node in range(1, 9)]))
    assert all(grid.send_cohort(weights(), BLOCKS))
    pulled = []
    while len(pulled) < len(ids):
        pulled += grid.pull_messages(ids)
    assert sorted(m.content["a"]["node"] for m in pulled) == list(range(1, 9))


@ray_test
def test_a_thousand_rounds_leave_nothing_behind(on_ray):
    grid = on_ray(cohort_app())
    executor = grid._executor
    for _ in range(1_000):
        grid.send_cohort(weights(), BLOCKS)
    crew = executor._crew
    assert not crew.queue
    assert not any(handle.loads for handle in crew.handles)
    assert not executor._outcomes
    assert len(executor._model._blocks) <= 128
    assert not any((grid._order, grid._waiting, grid._replies, grid.client_states))
    assert len(executor.usage.busy_seconds) == 2
    assert 0 <= grid.usage.idle_fraction <= 1


def test_a_million_nodes_cost_nothing():
    grid = SimulationGrid(InlineExecutor(cohort_app()), nodes=1_000_000)
    assert sys.getsizeof(grid.get_node_ids()) < 100
    ((reply,),) = grid.send_cohort(weights(), [Block((999_999, 4))])
    assert list(reply.content["about"]["clients"]) == [999_999, 4]
    held = sum(sys.getsizeof(value) for value in vars(grid).values())
    assert held < 5_000


@ray_test
def test_a_driver_that_is_terminated_leaves_no_process_behind():
    script = """
import os, sys, time
from flwr.clientapp import ClientApp
from fedsim.engine import AppSource, open_executor
executor = open_executor("ray", AppSource.of(ClientApp()), workers=1)
executor.wait_ready()
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
time.sleep(60)
"""
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    address = driver.stdout.readline().strip()
    driver.terminate()
    driver.wait(20)
    driver.stdout.close()
    assert ":" in address
    until = time.monotonic() + 20
    while (left := processes_of(address)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []


def processes_of(address: str) -> list[str]:
    """Return the commands of the processes that were started with an address."""
    found = subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if address in line]


def test_the_cost_model_learns_what_blocks_cost_and_ignores_what_was_compiled():
    model, rng = CostModel(), np.random.default_rng(0)
    assert model.predict([(1.0, 2.0)]) is None
    for turn in range(60):
        steps, examples = rng.uniform(1, 100), rng.uniform(10, 1_000)
        seconds = 0.002 + 1e-4 * steps + 1e-6 * examples
        model.observe((steps, examples), seconds if turn else 5.0)
    (predicted,) = model.predict([(50.0, 500.0)])
    assert predicted == pytest.approx(0.0075, rel=0.05)
    (more,) = model.predict([(5_000.0, 500.0)])
    assert more > 10 * predicted
    assert model.predict([(1.0,)]) is None
    model.observe((1.0,), 3.0)
    assert model.predict([(1.0,)]) == [pytest.approx(3.0)]


def test_predictions_are_never_negative():
    model = CostModel()
    for size, seconds in ((1.0, 0.9), (2.0, 0.8), (3.0, 0.7)):  # larger and faster: noise
        model.observe((size,), seconds)
    assert min(model.predict([(0.0,), (100.0,)])) > 0


@pytest.mark.parametrize("in_seconds", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_a_plan_has_every_block_once(in_seconds, workers):
    rng = np.random.default_rng(workers)
    for scale in (1e-5, 1e-2, 10.0, 0.0):
        costs = [float(c) for c in scale * rng.lognormal(size=50)]
        units = plan(costs, workers, in_seconds=in_seconds)
        assert sorted(i for unit in units for i in unit) == list(range(50))
        assert all(units)
    assert plan([], workers, in_seconds=in_seconds) == []


def test_a_short_round_is_one_even_call_for_each_worker():
    assert plan([0.001, 0.003, 0.002, 0.002], 2, in_seconds=True) == [[1, 0], [2, 3]]
    assert plan([0.001], 4, in_seconds=True) == [[0]]


def finishes(units: list[list[int]], costs: list[float], workers: int) -> float:
    """Return when the last worker is done, if each takes the next unit as soon as it is free."""
    free = [0.0] * workers
    for unit in units:
        free[free.index(min(free))] += sum(costs[i] for i in unit)
    return max(free)


def test_the_workers_finish_together_even_if_predictions_are_off_by_a_third():
    rng = np.random.default_rng(0)
    for workers in (2, 8):
        predicted = [float(c) for c in 0.01 * rng.lognormal(sigma=1.0, size=64 * workers)]
        actual = [c * float(rng.uniform(0.67, 1.33)) for c in predicted]
        units = plan(predicted, workers, in_seconds=True)
        assert len(units) < len(predicted)
        assert finishes(units, actual, workers) < 1.05 * sum(actual) / workers


@ray_test
def test_what_waits_behind_a_client_that_hangs_is_taken_over(on_ray):
    """Also if the worker that hangs dies afterwards."""
    import ray

    def work(client, message):
        seconds = 5.0 if "hang" in message.content else 0.2
        time.sleep(0.05 if client else seconds)

    came: dict[int, float] = {}
    # The first one takes so long that it travels alone.
    singles = [Block((client,), (1.0 if client else 4.0,)) for client in range(8)]
    grid, reference = on_ray(cohort_app(work)), inline(cohort_app())
    for _ in range(2):  # so that it is known how long they take, and they are sent ahead
        grid.send_cohort(weights(), singles)
        reference.send_cohort(weights(), singles)
    answers, began = {}, time.monotonic()

    def take(place, parts):
        came[place] = time.monotonic() - began
        answers[place] = parts
        if len(came) == len(singles) - 1:  # the one that hangs is left
            (busy,) = [h for h in grid._executor._crew.handles if h.loads]
            ray.kill(busy.actor)

    content = RecordDict({**weights(), "hang": ConfigRecord()})
    grid.send_cohort(content, singles, each=take)
    assert max(moment for place, moment in came.items() if place) < 3
    expected = told(reference.send_cohort(weights(), singles))
    assert told([answers[place] for place in range(8)]) == expected
    assert told(grid.send_cohort(weights(), BLOCKS)) == told(
        reference.send_cohort(weights(), BLOCKS)
    )
