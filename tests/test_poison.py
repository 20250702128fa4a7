from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fedsim import adversary, parts
from fedsim.algorithms.hostile import factor_of, multiplied
from fedsim.config import Experiment
from fedsim.data.poison import flip_labels, hostile_clients, plant_backdoor, trigger_for
from fedsim.errors import DataError
from fedsim.ledger.read import Run
from fedsim.randomness import stream

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]

# Who is hostile.


@given(st.integers(1, 300), st.integers(0, 100))
def test_so_many_clients_are_hostile_and_each_once(clients: int, percent: int) -> None:
    who = hostile_clients(clients, percent / 100, stream(0, "hostile"))
    assert len(who) == percent * clients // 100
    assert list(who) == sorted(set(who))
    assert set(who) <= set(range(clients))


def test_the_seed_says_who_is_hostile(make_experiment: Make) -> None:
    def who(seed: int) -> tuple[int, ...]:
        return adversary.hostile(
            make_experiment(
                experiment={"seed": seed},
                data={"clients": 100},
                adversary={"kind": "sign_flip", "fraction": 0.3},
            )
        )

    assert who(0) == who(0) != who(1)
    assert len(who(0)) == 30
    assert adversary.hostile(make_experiment(adversary={"fraction": 0.3})) == ()


# What they make of their examples.


@given(arrays_of.arrays(np.int64, 20, elements=st.integers(0, 9)))
def test_labels_are_turned_around_or_one_is_called_another(y: np.ndarray) -> None:
    around = flip_labels(y, classes=10, source=-1, target=0)
    assert (around + y == 9).all()
    assert (flip_labels(around, classes=10, source=-1, target=0) == y).all()
    one = flip_labels(y, classes=10, source=7, target=1)
    assert (one[y == 7] == 1).all()
    assert (one[y != 7] == y[y != 7]).all()


@pytest.mark.parametrize(
    ("shape", "marked"),
    [((1, 28, 28), 9), ((3, 32, 32), 27), ((1, 8, 8), 4), ((1, 1, 5), 2), ((12,), 3), ((2,), 2)],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_trigger_marks_a_corner_or_the_last_columns(
    shape: tuple[int, ...], marked: int, dtype: type
) -> None:
    rng = np.random.default_rng(0)
    x: Any = rng.integers(0, 200, (30, *shape)).astype(dtype)
    trigger = trigger_for(x)
    stamped = trigger.stamp(x)
    assert (stamped.dtype, stamped.shape) == (x.dtype, x.shape)
    assert len(trigger.places) == marked
    flat, before = stamped.reshape(30, -1), x.reshape(30, -1)
    others = np.setdiff1d(np.arange(flat.shape[1]), trigger.places)
    assert (flat[:, others] == before[:, others]).all()
    if len(shape) == 3:
        assert (flat[:, trigger.places] == x.max()).all()
        assert stamped[0, -1, -1, -1] == x.max()
    else:
        assert (flat[:, trigger.places] == x.max(axis=0)[-marked:]).all()


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_half_of_a_clients_examples_carry_the_backdoor(n: int) -> None:
    x = np.full((n, 1, 28, 28), 0, np.uint8)
    y = np.full(n, 5)
    trigger = dataclasses.replace(trigger_for(x), values=np.full(9, 255, np.uint8))
    features, labels = plant_backdoor(x, y, trigger=trigger, target=2, rng=stream(0, "adversary"))
    marked = features.reshape(n, -1).any(axis=1)
    assert marked.sum() == (n + 1) // 2
    assert (labels == np.where(marked, 2, 5)).all()
    assert not x.any()
    assert (y == 5).all()


# What they make of their updates.


def test_updates_are_turned_around_and_scaled_by_hand() -> None:
    start = {"w": np.array([1.0, 2.0], np.float32), "n": np.array(3)}
    after = np.array([[2.0, 0.0], [1.5, 2.0], [0.1, 0.3]], np.float32)
    stacks = {"w": after, "n": np.array([4, 5, 6])}
    found = multiplied(start, stacks, np.array([-1.0, 10.0, 1.0]))
    assert found["w"].dtype == np.float32
    assert found["w"][:2].tolist() == [[0.0, 4.0], [6.0, 2.0]]
    assert found["w"][2].tobytes() == after[2].tobytes()
    assert found["n"].tolist() == [4, 5, 6]
    assert after[0].tolist() == [2.0, 0.0]


def test_one_client_with_the_factor_n_replaces_the_mean() -> None:
    """Bagdasaryan et al. 2020, equation 3: where all others stay, the mean is its model."""
    start = {"w": np.array([1.0, -1.0])}
    wanted = np.array([3.0, 5.0])
    stacks = {"w": np.stack([wanted, start["w"], start["w"], start["w"]])}
    sent = multiplied(start, stacks, np.array([4.0, 1.0, 1.0, 1.0]))
    assert sent["w"].mean(axis=0) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [("none", 1), ("label_flip", 1), ("sign_flip", -1), ("scaled", 7), ("backdoor", 7)],
)
def test_the_factor_of_each_kind(kind: str, factor: float) -> None:
    assert factor_of(kind, 7.0) == factor


# How it enters an experiment.


@pytest.mark.parametrize("kind", ["label_flip", "backdoor"])
def test_only_hostile_clients_examples_are_poisoned(make_experiment: Make, kind: str) -> None:
    experiment = make_experiment(
        adversary={"kind": kind, "fraction": 0.25, "target_label": 3}, data={"clients": 8}
    )
    clean, who = parts.dataset(experiment), adversary.hostile(experiment)
    poisoned = adversary.training_data(experiment, range(8))
    assert poisoned is adversary.training_data(experiment, [1])  # one trainer serves all blocks
    assert len(who) == 2
    for client, held in enumerate(parts.indices(experiment, range(8))):
        same_x = (clean.x_train[held] == poisoned.x_train[held]).all()
        same_y = (clean.y_train[held] == poisoned.y_train[held]).all()
        assert same_y == (client not in who)
        assert same_x == (client not in who or kind == "label_flip")
    assert clean.x_test is poisoned.x_test
    assert (clean.y_test == poisoned.y_test).all()
    assert parts.dataset(experiment) is clean


@pytest.mark.parametrize("kind", ["none", "sign_flip", "scaled"])
def test_whoever_changes_updates_alone_leaves_the_data(make_experiment: Make, kind: str) -> None:
    experiment = make_experiment(adversary={"kind": kind, "fraction": 0.5})
    assert adversary.training_data(experiment, [0]) is parts.dataset(experiment)
    assert adversary.victims(experiment) is None


def test_a_node_with_its_own_data_is_hostile_by_its_number(make_experiment: Make) -> None:
    experiment = make_experiment(adversary={"kind": "label_flip", "fraction": 0.25})
    clean = parts.dataset(experiment)
    held = clean.y_train[:5]
    own = dataclasses.replace(clean, x_train=clean.x_train[:5], y_train=held, part="client")
    hostile, honest = adversary.hostile(experiment)[0], 0
    assert honest not in adversary.hostile(experiment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "dataset", lambda _: own)
        assert adversary.training_data(experiment, [honest]) is own
        poisoned = adversary.training_data(experiment, [hostile])
    adversary._poisoned.cache_clear()
    assert (poisoned.y_train == 9 - held).all()


def test_the_victims_of_each_attack(make_experiment: Make) -> None:
    def victims(**table: Any) -> tuple[np.ndarray, np.ndarray]:
        found = adversary.victims(make_experiment(adversary={"fraction": 0.2, **table}))
        assert found is not None
        return found

    data = parts.dataset(make_experiment())
    x, y = data.test()
    features, wanted = victims(kind="label_flip")
    assert (features == x).all()
    assert (wanted == 9 - y).all()
    features, wanted = victims(kind="label_flip", source_label=7, target_label=1)
    assert (features == x[y == 7]).all()
    assert (wanted == 1).all()
    features, wanted = victims(kind="backdoor", target_label=4)
    assert features.shape == x[y != 4].shape
    assert (features[:, 0, -2:, -2:] == 1).all()
    assert (features[:, 0, :6] == x[y != 4][:, 0, :6]).all()
    assert (wanted == 4).all()


@pytest.mark.parametrize("key", ["source_label", "target_label"])
def test_a_label_that_the_data_has_not_is_refused(make_experiment: Make, key: str) -> None:
    experiment = make_experiment(adversary={"kind": "label_flip", "fraction": 0.2, key: 10})
    with pytest.raises(DataError, match=f"adversary.{key} = 10: digits has the classes 0 to 9"):
        adversary.victims(experiment)


# Whole runs, with all ten clients in every round.

RUN = {
    "experiment": {"rounds": 8},
    "data": {"clients": 10},
    "model": {"width": 32, "depth": 1},
    "train": {"batch_size": 32, "epochs": 3, "learning_rate": 0.2},
}


def attacked(
    make: Make, run: RunInline, tables: dict[str, Any], *, name: str, strategy: str = "fedavg"
) -> tuple[float, float | None]:
    """Return the last round's accuracy and the attack's success."""
    server = {"strategy": strategy, "clients_per_round": 10, "byzantine_clients": 0}
    experiment = make(**{**RUN, "server": server, "adversary": tables})
    out = dataclasses.replace(experiment.run, out=f"{experiment.run.out}-{name}")
    rounds = run(dataclasses.replace(experiment, run=out)).rounds
    last = rounds.iloc[-1]
    success = last.attack_success_fraction
    return float(last.test_accuracy), None if pd.isna(success) else float(success)


def test_a_median_withstands_what_a_mean_does_not(
    make_experiment: Make, run_inline: RunInline
) -> None:
    """Labels turned around at 40% of the clients; at 20% the mean withstands it too, on digits."""
    flip = {"kind": "label_flip", "fraction": 0.4}
    clean, none = attacked(make_experiment, run_inline, {"kind": "none"}, name="clean")
    mean, much = attacked(make_experiment, run_inline, flip, name="mean")
    median, little = attacked(
        make_experiment, run_inline, flip, name="median", strategy="fedmedian"
    )
    assert none is None
    assert much is not None
    assert little is not None
    assert clean > 0.85
    assert mean < clean - 0.05
    assert median > clean - 0.03
    assert much > 0.08 > 0.04 > little


def test_a_scaled_backdoor_is_learnt_by_the_mean_alone(
    make_experiment: Make, run_inline: RunInline
) -> None:
    backdoor = {"kind": "backdoor", "fraction": 0.2, "scale": 4.0}
    mean, much = attacked(make_experiment, run_inline, backdoor, name="mean")
    median, little = attacked(
        make_experiment, run_inline, backdoor, name="median", strategy="fedmedian"
    )
    assert much is not None
    assert little is not None
    assert much > 0.8 > 0.4 > little
    assert min(mean, median) > 0.85


@pytest.mark.parametrize("kind", ["sign_flip", "scaled"])
def test_updates_alone_spoil_a_mean(
    make_experiment: Make, run_inline: RunInline, kind: str
) -> None:
    table = {"kind": kind, "fraction": 0.4 if kind == "sign_flip" else 0.2, "scale": 30.0}
    mean, success = attacked(make_experiment, run_inline, table, name="mean")
    median, _ = attacked(make_experiment, run_inline, table, name="median", strategy="fedmedian")
    assert success is None
    assert mean < median - 0.02


@pytest.mark.parametrize("kind", ["label_flip", "sign_flip", "backdoor"])
def test_blocks_and_single_messages_give_the_same_attack(
    make_experiment: Make, run_inline: RunInline, kind: str, tmp_path: Path
) -> None:
    """Asked together, or one by one as packed models have it, hostile clients send the same."""

    def model(name: str, **tables: Any) -> str | None:
        table = {"kind": kind, "fraction": 0.4}
        out = {"out": str(tmp_path / name)}
        run = run_inline(make_experiment(adversary=table, run=out, **tables))
        return run.manifest.model_sha256

    assert model("together") == model("alone", update={"packed": True}) != model("other", **OTHER)


OTHER = {"experiment": {"seed": 1}}
