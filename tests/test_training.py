"""Local training against torch's optimiser, the formulas of its docstring, and hand calculation."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.randomness import stream
from fedsim.training import (
    SCHEDULES,
    LocalResult,
    learning_rate,
    load_arrays,
    mean_loss,
    read_arrays,
    train_locally,
)
from fedsim.training.local import batches

PLAIN: dict[str, Any] = {
    "epochs": 2,
    "steps": 0,
    "batch_size": 4,
    "learning_rate": 0.1,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "proximal_mu": 0.0,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Train on one thread, as clients do: more only wait for each other on networks so small."""
    torch.set_num_threads(1)


def network(seed: int = 1) -> nn.Sequential:
    """Return a small smooth network with weights of its own."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    draw = stream(seed, "network")
    arrays = {k: draw.standard_normal(v.shape, np.float32) for k, v in model.state_dict().items()}
    load_arrays(model, arrays)
    return model


def examples(count: int = 10) -> tuple[Tensor, Tensor]:
    draw = stream(count, "examples")
    x = torch.from_numpy(draw.standard_normal((count, 5), np.float32))
    return x, torch.from_numpy(draw.integers(0, 3, count))


def trained(model: nn.Module, count: int = 10, **settings: Any) -> tuple[nn.Module, LocalResult]:
    """Train a copy of the model and return it."""
    model = copy.deepcopy(model)
    rng = settings.pop("rng", None) or stream(0, "batches")
    result = train_locally(model, *examples(count), **{**PLAIN, "rng": rng, **settings})
    return model, result


def passes(count: int, size: int, epochs: int) -> list[np.ndarray]:
    """Return the mini-batches that the stream of ``trained`` gives, by slicing each pass."""
    rng = stream(0, "batches")
    orders = [rng.permutation(count) for _ in range(epochs)]
    return [order[i : i + size] for order in orders for i in range(0, count, size)]


def reference(
    model: nn.Module, *, momentum: float, weight_decay: float, clip_norm: float, proximal_mu: float
) -> nn.Module:
    """Train a copy with torch's optimiser; the proximal term is differentiated as it is written."""
    model = copy.deepcopy(model)
    start = [p.detach().clone() for p in model.parameters()]
    sgd = torch.optim.SGD(
        model.parameters(),
        lr=PLAIN["learning_rate"],
        momentum=momentum,
        weight_decay=weight_decay,
    )
    x, y = examples()
    for batch in passes(len(y), PLAIN["batch_size"], PLAIN["epochs"]):
        sgd.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        if clip_norm:
            norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
            for p in model.parameters():
                p.grad *= min(1.0, clip_norm / norm)
        if proximal_mu:
            pairs = zip(model.parameters(), start, strict=True)
            (proximal_mu / 2 * sum(((p - p0) ** 2).sum() for p, p0 in pairs)).backward()
        sgd.step()
    return model


def assert_same(got: nn.Module, expected: nn.Module, *, bits: bool) -> None:
    for (name, a), b in zip(got.state_dict().items(), expected.state_dict().values(), strict=True):
        if bits:
            assert torch.equal(a, b), name
        else:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("momentum", "weight_decay", "clip_norm", "proximal_mu"),
    list(itertools.product((0.0, 0.9), (0.0, 0.01), (0.0, 0.5), (0.0, 0.3))),
)
def test_equals_torch(
    momentum: float, weight_decay: float, clip_norm: float, proximal_mu: float
) -> None:
    settings = {
        "momentum": momentum,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
        "proximal_mu": proximal_mu,
    }
    model = network()
    got, _ = trained(model, **settings)
    # What torch's optimiser does not know is added to the gradient in another order.
    assert_same(got, reference(model, **settings), bits=not (clip_norm or proximal_mu))


def test_docstring_by_hand() -> None:
    """Two steps of every term at once, on one weight per class and one example."""
    w, start, v = [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]
    decay, mu, momentum, rate, norm, correction = 0.1, 2.0, 0.5, 0.1, 0.25, [0.5, -0.25]
    for _ in range(2):
        p = math.exp(w[0]) / (math.exp(w[0]) + math.exp(w[1]))
        g = [p - 1, 1 - p]  # of -log p
        scale = min(1.0, norm / math.hypot(*g))
        assert scale < 1
        for i in range(2):
            term = scale * g[i] + decay * w[i] + mu * (w[i] - start[i]) + correction[i]
            v[i] = momentum * v[i] + term
        w = [w[i] - rate * v[i] for i in range(2)]

    model = nn.Linear(1, 2, bias=False).double()
    nn.init.ones_(model.weight)
    train_locally(
        model,
        torch.ones(1, 1, dtype=torch.float64),
        torch.zeros(1, dtype=torch.int64),
        epochs=2,
        steps=0,
        batch_size=0,
        learning_rate=rate,
        momentum=momentum,
        weight_decay=decay,
        clip_norm=norm,
        proximal_mu=mu,
        rng=stream(0, "batches"),
        correction={"weight": torch.tensor(correction, dtype=torch.float64)[:, None]},
    )
    assert model.weight.flatten().tolist() == pytest.approx(w, rel=1e-13)


def one_full_step(clip_norm: float) -> Tensor:
    """Return the step that one full batch at rate 1 takes: minus the clipped gradient."""
    model = network()
    got, _ = trained(model, epochs=1, batch_size=0, learning_rate=1.0, clip_norm=clip_norm)
    flat = nn.utils.parameters_to_vector
    return (flat(got.parameters()) - flat(model.parameters())).detach()


def test_clipping_bounds_the_joint_norm() -> None:
    step = one_full_step(0.0)
    norm = float(step.norm())
    clipped = one_full_step(norm / 3)
    assert float(clipped.norm()) == pytest.approx(norm / 3, rel=1e-5)
    torch.testing.assert_close(clipped, step / 3, rtol=1e-4, atol=1e-6)
    assert torch.equal(one_full_step(norm * 1.01), step)


def test_clipping_leaves_a_zero_gradient_alone() -> None:
    model = nn.Linear(5, 3, bias=False)
    before = copy.deepcopy(model)
    train_locally(
        model,
        torch.zeros(4, 5),
        torch.tensor([0, 1, 2, 0]),
        **{**PLAIN, "clip_norm": 1.0},
        rng=stream(0, "batches"),
    )
    assert_same(model, before, bits=True)


def test_correction_is_added_to_every_gradient_by_name() -> None:
    model = network()
    names = [name for name, _ in model.named_parameters()]
    correction = {n: torch.full_like(model.get_parameter(n), i) for i, n in enumerate(names)}
    backwards = dict(reversed(correction.items()))
    plain, _ = trained(model, epochs=1, batch_size=0)
    corrected, _ = trained(model, epochs=1, batch_size=0, correction=backwards)
    for i, name in enumerate(names):
        moved = corrected.get_parameter(name) - plain.get_parameter(name)
        torch.testing.assert_close(moved, torch.full_like(moved, -PLAIN["learning_rate"] * i))


@pytest.mark.parametrize(
    ("count", "settings", "sizes"),
    [
        (10, {}, [4, 4, 2, 4, 4, 2]),
        (10, {"epochs": 1, "batch_size": 5}, [5, 5]),
        (10, {"batch_size": 0}, [10, 10]),
        (10, {"batch_size": 64}, [10, 10]),
        (1, {"epochs": 3}, [1, 1, 1]),
        (10, {"steps": 2}, [4, 4]),
        (10, {"steps": 4, "epochs": 9}, [4, 4, 2, 4]),
        (10, {"steps": 3, "batch_size": 0}, [10, 10, 10]),
    ],
)
def test_batches(count: int, settings: dict[str, int], sizes: list[int]) -> None:
    asked = {k: PLAIN[k] for k in ("epochs", "steps", "batch_size")} | settings
    made = [b.tolist() for b in batches(count, **asked, rng=stream(0, "batches"))]
    assert [len(batch) for batch in made] == sizes
    seen = list(itertools.chain.from_iterable(made))
    whole = [seen[i : i + count] for i in range(0, len(seen) - count + 1, count)]
    assert all(sorted(order) == list(range(count)) for order in whole)
    if count > 1 and len(whole) > 1:
        assert whole[0] != whole[1]  # each pass has an order of its own
    _, result = trained(network(), count, **settings)
    assert (result.examples, result.steps) == (count, len(sizes))


def test_steps_continue_where_epochs_would() -> None:
    by_epochs, _ = trained(network(), epochs=2)
    by_steps, _ = trained(network(), epochs=7, steps=6)
    assert_same(by_steps, by_epochs, bits=True)


def test_losses_of_the_first_and_the_last_step() -> None:
    model = network()
    x, y = examples()
    _, result = trained(model, epochs=2)
    before_last, _ = trained(model, steps=5)
    made = passes(10, 4, 2)
    first, last = made[0], made[-1]
    assert result.loss_first_step == cross_entropy(model(x[first]), y[first]).item()
    assert result.loss_last_step == cross_entropy(before_last(x[last]), y[last]).item()


def test_one_step_has_one_loss() -> None:
    _, result = trained(network(), steps=1)
    assert result.loss_first_step == result.loss_last_step > 0


def test_no_examples() -> None:
    with pytest.raises(ValueError, match="no examples"):
        trained(network(), 0)


def test_deterministic_by_its_generator_alone() -> None:
    model = network()
    torch.manual_seed(1)
    np.random.seed(1)
    first, _ = trained(model)
    torch.manual_seed(2)
    np.random.seed(2)
    again, _ = trained(model)
    other, _ = trained(model, rng=stream(1, "batches"))
    assert_same(again, first, bits=True)
    assert not torch.equal(other[0].weight, first[0].weight)


def test_global_generators_are_untouched() -> None:
    model = network()
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    trained(model, momentum=0.9, clip_norm=1.0)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.random.get_state()[1].tolist() == numpy_before


def test_mean_loss() -> None:
    model = network()
    x, y = examples()
    probabilities = torch.softmax(model(x).double(), dim=1)[torch.arange(len(y)), y]
    assert mean_loss(model, x, y) == pytest.approx((-probabilities.log().mean()).item(), rel=1e-6)


def test_arrays_are_copies() -> None:
    model = network()
    arrays = read_arrays(model)
    assert list(arrays) == list(model.state_dict())
    before = copy.deepcopy(arrays)
    arrays["0.weight"][:] = 7
    assert read_arrays(model)["0.weight"].tolist() == before["0.weight"].tolist()
    load_arrays(model, arrays)
    arrays["0.weight"][:] = 8
    assert torch.all(model[0].weight == 7)


# Four rounds from a first rate of 0.8, with decay 0.5.
RATES = {
    "constant": [0.8, 0.8, 0.8, 0.8],
    "linear": [0.8, 0.6, 0.4, 0.2],
    "cosine": [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5))],
    "exponential": [0.8, 0.4, 0.2, 0.1],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_by_hand(schedule: str) -> None:
    rates = [learning_rate(schedule, first=0.8, round=r, rounds=4, decay=0.5) for r in range(1, 5)]
    assert rates == pytest.approx(RATES[schedule], rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rounds", [1, 7, 300])
def test_schedule_starts_at_the_first_rate_and_never_reaches_zero(
    schedule: str, rounds: int
) -> None:
    rates = [
        learning_rate(schedule, first=0.3, round=r, rounds=rounds, decay=0.99)
        for r in range(1, rounds + 1)
    ]
    assert rates[0] == 0.3
    assert min(rates) > 0
    assert rates == sorted(rates, reverse=True)
