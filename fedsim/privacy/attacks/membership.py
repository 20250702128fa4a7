"""Membership inference: who was trained on, told from a model's confidence.

Shadow models each train on half of a pool of examples (Carlini et al., 2022, section 4), in pairs
that share it out: one trains on what the other does not. Each is the target in turn, and all models
but its pair are the attacker's, so that every example is in for exactly half of those, whether the
target trained on it or not: counts tell nothing. Two attacks score an example (x, y) with the
target's probability p of y:

    loss threshold   log p                                           (Yeom et al., 2018)
    LiRA             log N(phi; m_in, v_in) - log N(phi; m_out, v_out),  phi = log(p / (1 - p))

with means over the attacker's models that did and did not train on that example. So few models do
not give each example's variance: v_in and v_out are over all examples, as Carlini et al. (figure
10) find best below 64 models. Scores of all targets make one curve.

It does not capture federated learning's many rounds: a model is trained by itself on its half, long
enough to overfit, since otherwise there is nothing to see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from fedsim.errors import PrivacyError
from fedsim.privacy.attacks.roc import Bools, Floats, auc, tpr_at_fpr
from fedsim.randomness import stream

# (model, x, y, stream of the model) -> None, with the model trained in place.
Train = Callable[[nn.Module, Tensor, Tensor, np.random.Generator], None]

FALSE_POSITIVES = 0.01


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How well an attack tells members from others."""

    auc: float
    tpr_at_1_percent_fpr: float


def halves(models: int, examples: int, rng: np.random.Generator) -> Bools:
    """Return who trains on what, (models, examples): a half each, and models 2k and 2k + 1 share.

    Raises:
        PrivacyError: there are fewer than 6 models, or an odd number of them.
    """
    if models < 6 or models % 2:
        raise PrivacyError(
            f"{models} shadow models: they come in pairs, and besides the target's own it takes "
            "two for a variance; take an even number, at least 6"
        )
    half = np.arange(examples) < examples // 2
    included = np.empty((models, examples), np.bool_)
    for pair in range(models // 2):
        included[2 * pair] = rng.permuted(half)
        included[2 * pair + 1] = ~included[2 * pair]
    return included


def overfit(epochs: int, batch_size: int, learning_rate: float, momentum: float = 0.9) -> Train:
    """Return plain stochastic gradient descent, for so many passes in a new order each."""

    def train(model: nn.Module, x: Tensor, y: Tensor, rng: np.random.Generator) -> None:
        optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
        for _ in range(epochs):
            order = torch.from_numpy(rng.permutation(len(y)))
            for batch in torch.split(order, batch_size):
                optimiser.zero_grad()
                cross_entropy(model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()

    return train


def shadow_confidences(
    build: Callable[[int], nn.Module],
    train: Train,
    x: Tensor,
    y: Tensor,
    included: Bools,
    seed: int,
) -> tuple[Floats, Floats]:
    """Train the shadow models, and return their log p and phi of every example, each (models, n).

    Args:
        build: a new model from a number of its own.
        train: trains it in place.
        x, y: the pool, (n, \\*shape) and (n,).
        included: who trains on what, (models, n).
        seed: of the orders.
    """
    likelihoods, confidences = [], []
    for number, chosen in enumerate(included):
        model = build(number)
        mine = torch.from_numpy(np.flatnonzero(chosen))
        train(model, x[mine], y[mine], stream(seed, "attack/shadow", client=number))
        log_p, phi = confidence(model.eval(), x, y)
        likelihoods.append(log_p)
        confidences.append(phi)
    return np.stack(likelihoods), np.stack(confidences)


@torch.no_grad()
def confidence(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Floats, Floats]:
    """Return log p and log(p / (1 - p)) of the labels, (n,) each, from logits in float64.

    The second is z_y - log sum_{c != y} exp z_c, which does not overflow where p is 1.
    """
    logits = model(x).double()
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(dim=1)
    log_p = log_softmax(logits, dim=1).gather(1, y[:, None])[:, 0]
    return log_p.numpy(), (own[:, 0] - others).numpy()


def lira_scores(confidences: Floats, included: Bools) -> Floats:
    """Return the log likelihood ratio of every example for every target, (models, n).

    Args:
        confidences: phi, (models, n).
        included: who trained on what, (models, n), from :func:`halves`; of a target's own row,
            and of its pair's, nothing is used.
    """
    scores = np.empty_like(confidences)
    for target in range(len(confidences)):
        others = np.arange(len(confidences)) // 2 != target // 2
        phi, inside = confidences[others], included[others]
        parts = []
        for chosen in (inside, ~inside):
            count = chosen.sum(axis=0)
            mean = np.where(chosen, phi, 0.0).sum(axis=0) / count
            squares = np.where(chosen, (phi - mean) ** 2, 0.0).sum()
            variance = max(float(squares / (chosen.sum() - len(count))), 1e-12)
            parts.append(-0.5 * ((confidences[target] - mean) ** 2 / variance + np.log(variance)))
        scores[target] = parts[0] - parts[1]
    return scores


def judged(scores: Floats, included: Bools) -> Membership:
    """Return what scores of all targets, (models, n), come to."""
    flat, members = scores.ravel(), included.ravel()
    return Membership(
        auc=auc(flat, members),
        tpr_at_1_percent_fpr=tpr_at_fpr(flat, members, FALSE_POSITIVES),
    )
