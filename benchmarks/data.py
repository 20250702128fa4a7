"""Synthetic data, the same arrays for every system: a NumPy archive with the ids of the clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.spec import CLASSES, Spec

TEST_EXAMPLES = 100


def data_file(spec: Spec, directory: Path) -> Path:
    """Return the archive for a spec, writing it if it is not there.

    ``x`` (n, *shape), ``y`` (n,) and ``client`` (n,): client i holds ``examples`` rows one after
    another. Features are float32 in [0, 1), of the model ``tiny`` uint8.
    """
    path = directory / f"{spec.model}-{spec.clients}x{spec.examples}.npz"
    if not path.exists():
        rng = np.random.default_rng(0)
        n = spec.clients * spec.examples
        x, y = draw(rng, n, spec)
        x_test, y_test = draw(rng, TEST_EXAMPLES, spec)
        client = np.repeat(np.arange(spec.clients), spec.examples)
        np.savez(path, x=x, y=y, client=client, x_test=x_test, y_test=y_test)
    return path


def draw(rng: np.random.Generator, n: int, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Draw examples, and labels that have nothing to do with them."""
    shape = (n, *spec.shape)
    if spec.model == "tiny":
        x = rng.integers(0, 256, shape, dtype=np.uint8)
    else:
        x = rng.random(shape, dtype=np.float32)
    return x, np.arange(n) % CLASSES


def load(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Return (clients, examples, *shape) float32 and (clients, examples) int64."""
    with np.load(spec.path) as archive:
        x, y = archive["x"], archive["y"]
    scale = np.float32(1 / 255) if x.dtype == np.uint8 else np.float32(1)
    x = np.asarray(x, np.float32) * scale if x.dtype == np.uint8 else x
    return x.reshape(spec.clients, spec.examples, *spec.shape), y.reshape(spec.clients, -1)
