"""The study file: from TOML to a checked :class:`Study`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsim import config
from fedsim.config import Vocabulary, changes_result, fields_by_key, flatten, nearest_key
from fedsim.errors import ConfigError, nearest
from fedsim.study.claims import is_among, read_hypotheses, read_published
from fedsim.study.design import Study, Tune, label_of
from fedsim.study.endpoints import endpoint_problem, target_of

KEYS = (
    "about",
    "base",
    "set",
    "axes",
    "skip",
    "seeds",
    "targets",
    "tune",
    "hypothesis",
    "published",
    "budget_seconds",
)
TUNE_KEYS = ("grid", "seeds", "endpoint", "split", "validation_fraction", "set")
DEFAULT_SEEDS = 12
DEFAULT_TUNING_SEEDS = 3
DEFAULT_TARGETS = (0.9,)
FIRST_TUNING_SEED = 1_000_000  # no study counts so far
SPLITS = ("validation", "test")


def read_study(path: Path, overrides: Sequence[str], *, vocabulary: Vocabulary) -> Study:
    """Read a study file and check every arm of it.

    Args:
        path: a TOML file: ``base`` (an experiment file, relative to this one), ``[set]`` (dotted
            keys to values that count more than the base's), ``[axes]`` (dotted keys to lists of
            values), ``[[skip]]`` (combinations of them that are no arms), ``seeds`` (how many from
            the base's on, or a list), ``targets`` (test accuracies; by default those of the
            hypotheses), ``budget_seconds`` (after which no run begins), ``about`` (the question,
            for the report), ``[tune]``, ``[[hypothesis]]`` and ``[[published]]``.
        overrides: of base and ``[set]``, as on the command line.
        vocabulary: as for :func:`fedsim.config.read`.

    Raises:
        ConfigError: with every problem found in the file and in any arm, a line each.
    """
    raw = config.read_toml(path)
    if "base" not in raw and set(raw) & set(config.TABLES):
        raise ConfigError([f"{path}: is an experiment; use: fedsim run {path}"])
    problems = [f"{key}: unknown key; {nearest(key, KEYS)}" for key in raw if key not in KEYS]
    axes = read_axes(raw.get("axes", {}), problems)
    skipped = read_skipped(raw.get("skip", []), axes, problems)
    seeds = read_seeds("seeds", raw.get("seeds", DEFAULT_SEEDS), problems)
    targets = read_targets(raw.get("targets", DEFAULT_TARGETS), problems)
    base = read_base(path, raw.get("base"), problems)
    base |= read_settings("set", raw.get("set", {}), axes, problems)
    problems += [
        f"-s {text}: is an axis of this study; change [axes] instead"
        for text in overrides
        if text.partition("=")[0].strip() in axes
    ]
    base |= read_overrides(overrides, problems)
    first = base.get("experiment.seed", fields_by_key()["experiment.seed"].default)
    counted = settled_seeds(seeds, first if type(first) is int else 0)
    hypotheses = read_hypotheses(raw.get("hypothesis", []), axes, problems)
    if "targets" not in raw:
        asked = (target_of(h.endpoint) for h in hypotheses)
        targets = tuple(dict.fromkeys(t for t in asked if t)) or targets
    published = read_published(raw.get("published", []), axes, problems)
    budget = raw.get("budget_seconds", 0.0)
    if type(budget) not in (int, float) or not 0 <= budget < float("inf"):
        problems.append(f"budget_seconds = {budget!r}: must be a number of at least 0; 0: none")
    tune = read_tune(raw["tune"], axes, counted, problems) if "tune" in raw else None
    if tune and tune.split == "test" and hypotheses:
        problems.append(
            "tune.split = 'test': a verdict needs values that were not chosen by what it is about; "
            "tune on 'validation', or leave the hypotheses out"
        )
    if problems:
        raise ConfigError([f"{path}: {line}" for line in problems])
    study = Study(
        name=path.stem,
        about=str(raw.get("about", "")),
        base=base,
        axes={key: tuple(values) for key, values in axes.items()},
        seeds=counted,
        targets=targets,
        tune=tune,
        hypotheses=hypotheses,
        published=published,
        budget_seconds=budget,
        skipped=skipped,
    )
    study = without_skipped(study, path)
    study.check(vocabulary)
    return study


def without_skipped(study: Study, path: Path) -> Study:
    """Return a study that claims nothing of combinations that it skips.

    Raises:
        ConfigError: it would have no arm, or a publication speaks of what is skipped.
    """
    if not study.arms:
        raise ConfigError([f"{path}: skip: leaves no combination of the axes; skip less"])
    problems = [
        f"{path}: published: {label_of(p.arm)} is skipped; leave it out here, or do not skip it"
        for p in study.published
        if study.skips(p.arm)
    ]
    if problems:
        raise ConfigError(problems)
    told = (h for h in study.hypotheses if not study.skips(h.arm) and not study.skips(h.reference))
    return replace(study, hypotheses=tuple(told))


def read_overrides(overrides: Sequence[str], problems: list[str]) -> dict[str, Any]:
    """Return what the command line says, as dotted keys."""
    found: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if equals:
            found[key.strip()] = config.parse_override(key.strip(), value.strip())
        else:
            problems.append(f"-s {text}: write it as table.key=value")
    return found


def read_base(path: Path, name: object, problems: list[str]) -> dict[str, Any]:
    """Return the base experiment's keys."""
    if not isinstance(name, str):
        problems.append("base: must name an experiment file")
        return {}
    return flatten(config.read_toml(path.parent / name))


def read_settings(
    name: str, raw: object, axes: Collection[str], problems: list[str]
) -> dict[str, Any]:
    """Return what counts more than the base: dotted key to value; the arms check the values."""
    settings = flatten(raw) if isinstance(raw, Mapping) else {}
    if not isinstance(raw, Mapping):
        problems.append(f"{name}: must be a table of keys and values")
    for key in settings:
        if key not in fields_by_key():
            problems.append(f"{name}.{key}: unknown key; {nearest_key(key)}")
        elif key in axes:
            problems.append(f"{name}.{key}: is an axis of this study too; keep one of them")
    return settings


def read_axes(raw: object, problems: list[str]) -> dict[str, list[Any]]:
    """Return the axes: dotted key to values."""
    axes = flatten(raw) if isinstance(raw, Mapping) else {}
    if not isinstance(raw, Mapping):
        problems.append("axes: must be a table of keys and lists")
    for key, values in axes.items():
        problems += [f"axes.{key}{line}" for line in key_problems(key)]
        if not isinstance(values, list) or not values:
            problems.append(f"axes.{key} = {values!r}: must be a list of values")
        elif repeats(values):
            problems.append(f"axes.{key} = {values!r}: names a value twice")
    return axes


def read_skipped(
    raw: object, axes: Mapping[str, Sequence[Any]], problems: list[str]
) -> tuple[dict[str, tuple[Any, ...]], ...]:
    """Return the combinations that are no arms: axes, each with a value or a list of them."""
    found: list[dict[str, tuple[Any, ...]]] = []
    for number, entry in enumerate(raw if isinstance(raw, list) else [raw], 1):
        place = f"skip {number}"
        some = flatten(entry) if isinstance(entry, Mapping) else {}
        if not some:
            problems.append(f"{place}: must be a table of axes and values, [[skip]]")
            continue
        values = {key: tuple(v if isinstance(v, list) else [v]) for key, v in some.items()}
        problems += [
            f"{place}.{key}: is no axis; {nearest(key, axes)}" for key in some.keys() - axes.keys()
        ]
        problems += [
            f"{place}.{key} = {value!r}: the axis has {', '.join(map(str, axes[key]))}"
            for key in some.keys() & axes.keys()
            for value in values[key]
            if not is_among(value, axes[key])
        ]
        found.append(values)
    return tuple(found)


def repeats(values: Sequence[Any]) -> bool:
    """Say whether a list holds a value twice; 1 and 1.0 are the same setting, true is not 1."""
    return len({(isinstance(v, bool), v) for v in values}) < len(values)


def key_problems(key: str) -> list[str]:
    """Say why a key is none that a study can vary."""
    if key not in fields_by_key():
        return [f": unknown key; {nearest_key(key)}"]
    if key == "experiment.seed":
        return [": seeds are no axis; use seeds = [...]"]
    if not changes_result(key):
        return [f": changes no result, so it is no axis; use -s {key}=..."]
    return []


def read_seeds(name: str, raw: object, problems: list[str]) -> int | list[int]:
    """Return how many seeds, or which."""
    if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 1:
        return raw
    if isinstance(raw, list) and raw and all(type(seed) is int and seed >= 0 for seed in raw):
        return sorted(set(raw))
    problems.append(f"{name} = {raw!r}: must be a number of at least 1, or a list of seeds")
    return 1


def read_targets(raw: object, problems: list[str]) -> tuple[float, ...]:
    """Return the accuracies that are asked about."""
    values: list[Any] = list(raw) if isinstance(raw, (list, tuple)) else [raw]
    if all(type(v) in (int, float) and 0 < v <= 1 for v in values):
        return tuple(float(v) for v in values)
    problems.append(f"targets = {raw!r}: must be test accuracies, above 0 and at most 1")
    return ()


def settled_seeds(seeds: int | list[int], first: int) -> tuple[int, ...]:
    """Return the seeds themselves."""
    return tuple(range(first, first + seeds)) if isinstance(seeds, int) else tuple(seeds)


def read_tune(
    raw: object, axes: Collection[str], study_seeds: Sequence[int], problems: list[str]
) -> Tune | None:
    """Return the tuning plan. Its seeds are apart from the study's, but for the test split."""
    if not isinstance(raw, Mapping):
        problems.append("tune: must be a table")
        return None
    problems += [
        f"tune.{key}: unknown key; {nearest(key, TUNE_KEYS)}" for key in raw if key not in TUNE_KEYS
    ]
    grids, choices = read_grid(raw.get("grid", {}), axes, problems)
    split, fraction = raw.get("split", "validation"), raw.get("validation_fraction", 0.1)
    if split not in ("validation", "test"):
        problems.append(f"tune.split = {split!r}: unknown; {nearest(str(split), SPLITS)}")
    if type(fraction) is not float or not 0 < fraction < 1:
        problems.append(f"tune.validation_fraction = {fraction!r}: must be between 0 and 1")
    endpoint = raw.get("endpoint", "area_under_curve")
    if line := endpoint_problem(endpoint, tuned=True):
        problems.append(f"tune.endpoint = {endpoint!r}: {line}")
    seeds = settled_seeds(
        read_seeds("tune.seeds", raw.get("seeds", DEFAULT_TUNING_SEEDS), problems),
        FIRST_TUNING_SEED,
    )
    settings = read_settings("tune.set", raw.get("set", {}), [*axes, *grids, *choices], problems)
    if split == "test":
        problems += [
            f"tune.{key}: with tune.split = 'test' the runs that choose are the study's own"
            for key in ("seeds", "set", "validation_fraction")
            if key in raw
        ]
        seeds = tuple(study_seeds)
    elif common := sorted(set(seeds) & set(study_seeds)):
        problems.append(f"tune.seeds: {common[0]} is a seed of the study too; tune on others")
    return Tune(
        grids=grids,
        choices=choices,
        seeds=seeds,
        endpoint=endpoint,
        split=split,
        validation_fraction=fraction,
        settings=settings,
    )


def read_grid(
    raw: object, axes: Collection[str], problems: list[str]
) -> tuple[dict[str, float], dict[str, tuple[Any, ...]]]:
    """Return the keys that are tuned: those on a grid, and those of which values are listed."""
    keys = flatten(raw) if isinstance(raw, Mapping) else {}
    if not keys:
        problems.append('tune.grid: must name what is tuned, such as "train.learning_rate" = 0.1')
    grids: dict[str, float] = {}
    choices: dict[str, tuple[Any, ...]] = {}
    for key, value in keys.items():
        problems += [f"tune.grid.{key}{line}" for line in key_problems(key)]
        if key in axes:
            problems.append(f"tune.grid.{key}: is an axis of this study too; keep one of them")
        if isinstance(value, list) and value and not repeats(value):
            choices[key] = tuple(value)
        elif type(value) in (int, float) and value > 0:
            grids[key] = float(value)
        else:
            problems.append(
                f"tune.grid.{key} = {value!r}: must be a number above 0 at which a grid begins, or "
                "a list of values"
            )
        declared = fields_by_key().get(key)
        if key in grids and declared is not None and type(declared.default) is not float:
            problems.append(f"tune.grid.{key} = {value!r}: takes whole values; give a list of them")
    return grids, choices
