"""Networks and their activation functions."""

from fedsim.models.activations import (
    ACTIVATIONS,
    Activation,
    Cost,
    activation_gain,
    make_activation,
    parse_activation,
)
from fedsim.models.build import MODELS, Model, build_model, input_problem

__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "Activation",
    "Cost",
    "Model",
    "activation_gain",
    "build_model",
    "input_problem",
    "make_activation",
    "parse_activation",
]
