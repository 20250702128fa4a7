"""What privacy adds to a round: the same round plain, with user-level noise, and behind masks.

    python -m benchmarks.private_rounds                 # 2NN, 100 clients a round, all of 100
    python -m benchmarks.private_rounds --repeats 1

Clients hold 600 synthetic examples of MNIST's shape and train one epoch at batch 10. Arms take
turns on one engine; a round's seconds are those of its line in the ledger, the first rounds left
out. All clients take part in every round, so that arms do the same work. The test part has 100
examples and is evaluated every round, as by default.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import environment, machine
from benchmarks.data import data_file
from benchmarks.spec import Spec
from fedsim.choices import choose_engine
from fedsim.config import from_flat
from fedsim.ledger.read import load
from fedsim.simulation import open_engine, prepare, simulate
from fedsim.vocabulary import vocabulary

RESULTS = environment.ROOT / "benchmarks" / "results" / "private-rounds.json"
FORMAT = 1
WARM_ROUNDS = 2
CLIENTS = 100
USER = {
    "privacy.level": "user",
    "privacy.clipping_norm": 1.0,
    "privacy.noise_multiplier": 1.0,
    "privacy.delta": 1e-3,
}
SECURE = {"privacy.secure_aggregation": True}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "user": USER,
    "user, adaptive": USER | {"privacy.clipping": "adaptive"},
    "secure": SECURE,
    "user, secure": USER | SECURE,
}


def settings(path: Path, rounds: int) -> dict[str, Any]:
    """Return what the arms share, as dotted keys."""
    return {
        "experiment.name": "private-rounds",
        "experiment.rounds": rounds,
        "data.dataset": "file",
        "data.path": str(path),
        "data.label": "y",
        "data.client": "client",
        "data.partition": "natural",
        "data.clients": 0,
        "train.learning_rate": 0.01,
        "server.clients_per_round": CLIENTS,
        "engine.name": "ray",
        "engine.workers": 2,
    }


def measure(repeats: int, rounds: int) -> dict[str, Any]:
    """Return seconds a round by arm, of all repeats."""
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as directory:
        path = data_file(Spec(model="2nn", clients=CLIENTS, examples=600), Path(directory))
        base = settings(path, rounds)
        made = [prepare(from_flat(base | arm, vocabulary=vocabulary())) for arm in ARMS.values()]
        experiments = choose_engine(made, lambda _: None)
        executor = open_engine(experiments[0])
        try:
            for repeat in range(repeats):
                for arm, experiment in zip(ARMS, experiments, strict=True):
                    out = Path(directory) / f"{arm}-{repeat}"
                    where = dataclasses.replace(experiment.run, out=str(out))
                    simulate(dataclasses.replace(experiment, run=where), executor)
                    seconds[arm] += load(out).rounds["wall_seconds"].tolist()[WARM_ROUNDS:]
                    print(f"{arm}: {statistics.median(seconds[arm]):.3f} s a round", flush=True)
        finally:
            executor.close()
    return {
        arm: {
            "round_seconds": values,
            "median_seconds": statistics.median(values),
            "ratio_to_plain": statistics.median(values) / statistics.median(seconds["plain"]),
        }
        for arm, values in seconds.items()
    }


def main() -> None:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    found = measure(arguments.repeats, arguments.rounds)
    for arm, figures in found.items():
        print(f"{arm:>15}: {figures['median_seconds']:.3f} s, {figures['ratio_to_plain']:.3f} x")
    written = {"format": FORMAT, "machine": machine.about(), "arms": found}
    RESULTS.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
