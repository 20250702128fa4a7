"""Every way of training many clients against ``train_locally``, the plain reference."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.models import ACTIVATIONS, build_model
from fedsim.randomness import stream
from fedsim.training import (
    CohortResult,
    CohortTrainer,
    Recipe,
    Untranslatable,
    load_arrays,
    make_trainer,
    read_arrays,
    train_locally,
    translatable,
)
from fedsim.training.blocks import Plan
from fedsim.training.digest import digest, digest_arrays
from fedsim.training.vectorised import TorchTrainer, VectorisedTrainer

LANES = 2
WAYS = {
    "xla, one at a call": ("xla", False, 1),
    "xla, one after another": ("xla", False, LANES),
    "xla, together": ("xla", True, LANES),
    "torch, together": ("torch", True, LANES),
    "torch, one after another": ("torch", False, 1),
}
COMPILED = {name: way for name, way in WAYS.items() if way[0] == "xla"}
PLAIN = Recipe(
    epochs=1,
    steps=0,
    batch_size=4,
    momentum=0.0,
    weight_decay=0.0,
    clip_norm=0.0,
    proximal_mu=0.0,
)
SHAPE, CLASSES = (1, 4, 4), 3
# A single example, less than a batch, whole batches, a smaller last one; two calls of a program.
SIZES = [1, 3, 8, 9, 2, 13]
CLIENTS = [np.arange(20 * i, 20 * i + size) + 1 for i, size in enumerate(SIZES)]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled programs away from the user's, and train on one thread."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def dataset(shape: Sequence[int] = SHAPE, *, dtype: type = np.uint8) -> Dataset:
    draw = stream(0, "dataset")
    x = draw.integers(0, 256, (120, *shape)).astype(dtype)
    y = draw.integers(0, CLASSES, len(x))
    return Dataset(
        name="drawn",
        x_train=x,
        y_train=y,
        x_test=x[:1],
        y_test=y[:1],
        classes=CLASSES,
        class_names=tuple("abc"),
        scale=1 / 255 if dtype is np.uint8 else 1.0,
    )


def network(activation: str = "tanh", *, name: str = "mlp", shape: Sequence[int] = SHAPE) -> Any:
    return build_model(
        name,
        input_shape=tuple(shape),
        classes=CLASSES,
        width=7,
        depth=2 if name == "mlp" else 1,
        activation=activation,
        seed=3,
    )


def trainer(
    way: tuple[str, bool, int],
    model: nn.Module,
    data: Dataset,
    recipe: Recipe = PLAIN,
    **more: Any,
) -> CohortTrainer:
    compiler, together, lanes = way
    plan = Plan(together=together, lanes=lanes, call=2 * lanes, most=lanes, blocks=1)
    return make_trainer(model, data, recipe, compiler=compiler, plan=plan, **more)


def rngs(places: Sequence[int] = range(len(CLIENTS))) -> list[np.random.Generator]:
    return [stream(0, "batches", client=place) for place in places]


def reference(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe = PLAIN,
    *,
    corrections: Sequence[dict[str, np.ndarray]] | None = None,
) -> CohortResult:
    """Train every client by ``train_locally``."""
    model, start = copy.deepcopy(model), read_arrays(model)
    dtype = next(model.parameters()).dtype
    models, results = [], []
    for place, (held, rng) in enumerate(zip(CLIENTS, rngs(), strict=True)):
        load_arrays(model, start)
        x, y = data.train(held)
        correction = None
        if corrections is not None:
            correction = {n: torch.from_numpy(c) for n, c in corrections[place].items()}
        result = train_locally(
            model,
            torch.from_numpy(x).to(dtype),
            torch.from_numpy(y),
            **vars(recipe),
            learning_rate=0.1,
            rng=rng,
            correction=correction,
        )
        models.append(read_arrays(model))
        results.append(result)
    return CohortResult(
        arrays={name: np.stack([arrays[name] for arrays in models]) for name in start},
        examples=np.array([r.examples for r in results]),
        steps=np.array([r.steps for r in results]),
        loss_first_step=np.array([r.loss_first_step for r in results]),
        loss_last_step=np.array([r.loss_last_step for r in results]),
    )


def assert_same(got: CohortResult, expected: CohortResult, *, rtol: float) -> None:
    assert got.examples.tolist() == expected.examples.tolist()
    assert got.steps.tolist() == expected.steps.tolist()
    assert list(got.arrays) == list(expected.arrays)
    for name, array in expected.arrays.items():
        assert got.arrays[name].dtype == array.dtype
        scale = np.abs(array).max()
        np.testing.assert_allclose(
            got.arrays[name], array, rtol=rtol, atol=rtol * scale, err_msg=name
        )
    for loss in ("loss_first_step", "loss_last_step"):
        np.testing.assert_allclose(getattr(got, loss), getattr(expected, loss), rtol=10 * rtol)


def check(
    way: tuple[str, bool, int],
    model: nn.Module,
    data: Dataset,
    recipe: Recipe = PLAIN,
    *,
    rtol: float,
) -> CohortResult:
    got = trainer(way, model, data, recipe).train(
        read_arrays(model), CLIENTS, learning_rate=0.1, rngs=rngs()
    )
    assert_same(got, reference(model, data, recipe), rtol=rtol)
    return got


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    model, data = network(activation).double(), dataset()
    check(WAYS["xla, one after another"], model, data, rtol=1e-12)
    check(WAYS["torch, together"], model, data, rtol=1e-12)


RECIPES = {
    "all at once": {
        **{"momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0.5, "proximal_mu": 0.3},
        "epochs": 2,
    },
    "clipping alone": {"clip_norm": 0.1},
    "pulled back": {"proximal_mu": 0.5, "epochs": 3},
    "steps": {"steps": 5, "momentum": 0.5},
    "steps, all examples": {"steps": 3, "batch_size": 0},
    "wider than the data": {"batch_size": 100, "epochs": 2},
    "wide": {"batch_size": 10, "weight_decay": 0.1},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_option(way: str, recipe: str) -> None:
    options = Recipe(**{**vars(PLAIN), **RECIPES[recipe]})
    check(WAYS[way], network().double(), dataset(), options, rtol=1e-11)


@pytest.mark.parametrize("way", WAYS)
def test_float32(way: str) -> None:
    """Models as they are: same types, and the same values to the last digits."""
    recipe = Recipe(**{**vars(PLAIN), "momentum": 0.5, "epochs": 2})
    exact = way == "torch, one after another"
    check(WAYS[way], network("gelu"), dataset(), recipe, rtol=0 if exact else 2e-6)


@pytest.mark.parametrize("way", WAYS)
def test_float_features(way: str) -> None:
    check(WAYS[way], network(shape=(5,)).double(), dataset((5,), dtype=np.float32), rtol=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_corrections(way: str) -> None:
    model, data = network().double(), dataset()
    draw = stream(0, "corrections")
    parameters = dict(reversed(list(model.named_parameters())))
    corrections = [
        {name: draw.standard_normal(p.shape) for name, p in parameters.items()} for _ in CLIENTS
    ]
    got = trainer(WAYS[way], model, data).train(
        read_arrays(model), CLIENTS, learning_rate=0.1, rngs=rngs(), corrections=corrections
    )
    assert_same(got, reference(model, data, corrections=corrections), rtol=1e-11)


@pytest.mark.parametrize("way", ["xla, one at a call", "torch, together"])
@pytest.mark.parametrize("activation", ["relu", "prelu", "gelu"])
def test_convolutions(way: str, activation: str) -> None:
    """The one XLA program that the host loops over, step by step."""
    model = network(activation, name="cnn", shape=(2, 5, 6)).double()
    check(WAYS[way], model, dataset((2, 5, 6)), rtol=1e-11)


@pytest.mark.parametrize("way", ["xla, one after another", "xla, together", "torch, together"])
@pytest.mark.parametrize("activation", ["tanh", "mish"])
def test_bits_do_not_depend_on_the_others(way: str, activation: str) -> None:
    """Nor on a client's place, nor on how many there are."""
    model, data = network(activation), dataset()
    if way == "torch, together":  # matrices whose rows are aligned in every lane
        model = build_model(
            "mlp", input_shape=SHAPE, classes=16, width=16, activation=activation, seed=3
        )
    recipe = Recipe(**{**vars(PLAIN), "clip_norm": 0.5, "momentum": 0.5})
    subject, arrays = trainer(WAYS[way], model, data, recipe), read_arrays(model)

    def run(places: Sequence[int]) -> CohortResult:
        clients = [CLIENTS[place] for place in places]
        return subject.train(arrays, clients, learning_rate=0.1, rngs=rngs(places))

    whole = run(range(len(CLIENTS)))
    for places in ([5], [0], [5, 4, 3, 2, 1, 0], [2, 5, 1]):
        part = run(places)
        for at, place in enumerate(places):
            assert part.loss_last_step[at] == whole.loss_last_step[place]
            for name, array in whole.arrays.items():
                assert part.arrays[name][at].tobytes() == array[place].tobytes(), (places, name)


@pytest.mark.parametrize("way", WAYS)
def test_what_fills_a_batch_does_not_leak(way: str) -> None:
    """Examples of nobody are NaN and enormous; the first is what idle lanes would look at."""
    data = dataset((5,), dtype=np.float32)
    nobodys = np.setdiff1d(np.arange(len(data.x_train)), np.concatenate(CLIENTS))
    assert 0 in nobodys
    data.x_train[nobodys] = [[np.nan], [1e30]] * (len(nobodys) // 2) + [[np.inf]] * (
        len(nobodys) % 2
    )
    for recipe in (PLAIN, Recipe(**{**vars(PLAIN), "batch_size": 100})):
        got = check(WAYS[way], network(shape=(5,)).double(), data, recipe, rtol=1e-9)
        assert all(np.isfinite(array).all() for array in got.arrays.values())


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_diverges_harms_nobody(way: str) -> None:
    data = dataset((5,), dtype=np.float32)
    data.x_train[CLIENTS[1]] = np.nan
    model = network("relu", shape=(5,))
    got = trainer(WAYS[way], model, data).train(
        read_arrays(model), CLIENTS, learning_rate=0.1, rngs=rngs()
    )
    finite = [np.isfinite(got.arrays["output.weight"][i]).all() for i in range(len(CLIENTS))]
    assert finite == [True, False, True, True, True, True]


@pytest.mark.parametrize("way", COMPILED)
@pytest.mark.parametrize("spoilt", [[], [1, 4]])
def test_models_are_digested_where_they_are(way: str, spoilt: list[int]) -> None:
    """The sum to the bit as it would be formed here; buffers, unmoved and spoilt numbers too."""
    torch.manual_seed(1)
    model, data = Normed().eval(), dataset((16,), dtype=np.float32)
    data.x_train[np.concatenate([[0], *(CLIENTS[place] for place in spoilt)])] = np.nan
    data.x_train[:, 3] = 0  # whose weights stay where they are
    subject, arrays = trainer(WAYS[way], model, data), read_arrays(model)
    result = subject.train(arrays, CLIENTS, learning_rate=0.1, rngs=rngs())
    weights = np.array([3, 1, 2**28, 7, 1, 5])
    assert result.digest_there is not None
    seen = []
    got = digest(arrays, result, weigh=lambda norms: seen.append(norms) or weights)
    alone = [
        subject.train(arrays, [held], learning_rate=0.1, rngs=[rng]).arrays
        for held, rng in zip(CLIENTS, rngs(), strict=True)
    ]
    stacks = {name: np.concatenate([models[name] for models in alone]) for name in arrays}
    expected = digest_arrays(arrays, stacks, lambda norms: weights)
    np.testing.assert_allclose(seen, [expected.update_norm], rtol=1e-12)
    assert np.flatnonzero(~got.finite).tolist() == spoilt
    assert got.finite.tolist() == expected.finite.tolist()
    assert list(got.sum) == list(expected.sum)
    for name, array in expected.sum.items():
        assert got.sum[name].tobytes() == array.tobytes(), name
    assert (got.names, got.elements) == (expected.names, expected.elements)
    assert got.zeros.tolist() == expected.zeros.tolist()
    assert (got.zeros >= 6).all()
    np.testing.assert_allclose(got.squares, expected.squares, rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_buffer_that_is_not_finite_spoils_every_model(value: float) -> None:
    """It belongs to the model though nobody trains it."""
    model = Normed().eval()
    model.norm.running_mean[2] = value
    arrays = read_arrays(model)
    subject = trainer(WAYS["xla, together"], model, dataset())
    result = subject.train(arrays, CLIENTS, learning_rate=0.1, rngs=rngs())
    assert result.digest_there is not None
    got = digest(arrays, result)
    expected = digest_arrays(arrays, result.arrays, lambda norms: result.examples)
    assert got.finite.tolist() == expected.finite.tolist() == [False] * len(CLIENTS)
    assert got.zeros.tolist() == expected.zeros.tolist()
    assert np.isnan(got.update_norm).all()
    assert all((array == 0).all() for array in got.sum.values())


def test_what_is_digested_elsewhere() -> None:
    """Products that are not exact, clients out of order, and a single client."""
    model, data = network(), dataset()
    wide = Recipe(**{**vars(PLAIN), "batch_size": 100})
    for network_, recipe, clients in (
        (network().double(), PLAIN, CLIENTS),
        (model, wide, [CLIENTS[5], CLIENTS[0], CLIENTS[5] + 1]),
        (model, PLAIN, CLIENTS[:1]),
    ):
        subject = trainer(WAYS["xla, one after another"], network_, data, recipe)
        result = subject.train(
            read_arrays(network_), clients, learning_rate=0.1, rngs=rngs(range(len(clients)))
        )
        assert result.digest_there is None
        assert digest(read_arrays(network_), result).finite.all()


def test_a_call_takes_whole_lanes() -> None:
    plan = Plan(together=True, lanes=4, call=6, most=6, blocks=1)
    with pytest.raises(ValueError, match="6 clients a call are not a multiple of 4 lanes"):
        make_trainer(network(), dataset(), PLAIN, compiler="xla", plan=plan)


@pytest.mark.parametrize("way", WAYS)
def test_a_client_without_examples(way: str) -> None:
    model = network()
    subject = trainer(WAYS[way], model, dataset())
    clients = [CLIENTS[0], np.array([], np.int64)]
    with pytest.raises(ValueError, match="no examples"):
        subject.train(read_arrays(model), clients, learning_rate=0.1, rngs=rngs([0, 1]))


@pytest.mark.parametrize("way", WAYS)
def test_the_start_and_the_generators(way: str) -> None:
    """The model given is left alone; prepare trains nobody; global generators do not move."""
    model, data = network(), dataset()
    arrays = read_arrays(model)
    before, state = copy.deepcopy(arrays), torch.get_rng_state()
    subject = trainer(WAYS[way], model, data)
    subject.prepare(arrays, CLIENTS)
    first = subject.train(arrays, CLIENTS, learning_rate=0.1, rngs=rngs())
    again = subject.train(arrays, CLIENTS, learning_rate=0.1, rngs=iter(rngs()))
    assert all(arrays[name].tobytes() == before[name].tobytes() for name in arrays)
    assert all((first.arrays[n] == again.arrays[n]).all() for n in arrays)
    assert torch.equal(torch.get_rng_state(), state)
    other = subject.train(arrays, CLIENTS, learning_rate=0.2, rngs=rngs())
    assert not (first.arrays["output.bias"] == other.arrays["output.bias"]).any()


def test_prepared_means_compiled() -> None:
    import jax

    compiled: list[str] = []
    model, data = network(), dataset()
    subject = trainer(WAYS["xla, one after another"], model, data)
    arrays = read_arrays(model)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "compile" in event else None
    )
    subject.prepare(arrays, CLIENTS)
    assert compiled
    compiled.clear()
    subject.train(arrays, CLIENTS, learning_rate=0.1, rngs=rngs())
    subject.train(arrays, CLIENTS[:2], learning_rate=0.3, rngs=rngs([0, 1]))
    assert compiled == []


@pytest.mark.parametrize("way", ["xla, one after another", "torch, together", *list(WAYS)[-1:]])
def test_bfloat16(way: str) -> None:
    """Forward and backward are coarse; parameters, and what they are moved by, are not."""
    model, data = network(), dataset()
    arrays = read_arrays(model)

    def run(**more: Any) -> CohortResult:
        subject = trainer(WAYS[way], model, data, **more)
        return subject.train(arrays, CLIENTS, learning_rate=0.1, rngs=rngs())

    fine, coarse = run(), run(precision="bfloat16")
    for name, array in fine.arrays.items():
        assert coarse.arrays[name].dtype == np.float32
        moved = np.linalg.norm(array - arrays[name])
        assert 0 < np.linalg.norm(coarse.arrays[name] - array) < 0.05 * moved, name


class Normed(nn.Module):
    """Buffers, float and integer; layers that fedsim's own models do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 6)
        self.norm = nn.BatchNorm1d(6)
        self.layer_norm = nn.LayerNorm(6)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x.flatten(1)))
        return self.last(self.layer_norm(nn.functional.relu_(x)))


@pytest.mark.parametrize("way", WAYS)
def test_buffers(way: str) -> None:
    torch.manual_seed(1)
    model = Normed().double().eval()
    model.norm.running_mean.normal_()
    got = check(WAYS[way], model, dataset(), rtol=1e-11)
    assert got.arrays["norm.num_batches_tracked"].dtype == np.int64


class Sorted(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1)).sort(dim=1).values


class Branching(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x.flatten(1))
        return x if x.sum() > 0 else -x


class Centred(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x.flatten(1))
        return x - x.mean(dim=0)


class Flat(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1)).flatten()


def dropping() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES), nn.Dropout(0.5))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Sorted(16, CLASSES), r"aten\.sort"),
        (lambda: Branching(16, CLASSES), r"aten\.(_local_scalar_dense|item|is_nonzero)|control"),
        (lambda: Centred(16, CLASSES), "influence each other"),
        (lambda: Flat(16, CLASSES), "classes"),
        (dropping, r"aten\.(native_dropout|bernoulli)"),
        (Normed, "."),  # in training mode: it counts batches
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3).requires_grad_(False)), "trained"),
    ],
)
def test_what_only_torch_trains(make: Any, reason: str) -> None:
    model = make()
    assert re.search(reason, translatable(model, SHAPE) or "")
    with pytest.raises(Untranslatable, match=reason):
        trainer(WAYS["xla, together"], model, dataset())


@pytest.mark.parametrize(
    "make", [lambda: Centred(16, CLASSES), dropping, lambda: Branching(16, CLASSES)]
)
def test_torch_falls_back_to_one_after_another(make: Any) -> None:
    model = make()
    subject = trainer(WAYS["torch, together"], model, dataset())
    assert type(subject) is TorchTrainer
    torch.manual_seed(0)
    got = subject.train(read_arrays(model), CLIENTS, learning_rate=0.1, rngs=rngs())
    torch.manual_seed(0)
    assert_same(got, reference(model, dataset()), rtol=0)


def test_without_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    model = network()
    assert "fedsim[xla]" in str(translatable(model, SHAPE))
    with pytest.raises(ConfigError, match=r"fedsim\[xla\]"):
        trainer(WAYS["xla, together"], model, dataset())
    assert type(trainer(WAYS["torch, together"], model, dataset())) is VectorisedTrainer


def test_jax_is_not_imported_before_it_is_needed() -> None:
    script = "import sys, fedsim.training; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


PROGRAM = """
    import os, sys
    import numpy as np, torch
    from fedsim.data.dataset import Dataset
    from fedsim.models import build_model
    from fedsim.randomness import stream
    from fedsim.training import Recipe, make_trainer, read_arrays
    from fedsim.training.blocks import Plan
    from fedsim.training.xla import load_jax

    jax = load_jax()
    counted = {"hits": 0, "misses": 0}
    def listen(event, **_):
        for name in counted:
            counted[name] += event.endswith("cache_" + name)
    jax.monitoring.register_event_listener(listen)
    x = stream(0, "x").standard_normal((40, 5), dtype=np.float32)
    y = stream(0, "y").integers(0, 3, 40)
    data = Dataset(name="", x_train=x, y_train=y, x_test=x, y_test=y, classes=3,
                   class_names=("a", "b", "c"), scale=1.0)
    model = build_model("mlp", input_shape=(5,), classes=3, width=6, activation="tanh", seed=0)
    recipe = Recipe(epochs=1, steps=0, batch_size=4, momentum=0.0, weight_decay=0.0,
                    clip_norm=0.0, proximal_mu=0.0)
    trainer = make_trainer(model, data, recipe, compiler="xla",
                           plan=Plan(together=False, lanes=1, call=1, most=1, blocks=1))
    held = [np.arange(30)]
    result = trainer.train(read_arrays(model), held, learning_rate=0.1, rngs=[stream(0, "b")])
    bits = b"".join(a.tobytes() for a in result.arrays.values())
    print(counted["hits"], counted["misses"], hash(bits), os.environ["XLA_FLAGS"])
"""


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a process that trains a client, and says how often it found what it needed."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env={
            **{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
            "FEDSIM_CACHE_DIR": str(cache),
            "PYTHONHASHSEED": "0",
            **environment,
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str]) -> tuple[int, int, str, str]:
    """Return (hits, misses, bits, XLA_FLAGS)."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    hits, misses, bits, flags = out.split(maxsplit=3)
    return int(hits), int(misses), bits, flags.strip()


def test_processes_share_what_is_compiled(tmp_path: Path) -> None:
    """Two that start together, one that comes after them, one that finds garbage."""
    first, second = map(answer, [start(tmp_path), start(tmp_path)])
    assert first[2] == second[2]
    third = answer(start(tmp_path))
    assert (third[0] > 0, third[1]) == (True, 0)
    assert third[2] == first[2]
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:100])
    assert answer(start(tmp_path))[2] == first[2]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    given = "--xla_cpu_enable_fast_math=false"  # a flag that XLA does not know ends the process
    hits, _, _, flags = answer(start(tmp_path / "file", XLA_FLAGS=given))
    assert hits == 0
    assert flags == f"--xla_cpu_multi_thread_eigen=false {given}"
    unknown = start(tmp_path, XLA_FLAGS="--no-flag=1")
    unknown.communicate(timeout=120)
    assert unknown.returncode != 0  # what the user gives is read
