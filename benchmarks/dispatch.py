"""What it costs to reach 100 clients and hear from them: fedsim against Flower's own simulation.

Each runtime runs the same Flower apps in processes of its own, in turn, several times: a round
sends the 2NN's 199,210 float32 weights to 100 clients, which do no work and send arrays of that
size back, and Flower's FedAvg averages the replies. Two kinds of client:

- ``echo`` returns the arrays that it was sent, without looking at them;
- ``copy`` decodes them and encodes them again, as every real client does.

The first rounds, in which workers start and memory is touched for the first time, are shown apart.
The ratio of two medians from one run travels between machines; the seconds do not.

    python benchmarks/dispatch.py [--repeats 3] [--rounds 8] [--out benchmarks/results/NAME.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

CLIENTS, WORKERS, WARM_UP = 100, 2, 3
SHAPES = [(784, 200), (200,), (200, 200), (200,), (200, 10), (10,)]
RUNTIMES, KINDS = ("flower", "fedsim"), ("echo", "copy")


def apps(kind: str, rounds: int):
    """Return a ServerApp that times its rounds and prints them, and the ClientApp."""
    import numpy as np
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message, context):
        arrays = message.content["arrays"]
        if kind == "copy":
            arrays = ArrayRecord(arrays.to_numpy_ndarrays())
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    @server_app.main()
    def main(grid, context):
        while len(nodes := list(grid.get_node_ids())) < CLIENTS:
            time.sleep(0.1)
        rng = np.random.default_rng(0)
        weights = ArrayRecord([rng.standard_normal(s, dtype=np.float32) for s in SHAPES])
        seconds = []
        for _ in range(rounds + WARM_UP):
            started = time.perf_counter()
            content = RecordDict({"arrays": weights})
            messages = [Message(content, node, "train") for node in nodes]
            replies = list(grid.send_and_receive(messages))
            answered = time.perf_counter()
            assert sum(reply.has_content() for reply in replies) == CLIENTS
            FedAvg().aggregate_train(1, replies)
            seconds.append((answered - started, time.perf_counter() - answered))
        print("SECONDS", json.dumps(seconds), flush=True)

    return server_app, client_app


def run_one(runtime: str, kind: str, rounds: int) -> None:
    """Run the apps in this process, on one runtime."""
    server_app, client_app = apps(kind, rounds)
    if runtime == "fedsim":
        import fedsim

        fedsim.run_simulation(server_app, client_app, CLIENTS, workers=WORKERS)
    else:
        from flwr.simulation import run_simulation

        backend = {
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": WORKERS},
        }
        run_simulation(server_app, client_app, CLIENTS, backend_config=backend)


def measure(runtime: str, kind: str, rounds: int) -> list[tuple[float, float]]:
    """Run in a process of its own; return (messages, aggregation) seconds of every round."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, __file__, "--one", runtime, kind, "--rounds", str(rounds)]
    done = subprocess.run(
        command, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=600
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SECONDS ")]
    if not lines:
        raise SystemExit(f"{runtime}, {kind}: no result\n{done.stderr[-3000:]}")
    return [tuple(pair) for pair in json.loads(lines[-1].removeprefix("SECONDS "))]


def main() -> None:
    """Measure both runtimes in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("RUNTIME", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return run_one(*arguments.one, arguments.rounds)

    rows: dict[str, list[list[tuple[float, float]]]] = {}
    for repeat in range(arguments.repeats):
        for kind in KINDS:
            for runtime in RUNTIMES:
                print(f"repeat {repeat + 1}: {runtime}, {kind}", file=sys.stderr, flush=True)
                rows.setdefault(f"{runtime} {kind}", []).append(
                    measure(runtime, kind, arguments.rounds)
                )
    show(rows)
    if arguments.out:
        about = {"platform": platform.platform(), "cores": os.cpu_count(), "workers": WORKERS}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"about": about, "seconds": rows}, indent=1) + "\n")


def show(rows: dict[str, list[list[tuple[float, float]]]]) -> None:
    """Print the medians over all warm rounds, their range, and fedsim's ratio to Flower."""
    print(f"{CLIENTS} clients a round, {WORKERS} workers; median [least - most] ms of a round")
    print(f"{'client':8}{'runtime':9}{'first round':>13}{'messages':>26}{'with FedAvg':>26}")
    for kind in KINDS:
        medians = {}
        for runtime in RUNTIMES:
            runs = rows[f"{runtime} {kind}"]
            warm = [pair for run in runs for pair in run[WARM_UP:]]
            messages, whole = [m for m, _ in warm], [m + a for m, a in warm]
            medians[runtime] = statistics.median(messages), statistics.median(whole)
            first = statistics.median(run[0][0] for run in runs)
            print(f"{kind:8}{runtime:9}{1e3 * first:13.0f}{span(messages):>26}{span(whole):>26}")
        ratios = [f"{a / b:.1f}" for a, b in zip(*medians.values(), strict=True)]
        print(f"{kind:8}{'ratio':9}{'':13}{ratios[0]:>26}{ratios[1]:>26}")


def span(seconds: list[float]) -> str:
    """Return median [least - most] in milliseconds."""
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{1e3 * middle:.0f} [{1e3 * low:.0f} - {1e3 * high:.0f}]"


if __name__ == "__main__":
    main()
