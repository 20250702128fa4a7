"""One client's local training: plain and readable, the reference for every faster way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """What training did: examples seen per epoch, steps taken, and two losses.

    The losses are the mean cross-entropy of the first mini-batch before the first step and of
    the last mini-batch before the last step. They come with the gradients, at no extra pass.
    """

    examples: int
    steps: int
    loss_first_step: float
    loss_last_step: float


def train_locally(
    model: Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    clip_norm: float,
    proximal_mu: float,
    rng: np.random.Generator,
    correction: Mapping[str, Tensor] | None = None,
) -> LocalResult:
    """Train a model in place by mini-batch stochastic gradient descent on cross-entropy.

    With w the parameters, w0 their values at the start, g the mini-batch gradient::

        g <- g * min(1, clip_norm / |g|)               if clip_norm > 0
        g <- g + weight_decay w + proximal_mu (w - w0)  (Li et al. 2020, FedProx, eq. 2)
        g <- g + correction                             (Karimireddy et al. 2020, SCAFFOLD, eq. 3)
        v <- momentum v + g;  w <- w - learning_rate v  (v = 0 at the start of every round)

    Args:
        model: any module that maps ``x`` to class scores; its parameters are changed.
        x: features, (examples, *input shape), float32.
        y: labels, (examples,), int64.
        epochs: passes over the data, each in a new order; ignored where ``steps`` is given.
        steps: optimiser steps, as many passes as that takes; 0 for ``epochs`` passes.
        batch_size: examples a step; the last batch of a pass may be smaller; 0 for all.
        rng: orders the examples.
        correction: by parameter name, added to every gradient.

    Raises:
        ValueError: there are no examples.
    """
    if len(y) == 0:
        raise ValueError("this client holds no examples")
    names, parameters = zip(*model.named_parameters(), strict=True)
    start = [p.detach().clone() for p in parameters] if proximal_mu else []
    velocity = [torch.zeros_like(p) for p in parameters] if momentum else []
    taken, first_loss, loss = 0, torch.tensor(0.0), torch.tensor(0.0)
    for batch in batches(len(y), batch_size=batch_size, epochs=epochs, steps=steps, rng=rng):
        loss = cross_entropy(model(x[batch]), y[batch])
        first_loss = loss if taken == 0 else first_loss
        taken += 1
        gradients = list(torch.autograd.grad(loss, parameters))
        with torch.no_grad():
            if clip_norm:
                clip(gradients, clip_norm)
            if weight_decay:
                torch._foreach_add_(gradients, parameters, alpha=weight_decay)
            if proximal_mu:
                pull = torch._foreach_sub(parameters, start)
                torch._foreach_add_(gradients, pull, alpha=proximal_mu)
            if correction is not None:
                torch._foreach_add_(gradients, [correction[name] for name in names])
            if momentum:
                torch._foreach_mul_(velocity, momentum)
                torch._foreach_add_(velocity, gradients)
                gradients = velocity
            torch._foreach_add_(parameters, gradients, alpha=-learning_rate)
    return LocalResult(
        examples=len(y),
        steps=taken,
        loss_first_step=first_loss.item(),
        loss_last_step=loss.item(),
    )


def batches(
    examples: int, *, batch_size: int, epochs: int, steps: int, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yield the indices of each mini-batch: whole passes in random order, or so many steps."""
    size = batch_size or examples
    per_epoch = -(-examples // size)
    total = steps or epochs * per_epoch
    for step in range(total):
        position = step % per_epoch
        if position == 0:
            order = torch.from_numpy(rng.permutation(examples))
        yield order[position * size : (position + 1) * size]


def clip(gradients: list[Tensor], norm: float) -> None:
    """Scale gradients in place so that their joint Euclidean norm is at most ``norm``."""
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, torch.clamp(norm / total, max=1.0))


@torch.no_grad()
def mean_loss(model: Module, x: Tensor, y: Tensor) -> float:
    """Return the mean cross-entropy over all examples."""
    return float(cross_entropy(model(x), y))


def warm_up(model: Module, x: Tensor, y: Tensor) -> None:
    """Take a step that changes nothing, so that what a process loads once is loaded."""
    torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
