"""A model's parameters as named NumPy arrays, in the module's order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import Module


def read_arrays(model: Module) -> dict[str, np.ndarray]:
    """Copy a model's parameters and buffers out of it."""
    return {
        name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()
    }


def load_arrays(model: Module, arrays: Mapping[str, np.ndarray]) -> Module:
    """Copy arrays of the same names and shapes into a model and return it."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(np.asarray(arrays[name])))
    return model
