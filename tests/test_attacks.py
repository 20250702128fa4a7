"""What leaks from a gradient: labels, and examples from the first dense layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data import Dataset, load_dataset
from fedsim.errors import ConfigError, PrivacyError
from fedsim.models import ACTIVATIONS
from fedsim.privacy.attacks.gallery import gallery_bytes, read_gallery
from fedsim.privacy.attacks.labels import label_counts, share_recovered
from fedsim.privacy.attacks.measure import Effort, measure
from fedsim.privacy.attacks.rows import LeakageRow, by_arm, read_rows, rows_bytes
from fedsim.privacy.attacks.settings import Scene, Setting, set_scene

DATA = Path(os.environ.get("FEDSIM_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
SEEDS = range(3)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def rows(attack: str, data: Dataset, seeds: Sequence[int] = SEEDS, **setting: Any) -> list[Any]:
    trap_scale = setting.pop("trap_scale", 1.0)
    protect = setting.pop("protect", None)
    found = measure(
        attack,
        [Setting(**setting)],
        data,
        seeds,
        effort=Effort(trap_scale=trap_scale),
        protect=protect,
    )
    return [outcome.row for outcome in found]


def mean(found: list[LeakageRow], name: str) -> float:
    return float(np.mean([getattr(row, name) for row in found]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_example_gives_its_label_and_itself_away(digits: Dataset, activation: str) -> None:
    """Whatever the activation, and as a gradient or as an update: the bias's input is always 1."""
    for steps in (0, 1, 3):
        sent = {"activation": activation, "batch": 1, "local_steps": steps, "width": 64}
        assert mean(rows("labels", digits, **sent), "labels_recovered") == 1
        extracted = rows("analytic", digits, **sent)
        # Of an update, float32 stores w, so that w0 - w has lost some digits.
        assert mean(extracted, "recovered_at_1e_3" if steps == 0 else "recovered_at_0_1") == 1


def test_counts_by_hand() -> None:
    """Four examples, uniform predictions of three classes: dL/db = 1/3 - n/4."""
    true = np.array([2, 0, 2])
    uniform = np.full(3, 1 / 3)
    assert label_counts(uniform - true / 4, uniform, 4).tolist() == true.tolist()
    # A guess that is wrong, and a class that is surely there however small its negative sign.
    gradient = np.array([0.3, -1e-9, -0.3])
    assert label_counts(gradient, np.array([0.6, 0.0, 0.4]), 2).tolist() == [0, 1, 1]


def test_the_share_of_labels_counts_repeats() -> None:
    assert share_recovered(np.array([2, 1, 1]), np.array([0, 0, 0, 2])) == 0.75


@given(
    st.integers(1, 20).flatmap(lambda n: st.lists(st.integers(0, 9), min_size=n, max_size=n)),
    st.integers(0, 100),
)
def test_with_the_true_predictions_every_label_is_recovered(labels: list[int], seed: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(labels), 10)))
    y = torch.tensor(labels)
    bias = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(logits + bias, y).backward()
    assert bias.grad is not None
    known = torch.softmax(logits, dim=1).mean(0).numpy()
    counts = label_counts(bias.grad.numpy(), known, len(labels))
    assert share_recovered(counts, y.numpy()) == 1


def test_labels_of_a_batch_are_recovered_from_an_untrained_model(digits: Dataset) -> None:
    assert mean(rows("labels", digits, batch=64), "labels_recovered") > 0.9
    assert mean(rows("labels", digits, batch=64, local_steps=5), "labels_recovered") > 0.8


def check_relu_leaks_and_tanh_does_not(data: Dataset) -> None:
    assert mean(rows("analytic", data, activation="relu"), "recovered_at_1e_3") > 0.75
    assert mean(rows("analytic", data, activation="tanh"), "recovered_at_1e_3") == 0


def test_a_relu_layer_of_500_gives_most_of_8_digits_away_and_tanh_none(digits: Dataset) -> None:
    check_relu_leaks_and_tanh_does_not(digits)


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="no real data: set FEDSIM_DATA_DIR")
def test_a_relu_layer_of_500_gives_most_of_8_images_of_mnist_away_and_tanh_none() -> None:
    check_relu_leaks_and_tanh_does_not(load_dataset("mnist", directory=str(DATA)))


def test_the_pictures_agree(digits: Dataset) -> None:
    for activation, alike in (("relu", True), ("tanh", False)):
        (found,) = measure("analytic", [Setting(activation=activation)], digits, [0])
        assert found.shown is not None
        assert found.shown.originals.shape == found.shown.reconstructions.shape == (8, 1, 8, 8)
        difference = abs(found.shown.originals - found.shown.reconstructions)
        near = np.mean(difference.max(axis=(1, 2, 3)) < 1e-3)
        assert near == found.row.recovered_at_1e_3
        assert bool(near > 0.5) is alike


def test_larger_batches_hide_more(digits: Dataset) -> None:
    shares = [mean(rows("analytic", digits, batch=n), "recovered_at_1e_3") for n in (1, 8, 64)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert shares[2] < 0.5


def test_a_trap_beats_honest_weights_at_batch_64(digits: Dataset) -> None:
    honest = mean(rows("analytic", digits, batch=64), "recovered_at_1e_3")
    trapped = rows("trap", digits, batch=64)
    assert mean(trapped, "recovered_at_1e_3") > honest + 0.05
    assert {row.weights for row in trapped} == {"trap"}


def test_a_trap_that_is_scaled_up_opens_tanh_too(digits: Dataset) -> None:
    """A dishonest server makes any function flat almost everywhere."""
    scaled = rows("trap", digits, activation="tanh", trap_scale=100.0)
    assert mean(scaled, "recovered_at_1e_3") > 0.5
    assert {row.weights for row in scaled} == {"trap x100"}


def test_a_trap_fires_as_rarely_as_it_should(digits: Dataset) -> None:
    from fedsim.privacy.attacks.analytic import set_trap

    scene = set_scene(Setting(batch=16), digits, 0, prepare=set_trap)
    layer = scene.model.get_submodule("dense1")
    on = (layer(scene.auxiliary.flatten(1)) > 0).double().mean()
    assert float(on) == pytest.approx(1 / 16, rel=0.01)
    untouched = set_scene(Setting(batch=16), digits, 0).model.get_submodule("dense1")
    assert torch.allclose(layer.weight.norm(dim=1), untouched.weight.norm(dim=1))
    assert torch.equal((layer.weight < 0).sum(dim=1), torch.full((500,), 32))


@pytest.mark.parametrize("level", ["user", "example"])
@pytest.mark.parametrize("steps", [0, 2])
def test_noise_ends_extraction(digits: Dataset, level: str, steps: int) -> None:
    protected = {"level": level, "clipping_norm": 1.0, "noise_multiplier": 0.1, "width": 100}
    found = rows("analytic", digits, batch=1, local_steps=steps, **protected)
    assert mean(found, "recovered_at_0_1") == 0
    assert mean(rows("analytic", digits, batch=1, width=100), "recovered_at_1e_3") == 1


def test_clipping_alone_ends_nothing(digits: Dataset) -> None:
    """It scales numerator and denominator alike."""
    for level in ("user", "example"):
        found = rows("analytic", digits, batch=1, level=level, clipping_norm=1e-2, width=100)
        assert mean(found, "recovered_at_1e_3") == 1


def test_what_is_sent_is_clipped_to_the_norm(digits: Dataset) -> None:
    for level in ("user", "example"):
        setting = Setting(level=level, clipping_norm=0.01, width=32)
        assert norm(set_scene(setting, digits, 0)) <= 0.01 * (1 + 1e-6)
    assert norm(set_scene(Setting(width=32), digits, 0)) > 0.01


def norm(scene: Scene) -> float:
    return float(torch.cat([part.flatten() for part in scene.received.values()]).norm())


def test_a_protection_of_one_s_own_is_given_the_update(digits: Dataset) -> None:
    seen: list[float] = []

    def protect(arrays: Any) -> Any:
        seen.append(float(np.sqrt(sum((a.astype(float) ** 2).sum() for a in arrays.values()))))
        return {name: np.zeros_like(array) for name, array in arrays.items()}

    found = rows("analytic", digits, [0], batch=1, local_steps=1, width=32, protect=protect)
    gradient = norm(set_scene(Setting(batch=1, width=32), digits, 0))
    assert seen == pytest.approx([0.1 * gradient], rel=1e-4)
    assert mean(found, "recovered_at_0_1") == 0
    assert mean(found, "psnr_db") < 20  # a uniform grey stands for what was not found


def test_the_update_of_one_step_is_the_gradient_but_for_rounding(digits: Dataset) -> None:
    gradient = set_scene(Setting(width=32), digits, 0).received
    update = set_scene(Setting(width=32, local_steps=1), digits, 0).received
    for name, part in gradient.items():
        assert torch.allclose(update[name], part, atol=1e-5)


def test_steps_are_those_of_stochastic_gradient_descent(digits: Dataset) -> None:
    """Three steps beside torch's own optimiser."""
    setting = Setting(width=16, local_steps=3, learning_rate=0.2, activation="tanh")
    scene = set_scene(setting, digits, 1)
    start = [p.detach().clone() for p in scene.model.parameters()]
    optimiser = torch.optim.SGD(scene.model.parameters(), lr=0.2)
    for _ in range(3):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(scene.model(scene.x), scene.y).backward()
        optimiser.step()
    pairs = zip(start, scene.model.parameters(), scene.received.values(), strict=True)
    for before, after, received in pairs:
        assert torch.allclose((before - after) / (0.2 * 3), received, atol=1e-6)


def test_arms_are_paired_and_the_same_again(digits: Dataset) -> None:
    one, other = (
        set_scene(Setting(activation=name, width=16), digits, 4) for name in ("relu", "tanh")
    )
    assert torch.equal(one.x, other.x)
    again = set_scene(Setting(width=16), digits, 4)
    assert all(torch.equal(part, again.received[name]) for name, part in one.received.items())
    assert not torch.equal(one.x, set_scene(Setting(width=16), digits, 5).x)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch": 0}, "batch = 0: a client holds at least 1"),
        ({"local_steps": -1}, "local_steps = -1: must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0: must be above 0"),
        ({"level": "users"}, "level = 'users': unknown; did you mean 'user'"),
        ({"level": "user"}, "clipping_norm = 0.0: level 'user' needs a norm"),
        ({"noise_multiplier": 1.0}, "of level user or example"),
        ({"level": "user", "clipping_norm": 1.0, "noise_multiplier": -1.0}, "at least 0"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        Setting(**setting)


def test_what_cannot_be_measured(digits: Dataset) -> None:
    with pytest.raises(PrivacyError, match=r"batch = 99999: digits has 1,\d+ training examples"):
        rows("labels", digits, batch=99999)
    with pytest.raises(PrivacyError, match="use model 'mlp', or the attack 'cosine'"):
        rows("analytic", digits, model="cnn", width=8)
    with pytest.raises(PrivacyError, match="attack 'analitic': unknown; did you mean 'analytic'"):
        rows("analitic", digits)
    with pytest.raises(ConfigError, match="unknown; did you mean 'relu'"):
        Setting(activation="reluu")


def test_rows_and_pictures_come_back_from_their_files(digits: Dataset) -> None:
    settings = [Setting(activation=name, batch=2, width=16) for name in ("relu", "tanh")]
    found = list(measure("analytic", settings, digits, [0, 1]))
    kept = read_rows(rows_bytes(outcome.row for outcome in found))
    assert kept == [outcome.row for outcome in found]
    assert [[row.seed for row in arm] for arm in by_arm(kept)] == [[0, 1], [0, 1]]
    shown = [outcome.shown for outcome in found if outcome.shown is not None]
    for before, after in zip(shown, read_gallery(gallery_bytes(shown)), strict=True):
        assert (before.name, before.low, before.high) == (after.name, after.low, after.high)
        assert np.array_equal(before.originals, after.originals)
        assert np.array_equal(before.reconstructions, after.reconstructions)


def test_files_that_are_something_else() -> None:
    with pytest.raises(PrivacyError, match=r"rows.jsonl:1: not a row"):
        read_rows(b'{"attack": "analytic"}\n')
    with pytest.raises(PrivacyError, match="holds no reconstructions"):
        read_gallery(b"nothing")
