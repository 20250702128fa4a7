"""What hostile clients achieve, in the report of a study over attacks and aggregations."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.ledger.read import Run
from fedsim.report.drawing import LIGHT, saved
from fedsim.report.hostile import attacked_of, hostile_section, hostile_table
from fedsim.study.design import Study, Values
from fedsim.study.endpoints import endpoint_of, value_of
from fedsim.study.file import read_study
from fedsim.vocabulary import vocabulary

Make = Callable[..., Any]
RunInline = Callable[..., Run]

ROOT = Path(__file__).parents[1]
KIND, STRATEGY = "adversary.kind", "server.strategy"
AXES: dict[str, tuple[Any, ...]] = {
    STRATEGY: ("fedavg", "fedmedian"),
    KIND: ("sign_flip", "none", "backdoor"),
}


@pytest.fixture
def found(
    make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> tuple[Study, dict[Values, list[Run]]]:
    """Two seeds of each arm, really run."""
    study = Study(name="hostile", base={}, axes=AXES, seeds=(0, 1), targets=(0.9,))
    runs = {
        arm: [
            run_inline(
                make_experiment(
                    experiment={"rounds": 2, "seed": seed},
                    data={"clients": 5},
                    server={"strategy": dict(arm)[STRATEGY], "clients_per_round": 5},
                    adversary={"kind": dict(arm)[KIND], "fraction": 0.4},
                    run={"out": str(tmp_path / f"{dict(arm)[STRATEGY]}-{dict(arm)[KIND]}-{seed}")},
                )
            )
            for seed in study.seeds
        ]
        for arm in study.arms
    }
    return study, runs


def test_a_line_an_aggregation_and_a_column_an_attack(
    found: tuple[Study, dict[Values, list[Run]]],
) -> None:
    section = hostile_section(*found)
    assert section is not None
    head, rows = section.table
    assert list(head) == [
        *("aggregation", "nobody attacks: accuracy", "sign_flip: accuracy"),
        *("backdoor: accuracy", "backdoor: success"),
    ]
    assert [row[0] for row in rows] == ["fedavg", "fedmedian"]
    assert section.picture is not None
    assert len(section.picture.table[1]) == 6
    for narrow in (False, True):
        assert b"attack success" in saved(section.picture, LIGHT, narrow=narrow, format="svg")


def test_success_is_of_the_last_evaluated_round(
    found: tuple[Study, dict[Values, list[Run]]],
) -> None:
    study, runs = found
    for each, (arm, of_arm) in zip(attacked_of(study, runs), runs.items(), strict=True):
        assert each.kind == dict(arm)[KIND]
        assert each.accuracies == tuple(run.rounds.test_accuracy.iloc[-1] for run in of_arm)
        last = [run.rounds.attack_success_fraction.iloc[-1] for run in of_arm]
        if each.kind == "backdoor":
            assert each.successes == tuple(last)
            assert [value_of(run, "attack_success_fraction") for run in of_arm] == [
                (value, True) for value in last
            ]
        else:
            assert each.successes == ()
            assert math.isnan(value_of(of_arm[0], "attack_success_fraction")[0])
    endpoint = endpoint_of("attack_success_fraction")
    assert endpoint is not None
    assert endpoint.direction == "lower"


def test_nobody_attacks_is_no_section(found: tuple[Study, dict[Values, list[Run]]]) -> None:
    study, runs = found
    peaceful = {arm: of_arm for arm, of_arm in runs.items() if dict(arm)[KIND] == "none"}
    assert hostile_section(study, peaceful) is None


def test_what_is_not_there_yet_is_a_gap(found: tuple[Study, dict[Values, list[Run]]]) -> None:
    study, runs = found
    first = next(iter(runs))
    assert dict(first) == {STRATEGY: "fedavg", KIND: "sign_flip"}
    head, rows = hostile_table(attacked_of(study, {**runs, first: []}))
    (cells,) = [row for row in rows if row[0] == "fedavg"]
    assert [title for title, cell in zip(head, cells, strict=True) if cell == "-"] == [
        "sign_flip: accuracy"
    ]


@pytest.mark.parametrize("name", ["byzantine", "byzantine-norm-bound"])
def test_the_studies_of_hostile_clients_are_valid(name: str) -> None:
    study = read_study(ROOT / f"configs/privacy/{name}.toml", (), vocabulary=vocabulary())
    assert {h.endpoint for h in study.hypotheses} == {"test_accuracy", "attack_success_fraction"}
