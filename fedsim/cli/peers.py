"""``fedsim bench peers``: fedsim beside Flower's simulation, pfl-research and plain loops."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

import fedsim
from fedsim.errors import ConfigError

ROOT = Path(fedsim.__file__).parent.parent


def peers(context: typer.Context) -> None:
    """Measure fedsim against its peers, side by side; half an hour for everything.

    The suite is part of fedsim's source tree, and installs the peers into an environment of its
    own there. Its options are those of `python -m benchmarks`; the first example lists them.

    Examples:

        fedsim bench peers -- --help
        fedsim bench peers --list
        fedsim bench peers --cases 2nn-b10,small-100 --repeats 2 --out -
        fedsim bench peers --document
    """
    if not (ROOT / "benchmarks" / "__main__.py").is_file():
        raise ConfigError(
            [
                f"{ROOT} holds no benchmarks: the suite is in fedsim's source tree, not in the "
                "installed package; clone it, pip install -e '.[dev]' there, and try again"
            ]
        )
    command = [sys.executable, "-m", "benchmarks", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
