"""What a step of DP-SGD costs beside a plain one, and beside Opacus'.

    python -m benchmarks.dpsgd                  # the 2NN at batch 64, half a minute
    python -m benchmarks.dpsgd --model small_cnn --batch 240

One process, one thread, the same model and the same batch for everybody; the ways take turns, a
few steps each, so that whatever else the machine does falls on all of them alike. A step is
everything from the batch to the new parameters, and leaves out how the batch is drawn, which costs
each of them little. Opacus draws its noise from torch's generator, as it does unless told
otherwise (``opacus, secure`` is its mode that withstands floating-point attacks, on that generator
still); fedsim's comes from the keystream of ChaCha20 under a secret key, in float64.

fedsim's way is torch alone; the ratio is to the plain step of each compiler. XLA's is that of a
client whose batches follow each other within one call, as fedsim trains without privacy.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import environment, machine
from fedsim.data.dataset import Dataset
from fedsim.models import MODELS, build_model
from fedsim.training import Recipe, StepNoise, make_trainer, plan_for, read_arrays
from fedsim.training.private import Source, noised_mean
from fedsim.training.private_fast import sum_for

RESULTS = environment.ROOT / "benchmarks" / "results" / "dpsgd.json"
FORMAT = 1
SHAPE, CLASSES = (1, 28, 28), 10
CLIPPING_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 1.0, 1.1, 0.1
WARM, XLA_STEPS = 3, 16
Way = Callable[[], None]


def main() -> None:
    """Let the ways take turns and print their medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="mlp", help="default: mlp, the 2NN")
    parser.add_argument("--batch", type=int, default=64, help="examples (default: 64)")
    parser.add_argument("--turns", type=int, default=60, help="of every way (default: 60)")
    parser.add_argument("--steps", type=int, default=3, help="a turn (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Opacus' on hooks and on its generator
    ways = all_ways(options.model, options.batch)
    seconds = measure(ways, turns=options.turns, steps=options.steps)
    rows = [
        {
            "way": name,
            "seconds_a_step": statistics.median(each),
            "quartiles": statistics.quantiles(each, n=4),
        }
        for name, each in seconds.items()
    ]
    entry = {"model": options.model, "batch": options.batch, "turns": options.turns, "rows": rows}
    about = machine.about()
    about["versions"]["opacus"] = machine.version("opacus")
    kept = stored(options.out)
    others = [e for e in kept if (e["model"], e["batch"]) != (options.model, options.batch)]
    content = {"format": FORMAT, "machine": about, "entries": [*others, entry]}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(entry))


def stored(path: Path) -> list[dict[str, Any]]:
    """Return what other models and batches came to, if they were measured."""
    if not path.is_file():
        return []
    entries: list[dict[str, Any]] = json.loads(path.read_text())["entries"]
    return entries


def measure(ways: dict[str, Way], *, turns: int, steps: int) -> dict[str, list[float]]:
    """Return the CPU seconds that each way took for a step, turn by turn."""
    for way in ways.values():
        for _ in range(WARM):
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            start = time.process_time()
            for _ in range(steps):
                way()
            each = (time.process_time() - start) / steps
            seconds[name].append(each / (XLA_STEPS if name == "plain, xla" else 1))
    return seconds


def all_ways(model_name: str, batch: int) -> dict[str, Way]:
    """Return every way to take a step of a model of its own, by its name."""
    model = build_model(model_name, input_shape=SHAPE, classes=CLASSES, seed=0)
    draw = np.random.default_rng(0)
    x = torch.from_numpy(draw.random((batch, *SHAPE), np.float32))
    y = torch.from_numpy(draw.integers(0, CLASSES, batch))
    source, coordinates = secret_noise(), sum(p.numel() for p in model.parameters())
    return {
        "plain, torch": plain(copy.deepcopy(model), x, y),
        "plain, xla": plain_xla(model, batch),
        "fedsim": private(copy.deepcopy(model), x, y, source),
        "fedsim without noise": private(copy.deepcopy(model), x, y, None),
        "noise alone": lambda: drawn(source, coordinates),
        "opacus, hooks": opacus_step(copy.deepcopy(model), x, y, "hooks"),
        "opacus, functorch": opacus_step(copy.deepcopy(model), x, y, "functorch"),
        "opacus, ghost": opacus_step(copy.deepcopy(model), x, y, "ghost"),
        "opacus, hooks, secure": opacus_step(copy.deepcopy(model), x, y, "hooks", secure=True),
    }


def secret_noise() -> StepNoise:
    """Return noise from the keystream of ChaCha20 (RFC 8439) under a key of this process."""
    cipher = Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()
    return StepNoise(lambda count: cipher.update(bytes(count)))


def drawn(source: Source, coordinates: int) -> None:
    """Draw a step's normals."""
    source.normal(coordinates)


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Way:
    """Return the step of ``train_locally``."""
    parameters = list(model.parameters())

    def step() -> None:
        gradients = list(torch.autograd.grad(cross_entropy(model(x), y), parameters))
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-LEARNING_RATE)

    return step


def plain_xla(model: nn.Module, batch: int) -> Way:
    """Return ``XLA_STEPS`` steps of the compiled trainer, in one call."""
    draw = np.random.default_rng(0)
    examples = XLA_STEPS * batch
    data = Dataset(
        name="drawn",
        x_train=draw.integers(0, 256, (examples, *SHAPE), dtype=np.uint8),
        y_train=draw.integers(0, CLASSES, examples),
        x_test=np.zeros((1, *SHAPE), np.uint8),
        y_test=np.zeros(1, np.int64),
        classes=CLASSES,
        class_names=tuple("0123456789"),
        scale=1 / 255,
    )
    recipe = Recipe(
        epochs=1,
        steps=0,
        batch_size=batch,
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=0.0,
        proximal_mu=0.0,
    )
    trainer = make_trainer(model, data, recipe, compiler="xla", plan=plan_for(model))
    arrays, held = read_arrays(model), [np.arange(examples)]
    trainer.prepare(arrays, held)

    def steps() -> None:
        result = trainer.train(
            arrays, held, learning_rate=LEARNING_RATE, rngs=[np.random.default_rng(0)]
        )
        np.asarray(next(iter(result.arrays.values())))

    return steps


def private(model: nn.Module, x: Tensor, y: Tensor, source: Source | None) -> Way:
    """Return the step of ``train_privately``; without a source, without noise."""
    parameters, summed = list(model.parameters()), sum_for(model, SHAPE)
    deviation = NOISE_MULTIPLIER * CLIPPING_NORM if source else 0.0

    def step() -> None:
        sums, _ = summed(model, x, y, CLIPPING_NORM)
        with torch.no_grad():
            gradients = noised_mean(sums, len(y), deviation=deviation, source=source)
            torch._foreach_add_(parameters, gradients, alpha=-LEARNING_RATE)

    return step


def opacus_step(model: nn.Module, x: Tensor, y: Tensor, mode: str, *, secure: bool = False) -> Way:
    """Return the step of Opacus' optimiser around torch's SGD."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    sgd = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    told = {
        "noise_multiplier": NOISE_MULTIPLIER,
        "max_grad_norm": CLIPPING_NORM,
        "expected_batch_size": len(y),
        "secure_mode": secure,
    }
    if mode == "ghost":
        wrapped = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=CLIPPING_NORM, use_ghost_clipping=True
        )
        optimizer = DPOptimizerFastGradientClipping(sgd, **told)
        criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss())
    else:
        wrapped = GradSampleModule(model, force_functorch=mode == "functorch")
        optimizer, criterion = DPOptimizer(sgd, **told), nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        criterion(wrapped(x), y).backward()
        optimizer.step()

    return step


def table(entry: dict[str, Any]) -> str:
    """Return the medians as a Markdown table, and each as a multiple of the plain steps."""
    medians = {row["way"]: row["seconds_a_step"] for row in entry["rows"]}
    torch_step, xla_step = medians["plain, torch"], medians["plain, xla"]
    lines = [
        f"| {entry['model']}, batch {entry['batch']} | ms a step | of torch's plain | of XLA's |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {1e3 * s:.2f} | {s / torch_step:.2f} | {s / xla_step:.2f} |"
        for name, s in medians.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
