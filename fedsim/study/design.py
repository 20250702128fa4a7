"""A study file, and the cells that it asks for."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedsim import config
from fedsim.config import (
    Experiment,
    Vocabulary,
    changes_result,
    fields_by_key,
    flatten,
    nearest_key,
)
from fedsim.errors import ConfigError, nearest

KEYS = ("base", "set", "axes", "seeds", "targets")
DEFAULT_SEEDS = 3
DEFAULT_TARGETS = (0.9,)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study: an arm (a value for each axis) and a seed."""

    arm: tuple[tuple[str, Any], ...]
    seed: int
    experiment: Experiment

    @property
    def label(self) -> str:
        """The arm's values, for people."""
        return ", ".join(str(value) for _, value in self.arm) or "base"

    @property
    def folder(self) -> Path:
        """Where the run lies in the study's directory; unlike arms never share one."""
        parts = [f"{key.rpartition('.')[2]}={quote(str(value), '')}" for key, value in self.arm]
        return Path(",".join(parts) or "base") / f"seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study: its name, its cells in the order they run, and the accuracies it asks about."""

    name: str
    axes: tuple[str, ...]
    seeds: tuple[int, ...]
    targets: tuple[float, ...]
    cells: tuple[Cell, ...]


def read_study(path: Path, overrides: Sequence[str], *, vocabulary: Vocabulary) -> Study:
    """Read a study file and check every cell of it.

    Args:
        path: a TOML file: ``base`` (an experiment file, relative to this one), ``[set]`` (dotted
            keys to values that count more than the base's), ``[axes]`` (dotted keys to lists of
            values), ``seeds`` (how many from the base's on, or a list) and ``targets`` (test
            accuracies).
        overrides: of base and ``[set]``, as on the command line.
        vocabulary: as for :func:`fedsim.config.read`.

    Raises:
        ConfigError: with every problem found in the file and in any cell, a line each.
    """
    raw = config.read_toml(path)
    if "base" not in raw and set(raw) & set(config.TABLES):
        raise ConfigError([f"{path}: is an experiment; use: fedsim run {path}"])
    problems = [f"{key}: unknown key; {nearest(key, KEYS)}" for key in raw if key not in KEYS]
    axes = read_axes(raw.get("axes", {}), problems)
    seeds = read_seeds(raw.get("seeds", DEFAULT_SEEDS), problems)
    targets = read_targets(raw.get("targets", DEFAULT_TARGETS), problems)
    base = read_base(path, raw.get("base"), problems)
    base |= read_settings(raw.get("set", {}), axes, problems)
    problems += [
        f"-s {text}: is an axis of this study; change [axes] instead"
        for text in overrides
        if text.partition("=")[0].strip() in axes
    ]
    if problems:
        raise ConfigError([f"{path}: {line}" for line in problems])
    cells = list(make_cells(base, axes, seeds, overrides, vocabulary))
    return Study(
        name=path.stem,
        axes=tuple(axes),
        seeds=tuple(sorted({cell.seed for cell in cells})),
        targets=targets,
        cells=tuple(cells),
    )


def read_base(path: Path, name: object, problems: list[str]) -> dict[str, Any]:
    """Return the base experiment's keys."""
    if not isinstance(name, str):
        problems.append("base: must name an experiment file")
        return {}
    return flatten(config.read_toml(path.parent / name))


def read_settings(raw: object, axes: Collection[str], problems: list[str]) -> dict[str, Any]:
    """Return what counts more than the base: dotted key to value; the cells check the values."""
    settings = flatten(raw) if isinstance(raw, Mapping) else {}
    if not isinstance(raw, Mapping):
        problems.append("set: must be a table of keys and values")
    for key in settings:
        if key not in fields_by_key():
            problems.append(f"set.{key}: unknown key; {nearest_key(key)}")
        elif key in axes:
            problems.append(f"set.{key}: is an axis of this study too; keep one of them")
    return settings


def read_axes(raw: object, problems: list[str]) -> dict[str, list[Any]]:
    """Return the axes: dotted key to values."""
    axes = flatten(raw) if isinstance(raw, Mapping) else {}
    if not isinstance(raw, Mapping):
        problems.append("axes: must be a table of keys and lists")
    for key, values in axes.items():
        if key not in fields_by_key():
            problems.append(f"axes.{key}: unknown key; {nearest_key(key)}")
        elif key == "experiment.seed":
            problems.append("axes.experiment.seed: seeds are no axis; use seeds = [...]")
        elif not changes_result(key):
            problems.append(f"axes.{key}: changes no result, so it is no axis; use -s {key}=...")
        if not isinstance(values, list) or not values:
            problems.append(f"axes.{key} = {values!r}: must be a list of values")
        elif len({repr(v) for v in values}) < len(values):
            problems.append(f"axes.{key} = {values!r}: names a value twice")
    return axes


def read_seeds(raw: object, problems: list[str]) -> int | list[int]:
    """Return how many seeds, or which."""
    if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 1:
        return raw
    if isinstance(raw, list) and raw and all(type(seed) is int and seed >= 0 for seed in raw):
        return sorted(set(raw))
    problems.append(f"seeds = {raw!r}: must be a number of at least 1, or a list of seeds")
    return 1


def read_targets(raw: object, problems: list[str]) -> tuple[float, ...]:
    """Return the accuracies that are asked about."""
    values: list[Any] = list(raw) if isinstance(raw, (list, tuple)) else [raw]
    if all(type(v) in (int, float) and 0 < v <= 1 for v in values):
        return tuple(float(v) for v in values)
    problems.append(f"targets = {raw!r}: must be test accuracies, above 0 and at most 1")
    return ()


def make_cells(
    base: Mapping[str, Any],
    axes: Mapping[str, list[Any]],
    seeds: int | list[int],
    overrides: Sequence[str],
    vocabulary: Vocabulary,
) -> list[Cell]:
    """Return a cell for each arm and seed, seed by seed, so that every arm has early results.

    Raises:
        ConfigError: with the problems of all cells, each once.
    """
    cells: list[Cell] = []
    problems: dict[str, None] = {}
    for values in itertools.product(*axes.values()):
        arm = tuple(zip(axes, values, strict=True))
        try:
            experiment = config.read(
                None, overrides, vocabulary=vocabulary, base={**base, **dict(arm)}
            )
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
            continue
        first = experiment.experiment.seed
        for seed in range(first, first + seeds) if isinstance(seeds, int) else seeds:
            flat = {**experiment.flat(), "experiment.seed": seed}
            seeded = config.from_flat(flat, vocabulary=vocabulary)
            cells.append(Cell(arm=arm, seed=seed, experiment=seeded))
    if problems:
        raise ConfigError(list(problems))
    return sorted(cells, key=lambda cell: cell.seed)
