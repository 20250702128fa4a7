"""Flower's own runtime: it runs our apps, and we run anybody's, with equal results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedsim

pytestmark = pytest.mark.flower

ROOT = Path(fedsim.__file__).parent.parent
STOCK = Path(__file__).parent / "apps" / "stock.py"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def stock_outcome(runtime: str, cwd: Path) -> dict:
    """Run the stock apps in a process of their own and return what their server printed."""
    done = subprocess.run(
        [sys.executable, str(STOCK), runtime],
        env={**os.environ, **QUIET},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def test_stock_apps_give_equal_results_in_both_runtimes(tmp_path):
    ours, flowers = stock_outcome("fedsim", tmp_path), stock_outcome("flower", tmp_path)
    assert ours == flowers
    assert ours["train"] == {str(r): {"seen": float(r)} for r in (1, 2, 3)}
    assert set(ours["evaluate"]) == {"1", "2", "3"}


@pytest.fixture
def superlink_home(tmp_path):
    """Give Flower a home of its own, and end the SuperLink that ``flwr run`` leaves behind."""
    home = tmp_path / "flwr"
    home.mkdir()
    yield home
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"FLWR_HOME={home}".encode() in environment and b"flower-superlink" in command:
            os.kill(int(process.name), signal.SIGTERM)


def test_flwr_run_gives_the_model_of_fedsim_run(superlink_home, tmp_path):
    settings = {"rounds": 3, "clients": 8}
    config = tmp_path / "experiment.toml"
    config.write_text(
        f"""
        [experiment]
        rounds = {settings["rounds"]}
        [train]
        compiler = "torch"  # which is what "auto" means in Flower's runtime
        [data]
        clients = {settings["clients"]}
        partition = "dirichlet"
        [server]
        clients_per_round = 4
        [run]
        out = "{tmp_path / "flower"}"
        """
    )
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        **QUIET,
        "FLWR_HOME": str(superlink_home),
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["flwr", "run", str(ROOT), "--run-config", str(config)]
    command += ["--federation-config", f"num-supernodes={settings['clients']}"]
    started = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert started.returncode == 0, started.stdout + started.stderr
    manifest = wait_for_end(tmp_path / "flower" / "manifest.json")
    assert manifest["status"] == "completed", manifest["error"]

    ours = subprocess.run(
        [
            *(str(Path(scripts) / "fedsim"), "run", str(config), "--format", "json", "-q"),
            *("--out", str(tmp_path / "ours"), "-s", "engine.name=inline"),
        ],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ours.returncode == 0, ours.stderr
    assert json.loads(ours.stdout)["model_sha256"] == manifest["model_sha256"]


def wait_for_end(manifest: Path) -> dict:
    """Wait until a run has ended, and return its manifest."""
    for _ in range(1500):
        if manifest.exists():
            content = json.loads(manifest.read_text())
            if content["status"] != "running":
                return content
        time.sleep(0.2)
    raise AssertionError(f"{manifest} did not come to an end")
