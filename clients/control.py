"""A client's control variate (SCAFFOLD), which it keeps from round to round."""

from __future__ import annotations

import numpy as np
from flwr.app import Context

from fedsim import flower
from fedsim.algorithms import scaffold


def control_of(context: Context, asked: flower.Instruction) -> flower.Arrays:
    """Return this client's control variate (SCAFFOLD): zero until it has taken part."""
    if asked.control is None:
        return {}
    if flower.CONTROL in context.state:
        return flower.decode_arrays(context.state.array_records[flower.CONTROL])
    return {name: np.zeros_like(value) for name, value in asked.control.items()}


def correction(asked: flower.Instruction, own: flower.Arrays) -> list[flower.Arrays] | None:
    """Return what SCAFFOLD adds to every gradient, c - c_i, of one client."""
    if asked.control is None:
        return None
    return [{name: value - own[name] for name, value in asked.control.items()}]


def update_control(
    context: Context,
    asked: flower.Instruction,
    own: flower.Arrays,
    arrays: flower.Arrays,
    steps: int,
) -> flower.Arrays | None:
    """Keep the new control variate in this client's state and return its change."""
    if asked.control is None:
        return None
    new = scaffold.client_control(
        asked.arrays, arrays, asked.control, own, steps=steps, learning_rate=asked.learning_rate
    )
    if all(np.isfinite(value).all() for value in new.values()):
        context.state[flower.CONTROL] = flower.encode_arrays(new)
    return {name: value - own[name] for name, value in new.items()}
