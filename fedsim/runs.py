"""A run: an experiment in a directory of its own, begun or gone on with, and always ended."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from fedsim.config import Experiment, differences, flatten, from_flat, read_toml
from fedsim.errors import ConfigError, LedgerError
from fedsim.ledger import files
from fedsim.ledger.lock import is_held
from fedsim.ledger.manifest import new_manifest
from fedsim.ledger.store import Ledger

RUNS_VARIABLE = "FEDSIM_RUNS_DIR"
ROUND_THREADS = 1  # torch's, at the server and at every client: more would change the bits


def runs_root() -> Path:
    """Return where runs lie by default: $FEDSIM_RUNS_DIR, or ``runs`` in this directory."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs")


def new_directory(name: str) -> Path:
    """Return a directory for a new run that nobody uses yet; it is not made."""
    stem = runs_root() / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    candidates = itertools.chain([stem], (Path(f"{stem}-{n}") for n in itertools.count(2)))
    return next(path for path in candidates if not path.exists())


def holds_run(directory: Path) -> bool:
    """Say whether a run was begun in a directory."""
    return (directory / "ledger.sqlite").is_file()


def forget_torn(directory: Path) -> None:
    """Remove what a process left that was killed while it began a run, before the manifest.

    There is no round in it, and nothing that a resume could go on with.
    """
    if (directory / files.MANIFEST).is_file() or is_held(directory / files.LOCK):
        return
    files.remove(directory, files.CONFIG, f"{files.LEDGER}*", files.PARTS)


def stored_experiment(directory: Path) -> Experiment:
    """Return the experiment of a run as it was resolved.

    Raises:
        LedgerError: there is no run, or its config.toml is damaged.
    """
    path = directory / "config.toml"
    if not path.is_file():
        raise LedgerError(f"{directory} holds no run: it has no config.toml")
    try:
        return from_flat(flatten(read_toml(path)), vocabulary={})
    except ConfigError as error:
        raise LedgerError(f"{path} is damaged: {error}") from error


@contextmanager
def open_run(
    experiment: Experiment, *, about: Mapping[str, object] | None = None
) -> Iterator[Ledger]:
    """Begin the run in ``run.out``, or go on with it, and write down how it ended.

    Args:
        experiment: complete and checked.
        about: what else the manifest says of the engine of a new run; JSON values.

    Raises:
        RunExists: a new run was asked for where there is one.
        ConfigError: the run there is of another experiment; each difference is a line.
        LedgerError: the directory cannot be written or read.
    """
    where = experiment.run
    directory = Path(where.out) if where.out else new_directory(experiment.experiment.name)
    ledger = (
        resume(directory, experiment)
        if where.resume
        else create(directory, experiment, about or {})
    )
    with ledger:
        try:
            yield ledger
        except KeyboardInterrupt:
            ledger.finish("interrupted")
            raise
        except Exception as error:
            ledger.finish("failed", error=str(error))
            raise
        ledger.finish("completed")


def create(directory: Path, experiment: Experiment, about: Mapping[str, object]) -> Ledger:
    """Begin a run."""
    engine = {**experiment.tables()["engine"], **about}
    manifest = new_manifest(
        experiment.experiment.name,
        config_hash=experiment.digest(),
        engine=engine,
        rounds_planned=experiment.experiment.rounds,
        threads=ROUND_THREADS,
    )
    tables = {k: v for k, v in experiment.tables().items() if k != "run"}
    tables["run"] = {"data_dir": experiment.run.data_dir}
    return Ledger.create(directory, manifest=manifest, config=tables)


def resume(directory: Path, experiment: Experiment) -> Ledger:
    """Go on with a run, if it is of this very experiment."""
    changed = differences(stored_experiment(directory), experiment)
    if changed:
        raise ConfigError(
            [f"{directory} is a run of another experiment and cannot be resumed as this one:"]
            + [f"  {line}" for line in changed]
        )
    return Ledger.resume(directory)
