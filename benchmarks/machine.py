"""Where a measurement was taken: processor, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.environment import REQUIREMENTS, ROOT

PACKAGES = ("torch", "numpy", "flwr", "ray", "jax")


def about() -> dict[str, Any]:
    """Describe this machine and what is installed."""
    peers = dict(re.findall(r"^(pfl)(?:\[\w+\])?==(\S+)", REQUIREMENTS.read_text(), re.MULTILINE))
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {**installed(), **peers},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def installed() -> dict[str, str]:
    """Return the versions of the packages that matter, where they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Return the processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def commit() -> str:
    """Return the checkout's commit, with a plus where files differ from it."""
    told = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=10"]
    done = subprocess.run(told, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def file_name(name: str, cores: int) -> str:
    """Return a file name for a machine, such as ``amd-epyc-9b45-2-cores``."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{words}-{cores}-cores"
