"""``fedsim privacy``: calculators of differential privacy; other files add its other commands."""

from __future__ import annotations

import typer

privacy_app = typer.Typer(
    help="Differential privacy: guarantees by calculation, leakage by measurement.",
    no_args_is_help=True,
)
