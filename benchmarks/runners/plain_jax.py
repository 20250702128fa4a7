"""Plain JAX, written for the one network: the limit of what these cores do.

A whole round's clients are one compiled program: a scan over clients, in it a scan over batches
(what FedJAX does), the sum of the models carried along; data resident. With ``workers`` = 2 each of
two bare processes, pinned to a core, takes half of the clients, and the sums are added through a
pipe. No framework, no rows, no messages, no evaluation.
"""

from __future__ import annotations

import multiprocessing
import os
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.data import load
from benchmarks.runners.common import Rounds, main
from benchmarks.spec import CLASSES, WIDTHS, Spec


def pin(core: int) -> None:
    """Keep this process, and what XLA starts in it, on one core; before JAX is imported."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
    flags = "--xla_cpu_multi_thread_eigen=false"
    os.environ.update(XLA_FLAGS=flags, JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1")


def initial(spec: Spec) -> list[np.ndarray]:
    """Return weights (inputs, outputs) and biases, layer by layer."""
    rng = np.random.default_rng(0)
    width = WIDTHS[spec.model]
    sizes = [spec.shape[0], width, width, CLASSES]
    arrays: list[np.ndarray] = []
    for inputs, outputs in pairwise(sizes):
        scale = np.float32((2 / inputs) ** 0.5)
        arrays.append(rng.standard_normal((inputs, outputs), dtype=np.float32) * scale)
        arrays.append(np.zeros(outputs, np.float32))
    return arrays


def make_trainer(spec: Spec, x: np.ndarray, y: np.ndarray) -> Any:
    """Return a function (model, clients, orders) -> the sum of the trained models, flat."""
    import jax
    import jax.numpy as jnp

    x_all, y_all = jnp.asarray(x), jnp.asarray(y.astype(np.int32))

    def loss(model: list[Any], x: Any, y: Any) -> Any:
        w1, b1, w2, b2, w3, b3 = model
        hidden = jax.nn.relu(x @ w1 + b1)
        logits = jax.nn.relu(hidden @ w2 + b2) @ w3 + b3
        scores = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1))

    def step(model: list[Any], batch: tuple[Any, Any]) -> tuple[list[Any], None]:
        gradients = jax.grad(loss)(model, *batch)
        return [w - spec.learning_rate * g for w, g in zip(model, gradients, strict=True)], None

    @jax.jit
    def train(model: list[Any], clients: Any, orders: Any) -> Any:
        def one(total: list[Any], told: tuple[Any, Any]) -> tuple[list[Any], None]:
            client, order = told
            bx = x_all[client][order].reshape(spec.steps, spec.batch_size, -1)
            by = y_all[client][order].reshape(spec.steps, spec.batch_size)
            trained, _ = jax.lax.scan(step, model, (bx, by))
            return [t + w for t, w in zip(total, trained, strict=True)], None

        total, _ = jax.lax.scan(one, [jnp.zeros_like(w) for w in model], (clients, orders))
        return total

    def sums(model: list[np.ndarray], clients: np.ndarray) -> list[np.ndarray]:
        rng = np.random.default_rng(int(clients[0]))
        orders = rng.permuted(np.tile(np.arange(spec.examples), (len(clients), 1)), axis=1)
        return [np.asarray(w) for w in train(model, clients, orders)]

    return sums


def serve(spec: Spec, core: int, pipe: Connection) -> None:
    """In a process of its own: train the clients that the pipe names until it says None."""
    pin(core)
    sums = make_trainer(spec, *load(spec))
    while (asked := pipe.recv()) is not None:
        pipe.send(sums(*asked))


def measure(spec: Spec) -> dict[str, Any]:
    """Run rounds of federated averaging, here or in bare processes."""
    if spec.workers == 1:
        pin(0)
        local = make_trainer(spec, *load(spec))
        return rounds_of(spec, lambda model, parts: [local(model, part) for part in parts])
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for core in range(spec.workers):
        mine, theirs = context.Pipe()
        process = context.Process(target=serve, args=(spec, core, theirs), daemon=True)
        process.start()
        pipes.append(mine)
        processes.append(process)

    def ask(model: list[np.ndarray], parts: list[np.ndarray]) -> list[list[np.ndarray]]:
        for pipe, part in zip(pipes, parts, strict=True):
            pipe.send((model, part))
        return [pipe.recv() for pipe in pipes]

    result = rounds_of(spec, ask)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return result


def rounds_of(spec: Spec, ask: Any) -> dict[str, Any]:
    """Average what the parts of a cohort sum up to, round after round."""
    model, rng = initial(spec), np.random.default_rng(0)
    rounds = Rounds(spec)
    rounds.start()
    for _ in range(spec.total_rounds):
        cohort = rng.permutation(spec.clients)[: spec.cohort].astype(np.int32)
        totals = ask(model, np.array_split(cohort, spec.workers))
        model = [sum(parts) / np.float32(spec.cohort) for parts in zip(*totals, strict=True)]
        assert all(np.isfinite(w).all() for w in model)
        rounds.end()
    return rounds.result()


if __name__ == "__main__":
    main(measure)
