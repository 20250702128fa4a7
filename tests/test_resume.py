"""A run that is killed again and again ends with the bits of one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

FEDSIM = str(Path(sys.executable).parent / "fedsim")
SMALL = ["data.clients=12", "server.clients_per_round=4", "train.epochs=2"]
SETTINGS = [part for setting in SMALL for part in ("-s", setting)]


def run_whole(out: Path, *settings: str) -> str:
    """Run an experiment without disturbance and return its model's digest."""
    done = subprocess.run(
        [FEDSIM, "run", *SETTINGS, *settings, "--out", str(out), "-q", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["model_sha256"]


def rounds_in(out: Path) -> int:
    """Count the committed rounds, also while they are written."""
    try:
        with sqlite3.connect(f"file:{out / 'ledger.sqlite'}?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*) FROM rounds").fetchone()[0]
    except sqlite3.Error:
        return 0


def kill_somewhere(command: list[str], out: Path, moment: random.Random) -> bool:
    """Start a run, kill it at a random moment after its next round; return whether it was alive."""
    before = rounds_in(out)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while process.poll() is None and rounds_in(out) == before:
            time.sleep(0.002)
        time.sleep(moment.uniform(0.0, 0.15))
        alive = process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert alive or process.returncode == 0, errors.decode()
    return alive


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", ["server.strategy=fedadam", "server.strategy=scaffold", "update.codec=topk"]
)
def test_ten_kills_at_random_moments_change_no_bit(setting, tmp_path):
    """What is remembered: the strategy's momenta, control variates, what topk did not send."""
    experiment = ["-s", "experiment.rounds=300", "-s", setting, "-s", "engine.name=inline"]
    alone = run_whole(tmp_path / "alone", *experiment)

    out, moment = tmp_path / "killed", random.Random(setting)
    command = [FEDSIM, "run", *SETTINGS, *experiment, "--out", str(out), "-q"]
    kills = 0
    for _ in range(10):
        kills += kill_somewhere(command, out, moment)
        command = [FEDSIM, "run", "--resume", str(out), "-q"]
    done = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert kills == 10
    assert summary["status"] == "completed"
    assert summary["rounds"] == 300
    assert summary["clients_trained"] == 1200
    assert summary["model_sha256"] == alone


@pytest.mark.ray
def test_a_kill_of_the_whole_program_on_ray_changes_no_bit(tmp_path):
    experiment = ["-s", "experiment.rounds=400", "-s", "engine.workers=2"]
    alone = run_whole(tmp_path / "alone", *experiment[:2], "-s", "engine.name=inline")
    out = tmp_path / "killed"
    command = [FEDSIM, "run", *SETTINGS, *experiment, "--out", str(out), "-q"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and rounds_in(out) < 3:
        time.sleep(0.01)
    helpers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    for helper in helpers:  # Ray's own, of which some outlive a driver that is killed
        if helper.is_running():
            helper.kill()
    assert 3 <= rounds_in(out) < 400
    done = subprocess.run(
        [FEDSIM, "run", "--resume", str(out), "-q", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_sha256"] == alone
