"""One client's local training under example-level differential privacy: DP-SGD, plain and readable.

The guarantee is for the sequence of models: whoever sees any of them learns little of whether one
example is in the client's data. Losses are not covered, nor anything else that is read off the
examples directly (initial loss, telemetry); whoever publishes them adds to what leaks.

How the clipped gradients are added up is a function of its own (``ClippedSum``). The reference is
here; the fast form, tested equal to it, is in ``private_fast.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedsim.errors import ConfigError
from fedsim.training.local import LocalResult

# The last bits of a noised value are worth 2^-24 of the noise's deviation.
GRID_BITS = 24

Floats = npt.NDArray[np.float64]

# (model, x, y, clipping_norm) -> the sum of the clipped gradients, by parameter in the model's
# order, and the loss of each example, (examples,).
ClippedSum = Callable[[Module, Tensor, Tensor, float], tuple[list[Tensor], Tensor]]


class Source(Protocol):
    """Where noise and batches come from; a secret one, for they are what hides an example."""

    def normal(self, size: int, /) -> Floats:
        """Draw from N(0, 1), (size,)."""

    def uniform(self, size: int, /) -> Floats:
        """Draw from [0, 1), (size,)."""


class Reproducible:
    """A source that whoever knows the seed can draw again: for tests, never for a guarantee."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def normal(self, size: int, /) -> Floats:
        """Draw from N(0, 1), (size,)."""
        return self._rng.standard_normal(size)

    def uniform(self, size: int, /) -> Floats:
        """Draw from [0, 1), (size,)."""
        return self._rng.random(size)


def clipped_sum(
    model: Module, x: Tensor, y: Tensor, clipping_norm: float
) -> tuple[list[Tensor], Tensor]:
    """Add up the gradients of single examples, each scaled to a joint norm of at most C.

    ::

        sum_i g_i min(1, C / |g_i|)                       (Abadi et al. 2016, algorithm 1)

    One backward pass for each example; any module that computes an example's scores from that
    example alone. An example whose gradient is not finite counts nothing: no scaling would bound
    what it does to the sum.

    Args:
        x: features, (examples, \\*input shape); there may be none.
        y: labels, (examples,).
        clipping_norm: C, above 0.

    Returns:
        The sum, by parameter in the model's order, and each example's loss, (examples,).
    """
    parameters: list[Tensor] = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    losses = x.new_zeros(len(y))
    for i in range(len(y)):
        loss = cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        losses[i] = loss.detach()
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).item()
        if math.isfinite(norm):
            torch._foreach_add_(total, gradients, alpha=min(1.0, clipping_norm / (norm or 1.0)))
    return total, losses


def train_privately(
    model: Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    proximal_mu: float,
    clipping_norm: float,
    noise_multiplier: float,
    source: Source,
    summed: ClippedSum = clipped_sum,
) -> LocalResult:
    """Train a model in place by DP-SGD on cross-entropy (Abadi et al. 2016, algorithm 1).

    With n examples, expected batch B, q = B / n, clipping norm C, noise multiplier z, parameters w
    and their values w0 at the start, g_i the gradient of example i, every step is::

        batch: every example with probability q, independently of the others
        g <- (sum over the batch of g_i min(1, C / |g_i|)  +  z C N(0, I)) / B
        g <- g + weight_decay w + proximal_mu (w - w0)
        v <- momentum v + g;  w <- w - learning_rate v      (v = 0 at the start)

    The divisor is the expected batch, since the real one is a secret; a step whose batch is empty
    is of noise alone. What is added in the third line depends on no example but through w. Under
    "add or remove one example" a step is the Gaussian mechanism of multiplier z on a Poisson
    sample of rate q, where n, and with it q, is public.

    How noise is added is told at :func:`noised_mean`.

    Args:
        model: any module that maps ``x`` to class scores, each from its own example alone; its
            parameters are changed. See :func:`refuse_batch_norm`.
        x: features, (n, \\*input shape).
        y: labels, (n,), int64.
        steps: as many as are accounted.
        batch_size: B, at most n; 0, or more than n, for n.
        clipping_norm: C, above 0.
        noise_multiplier: z; 0 for none, and no guarantee.
        source: of batches and of noise, in this order within a step.
        summed: how clipped gradients are added up.

    Returns:
        As :func:`train_locally`; ``examples`` is n. The losses are those of the first and of the
        last batch that is not empty, NaN if there is none; the guarantee does not cover them.

    Raises:
        ValueError: there are no examples, or the clipping norm is not above 0.
    """
    if len(y) == 0:
        raise ValueError("this client holds no examples")
    if not clipping_norm > 0:
        raise ValueError(f"clipping_norm = {clipping_norm}: must be above 0")
    parameters: list[Tensor] = list(model.parameters())
    start = [p.detach().clone() for p in parameters] if proximal_mu else []
    velocity = [torch.zeros_like(p) for p in parameters] if momentum else []
    expected = expected_batch(len(y), batch_size)
    first_loss = last_loss = math.nan
    for batch in poisson_batches(len(y), expected=expected, steps=steps, source=source):
        batch = batch.to(x.device)
        sums, losses = summed(model, x[batch], y[batch], clipping_norm)
        if len(batch):
            last_loss = losses.mean().item()
            first_loss = last_loss if math.isnan(first_loss) else first_loss
        with torch.no_grad():
            deviation = noise_multiplier * clipping_norm
            gradients = noised_mean(sums, expected, deviation=deviation, source=source)
            if weight_decay:
                torch._foreach_add_(gradients, parameters, alpha=weight_decay)
            if proximal_mu:
                pull = torch._foreach_sub(parameters, start)
                torch._foreach_add_(gradients, pull, alpha=proximal_mu)
            if momentum:
                torch._foreach_mul_(velocity, momentum)
                torch._foreach_add_(velocity, gradients)
                gradients = velocity
            torch._foreach_add_(parameters, gradients, alpha=-learning_rate)
    return LocalResult(
        examples=len(y), steps=steps, loss_first_step=first_loss, loss_last_step=last_loss
    )


def expected_batch(examples: int, batch_size: int) -> int:
    """Return how many examples a batch holds on average; of ``examples``, it is the rate q."""
    return min(batch_size or examples, examples)


def poisson_batches(
    examples: int, *, expected: int, steps: int, source: Source
) -> Iterator[Tensor]:
    """Yield the indices of each step's batch, ascending: a Poisson sample.

    Each example is in with probability ``expected / examples``, independently of all others and of
    other steps, so that the size of a batch is binomial. Batches of a fixed size, or the passes of
    ordinary training, are another mechanism with another (and a larger) epsilon.
    """
    for _ in range(steps):
        drawn = source.uniform(examples) < expected / examples
        yield torch.from_numpy(np.flatnonzero(drawn))


def noised_mean(
    sums: list[Tensor], expected: int, *, deviation: float, source: Source
) -> list[Tensor]:
    """Return ``(sum + N(0, deviation^2)) / expected``, on a grid and in the sums' types.

    A normal in floating point is one of few values, so that the last bits of a sum with it may tell
    the other summand (Mironov 2012; Jin et al. 2022 on Gaussians). So the sum is made in float64
    and rounded, once and for whatever was summed alike, to multiples of 2^-24 of the deviation:
    every value has some 2^28 ways to come about, and what a rounding error of 2^-52 does to its
    probability is 2^-28 of it. That is an estimate of what is left, not a proof in floating point.

    Args:
        sums: by parameter; the noise lies along them in this order.
        deviation: z C, of every coordinate's noise; 0 for none.
    """
    if not deviation:
        return [total / expected for total in sums]
    drawn = torch.from_numpy(source.normal(sum(total.numel() for total in sums)))
    noise = drawn.to(sums[0].device).mul_(deviation / expected)
    parts = torch.split(noise, [total.numel() for total in sums])
    coarse = 1.5 * 2.0**52 * grid(deviation / expected)
    return [
        part.view_as(total)
        .add_(total, alpha=1 / expected)
        .add_(coarse)  # a double of this size is a multiple of the grid
        .sub_(coarse)
        .to(total.dtype)
        for part, total in zip(parts, sums, strict=True)
    ]


def grid(deviation: float) -> float:
    """Return the grid that noised values are rounded to: a power of two, 2^-24 of the deviation."""
    return 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)


def refuse_batch_norm(model: Module) -> None:
    """Raise a ConfigError where a layer lets the examples of a batch see each other.

    Clipping bounds what one example does to the sum only if no other example's gradient depends on
    it. Running statistics, which instance normalisation keeps too, hold examples without any noise.
    """
    problems = [
        f"the model's layer {name or 'itself'} is a {type(layer).__name__}: under "
        "privacy.level = 'example' no example's gradient may depend on another's, nor may a buffer "
        "keep statistics of them; use GroupNorm or LayerNorm"
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
        or (isinstance(layer, _InstanceNorm) and layer.track_running_stats)
    ]
    if problems:
        raise ConfigError(problems)
