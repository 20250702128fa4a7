"""``manifest.json``: what a run is, where it stands, and what it ran on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsim.errors import LedgerError
from fedsim.ledger import files
from fedsim.ledger.formats import FORMAT_VERSION
from fedsim.records import Manifest

DISTRIBUTIONS = ("fedsim", "flwr", "ray", "torch", "jax", "jaxlib", "numpy", "zstandard")
LIBRARIES = ("fedsim", "flwr", "torch")


def new_manifest(
    name: str,
    *,
    config_hash: str,
    engine: Mapping[str, object],
    rounds_planned: int | None = None,
    threads: int | None = None,
) -> Manifest:
    """Describe a run that begins now, in this process; imports none of the libraries it names.

    Args:
        name: the experiment's name.
        config_hash: equal for runs of the same experiment.
        engine: whatever the engine says of itself; JSON values.
        rounds_planned: how many rounds make the run complete.
        threads: how many threads the numeric library was given.
    """
    now = utc_now()
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        status="running",
        created=now,
        updated=now,
        rounds_planned=rounds_planned,
        config_hash=config_hash,
        engine=dict(engine),
        threads=threads,
        pid=os.getpid(),
        command=shlex.join(sys.argv),
        **_environment(),
    )


def resumed(manifest: Manifest, *, wall_seconds: float) -> Manifest:
    """Describe a run that this process takes up again; ``wall_seconds`` were spent on it so far."""
    now, here = utc_now(), _environment()
    changed = {name: value for name, value in here.items() if value != getattr(manifest, name)}
    return replace(
        manifest,
        status="running",
        updated=now,
        finished=None,
        error=None,
        model_sha256=None,
        guarantee=None,  # what was spent until then is not what will have been
        epsilon=None,
        wall_seconds=wall_seconds,
        pid=os.getpid(),
        host=here["host"],
        resumed=(*manifest.resumed, now),
        changed=manifest.changed | ({now: changed} if changed else {}),
    )


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Replace a run's manifest, atomically."""
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    files.write_atomically(directory / files.MANIFEST, text.encode())


def read_manifest(directory: Path) -> Manifest:
    """Read a run's manifest.

    Raises:
        LedgerError: it is missing, damaged, or of a newer format; the message says what to do.
    """
    path = directory / files.MANIFEST
    remedy = (
        f"the rounds in {files.LEDGER} are untouched: restore {files.MANIFEST} from a copy, "
        f"or run {files.CONFIG} again elsewhere"
    )
    if not path.is_file():
        raise LedgerError(f"{path} is missing; {remedy}")
    try:
        values: dict[str, Any] = json.loads(files.read_bytes(path))
        version = values["format_version"]
        if version > FORMAT_VERSION:
            raise LedgerError(
                f"{path}: format {version}, and this fedsim reads up to {FORMAT_VERSION}; "
                f"install fedsim {values['versions']['fedsim'] or ''} or newer"
            )
        return Manifest(**{**values, "resumed": tuple(values["resumed"])})
    except (ValueError, TypeError, KeyError) as error:
        raise LedgerError(f"{path} is damaged ({error}); {remedy}") from error


def utc_now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _environment() -> dict[str, Any]:
    """Collect what may make the same work take another time, or give other bits."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": _cores(),
        "versions": {name: _version(name) for name in DISTRIBUTIONS},
        "commit": _own_commit(),
        "library_paths": {name: _import_path(name) for name in LIBRARIES},
    }


def _processor() -> str:
    """Name the processor; Python leaves that empty on most Linux systems, so ask the kernel."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))  # what a container or taskset leaves of cpu_count
    return os.cpu_count() or 1


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_path(library: str) -> str | None:
    """Say where a top-level package would be imported from, without importing it."""
    spec = importlib.util.find_spec(library)
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent)


@lru_cache(maxsize=1)
def _own_commit() -> str | None:
    """Name the commit of this fedsim, as it was at first; a study begins many runs."""
    return _commit(Path(__file__).parents[2])


def _commit(checkout: Path) -> str | None:
    """Name the commit of a checkout; an installed package has none, whatever surrounds it."""
    if not (checkout / ".git").exists():
        return None
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        git = subprocess.run(
            ("git", "-C", str(checkout), *describe), capture_output=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.decode().strip()
