"""Gradient matching finds a digit again, from its gradient alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsim.data import Dataset, load_dataset
from fedsim.models import ACTIVATIONS
from fedsim.privacy.attacks.images import psnr_db
from fedsim.privacy.attacks.matching import (
    cosine,
    cosine_similarity,
    first_guesses,
    gradients_of,
    roughness,
)
from fedsim.privacy.attacks.measure import Effort, measure
from fedsim.privacy.attacks.settings import Setting, mean_gradient, set_scene

FOUND = 30.0  # dB: nobody sees a difference


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_dlg_finds_a_digit_and_a_random_guess_does_not(digits: Dataset, activation: str) -> None:
    setting = Setting(activation=activation, width=32, batch=1)
    (found,) = measure("dlg", [setting], digits, [0], effort=Effort(iterations=100, starts=1))
    assert found.row.psnr_db is not None
    assert found.row.psnr_db > FOUND
    scene = set_scene(setting, digits, 0)
    guess = first_guesses(scene, 0, 1)[0].numpy()
    assert psnr_db(scene.x.numpy()[0], guess[0]) < 15


def test_a_batch_comes_back_in_whatever_order(digits: Dataset) -> None:
    setting = Setting(activation="sigmoid", width=64, batch=2)
    (found,) = measure("dlg", [setting], digits, [1], effort=Effort(iterations=150, starts=2))
    assert found.row.recovered_at_0_1 == 1


def test_the_angle_finds_a_digit_through_convolutions(digits: Dataset) -> None:
    """Where nothing can be divided, with a kink and without one."""
    for activation in ("relu", "sigmoid"):
        setting = Setting(activation=activation, model="cnn", width=16, batch=1)
        (found,) = measure("cosine", [setting], digits, [0], effort=Effort(starts=1, iterations=80))
        assert found.row.psnr_db is not None
        assert found.row.psnr_db > 18


def test_noise_ends_matching(digits: Dataset) -> None:
    private = Setting(
        activation="tanh", width=32, batch=1, level="user", clipping_norm=1.0, noise_multiplier=1.0
    )
    for attack in ("dlg", "cosine"):
        (found,) = measure(attack, [private], digits, [0], effort=Effort(iterations=60, starts=1))
        assert found.row.psnr_db is not None
        assert found.row.psnr_db < 15


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_can_be_matched(digits: Dataset, activation: str) -> None:
    """Gradients of gradients exist, and starts that go together are what each is by itself."""
    setting = Setting(activation=activation, width=8, batch=2)
    scene = set_scene(setting, digits, 0)
    found = cosine(scene, 0, iterations=3, starts=2)
    assert found.shape == scene.x.shape
    assert scene.low <= float(found.min()) <= float(found.max()) <= scene.high
    guesses = first_guesses(scene, 0, 2)
    together = gradients_of(scene.model, scene.y)(guesses)
    weights = {name: p.detach() for name, p in scene.model.named_parameters()}
    for number, guess in enumerate(guesses):
        alone = mean_gradient(scene.model, weights, guess, scene.y)
        for name, part in alone.items():
            assert torch.allclose(together[name][number], part, atol=1e-6)


def test_the_start_that_matches_best_is_kept(digits: Dataset) -> None:
    setting = Setting(activation="tanh", width=16, batch=1)
    scene = set_scene(setting, digits, 0)
    gradients = gradients_of(scene.model, scene.y)

    def match(x: torch.Tensor) -> float:
        return float(cosine_similarity(gradients(x[None]), scene.received)[0])

    best = match(cosine(scene, 0, iterations=5, starts=3, total_variation=0.0))
    alone = [
        match(cosine(scene, 0, iterations=5, starts=n, total_variation=0.0)) for n in (1, 2, 3)
    ]
    assert best == max(alone)
    assert alone == sorted(alone)


def test_the_angle_by_hand() -> None:
    target = {"a": torch.tensor([3.0]), "b": torch.tensor([0.0, 4.0])}
    found = {
        "a": torch.tensor([[6.0], [-3.0], [0.0], [0.0]]),
        "b": torch.tensor([[0.0, 8.0], [0.0, -4.0], [1.0, 0.0], [0.0, 0.0]]),
    }
    assert cosine_similarity(found, target).tolist() == pytest.approx([1, -1, 0, 0])


def test_total_variation_by_hand() -> None:
    x = torch.zeros(2, 1, 1, 2, 2)
    x[1, 0, 0, 0, 0] = 1.0  # down: 1 and 0, across: 1 and 0
    assert roughness(x).tolist() == [0.0, 1.0]
    assert roughness(torch.ones(2, 3, 4)).tolist() == [0.0, 0.0]


def test_equal_seeds_find_the_same(digits: Dataset) -> None:
    setting = Setting(width=16, batch=1)
    effort = Effort(iterations=5, starts=2)
    for attack in ("dlg", "cosine"):
        one, other = (
            next(measure(attack, [setting], digits, [3], effort=effort)).shown for _ in range(2)
        )
        assert one is not None
        assert other is not None
        assert np.array_equal(one.reconstructions, other.reconstructions)
