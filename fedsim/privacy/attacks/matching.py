"""Gradient matching: examples whose gradient is the one that was received.

    dlg      min_x ||g(x) - g||^2 / ||g||^2, by L-BFGS               (Zhu et al., 2019)
    cosine   min_x 1 - <g(x), g> / (||g(x)|| ||g||) + a TV(x), by signed Adam, x within the data's
             range                                                    (Geiping et al., 2020)

with g(x) the gradient that the model would send for x. The labels are known, as ``labels.py``
recovers them. Several starts are tried, and the one that matches best is kept, which the attacker
can tell. An mlp gives its examples away for less (``analytic.py``); these take any model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.privacy.attacks.settings import Scene
from fedsim.randomness import stream

# Both see the gradients that a candidate gives, by name with a leading dimension of starts.
Gradients = Callable[[Tensor], dict[str, Tensor]]

DLG_ITERATIONS, COSINE_ITERATIONS = 300, 600
STARTS = 2
STEP = 0.1  # of signed Adam, in units of the data's range
DECAY_AT = (3 / 8, 5 / 8, 7 / 8)  # of the iterations, by a tenth each
TOTAL_VARIATION = 1e-3
HISTORY = 100


def dlg(
    scene: Scene, seed: int, *, iterations: int = DLG_ITERATIONS, starts: int = STARTS
) -> Tensor:
    """Return the examples found by L-BFGS, (batch, \\*shape), clamped to the data's range.

    In float64, with a line search by strong Wolfe conditions. A start that comes to no finite
    error counts as where it began.

    Args:
        scene: its labels are used, its examples are not.
        seed: of the starts.
        iterations: of L-BFGS, at least 1.
        starts: tried one after another, at least 1: their curvatures are their own.
    """
    model = copy.deepcopy(scene.model).double()
    target = {name: part.double() for name, part in scene.received.items()}
    square = sum(float(part.square().sum()) for part in target.values())
    gradients = gradients_of(model, scene.y)
    best, least = None, float("inf")
    for start in first_guesses(scene, seed, starts).double():
        x = start[None].clone().requires_grad_()

        def error(x: Tensor = x) -> Tensor:
            found = gradients(x)
            parts = [(found[name] - part).square().sum() for name, part in target.items()]
            return torch.stack(parts).sum() / square

        found = descended(x, error, iterations)
        reached = float(error(found).detach())
        if best is None or reached < least:
            best, least = found, reached
    assert best is not None
    return best[0].detach().clamp(scene.low, scene.high).float()


def descended(x: Tensor, error: Callable[..., Tensor], iterations: int) -> Tensor:
    """Return x after L-BFGS, or as it was where that left the finite numbers."""
    optimiser = torch.optim.LBFGS(
        [x],
        max_iter=iterations,
        history_size=HISTORY,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )
    start = x.detach().clone()

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = error()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return x if bool(torch.isfinite(x).all()) else start.requires_grad_()


def cosine(
    scene: Scene,
    seed: int,
    *,
    iterations: int = COSINE_ITERATIONS,
    starts: int = STARTS,
    total_variation: float = TOTAL_VARIATION,
) -> Tensor:
    """Return the examples found by signed Adam, (batch, \\*shape), within the data's range.

    All starts go together, each by itself: Adam works number by number.

    Args:
        scene: its labels are used, its examples are not.
        seed: of the starts.
        iterations: of Adam, at least 1.
        starts: at least 1.
        total_variation: its weight, at least 0; not used where examples are no images.
    """
    gradients = gradients_of(scene.model, scene.y)
    x = first_guesses(scene, seed, starts).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=STEP * (scene.high - scene.low))
    milestones = [int(share * iterations) for share in DECAY_AT]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, gamma=0.1)
    errors = torch.empty(starts)
    for last in (*[False] * iterations, True):
        errors = 1 - cosine_similarity(gradients(x), scene.received)
        if last:
            break
        optimiser.zero_grad()
        smooth = total_variation * roughness(x) / (scene.high - scene.low)
        (errors + smooth).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        x.grad.nan_to_num_(0.0).sign_()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(scene.low, scene.high)
    return x.detach()[int(errors.detach().nan_to_num(2.0).argmin())]


def gradients_of(model: nn.Module, y: Tensor) -> Gradients:
    """Return the function from candidates, (starts, batch, \\*shape), to their gradients."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, dict(weights), (x,)), y)

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    return lambda x: gradient(weights, x)


def cosine_similarity(found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Return the cosine between whole gradients, (starts,); 0 where one of them is 0."""
    product = torch.stack([(found[n] * t).flatten(1).sum(1) for n, t in target.items()]).sum(0)
    square = torch.stack([found[n].square().flatten(1).sum(1) for n in target]).sum(0)
    norm = torch.stack([t.square().sum() for t in target.values()]).sum().sqrt()
    return product / (square.clamp_min(1e-30).sqrt() * norm.clamp_min(1e-30))


def roughness(x: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, (starts,); 0 of no images."""
    if x.dim() != 5:
        return torch.zeros(len(x))
    down = (x[..., 1:, :] - x[..., :-1, :]).abs().flatten(1).mean(1)
    across = (x[..., 1:] - x[..., :-1]).abs().flatten(1).mean(1)
    return down + across


def first_guesses(scene: Scene, seed: int, starts: int) -> Tensor:
    """Return uniform draws from the data's range, (starts, batch, \\*shape), in float32."""
    rng = stream(seed, "attack/start")
    draw = rng.random((starts, *scene.x.shape), dtype="float32")
    return scene.low + (scene.high - scene.low) * torch.from_numpy(draw)
