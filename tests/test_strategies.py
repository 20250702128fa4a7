"""Every strategy against its paper's formula, and what a round relies on in all of them.

The formulas are written on the model as one vector: w is the global model, the rows of ws are
the clients' models, n their examples and F their losses at w.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, MessageType, MetricRecord, RecordDict

from fedsim import parts
from fedsim.algorithms.sums import block_sum
from fedsim.config import Experiment
from fedsim.engine.apps import assume_identity
from fedsim.errors import RunFailed
from fedsim.federation.replies import Judged, judge
from fedsim.federation.strategy import (
    AGGREGATORS,
    FLOWER_STRATEGIES,
    Aggregator,
    FlowerAggregator,
    held,
    make_aggregator,
)
from fedsim.flower import (
    ARRAYS,
    METRICS,
    WEIGHT,
    encode_instruction,
    encode_reply,
    encode_sent,
)
from fedsim.measure.evaluation import evaluate
from fedsim.randomness import stream

Vector = np.ndarray
Memory = dict[str, Any]

# A matrix, a bias and a scalar: Flower's strategies have tripped over each.
SHAPES = {"w": (3, 2), "b": (2,), "s": ()}
SIZE = 9
CLIENTS = 20  # of the federation
EXAMPLES = np.array([10, 25, 40, 5, 60, 33, 17])
LOSSES = np.array([2.0, 0.5, 1.0, 3.0, 0.1, 1.5, 0.7])
OUTLIER = 4  # of the cohort: the client that robust strategies have to withstand


def fedavg(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """McMahan et al. 2017, algorithm 1."""
    return n @ ws / n.sum()


def fedavgm(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """Hsu et al. 2019, section 4.3, with server rate 0.5 and momentum 0.7."""
    m["v"] = 0.7 * m.get("v", 0.0) + (w - fedavg(w, ws, n, m))
    return w - 0.5 * m["v"]


def moments(w: Vector, ws: Vector, n: Vector, m: Memory, beta_1: float) -> tuple[Vector, Vector]:
    """Return the pseudo-gradient and its first moment (Reddi et al. 2021, algorithm 2)."""
    delta = fedavg(w, ws, n, m) - w
    m["m"] = beta_1 * m.get("m", 0.0) + (1 - beta_1) * delta
    return delta, m["m"]


def fedadam(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """Reddi et al. 2021, algorithm 2, with the bias correction of Kingma and Ba 2015."""
    delta, first = moments(w, ws, n, m, 0.8)
    m["v"] = 0.95 * m.get("v", 0.0) + 0.05 * delta**2
    m["t"] = m.get("t", 0) + 1
    rate = 0.05 * np.sqrt(1 - 0.95 ** m["t"]) / (1 - 0.8 ** m["t"])
    return w + rate * first / (np.sqrt(m["v"]) + 0.01)


def fedyogi(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """Reddi et al. 2021, algorithm 2; v starts at 0, as in Flower."""
    delta, first = moments(w, ws, n, m, 0.8)
    v = m.get("v", np.zeros(SIZE))
    m["v"] = v - 0.05 * delta**2 * np.sign(v - delta**2)
    return w + 0.05 * first / (np.sqrt(m["v"]) + 0.01)


def fedadagrad(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """Reddi et al. 2021, algorithm 2 with beta_1 = 0; v starts at 0, as in Flower."""
    delta, first = moments(w, ws, n, m, 0.0)
    m["v"] = m.get("v", 0.0) + delta**2
    return w + 0.05 * first / (np.sqrt(m["v"]) + 0.01)


def fedmedian(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """Yin et al. 2018, option I: the middle of seven, coordinate by coordinate."""
    return np.sort(ws, axis=0)[3]


def fedtrimmedavg(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """Yin et al. 2018, option II: of seven, 0.3 x 7 = 2.1, so 2 are cut from each end."""
    return np.sort(ws, axis=0)[2:-2].mean(axis=0)


def krum_scores(ws: Vector, hostile: int) -> Vector:
    """Sum the squared distances to the n - f - 2 nearest others (Blanchard et al. 2017)."""
    squared = ((ws[:, None] - ws[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    return np.sort(squared, axis=1)[:, : len(ws) - hostile - 2].sum(axis=1)


def krum(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """The model nearest to its neighbours, with f = 2."""
    return ws[np.argmin(krum_scores(ws, 2))]


def multikrum(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """The plain mean of the three best by Krum's score, with f = 2."""
    return ws[np.argsort(krum_scores(ws, 2))[:3]].mean(axis=0)


def bulyan(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """El Mhamdi et al. 2018, algorithm 2: f = 1, n = 7, theta = n - 2f = 5, beta = theta - 2f = 3.

    Per coordinate: the mean of the three values nearest to the median of the five selected. These
    are the five best by one scoring, as in Flower; the paper scores anew after each choice.
    """
    chosen = ws[np.argsort(krum_scores(ws, 1))[:5]]
    distance = np.abs(chosen - np.median(chosen, axis=0))
    nearest = np.argsort(distance, axis=0)[:3]
    return np.take_along_axis(chosen, nearest, axis=0).mean(axis=0)


def qfedavg(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """Li et al. 2020 (fair resource allocation), algorithm 2: q = 0.5, L = 1 / 0.1."""
    q, rate = 0.5, 0.1
    step = (w - ws) / rate
    delta = (LOSSES**q)[:, None] * step
    h = q * LOSSES ** (q - 1) * (step**2).sum(axis=1) + LOSSES**q / rate
    return w - delta.sum(axis=0) / h.sum()


def scaffold(w: Vector, ws: Vector, n: Vector, m: Memory) -> Vector:
    """Karimireddy et al. 2020, algorithm 1, with server rate 0.5; the clients weigh alike."""
    m["c"] = m.get("c", 0.0) + control_changes(ws).sum(axis=0) / CLIENTS
    return w + 0.5 * (ws - w).mean(axis=0)


def control_changes(ws: Vector) -> Vector:
    """Return what the clients of the test say that their control variates changed by."""
    return (ws / 3).astype(np.float32).astype(np.float64)


ADAPTIVE = {"learning_rate": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A strategy's row: its formula, the settings of that, and what makes it learn digits."""

    formula: Callable[[Vector, Vector, Vector, Memory], Vector]
    server: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    learns: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "fedavg": Case(formula=fedavg),
    # FedProx differs at the clients alone (Li et al. 2020).
    "fedprox": Case(formula=fedavg, train={"proximal_mu": 0.1}),
    "fedavgm": Case(formula=fedavgm, server={"learning_rate": 0.5, "momentum": 0.7}),
    "fedadam": Case(formula=fedadam, server=ADAPTIVE),
    "fedyogi": Case(formula=fedyogi, server=ADAPTIVE, learns={"learning_rate": 0.05}),
    "fedadagrad": Case(formula=fedadagrad, server=ADAPTIVE),
    "fedmedian": Case(formula=fedmedian),
    "fedtrimmedavg": Case(formula=fedtrimmedavg, server={"trim_fraction": 0.3}),
    "krum": Case(formula=krum, server={"byzantine_clients": 2}),
    "multikrum": Case(formula=multikrum, server={"byzantine_clients": 2, "selected_clients": 3}),
    "bulyan": Case(formula=bulyan, server={"byzantine_clients": 1}),
    "qfedavg": Case(formula=qfedavg, server={"q": 0.5}, train={"learning_rate": 0.1}),
    "scaffold": Case(formula=scaffold, server={"learning_rate": 0.5}),
}


def test_every_strategy_has_a_row() -> None:
    assert set(CASES) == set(AGGREGATORS)
    assert set(AGGREGATORS) == {*FLOWER_STRATEGIES, "scaffold"}


@pytest.fixture(autouse=True)
def identity() -> None:
    """Let this process create Flower messages."""
    assume_identity(1)


@pytest.fixture
def make(make_experiment: Callable[..., Experiment]) -> Callable[..., Aggregator]:
    """Return a function from a strategy's name to an aggregator with the settings of its row."""
    usual = named(np.zeros(SIZE))

    def make_one(name: str, arrays: dict[str, np.ndarray] = usual) -> Aggregator:
        case = CASES[name]
        experiment = make_experiment(
            data={"clients": CLIENTS},
            server={"strategy": name, "clients_per_round": len(EXAMPLES), **case.server},
            train=case.train,
        )
        return make_aggregator(experiment, arrays, clients=CLIENTS)

    return make_one


def named(vector: Vector, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Cut a vector into the model's arrays."""
    sizes = [int(np.prod(shape)) for shape in SHAPES.values()]
    cut = np.split(vector.astype(dtype), np.cumsum(sizes)[:-1])
    return {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, cut, strict=True)}


def flat(arrays: dict[str, np.ndarray]) -> Vector:
    return np.concatenate([arrays[name].ravel() for name in SHAPES]).astype(np.float64)


def models(round: int) -> Vector:
    """Return what the clients of a round came to, in float32's values: one is far off."""
    ws = 1.0 + 0.3 * stream(round, "models").standard_normal((len(EXAMPLES), SIZE))
    ws[OUTLIER] += 20.0
    return ws.astype(np.float32).astype(np.float64)


def ask_and_judge(
    aggregator: Aggregator, round: int, arrays: dict[str, np.ndarray], order: Sequence[int]
) -> Judged:
    """Ask a cohort, and judge its answers, which come in an order of their own.

    Arrays that are not of ``SHAPES`` come back as they were sent.
    """
    same = {name: array for name, array in arrays.items() if name not in SHAPES}
    cohort = range(3, 3 + len(EXAMPLES))
    instruction = aggregator.instruct(round, arrays, 0.1, [c + 1 for c in cohort])
    messages = {
        c: Message(encode_instruction(instruction), c + 1, MessageType.TRAIN) for c in cohort
    }
    for c, message in messages.items():
        message.metadata.__dict__["_message_id"] = f"{round}-{c}"
    ws = models(round)
    replies = [
        encode_reply(
            encode_sent({**named(ws[i]), **same}, {**named(control_changes(ws)[i]), **same}),
            {
                "examples": int(EXAMPLES[i]),
                "steps": 1,
                "cpu_seconds": 0.0,
                "wall_seconds": 0.0,
                "loss_first_step": 1.0,
                "loss_last_step": 1.0,
                "initial_loss": float(LOSSES[i]),
            },
            {},
            to=messages[cohort[i]],
        )
        for i in order
    ]
    return judge(instruction, asked=messages, replies=replies, timeout_seconds=1)


def step(
    aggregator: Aggregator,
    round: int,
    arrays: dict[str, np.ndarray],
    order: Sequence[int] = range(len(EXAMPLES)),
) -> dict[str, np.ndarray]:
    """Return the model after a round."""
    judged = ask_and_judge(aggregator, round, arrays, order)
    assert len(judged.updates) == len(EXAMPLES)
    return aggregator.aggregate(round, arrays, judged.updates)


def bits(arrays: dict[str, np.ndarray]) -> dict[str, tuple[Any, ...]]:
    return {k: (a.dtype.str, a.shape, a.tobytes()) for k, a in arrays.items()}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_three_rounds_follow_the_formula(name: str, make: Callable[..., Aggregator]) -> None:
    aggregator, memory = make(name), Memory()
    arrays = named(np.linspace(-1, 1, SIZE))
    for round in (1, 2, 3):
        expected = CASES[name].formula(flat(arrays), models(round), EXAMPLES, memory)
        arrays = step(aggregator, round, arrays)
        # Summed in float64 and rounded once, so the last bit is right too.
        assert flat(arrays).tolist() == expected.astype(np.float32).tolist()
        assert list(arrays) == list(SHAPES)
        for key, array in arrays.items():
            assert array.dtype == np.float32
            assert array.shape == SHAPES[key]


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_a_mean_needs_no_detour(name: str, make: Callable[..., Aggregator]) -> None:
    """What Flower's own class makes of the mean is the mean, to the bit."""
    arrays = {**named(np.zeros(SIZE)), "count": np.array(3)}
    clients = zip(models(1), EXAMPLES, strict=True)
    total = block_sum(({**named(w), "count": np.array(7)}, int(n)) for w, n in clients)
    aggregator = make(name, arrays)
    assert isinstance(aggregator, FlowerAggregator)
    metrics = MetricRecord({WEIGHT: total.weight})
    flowers = aggregator._ask_strategy(
        1, arrays, [RecordDict({ARRAYS: held(total.mean()), METRICS: metrics})]
    )
    assert aggregator.aggregate_sum is not None
    assert bits(aggregator.aggregate_sum(1, arrays, total)) == bits(flowers)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_order_of_replies_changes_no_bit(name: str, make: Callable[..., Aggregator]) -> None:
    results = []
    for order in (range(7), range(6, -1, -1), (3, 0, 6, 2, 5, 1, 4)):
        aggregator = make(name)
        arrays = step(aggregator, 1, named(np.linspace(-1, 1, SIZE)), order)
        results.append((bits(step(aggregator, 2, arrays, order)), bits(aggregator.state())))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_restored_strategy_goes_on_with_the_same_bits(
    name: str, make: Callable[..., Aggregator]
) -> None:
    straight, arrays = make(name), named(np.linspace(-1, 1, SIZE))
    for round in (1, 2):
        arrays = step(straight, round, arrays)
    kept = {k: a.copy() for k, a in straight.state().items()}
    after_two = {k: a.copy() for k, a in arrays.items()}
    for round in (3, 4):
        arrays = step(straight, round, arrays)

    restored = make(name)
    restored.restore(kept)
    resumed = after_two
    for round in (3, 4):
        resumed = step(restored, round, resumed)
    assert bits(resumed) == bits(arrays)
    assert bits(restored.state()) == bits(straight.state())


REMEMBERS = {"fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold"}  # from round to round


@pytest.mark.parametrize("name", AGGREGATORS)
def test_what_is_remembered(name: str, make: Callable[..., Aggregator]) -> None:
    """A strategy with a memory that is not in its state would not survive a resume."""
    aggregator, arrays = make(name), named(np.linspace(-1, 1, SIZE))
    arrays = step(aggregator, 1, arrays)
    assert bool(aggregator.state()) == (name in REMEMBERS)
    fresh = make(name)
    seen = [what_a_round_shows(each, 2, arrays) for each in (aggregator, fresh)]
    assert (seen[0] != seen[1]) == (name in REMEMBERS)


def what_a_round_shows(
    aggregator: Aggregator, round: int, arrays: dict[str, np.ndarray]
) -> tuple[Any, ...]:
    """Return the bits of the next model, and of the control variate that clients are sent."""
    control = aggregator.instruct(round, arrays, 0.1, [1]).control or {}
    return bits(dict(control)), bits(step(aggregator, round, arrays))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_restoring_nothing_is_a_fresh_start(name: str, make: Callable[..., Aggregator]) -> None:
    fresh, restored, arrays = make(name), make(name), named(np.linspace(-1, 1, SIZE))
    restored.restore(fresh.state())
    assert bits(step(restored, 1, arrays)) == bits(step(fresh, 1, arrays))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_neither_the_old_model_nor_the_updates_are_changed(
    name: str, make: Callable[..., Aggregator]
) -> None:
    aggregator, arrays = make(name), named(np.linspace(-1, 1, SIZE))
    before = bits(arrays)
    judged = ask_and_judge(aggregator, 1, arrays, range(7))
    received = [bits(dict(update.arrays)) for update in judged.updates]
    aggregator.aggregate(1, arrays, judged.updates)
    assert bits(arrays) == before
    assert [bits(dict(update.arrays)) for update in judged.updates] == received


@pytest.mark.parametrize("name", ["krum", "multikrum", "bulyan", "fedmedian", "fedtrimmedavg"])
def test_an_outlier_is_withstood(name: str, make: Callable[..., Aggregator]) -> None:
    honest = np.delete(models(1), OUTLIER, axis=0)
    result = flat(step(make(name), 1, named(np.zeros(SIZE))))
    assert np.all(result >= honest.min(axis=0) - 1e-6)
    assert np.all(result <= honest.max(axis=0) + 1e-6)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_no_strategy_collects_garbage(
    name: str, make: Callable[..., Aggregator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower frees records with a full collection for each client, a fifth of a second a time."""
    collections: list[object] = []
    monkeypatch.setattr(gc, "collect", lambda *generation: collections.append(generation))
    step(make(name), 1, named(np.zeros(SIZE)))
    assert collections == []


# (strategy, settings, updates that are too few, what is said)
TOO_FEW = [
    ("krum", {"byzantine_clients": 1}, 4, "krum needs 5 updates"),
    ("multikrum", {"byzantine_clients": 1}, 4, "multikrum needs 5 updates"),
    # Five selected of five would include the hostile one.
    ("multikrum", {"byzantine_clients": 1, "selected_clients": 5}, 5, "multikrum needs 6 updates"),
    ("bulyan", {"byzantine_clients": 1}, 6, "bulyan needs 7 updates"),
]


@pytest.mark.parametrize(("name", "server", "updates", "text"), TOO_FEW)
def test_too_few_updates_for_the_promise(
    name: str,
    server: dict[str, Any],
    updates: int,
    text: str,
    make_experiment: Callable[..., Experiment],
) -> None:
    experiment = make_experiment(server={"strategy": name, "clients_per_round": 7, **server})
    arrays = named(np.zeros(SIZE))
    aggregator = make_aggregator(experiment, arrays, clients=8)
    judged = ask_and_judge(aggregator, 2, arrays, range(updates))
    with pytest.raises(RunFailed, match=rf"round 2: {text} .* {updates} could be used"):
        aggregator.aggregate(2, arrays, judged.updates)
    judged = ask_and_judge(aggregator, 2, arrays, range(7))
    assert aggregator.aggregate(2, arrays, judged.updates).keys() == arrays.keys()


@pytest.mark.parametrize("name", AGGREGATORS)
def test_whole_number_buffers_stay_whole(name: str, make: Callable[..., Aggregator]) -> None:
    """A counter that all clients agree on, such as a batch norm's, comes through."""
    arrays = {**named(np.linspace(-1, 1, SIZE)), "n": np.arange(100)}
    aggregator = make(name, arrays)
    for round in (1, 2):
        arrays = step(aggregator, round, arrays)
        assert arrays["n"].dtype == np.int64
        assert arrays["n"].tolist() == list(range(100))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_strategy_learns(
    name: str,
    make_experiment: Callable[..., Experiment],
    run_inline: Callable[..., Any],
) -> None:
    case = CASES[name]
    experiment = make_experiment(
        experiment={"rounds": 5},
        data={"partition": "dirichlet", "alpha": 1.0},
        model={"width": 16},
        train={"batch_size": 10, **case.train},
        server={"strategy": name, "clients_per_round": 7, **case.learns},
    )
    x, y = (torch.from_numpy(part) for part in parts.dataset(experiment).test())
    before, _ = evaluate(parts.initial_model(experiment), x, y)
    run = run_inline(experiment)
    assert run.status == "completed"
    assert run.test_accuracy > before + 0.2
