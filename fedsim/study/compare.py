"""Runs that were made one by one, at any time, compared as the arms of a study are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.config import changes_result
from fedsim.errors import ConfigError
from fedsim.ledger.read import Run, list_runs, load
from fedsim.runs import holds_run, stored_experiment
from fedsim.study.design import TUNING, Hypothesis, Values, label_of, short
from fedsim.study.endpoints import endpoint_of, endpoint_problem

ENDPOINTS = ("best_accuracy", "area_under_curve", "cpu_seconds", "uplink_bytes")
# What tells two runs of the same arm apart.
OWN = ("experiment.seed", "experiment.name")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs as arms.

    Attributes:
        keys: in which the arms differ.
        arms: the reference first.
        seeds: that every arm has.
        runs: by arm and seed.
        unpaired: seeds that some arm lacks, and which are therefore left out.
    """

    keys: tuple[str, ...]
    arms: tuple[Values, ...]
    seeds: tuple[int, ...]
    runs: Mapping[tuple[Values, int], Path]
    unpaired: tuple[int, ...]

    def hypotheses(self, endpoints: Sequence[str]) -> list[Hypothesis]:
        """Return the claim that each arm is better than the first, in each endpoint.

        Raises:
            ConfigError: an endpoint is unknown, or nobody knows which values of it are better.
        """
        problems = [
            f"--endpoint {name}: {problem}"
            for name in endpoints
            if (problem := endpoint_problem(name, tuned=True) or no_margin(name))
        ]
        if problems:
            raise ConfigError(problems)
        reference, *others = self.arms
        return [
            Hypothesis(
                arm=arm,
                reference=reference,
                endpoint=name,
                claim="better",
                margin=known.margin or math.nan,
                direction=known.direction or "lower",
                scale=known.scale,
            )
            for name in dict.fromkeys(endpoints)
            if (known := endpoint_of(name))
            for arm in others
        ]


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Sort runs into arms, by the settings in which they differ, and pair them by seed.

    Args:
        paths: run directories, or directories that hold runs; the first run's arm is the reference.

    Raises:
        LedgerError: a run is missing or damaged.
        ConfigError: one is not complete, two are the same, or there is nothing to compare.
    """
    runs = [load(path) for path in run_paths(paths)]
    unfinished = [f"{r.path}: {r.status} after {r.last_round} rounds" for r in runs]
    unfinished = [
        line for line, run in zip(unfinished, runs, strict=True) if run.status != "completed"
    ]
    if unfinished:
        raise ConfigError([f"{line}; compare complete runs" for line in unfinished])
    settings = [settings_of(run) for run in runs]
    names = settings[0] if settings else {}
    keys = tuple(
        key for key in names if key not in OWN and len({repr(s.get(key)) for s in settings}) > 1
    )
    found: dict[tuple[Values, int], Path] = {}
    for run, mine in zip(runs, settings, strict=True):
        arm = tuple((key, mine[key]) for key in keys)
        place = (arm, int(mine["experiment.seed"]))
        if place in found:
            raise ConfigError(
                [
                    f"{found[place]} and {run.path} are both {label_of(arm)}, seed {place[1]}: "
                    "pairs need one run of each; leave one out"
                ]
            )
        found[place] = run.path
    arms = tuple(dict.fromkeys(arm for arm, _ in found))
    if len(arms) < 2:
        raise ConfigError(
            ["these runs differ in nothing but their seeds: name runs of at least two arms"]
        )
    every = sorted({seed for _, seed in found})
    common = tuple(seed for seed in every if all((arm, seed) in found for arm in arms))
    if not common:
        raise ConfigError(
            ["no seed was run in every arm, so nothing is paired: run the arms with the same seeds"]
        )
    unpaired = tuple(seed for seed in every if seed not in common)
    return Comparison(keys=keys, arms=arms, seeds=common, runs=found, unpaired=unpaired)


def no_margin(name: str) -> str | None:
    """Say that nobody knows what counts as a difference in an endpoint."""
    known = endpoint_of(name)
    if known is None or known.margin is not None:
        return None
    return "has no margin of its own: write a study, whose hypothesis names one"


def run_paths(paths: Sequence[Path]) -> list[Path]:
    """Return the runs that are named, or lie in what is named."""
    found: list[Path] = []
    for path in paths:
        # What served to tune a study is none of its results.
        below = (
            [path]
            if holds_run(path)
            else [
                run.path for run in list_runs(path) if run.path.relative_to(path).parts[0] != TUNING
            ]
        )
        if not below:
            raise ConfigError([f"{path} holds no run"])
        found += below
    return list(dict.fromkeys(found))


def settings_of(run: Run) -> dict[str, Any]:
    """Return what can change a run's result."""
    flat = stored_experiment(run.path).flat()
    return {key: value for key, value in flat.items() if changes_result(key)}


def more_than_one(comparison: Comparison) -> str:
    """Say that arms differ in several settings, so that nobody knows which of them counts."""
    if len(comparison.keys) < 2:
        return ""
    names = " and ".join(short(key) for key in comparison.keys)
    return f"the arms differ in {names}: nobody can say which of them made a difference"
