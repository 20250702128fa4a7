"""Flame graphs of a round: where the driver's and a worker's time goes, down to native code.

    python -m benchmarks.flame after [--seconds 8] [--model 2nn] [--out docs]

runs the 2NN at B=10, 100 clients a round, on two workers; samples the driver, then a worker, with
py-spy, and writes ``flame-NAME-driver.svg`` and ``flame-NAME-worker.svg``. py-spy stops a process
while it looks, so that rounds are slower meanwhile; it sees Python's threads alone, and leaves out
what waits. Where ``perf`` is installed, it then says, at full speed and of all threads, how busy
the worker is and which share of that lies in compute kernels.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.data import data_file
from benchmarks.environment import BENCH, prepare
from benchmarks.flamegraph import draw, kernel_share, parse, perf_kernel_share
from benchmarks.processes import TICKS, all_processes, is_worker, tree
from benchmarks.runners.common import BEGIN
from benchmarks.spec import Spec

RATE = 50  # samples a second


def record(pid: int, seconds: int, path: Path) -> dict[tuple[str, ...], int]:
    """Sample a process, Python and native frames; return how often each stack was seen."""
    py_spy = BENCH / "bin" / "py-spy"
    told = ["--native", "--format", "raw", "--rate", str(RATE), "--duration", str(seconds)]
    command = [str(py_spy), "record", "--pid", str(pid), *told, "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if not path.exists():
        raise SystemExit(f"py-spy: {done.stderr.strip()}")
    return parse(path.read_text())


def processor_share(pid: int, seconds: int, directory: Path) -> tuple[float, float]:
    """Return how busy a process is, in cores, and the share of that in compute kernels."""
    samples = directory / "perf.data"
    told = ["--event", "cpu-clock", "--freq", "199", "--pid", str(pid), "--output", str(samples)]
    ticks, started = all_processes()[pid].ticks, time.monotonic()
    subprocess.run(
        ["perf", "record", *told, "--", "sleep", str(seconds)], capture_output=True, check=True
    )
    busy = (all_processes()[pid].ticks - ticks) / TICKS / (time.monotonic() - started)
    script = ["perf", "script", "--input", str(samples), "--fields", "ip,sym,dso"]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    return busy, perf_kernel_share(done.stdout)


def main() -> None:
    """Run, sample, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="names the files, such as before or after")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--model", default="2nn", choices=("2nn", "small"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    prepare()
    examples = {"2nn": 600, "small": 30}[arguments.model]
    spec = Spec(model=arguments.model, examples=examples, rounds=100_000, warm_up=3)
    with tempfile.TemporaryDirectory() as directory:
        spec = dataclasses.replace(spec, path=str(data_file(spec, Path(directory))))
        command = [sys.executable, "-m", "benchmarks.runners.on_fedsim", spec.encode()]
        runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            wait_for_rounds(runner)
            workers = [p.pid for p in tree(runner.pid, all_processes()) if is_worker(p.pid)]
            for role, pid in (("driver", runner.pid), ("worker", workers[0])):
                stacks = record(pid, arguments.seconds, Path(directory) / f"{role}.raw")
                title = f"{arguments.name}: {role}, {arguments.model}, B=10, 100 clients a round"
                path = arguments.out / f"flame-{arguments.name}-{role}.svg"
                path.write_text(draw(stacks, title))
                total, kernels = sum(stacks.values()), kernel_share(stacks)
                print(f"{path}: {total} samples, {kernels:.1%} of them in compute kernels")
            if shutil.which("perf"):
                busy, kernels = processor_share(workers[0], arguments.seconds, Path(directory))
                print(
                    f"worker: busy {busy:.1%} of the time, {kernels:.1%} of that in compute "
                    f"kernels: {busy * kernels:.1%} of its time"
                )
        finally:
            stop(runner)


def wait_for_rounds(runner: subprocess.Popen[str]) -> None:
    """Return when the warm-up is over."""
    assert runner.stdout is not None
    for line in runner.stdout:
        if line.startswith(BEGIN):
            return
    raise SystemExit("the run ended before its first rounds")


def stop(runner: subprocess.Popen[str]) -> None:
    """End the run; Ray's processes follow their driver."""
    runner.terminate()
    try:
        runner.wait(10)
    except subprocess.TimeoutExpired:
        runner.kill()
    time.sleep(1)


if __name__ == "__main__":
    main()
