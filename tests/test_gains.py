"""Initialisation gains against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedsim.models import ACTIVATIONS, activation_gain, make_activation
from fedsim.models.gains import second_moment, variance_keeping_gain


def test_quadrature_against_closed_forms() -> None:
    def hardtanh(q: float) -> float:
        inside = math.erf(1 / math.sqrt(2 * q))
        return q * inside - math.sqrt(2 * q / math.pi) * math.exp(-1 / (2 * q)) + 1 - inside

    for q in (0.01, 0.3, 1.0, 2.5, 400.0):
        assert second_moment(nn.Identity(), q) == pytest.approx(q, rel=1e-12)
        assert second_moment(nn.ReLU(), q, (0.0,)) == pytest.approx(q / 2, rel=1e-12)
        assert second_moment(nn.Hardtanh(), q, (-1.0, 1.0)) == pytest.approx(hardtanh(q), rel=1e-12)
        fourth = second_moment(make_activation("relu_squared"), q, (0.0,))
        assert fourth == pytest.approx(1.5 * q**2, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "gain"),
    [
        ("identity", 1),
        ("relu", math.sqrt(2)),
        ("leaky_relu(1)", 1),
        ("leaky_relu(negative_slope=0.5)", math.sqrt(1.6)),
        ("prelu", math.sqrt(2 / 1.0625)),
        ("tanh", 5 / 3),
        ("sigmoid", 4),
        ("selu", 1),
        ("relu_squared", math.sqrt(2 / 3)),
        ("tempered_sigmoid", 5 / 3),  # is tanh
        ("tempered_sigmoid(1, 1, 0)", 4),  # is the sigmoid
        ("tempered_sigmoid(4, 1, 2)", 5 / 3),  # 2 tanh(x / 2): scales that undo each other
        ("tempered_sigmoid(1, 2, 1)", 2),  # sigmoid(2 x) - 1: the sigmoid, mirrored and steeper
    ],
)
def test_gains_known_in_closed_form(text: str, gain: float) -> None:
    assert activation_gain(text) == pytest.approx(gain, rel=1e-12)


@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu", "prelu", "selu"])
def test_literature_and_computation_agree(name: str) -> None:
    computed = variance_keeping_gain(make_activation(name).double(), ACTIVATIONS[name].kinks)
    assert activation_gain(name) == pytest.approx(computed, rel=1e-7)


def test_tanh_gain_is_the_computed_one_rounded_up() -> None:
    assert variance_keeping_gain(torch.tanh) == pytest.approx(1.5925, abs=1e-4)
