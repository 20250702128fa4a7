from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import units
from fedsim.ledger.manifest import new_manifest
from fedsim.ledger.read import RunSummary, list_runs
from fedsim.ledger.store import Ledger
from fedsim.records import ClientRow, RoundRow
from fedsim.report.arms import Arm, Spread, summarise_arm
from fedsim.report.summary import run_lines, run_summary
from fedsim.report.tables import arms_table, runs_table, show, with_spread

# Units.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (999.4, "999 B"),
        (999.5, "1 kB"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (12_345, "12.3 kB"),
        (123_456, "123 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (999_950, "1 MB"),
        (1e6, "1 MB"),
        (999.5e6, "1 GB"),
        (2.5e9, "2.5 GB"),
        (999.5e9, "1 TB"),
        (1.5e12, "1.5 TB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_a_size_in_powers_of_1000(value: float, expected: str) -> None:
    assert units.size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 s"),
        (0.0, "0 s"),
        (1e-9, "0.001 us"),
        (5e-6, "5 us"),
        (999.4e-6, "999 us"),
        (999.6e-6, "1 ms"),
        (0.0015, "1.5 ms"),
        (0.1044, "104 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (1.0, "1 s"),
        (59.94, "59.9 s"),
        (99.96, "100 s"),
        (119.4, "119 s"),
        (119.6, "2 min 00 s"),
        (120.0, "2 min 00 s"),
        (125.4, "2 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3661, "1 h 01 min"),
        (100 * 3600 + 59 * 60, "100 h 59 min"),
    ],
)
def test_a_duration_in_the_unit_that_suits_it(value: float, expected: str) -> None:
    assert units.seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0.0%"), (0.85515, "85.5%"), (0.8556, "85.6%"), (1.0, "100.0%"), (0.00049, "0.0%")],
)
def test_a_share_in_percent(value: float, expected: str) -> None:
    assert units.percent(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.50295, "0.503"), (2.0, "2"), (1e-7, "1e-07"), (math.inf, "inf")]
)
def test_a_figure_to_three_digits(value: float, expected: str) -> None:
    assert units.number(value) == expected == units.shown(value)


@pytest.mark.parametrize("unit", [units.percent, units.seconds, units.size, units.number, str])
@pytest.mark.parametrize("value", [None, math.nan, float("-nan")])
def test_a_figure_that_is_missing(value: float | None, unit: Callable[[float], str]) -> None:
    assert units.shown(value, unit) == "-"


def test_a_zero_is_not_missing() -> None:
    assert [units.shown(0.0, unit) for unit in (units.percent, units.size)] == ["0.0%", "0 B"]


# A run.


def write_run(
    path: Path, accuracies: Sequence[float | None], *, cpu_seconds: float = 0.5, failed: int = 0
) -> Path:
    """Write a run of two clients a round; the last ``failed`` rounds lose one of them."""
    manifest = new_manifest("tiny", config_hash="0", engine={}, rounds_planned=len(accuracies))
    with Ledger.create(path, manifest=manifest, config={"experiment": {"name": "tiny"}}) as ledger:
        for round, accuracy in enumerate(accuracies, 1):
            lost = round > len(accuracies) - failed
            rows = [
                ClientRow(round=round, client=0, cpu_seconds=cpu_seconds, dense_bytes=100),
                ClientRow(round=round, client=1, status="rejected", error="not finite")
                if lost
                else ClientRow(round=round, client=1, cpu_seconds=cpu_seconds, dense_bytes=100),
            ]
            row = RoundRow(
                round=round,
                test_accuracy=accuracy,
                test_loss=None if accuracy is None else 1 - accuracy,
                clients_trained=2 - lost,
                clients_failed=int(lost),
                uplink_bytes=200 - 100 * lost,
                downlink_bytes=200,
                cpu_seconds=cpu_seconds * (2 - lost),
                wall_seconds=1.0,
            )
            arrays = {"w": np.full(2, round, np.float32)}
            ledger.append(row, rows, [], arrays=arrays, state={}, client_states={})
        ledger.finish("completed")
    return path


def test_a_summary_adds_up_what_the_ledger_holds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [0.25, 0.75, None], failed=1)
    summary = run_summary(run)
    digest = summary.pop("model_sha256")
    wall = summary.pop("wall_seconds")
    assert summary == {
        "run": str(run),
        "name": "tiny",
        "status": "completed",
        "error": None,
        "rounds": 3,
        "test_accuracy": 0.75,  # of the last round that was tested
        "test_loss": 0.25,
        "clients_trained": 5,
        "clients_failed": 1,
        "uplink_bytes": 500,
        "downlink_bytes": 600,
        "cpu_seconds": 2.5,
    }
    assert len(digest) == 64
    assert wall > 0
    json.dumps(summary, allow_nan=False)


def test_a_run_that_was_never_tested_has_no_accuracy(tmp_path: Path) -> None:
    summary = run_summary(write_run(tmp_path / "a", []))
    assert summary["test_accuracy"] is summary["test_loss"] is None
    assert (summary["rounds"], summary["uplink_bytes"], summary["cpu_seconds"]) == (0, 0, 0.0)
    assert summary["model_sha256"] is None
    lines = run_lines(summary)
    assert lines[0] == "tiny: completed after 0 rounds"
    assert lines[1] == "  test accuracy   -"
    assert "  client CPU      0 s (measured, training alone)" in lines


def test_a_loss_that_was_no_number_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [])
    with Ledger.resume(run) as ledger:
        row = RoundRow(
            round=1,
            test_accuracy=0.5,
            test_loss=math.nan,
            clients_trained=0,
            clients_failed=0,
            uplink_bytes=0,
            downlink_bytes=0,
            cpu_seconds=0.0,
            wall_seconds=0.0,
        )
        ledger.append(row, [], [], arrays={}, state={}, client_states={})
    summary = run_summary(run)
    assert (summary["test_accuracy"], summary["test_loss"]) == (0.5, None)


def test_clients_of_a_failed_last_round_are_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [0.5], failed=1)
    with Ledger.resume(run) as ledger:
        lost = [ClientRow(round=2, client=c, status="timeout", error="late") for c in (0, 1)]
        ledger.append_failed_round(lost)
        ledger.finish("failed", error="round 2: nobody answered")
    summary = run_summary(run)
    assert (summary["clients_trained"], summary["clients_failed"]) == (1, 3)
    lines = run_lines(summary)
    assert lines[0] == "tiny: failed after 1 rounds"
    assert lines[1] == "  error           round 2: nobody answered"
    assert "  client updates  1 used, 3 not" in lines


# Arms.


def test_a_spread_is_the_mean_and_the_sample_deviation() -> None:
    spread = Spread(values=(2.0, 4.0, 9.0))
    assert spread.mean == 5.0
    assert spread.deviation == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert Spread(values=(2.0,)).mean == 2.0
    assert Spread(values=(2.0,)).deviation is None


@pytest.mark.parametrize("values", [(), (None,), (1.0, None), (None, 1.0, 3.0)])
def test_the_mean_of_the_lucky_seeds_alone_is_not_told(values: tuple[float | None, ...]) -> None:
    spread = Spread(values=values)
    assert spread.mean is spread.deviation is None
    assert spread.reached == tuple(v for v in values if v)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.5, 0.7), "60.0% +- 14.1%"),
        ((0.5, 0.5), "50.0%"),
        ((0.5,), "50.0%"),
        ((0.5, None, 0.7), "2 of 3 seeds"),
        ((None, None), "0 of 2 seeds"),
        ((), "-"),
    ],
)
def test_a_spread_for_people(values: tuple[float | None, ...], expected: str) -> None:
    assert with_spread(Spread(values=values), units.percent) == expected


@pytest.fixture
def arm(tmp_path: Path) -> Arm:
    runs = [
        write_run(tmp_path / "a", [0.2, 0.6, 0.5], cpu_seconds=0.5),
        write_run(tmp_path / "b", [0.4, None, 0.9], cpu_seconds=1.0, failed=1),
    ]
    return summarise_arm("relu", runs, targets=(0.4, 0.8))


def test_an_arm_by_hand(arm: Arm) -> None:
    assert arm.label == "relu"
    assert arm.test_accuracy.values == (0.5, 0.9)  # the last, not the best
    assert arm.cpu_seconds.values == (3.0, 5.0)
    assert arm.uplink_bytes.values == (600.0, 500.0)
    assert arm.rounds_to[0.4].values == pytest.approx((1.5, 1.0))
    censored, reached = arm.rounds_to[0.8].values
    assert censored is None
    assert reached == pytest.approx(1 + 2 * (0.8 - 0.4) / (0.9 - 0.4))


def test_an_arm_as_json(arm: Arm) -> None:
    document = json.loads(json.dumps(arm.as_json(), allow_nan=False))
    assert list(document) == [
        *("arm", "test_accuracy", "rounds_to_0.4", "rounds_to_0.8", "cpu_seconds", "uplink_bytes")
    ]
    assert document["cpu_seconds"] == {
        "mean": 4.0,
        "deviation": pytest.approx(statistics.stdev((3.0, 5.0))),
        "values": [3.0, 5.0],
    }
    assert document["rounds_to_0.8"]["mean"] is document["rounds_to_0.8"]["deviation"] is None


def test_an_arm_whose_runs_were_never_tested_has_no_accuracy(tmp_path: Path) -> None:
    empty = summarise_arm("relu", [write_run(tmp_path / "a", [])], targets=(0.5,))
    assert empty.test_accuracy.values == empty.rounds_to[0.5].values == (None,)
    json.dumps(empty.as_json(), allow_nan=False)


# Tables.


def rendered(table: Any, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show(table)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_the_table_of_arms(arm: Arm, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = Spread(values=())
    failed = Arm(
        label="tanh",
        test_accuracy=nobody,
        rounds_to={0.4: nobody, 0.8: nobody},
        cpu_seconds=nobody,
        uplink_bytes=nobody,
    )
    head, _, first, second = rendered(arms_table("activation", [arm, failed], (0.4, 0.8)), capsys)
    assert head.split("  ")[0].strip() == "activation"
    for name in ("test accuracy", "rounds to 40%", "rounds to 80%", "client CPU", "uplink"):
        assert name in head
    assert re.split(" {2,}", first.strip()) == [
        *("relu", "70.0% +- 28.3%", "1.2 +- 0.4", "1 of 2 seeds"),
        *("4 s +- 1.41 s", "550 B +- 71 B"),
    ]
    assert second.split() == ["tanh", "-", "-", "-", "-", "-"]


def test_the_table_of_runs_is_as_wide_as_it_needs_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = tmp_path / ("long" * 30)
    write_run(path, [0.5])
    broken = RunSummary(path=Path("b"), name="b", status="damaged", problem="no manifest")
    long = RunSummary(
        path=Path("c"), name="c", status="running", rounds=1234, rounds_planned=20_000
    )
    lines = rendered(runs_table([*list_runs(tmp_path), broken, long]), capsys)
    assert lines[0].split() == ["run", "name", "status", "rounds", "accuracy", "started"]
    assert lines[2].split()[:5] == [str(path), "tiny", "completed", "1/1", "50.0%"]
    assert lines[3].split() == ["b", "b", "damaged:", "no", "manifest", "-/-", "-", "-"]
    assert lines[4].split() == ["c", "c", "running", "1234/20000", "-", "-"]


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    row = RunSummary(path=Path("[red]a"), name="[bold]b[/bold]:cat:", status="completed")
    lines = rendered(runs_table([row]), capsys)
    assert lines[2].split()[:2] == ["[red]a", "[bold]b[/bold]:cat:"]
