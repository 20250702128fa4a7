"""The scene of an attack: who holds which examples, what is sent, and what the attacker sees of it.

The attacker is the server, or whoever reads what it receives: it knows the model that it sent out,
the learning rate, how many examples there are and how many steps were taken on them. It holds other
examples of the same kind, the dataset's test part. It does not know the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.data import Dataset
from fedsim.errors import PrivacyError, nearest
from fedsim.models import build_model, parse_activation
from fedsim.privacy.clipping import add_noise, clip_update
from fedsim.privacy.noise import NoiseSource
from fedsim.randomness import stream

Arrays = Mapping[str, npt.NDArray[np.floating]]
# What is done to an update before it leaves the client, or before the attacker sees it.
Protect = Callable[[Arrays], Arrays]

LEVELS = ("none", "user", "example")
AUXILIARY = 256  # examples of the test part that the attacker holds


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is sent, and how it is protected; the columns of the same names in a row say the same.

    Attributes:
        model, width, depth, activation: as in :func:`fedsim.models.build_model`.
        batch: examples the client holds, at least 1.
        local_steps: steps that it takes, each on all of them; 0: it sends the gradient itself.
        learning_rate: of those steps, above 0.
        level: ``user``: the update is clipped to C, and noise of z C is added, which is what
            somebody sees who knows everybody else's update and the noised sum, the adversary of
            differential privacy (and what the server sees where clients add the noise).
            ``example``: each example's gradient is clipped to C and noise of z C is added to their
            sum in each step, as DP-SGD does. ``none``: the server sees a clear update, as it also
            does at level user where the server clips and adds the noise itself.
        clipping_norm: C, above 0 but for the level none.
        noise_multiplier: z, at least 0.
    """

    model: str = "mlp"
    width: int = 500
    depth: int = 1
    activation: str = "relu"
    batch: int = 8
    local_steps: int = 0
    learning_rate: float = 0.1
    level: str = "none"
    clipping_norm: float = 0.0
    noise_multiplier: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            PrivacyError: a line for every problem.
            ConfigError: there is no such activation.
        """
        parse_activation(self.activation)
        problems = [
            f"{name} = {getattr(self, name)}: {what}"
            for name, wrong, what in (
                ("batch", self.batch < 1, "a client holds at least 1 example"),
                ("local_steps", self.local_steps < 0, "must be at least 0, which is the gradient"),
                ("learning_rate", not self.learning_rate > 0, "must be above 0"),
                ("noise_multiplier", not self.noise_multiplier >= 0, "must be at least 0"),
            )
            if wrong
        ]
        protected = self.level != "none"
        if self.level not in LEVELS:
            problems.append(f"level = {self.level!r}: unknown; {nearest(self.level, LEVELS)}")
        elif protected and not self.clipping_norm > 0:
            problems.append(
                f"clipping_norm = {self.clipping_norm}: level {self.level!r} needs a norm, as 1"
            )
        elif not protected and (self.clipping_norm or self.noise_multiplier):
            problems.append(
                "clipping_norm and noise_multiplier are of level user or example; name one of them"
            )
        if problems:
            raise PrivacyError("\n".join(problems))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What happened, and what the attacker sees of it.

    Attributes:
        model: in evaluation mode, with the weights that the client was sent.
        x, y: the client's examples, (batch, \\*shape), and labels: the secret.
        received: by parameter name, the gradient or what stands in for it, see :func:`sent`.
        auxiliary: the attacker's own examples, (m, \\*shape).
        classes: how many there are.
        low, high: the range of the attacker's own examples.
    """

    setting: Setting
    model: nn.Module
    x: Tensor
    y: Tensor
    received: dict[str, Tensor]
    auxiliary: Tensor
    classes: int
    low: float
    high: float


# Puts weights of the attacker's own choice into the model before it is sent out.
Prepare = Callable[[nn.Module, Tensor, Setting, int], None]


def set_scene(
    setting: Setting,
    data: Dataset,
    seed: int,
    *,
    prepare: Prepare | None = None,
    protect: Protect | None = None,
) -> Scene:
    """Send out a model, let a client work, and return what the attacker sees.

    The client's examples, the model's draw and the noise depend on the seed alone, so that arms
    that differ in anything else are paired.

    Args:
        setting: what is sent.
        data: the client's examples are drawn from its training part.
        seed: of everything random.
        prepare: a dishonest server's change of the model, in place; given the model, the
            auxiliary examples, the setting and the seed.
        protect: what is done to the update, in place of the setting's level.

    Raises:
        PrivacyError: the training part holds fewer examples than the batch.
        ConfigError: there is no such model for this data.
    """
    if setting.batch > len(data.y_train):
        raise PrivacyError(
            f"batch = {setting.batch}: {data.name} has {len(data.y_train):,} training examples"
        )
    chosen = stream(seed, "attack/batch").choice(len(data.y_train), setting.batch, replace=False)
    x, y = (torch.from_numpy(part) for part in data.train(chosen))
    auxiliary = torch.from_numpy(data.test()[0][:AUXILIARY])
    model = build_model(
        setting.model,
        input_shape=data.input_shape,
        classes=data.classes,
        width=setting.width,
        depth=setting.depth,
        activation=setting.activation,
        seed=seed,
    ).eval()
    if prepare is not None:
        prepare(model, auxiliary, setting, seed)
    source = NoiseSource.reproducible(seed, "attack/noise")
    if protect is None and setting.level == "user":
        protect = protection(setting.clipping_norm, setting.noise_multiplier, source)
    return Scene(
        setting=setting,
        model=model,
        x=x,
        y=y,
        received=sent(model, x, y, setting, source=source, protect=protect),
        auxiliary=auxiliary,
        classes=data.classes,
        low=float(auxiliary.min()),
        high=float(auxiliary.max()),
    )


def sent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    setting: Setting,
    *,
    source: NoiseSource,
    protect: Protect | None = None,
) -> dict[str, Tensor]:
    """Return what the attacker takes for the gradient, by parameter name, in float32.

    Of a client that sends the gradient, that. Of one that takes E steps from w0 to w, as float32
    stores them, the mean gradient on the way::

        (w0 - w) / (learning_rate E)

    Args:
        model: left as it is.
        x, y: the client's examples and labels.
        setting: says what is sent, and the level.
        source: of the noise of level example.
        protect: is given the gradient, or the update w - w0, as it would leave the client.
    """
    start = {name: p.detach() for name, p in model.named_parameters()}

    def gradient(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if setting.level == "example":
            return private_gradient(model, weights, x, y, setting, source)
        return mean_gradient(model, weights, x, y)

    if setting.local_steps == 0:
        return protected(gradient(start), protect)
    weights = start
    for _ in range(setting.local_steps):
        slope = gradient(weights)
        weights = {name: w - setting.learning_rate * slope[name] for name, w in weights.items()}
    update = protected({name: weights[name] - w for name, w in start.items()}, protect)
    factor = -1 / (setting.learning_rate * setting.local_steps)
    return {name: change * factor for name, change in update.items()}


def mean_gradient(
    model: nn.Module, weights: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy at ``weights``, by parameter name."""
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    loss = cross_entropy(torch.func.functional_call(model, leaves, (x,)), y)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def private_gradient(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    setting: Setting,
    source: NoiseSource,
) -> dict[str, Tensor]:
    """Return a step's gradient by DP-SGD, plainly: (sum_i clip(g_i, C) + N(0, (z C)^2)) / batch.

    All of the client's examples are in the step: it is the worst case of a Poisson batch.
    """
    total: dict[str, npt.NDArray[np.float64]] = {
        name: np.zeros(tuple(w.shape)) for name, w in weights.items()
    }
    for i in range(len(y)):
        one = as_arrays(mean_gradient(model, weights, x[i : i + 1], y[i : i + 1]))
        for name, part in clip_update(one, setting.clipping_norm).items():
            total[name] += part
    noised = add_noise(total, setting.noise_multiplier * setting.clipping_norm, source)
    return {
        name: torch.from_numpy((part / len(y)).astype(np.float32)) for name, part in noised.items()
    }


def protection(clipping_norm: float, noise_multiplier: float, source: NoiseSource) -> Protect:
    """Return what clips an update to C and adds N(0, (z C)^2) to every number of it."""

    def protect(arrays: Arrays) -> Arrays:
        clipped = clip_update(arrays, clipping_norm)
        return add_noise(clipped, noise_multiplier * clipping_norm, source)

    return protect


def protected(update: Mapping[str, Tensor], protect: Protect | None) -> dict[str, Tensor]:
    """Return an update after its protection, in float32."""
    if protect is None:
        return dict(update)
    arrays = protect(as_arrays(update))
    return {name: torch.from_numpy(np.asarray(a, np.float32)) for name, a in arrays.items()}


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, npt.NDArray[np.floating]]:
    """Return tensors as NumPy's arrays, which share their memory."""
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}
