"""Local training: what one client does with the global model and its own examples."""

from fedsim.training.local import LocalResult, mean_loss, train_locally, warm_up
from fedsim.training.parameters import load_arrays, read_arrays
from fedsim.training.schedule import SCHEDULES, learning_rate

__all__ = [
    "SCHEDULES",
    "LocalResult",
    "learning_rate",
    "load_arrays",
    "mean_loss",
    "read_arrays",
    "train_locally",
    "warm_up",
]
