from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fedsim.config import Experiment, from_flat
from fedsim.errors import ConfigError, LedgerError
from fedsim.records import RoundRow
from fedsim.runs import create
from fedsim.study.compare import ENDPOINTS, compare_runs, more_than_one
from fedsim.study.design import Hypothesis, Values

CLI = Callable[..., Any]
RELU: Values = (("model.activation", "relu"),)
TANH: Values = (("model.activation", "tanh"),)


def described(seed: int, activation: str = "relu", **changes: Any) -> Experiment:
    """An experiment; ``changes`` are keys with a double underscore for the dot."""
    flat = {"experiment.seed": seed, "model.activation": activation}
    flat |= {key.replace("__", "."): value for key, value in changes.items()}
    return from_flat(flat, vocabulary={})


def write_run(
    path: Path,
    experiment: Experiment,
    accuracies: Sequence[float] = (0.5, 0.9),
    *,
    status: Literal["completed", "failed", "interrupted"] = "completed",
    cpu_seconds: float = 0.5,
) -> Path:
    """Write a run of an experiment with some test accuracies."""
    with create(path, experiment, {}) as ledger:
        for number, accuracy in enumerate(accuracies, 1):
            row = RoundRow(
                round=number,
                test_accuracy=accuracy,
                clients_trained=2,
                clients_failed=0,
                uplink_bytes=100,
                downlink_bytes=100,
                train_flops=1000,
                cpu_seconds=cpu_seconds,
                wall_seconds=1.0,
            )
            arrays = {"w": np.zeros(1, np.float32)}
            ledger.append(row, [], [], arrays=arrays, state={}, client_states={})
        ledger.finish(status)
    return path


def both(root: Path, seeds: Sequence[int] = (0, 1, 2, 3)) -> tuple[list[Path], list[Path]]:
    """Write runs of relu, and of tanh that are better by 10 points and half as fast."""
    relu = [write_run(root / f"relu-{n}", described(n), (0.4, 0.7 + n / 100)) for n in seeds]
    tanh = [
        write_run(
            root / f"tanh-{n}",
            described(n, "tanh"),
            (0.5, 0.8 + n / 99),
            cpu_seconds=1 + n / 100,
        )
        for n in seeds
    ]
    return relu, tanh


# Sorting runs into arms.


def test_runs_are_paired_by_seed_whatever_they_are_called(tmp_path: Path) -> None:
    relu, tanh = both(tmp_path, (2, 0))
    found = compare_runs([relu[0], *tanh, relu[1]])
    assert (found.keys, found.arms) == (("model.activation",), (RELU, TANH))
    assert (found.seeds, found.unpaired) == ((0, 2), ())
    assert found.runs == {
        (RELU, 2): relu[0],
        (RELU, 0): relu[1],
        (TANH, 2): tanh[0],
        (TANH, 0): tanh[1],
    }
    assert more_than_one(found) == ""


def test_the_arm_of_the_first_run_is_the_reference(tmp_path: Path) -> None:
    relu, tanh = both(tmp_path, (0,))
    assert compare_runs([*tanh, *relu]).arms == (TANH, RELU)
    (h,) = compare_runs([*tanh, *relu]).hypotheses(["best_accuracy"])
    assert h.text == "relu is better than tanh in best_accuracy"


def test_directories_stand_for_the_runs_in_them_and_a_run_counts_once(tmp_path: Path) -> None:
    relu, tanh = both(tmp_path / "tanh and relu", (0, 1))
    found = compare_runs([tanh[1], tmp_path, relu[0]])
    assert found.arms == (TANH, RELU)
    assert set(found.runs.values()) == {*relu, *tanh}
    assert found.seeds == (0, 1)


def test_seeds_that_an_arm_lacks_are_told_and_left_out(tmp_path: Path) -> None:
    relu, tanh = both(tmp_path)
    found = compare_runs([*relu[:3], *tanh[1:]])
    assert (found.seeds, found.unpaired) == ((1, 2), (0, 3))


def test_names_and_what_changes_no_result_make_no_arm(tmp_path: Path) -> None:
    here = write_run(tmp_path / "a", described(0, experiment__name="one", engine__name="inline"))
    there = write_run(
        tmp_path / "b", described(0, "tanh", experiment__name="another", run__data_dir="d")
    )
    assert compare_runs([here, there]).keys == ("model.activation",)


def test_three_arms_are_each_compared_with_the_first(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / f"{name}-{seed}", described(seed, name))
        for name in ("gelu", "relu", "tanh")
        for seed in (0, 1)
    ]
    found = compare_runs(paths)
    texts = [h.text for h in found.hypotheses(["test_accuracy", "rounds_to_0.9"])]
    assert texts == [
        f"{arm} is better than gelu in {endpoint}"
        for endpoint in ("test_accuracy", "rounds_to_0.9")
        for arm in ("relu", "tanh")
    ]


def test_arms_that_differ_in_several_settings_are_compared_with_a_warning(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "a", described(0)),
        write_run(tmp_path / "b", described(0, "tanh", train__epochs=7)),
    ]
    found = compare_runs(paths)
    assert set(found.keys) == {"model.activation", "train.epochs"}
    assert more_than_one(found) == (
        "the arms differ in activation and epochs: nobody can say which of them made a difference"
    )


# What cannot be compared.


def refused(paths: Sequence[Path]) -> str:
    with pytest.raises(ConfigError) as caught:
        compare_runs(paths)
    (problem,) = caught.value.problems
    return problem


def test_runs_that_differ_in_nothing_are_refused(tmp_path: Path) -> None:
    relu, _ = both(tmp_path, (0, 1))
    for paths in (relu, relu[:1]):
        assert refused(paths) == (
            "these runs differ in nothing but their seeds: name runs of at least two arms"
        )


def test_two_runs_of_the_same_arm_and_seed_are_refused(tmp_path: Path) -> None:
    relu, tanh = both(tmp_path, (0,))
    again = write_run(tmp_path / "again", described(0, experiment__name="again"))
    assert refused([*relu, *tanh, again]) == (
        f"{relu[0]} and {again} are both relu, seed 0: pairs need one run of each; leave one out"
    )


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_incomplete_runs_are_refused(
    tmp_path: Path, status: Literal["failed", "interrupted"]
) -> None:
    relu, tanh = both(tmp_path, (0,))
    short = write_run(tmp_path / "short", described(1), (0.5,), status=status)
    assert refused([*relu, *tanh, short]) == (
        f"{short}: {status} after 1 rounds; compare complete runs"
    )


def test_arms_without_a_common_seed_are_refused(tmp_path: Path) -> None:
    relu, tanh = both(tmp_path, (0, 1))
    assert refused([relu[0], tanh[1]]) == (
        "no seed was run in every arm, so nothing is paired: run the arms with the same seeds"
    )


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="gone is no directory"):
        compare_runs([tmp_path / "gone"])


# What is claimed of them.


def test_the_claim_is_that_each_arm_is_better_by_the_usual_margin(tmp_path: Path) -> None:
    relu, tanh = both(tmp_path, (0,))
    found = compare_runs([*relu, *tanh]).hypotheses(["best_accuracy", "cpu_seconds_to_0.9"])
    assert found == [
        Hypothesis(
            arm=TANH,
            reference=RELU,
            endpoint="best_accuracy",
            claim="better",
            margin=0.005,
            direction="higher",
            scale="difference",
        ),
        Hypothesis(
            arm=TANH,
            reference=RELU,
            endpoint="cpu_seconds_to_0.9",
            claim="better",
            margin=0.05,
            direction="lower",
            scale="ratio",
        ),
    ]


def test_endpoints_that_cannot_be_compared_are_told_all_at_once(tmp_path: Path) -> None:
    relu, tanh = both(tmp_path, (0,))
    with pytest.raises(ConfigError) as caught:
        compare_runs([*relu, *tanh]).hypotheses(["best_acuracy", "test_loss", "zero_fraction"])
    first, none, second = caught.value.problems
    assert none.startswith("--endpoint test_loss: has no margin of its own")
    assert first == ("--endpoint best_acuracy: unknown endpoint; did you mean 'best_accuracy'?")
    assert second.startswith("--endpoint zero_fraction: nobody knows which values of it are better")


# The command.


def test_runs_are_compared_in_words(cli: CLI, tmp_path: Path) -> None:
    both(tmp_path / "runs")
    answer = cli("compare", "runs")
    assert (answer.code, answer.err) == (0, "")
    first, *table = answer.out.splitlines()
    assert first == "tanh against relu: 4 pairs by seed"
    text = " ".join("\n".join(table).split())
    assert "warning" not in answer.out
    assert text.count("supported") == 2
    assert text.count("refuted") == 2
    assert re.search(r"\+1\d\.\d+ points", text)


def test_runs_are_compared_as_one_json_document(cli: CLI, tmp_path: Path) -> None:
    both(tmp_path / "runs")
    answer = cli("compare", "runs", "--format", "json")
    assert (answer.code, answer.err) == (0, "")
    document = answer.json
    assert set(document) == {"keys", "seeds", "unpaired_seeds", "verdicts"}
    assert document["keys"] == ["model.activation"]
    assert (document["seeds"], document["unpaired_seeds"]) == ([0, 1, 2, 3], [])
    assert [v["endpoint"] for v in document["verdicts"]] == list(ENDPOINTS)
    best, _, seconds, up = document["verdicts"]
    assert (best["verdict"], best["arm"]) == ("supported", {"model.activation": "tanh"})
    estimate = sum(0.1 + n / 99 - n / 100 for n in range(4)) / 4
    assert best["estimate"] == pytest.approx(estimate)
    assert best["pairs"][1] == {"seed": 1, "arm": 0.8 + 1 / 99, "reference": 0.7 + 1 / 100}
    assert (seconds["verdict"], seconds["reason"]) == ("refuted", "worse by more than the margin")
    assert seconds["estimate"] == pytest.approx(2, rel=0.05)
    assert (up["verdict"], up["estimate"]) == ("refuted", 1.0)  # they sent as much
    assert up["reason"].startswith("equivalent")


def test_the_endpoints_may_be_chosen(cli: CLI, tmp_path: Path) -> None:
    both(tmp_path / "runs")
    chosen = ("--endpoint", "rounds_to_0.6", "--endpoint", "wall_seconds")
    answer = cli("compare", "runs", *chosen, "--format", "json")
    assert answer.code == 0
    assert [v["endpoint"] for v in answer.json["verdicts"]] == ["rounds_to_0.6", "wall_seconds"]


def test_what_was_left_out_and_what_else_differs_is_warned_of(cli: CLI, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / f"a{seed}", described(seed))
    for seed in (1, 2, 5):
        write_run(tmp_path / f"b{seed}", described(seed, "tanh", train__epochs=7))
    arguments = [f"a{seed}" for seed in (0, 1, 2)] + [f"b{seed}" for seed in (1, 2, 5)]
    answer = cli("compare", *arguments, "--endpoint", "uplink_bytes")
    assert answer.code == 0
    assert answer.out.splitlines()[:3] == [
        "tanh, 7 against relu, 1: 2 pairs by seed",
        "warning: left out, since not every arm has them: seeds 0, 5",
        "warning: the arms differ in activation and epochs: nobody can say which of them made a "
        "difference",
    ]
    document = cli("compare", *arguments, "--endpoint", "uplink_bytes", "--format", "json").json
    assert (document["seeds"], document["unpaired_seeds"]) == ([1, 2], [0, 5])


def test_one_pair_is_an_estimate_and_no_verdict(cli: CLI, tmp_path: Path) -> None:
    both(tmp_path / "runs", (3,))
    answer = cli("compare", "runs")
    assert answer.code == 0
    assert answer.out.startswith("tanh against relu: 1 pair by seed\n")
    document = cli("compare", "runs", "--format", "json").json
    for verdict in document["verdicts"]:
        assert (verdict["verdict"], verdict["low"]) == ("inconclusive", None)
        assert verdict["reason"].startswith("one seed has no interval")
        assert verdict["estimate"] is not None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("runs", "--endpoint", "best_acuracy"),
            2,
            "error: --endpoint best_acuracy: unknown endpoint; did you mean 'best_accuracy'?",
        ),
        (
            ("runs", "gone"),
            1,
            "error: gone is no directory; name one that holds runs",
        ),
        (
            ("runs/relu-0", "runs/relu-1"),
            2,
            "error: these runs differ in nothing but their seeds: name runs of at least two arms",
        ),
        (
            ("runs/relu-0", "runs/tanh-1"),
            2,
            "error: no seed was run in every arm, so nothing is paired: run the arms with the same "
            "seeds",
        ),
    ],
)
def test_what_cannot_be_compared_is_told(
    cli: CLI, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    both(tmp_path / "runs", (0, 1))
    answer = cli("compare", *arguments)
    assert (answer.code, answer.out) == (code, "")
    assert answer.err == f"{message}\n"
