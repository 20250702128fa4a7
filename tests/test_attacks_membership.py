"""Who was trained on: what an overfitted model tells, and what a fresh one cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim.data import Dataset, load_dataset
from fedsim.errors import PrivacyError
from fedsim.privacy.attacks.measure import Effort, measure
from fedsim.privacy.attacks.membership import confidence, halves, lira_scores
from fedsim.privacy.attacks.roc import auc, tpr_at_fpr
from fedsim.privacy.attacks.rows import LeakageRow
from fedsim.privacy.attacks.settings import Setting

SMALL = Effort(members=50, shadows=8, epochs=30)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def infer(data: Dataset, seeds: range, effort: Effort) -> dict[str, list[LeakageRow]]:
    found: dict[str, list[LeakageRow]] = {}
    for outcome in measure("membership", [Setting(width=32)], data, seeds, effort=effort):
        found.setdefault(outcome.row.attack, []).append(outcome.row)
    return found


def test_an_overfitted_model_tells_who_was_in(digits: Dataset) -> None:
    found = infer(digits, range(2), SMALL)
    assert set(found) == {"loss_threshold", "lira"}
    for rows in found.values():
        assert min(row.auc or 0 for row in rows) > 0.6
    threshold, lira = (np.mean([row.auc for row in found[name]]) for name in found)
    assert lira > threshold
    assert np.mean([row.tpr_at_1_percent_fpr for row in found["lira"]]) > 0.05
    (row, _) = found["lira"]
    assert (row.batch, row.local_steps) == (50, 150)


def test_a_fresh_model_tells_nothing(digits: Dataset) -> None:
    """Means over seeds stay within their own interval of a coin's half."""
    fresh = infer(digits, range(8), Effort(members=50, shadows=8, epochs=0))
    for rows in fresh.values():
        low, high = stats.ttest_1samp([row.auc for row in rows], 0.5).confidence_interval(0.99)
        assert low < 0.5 < high
        assert high - low < 0.1


def test_scores_of_noise_tell_nothing() -> None:
    """Nothing but who is in goes into the scores, and that has no bearing on the confidences."""
    areas = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        included = halves(8, 100, rng)
        areas.append(
            auc(lira_scores(rng.normal(size=(8, 100)), included).ravel(), included.ravel())
        )
    assert np.mean(areas) == pytest.approx(0.5, abs=4 * np.std(areas) / np.sqrt(len(areas)))


@given(st.integers(3, 8), st.integers(2, 40), st.integers(0, 99))
def test_pairs_share_the_pool(pairs: int, examples: int, seed: int) -> None:
    included = halves(2 * pairs, examples, np.random.default_rng(seed))
    assert (included.sum(axis=0) == pairs).all()
    assert (included[::2] != included[1::2]).all()
    assert (included[::2].sum(axis=1) == examples // 2).all()


@pytest.mark.parametrize("models", [0, 4, 7])
def test_too_few_models_or_an_odd_number(models: int) -> None:
    with pytest.raises(PrivacyError, match=f"{models} shadow models: they come in pairs"):
        halves(models, 10, np.random.default_rng(0))


def test_lira_by_hand() -> None:
    """One example, six models: those of the target's pair do not count."""
    included = np.array([[True], [False]] * 3)
    phi = np.array([[9.0], [99.0], [4.0], [1.0], [6.0], [3.0]])
    # Of the others: in 4 and 6 (mean 5, variance 2), out 1 and 3 (mean 2, variance 2).
    expected = stats.norm.logpdf(9, 5, 2**0.5) - stats.norm.logpdf(9, 2, 2**0.5)
    assert lira_scores(phi, included)[0, 0] == pytest.approx(expected)


def test_confidence_by_hand_and_where_the_probability_is_one() -> None:
    model = torch.nn.Identity()
    x, y = torch.tensor([[np.log(3.0), 0.0, 0.0], [800.0, 0.0, 0.0]]), torch.tensor([0, 0])
    log_p, phi = confidence(model, x.float(), y)
    assert log_p == pytest.approx([np.log(3 / 5), 0.0], abs=1e-6)
    assert phi == pytest.approx([np.log(3 / 2), 800 - np.log(2)], rel=1e-6)


def test_the_area_by_hand() -> None:
    members = np.array([True, True, False, False])
    assert auc(np.array([4.0, 3.0, 2.0, 1.0]), members) == 1.0
    assert auc(np.array([4.0, 1.0, 2.0, 3.0]), members) == 0.5
    assert auc(np.ones(4), members) == 0.5
    assert auc(np.array([3.0, 2.0, 2.0, 1.0]), members) == 0.875


def test_the_foot_of_the_curve_by_hand() -> None:
    members = np.array([True] * 4 + [False] * 100)
    scores = np.array([200.0, 150.5, 98.5, 1.5, *range(100)])
    assert tpr_at_fpr(scores, members, 0.0) == 0.5
    assert tpr_at_fpr(scores, members, 0.01) == 0.75  # one of a hundred is accused
    assert tpr_at_fpr(np.ones(104), members, 0.01) == 0.0


def test_models_can_be_trained_by_somebody_else(digits: Dataset) -> None:
    trained = []

    def train(model, x, y, rng):
        trained.append(len(y))

    list(measure("membership", [Setting(width=8)], digits, [0], effort=SMALL, train=train))
    assert trained == [50] * 8


def test_what_cannot_be_measured(digits: Dataset) -> None:
    private = Setting(level="user", clipping_norm=1.0)
    with pytest.raises(PrivacyError, match="shadow models train without privacy"):
        list(measure("membership", [private], digits, [0]))
    with pytest.raises(PrivacyError, match="members = 5000: needs twice as many"):
        list(measure("membership", [Setting()], digits, [0], effort=Effort(members=5000)))
