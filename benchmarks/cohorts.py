"""Clients per second by the way in which a cohort is trained; confirms ``training/blocks.py``.

    python -m benchmarks.cohorts [--json FILE] [--compiler xla torch] [--seconds 1]

One core, one thread, drawn data; each figure is the best of several runs, since whatever else the
machine does can only slow one down. The star is what ``plan_for`` chooses.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from fedsim.data.dataset import Dataset
from fedsim.models import build_model
from fedsim.randomness import stream, streams
from fedsim.training import Recipe, digest, make_trainer, plan_for, read_arrays
from fedsim.training.blocks import CALLS, Plan


@dataclass(frozen=True, kw_only=True)
class Net:
    """A network, its clients, and how many of them a run trains."""

    model: str
    input_shape: tuple[int, ...]
    width: int
    examples: int
    batch_size: int
    clients: int


NETS = {
    "64-32-32-10": Net(
        model="mlp", input_shape=(64,), width=32, examples=30, batch_size=10, clients=128
    ),
    "784-20-20-10": Net(
        model="mlp", input_shape=(784,), width=20, examples=60, batch_size=10, clients=64
    ),
    "784-64-64-10": Net(
        model="mlp", input_shape=(784,), width=64, examples=60, batch_size=10, clients=64
    ),
    "2NN, B = 10": Net(
        model="mlp", input_shape=(784,), width=200, examples=600, batch_size=10, clients=16
    ),
    "2NN, B = 50": Net(
        model="mlp", input_shape=(784,), width=200, examples=600, batch_size=50, clients=16
    ),
    "CNN, B = 10": Net(
        model="cnn", input_shape=(1, 28, 28), width=512, examples=100, batch_size=10, clients=2
    ),
}


def dataset(net: Net) -> Dataset:
    draw = stream(0, "benchmark")
    x = draw.integers(0, 256, (net.examples * net.clients, *net.input_shape), dtype=np.uint8)
    y = draw.integers(0, 10, len(x))
    return Dataset(
        name="drawn",
        x_train=x,
        y_train=y,
        x_test=x[:1],
        y_test=y[:1],
        classes=10,
        class_names=tuple("0123456789"),
        scale=1 / 255,
    )


def ways(net: Net) -> Iterator[tuple[bool, int]]:
    """Yield (together, lanes) that are worth a measurement."""
    yield False, 1
    if net.model == "mlp":
        yield False, 8
        yield False, 32
        for lanes in (8, 16, 32, 64):
            if lanes <= net.clients:
                yield True, lanes


def measure(net: Net, compiler: str, together: bool, lanes: int, seconds: float) -> float:
    """Return clients per second, training and the digest of its results together."""
    model = build_model(net.model, input_shape=net.input_shape, classes=10, width=net.width, seed=0)
    recipe = Recipe(
        epochs=1,
        steps=0,
        batch_size=net.batch_size,
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=0.0,
        proximal_mu=0.0,
    )
    call = min(CALLS * lanes, net.clients) if together else lanes
    planned = lanes // 2 if compiler == "torch" and together else lanes  # torch takes twice as many
    plan = Plan(together=together, lanes=planned, call=call, most=lanes, blocks=1)
    trainer = make_trainer(model, dataset(net), recipe, compiler=compiler, plan=plan)
    arrays = read_arrays(model)
    clients = np.split(np.arange(net.examples * net.clients), net.clients)
    trainer.prepare(arrays, clients)
    best, until = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < until:
        begin = time.perf_counter()
        rngs = streams(0, "batches", round=1, clients=range(net.clients))
        result = trainer.train(arrays, clients, learning_rate=0.1, rngs=rngs)
        digest(arrays, result)
        best = min(best, time.perf_counter() - begin)
    return net.clients / best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--compiler", nargs="+", default=["xla", "torch"])
    parser.add_argument("--seconds", type=float, default=1.0, help="that each figure may take")
    parser.add_argument("--net", nargs="+", default=list(NETS), choices=list(NETS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures = []
    for name in given.net:
        net = NETS[name]
        chosen = plan_for(
            build_model(net.model, input_shape=net.input_shape, classes=10, width=net.width, seed=0)
        )
        for compiler in given.compiler:
            for together, lanes in ways(net):
                if compiler == "torch" and not together and lanes > 1:
                    continue  # torch has one way of taking one after another
                rate = measure(net, compiler, together, lanes, given.seconds)
                wanted = 2 * chosen.lanes if compiler == "torch" and together else chosen.lanes
                wanted = wanted if together else chosen.call
                star = "*" if (together, lanes) == (chosen.together, wanted) else " "
                way = f"{lanes} together" if together else f"one by one, {lanes} a call"
                print(f"{name:14} {compiler:6} {way:24} {rate:10,.0f} clients/s {star}", flush=True)
                figures.append(
                    {"net": name, "compiler": compiler, "together": together, "lanes": lanes}
                    | {"clients_per_second": rate, "chosen": star == "*", **asdict(net)}
                )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
