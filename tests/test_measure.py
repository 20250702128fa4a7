"""What is counted and measured: convergence, the test part, payloads, clocks."""

from __future__ import annotations

import math
import threading
import time
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.measure import evaluation
from fedsim.measure.clocks import spent
from fedsim.measure.convergence import rounds_to_target
from fedsim.measure.evaluation import evaluate
from fedsim.measure.payload import dense_bytes, layer_norms, total_norm
from fedsim.randomness import stream


@pytest.mark.parametrize(
    ("rounds", "accuracy", "target", "expected"),
    [
        ([1, 2, 3], [0.5, 0.75, 1.0], 0.75, 2.0),  # exactly at a round
        ([1, 2, 3], [0.5, 0.7, 0.9], 0.8, 2.5),  # half of the way between two
        ([10, 20, 40], [0.2, 0.4, 0.8], 0.5, 25.0),  # as many rounds as lie between evaluations
        ([1, 2, 3], [0.5, 0.6, 0.7], 0.4, 1.0),  # no model before the first
        ([1, 2, 3], [0.5, 0.6, 0.7], 0.71, None),  # censored
        ([1, 2, 3, 4], [0.6, 0.2, 0.2, 1.0], 0.8, 3.5),  # from the best so far, not from 0.2
        ([1, 2, 3, 4], [0.5, 0.9, 0.1, 0.9], 0.9, 2.0),  # the first time counts
        ([1, 2, 3], [math.nan, 0.5, 0.7], 0.6, 2.5),  # a round without a figure
        ([], [], 0.5, None),
    ],
)
def test_rounds_to_target_by_hand(
    rounds: list[int], accuracy: list[float], target: float, expected: float | None
) -> None:
    reached = rounds_to_target(rounds, accuracy, target)
    assert reached == (None if expected is None else pytest.approx(expected, rel=1e-12))


curves = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@settings(deadline=None)
@given(curves, st.floats(0, 1), st.data())
def test_rounds_to_target_inverts_the_monotone_curve(
    accuracy: list[float], target: float, data: st.DataObject
) -> None:
    steps = data.draw(st.lists(st.integers(1, 9), min_size=len(accuracy), max_size=len(accuracy)))
    rounds = list(accumulate(steps))
    best = list(accumulate(accuracy, max))
    reached = rounds_to_target(rounds, accuracy, target)
    assert (reached is None) == (best[-1] < target)
    if reached is None:
        return
    assert rounds[0] <= reached <= rounds[-1]
    if target > best[0]:
        assert np.interp(reached, rounds, best) == pytest.approx(target, abs=1e-9)
    else:
        assert reached == rounds[0]


@settings(deadline=None)
@given(curves, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_never_takes_fewer_rounds(
    accuracy: list[float], one: float, other: float
) -> None:
    rounds = range(1, len(accuracy) + 1)
    low, high = (rounds_to_target(rounds, accuracy, t) for t in sorted((one, other)))
    assert high is None or (low is not None and low <= high)


def classifier() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a model that is right about some of 23 examples."""
    draw = stream(0, "classifier")
    x = torch.from_numpy(draw.standard_normal((23, 4), np.float32))
    y = torch.from_numpy(draw.integers(0, 3, 23))
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(draw.standard_normal((3, 4), np.float32)))
        model.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    return model, x, y


def test_evaluate_by_definition() -> None:
    model, x, y = classifier()
    scores = model(x).detach().double().numpy()
    accuracy = float(np.mean(scores.argmax(axis=1) == y.numpy()))
    log_sum = np.log(np.exp(scores).sum(axis=1))
    loss = float(np.mean(log_sum - scores[np.arange(23), y.numpy()]))
    assert 0 < accuracy < 1
    assert evaluate(model, x, y) == (accuracy, pytest.approx(loss, rel=1e-6))


@pytest.mark.parametrize("batch", [1, 7, 22, 23])
def test_evaluate_does_not_depend_on_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = classifier()
    accuracy, loss = evaluate(model, x, y)
    monkeypatch.setattr(evaluation, "BATCH_EXAMPLES", batch)
    assert evaluate(model, x, y) == (accuracy, pytest.approx(loss, rel=1e-6))


def test_dense_bytes_counts_elements() -> None:
    arrays = {"w": np.zeros((3, 2), np.float32), "s": np.array(1.0), "n": np.zeros(3, np.int8)}
    assert dense_bytes(arrays) == 3 * 2 * 4 + 8 + 3
    assert dense_bytes({}) == 0


def test_norms_by_hand() -> None:
    before = {"a": np.array([1.0, 1.0], np.float32), "b": np.zeros(1, np.float32)}
    after = {"b": np.array([12.0], np.float32), "a": np.array([4.0, 5.0], np.float32)}
    norms = layer_norms(before, after)
    assert norms == {"a": 5.0, "b": 12.0}
    assert list(norms) == ["a", "b"]
    assert total_norm(norms) == 13.0


def test_norms_do_not_overflow_in_float32() -> None:
    before = {"w": np.full(4, -1e30, np.float32)}
    after = {"w": np.full(4, 1e30, np.float32)}
    assert layer_norms(before, after)["w"] == pytest.approx(4e30, rel=1e-6)


def busy() -> int:
    return sum(range(500_000))


def test_work_takes_more_cpu_time_than_sleep() -> None:
    with spent() as working:
        busy()
    with spent() as sleeping:
        time.sleep(0.01)
    assert working.cpu_seconds > sleeping.cpu_seconds
    assert sleeping.wall_seconds > sleeping.cpu_seconds


def test_work_of_other_threads_is_not_counted() -> None:
    with spent() as own:
        busy()
    with spent() as helped:
        helper = threading.Thread(target=busy)
        helper.start()
        helper.join()
    assert helped.cpu_seconds < own.cpu_seconds


def test_a_block_that_raises_is_measured_too() -> None:
    with pytest.raises(TypeError), spent() as seconds:
        busy() + "seconds"  # type: ignore[operator]
    assert seconds.cpu_seconds > 0
    assert seconds.wall_seconds > 0
