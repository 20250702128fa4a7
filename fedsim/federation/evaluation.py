"""The new model on the test part, as far as the level asks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module

from fedsim.federation.billing import Evaluation
from fedsim.measure.evaluation import evaluate
from fedsim.measure.health import look, probe_indices
from fedsim.randomness import stream


def examine(
    model: Module,
    x: Tensor,
    y: Tensor,
    *,
    level: str,
    activation: str,
    seed: int,
    threads: int = 1,
    victims: tuple[Tensor, Tensor] | None = None,
) -> Evaluation:
    """Return accuracy and loss, and at level ``full`` the health of every layer.

    Args:
        model: with the new parameters in it.
        x, y: the test part.
        level: how much is measured.
        activation: the model's, as the registry writes it.
        seed: the experiment's; it fixes the probe batch.
        threads: that evaluate, while the clients' workers have nothing to do.
        victims: examples and what an attack wants them to be taken for; None: nobody is after that.
    """
    success = evaluate(model, *victims, threads=threads)[0] if victims else None
    if level != "full":
        accuracy, loss = evaluate(model, x, y, threads=threads)
        return Evaluation(accuracy=accuracy, loss=loss, attack_success=success)
    probe = torch.from_numpy(probe_indices(len(y), stream(seed, "test-probe")))
    health = look(model, x, y, probe=probe, activation=activation)
    return Evaluation(
        accuracy=health.accuracy, loss=health.loss, layers=health.layers, attack_success=success
    )
