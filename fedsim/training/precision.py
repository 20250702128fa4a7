"""Forward and backward in another floating type than the parameters'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module, Parameter

# What a module computes in; None for the type of its parameters.
PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


def class_scores(
    model: Module, tensors: Mapping[str, Tensor], x: Tensor, lower: torch.dtype | None
) -> Tensor:
    """Return a module's class scores in the type of its features, computed in another.

    Args:
        tensors: parameters and buffers by name; gradients reach them in their own type.
        x: features, (batch, \\*input shape).
        lower: the type of forward and backward; None for that of the parameters.
    """
    if lower is None:
        return functional_call(model, dict(tensors), (x,))  # type: ignore[no-any-return]
    cast = {n: t.to(lower) if t.is_floating_point() else t for n, t in tensors.items()}
    return functional_call(model, cast, (x.to(lower),)).to(x.dtype)  # type: ignore[no-any-return]


def floating_type(model: Module) -> torch.dtype:
    """Return the type of a module's first floating parameter or buffer; float32 if none."""
    floating = (t.dtype for t in model.state_dict().values() if t.is_floating_point())
    return next(floating, torch.float32)


class Lowered(Module):
    """A module that computes in a lower type and keeps its parameters as they are."""

    def __init__(self, inner: Module, lower: torch.dtype) -> None:
        super().__init__()
        # In a tuple it is no submodule: its parameters keep their names.
        self._inner, self._lower = (inner,), lower

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Parameter]]:
        """Return the parameters of the module inside."""
        return self._inner[0].named_parameters(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores in the type of the features."""
        (model,) = self._inner
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        return class_scores(model, tensors, x, self._lower)
