"""Initialisation gains: the factor that keeps the variance of pre-activations from layer to layer.

In a wide random network with weights N(0, g^2 / fan_in) and no biases, a layer whose
pre-activations are N(0, q) gives the next one the variance (Poole et al., 2016)

    q' = g^2 E[f(sqrt(q) z)^2],    z ~ N(0, 1).

The gain that keeps q = 1 is 1 / sqrt(E[f(z)^2]); He et al. (2015) is its case for rectifiers.
Keeping q = 1 does not make it attract. 20 layers after a start 1% too high, q is back at 1 for
softplus and 1% too high for relu, but 15% for gelu, 27% for silu and 83% for hardswish: in these
the chance of a finite width grows with depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

# Standard deviations integrated over: beyond them lies less than 1e-32 of a Gaussian.
REACH = 12
NODES = 20


def second_moment(
    f: Callable[[torch.Tensor], torch.Tensor], variance: float = 1.0, kinks: Sequence[float] = ()
) -> float:
    """Return E[f(x)^2] for x ~ N(0, variance), to about 12 digits.

    Args:
        f: the function, elementwise, given and returning float64.
        variance: of x, above 0.
        kinks: where f or a derivative of f jumps.

    Gauss-Hermite nodes converge slowly across a kink, so this is a Gauss-Legendre rule on panels
    of one standard deviation, cut once more at every kink: f is smooth inside each panel.
    """
    deviation = math.sqrt(variance)
    reach = REACH * deviation
    cuts = [kink for kink in kinks if abs(kink) < reach]
    edges = np.union1d(np.linspace(-reach, reach, 2 * REACH + 1), cuts)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half = np.diff(edges)[:, None] / 2
    x = edges[:-1, None] + half * (1 + nodes)
    density = np.exp(-(x**2) / (2 * variance)) / (deviation * math.sqrt(2 * math.pi))
    with torch.no_grad():
        values = f(torch.from_numpy(x)).numpy()
    with np.errstate(over="ignore"):  # a moment that is infinite is returned as infinite
        return float(np.sum(half * weights * density * values**2))


def variance_keeping_gain(
    f: Callable[[torch.Tensor], torch.Tensor], kinks: Sequence[float] = ()
) -> float:
    """Return 1 / sqrt(E[f(z)^2]); arguments as in :func:`second_moment`."""
    return 1 / math.sqrt(second_moment(f, kinks=kinks))


def leaky_gain(negative_slope: float) -> float:
    """Return the gain of a leaky rectifier, sqrt(2 / (1 + negative_slope^2)) (He et al., 2015)."""
    return math.sqrt(2 / (1 + negative_slope * negative_slope))


def tempered_gain(scale: float, inverse_temperature: float, offset: float) -> float:
    """Return the gain of s / (1 + exp(-k x)) - o, with tanh's 5/3 and the sigmoid's 4 as cases.

    The function is (s/2) (tanh(k x / 2) + r) with r = 1 - 2 o / s, the middle of its range in
    units of half its range. Undoing both scales, so that the tanh inside sees the same whatever
    s and k are, takes a factor 4 / (s k); it leaves one constant, c(r). Keeping a variance Q
    inside that tanh takes c^2 (v + r^2) = Q, where v stands for the second moment of tanh: a
    function that is not centred (r != 0) adds its mean to every sum and must be damped. The two
    gains in use, c(0) = 5/3 for tanh and c(1) = 1 for the sigmoid (Glorot and Bengio, 2010), fix
    both: Q = 25/16 and v = 9/16 (0.48 in a Gaussian of variance Q), so c = 5 / sqrt(9 + 16 r^2).
    """
    middle = 1 - 2 * (offset / scale)
    return 4 / scale / inverse_temperature * 5 / math.sqrt(9 + 16 * middle * middle)
