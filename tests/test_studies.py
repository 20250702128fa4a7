from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data import load_dataset
from fedsim.errors import DataError
from fedsim.ledger.read import load
from fedsim.ledger.schema import CLIENTS, ROUNDS
from fedsim.records import ClientRow, RoundRow, figures

CLI = Callable[..., Any]
FEDSIM = Path(sys.executable).with_name("fedsim")
BASE = """
[experiment]
rounds = 3
[data]
clients = 5
[model]
width = 8
[server]
clients_per_round = 2
[engine]
name = "inline"
"""
TUNED = """
about = "Is tanh better than ReLU here?"
base = "base.toml"
seeds = 3
targets = [0.1]

[axes]
"model.activation" = ["relu", "tanh"]

[tune]
seeds = 1
endpoint = "area_under_curve"

[tune.grid]
"train.learning_rate" = 0.1

[[hypothesis]]
arm = "tanh"
reference = "relu"
endpoint = ["best_accuracy", "uplink_bytes"]
claim = "better"
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study that tunes and claims, in an empty directory."""
    (tmp_path / "base.toml").write_text(BASE)
    path = tmp_path / "tuned.toml"
    path.write_text(TUNED)
    return path


# Tuning.


def test_a_study_tunes_each_arm_by_itself_on_a_part_of_the_training_data(
    cli: CLI, study: Path
) -> None:
    document = cli("study", study, "--out", "s", "--format", "json", "-q").json
    assert [curve["arm"]["model.activation"] for curve in document["tuning"]] == ["relu", "tanh"]
    for curve in document["tuning"]:
        rates = [tried["point"]["train.learning_rate"] for tried in curve["tried"]]
        best = curve["best"]["train.learning_rate"]
        assert rates[0] < best < rates[-1]  # inside what was tried
        assert rates == sorted(rates)
        results = [c for c in document["cells"] if c["arm"] == curve["arm"]]
        assert [c["seed"] for c in results] == [0, 1, 2]
        for cell in results:
            assert cell["tuned"] == curve["best"]
            assert load(cell["run"]).config["data"]["validation_fraction"] == 0.0
    tuned = [load(path.parent) for path in Path("s/tuning").rglob("ledger.sqlite")]
    assert {run.config["experiment"]["seed"] for run in tuned} == {1_000_000}
    assert {run.config["data"]["validation_fraction"] for run in tuned} == {0.1}


def test_what_was_tuned_and_decided_is_the_same_from_the_ledgers_alone(
    cli: CLI, study: Path
) -> None:
    first = cli("study", study, "--out", "s", "--format", "json", "-q").json
    again = cli("study", study, "--out", "s", "--format", "json")
    assert again.err == ""  # nothing ran
    assert again.json == first
    assert [v["hypothesis"] for v in first["verdicts"]] == [
        "tanh is better than relu in best_accuracy",
        "tanh is better than relu in uplink_bytes",
    ]
    keys = ("arm", "reference", "endpoint", "estimate", "low", "high", "margin", "seeds", "verdict")
    for verdict in first["verdicts"]:
        assert set(keys) <= set(verdict)
        assert verdict["seeds"] == 3
        assert verdict["low"] <= verdict["estimate"] <= verdict["high"]
    assert first["verdicts"][1]["estimate"] == pytest.approx(1, abs=0.01)


def test_tuning_on_the_test_split_uses_its_own_runs_as_results(cli: CLI, study: Path) -> None:
    text = TUNED.partition("[[hypothesis]]")[0].replace("seeds = 1\n", 'split = "test"\n')
    study.write_text(text)
    document = cli("study", study, "--out", "s", "--format", "json", "-q").json
    runs = {path.parent for path in Path("s").rglob("ledger.sqlite")}
    assert {Path(cell["run"]) for cell in document["cells"]} < runs
    assert not Path("s/tuning").exists()


def test_a_tuning_run_that_diverges_is_no_failure_of_the_study(cli: CLI, study: Path) -> None:
    study.write_text(
        TUNED.replace(
            '"train.learning_rate" = 0.1',
            '"train.momentum" = [0.5, 0.9]\n"train.learning_rate" = [0.1, 1e30]',
        )
    )
    answer = cli("study", study, "--out", "s", "--format", "json", "-q")
    assert answer.code == 0
    assert answer.json["failed"] == []
    # Two of ReLU: tanh takes any step, and learns nothing.
    assert len(answer.json["failed_tuning"]) == 2
    assert all(c["best"]["train.learning_rate"] == 0.1 for c in answer.json["tuning"])
    # A report takes what failed for what it is, and does not wait for it.
    assert cli("report", "s").code == 0
    assert "nothing here is final" not in Path("s/report.html").read_text()


def test_no_run_begins_after_the_budget_and_the_next_call_goes_on(cli: CLI, study: Path) -> None:
    text = 'base = "base.toml"\nseeds = 2\n[axes]\n"model.activation" = ["relu", "tanh"]\n'
    study.write_text(f"budget_seconds = 1e-9\n{text}")
    assert "budget: 0.001 us, which looks too little" in cli("study", study, "--plan").out
    answer = cli("study", study, "--out", "s", "-q")
    assert answer.code == 1
    assert answer.err.startswith("error: the budget of 0.001 us is used up with 4 runs to go")
    study.write_text(text)
    assert cli("study", study, "--out", "s", "-q").code == 0


def test_words_are_tuned_as_well_as_numbers(cli: CLI, study: Path) -> None:
    study.write_text(
        TUNED.replace('"train.learning_rate" = 0.1', '"train.schedule" = ["constant", "cosine"]')
    )
    answer = cli("study", study, "--out", "s", "--format", "json")
    assert answer.code == 0, answer.err
    assert "tuning relu, schedule cosine, seed 1000000: " in answer.err
    assert {c["best"]["train.schedule"] for c in answer.json["tuning"]} <= {"constant", "cosine"}
    assert [c["windows"] for c in answer.json["tuning"]] == [{}, {}]


def test_an_arm_that_cannot_be_tuned_has_no_results_and_says_why(cli: CLI, study: Path) -> None:
    study.write_text(TUNED.replace('"train.learning_rate" = 0.1', '"train.learning_rate" = [1e30]'))
    answer = cli("study", study, "--out", "s", "--format", "json", "-q")
    assert answer.code == 1
    assert "error: relu: no tuning run gave a figure" in answer.err
    assert {c["arm"]["model.activation"] for c in answer.json["cells"]} == {"tanh"}
    assert {v["verdict"] for v in answer.json["verdicts"]} == {"inconclusive"}


def test_a_plan_counts_what_would_run_and_runs_nothing(cli: CLI, study: Path) -> None:
    plan = cli("study", study, "--plan", "--format", "json").json
    assert (plan["arms"], plan["seeds"], plan["cells"], plan["cells_complete"]) == (2, 3, 6, 0)
    assert plan["tuning_runs"] == 6  # three points of either arm
    assert plan["client_updates"] == (6 + 6) * 3 * 2
    assert plan["modelled_seconds"] > 0
    assert not Path("runs").exists()
    text = cli("study", study, "--plan").out
    assert text.startswith("tuned: 6 cells (2 arms x 3 seeds), 0 complete\n")
    assert "hypothesis: tanh is better than relu in best_accuracy (margin 0.005)" in text


def test_a_plan_of_a_finished_study_has_nothing_to_go(cli: CLI, study: Path) -> None:
    cli("study", study, "-q")
    plan = cli("study", study, "--plan", "--format", "json").json
    assert plan["cells_complete"] == plan["cells"] == 6
    assert (plan["client_updates"], plan["modelled_seconds"]) == (0, 0)


def test_arms_that_would_differ_in_more_than_their_axis_are_refused(
    cli: CLI, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedsim.choices

    def why_not(experiment: Any) -> str | None:
        return "it has tanh" if experiment.model.activation == "tanh" else None

    monkeypatch.setattr(fedsim.choices, "why_not_xla", why_not)
    answer = cli("study", study)
    assert answer.code == 2
    assert (
        "error: tanh and relu would differ in train.compiler: 'xla' -> 'torch' too; "
        "set train.compiler for both"
    ) in answer.err
    assert not Path("runs").exists()


# Early ends, and what is held out.


def test_a_run_stops_at_its_accuracy_and_stays_there_when_it_is_resumed(
    cli: CLI, tiny: tuple[str, ...]
) -> None:
    stop = ("-s", "experiment.stop_at_accuracy=0.05", "--out", "r")
    first = cli("run", *tiny, *stop, "--format", "json").json
    assert (first["status"], first["rounds"]) == ("completed", 1)
    again = cli("run", "--resume", "r", "--format", "json").json
    assert (again["rounds"], again["model_sha256"]) == (1, first["model_sha256"])
    whole = cli("run", *tiny, "-s", "experiment.stop_at_accuracy=0.999", "--format", "json").json
    assert whole["rounds"] == 2


def test_a_stop_does_not_change_the_rounds_before_it(cli: CLI, tiny: tuple[str, ...]) -> None:
    cli("run", *tiny, "-s", "experiment.stop_at_accuracy=0.05", "--out", "short")
    cli("run", *tiny, "--out", "long")
    short, long = load("short").rounds, load("long").rounds
    assert short.test_loss[0] == long.test_loss[0]


def test_a_validation_part_is_held_out_of_the_training_part_alone() -> None:
    whole = load_dataset("digits")
    tuning = load_dataset("digits", validation_fraction=0.25)
    n = len(whole.y_train)
    assert len(tuning.y_train) + len(tuning.y_test) == n
    assert len(tuning.y_test) == pytest.approx(n / 4, abs=10)
    train = {x.tobytes() for x in whole.x_train}
    assert all(x.tobytes() in train for x in tuning.x_test)  # nothing of the test part
    both = np.concatenate([tuning.x_train, tuning.x_test])
    assert sorted(x.tobytes() for x in both) == sorted(x.tobytes() for x in whole.x_train)
    again = load_dataset("digits", validation_fraction=0.25)
    assert np.array_equal(again.x_test, tuning.x_test)
    with pytest.raises(DataError, match=r"data\.validation_fraction = .*no validation example"):
        load_dataset("digits", validation_fraction=1e-9)


def test_an_offset_moves_every_feature() -> None:
    plain, moved = load_dataset("digits"), load_dataset("digits", offset=-0.5)
    (x, y), (shifted, same) = plain.test(), moved.test()
    assert np.array_equal(shifted, x - np.float32(0.5))
    assert np.array_equal(y, same)
    assert np.array_equal(moved.train(np.arange(3))[0], plain.train(np.arange(3))[0] - 0.5)


# Side by side, killed, and gone on with.


@pytest.mark.ray
def test_runs_side_by_side_are_those_that_go_one_after_another(cli: CLI, study: Path) -> None:
    one = cli("study", study, "--out", "one", "--format", "json", "-q").json
    both = ("-s", "engine.name=ray", "-s", "engine.workers=2")
    answer = cli("study", study, "--out", "two", *both, "--format", "json")
    assert answer.code == 0, answer.err
    two = answer.json

    def bits(document: Any) -> list[Any]:
        return [(c["arm"], c["tuned"], c["seed"], c["model_sha256"]) for c in document["cells"]]

    assert bits(one) == bits(two)
    assert [v["verdict"] for v in one["verdicts"]] == [v["verdict"] for v in two["verdicts"]]


@pytest.mark.ray
def test_a_run_that_fails_in_a_worker_is_recorded_while_the_others_go_on(
    cli: CLI, study: Path
) -> None:
    study.write_text(
        'base = "base.toml"\nseeds = 1\n[axes]\n"train.learning_rate" = [0.1, 1e30, 0.2]\n'
    )
    both = ("-s", "engine.name=ray", "-s", "engine.workers=2")
    answer = cli("study", study, "--out", "s", *both, "--format", "json")
    assert answer.code == 1
    assert [cell["arm"]["train.learning_rate"] for cell in answer.json["cells"]] == [0.1, 0.2]
    (failed,) = answer.json["failed"]
    assert failed["error"].startswith("round 1: none of 2 clients gave a usable update")


@pytest.mark.parametrize("left", [("config.toml",), ("config.toml", "ledger.sqlite")])
def test_a_run_that_was_killed_before_its_manifest_begins_anew(
    cli: CLI, study: Path, left: tuple[str, ...]
) -> None:
    study.write_text('base = "base.toml"\nseeds = 1\n[axes]\n"model.activation" = ["relu"]\n')
    first = cli("study", study, "--out", "s", "--format", "json", "-q").json
    run = Path(first["cells"][0]["run"])
    for file in run.iterdir():
        if file.name not in left:
            file.unlink()
    again = cli("study", study, "--out", "s", "--format", "json", "-q")
    assert again.code == 0, again.err
    assert again.json["cells"][0]["model_sha256"] == first["cells"][0]["model_sha256"]


def without_times(directory: Path) -> None:
    """Give every run under a directory the same times."""
    for ledger in directory.rglob("ledger.sqlite"):
        db = sqlite3.connect(ledger)
        for table, row in ((ROUNDS, RoundRow), (CLIENTS, ClientRow)):
            timed = [n for n, f in figures(row).items() if f.metadata["kind"] == "measured"]
            settings = ", ".join(f"{name} = 1" for name in timed)
            db.execute(f"UPDATE {table.name} SET {settings}")
        db.commit()
        db.close()
        manifest = ledger.with_name("manifest.json")
        document = json.loads(manifest.read_text())
        document |= dict.fromkeys(("created", "updated", "finished"), "2026-01-01T00:00:00+00:00")
        manifest.write_text(json.dumps(document | {"wall_seconds": 1, "resumed": []}))


@pytest.mark.slow
def test_a_study_that_was_killed_gives_the_same_report_but_for_the_times(
    study: Path, tmp_path: Path
) -> None:
    study.write_text(TUNED.replace("[axes]", '[set]\n"experiment.rounds" = 30\n\n[axes]'))
    environment = {k: v for k, v in os.environ.items() if k != "FEDSIM_RUNS_DIR"}

    def command(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [FEDSIM, *arguments], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
        )

    assert command("study", "tuned.toml", "--out", "a/s", "-q").wait() == 0
    process = command("study", "tuned.toml", "--out", "b/s", "-q")
    until = time.monotonic() + 60
    while len(list((tmp_path / "b").rglob("ledger.sqlite"))) < 9 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list((tmp_path / "b").rglob("ledger.sqlite"))) < 12
    assert command("study", "tuned.toml", "--out", "b/s", "-q").wait() == 0
    pages = []
    for side in ("a", "b"):
        without_times(tmp_path / side)
        assert command("report", f"{side}/s").wait() == 0
        pages.append((tmp_path / side / "s" / "report.html").read_bytes())
    assert pages[0] == pages[1]
