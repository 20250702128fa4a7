"""The global model on the test part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy, linear
from torch.overrides import TorchFunctionMode

# Bounds the memory of activations. Fixed, because the last digits of the loss depend on it.
BATCH_EXAMPLES = 1000

# Multiplications from which oneDNN's start is worth it.
LARGE_PRODUCT = 1_000_000


def evaluate(model: Module, x: Tensor, y: Tensor, *, threads: int = 1) -> tuple[float, float]:
    """Return accuracy in [0, 1] and mean cross-entropy over all examples of the test part.

    Args:
        x: features, (examples, *input shape), float32.
        y: labels, (examples,), int64.
        threads: that take batches; the figures are the same to the bit for any number.
    """
    parts = (torch.split(whole, BATCH_EXAMPLES) for whole in (x, y))
    batches = list(zip(*parts, strict=True))
    if threads == 1 or len(batches) == 1:
        counted = [look_at(model, *batch) for batch in batches]
    else:
        with ThreadPoolExecutor(min(threads, len(batches))) as pool:
            counted = list(pool.map(lambda batch: look_at(model, *batch), batches))
    correct, loss = (sum(column) for column in zip(*counted, strict=True))
    return correct / len(y), loss / len(y)


@torch.no_grad()
def look_at(model: Module, x: Tensor, y: Tensor) -> tuple[int, float]:
    """Return how many examples of a batch are right, and the sum of their losses."""
    with FastLinear():
        scores = model(x)
        losses = cross_entropy(scores, y, reduction="none")
        return int((scores.argmax(dim=1) == y).sum()), float(losses.double().sum())


class FastLinear(TorchFunctionMode):
    """Lets oneDNN compute the large dense layers inside the block, which keeps no gradients.

    torch has MKL compute them, which on AMD's processors leaves AVX-512 unused: oneDNN takes half
    the time there. Training stays with MKL: at its small batches the choice would depend on the
    shape, and it would change a run's bits.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute ``linear`` elsewhere, and everything else as torch does."""
        if function is linear and not kwargs and is_large(*args[:2]):
            return torch.ops.mkldnn._linear_pointwise(*args, "none", [], "")
        return function(*args, **(kwargs or {}))


def is_large(x: Tensor, weight: Tensor) -> bool:
    """Say whether oneDNN computes this product, and is worth starting."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= LARGE_PRODUCT
    )
