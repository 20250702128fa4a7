"""The activation functions that torch does not have."""

from __future__ import annotations

import torch
from torch import nn


class ReLUSquared(nn.Module):
    """``max(x, 0) ** 2`` (So et al., 2021, "Primer")."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the function to every element; any shape."""
        return torch.relu(x).square()


class TemperedSigmoid(nn.Module):
    """``scale / (1 + exp(-inverse_temperature * x)) - offset`` (Papernot et al., 2021).

    With (2, 2, 1), the default, it is tanh; with (1, 1, 0) it is the sigmoid.
    """

    def __init__(
        self, scale: float = 2.0, inverse_temperature: float = 2.0, offset: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.inverse_temperature = inverse_temperature
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the function to every element; any shape."""
        return self.scale * torch.sigmoid(self.inverse_temperature * x) - self.offset

    def extra_repr(self) -> str:
        """Return the parameters, for ``print(model)``."""
        return (
            f"scale={self.scale}, inverse_temperature={self.inverse_temperature}, "
            f"offset={self.offset}"
        )
