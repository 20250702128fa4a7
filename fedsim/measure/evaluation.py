"""The global model on the test part."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

# Bounds the memory of activations. Fixed, because the last digits of the loss depend on it.
BATCH_EXAMPLES = 1000


@torch.no_grad()
def evaluate(model: Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return accuracy in [0, 1] and mean cross-entropy over all examples of the test part.

    Args:
        x: features, (examples, *input shape), float32.
        y: labels, (examples,), int64.
    """
    correct, loss = 0, 0.0
    for start in range(0, len(y), BATCH_EXAMPLES):
        labels = y[start : start + BATCH_EXAMPLES]
        scores = model(x[start : start + BATCH_EXAMPLES])
        correct += int((scores.argmax(dim=1) == labels).sum())
        loss += float(cross_entropy(scores, labels, reduction="none").double().sum())
    return correct / len(y), loss / len(y)
