"""The peers' environment, apart from the project's own; kept until its list changes.

fedsim and Flower run in the project's environment, with the versions that ``constraints.txt``
names; the plain loops and pfl-research run in this one, on the same torch, NumPy and JAX.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BENCH = ROOT / ".venv-bench"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def python(environment: str) -> str:
    """Return the interpreter of ``project`` or ``bench``."""
    return sys.executable if environment == "project" else str(BENCH / "bin" / "python")


def prepare() -> None:
    """Install the peers, unless that is done: some minutes, and 1.6 GB on the disk."""
    stamp, wanted = BENCH / ".requirements", REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing the peers into {BENCH.name}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(BENCH)], check=True)
    (BENCH / ".gitignore").write_text("*\n")
    pip = [str(BENCH / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--quiet", "--requirement", str(REQUIREMENTS)], check=True)
    stamp.write_text(wanted)
