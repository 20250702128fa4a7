"""Labels from the gradient of the last layer.

With logits z_i = W h_i + b, the mean cross-entropy of a batch of B has the gradient

    dL/db_c = p_c - n_c / B,     p_c = the mean probability of class c,  n_c = its examples

so that a negative entry betrays a label that is in the batch, whatever the activation: iDLG's rule
(Zhao et al., 2020, section 3.1), which reads the same sign off dL/dW_c = (p_c - 1) h where h is not
negative, and here off the bias, whose input is always 1. With one example, p_c < 1 leaves exactly
one negative entry. In a batch, n_c = B (p_c - dL/db_c) up to what is not known of p_c: LLG
(Wainakh et al., 2021) takes labels one after another by what is left of it, as Yin et al. (2021)
rank classes for batches without repeated labels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

OUTPUT_BIAS = "output.bias"


def label_counts(bias_gradient: Floats, probabilities: Floats, batch: int) -> Ints:
    """Return how many examples of each class there were, (classes,), summing to ``batch``.

    Every class with a negative gradient gets one, the most negative first; then, until the batch
    is full, the class of which B (p_c - dL/db_c) exceeds most what it has.

    Args:
        bias_gradient: of the last layer, (classes,).
        probabilities: the attacker's guess of the mean prediction, (classes,), summing to 1.
        batch: examples, at least 1.
    """
    counts = np.zeros(len(bias_gradient), np.int64)
    present = np.argsort(bias_gradient, kind="stable")[:batch]
    counts[present[bias_gradient[present] < 0]] = 1
    expected = batch * (probabilities - bias_gradient)
    while counts.sum() < batch:
        counts[np.argmax(expected - counts)] += 1
    return counts


@torch.no_grad()
def mean_prediction(model: nn.Module, auxiliary: Tensor) -> Floats:
    """Return the mean probability of each class over the attacker's own examples, (classes,)."""
    return torch.softmax(model(auxiliary).double(), dim=1).mean(dim=0).numpy()


def share_recovered(counts: Ints, labels: Ints) -> float:
    """Return the share of a batch's labels that the counts name, in [0, 1].

    Args:
        counts: found, (classes,).
        labels: the true ones, (batch,).
    """
    true = np.bincount(labels, minlength=len(counts))
    return float(np.minimum(true, counts).sum() / len(labels))
