"""Sums of clipped gradients for the price of one backward pass (Bu et al. 2022, "book-keeping").

A layer that computes ``s = f(a; W)`` from what it is given has, for example i, a gradient that is
made of ``a_i`` and of ``d_i``, the gradient of the loss with respect to ``s_i``. So the gradients
of single examples need not be formed: one backward pass, down to the ``s`` of every layer, gives
what their norms are made of, and what the sum is made of once it is known how to scale each.

``clipped_sum`` of ``private.py`` is the reference. A module that has parameters in other layers
than these, or uses them in other ways, is summed by that one; ``fast_problem`` finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.functional import cross_entropy, unfold

from fedsim.training.precision import floating_type
from fedsim.training.private import ClippedSum, clipped_sum

# Examples whose patches a convolution lays out at once: more leave the processor's caches.
PIECE = 16


@dataclass(frozen=True, kw_only=True)
class Book:
    """What one layer's backward pass left.

    Attributes:
        squares: (examples,), squared norms of the gradients of its parameters.
        weighted: takes factors, (examples,), and returns, by parameter in the layer's order, the
            sum of the gradients times these.
    """

    squares: Tensor
    weighted: Callable[[Tensor], list[Tensor]]


def dense(layer: nn.Linear, a: Tensor, d: Tensor) -> Book:
    """Book a dense layer, ``s = a W' + b``: g_i is ``d_i a_i'``, so |g_i| = |d_i| |a_i|."""
    if a.ndim != 2:
        raise ValueError("a dense layer that is applied along a sequence")
    bias = layer.bias is not None

    def weighted(factors: Tensor) -> list[Tensor]:
        scaled = d * factors[:, None]
        return [scaled.T @ a, *([scaled.sum(0)] if bias else [])]

    return Book(squares=_squares(d) * (_squares(a) + bias), weighted=weighted)


def convolution(layer: nn.Conv2d, a: Tensor, d: Tensor) -> Book:
    """Book a convolution: g_i is a product of ``d_i`` and the patches of ``a_i``, and is formed.

    Kernels are small, and shared by so many places that |g_i| has no short cut.
    """
    if isinstance(layer.padding, str) or layer.groups != 1:
        raise ValueError("a convolution in groups, or with padding by name")
    kernels = torch.cat(
        [
            d_some.flatten(2)
            @ unfold(
                a_some,
                layer.kernel_size,
                dilation=layer.dilation,
                padding=layer.padding,
                stride=layer.stride,
            ).mT
            for a_some, d_some in zip(torch.split(a, PIECE), torch.split(d, PIECE), strict=True)
        ]
    )
    formed = [kernels.view(-1, *layer.weight.shape)]
    if layer.bias is not None:
        formed.append(d.sum((2, 3)))
    return _formed(formed)


def prelu(layer: nn.PReLU, a: Tensor, d: Tensor) -> Book:
    """Book ``s = max(a, 0) + slope min(a, 0)``, with one slope, or one a channel."""
    by_place = (d * a.clamp(max=0)).flatten(2) if a.ndim > 2 else (d * a.clamp(max=0))[..., None]
    slopes = by_place.sum(2)
    return _formed([slopes if layer.num_parameters > 1 else slopes.sum(1, keepdim=True)])


def _formed(gradients: list[Tensor]) -> Book:
    """Book a layer by its single examples' gradients, (examples, \\*shape) each."""
    return Book(
        squares=torch.stack([_squares(g.flatten(1)) for g in gradients]).sum(0),
        weighted=lambda factors: [torch.tensordot(factors, g, dims=1) for g in gradients],
    )


def _squares(rows: Tensor) -> Tensor:
    squares: Tensor = torch.linalg.vector_norm(rows, dim=1).square()
    return squares


# By the class of the layer itself: a class that is derived from it may compute something else.
LAYERS: dict[type[Module], Callable[..., Book]] = {
    nn.Linear: dense,
    nn.Conv2d: convolution,
    nn.PReLU: prelu,
}


def fast_clipped_sum(
    model: Module, x: Tensor, y: Tensor, clipping_norm: float
) -> tuple[list[Tensor], Tensor]:
    """Return what :func:`fedsim.training.private.clipped_sum` does, at once for all examples.

    Raises:
        ValueError: a layer, or the way in which it is used, has no short form.
    """
    parameters: list[Tensor] = list(model.parameters())
    if not len(y):
        return [torch.zeros_like(p) for p in parameters], x.new_zeros(0)
    with _watched(model) as seen:
        losses = cross_entropy(model(x), y, reduction="none")
    slopes = torch.autograd.grad(losses.sum(), [s for _, _, s in seen])
    with torch.no_grad():
        books = [
            LAYERS[type(layer)](layer, a, d) for (layer, a, _), d in zip(seen, slopes, strict=True)
        ]
        norms = torch.stack([book.squares for book in books]).sum(0).sqrt()
    kept = norms.isfinite()
    if not kept.all():
        sums, _ = fast_clipped_sum(model, x[kept], y[kept], clipping_norm)
        return sums, losses.detach()
    factors = torch.clamp(clipping_norm / norms, max=1.0)
    with torch.no_grad():
        found = {
            id(parameter): total
            for (layer, _, _), book in zip(seen, books, strict=True)
            for parameter, total in zip(layer.parameters(), book.weighted(factors), strict=True)
        }
    if set(found) != set(map(id, parameters)):
        raise ValueError("a parameter that belongs to no layer with a short form")
    return [found[id(parameter)] for parameter in parameters], losses.detach()


Seen = tuple[Module, Tensor, Tensor]  # a layer, what it was given, and what it made of it


@contextmanager
def _watched(model: Module) -> Iterator[list[Seen]]:
    """Note what every layer with parameters of its own is given and gives while this lasts."""
    seen: list[Seen] = []

    def note(layer: Module, given: tuple[Tensor], result: Tensor) -> None:
        if any(layer is other for other, _, _ in seen):
            raise ValueError("a layer that is used twice")
        seen.append((layer, given[0].detach(), result))

    own = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    if strange := [layer for layer in own if type(layer) not in LAYERS]:
        raise ValueError(f"a layer of the class {type(strange[0]).__name__}")
    handles = [layer.register_forward_hook(note) for layer in own]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def fast_problem(model: Module, input_shape: Sequence[int]) -> str | None:
    """Say why a model's clipped gradients have to be summed one by one; None if they need not.

    Both ways are tried on three examples, so that whatever a module does that the short forms do
    not know of shows. Leaves the model and torch's generator as they were.
    """
    dtype, place = floating_type(model), next(model.parameters()).device
    draw = torch.Generator().manual_seed(0)
    x = torch.randn((3, *input_shape), generator=draw).to(place, dtype)
    y = torch.zeros(3, dtype=torch.int64, device=place)
    try:
        slow, _ = clipped_sum(model, x, y, 1.0)
        fast, _ = fast_clipped_sum(model, x, y, 1.0)
    except Exception as error:  # whatever a module does that nobody thought of
        return str(error).strip().partition("\n")[0] or type(error).__name__
    apart = max(float((a - b).abs().max()) for a, b in zip(slow, fast, strict=True))
    return f"the sums differ by {apart:.1g}" if not apart < 1e-4 else None


def sum_for(model: Module, input_shape: Sequence[int]) -> ClippedSum:
    """Return the fastest way to sum a model's clipped gradients."""
    return clipped_sum if fast_problem(model, input_shape) else fast_clipped_sum
