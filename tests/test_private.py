"""DP-SGD against cases worked by hand, against Opacus, and the fast sums against the plain ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.models import ACTIVATIONS, build_model
from fedsim.randomness import stream, streams
from fedsim.training import (
    CohortTrainer,
    PrivateTrainer,
    Recipe,
    Reproducible,
    Source,
    StepNoise,
    expected_batch,
    read_arrays,
    refuse_batch_norm,
    train_locally,
    train_privately,
)
from fedsim.training.private import clipped_sum, noised_mean, poisson_batches
from fedsim.training.private_fast import LAYERS, fast_clipped_sum, fast_problem, sum_for

SHAPES = {"mlp": (1, 4, 4), "cnn": (2, 5, 6), "small_cnn": (1, 14, 15)}
PLAIN: dict[str, Any] = {
    "steps": 3,
    "batch_size": 4,
    "learning_rate": 0.1,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "proximal_mu": 0.0,
    "clipping_norm": 1.0,
    "noise_multiplier": 1.0,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Train on one thread, as clients do."""
    torch.set_num_threads(1)


class Told:
    """A source that gives what it was told, in that order, whatever is asked for."""

    def __init__(
        self, *, uniform: Sequence[Sequence[float]], normal: Sequence[Sequence[float]]
    ) -> None:
        self._uniform, self._normal = list(uniform), list(normal)

    def normal(self, size: int, /) -> np.ndarray:
        values = np.array(self._normal.pop(0), np.float64)
        assert values.shape == (size,)
        return values

    def uniform(self, size: int, /) -> np.ndarray:
        values = np.array(self._uniform.pop(0), np.float64)
        assert values.shape == (size,)
        return values


def source(key: int = 0) -> Source:
    return Reproducible(stream(key, "noise"))


def network(name: str = "mlp", activation: str = "tanh", **more: Any) -> nn.Module:
    given = {"input_shape": SHAPES[name], "classes": 3, "width": 6, "seed": 1, **more}
    return build_model(name, activation=activation, **given)


def examples(name: str = "mlp", count: int = 10) -> tuple[Tensor, Tensor]:
    draw = stream(count, "examples")
    x = torch.from_numpy(draw.standard_normal((count, *SHAPES[name]), np.float32))
    return x, torch.from_numpy(draw.integers(0, 3, count))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


# The equations, by hand.


def scalar_model() -> nn.Linear:
    """Two classes of one number, weights 0: an example's gradient is (p - onehot) x."""
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    return model


def test_a_step_by_hand() -> None:
    """x = 2 of class 0 has the gradient (-1, 1), which is clipped; 0.4 of class 1 has (.2, -.2)."""
    model, x = scalar_model(), torch.tensor([[2.0], [0.4], [0.0], [9.0]])
    # A third one, whose gradient is 0, is drawn too: the divisor stays the expected batch, 2.
    told = Told(uniform=[[0.49, 0.0, 0.2, 0.5]], normal=[[1.0, -2.0]])
    done = train_privately(
        model,
        x,
        torch.tensor([0, 1, 0, 0]),
        **{**PLAIN, "steps": 1, "batch_size": 2, "learning_rate": 10.0, "noise_multiplier": 0.5},
        source=told,
    )
    clipped = 1 / math.sqrt(2)
    noised = [-clipped + 0.2 + 0.5 * 1, clipped - 0.2 + 0.5 * -2]
    assert model.weight.flatten().tolist() == pytest.approx([-10 * g / 2 for g in noised])
    assert (done.examples, done.steps) == (4, 1)
    assert done.loss_first_step == done.loss_last_step == pytest.approx(math.log(2))


def test_momentum_decay_and_pull_by_hand() -> None:
    """Noise alone moves the weights, (3, -3) / B at lr 1; all else follows from where they are."""
    model = scalar_model()
    told = Told(uniform=[[0.9], [0.9]], normal=[[3.0, -3.0], [0.0, 0.0]])
    more = {"momentum": 0.5, "weight_decay": 0.1, "proximal_mu": 0.2, "learning_rate": 1.0}
    settings_ = {**PLAIN, **more, "steps": 2, "batch_size": 0}
    # Every example is in every batch; one that has no effect stands in for none.
    train_privately(model, torch.zeros(1, 1), torch.tensor([0]), **settings_, source=told)
    w = -3.0
    v = 0.5 * 3.0 + (0.1 * w + 0.2 * (w - 0.0))
    assert model.weight.flatten().tolist() == pytest.approx([w - v, v - w])


def test_without_clipping_noise_or_sampling_it_is_plain_training() -> None:
    private, plain = network(), network()
    more = {"momentum": 0.9, "weight_decay": 0.01, "proximal_mu": 0.3}
    without = {"clipping_norm": 1e6, "noise_multiplier": 0.0, "batch_size": 0}
    ours = train_privately(private, *examples(), **{**PLAIN, **more, **without}, source=source())
    theirs = train_locally(
        plain,
        *examples(),
        **more,
        **{"epochs": 1, "steps": 3, "batch_size": 0, "learning_rate": 0.1, "clip_norm": 0.0},
        rng=stream(0, "batches"),
    )
    torch.testing.assert_close(flat([*private.parameters()]), flat([*plain.parameters()]))
    assert ours.loss_first_step == pytest.approx(theirs.loss_first_step)
    assert ours.loss_last_step == pytest.approx(theirs.loss_last_step)


def test_an_empty_batch_is_a_step_of_noise_alone() -> None:
    model = scalar_model()
    told = Told(uniform=[[0.5, 0.5]], normal=[[4.0, -8.0]])
    done = train_privately(
        model,
        torch.ones(2, 1),
        torch.tensor([0, 1]),
        **{**PLAIN, "steps": 1, "batch_size": 1, "clipping_norm": 0.5, "noise_multiplier": 3.0},
        source=told,
    )
    assert model.weight.flatten().tolist() == pytest.approx([-0.1 * 1.5 * 4, 0.1 * 1.5 * 8])
    assert math.isnan(done.loss_first_step)
    assert math.isnan(done.loss_last_step)


def test_losses_are_those_of_batches_that_are_not_empty() -> None:
    model, draws = scalar_model(), [[0.9, 0.9], [0.0, 0.9], [0.9, 0.9]]
    done = train_privately(
        model,
        torch.ones(2, 1),
        torch.tensor([0, 1]),
        **{**PLAIN, "batch_size": 1, "noise_multiplier": 0.0},
        source=Told(uniform=draws, normal=[]),
    )
    assert done.loss_first_step == done.loss_last_step == pytest.approx(math.log(2))
    assert done.steps == 3


def test_a_client_of_one_example_is_in_every_batch() -> None:
    model, (x, y) = network(), examples(count=1)
    done = train_privately(model, x, y, **PLAIN, source=source())
    assert (done.examples, done.steps, expected_batch(1, 4)) == (1, 3, 1)
    assert math.isfinite(done.loss_first_step)


@pytest.mark.parametrize(("batch_size", "expected"), [(4, 4), (0, 10), (10, 10), (11, 10)])
def test_expected_batch(batch_size: int, expected: int) -> None:
    assert expected_batch(10, batch_size) == expected


def test_noise_has_its_deviation_on_every_coordinate() -> None:
    zeros = [torch.zeros(300, 200), torch.zeros(70_000)]
    first, second = noised_mean(zeros, 8, deviation=1.5 * 2.0, source=source())
    for part in (first, second):
        assert part.std().item() == pytest.approx(1.5 * 2.0 / 8, rel=0.01)
        assert abs(part.mean().item()) < 0.005
        assert part.dtype == torch.float32
    assert abs(np.corrcoef(first.flatten(), second[:60_000])[0, 1]) < 0.02


def test_noised_values_lie_on_a_grid_that_is_the_same_for_every_sum() -> None:
    """No value tells by its last bits what the noise was added to."""
    for sums in ([torch.zeros(5000)], [torch.full((5000,), 0.1)]):
        (noised,) = noised_mean(sums, 10, deviation=3.0, source=source())
        steps = noised.double() / 2.0**-26  # 0.3 lies between 2^-2 and 2^-1
        small = noised.abs() < 2**-2  # float32 itself is coarser beyond
        assert torch.equal(steps[small], steps[small].round())
        assert (steps[small].abs() % 2).mean().item() == pytest.approx(0.5, abs=0.05)


def test_step_noise_is_made_of_its_bytes() -> None:
    """A pair by hand: u = 1 - 2^-1, angle pi / 2; the twelve upper bits of a word do not count."""
    words = np.array([1 << 51, 3 << 50], np.uint64) | np.uint64(0xABC << 52)
    drawn = StepNoise(lambda count: words.tobytes()[:count]).normal(2)
    assert drawn.tolist() == pytest.approx([math.sqrt(2 * math.log(2)), 0.0], abs=1e-9)
    uniform = StepNoise(lambda count: words.tobytes()[:count]).uniform(2)
    assert uniform.tolist() == [0.5, 0.75]


def test_step_noise_is_normal_and_uniform() -> None:
    rng = stream(0, "bytes")
    made = StepNoise(rng.bytes)
    drawn = made.normal(200_001)
    assert drawn.shape == (200_001,)
    for moment, value, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((drawn**moment).mean() - value) < 5 * math.sqrt(variance / 200_001), moment
    half = len(drawn) // 2
    assert abs(np.corrcoef(drawn[:half], drawn[half + 1 :])[0, 1]) < 5 / math.sqrt(half)
    counts = np.bincount((made.uniform(100_000) * 50).astype(int), minlength=50)
    assert len(counts) == 50
    assert ((counts - 2000) ** 2 / 2000).sum() < 49 + 5 * math.sqrt(98)


@pytest.mark.parametrize(
    ("change", "count", "words"),
    [
        ({"clipping_norm": 0.0}, 3, "clipping_norm = 0.0: must be above 0"),
        ({"clipping_norm": math.nan}, 3, "clipping_norm = nan: must be above 0"),
        ({}, 0, "this client holds no examples"),
    ],
)
def test_refusals(change: dict[str, float], count: int, words: str) -> None:
    x, y = examples()
    with pytest.raises(ValueError, match=words):
        train_privately(network(), x[:count], y[:count], **{**PLAIN, **change}, source=source())


# Poisson sampling.


def test_batch_sizes_are_binomial() -> None:
    """Mean B and variance B (1 - q), which batches of a fixed size do not have."""
    n, expected, steps = 100, 10, 4000
    drawn = list(poisson_batches(n, expected=expected, steps=steps, source=source()))
    sizes = np.array([len(batch) for batch in drawn])
    variance = expected * (1 - expected / n)
    assert abs(sizes.mean() - expected) < 5 * math.sqrt(variance / steps)
    dispersion = ((sizes - expected) ** 2).sum() / variance  # chi-squared, ``steps`` degrees
    assert abs(dispersion - steps) < 5 * math.sqrt(2 * steps)
    taken = np.bincount(torch.cat(drawn).numpy(), minlength=n)
    each = steps * expected / n
    assert abs(((taken - each) ** 2 / (each * 0.9)).sum() - n) < 5 * math.sqrt(2 * n)


def test_steps_are_independent() -> None:
    member = np.zeros((4000, 2))
    for t, batch in enumerate(poisson_batches(8, expected=4, steps=4000, source=source())):
        member[t] = [0 in batch, 1 in batch]
    together = np.corrcoef(member.T)[0, 1]
    one_by_one = np.corrcoef(member[1:, 0], member[:-1, 0])[0, 1]
    assert max(abs(together), abs(one_by_one)) < 5 / math.sqrt(4000)


# One example's influence.


@settings(max_examples=60, deadline=None)
@given(
    key=st.integers(0, 10_000),
    clipping_norm=st.floats(1e-3, 1e3),
    size=st.floats(1e-3, 1e3),
    which=st.integers(0, 4),
    summed=st.sampled_from([clipped_sum, fast_clipped_sum]),
)
def test_an_example_moves_the_sum_by_at_most_the_clipping_norm(
    key: int, clipping_norm: float, size: float, which: int, summed: Any
) -> None:
    model, (x, y) = network(activation="relu", seed=key), examples(count=5)
    kept = torch.arange(5) != which
    x = size * x
    with_it, _ = summed(model, x, y, clipping_norm)
    without, _ = summed(model, x[kept], y[kept], clipping_norm)
    assert (flat(with_it) - flat(without)).norm() <= clipping_norm * (1 + 1e-4)


@pytest.mark.parametrize("summed", [clipped_sum, fast_clipped_sum])
def test_an_example_without_a_finite_gradient_counts_nothing(summed: Any) -> None:
    model, (x, y) = network(activation="relu"), examples(count=5)
    spoilt = x.clone()
    spoilt[2] = math.inf
    found, losses = summed(model, spoilt, y, 0.1)
    kept = torch.arange(5) != 2
    expected, _ = summed(model, x[kept], y[kept], 0.1)
    assert torch.equal(flat(found), flat(expected))
    assert losses[kept].isfinite().all()


# The fast sums.


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fast_sums_are_the_plain_ones(name: str, activation: str) -> None:
    model, (x, y) = network(name, activation), examples(name, 5)
    assert sum_for(model, SHAPES[name]) is fast_clipped_sum
    norms = [single_norm(model, x[i : i + 1], y[i : i + 1]) for i in range(5)]
    for clipping_norm in (float(np.median(norms)), 1e-2, 1e3):
        plain, losses = clipped_sum(model, x, y, clipping_norm)
        fast, same = fast_clipped_sum(model, x, y, clipping_norm)
        torch.testing.assert_close(losses, same)
        for a, b in zip(plain, fast, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6 * flat(plain).abs().max().item())


def single_norm(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(flat(clipped_sum(model, x, y, 1e9)[0]).norm())


class Shared(nn.Module):
    """Uses a dense layer twice, or its weight behind its back."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.inner, self.output = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x.flatten(1)))
        x = self.inner(x) if self.twice else x @ self.inner.weight
        return self.output(x)  # type: ignore[no-any-return]


class Scaled(nn.Linear):
    """A dense layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def sequence(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


STRANGE: dict[str, tuple[Any, str]] = {
    "twice": (lambda: Shared(twice=True), "a layer that is used twice"),
    "behind its back": (lambda: Shared(twice=False), "the sums differ by"),
    "derived": (lambda: sequence(nn.Flatten(), Scaled(16, 3)), "a layer of the class Scaled"),
    "normalised": (
        lambda: sequence(nn.GroupNorm(1, 1), nn.Flatten(), nn.Linear(16, 3)),
        "a layer of the class GroupNorm",
    ),
    "along a sequence": (
        lambda: sequence(nn.Linear(4, 2), nn.Flatten(), nn.Linear(8, 3)),
        "a dense layer that is applied along a sequence",
    ),
    "in groups": (
        lambda: sequence(
            nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(8, 3)
        ),
        "a convolution in groups, or with padding by name",
    ),
    "round the edges": (
        lambda: sequence(
            nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(32, 3)
        ),
        "the sums differ by",
    ),
    "in place": (
        lambda: sequence(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
        "",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_module_without_short_forms_is_summed_one_by_one(name: str) -> None:
    make, problem = STRANGE[name]
    model = make()
    found = fast_problem(model, SHAPES["mlp"])
    assert found is not None
    assert problem in found
    assert sum_for(model, SHAPES["mlp"]) is clipped_sum


def test_the_trial_leaves_no_trace() -> None:
    model = network()
    before, state = copy.deepcopy(read_arrays(model)), torch.get_rng_state()
    assert fast_problem(model, SHAPES["mlp"]) is None
    assert all(np.array_equal(read_arrays(model)[k], v) for k, v in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(layer._forward_hooks for layer in model.modules())


@pytest.mark.parametrize("slopes", [1, 2])
def test_slopes_of_prelu_one_or_one_a_channel(slopes: int) -> None:
    model = sequence(
        nn.Conv2d(1, 2, 3), nn.PReLU(slopes), nn.Flatten(), nn.Linear(8, 4), nn.PReLU(4)
    )
    x, y = examples()
    assert fast_problem(model, SHAPES["mlp"]) is None
    plain, fast = clipped_sum(model, x, y, 0.5)[0], fast_clipped_sum(model, x, y, 0.5)[0]
    torch.testing.assert_close(flat(plain), flat(fast), rtol=1e-4, atol=1e-5)


def test_nothing_to_sum() -> None:
    model, (x, y) = network(), examples()
    for summed in (clipped_sum, fast_clipped_sum):
        sums, losses = summed(model, x[:0], y[:0], 1.0)
        assert losses.shape == (0,)
        assert not flat(sums).any()
        assert [s.shape for s in sums] == [p.shape for p in model.parameters()]


# Opacus, on the same batch and the same noise.


class OpacusNoise:
    """Gives the noise that Opacus draws from a generator of this seed, parameter by parameter."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._drawn = [
            torch.normal(0.0, 1.0, p.shape, generator=generator) for p in model.parameters()
        ]

    def normal(self, size: int, /) -> np.ndarray:
        noise = flat(self._drawn).double().numpy()
        assert noise.shape == (size,)
        return noise

    def uniform(self, size: int, /) -> np.ndarray:
        raise AssertionError("batches are given")


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.filterwarnings("ignore")
def test_the_noised_gradient_is_that_of_opacus(name: str, mode: str) -> None:
    clipping_norm, noise_multiplier, expected, seed = 0.7, 1.3, 8, 11
    model, (x, y) = network(name), examples(name, 6)
    theirs = opacus_gradient(
        copy.deepcopy(model), x, y, mode, clipping_norm, noise_multiplier, expected, seed
    )
    for summed in (clipped_sum, fast_clipped_sum):
        sums, _ = summed(model, x, y, clipping_norm)
        ours = noised_mean(
            sums,
            expected,
            deviation=noise_multiplier * clipping_norm,
            source=OpacusNoise(model, seed),
        )
        torch.testing.assert_close(flat(ours), theirs, rtol=1e-5, atol=1e-6)


def opacus_gradient(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    mode: str,
    clipping_norm: float,
    noise_multiplier: float,
    expected: int,
    seed: int,
) -> Tensor:
    """Return what Opacus hands to the optimiser underneath, flat."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    told = {
        "noise_multiplier": noise_multiplier,
        "max_grad_norm": clipping_norm,
        "expected_batch_size": expected,
        "generator": torch.Generator().manual_seed(seed),
    }
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    if mode == "ghost":
        wrapped = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=clipping_norm, use_ghost_clipping=True
        )
        optimizer = DPOptimizerFastGradientClipping(sgd, **told)
        criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss())
        criterion(wrapped(x), y).backward()
    else:
        wrapped = GradSampleModule(model, force_functorch=mode == "functorch")
        optimizer = DPOptimizer(sgd, **told)
        nn.functional.cross_entropy(wrapped(x), y).backward()
    optimizer.step()
    return flat([p.grad for p in model.parameters()])


# The trainer of a cohort.

RECIPE: dict[str, Any] = {
    "epochs": 2,
    "steps": 0,
    "batch_size": 4,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "proximal_mu": 0.0,
}
CLIENTS = [np.arange(20 * i, 20 * i + size) for i, size in enumerate([1, 9, 4, 12])]


def dataset() -> Dataset:
    draw = stream(0, "dataset")
    x = draw.integers(0, 256, (120, *SHAPES["mlp"])).astype(np.uint8)
    return Dataset(
        name="drawn",
        x_train=x,
        y_train=draw.integers(0, 3, len(x)),
        x_test=x[:1],
        y_test=np.zeros(1, np.int64),
        classes=3,
        class_names=("a", "b", "c"),
        scale=1 / 255,
    )


def trainer(model: nn.Module | None = None, **change: Any) -> PrivateTrainer:
    recipe = Recipe(**{k: change.pop(k, v) for k, v in RECIPE.items()})
    given = {"clipping_norm": 1.0, "noise_multiplier": 0.8, "source_of": Reproducible, **change}
    return PrivateTrainer(model or network(), dataset(), recipe, **given)


def trained(clients: Sequence[int], made: CohortTrainer | None = None) -> Any:
    made = trainer() if made is None else made
    return made.train(
        read_arrays(network()),
        [CLIENTS[client] for client in clients],
        learning_rate=0.2,
        rngs=streams(7, "batches", round=3, clients=clients),
    )


def test_a_client_comes_to_the_same_in_whatever_block() -> None:
    whole, made = trained([0, 1, 2, 3]), trainer()
    made.prepare(read_arrays(network()), CLIENTS)
    for clients in ([3, 1], [0], [2, 0]):
        part = trained(clients, made)
        for place, client in enumerate(clients):
            for name, stack in part.arrays.items():
                assert np.array_equal(stack[place], whole.arrays[name][client]), name
            assert part.loss_last_step[place] == whole.loss_last_step[client] or client == 0
    assert whole.steps.tolist() == [2 * 1, 2 * 3, 2 * 1, 2 * 3]
    assert whole.examples.tolist() == [1, 9, 4, 12]


def test_a_client_trains_as_the_reference_does() -> None:
    model, (x, y) = network(), dataset().train(CLIENTS[1])
    done = train_privately(
        model,
        torch.from_numpy(x),
        torch.from_numpy(y),
        **{**PLAIN, "steps": 6, "learning_rate": 0.2, "noise_multiplier": 0.8},
        source=Reproducible(stream(7, "batches", round=3, client=1)),
    )
    found = trained([1])
    for name, array in read_arrays(model).items():
        np.testing.assert_allclose(found.arrays[name][0], array, rtol=1e-4, atol=1e-6)
    assert found.loss_last_step[0] == pytest.approx(done.loss_last_step, rel=1e-5)


def test_a_secret_source_owes_nothing_to_the_seed() -> None:
    made = trainer(source_of=lambda _: Reproducible(np.random.default_rng()))
    first, second = trained([1], made), trained([1], made)
    assert not np.array_equal(first.arrays["dense1.weight"], second.arrays["dense1.weight"])


def test_steps_are_given_where_they_are() -> None:
    assert trained([0, 1], trainer(steps=5)).steps.tolist() == [5, 5]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_any_precision_and_a_model_without_short_forms(precision: str) -> None:
    model = sequence(nn.GroupNorm(1, 1), nn.Flatten(), nn.Linear(16, 3))
    made = trainer(model, precision=precision)
    arrays = read_arrays(model)
    given = {"learning_rate": 0.2, "rngs": streams(7, "batches", clients=[1])}
    found = made.train(arrays, CLIENTS[1:2], **given)
    assert all(np.isfinite(stack).all() for stack in found.arrays.values())
    assert all(stack.dtype == np.float32 for stack in found.arrays.values())
    assert all(np.array_equal(read_arrays(model)[k], v) for k, v in arrays.items())


def test_the_trainer_refuses_what_is_not_covered() -> None:
    with pytest.raises(ConfigError, match=r"train.clip_norm = 2.0: .* leave train.clip_norm at 0"):
        trainer(clip_norm=2.0)
    with pytest.raises(ConfigError, match="BatchNorm2d"):
        trainer(sequence(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3)))
    made, arrays, one = trainer(), read_arrays(network()), [stream(0, "batches")]
    with pytest.raises(ConfigError, match="scaffold"):
        made.prepare(arrays, CLIENTS, corrected=True)
    with pytest.raises(ConfigError, match="scaffold"):
        made.train(arrays, CLIENTS[:1], learning_rate=0.1, rngs=one, corrections=[arrays])
    with pytest.raises(ValueError, match="no examples"):
        made.train(arrays, [CLIENTS[0][:0]], learning_rate=0.1, rngs=one)


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        (nn.BatchNorm1d(2), True),
        (nn.BatchNorm2d(2), True),
        (nn.SyncBatchNorm(2), True),
        (nn.BatchNorm2d(2, track_running_stats=False), True),
        (nn.InstanceNorm2d(2, track_running_stats=True), True),
        (nn.InstanceNorm2d(2), False),
        (nn.GroupNorm(1, 2), False),
        (nn.LayerNorm(2), False),
    ],
)
def test_batch_norm_is_refused_by_name(layer: nn.Module, refused: bool) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(layer))
    if not refused:
        refuse_batch_norm(model)
        return
    with pytest.raises(ConfigError) as caught:
        refuse_batch_norm(model)
    assert f"the model's layer 1.0 is a {type(layer).__name__}" in str(caught.value)
    assert "use GroupNorm or LayerNorm" in str(caught.value)


def test_every_registered_layer_with_parameters_has_a_short_form() -> None:
    for name in SHAPES:
        for activation in ACTIVATIONS:
            for layer in network(name, activation).modules():
                if next(layer.parameters(recurse=False), None) is not None:
                    assert type(layer) in LAYERS
