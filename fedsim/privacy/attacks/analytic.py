"""Examples from the gradient of the first dense layer, and the weights of a dishonest server.

Neuron k of a first layer f(W x + b) has dL/dW_k = sum_i d_ik x_i and dL/db_k = sum_i d_ik, where
d_ik is the gradient at its pre-activation. Hence, where one example alone drives it,

    x = (dL/dW_k) / (dL/db_k)

(Geiping et al., 2020, proposition 3.1); in a batch it is a weighted sum of examples. ReLU has
d_ik = 0 for every example that the neuron is off for, so that in a wide layer many an example is
alone somewhere; a smooth function has d_ik = 0 for none. Nothing here asks which function it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.errors import PrivacyError
from fedsim.privacy.attacks.settings import Scene, Setting
from fedsim.randomness import stream


def extracted(received: dict[str, Tensor], layer: str, shape: torch.Size) -> Tensor:
    """Return a candidate for each neuron with a bias gradient, (neurons, \\*shape), in float64.

    Args:
        received: gradients by parameter name.
        layer: the first dense layer's name, which takes the examples themselves.
        shape: of one example.
    """
    weight = received[f"{layer}.weight"].double()
    bias = received[f"{layer}.bias"].double()
    driven = bias != 0
    candidates = weight[driven] / bias[driven, None]
    return candidates.reshape(-1, *shape)


def first_dense(model: nn.Module) -> str:
    """Return the name of the dense layer that takes the examples.

    Raises:
        PrivacyError: the examples pass another layer with weights first, as in a cnn.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            return str(name)
        if name and next(layer.parameters(recurse=False), None) is not None:
            break
    raise PrivacyError(
        "analytic extraction takes examples from a first layer that is dense; this model's is "
        "not: use model 'mlp', or the attack 'cosine'"
    )


def candidates_of(scene: Scene) -> Tensor:
    """Return what can be extracted in a scene; see :func:`extracted`."""
    return extracted(scene.received, first_dense(scene.model), scene.x.shape[1:])


def set_trap(
    model: nn.Module, auxiliary: Tensor, setting: Setting, seed: int, *, scale: float = 1.0
) -> None:
    """Set the first dense layer so that each neuron is on for few examples, in place.

    The trap weights of Boenisch et al. (2021, section 4): half of a row's positions, drawn at
    random, are negative, -|n|, the others s |n|, n normal. A neuron is on where s P > N, with P and
    N the sums of the two halves of an example: s is the quantile of N / P over the attacker's own
    examples at which a share of 1 / batch is on. Rows have the norm that they start with, times
    ``scale``; the bias is 0.

    Args:
        model: its first layer with weights is dense.
        auxiliary: the attacker's examples, (m, \\*shape), not negative as pixels are.
        setting: its batch says how rarely a neuron shall be on.
        seed: of the draw.
        scale: above 1 it turns a smooth function into one that is flat almost everywhere, as a
            server that wants examples from a tanh would.

    Raises:
        PrivacyError: the first layer is not dense.
    """
    name = first_dense(model)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    rng = stream(seed, "attack/trap")
    units, features = layer.weight.shape
    size = torch.from_numpy(abs(rng.standard_normal((units, features))))
    halves = torch.zeros(units, features, dtype=torch.bool)
    halves[:, : features // 2] = True
    order = torch.from_numpy(rng.permuted(torch.arange(features).expand(units, -1).numpy(), axis=1))
    negative = halves.gather(1, order)
    x = auxiliary.flatten(1).double()
    below = x @ (size * negative).T
    above = x @ (size * ~negative).T
    thresholds = (below / above)[above > 0]
    share = float(torch.quantile(thresholds[:: 1 + len(thresholds) // 2**20], 1 / setting.batch))
    rows = torch.where(negative, -size, min(share, 1.0) * size)
    with torch.no_grad():
        norms = layer.weight.double().norm(dim=1, keepdim=True)
        layer.weight.copy_(scale * norms * rows / rows.norm(dim=1, keepdim=True))
        if layer.bias is not None:
            layer.bias.zero_()
