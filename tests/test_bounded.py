"""The mean that no client can move far: by hand, in blocks and alone, and with noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedsim.algorithms.sums import WeightedSum, block_sum
from fedsim.config import from_flat
from fedsim.errors import ConfigError
from fedsim.federation.bounded import CLIPPING, BoundedMean, make_bounded, mean_update
from fedsim.privacy.clipping import UNIT, clip_weights
from fedsim.privacy.noise import NoiseSource, source_of

MODEL = {"w": np.array([[1.0, 2.0]], np.float32), "b": np.float32(3.0) * np.ones((), np.float32)}
# Norms 5, 0.5 and 0: 3-4-5 with the scalar in it, a short one, and one that did not move.
UPDATES = (
    {"w": np.array([[3.0, 0.0]], np.float32), "b": np.array(4.0, np.float32)},
    {"w": np.array([[0.0, 0.5]], np.float32), "b": np.array(0.0, np.float32)},
    {"w": np.array([[0.0, 0.0]], np.float32), "b": np.array(0.0, np.float32)},
)


def models() -> list[dict[str, np.ndarray]]:
    return [{name: MODEL[name] + update[name] for name in MODEL} for update in UPDATES]


def total(clipping_norm: float) -> WeightedSum:
    norms = np.array([5.0, 0.5, 0.0])
    weights = clip_weights(norms, clipping_norm).tolist()
    return block_sum(zip(models(), weights, strict=True), unit=UNIT)


def made(**settings: Any) -> Any:
    flat = {"privacy.level": "user", "privacy.clipping_norm": 1.0, "privacy.noise_multiplier": 2.0}
    flat |= {"privacy.delta": 1e-3, "privacy.reproducible_noise": True}
    flat |= {"data.clients": 100, "server.clients_per_round": 10, "model.activation": "relu"}
    experiment = from_flat(flat | settings, vocabulary={})
    return make_bounded(
        experiment,
        MODEL,
        clients=100,
        noise_multiplier=experiment.privacy.noise_multiplier,
        source=lambda round, purpose: source_of(0, purpose, round=round),
    )


def test_updates_are_scaled_to_the_norm_and_weigh_the_same() -> None:
    mean = mean_update(MODEL, total(1.0), count=3)
    # (3, 0, 4) / 5 + (0, 0.5, 0) + 0, over three.
    np.testing.assert_allclose(mean["w"], [[0.6 / 3, 0.5 / 3]], rtol=1e-6)
    np.testing.assert_allclose(mean["b"], 0.8 / 3, rtol=1e-6)
    assert total(1.0).whole == 2  # the zero update is one of them


def test_an_update_is_never_longer_than_the_norm() -> None:
    for norm in (1.0, 0.3, 1e-3, 4.9999):
        (alone,) = [block_sum([(models()[0], int(clip_weights(np.array([5.0]), norm)[0]))])]
        moved = mean_update(MODEL, alone, count=1)
        assert math.hypot(*moved["w"].ravel(), float(moved["b"])) <= norm * (1 + 1e-12)


def test_without_a_norm_all_weigh_the_same() -> None:
    mean = BoundedMean(made(**NONE), MODEL)
    result = mean.aggregate_sum(1, MODEL, total(math.inf))
    np.testing.assert_array_equal(result["w"], np.mean([m["w"] for m in models()], axis=0))
    assert dict(mean.figures()) == {}


NONE = {
    "privacy.level": "none",
    "privacy.noise_multiplier": 0.0,
    "privacy.clipping_norm": 0.0,
    "privacy.delta": 0.0,
}


def test_noise_is_over_the_expected_cohort_whoever_came() -> None:
    big = {"w": np.zeros((200, 200), np.float32)}
    aggregator = BoundedMean(
        made(**NONE),
        big,
        clipping_norm=0.5,
        expected_cohort=10,
        noise=lambda c: 3.0 * c,
        source=lambda round, purpose: source_of(1, purpose, round=round),
    )
    nobody = WeightedSum(arrays={}, weight=0, clients=0)
    result = aggregator.aggregate_sum(1, big, nobody)["w"]
    assert result.std() == pytest.approx(3.0 * 0.5 / 10, rel=0.02)
    assert aggregator.figures()["noise_std"] == pytest.approx(0.15)
    assert aggregator.figures()["signal_to_noise"] == 0.0
    assert aggregator.survives_nobody
    again = aggregator.aggregate_sum(2, big, nobody)["w"]
    assert abs(np.corrcoef(result.ravel(), again.ravel())[0, 1]) < 0.03


def test_what_clients_noised_is_topped_up_to_what_was_promised() -> None:
    share = 2.0 / math.sqrt(10)  # of ten expected, four came
    aggregator = made(**{"privacy.noise_by": "clients", "privacy.secure_aggregation": True})
    assert aggregator._client_std == pytest.approx(share)
    here, there = aggregator._noise_stds(4)
    assert math.hypot(here, there) == pytest.approx(2.0)
    assert aggregator._noise_stds(12)[0] == 0.0


def test_signal_to_noise_is_the_mean_update_over_its_noise() -> None:
    aggregator = made()
    aggregator.aggregate_sum(1, MODEL, total(1.0))
    figures = aggregator.figures()
    norm = math.hypot(0.6, 0.5, 0.8) / 10
    assert figures["signal_to_noise"] == pytest.approx(norm / (0.2 * math.sqrt(3)), rel=1e-6)
    assert figures["clipped_fraction"] == pytest.approx(1 / 3)
    assert figures["clipping_norm"] == 1.0


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_adaptive_clipping_comes_to_the_median_from_both_sides(start: float) -> None:
    big = {"w": np.zeros(4, np.float32)}
    aggregator = made(
        **{
            "privacy.clipping": "adaptive",
            "privacy.clipping_norm": start,
            "privacy.noise_multiplier": 0.5,
        }
    )
    norms = np.linspace(0.5, 1.5, 10)
    for round in range(1, 120):
        c = aggregator.clipping_norm
        weights = clip_weights(norms, c)
        clients = [
            ({"w": np.array([n, 0, 0, 0], np.float32)}, int(w))
            for n, w in zip(norms, weights, strict=True)
        ]
        aggregator._inner.aggregate_sum = lambda r, a, t: a  # the model stays
        aggregator.aggregate_sum(round, big, block_sum(clients, unit=UNIT))
    assert 0.8 < aggregator.clipping_norm < 1.25


def test_the_moving_norm_is_in_the_checkpoint() -> None:
    settings = {"privacy.clipping": "adaptive", "privacy.noise_multiplier": 0.5}
    first, second = made(**settings), made(**settings)
    first.aggregate_sum(1, MODEL, total(1.0))
    assert first.clipping_norm != second.clipping_norm
    second.restore(first.state())
    assert second.clipping_norm == first.clipping_norm
    assert CLIPPING in first.state()


def test_whole_numbers_cannot_be_noised() -> None:
    with pytest.raises(ConfigError, match=r"steps holds whole numbers.*use a model without it"):
        BoundedMean(made(**NONE), {**MODEL, "steps": np.array(3)})


def test_a_larger_cohort_is_imitated() -> None:
    aggregator = made(**{"privacy.noise_cohort": 1000, "data.clients": 100, "privacy.delta": 1e-5})
    aggregator.aggregate_sum(1, MODEL, total(1.0))
    assert aggregator.figures()["noise_std"] == pytest.approx(2.0 * 1.0 / 1000)


def test_too_few_for_adaptive_clipping_is_said() -> None:
    with pytest.raises(ConfigError, match="use 'fixed'"):
        made(**{"privacy.clipping": "adaptive", "privacy.noise_multiplier": 1.0})


def test_sources_are_told_apart() -> None:
    one, two = (source_of(0, p, round=1).normal(3) for p in ("noise", "clipping"))
    assert not np.array_equal(one, two)
    assert isinstance(source_of(None, "noise"), NoiseSource)
    assert not np.array_equal(source_of(None, "a").normal(3), source_of(None, "a").normal(3))
