"""Local training: what one client does with the global model and its own examples, and many."""

from fedsim.training.blocks import Plan, cut_blocks, plan_for
from fedsim.training.cohort import CohortResult, CohortTrainer, Recipe
from fedsim.training.digest import Digest, digest
from fedsim.training.local import LocalResult, mean_loss, train_locally, warm_up
from fedsim.training.making import make_trainer, missing_device, translatable
from fedsim.training.orders import steps_of
from fedsim.training.parameters import load_arrays, read_arrays
from fedsim.training.private import (
    Reproducible,
    Source,
    expected_batch,
    refuse_batch_norm,
    train_privately,
)
from fedsim.training.private_noise import StepNoise
from fedsim.training.private_trainer import PrivateTrainer
from fedsim.training.schedule import SCHEDULES, learning_rate
from fedsim.training.traced import Untranslatable

__all__ = [
    "SCHEDULES",
    "CohortResult",
    "CohortTrainer",
    "Digest",
    "LocalResult",
    "Plan",
    "PrivateTrainer",
    "Recipe",
    "Reproducible",
    "Source",
    "StepNoise",
    "Untranslatable",
    "cut_blocks",
    "digest",
    "expected_batch",
    "learning_rate",
    "load_arrays",
    "make_trainer",
    "mean_loss",
    "missing_device",
    "plan_for",
    "read_arrays",
    "refuse_batch_norm",
    "steps_of",
    "train_locally",
    "train_privately",
    "translatable",
    "warm_up",
]
