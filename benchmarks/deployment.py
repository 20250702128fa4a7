"""What a round of a deployed federation costs: Flower's stock nodes beside fedsim's.

    python -m benchmarks.deployment                 # ten rounds of trivial work on two nodes
    python -m benchmarks.deployment --repeats 1     # once

Both deployments are processes on this machine, without containers and without TLS: a SuperLink
with process isolation, a SuperExec, and a SuperNode for each client. They run the same bundle. The
CPU is that of all their processes between two rounds, as the kernel counts it; start-up is left
out. The stock setting is what Flower does when it is told nothing; ``polling`` is the same with the
poll interval that it lets one set.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment, machine
from benchmarks.processes import TICKS, all_processes, tree
from fedsim.config import from_flat
from fedsim.deployment.bundle import make_bundle
from fedsim.deployment.superlink import SuperLink
from fedsim.errors import RunFailed
from fedsim.simulation import app_directory

RESULTS = environment.ROOT / "benchmarks" / "results" / "deployment.json"
FORMAT = 1
WARM_ROUNDS = 2  # left out: nodes load what they need
ADDRESS = "127.0.0.1:18000"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
TRIVIAL = {
    "experiment.name": "trivial",
    "data.clients": 2,
    "model.width": 8,
    "model.depth": 1,
    "train.steps": 1,
    "server.clients_per_round": 2,
    "engine.name": "inline",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to run the nodes."""

    name: str
    node: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    packed: bool = False


STOCK = ("flower-supernode", "--node-config", "partition-id={k} num-partitions=2")
SETTINGS = (
    Setting(name="stock", node=STOCK),
    Setting(
        name="polling",
        node=STOCK,
        environment=(("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.1"),),
    ),
    Setting(
        name="fedsim",
        node=(
            *(sys.executable, "-m", "fedsim.deployment.node"),
            *("--partition-id", "{k}", "--partitions", "2"),
        ),
        packed=True,  # as fedsim deploy submit has it
    ),
)


def main() -> None:
    """Measure each setting, one after another within a repeat."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="that are measured (default: 10)")
    parser.add_argument("--repeats", type=int, default=3, help="of every setting (default: 3)")
    parser.add_argument("--only", choices=[s.name for s in SETTINGS], help="one setting")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file")
    options = parser.parse_args()
    rows = []
    for repeat in range(options.repeats):
        for setting in SETTINGS:
            if options.only not in (None, setting.name):
                continue
            with tempfile.TemporaryDirectory(prefix="fedsim-bench-") as directory:
                figures = measure(setting, Path(directory), options.rounds)
            rows.append({"setting": setting.name, "repeat": repeat, **figures})
            print(json.dumps(rows[-1]), file=sys.stderr)
            content = {"format": FORMAT, "machine": machine.about(), "rows": rows}
            options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(rows))


def measure(setting: Setting, directory: Path, rounds: int) -> dict[str, float]:
    """Return CPU and wall seconds a round, and CPU seconds a client's visit."""
    out = directory / "run"
    experiment = from_flat(
        {
            **TRIVIAL,
            "experiment.rounds": WARM_ROUNDS + rounds,
            "run.out": str(out),
            "update.packed": setting.packed,
        },
        vocabulary={},
    )
    with federation(setting, directory) as roots, SuperLink(ADDRESS, None) as superlink:
        superlink.wait_until_healthy(60)
        run = superlink.start(make_bundle(experiment, app_directory()))
        before = await_round(superlink, run, out, WARM_ROUNDS, roots)
        after = await_round(superlink, run, out, WARM_ROUNDS + rounds, roots)
    spent = {name: after[name] - before[name] for name in after}
    cpu_seconds = sum(spent[name] for name in roots) / rounds
    return {
        "rounds": rounds,
        "cpu_seconds_a_round": cpu_seconds,
        **{
            f"{name}_cpu_seconds_a_round": spent[name] / rounds
            for name in ("superlink", "superexec")
        },
        "node_cpu_seconds_a_visit": (spent["node-0"] + spent["node-1"]) / 2 / rounds,
        "wall_seconds_a_round": spent["wall"] / rounds,
    }


@contextmanager
def federation(setting: Setting, directory: Path) -> Iterator[dict[str, int]]:
    """Start a SuperLink, a SuperExec and two nodes; yield their processes by name."""
    variables = {**os.environ, **QUIET, **dict(setting.environment)}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    commands = {
        "superlink": [
            *("flower-superlink", "--insecure", "--isolation", "process"),
            *("--port", ADDRESS.rpartition(":")[2], "--database", str(directory / "state.sqlite")),
        ],
        "superexec": ["flower-superexec", "--insecure", "--runtime-api-address", ADDRESS],
    }
    for k in range(2):
        node = [part.format(k=k) for part in setting.node]
        commands[f"node-{k}"] = [*node, "--insecure", "--superlink", ADDRESS]
        if setting.name != "fedsim":
            commands[f"node-{k}"] += ["--port", str(19094 + k)]
        else:
            commands[f"node-{k}"] += ["--runtime-port", str(19094 + k)]
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            home = directory / name
            home.mkdir()
            with (home / "log").open("wb") as log:
                started[name] = subprocess.Popen(
                    command,
                    env={**variables, "FLWR_HOME": str(home / "flwr")},
                    cwd=home,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        yield {name: process.pid for name, process in started.items()}
    finally:
        for process in reversed(started.values()):
            process.send_signal(signal.SIGTERM)
        for process in started.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def await_round(
    superlink: SuperLink, run: int, out: Path, round: int, roots: dict[str, int]
) -> dict[str, float]:
    """Return the CPU seconds of each process tree, and the wall clock, once a round is stored."""
    while rounds_stored(out) < round:
        time.sleep(0.02)
        if rounds_stored(out) < round and superlink_says_over(superlink, run):
            raise RunFailed(str(superlink.standing(run)))
    processes = all_processes()
    cpu = {
        name: sum(process.ticks for process in tree(root, processes)) / TICKS
        for name, root in roots.items()
    }
    return {**cpu, "wall": time.monotonic()}


_asked = 0.0


def superlink_says_over(superlink: SuperLink, run: int) -> bool:
    """Say whether the run has ended; it is asked every five seconds."""
    global _asked
    if time.monotonic() - _asked < 5:
        return False
    _asked = time.monotonic()
    return superlink.standing(run).over


def rounds_stored(out: Path) -> int:
    """Return how many rounds a run's ledger holds."""
    path = out / "ledger.sqlite"
    if not path.is_file():
        return 0
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as ledger:
            found: tuple[int] = ledger.execute("SELECT count(*) FROM rounds").fetchone()
    except sqlite3.Error:
        return 0
    return found[0]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the medians as a Markdown table, and each as a part of the stock setting's."""
    figures = ["cpu_seconds_a_round", "node_cpu_seconds_a_visit", "wall_seconds_a_round"]
    medians = {
        setting.name: {
            figure: statistics.median(r[figure] for r in rows if r["setting"] == setting.name)
            for figure in figures
        }
        for setting in SETTINGS
        if any(r["setting"] == setting.name for r in rows)
    }
    lines = [
        "| nodes | CPU s a round | of stock | CPU s a client's visit | of stock | wall s a round |",
        "|---|---|---|---|---|---|",
    ]
    stock = next(iter(medians.values()))
    for name, row in medians.items():
        cpu, visit, wall = (row[figure] for figure in figures)
        lines.append(
            f"| {name} | {cpu:.2f} | {cpu / stock[figures[0]]:.2f} | {visit:.2f} "
            f"| {visit / stock[figures[1]]:.2f} | {wall:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
