from __future__ import annotations

import json
import math
import re
import sqlite3
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import units
from fedsim.errors import DataError
from fedsim.ledger.manifest import new_manifest, read_manifest, write_manifest
from fedsim.ledger.read import RunSummary, list_runs
from fedsim.ledger.store import Ledger
from fedsim.measure.timings import Calibration, Interval, Machine, Timing
from fedsim.records import SERVER, ClientRow, LayerRow, RoundRow, figures
from fedsim.report.arms import (
    COSTS,
    FIGURES,
    Arm,
    Spread,
    calibration_in,
    kinds_of,
    summarise_arm,
    timed_elsewhere,
)
from fedsim.report.summary import run_lines, run_summary
from fedsim.report.tables import (
    MEANINGS,
    arms_table,
    bill_columns,
    bill_table,
    dense_line,
    runs_table,
    show,
    with_spread,
)

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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 FLOP"),
        (999, "999 FLOP"),
        (999.6, "1 kFLOP"),
        (12_345_678, "12.3 MFLOP"),
        (2.5e12, "2.5 TFLOP"),
        (3e18, "3 EFLOP"),
        (4.5e21, "4.5e+03 EFLOP"),
    ],
)
def test_operations_in_powers_of_1000(value: float, expected: str) -> None:
    assert units.flops(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0 J"),
        (2e-9, "0.002 uJ"),
        (0.0125, "12.5 mJ"),
        (0.9996, "1 J"),
        (-50.0, "-50 J"),
        (36e5, "3.6 MJ"),
        (2e13, "2e+04 GJ"),
    ],
)
def test_an_energy_in_powers_of_1000(value: float, expected: str) -> None:
    assert units.joules(value) == expected


# A run.


def write_run(
    path: Path,
    accuracies: Sequence[float | None],
    *,
    cpu_seconds: float = 0.5,
    failed: int = 0,
    client: Callable[[int, int], Mapping[str, Any]] = lambda round, client: {},
    layers: Callable[[int], Sequence[LayerRow]] = lambda round: (),
    **figures: Any,
) -> Path:
    """Write a run of two clients a round; the last ``failed`` rounds lose one of them.

    Args:
        client: more figures of a client in a round.
        layers: the rows of a round's layers.
        figures: more figures of every round.
    """
    manifest = new_manifest("tiny", config_hash="0", engine={}, rounds_planned=len(accuracies))
    with Ledger.create(path, manifest=manifest, config={"experiment": {"name": "tiny"}}) as ledger:
        for round, accuracy in enumerate(accuracies, 1):
            lost = round > len(accuracies) - failed
            rows = [
                ClientRow(
                    round=round,
                    client=number,
                    **{"cpu_seconds": cpu_seconds, "dense_bytes": 100, **client(round, number)},
                )
                for number in range(2 - lost)
            ]
            rejected = ClientRow(round=round, client=1, status="rejected", error="not finite")
            counted = {
                "uplink_bytes": 220 - 110 * lost,
                "downlink_bytes": 210,
                "uplink_dense_bytes": 200 - 100 * lost,
                "downlink_dense_bytes": 200,
                "train_flops": 1000,
                "cpu_seconds": cpu_seconds * (2 - lost),
                "wall_seconds": 1.0,
            }
            row = RoundRow(
                round=round,
                test_accuracy=accuracy,
                test_loss=None if accuracy is None else 1 - accuracy,
                clients_trained=2 - lost,
                clients_failed=int(lost),
                **{**counted, **figures},
            )
            arrays = {"w": np.full(2, round, np.float32)}
            ledger.append(
                row,
                [*rows, *[rejected] * lost],
                layers(round),
                arrays=arrays,
                state={},
                client_states={},
            )
        ledger.finish("completed")
    return path


def test_a_summary_adds_up_what_the_ledger_holds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [0.25, 0.75, 0.5, None], failed=1)
    summary = run_summary(run)
    digest = summary.pop("model_sha256")
    wall = summary.pop("wall_seconds")
    assert summary == {
        "run": str(run),
        "name": "tiny",
        "status": "completed",
        "error": None,
        "rounds": 4,
        "test_accuracy": 0.5,  # of the last round that was tested
        "best_accuracy": 0.75,
        "area_under_curve": pytest.approx((0.5 + 0.625) / 2),
        "test_loss": 0.5,
        "local_accuracy": None,
        "clients_trained": 7,
        "clients_failed": 1,
        "uplink_bytes": 770,
        "downlink_bytes": 840,
        "uplink_dense_bytes": 700,
        "downlink_dense_bytes": 800,
        "train_flops": 4000,
        "cpu_seconds": 3.5,
        "package_joules": None,
        "modelled_seconds": None,
        "modelled_joules": None,
        "startup_cpu_seconds": None,
        "container_cpu_seconds": None,
        "container_peak_memory_bytes": None,
        "container_received_bytes": None,
        "container_sent_bytes": None,
        "device": None,
        "epsilon": None,
        "adversary": None,
        "attack_success_fraction": None,
        "secure_aggregation": False,
        "guarantee": None,
        "blanks": {},
    }
    assert len(digest) == 64
    assert wall > 0
    json.dumps(summary, allow_nan=False)


def test_what_was_asked_for_is_summed_up_and_told_with_its_kind(tmp_path: Path) -> None:
    def asked(round: int, client: int) -> dict[str, float]:
        accuracy = (0.9, 0.7)[client] if round == 1 else 0.8
        return {"modelled_seconds": 30.0, "modelled_joules": 0.002, "accuracy_after": accuracy}

    run = write_run(tmp_path / "a", [0.5, 0.75], failed=1, client=asked, package_joules=1500.0)
    summary = run_summary(run)
    assert summary["package_joules"] == 3000.0
    assert summary["modelled_seconds"] == 90.0  # of the three clients that answered
    assert summary["modelled_joules"] == pytest.approx(0.006)
    lines = run_lines({**summary, "wall_seconds": 2.5})
    assert lines == [
        "tiny: completed after 2 rounds",
        "  test accuracy   75.0% (counted; best 75.0%, mean of the curve 62.5%)",
        "  test loss       0.25 (counted)",
        "  local accuracy  80.0% (counted, in round 2; worst tenth of the clients 80.0%, Gini 0)",
        "  client updates  3 used, 1 not",
        "  uplink          330 B (counted, serialised; dense 300 B)",
        "  downlink        420 B (counted, serialised; dense 400 B)",
        "  training        2 kFLOP (counted, matrix products)",
        "  client CPU      1.5 s (measured, training alone)",
        "  wall time       2.5 s (measured)",
        "  energy          3 kJ (measured, whole processor)",
        "  on None         90 s, 6 mJ (modelled, summed over clients)",
        f"  model sha256    {summary['model_sha256']}",
        f"  run             {run}",
    ]


def test_a_total_of_which_a_round_is_missing_is_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [0.5, 0.5])
    with Ledger.resume(run) as ledger:
        row = RoundRow(round=3, clients_trained=1, clients_failed=0, uplink_bytes=5)
        ledger.append(row, [], [], arrays={}, state={}, client_states={})
    summary = run_summary(run)
    assert summary["uplink_bytes"] == 445
    for name in ("downlink_bytes", "uplink_dense_bytes", "train_flops", "cpu_seconds"):
        assert summary[name] is None
    assert "  client CPU      - (measured, training alone)" in run_lines(summary)


def test_totals_are_exact_however_large(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [0.5, 0.5, 0.5], train_flops=2**62 + 1)
    assert run_summary(run)["train_flops"] == 3 * (2**62 + 1)


def test_local_accuracy_is_of_the_last_round_that_looked(tmp_path: Path) -> None:
    looked = {(1, 0): 0.0, (1, 1): 0.0, (2, 0): 0.5, (2, 1): 1.0}
    run = write_run(
        tmp_path / "a",
        [0.5] * 3,
        client=lambda round, client: {"accuracy_after": looked.get((round, client))},
    )
    with Ledger.resume(run) as ledger:
        late = ClientRow(round=4, client=0, accuracy_after=0.1, status="rejected", error="late")
        ledger.append_failed_round([late])
    local = run_summary(run)["local_accuracy"]
    assert local == {"round": 2, "mean": 0.75, "worst_decile": 0.5, "gini": pytest.approx(0.5 / 3)}


def test_a_run_that_was_never_tested_has_no_accuracy(tmp_path: Path) -> None:
    summary = run_summary(write_run(tmp_path / "a", []))
    names = ("test_accuracy", "best_accuracy", "area_under_curve", "test_loss", "local_accuracy")
    assert [summary[name] for name in names] == [None] * 5
    assert (summary["rounds"], summary["uplink_bytes"], summary["cpu_seconds"]) == (0, 0, 0.0)
    assert summary["model_sha256"] is summary["package_joules"] is None
    lines = run_lines(summary)
    assert lines[0] == "tiny: completed after 0 rounds"
    assert lines[1] == "  test accuracy   -"
    assert "  client CPU      0 s (measured, training alone)" in lines


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_was_no_number_is_missing(tmp_path: Path, loss: float) -> None:
    run = write_run(tmp_path / "a", [0.25])
    with Ledger.resume(run) as ledger:
        row = RoundRow(
            round=2, test_accuracy=0.5, test_loss=loss, clients_trained=0, clients_failed=0
        )
        ledger.append(row, [], [], arrays={}, state={}, client_states={})
    summary = run_summary(run)
    assert (summary["test_accuracy"], summary["test_loss"]) == (0.5, None)
    json.dumps(summary, allow_nan=False)


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


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A run that an older fedsim wrote, in format 1: dense bytes, and none of the newer columns."""
    run = write_run(tmp_path / "old", [])
    (run / "ledger.sqlite").unlink()
    script = Path(__file__).with_name("ledger_v1.sql").read_text(encoding="utf-8")
    with closing(sqlite3.connect(run / "ledger.sqlite")) as db:
        db.executescript(script)
    return run


def test_a_run_of_format_1_has_dense_bytes_alone(old_run: Path) -> None:
    summary = run_summary(old_run)
    assert (summary["uplink_bytes"], summary["uplink_dense_bytes"]) == (None, 32)
    assert (summary["downlink_bytes"], summary["downlink_dense_bytes"]) == (None, 32)
    assert (summary["best_accuracy"], summary["cpu_seconds"]) == (0.8125, 1.5)
    for name in ("train_flops", "package_joules", "modelled_seconds", "local_accuracy"):
        assert summary[name] is None
    json.dumps(summary, allow_nan=False)
    assert "  uplink          - (counted, serialised; dense 32 B)" in run_lines(summary)


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


def layers(round: int) -> list[LayerRow]:
    """Two clients with two hidden layers; the output layer has no activation, so no zeros."""
    if round != 2:
        return []
    zeros = {"before": [0.5, 0.5], "after": [0.1, 0.3], "global": [0.9, 0.9]}
    return [
        LayerRow(
            round=round,
            client=client,
            layer=layer,
            phase=phase,
            zero_fraction=zero and zero + 0.1 * client,
            dead_fraction=zero and zero / 2,
        )
        for phase, values in zeros.items()
        for client in ((SERVER,) if phase == "global" else (0, 1))
        for layer, zero in zip(("dense1", "dense2", "output"), (*values, None), strict=True)
    ]


def full(round: int, client: int) -> dict[str, Any]:
    """The figures of a client that looks closely in round 2."""
    light = {"saved_bytes": 1000 + 2000 * client, "modelled_seconds": 2.0, "modelled_joules": 0.25}
    return light | ({"compressed_bytes": 60 + 20 * client} if round == 2 else {})


TIMINGS = Timing(
    forward_ns=Interval(estimate=1.25, low=1.0, high=1.5),
    backward_ns=Interval(estimate=2.0, low=1.5, high=2.25),
    times_relu=None,
    step_seconds=Interval(estimate=1e-3, low=5e-4, high=2e-3),
    share_of_step=Interval(estimate=0.125, low=0.1, high=0.15),
    share_by_difference=Interval(estimate=-0.01, low=-0.02, high=0.3),
)


@pytest.fixture
def arm(tmp_path: Path) -> Arm:
    runs = [
        write_run(tmp_path / "a", [0.2, 0.6, 0.5], cpu_seconds=0.5, client=full, layers=layers),
        write_run(tmp_path / "b", [0.4, None, 0.9], cpu_seconds=1.0, client=full, layers=layers),
    ]
    return summarise_arm("relu", runs, (0.4, 0.8), TIMINGS)


def test_an_arm_by_hand(arm: Arm) -> None:
    assert arm.label == "relu"
    figures = {name: spread.values for name, spread in arm.figures.items()}
    assert figures.pop("test_accuracy") == (0.5, 0.9)  # the last, not the best
    assert figures.pop("best_accuracy") == (0.6, 0.9)
    assert figures.pop("area_under_curve") == pytest.approx(((0.4 + 0.55) / 2, 0.65))
    assert figures.pop("cpu_seconds") == (3.0, 6.0)
    assert figures.pop("train_flops") == (3000.0, 3000.0)
    assert figures.pop("uplink_bytes") == (660.0, 660.0)
    assert figures.pop("downlink_bytes") == (630.0, 630.0)
    assert figures.pop("dense_bytes") == (100.0, 100.0)
    assert figures.pop("compressed_bytes") == (70.0, 70.0)
    assert figures.pop("saved_bytes") == (2000.0, 2000.0)
    assert figures.pop("hidden_zero_fraction") == pytest.approx((0.25, 0.25))
    assert figures.pop("hidden_dead_fraction") == pytest.approx((0.1, 0.1))
    assert figures.pop("modelled_seconds_per_client") == (2.0, 2.0)
    assert figures.pop("modelled_joules_per_client") == (0.25, 0.25)
    for name in ("local_accuracy", "local_worst_decile", "local_gini", "attack_success_fraction"):
        assert figures.pop(name) == ()  # nobody said
    share = (0.8 - 0.4) / (0.9 - 0.4)  # of the two rounds from the first to the third
    for cost, spent in {
        "rounds": 1,
        "cpu_seconds": 1,
        "train_flops": 1000,
        "uplink_bytes": 220,
        "downlink_bytes": 210,
        "bytes": 430,
        "wall_seconds": 1,
    }.items():
        pace = (1.0, 2.0) if cost == "cpu_seconds" else (spent, spent)
        expected = (1.5 * pace[0], pace[1])
        assert figures.pop(f"{cost}_to_0.4") == pytest.approx(expected)
        censored, reached = figures.pop(f"{cost}_to_0.8")
        assert censored is None
        assert reached == pytest.approx((1 + 2 * share) * pace[1])
    assert figures == {}


def test_an_arm_as_json(arm: Arm) -> None:
    document = json.loads(json.dumps(arm.as_json(), allow_nan=False))
    reach = {f"{cost}_to_{target}" for cost in COSTS for target in (0.4, 0.8)}
    assert set(document) == {"arm", "calibration", *FIGURES, *reach}
    assert document["cpu_seconds"] == {
        "kind": "measured",
        "mean": 4.5,
        "deviation": pytest.approx(statistics.stdev((3.0, 6.0))),
        "values": [3.0, 6.0],
    }
    assert document["rounds_to_0.8"]["mean"] is document["rounds_to_0.8"]["deviation"] is None
    assert document["modelled_joules_per_client"]["kind"] == "modelled"
    assert document["bytes_to_0.8"]["kind"] == "counted"
    assert document["calibration"]["backward_ns"] == {
        **{"kind": "measured", "estimate": 2.0, "low": 1.5, "high": 2.25}
    }
    assert document["calibration"]["times_relu"] is None
    assert set(document["calibration"]) == {field.name for field in fields(Timing)}


def test_the_kinds_are_those_of_the_ledger() -> None:
    for row in (RoundRow, ClientRow):
        for name, column in figures(row).items():
            if name in FIGURES:
                assert FIGURES[name] == column.metadata["kind"]
            if name in COSTS:
                assert COSTS[name] == column.metadata["kind"]


def test_every_figure_of_a_run_has_its_kind(tmp_path: Path) -> None:
    summary = run_summary(write_run(tmp_path / "a", [0.5], client=full))
    kinds = kinds_of(summary)
    texts = {"run", "name", "status", "error", "device", "blanks", "model_sha256", "guarantee"}
    assert set(kinds) == set(summary) - texts - {"adversary", "secure_aggregation"}
    assert {name for name, kind in kinds.items() if kind == "modelled"} == {
        *("modelled_seconds", "modelled_joules")
    }
    assert {name for name, kind in kinds.items() if kind == "measured"} == {
        *("cpu_seconds", "wall_seconds", "package_joules"),
        *("startup_cpu_seconds", "container_cpu_seconds", "container_peak_memory_bytes"),
        *("container_received_bytes", "container_sent_bytes"),
    }


def test_a_seed_that_failed_is_one_that_did_not_get_there(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [0.5, 0.75], client=full, layers=layers)
    arm = summarise_arm("relu", [None, run], (0.6,))
    whole = summarise_arm("relu", [run], (0.6,))
    assert not arm.failed
    for name, spread in arm.figures.items():
        values = whole.spread(name).values
        assert spread.values == ((None, *values) if values else ())
        assert spread.mean is None
    assert arm.spread("test_accuracy").values == (None, 0.75)
    lost = summarise_arm("tanh", [None, None], (0.6,))
    assert lost.failed
    assert lost.spread("uplink_bytes").values == lost.spread("rounds_to_0.6").values == (None,) * 2
    assert not whole.failed
    assert not summarise_arm("gelu", [], ()).failed
    json.dumps(lost.as_json(), allow_nan=False)


def test_an_arm_whose_runs_were_never_tested_has_no_accuracy(tmp_path: Path) -> None:
    empty = summarise_arm("relu", [write_run(tmp_path / "a", [])], targets=(0.5,))
    assert empty.spread("test_accuracy").values == ()
    assert empty.spread("rounds_to_0.5").values == (None,)
    assert empty.spread("share_of_step").values == empty.spread("ns_per_element").values == ()
    json.dumps(empty.as_json(), allow_nan=False)


def test_what_one_run_does_not_say_the_arm_does_not(tmp_path: Path, old_run: Path) -> None:
    new = write_run(tmp_path / "a", [0.5, 0.75], client=full, layers=layers)
    arm = summarise_arm("relu", [new, old_run], (0.75, 0.9))
    assert arm.spread("rounds_to_0.75").values == (2.0, 1.0)
    assert arm.spread("cpu_seconds_to_0.75").values == (2.0, 1.5)
    assert arm.spread("cpu_seconds_to_0.9").values == (None, None)
    for name in ("uplink_bytes", "saved_bytes", "hidden_zero_fraction", "train_flops"):
        assert arm.spread(name).values == ()
    for target in (0.75, 0.9):  # nobody knows what it would have cost
        assert arm.spread(f"bytes_to_{target}").values == ()
    assert arm.spread("dense_bytes").values == (100.0, 16.0)
    json.dumps(arm.as_json(), allow_nan=False)


def test_hidden_layers_are_those_of_the_last_round_that_looked(tmp_path: Path) -> None:
    def look(round: int) -> list[LayerRow]:
        after = LayerRow(round=round, client=0, layer="a", phase="after", zero_fraction=0.1 * round)
        world = replace(after, client=SERVER, phase="global")
        return {1: [after], 2: [after, world], 3: [world]}[round]

    run = write_run(tmp_path / "a", [0.5, 0.5, 0.5], layers=look)
    assert summarise_arm("relu", [run], ()).spread("hidden_zero_fraction").values == (0.2,)


# The calibration.


def calibration(machine: Machine) -> Calibration:
    return Calibration(
        machine=machine,
        unstable=("short blocks",),
        batch_size=10,
        shapes=((10, 200),),
        blocks=20,
        seconds=25.0,
        control=TIMINGS,
        activations={"relu": TIMINGS},
    )


def machine_of(run: Path) -> Machine:
    manifest = read_manifest(run)
    return Machine(
        processor=manifest.processor,
        cores=manifest.cores,
        platform=manifest.platform,
        torch="2.9",
        threads=1,
        pinned=None,
    )


def test_a_calibration_is_read_from_the_study_s_directory(tmp_path: Path) -> None:
    assert calibration_in(tmp_path) is None
    written = calibration(machine_of(write_run(tmp_path / "a", [0.5])))
    (tmp_path / "calibration.json").write_text(json.dumps(written.as_json()))
    assert calibration_in(tmp_path) == written
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        calibration_in(tmp_path)


def test_timings_of_another_machine_than_the_runs_are_told(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [0.5]) for name in "ab"]
    machine = machine_of(runs[0])
    assert timed_elsewhere(calibration(machine), runs) == []
    assert timed_elsewhere(calibration(replace(machine, cores=999, torch="1")), runs) == []
    older = calibration(replace(machine, processor="Z80", platform="CP/M"))
    assert timed_elsewhere(older, []) == []
    assert timed_elsewhere(older, runs) == [
        f"processor: Z80 -> {machine.processor}",
        f"platform: CP/M -> {machine.platform}",
    ]
    manifest = read_manifest(runs[1])
    changed = {"2026-11-23": {"cores": 1}, "2026-11-24": {"processor": "6502"}}
    write_manifest(runs[1], replace(manifest, changed=changed))
    assert timed_elsewhere(calibration(machine), runs) == [
        f"processor: {machine.processor} -> 6502"
    ]


# Tables.


def rendered(table: Any, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show(table)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]


def cells(line: str) -> list[str]:
    return re.split(" {2,}", line.strip())


def test_the_table_of_arms(arm: Arm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "c", [0.9])
    half, failed = (summarise_arm("tanh", runs, (0.4, 0.8)) for runs in ([run, None], [None] * 2))
    table = arms_table("activation", [arm, half, failed], (0.4, 0.8))
    head, _, first, second, third = rendered(table, capsys)
    assert cells(head) == [
        *("activation", "test accuracy", "rounds to 40%", "rounds to 80%", "client CPU", "uplink")
    ]
    assert cells(first) == [
        *("relu", "70.0% +- 28.3%", "1.2 +- 0.4", "1 of 2 seeds"),
        *("4.5 s +- 2.12 s", "660 B"),
    ]
    assert cells(second) == ["tanh", *["1 of 2 seeds"] * 5]
    assert cells(third) == ["tanh", *["failed"] * 5]


def test_the_bill(arm: Arm, capsys: pytest.CaptureFixture[str]) -> None:
    failed = summarise_arm("tanh", [None], (0.4, 0.8), TIMINGS)
    table = bill_table("activation", [arm, failed], 0.8)
    head, kinds, _, first, second = rendered(table, capsys)
    assert cells(head) == [
        *("activation", "step share", "ns/element", "saved/step", "zero", "dead", "compressed"),
        *("bytes to 80%", "CPU to 80%", "device time", "device energy"),
    ]
    assert kinds.split() == [
        *("measured", "measured", "counted", "counted", "counted", "counted"),
        *("counted", "measured", "modelled", "modelled"),
    ]
    assert cells(first) == [
        *("relu", "12.5%", "3.25", "2 kB", "25.0%", "10.0%", "70 B"),
        *("1 of 2 seeds", "1 of 2 seeds", "2 s", "250 mJ"),
    ]
    assert second.split() == ["tanh", "12.5%", "3.25", *["failed"] * 8]


def test_what_nobody_asked_for_has_no_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    light = {"saved_bytes": 1000}
    runs = [
        write_run(tmp_path / "a", [0.5], client=lambda round, client: light),
        write_run(tmp_path / "b", [0.9]),
    ]
    arms = [summarise_arm(run.name, [run], (0.6,)) for run in runs]
    table = bill_table("level", arms, 0.6)
    head, kinds, _, *lines = rendered(table, capsys)
    assert cells(head) == ["level", "saved/step", "bytes to 60%", "CPU to 60%"]
    assert kinds.split() == ["counted", "counted", "measured"]
    assert [cells(line) for line in lines] == [
        ["a", "1 kB", "not reached", "not reached"],
        ["b", "-", "430 B", "1 s"],
    ]
    assert cells(rendered(bill_table("level", arms, None), capsys)[0]) == ["level", "saved/step"]
    lost = summarise_arm("c", [None], (0.6,))
    assert bill_table("level", [arms[1], lost], None) is None
    assert bill_table("level", [lost], 0.6) is None


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ({}, None),
        ({"relu": ()}, None),
        ({"relu": (796_840,)}, "796,840 bytes for every arm"),
        ({"relu": (796_840, 796_840), "tanh": (796_840,)}, "796,840 bytes for every arm"),
        (
            {"relu": (796_840,), "prelu": (796_848,), "tanh": (796_840,), "failed": ()},
            "796,848 bytes for prelu, 796,840 bytes for the others",
        ),
        ({"64": (100,), "128": (200,)}, "100 bytes for 64, 200 bytes for 128"),
    ],
)
def test_that_dense_updates_are_alike_is_checked_and_said(
    arms: dict[str, tuple[float, ...]], expected: str | None
) -> None:
    line = dense_line(
        [
            Arm(label=label, figures={"dense_bytes": Spread(values=values)})
            for label, values in arms.items()
        ]
    )
    assert line == (None if expected is None else f"dense update: {expected} (counted)")


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


def test_every_column_of_the_bill_is_explained_once() -> None:
    titles = [title for title, _, _ in bill_columns(0.9)]
    explained = [[start for start in MEANINGS if title.startswith(start)] for title in titles]
    assert [len(starts) for starts in explained] == [1] * len(titles)
    assert {start for starts in explained for start in starts} == set(MEANINGS)
