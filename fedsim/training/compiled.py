"""Local training compiled by XLA: torch defines the network, one program trains its clients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.nn import Module

from fedsim.data.dataset import Dataset
from fedsim.training.cohort import Arrays, CohortResult, Recipe
from fedsim.training.digest import Digest, Weigh, plain_sum, sizes_of_trained
from fedsim.training.orders import Chunk, Shape, chunks, idle_chunk, shapes_of
from fedsim.training.results import Collected, Deferred, stacked
from fedsim.training.traced import Traced, trace
from fedsim.training.xla import load_jax, start_xla

Ints = npt.NDArray[np.int64]
Trained = Sequence[tuple[Ints, Any]]  # places of clients in a call, and the models they came to


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
        call: int = 0,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        """Trace the model and put the dataset on the device.

        Args:
            model: is read only; the types of its parameters are those of training.
            together: train clients in step; or else one after another.
            lanes: clients that are trained at once, if in step, or that are digested at once.
            call: clients that a call of the program takes, a multiple of ``lanes``; 0 for as
                many. A client that is asked alone has a program of its own.
            device: ``cpu`` or ``cuda``.
            precision: see :func:`fedsim.training.traced.trace`.

        Raises:
            Untranslatable: only torch can train this model.
            ConfigError: JAX is not installed.
            ValueError: ``call`` is no multiple of ``lanes``.
        """
        if call % lanes:
            raise ValueError(f"{call} clients a call are not a multiple of {lanes} lanes")
        self._jax = load_jax()
        start_xla(self._jax)
        self._model, self._dataset, self._recipe = model, dataset, recipe
        self._together, self._precision = together, precision
        self._lanes, self._call = lanes, call or lanes
        self._device = self._jax.devices("gpu" if device == "cuda" else device)[0]
        self._parameters = tuple(name for name, _ in model.named_parameters())
        self._programs: dict[tuple[int, int], Any] = {}
        # What is loaded: the shape, the clients a call, and whether there are corrections.
        self._ready: set[tuple[Shape, int, bool]] = set()
        self._traces: dict[int, Traced] = {}
        first = self._traced(recipe.batch_size or 2)
        self._held, convolves = first.held, first.convolves
        self._stepwise = convolves and not together
        if self._stepwise:
            self._lanes = self._call = 1
        parameters = dict(model.named_parameters()).values()
        self._exact = all(parameter.dtype.itemsize <= 4 for parameter in parameters)
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
            traced = trace(self._model, shape, batch=width, precision=self._precision)
            # Models of all widths lie alike.
            held = next((other.held for other in self._traces.values()), traced.held)
            self._traces[width] = replace(traced, held=held)
        return self._traces[width]

    @cached_property
    def _sizing(self) -> Any:
        from fedsim.training.digesting import sizing

        return sizing(self._lanes)

    @cached_property
    def _adding(self) -> Any:
        from fedsim.training.digesting import adding

        return adding(self._lanes)

    def _program(self, width: int, call: int) -> Any:
        """Return the program for batches of this width and so many clients a call."""
        from fedsim.training import programs

        if (width, call) not in self._programs:
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
                made = programs.together(step, lanes=self._lanes, call=call)
            else:
                made = programs.one_after_another(step, call=call)
            self._programs[width, call] = made
        return self._programs[width, call]

    def _call_of(self, clients: Sequence[Ints]) -> int:
        """Return how many clients a call takes; a single one needs no room for others."""
        return 1 if len(clients) == 1 and not self._together else self._call

    def _begin(self, arrays: Arrays) -> Any:
        """Return a model as training holds it, on the device if it is needed often."""
        from fedsim.training.programs import hold

        turned = hold(arrays, self._held)
        begin = {name: np.array(array, order="C") for name, array in turned.items()}
        often = self._stepwise or self._device.platform != "cpu"
        return self._jax.device_put(begin) if often else begin

    def _run(self, chunk: Chunk, begin: Any, learning_rate: float, corrections: Any) -> Any:
        """Train a chunk; returns the models, as held, and both losses, a client a lane."""
        return self._program(chunk.shape.width, len(chunk.taken))(
            self._examples,
            begin,
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
        shapes = set(shapes_of([len(held) for held in clients], self._recipe))
        call = self._call_of(clients)
        missing = {(shape, call, corrected) for shape in shapes} - self._ready
        if not missing:
            return
        nothing = {name: np.zeros_like(arrays[name]) for name in self._parameters}
        zeros = stacked([nothing], call) if corrected else None
        with self._scope():
            begin = self._begin(arrays)
            for shape, *_ in sorted(missing):
                # A step that is thrown away: machine code is loaded when it first runs.
                chunk = idle_chunk(shape, call)
                models, *_ = self._jax.block_until_ready(self._run(chunk, begin, 0.0, zeros))
                if call == self._call and self._exact:
                    trained = [(chunk.places, models)]
                    self._digest(arrays, begin, trained, lambda norms: np.ones(1, np.int64))
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
        trained: list[tuple[Ints, Any]] = []
        call = self._call_of(clients)
        with self._scope():
            begin = self._begin(arrays)
            for chunk in chunks(clients, rngs, self._recipe, lanes=call):
                mine = None
                if corrections is not None:
                    mine = stacked([corrections[place] for place in chunk.places], call)
                models, *losses = self._run(chunk, begin, learning_rate, mine)
                out.put_figures(chunk.places, steps=chunk.taken, losses=losses)
                trained.append((chunk.places, models))
        return out.result(
            Deferred(tuple(arrays), lambda: self._fetched(out, trained)),
            digest_there=partial(self._digest, arrays, begin, trained)
            if self._digests(trained, call)
            else None,
        )

    def _digests(self, trained: Trained, call: int) -> bool:
        """Say whether models are digested here.

        Not where a product with a weight is not exact, so that whoever adds might round otherwise;
        nor where calls would add up clients in another order than theirs; nor for a single client.
        """
        places = np.concatenate([places for places, _ in trained])
        return self._exact and call == self._call and bool((np.diff(places) > 0).all())

    def _fetched(self, out: Collected, trained: Trained) -> Arrays:
        """Return the models as torch has them, in the order of the clients."""
        from fedsim.training.programs import release_lanes

        for places, models in trained:
            stacks = {name: np.asarray(stack) for name, stack in models.items()}
            out.put_models(places, release_lanes(stacks, self._held))
        return out.arrays()

    def _digest(self, arrays: Arrays, begin: Any, trained: Trained, weigh: Weigh) -> Digest:
        """Digest the models where they are; see :func:`fedsim.training.digest.digest`."""
        from fedsim.training.programs import release

        start = {name: begin[name] for name in self._parameters}
        with self._scope():
            found = []
            for places, models in trained:
                figures = self._sizing(models, start, np.int32(len(places)))
                found.append([np.asarray(values)[: len(places)] for values in figures])
            squares, zeros, finite = map(np.concatenate, zip(*found, strict=True))
            sizes = sizes_of_trained(
                arrays,
                sorted(self._parameters),  # JAX takes trees in this order
                squares=squares,
                zeros=zeros.astype(np.int64),
                finite=finite,
            )
            weights = weigh(sizes.update_norm)
            total = {name: np.zeros(array.shape) for name, array in start.items()}
            for places, models in trained:
                count, factors = len(places), np.zeros(self._call)
                included = np.zeros(self._call, np.bool_)
                factors[:count], included[:count] = weights[places], sizes.finite[places]
                total = self._adding(total, models, factors, included, np.int32(count))
        sums = release({name: np.asarray(array) for name, array in total.items()}, self._held)
        for name in (name for name in arrays if name not in sums):
            same = np.broadcast_to(arrays[name], (len(weights), *arrays[name].shape))
            sums[name] = plain_sum(same, weights, sizes.finite)
        return Digest(sum={name: sums[name] for name in arrays}, weights=weights, **vars(sizes))
