"""The global model on the test part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


@torch.no_grad()
def evaluate(model: Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return accuracy in [0, 1] and mean cross-entropy over all examples of the test part.

    Args:
        x: features, (examples, *input shape), float32.
        y: labels, (examples,), int64.
    """
    correct, loss = 0, 0.0
    with FastLinear():
        for start in range(0, len(y), BATCH_EXAMPLES):
            labels = y[start : start + BATCH_EXAMPLES]
            scores = model(x[start : start + BATCH_EXAMPLES])
            correct += int((scores.argmax(dim=1) == labels).sum())
            loss += float(cross_entropy(scores, labels, reduction="none").double().sum())
    return correct / len(y), loss / len(y)


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
