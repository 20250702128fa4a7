"""Local training compiled by XLA: torch defines the network, one program trains its clients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.nn import Module

from fedsim.data.dataset import Dataset
from fedsim.training.cohort import Arrays, CohortResult, Recipe
from fedsim.training.orders import Chunk, Shape, chunks, idle_chunk, shape_of
from fedsim.training.results import Collected, stacked
from fedsim.training.traced import Traced, trace
from fedsim.training.xla import load_jax, start_xla


class CompiledTrainer:
    """Trains clients in programs that XLA compiles, one for each shape of their batches.

    The interface is :class:`fedsim.training.cohort.CohortTrainer`. Compiling takes a second or so
    the first time on a machine, and is read from the disk afterwards.
    """

    def __init__(
        self,
        model: Module,
        dataset: Dataset,
        recipe: Recipe,
        *,
        together: bool,
        lanes: int,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        """Trace the model and put the dataset on the device.

        Args:
            model: is read only; the types of its parameters are those of training.
            together: train ``lanes`` clients in step; or else one after another.
            lanes: clients a program takes.
            device: ``cpu`` or ``cuda``.
            precision: see :func:`fedsim.training.traced.trace`.

        Raises:
            Untranslatable: only torch can train this model.
            ConfigError: JAX is not installed.
        """
        self._jax = load_jax()
        start_xla(self._jax)
        self._model, self._dataset, self._recipe = model, dataset, recipe
        self._together, self._lanes, self._precision = together, lanes, precision
        self._device = self._jax.devices("gpu" if device == "cuda" else device)[0]
        self._parameters = tuple(name for name, _ in model.named_parameters())
        self._programs: dict[int, Any] = {}
        # Whose programs are loaded, without or with corrections.
        self._ready: set[tuple[Shape, bool]] = set()
        self._traces: dict[int, Traced] = {}
        convolves = self._traced(recipe.batch_size or 2).convolves
        self._stepwise = convolves and not together
        if self._stepwise:
            self._lanes = 1
        with self._scope():
            from fedsim.training.programs import Examples

            flat = dataset.x_train.reshape(len(dataset.x_train), -1)
            labels = dataset.y_train.astype(np.int32)
            self._examples = Examples(*self._jax.device_put((flat, labels)))

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """Do what happens inside on our device, with float64 allowed where it is asked for."""
        with self._jax.enable_x64(True), self._jax.default_device(self._device):
            yield

    def _traced(self, width: int) -> Traced:
        if width not in self._traces:
            shape = self._dataset.input_shape
            self._traces[width] = trace(self._model, shape, batch=width, precision=self._precision)
        return self._traces[width]

    def _program(self, width: int) -> Any:
        """Return the program for batches of this width."""
        from fedsim.training import programs

        if width not in self._programs:
            step = programs.Step(
                traced=self._traced(width),
                parameters=self._parameters,
                recipe=self._recipe,
                input_shape=self._dataset.input_shape,
                scale=self._dataset.scale,
            )
            if self._stepwise:
                made = programs.step_by_step(step)
            elif self._together:
                made = programs.together(step, lanes=self._lanes)
            else:
                made = programs.one_after_another(step, lanes=self._lanes)
            self._programs[width] = made
        return self._programs[width]

    def _run(self, chunk: Chunk, start: Any, learning_rate: float, corrections: Any) -> Any:
        """Train a chunk; returns the models and both losses, a client a lane."""
        return self._program(chunk.shape.width)(
            self._examples,
            start,
            chunk.order,
            chunk.sizes,
            chunk.taken,
            np.int32(len(chunk.places)),
            np.float64(learning_rate),
            corrections,
        )

    def prepare(
        self,
        arrays: Arrays,
        clients: Sequence[npt.NDArray[np.int64]],
        *,
        corrected: bool = False,
    ) -> None:
        """Compile and load what training these clients needs; see ``CohortTrainer``."""
        sizes = {len(held) for held in clients}
        shapes = {shape_of(size, self._recipe) for size in sizes}
        missing = {(shape, corrected) for shape in shapes} - self._ready
        if not missing:
            return
        nothing = {name: np.zeros_like(arrays[name]) for name in self._parameters}
        zeros = stacked([nothing], self._lanes) if corrected else None
        with self._scope():
            start = self._jax.device_put(dict(arrays))
            for shape, _ in sorted(missing):
                # A step that is thrown away: machine code is loaded when it first runs.
                self._jax.block_until_ready(
                    self._run(idle_chunk(shape, self._lanes), start, 0.0, zeros)
                )
        self._ready |= missing

    def train(
        self,
        arrays: Arrays,
        clients: Sequence[npt.NDArray[np.int64]],
        *,
        learning_rate: float,
        rngs: Iterable[np.random.Generator],
        corrections: Sequence[Arrays] | None = None,
    ) -> CohortResult:
        """Train each client from the same model; see ``CohortTrainer``."""
        out = Collected(arrays, clients)
        with self._scope():
            start = self._jax.device_put(dict(arrays))
            for chunk in chunks(clients, rngs, self._recipe, lanes=self._lanes):
                mine = None
                if corrections is not None:
                    mine = stacked([corrections[place] for place in chunk.places], self._lanes)
                models, *losses = self._run(chunk, start, learning_rate, mine)
                out.put(chunk.places, models, steps=chunk.taken, losses=losses)
        return out.result()
