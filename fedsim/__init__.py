"""Federated learning, measured: what the choice of an activation function costs and buys.

``run_simulation`` runs anybody's Flower apps, ``load`` opens a run for reading. Both are imported
when they are first used, so that importing fedsim costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.engine import run_simulation
    from fedsim.ledger.read import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run_simulation"]

_HOMES = {"load": "fedsim.ledger.read", "run_simulation": "fedsim.engine"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
