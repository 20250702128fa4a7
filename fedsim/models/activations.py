"""The activation functions under study: how each is built, initialised, and what it costs.

To add one: its function in ``functions.py`` if torch lacks it, an entry in ``ACTIVATIONS``, and a
row in the table of ``tests/test_activations.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.functions import ReLUSquared, TemperedSigmoid
from fedsim.models.gains import leaky_gain, tempered_gain, variance_keeping_gain
from fedsim.models.notation import parse_call


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Elementwise operations per element, by kind: counted, the same on every machine.

    The count is of the formula that torch's processor kernel evaluates, forward or backward;
    backward includes the multiplication by the incoming gradient. What counts as one operation:

    - ``compare``: a comparison with the selection it decides, a minimum or a maximum. Both sides
      of a selection count, as vector kernels evaluate both.
    - ``multiply_add``: a multiplication, an addition or a subtraction; a product that is added to
      something counts one together with that addition (a fused multiply-add).
    - ``divide``: a division.
    - ``transcendental``: exp, expm1, log1p, tanh or erf.

    Changes of sign, arithmetic between constants and multiplications by the constant 1 count
    nothing; a multiplication by a parameter counts even where the parameter is 1. For a parameter
    that the activation learns, backward includes its gradient, summed over the elements.

    It does not capture memory traffic, nor that a tanh costs more instructions than an exp: for
    those, measure.
    """

    compare: int = 0
    multiply_add: int = 0
    divide: int = 0
    transcendental: int = 0


@dataclass(frozen=True, kw_only=True)
class Activation:
    """An activation function.

    ``gain`` is the initialisation gain: a number, or a function of the parameters, from the
    literature; None to compute the gain that keeps the variance. ``kinks`` are the points where
    the function or a derivative jumps. ``bounded`` says that it saturates on both sides.
    ``unstable`` says why no gain keeps the variance of pre-activations in a deep network; empty
    where one does. The parameters named in ``positive`` must be above 0.
    """

    build: Callable[..., nn.Module]  # keyword arguments: the parameters
    parameters: Mapping[str, float] = field(default_factory=dict)  # names and defaults, in order
    positive: frozenset[str] = frozenset()
    gain: float | Callable[..., float] | None = None
    kinks: tuple[float, ...] = ()
    bounded: bool = False
    unstable: str = ""
    forward: Cost
    backward: Cost


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(  # the control: what a network costs without any activation
        build=nn.Identity,
        gain=1.0,
        forward=Cost(),
        backward=Cost(),
    ),
    "relu": Activation(
        build=nn.ReLU,
        gain=math.sqrt(2),
        kinks=(0.0,),
        forward=Cost(compare=1),
        backward=Cost(compare=1),
    ),
    "leaky_relu": Activation(
        build=nn.LeakyReLU,
        parameters={"negative_slope": 0.01},
        gain=leaky_gain,
        kinks=(0.0,),
        forward=Cost(compare=1, multiply_add=1),
        backward=Cost(compare=1, multiply_add=1),
    ),
    "prelu": Activation(  # one learnable slope a layer
        build=nn.PReLU,
        parameters={"init": 0.25},
        gain=lambda init: leaky_gain(init),
        kinks=(0.0,),
        forward=Cost(compare=1, multiply_add=1),
        backward=Cost(compare=1, multiply_add=3),
    ),
    "relu6": Activation(
        build=nn.ReLU6,
        kinks=(0.0, 6.0),
        bounded=True,
        forward=Cost(compare=2),
        backward=Cost(compare=2),
    ),
    "relu_squared": Activation(
        build=ReLUSquared,
        kinks=(0.0,),
        unstable=(
            "it squares the scale of its input, so that the variance q of one layer becomes "
            "proportional to q^2 in the next: any deviation doubles (in logarithm) at every layer"
        ),
        forward=Cost(compare=1, multiply_add=1),
        backward=Cost(compare=1, multiply_add=2),
    ),
    "hardtanh": Activation(
        build=nn.Hardtanh,
        kinks=(-1.0, 1.0),
        bounded=True,
        forward=Cost(compare=2),
        backward=Cost(compare=2),
    ),
    "hardswish": Activation(
        build=nn.Hardswish,
        kinks=(-3.0, 3.0),
        forward=Cost(compare=2, multiply_add=2, divide=1),
        backward=Cost(compare=2, multiply_add=2, divide=1),
    ),
    "tanh": Activation(
        build=nn.Tanh,
        gain=5 / 3,
        bounded=True,
        forward=Cost(transcendental=1),
        backward=Cost(multiply_add=2),
    ),
    "sigmoid": Activation(
        build=nn.Sigmoid,
        gain=4.0,
        bounded=True,
        forward=Cost(multiply_add=1, divide=1, transcendental=1),
        backward=Cost(multiply_add=3),
    ),
    "tempered_sigmoid": Activation(
        build=TemperedSigmoid,
        parameters={"scale": 2.0, "inverse_temperature": 2.0, "offset": 1.0},
        positive=frozenset({"scale", "inverse_temperature"}),
        gain=tempered_gain,
        bounded=True,
        forward=Cost(multiply_add=3, divide=1, transcendental=1),
        backward=Cost(multiply_add=5),
    ),
    "softplus": Activation(
        build=nn.Softplus,
        parameters={"beta": 1.0},
        positive=frozenset({"beta"}),
        forward=Cost(compare=1, multiply_add=1, divide=1, transcendental=2),
        backward=Cost(compare=1, multiply_add=3, divide=1, transcendental=1),
    ),
    "elu": Activation(
        build=nn.ELU,
        parameters={"alpha": 1.0},
        positive=frozenset({"alpha"}),
        kinks=(0.0,),
        forward=Cost(compare=1, multiply_add=1, transcendental=1),
        backward=Cost(compare=1, multiply_add=2, transcendental=1),
    ),
    "selu": Activation(
        build=nn.SELU,
        # Klambauer et al. (2017) fix selu's constants so that N(0, 1 / fan_in), a gain of 1, keeps
        # mean 0 and variance 1. Torch's 3/4 for selu gives that up.
        gain=1.0,
        kinks=(0.0,),
        forward=Cost(compare=1, multiply_add=2, transcendental=1),
        backward=Cost(compare=1, multiply_add=3, transcendental=1),
    ),
    "gelu": Activation(
        build=nn.GELU,
        forward=Cost(multiply_add=4, transcendental=1),
        backward=Cost(multiply_add=8, transcendental=2),
    ),
    "gelu_tanh": Activation(
        build=functools.partial(nn.GELU, approximate="tanh"),
        forward=Cost(multiply_add=7, transcendental=1),
        backward=Cost(multiply_add=13, transcendental=1),
    ),
    "silu": Activation(
        build=nn.SiLU,
        forward=Cost(multiply_add=1, divide=1, transcendental=1),
        backward=Cost(multiply_add=5, divide=1, transcendental=1),
    ),
    "mish": Activation(
        build=nn.Mish,
        forward=Cost(multiply_add=1, transcendental=3),
        backward=Cost(multiply_add=5, divide=1, transcendental=4),
    ),
}


def parse_activation(text: str) -> tuple[str, dict[str, float]]:
    """Return the name and the parameters of an activation, defaults filled in.

    Args:
        text: ``"tanh"``, ``"leaky_relu(0.1)"`` or ``"leaky_relu(negative_slope=0.1)"``.

    Raises:
        ConfigError: no such activation or parameter, or a value out of range.
    """
    signatures = {name: activation.parameters for name, activation in ACTIVATIONS.items()}
    name, parameters = parse_call(text, signatures, key="model.activation")
    problems = [
        f"model.activation = {text!r}: {parameter} must be above 0"
        for parameter in parameters
        if parameter in ACTIVATIONS[name].positive and parameters[parameter] <= 0
    ]
    if problems:
        raise ConfigError(problems)
    return name, parameters


def make_activation(text: str) -> nn.Module:
    """Return a new module of the activation; arguments and errors as :func:`parse_activation`.

    It takes any shape and floating-point type and gives the same.
    """
    name, parameters = parse_activation(text)
    return ACTIVATIONS[name].build(**parameters)


def activation_gain(text: str) -> float:
    """Return the activation's initialisation gain, above 0.

    Arguments and errors as :func:`parse_activation`; parameters so extreme that no number serves
    as their gain are an error too.
    """
    name, parameters = parse_activation(text)
    activation = ACTIVATIONS[name]
    if activation.gain is None:
        gain = variance_keeping_gain(activation.build(**parameters).double(), activation.kinks)
    elif callable(activation.gain):
        gain = activation.gain(**parameters)
    else:
        gain = activation.gain
    if not (math.isfinite(gain) and gain > 0):
        raise ConfigError(
            [
                f"model.activation = {text!r}: its initialisation gain would be {gain}; "
                "use less extreme parameters"
            ]
        )
    return gain
