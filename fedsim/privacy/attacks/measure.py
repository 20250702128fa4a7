"""Which attacks there are, and what each comes to with one setting and one seed.

To add one: its function, and an entry in ``ATTACKS``; command, rows and pictures follow.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.data import Dataset
from fedsim.errors import PrivacyError, nearest
from fedsim.models import build_model
from fedsim.privacy.attacks import analytic, matching, membership
from fedsim.privacy.attacks.gallery import Reconstructions
from fedsim.privacy.attacks.images import assigned, nearest_to_each, psnr_db, relative_errors, ssim
from fedsim.privacy.attacks.labels import (
    OUTPUT_BIAS,
    label_counts,
    mean_prediction,
    share_recovered,
)
from fedsim.privacy.attacks.rows import LeakageRow
from fedsim.privacy.attacks.settings import Protect, Scene, Setting, set_scene
from fedsim.randomness import key, stream


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard the attacker tries, and how long the shadow models train.

    Attributes:
        iterations: of gradient matching; 0 for the attack's default.
        starts: of gradient matching.
        trap_scale: factor of the trap's rows, see :func:`fedsim.privacy.attacks.analytic.set_trap`.
        members: examples that a shadow model trains on; the pool has as many others.
        shadows: models.
        epochs, batch_size, learning_rate: of the shadow models' training.
    """

    iterations: int = 0
    starts: int = matching.STARTS
    trap_scale: float = 1.0
    members: int = 100
    shadows: int = 16
    epochs: int = 30
    batch_size: int = 10
    learning_rate: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row, and the images behind it where there are any."""

    row: LeakageRow
    shown: Reconstructions | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """The conditions of one attack: what is sent, whose data, how hard, and what is plugged in."""

    setting: Setting
    data: Dataset
    seed: int
    effort: Effort
    protect: Protect | None = None
    train: membership.Train | None = None


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack: a line on what it does, how it is carried out, and on how many examples.

    ``batch`` is what a command takes where nobody says more; ``of_a_batch`` is false of an attack
    that looks at trained models, and not at what is sent.
    """

    about: str
    run: Callable[[Task], list[Outcome]]
    batch: int = 8
    of_a_batch: bool = True


def measure(
    name: str,
    settings: Iterable[Setting],
    data: Dataset,
    seeds: Iterable[int],
    *,
    effort: Effort | None = None,
    protect: Protect | None = None,
    train: membership.Train | None = None,
) -> Iterator[Outcome]:
    """Yield what an attack comes to, for each setting with each seed, as soon as it is known.

    Args:
        name: a key of ``ATTACKS``.
        settings: what is sent.
        data: whose training part the clients' examples come from, and whose test part the
            attacker's.
        seeds: of everything random; equal seeds pair the arms.
        effort: the attacker's; the default is small enough for digits and MNIST on one core.
        protect: what is done to an update, in place of a setting's level.
        train: trains a shadow model in place, in place of the plain loop of ``membership.py``.

    Raises:
        PrivacyError: there is no such attack, or it cannot be carried out in such a setting.
    """
    if name not in ATTACKS:
        raise PrivacyError(f"attack {name!r}: unknown; {nearest(name, ATTACKS)}")
    seeds = list(seeds)
    for setting in settings:
        for seed in seeds:
            task = Task(
                setting=setting,
                data=data,
                seed=seed,
                effort=effort or Effort(),
                protect=protect,
                train=train,
            )
            with one_thread():
                outcomes = ATTACKS[name].run(task)
            yield from outcomes


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside the block: these steps are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load_optimisers() -> None:
    """Have torch load what its first optimiser loads: no attack is billed for that."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])


def recover_labels(task: Task) -> list[Outcome]:
    """Recover labels from the last layer's bias."""
    scene = set_scene(task.setting, task.data, task.seed, protect=task.protect)
    begun = time.process_time()
    guess = mean_prediction(scene.model, scene.auxiliary)
    bias = scene.received[OUTPUT_BIAS].double().numpy()
    counts = label_counts(bias, guess, task.setting.batch)
    spent = time.process_time() - begun
    share = share_recovered(counts, scene.y.numpy())
    return [Outcome(row=row_of(task, "labels", labels_recovered=share, cpu_seconds=spent))]


def extract(task: Task, *, name: str, trap: bool) -> list[Outcome]:
    """Extract examples from the first dense layer, of an honest model or of a trap."""
    scale = task.effort.trap_scale
    prepare = functools.partial(analytic.set_trap, scale=scale) if trap else None
    weights = ("trap" if scale == 1 else f"trap x{scale:g}") if trap else "honest"
    scene = set_scene(task.setting, task.data, task.seed, prepare=prepare, protect=task.protect)
    begun = time.process_time()
    candidates = analytic.candidates_of(scene)
    spent = time.process_time() - begun
    candidates = candidates.clamp(scene.low, scene.high)
    which, _ = nearest_to_each(scene.x.numpy(), candidates.numpy())
    found = torch.full_like(scene.x, torch.nan)
    there = torch.from_numpy(which >= 0)
    found[there] = candidates[torch.from_numpy(which)[there]].float()
    return [compared(task, name, scene, found, spent, weights=weights)]


def match(task: Task, *, name: str, search: Callable[..., Tensor]) -> list[Outcome]:
    """Search examples whose gradient matches."""
    scene = set_scene(task.setting, task.data, task.seed, protect=task.protect)
    options = {"iterations": task.effort.iterations} if task.effort.iterations else {}
    load_optimisers()
    begun = time.process_time()
    found = search(scene, task.seed, starts=task.effort.starts, **options)
    spent = time.process_time() - begun
    order = torch.from_numpy(assigned(scene.x.numpy(), found.numpy()))
    return [compared(task, name, scene, found[order], spent)]


def compared(
    task: Task, name: str, scene: Scene, found: Tensor, cpu_seconds: float, weights: str = "honest"
) -> Outcome:
    """Return what reconstructions come to, (batch, \\*shape), each beside its original.

    One that is NaN was not found, and stands as a uniform grey.
    """
    peak = scene.high - scene.low
    x, guessed = scene.x.numpy(), found.nan_to_num((scene.low + scene.high) / 2).numpy()
    errors = np.diagonal(relative_errors(x, guessed))
    pairs = list(zip(x, guessed, strict=True))
    images = x.ndim == 4
    row = row_of(
        task,
        name,
        weights=weights,
        recovered_at_1e_3=float(np.mean(errors <= 1e-3)),
        recovered_at_0_1=float(np.mean(errors <= 0.1)),
        relative_error=float(np.median(errors)),
        psnr_db=float(np.mean([psnr_db(a, b, peak=peak) for a, b in pairs])),
        ssim=float(np.mean([ssim(a, b, peak=peak) for a, b in pairs])) if images else None,
        cpu_seconds=cpu_seconds,
    )
    shown = Reconstructions(
        name=row.title,
        originals=x,
        reconstructions=found.numpy(),
        low=scene.low,
        high=scene.high,
    )
    return Outcome(row=row, shown=shown if images else None)


def infer_membership(task: Task) -> list[Outcome]:
    """Tell members from others, by a threshold on the loss and by LiRA.

    The row's batch is what one model trains on, its local steps are those of the plain loop.
    """
    setting, data, effort, seed = task.setting, task.data, task.effort, task.seed
    if setting.level != "none":
        raise PrivacyError(
            f"level = {setting.level!r}: shadow models train without privacy here; give "
            "fedsim.privacy.attacks.measure.measure a function to train them as the target was"
        )
    pool = 2 * effort.members
    if effort.members < 1 or pool > len(data.y_train):
        raise PrivacyError(
            f"members = {effort.members}: needs twice as many training examples, at least 2, and "
            f"{data.name} has {len(data.y_train):,}"
        )
    chosen = stream(seed, "attack/pool").choice(len(data.y_train), pool, replace=False)
    x, y = (torch.from_numpy(part) for part in data.train(chosen))
    included = membership.halves(effort.shadows, pool, stream(seed, "attack/halves"))

    def build(number: int) -> nn.Module:
        return build_model(
            setting.model,
            input_shape=data.input_shape,
            classes=data.classes,
            width=setting.width,
            depth=setting.depth,
            activation=setting.activation,
            seed=key(seed, "attack/model", client=number) % 2**63,
        )

    train = task.train or membership.overfit(effort.epochs, effort.batch_size, effort.learning_rate)
    load_optimisers()
    begun = time.process_time()
    log_p, phi = membership.shadow_confidences(build, train, x, y, included, seed)
    found = {
        "loss_threshold": membership.judged(log_p, included),
        "lira": membership.judged(membership.lira_scores(phi, included), included),
    }
    spent = time.process_time() - begun
    trained = replace(
        setting,
        batch=effort.members,
        local_steps=effort.epochs * -(-effort.members // effort.batch_size),
        learning_rate=effort.learning_rate,
    )
    named = replace(task, setting=trained)
    return [
        Outcome(row=row_of(named, name, cpu_seconds=spent, **dataclasses.asdict(figures)))
        for name, figures in found.items()
    ]


def row_of(task: Task, name: str, weights: str = "honest", **figures: Any) -> LeakageRow:
    """Return the row of an attack."""
    return LeakageRow(
        attack=name,
        weights=weights,
        dataset=task.data.name,
        seed=task.seed,
        **{
            field.name: getattr(task.setting, field.name)
            for field in dataclasses.fields(task.setting)
        },
        **figures,
    )


ATTACKS: Mapping[str, Attack] = {
    "labels": Attack(
        about="labels from the signs of the last layer's gradient",
        run=recover_labels,
    ),
    "analytic": Attack(
        about="examples by dividing the first dense layer's gradients",
        run=functools.partial(extract, name="analytic", trap=False),
    ),
    "trap": Attack(
        about="the same, with weights set by a dishonest server",
        run=functools.partial(extract, name="trap", trap=True),
    ),
    "dlg": Attack(
        about="examples whose gradient matches, by L-BFGS on its squared error",
        run=functools.partial(match, name="dlg", search=matching.dlg),
        batch=1,
    ),
    "cosine": Attack(
        about="the same, by signed Adam on its angle and the image's total variation",
        run=functools.partial(match, name="cosine", search=matching.cosine),
        batch=1,
    ),
    "membership": Attack(
        about="who was trained on: loss threshold, and LiRA with shadow models",
        run=infer_membership,
        of_a_batch=False,
    ),
}
