"""What a client says about its network and its update beyond the counted: level ``full``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.nn import Module

from fedsim import flower
from fedsim.measure.health import Health
from fedsim.measure.payload import blank_coordinates, flat_update, update_statistics


def compression_figures(
    model: Module, x: Tensor, before: flower.Arrays, after: flower.Arrays
) -> dict[str, int | float | None]:
    """Return how well the update would compress, as columns of the ledger."""
    return update_statistics(flat_update(before, after), blank=blank_coordinates(model, x))


def health_figures(before: Health, after: Health) -> dict[str, float | None]:
    """Return losses, accuracy and gradient ratios on the client's data, as columns."""
    return {
        "loss_before": before.loss,
        "loss_after": after.loss,
        "accuracy_after": after.accuracy,
        "gradient_ratio_before": before.gradient_ratio,
        "gradient_ratio_after": after.gradient_ratio,
    }


def layer_columns(
    before: Health, after: Health, tensor_norms: Mapping[str, float]
) -> dict[str, list[Any]]:
    """Return the columns of the client's layer rows; NaN where a figure is blank.

    Args:
        before: the network as it came, on the client's data.
        after: the same after the local training.
        tensor_norms: the Euclidean norm of the update by tensor, in the model's order.
    """
    norms = norms_by_layer(tensor_norms, [layer.layer for layer in after.layers])
    rows = [
        {**asdict(layer), "phase": phase, "update_norm": norm}
        for phase, health in (("before", before), ("after", after))
        for layer in health.layers
        for norm in [norms.get(layer.layer) if phase == "after" else None]
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    return {
        name: [math.nan if value is None else value for value in column]
        for name, column in columns.items()
    }


def norms_by_layer(tensor_norms: Mapping[str, float], layers: list[str]) -> dict[str, float]:
    """Return the norm of each layer's part of the update.

    A tensor belongs to the layer that it is named after, or else (an activation's own parameter)
    to the layer before.
    """
    squares: dict[str, list[float]] = {}
    current = ""
    for name, norm in tensor_norms.items():
        module = name.rpartition(".")[0]
        current = module if module in layers else current
        squares.setdefault(current, []).append(norm)
    return {layer: math.hypot(*norms) for layer, norms in squares.items()}
