"""Chooses who trains a cohort: XLA or torch, clients together or one after another."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Module

from fedsim.data.dataset import Dataset
from fedsim.training.blocks import Plan
from fedsim.training.cohort import CohortTrainer, Recipe
from fedsim.training.traced import Untranslatable, trace
from fedsim.training.vectorised import TorchTrainer, VectorisedTrainer, vmap_problem
from fedsim.training.xla import INSTALL, installed, load_jax


def make_trainer(
    model: Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    compiler: str,
    plan: Plan,
    device: str = "cpu",
    precision: str = "float32",
) -> CohortTrainer:
    """Return a trainer of one model, recipe and dataset.

    Args:
        model: is left as it is; its values do not matter.
        compiler: ``torch`` or ``xla``; see :func:`translatable`.
        plan: see :func:`fedsim.training.blocks.plan_for`. Torch trains clients one after another
            where it cannot train them in step.
        device: ``cpu`` or ``cuda``.
        precision: ``float32`` or ``bfloat16``, of forward and backward.

    Raises:
        Untranslatable: XLA is asked for, and only torch can train this model.
        ConfigError: XLA is asked for, and JAX is not installed.
    """
    if compiler == "xla":
        from fedsim.training.compiled import CompiledTrainer

        return CompiledTrainer(
            model,
            dataset,
            recipe,
            together=plan.together,
            lanes=plan.lanes,
            call=plan.call,
            device=device,
            precision=precision,
        )
    if plan.together and not vmap_problem(model, dataset.input_shape):
        return VectorisedTrainer(
            # Twice as many in step as XLA: in torch the operations themselves cost the most.
            model,
            dataset,
            recipe,
            lanes=2 * plan.lanes,
            device=device,
            precision=precision,
        )
    return TorchTrainer(model, dataset, recipe, device=device, precision=precision)


def missing_device(device: str) -> str | None:
    """Say why XLA cannot compute on a device here; None where it can."""
    if device == "cpu":
        return None
    try:
        load_jax().devices("gpu")
    except RuntimeError:
        return f"this JAX sees no GPU for engine.device = {device!r}; install jax[cuda12]"
    return None


def translatable(model: Module, input_shape: Sequence[int]) -> str | None:
    """Say why XLA cannot train this model here; None where it can.

    Args:
        input_shape: of one example.
    """
    if not installed():
        return f"JAX is not installed ({INSTALL})"
    try:
        trace(model, input_shape, batch=2, precision="float32")
    except Untranslatable as reason:
        return str(reason)
    return None
