"""Local training of many clients in one call with torch alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn import Module
from torch.nn.functional import cross_entropy

from fedsim.data.dataset import Dataset
from fedsim.training.cohort import Arrays, CohortResult, Recipe
from fedsim.training.local import LocalResult, train_locally, warm_up
from fedsim.training.orders import Chunk, chunks
from fedsim.training.parameters import load_arrays, read_arrays
from fedsim.training.precision import PRECISIONS, Lowered, class_scores, floating_type
from fedsim.training.results import Collected, stacked
from fedsim.training.traced import MIXED, examples_apart

Tensors = dict[str, Tensor]


class TorchTrainer:
    """Trains clients one after another by ``train_locally``: any module, any device.

    The interface is :class:`fedsim.training.cohort.CohortTrainer`.
    """

    def __init__(
        self,
        model: Module,
        dataset: Dataset,
        recipe: Recipe,
        *,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        """Keep a copy of the model on the device.

        Args:
            model: any that maps (batch, \\*input shape) to class scores; is left as it is.
            device: ``cpu`` or ``cuda``.
            precision: a key of ``PRECISIONS``, for forward and backward.
        """
        self._model = copy.deepcopy(model).to(device)
        lower = PRECISIONS[precision]
        self._trained = self._model if lower is None else Lowered(self._model, lower)
        self._dataset, self._recipe, self._device = dataset, recipe, device
        self._dtype = floating_type(model)
        self._ready = False

    def prepare(
        self,
        arrays: Arrays,
        clients: Sequence[npt.NDArray[np.int64]],
        *,
        corrected: bool = False,
    ) -> None:
        """Take a step that changes nothing, so that what a process loads once is loaded."""
        if not self._ready:
            load_arrays(self._model, arrays)
            size = self._recipe.batch_size or len(clients[0])
            self._warm_up(*self._examples(clients[0][:size]))
            self._ready = True

    def _warm_up(self, x: Tensor, y: Tensor) -> None:
        """Take a step on a batch, and leave the model as it is."""
        warm_up(self._trained, x, y)

    def _examples(self, held: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        x, y = map(torch.from_numpy, self._dataset.train(held))
        return x.to(self._device, self._dtype), y.to(self._device)

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
        for place, (held, rng) in enumerate(zip(clients, rngs, strict=True)):
            load_arrays(self._model, arrays)
            correction = None if corrections is None else tensors(corrections[place], self._device)
            done = self._train_one(held, learning_rate, rng, correction)
            out.put(
                np.array([place]),
                {name: array[None] for name, array in read_arrays(self._model).items()},
                steps=[done.steps],
                losses=([done.loss_first_step], [done.loss_last_step]),
            )
        return out.result()

    def _train_one(
        self,
        held: npt.NDArray[np.int64],
        learning_rate: float,
        rng: np.random.Generator,
        correction: Tensors | None,
    ) -> LocalResult:
        """Train the model in place on a client's examples."""
        return train_locally(
            self._trained,
            *self._examples(held),
            **vars(self._recipe),
            learning_rate=learning_rate,
            rng=rng,
            correction=correction,
        )


class VectorisedTrainer:
    """Trains clients in step by ``torch.func.vmap``: ten times as fast, for small networks.

    The interface is :class:`fedsim.training.cohort.CohortTrainer`. The module must not change its
    buffers, nor draw random numbers, nor decide anything by values, nor let the examples of a
    batch see each other.

    A client's last bits may depend on its lane where matrices are no whole number of cache lines
    (64 bytes) long: the math library on processors chooses by alignment how it adds. XLA does not.
    """

    def __init__(
        self,
        model: Module,
        dataset: Dataset,
        recipe: Recipe,
        *,
        lanes: int,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        """Put the dataset on the device; other arguments as for :class:`TorchTrainer`.

        Args:
            lanes: clients that train in step; where there are fewer, the rest runs idle.
        """
        self._model = copy.deepcopy(model).to(device)
        self._names = [name for name, _ in self._model.named_parameters()]
        self._recipe, self._lanes, self._device = recipe, lanes, device
        self._lower, self._dtype = PRECISIONS[precision], floating_type(model)
        self._x, self._y = tensors_of(dataset, device)
        self._scale = dataset.scale
        self._ready = False
        self._gradients = vmap(grad_and_value(self._mean_loss), in_dims=(0, None, 0, 0, 0))

    def _mean_loss(
        self, w: Tensors, buffers: Tensors, x: Tensor, y: Tensor, counted: Tensor
    ) -> Tensor:
        """Return the mean loss of the examples of a batch that count."""
        scores = class_scores(self._model, {**w, **buffers}, x, self._lower)
        losses = cross_entropy(scores, y, reduction="none")
        return torch.where(counted, losses, 0).sum() / counted.sum()

    def prepare(
        self,
        arrays: Arrays,
        clients: Sequence[npt.NDArray[np.int64]],
        *,
        corrected: bool = False,
    ) -> None:
        """Train one client in vain, so that what a process loads once is loaded."""
        if not self._ready:
            rng = np.random.Generator(np.random.Philox(key=0))
            self.train(arrays, clients[:1], learning_rate=0.0, rngs=[rng])
            self._ready = True

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
        start = tensors(arrays, self._device)
        for chunk in chunks(clients, rngs, self._recipe, lanes=self._lanes):
            correction = None
            if corrections is not None:
                mine = stacked([corrections[place] for place in chunk.places], self._lanes)
                correction = tensors(mine, self._device)
            models, losses = self._train_chunk(chunk, start, learning_rate, correction)
            out.put(
                chunk.places,
                {name: stack.cpu().numpy() for name, stack in models.items()},
                steps=chunk.taken,
                losses=losses,
            )
        return out.result()

    def _train_chunk(
        self, chunk: Chunk, start: Tensors, learning_rate: float, correction: Tensors | None
    ) -> tuple[Tensors, list[Tensor]]:
        """Return the models and both losses of a chunk, a client a lane."""
        w = {n: start[n].expand(self._lanes, *start[n].shape).clone() for n in self._names}
        buffers = {n: tensor for n, tensor in start.items() if n not in w}
        begin = dict(start)
        velocity = {n: torch.zeros_like(p) for n, p in w.items()}
        steps = chunk.taken
        first = last = torch.zeros(self._lanes, dtype=self._dtype, device=self._device)
        for t in range(steps.max()):
            x, y, counted = self._batch(chunk, t)
            g, loss = self._gradients(w, buffers, x, y, counted)
            step = self._step(g, w, begin, velocity, correction)
            active = torch.from_numpy(t < steps).to(self._device)
            for name, change in step.items():
                idle = active.view(-1, *[1] * (change.ndim - 1))
                torch.where(idle, w[name].add(change, alpha=-learning_rate), w[name], out=w[name])
            first = loss if t == 0 else first
            last = torch.where(active, loss, last)
        return w, [first.cpu(), last.cpu()]

    def _batch(self, chunk: Chunk, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, labels, and which of them count: (lanes, width, ...) each."""
        width = chunk.shape.width
        indices = torch.from_numpy(chunk.order[t].astype(np.int64)).to(self._device)
        # Stored values times the scale in float32, as the dataset gives its features.
        x = (self._x[indices].float() * self._scale).to(self._dtype)
        counted = np.arange(width) < chunk.sizes[t, :, None]
        return x, self._y[indices], torch.from_numpy(counted).to(self._device)

    def _step(
        self, g: Tensors, w: Tensors, begin: Tensors, v: Tensors, correction: Tensors | None
    ) -> Tensors:
        """Return what a step subtracts, before the learning rate; ``v`` is changed in place.

        The equations of :func:`fedsim.training.local.train_locally`, for every lane.
        """
        recipe = self._recipe
        if recipe.clip_norm:
            squares = [part.flatten(1).square().sum(1) for part in g.values()]
            norms = torch.stack(squares).sum(0).sqrt()
            factor = torch.clamp(recipe.clip_norm / norms, max=1.0)
            g = {n: p * factor.view(-1, *[1] * (p.ndim - 1)).to(p.dtype) for n, p in g.items()}
        if recipe.weight_decay:
            g = {n: p + recipe.weight_decay * w[n] for n, p in g.items()}
        if recipe.proximal_mu:
            g = {n: p + recipe.proximal_mu * (w[n] - begin[n]) for n, p in g.items()}
        if correction is not None:
            g = {n: p + correction[n] for n, p in g.items()}
        if recipe.momentum:
            g = {n: v[n].mul_(recipe.momentum).add_(p) for n, p in g.items()}
        return g


def vmap_problem(model: Module, input_shape: Sequence[int]) -> str | None:
    """Say why clients with this model cannot be trained in step; None where they can."""
    w = {n: p.detach()[None] for n, p in model.named_parameters()}
    buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
    x = next(iter(w.values())).new_zeros((1, 2, *input_shape), dtype=floating_type(model))

    def score(w: Tensors, x: Tensor) -> Tensor:
        return class_scores(model, {**w, **buffers}, x, None).sum()

    try:
        vmap(grad_and_value(score))(w, x)
        return None if examples_apart(model, input_shape) else MIXED
    except Exception as error:  # whatever a module does that vmap cannot follow
        return str(error).strip().partition("\n")[0] or type(error).__name__


def tensors(arrays: Arrays, device: str) -> Tensors:
    """Copy arrays to a device."""
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}


def tensors_of(dataset: Dataset, device: str) -> tuple[Tensor, Tensor]:
    """Return the training examples as they are stored, and their labels, on a device."""
    return (
        torch.from_numpy(dataset.x_train).to(device),
        torch.from_numpy(dataset.y_train).to(device),
    )
