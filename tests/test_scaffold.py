"""SCAFFOLD: its two steps by hand, what they are for, and the client's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, MessageType
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim import flower, parts
from fedsim.algorithms.scaffold import client_control, server_step
from fedsim.config import Experiment
from fedsim.engine import InlineExecutor, SimulationGrid
from fedsim.randomness import stream
from fedsim.training import load_arrays, read_arrays, train_locally

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Train on one thread, as clients do: more only wait for each other on networks so small."""
    torch.set_num_threads(1)


def one(value: float) -> dict[str, np.ndarray]:
    return {"w": np.array([value], np.float32)}


def test_client_control_by_hand() -> None:
    # c_i - c + (x - y) / (K lr) = 0.5 - 0.25 + (3 - 2) / (4 * 0.5)
    new = client_control(one(3), one(2), one(0.25), one(0.5), steps=4, learning_rate=0.5)
    assert new["w"].tolist() == [0.75]
    assert new["w"].dtype == np.float32


def test_server_step_by_hand() -> None:
    # Two of N = 4 clients: x + 0.5 * mean(1, 3), c + (2/4) * mean(2, 6)
    model, control = server_step(
        one(1), one(0.5), [one(2), one(4)], [one(2), one(6)], clients=4, learning_rate=0.5
    )
    assert model["w"].tolist() == [2.0]
    assert control["w"].tolist() == [2.5]
    assert model["w"].dtype == control["w"].dtype == np.float32


def test_a_round_by_hand() -> None:
    """One client with loss w^2 / 2, whose gradient is w, and two steps of 0.5 from x = 4."""
    x, c, c_i, rate = 4.0, 1.0, -1.0, 0.5
    y = x
    for _ in range(2):
        y -= rate * (y + c - c_i)
    assert y == -0.5  # 4 -> 4 - 0.5 * 6 = 1 -> 1 - 0.5 * 3
    new = client_control(one(x), one(y), one(c), one(c_i), steps=2, learning_rate=rate)
    # Option II is the mean of the plain gradients along the way: (4 + 1) / 2.
    assert new["w"].tolist() == [2.5]
    change = {"w": new["w"] - np.float32(c_i)}
    model, control = server_step(one(x), one(c), [one(y)], [change], clients=1, learning_rate=1.0)
    assert model["w"].tolist() == [-0.5]
    assert control["w"].tolist() == [c + 3.5]


def test_without_controls_the_server_takes_the_plain_mean() -> None:
    draw = stream(0, "models")
    x, *ys = ({"w": draw.standard_normal((3, 2), np.float32)} for _ in range(6))
    zero = {"w": np.zeros((3, 2), np.float32)}
    model, control = server_step(x, zero, ys, [zero] * 5, clients=5, learning_rate=1.0)
    mean = np.mean([y["w"].astype(np.float64) for y in ys], axis=0)
    np.testing.assert_allclose(model["w"], mean, rtol=1e-6)
    assert not control["w"].any()


# Two clients that disagree: unlike inputs, and one hardly ever sees the second class.
CLIENTS = (
    (torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [1.0, -2.0]]), torch.tensor([0, 0, 0, 1])),
    (torch.tensor([[-1.0, 2.0], [0.5, 0.0], [3.0, 1.0], [1.0, 1.0]]), torch.tensor([1, 1, 1, 0])),
)
DECAY, RATE, STEPS = 0.1, 0.3, 10


def locally(x: Arrays, client: int, correction: Arrays) -> dict[str, np.ndarray]:
    """Return what ten full-batch steps of one client make of a model."""
    model = load_arrays(nn.Linear(2, 2, bias=False).double(), x)
    features, labels = CLIENTS[client]
    train_locally(
        model,
        features.double(),
        labels,
        epochs=1,
        steps=STEPS,
        batch_size=0,
        learning_rate=RATE,
        momentum=0.0,
        weight_decay=DECAY,
        clip_norm=0.0,
        proximal_mu=0.0,
        rng=stream(0, "batches"),
        correction={name: torch.from_numpy(value) for name, value in correction.items()},
    )
    return read_arrays(model)


def slope(arrays: Arrays) -> float:
    """Return the norm of the gradient of what the clients minimise together."""
    w = torch.tensor(arrays["weight"], requires_grad=True)
    losses = [cross_entropy(x.double() @ w.T, y) for x, y in CLIENTS]
    (sum(losses) / len(losses) + DECAY / 2 * (w**2).sum()).backward()
    return float(w.grad.norm())


def test_converges_where_averaging_is_biased() -> None:
    zero = {"weight": np.zeros((2, 2))}
    averaged, model, control, own = zero, zero, zero, [zero, zero]
    for _ in range(50):
        ys = [locally(averaged, i, zero) for i in range(2)]
        averaged = {"weight": (ys[0]["weight"] + ys[1]["weight"]) / 2}

        corrections = [{"weight": control["weight"] - c["weight"]} for c in own]
        ys = [locally(model, i, correction) for i, correction in enumerate(corrections)]
        new = [
            client_control(model, y, control, c, steps=STEPS, learning_rate=RATE)
            for y, c in zip(ys, own, strict=True)
        ]
        changes = [{"weight": n["weight"] - c["weight"]} for n, c in zip(new, own, strict=True)]
        model, control = server_step(model, control, ys, changes, clients=2, learning_rate=1.0)
        own = new
    assert slope(averaged) > 0.1
    assert slope(model) < 1e-7


def expected_reply(
    experiment: Experiment, asked: flower.Instruction, client: int, own: Arrays
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the model and the control variate that a client should come to."""
    x, y = (
        torch.from_numpy(part)
        for part in parts.dataset(experiment).train(parts.partition(experiment).indices(client))
    )
    model = load_arrays(parts.initial_model(experiment), asked.arrays)
    train = experiment.train
    result = train_locally(
        model,
        x,
        y,
        epochs=train.epochs,
        steps=train.steps,
        batch_size=train.batch_size,
        learning_rate=asked.learning_rate,
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=0.0,
        proximal_mu=0.0,
        rng=stream(experiment.experiment.seed, "batches", round=asked.round, client=client),
        correction={k: torch.from_numpy(c - own[k]) for k, c in asked.control.items()},
    )
    scale = result.steps * asked.learning_rate
    arrays = read_arrays(model)
    control = {
        k: own[k] - asked.control[k] + (asked.arrays[k].astype(float) - y) / scale
        for k, y in arrays.items()
    }
    return arrays, control


def test_the_client_remembers_its_control(
    make_experiment: Callable[..., Experiment], client_app: ClientApp
) -> None:
    experiment = make_experiment(server={"strategy": "scaffold"})
    grid = SimulationGrid(InlineExecutor(client_app), nodes=8, run_config=experiment.flat())
    x = read_arrays(parts.initial_model(experiment))
    own: Arrays = {k: np.zeros_like(v) for k, v in x.items()}
    control: Arrays = {k: np.zeros_like(v) for k, v in x.items()}
    for round, rate in ((1, 0.1), (2, 0.05), (4, 0.05)):
        asked = flower.Instruction(round=round, arrays=x, learning_rate=rate, control=control)
        message = Message(flower.encode_instruction(asked), 6, MessageType.TRAIN)
        (reply,) = grid.send_and_receive([message])
        got = flower.decode_arrays(reply.content["arrays"])
        change = flower.decode_arrays(reply.content["control"])
        arrays, new = expected_reply(experiment, asked, 5, own)
        kept = flower.decode_arrays(grid.client_states[6]["control"])
        for name in x:
            assert got[name].tobytes() == arrays[name].tobytes()
            np.testing.assert_allclose(kept[name], new[name], rtol=1e-5, atol=1e-6)
            assert change[name].tobytes() == (kept[name] - own[name]).tobytes()
        own, x = kept, arrays
        control = {k: c + 0.1 for k, c in kept.items()}
    assert list(grid.client_states) == [6]


def test_both_directions_carry_twice_the_bytes(
    make_experiment: Callable[..., Experiment], run_inline: Callable[..., Any]
) -> None:
    run = run_inline(make_experiment(server={"strategy": "scaffold"}, experiment={"rounds": 1}))
    model_bytes = sum(array.nbytes for array in run.arrays().values())
    assert run.rounds.uplink_dense_bytes.tolist() == [4 * 2 * model_bytes]
    assert run.rounds.downlink_dense_bytes.tolist() == [4 * 2 * model_bytes]


def test_a_control_that_diverged_is_not_kept(
    make_experiment: Callable[..., Experiment], client_app: ClientApp
) -> None:
    experiment = make_experiment(server={"strategy": "scaffold"})
    grid = SimulationGrid(InlineExecutor(client_app), nodes=8, run_config=experiment.flat())
    x = read_arrays(parts.initial_model(experiment))
    zero = {k: np.zeros_like(v) for k, v in x.items()}
    asked = flower.Instruction(round=1, arrays=x, learning_rate=1e12, control=zero)
    message = Message(flower.encode_instruction(asked), 1, MessageType.TRAIN)
    (reply,) = grid.send_and_receive([message])
    assert reply.has_content()
    assert not np.isfinite(reply.content["arrays"]["dense1.weight"].numpy()).all()
    assert grid.client_states == {}
