"""What a study is: arms (a value for each axis), seeds, tuning, hypotheses; and its cells."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from fedsim import config
from fedsim.config import Experiment, Vocabulary
from fedsim.errors import ConfigError

# A value for each of some keys: of the axes, it is an arm; of what is tuned, a point.
Values = tuple[tuple[str, Any], ...]
Claim = Literal["better", "worse", "equal"]
Split = Literal["validation", "test"]

TUNING = "tuning"  # the directory of the runs that choose


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study: an arm, the values that were tuned for it, and a seed.

    ``tuning`` marks a run that serves to choose such values and is no result.
    """

    arm: Values
    point: Values = ()
    seed: int
    tuning: bool = False
    experiment: Experiment

    @property
    def label(self) -> str:
        """The arm's values, for people."""
        return label_of(self.arm)

    @property
    def folder(self) -> Path:
        """Where the run lies in the study's directory; unlike cells never share one."""
        parts = [Path(TUNING)] if self.tuning else []
        parts.append(Path(folder_of(self.arm) or "base"))
        if self.point:
            parts.append(Path(folder_of(self.point)))
        return Path(*parts) / f"seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Tune:
    """How values are chosen for each arm by itself, see :mod:`fedsim.study.tuning`.

    Attributes:
        grids: dotted key to the value at which a grid of ratio 10^(1/3) begins.
        choices: dotted key to the values that are tried.
        seeds: of the runs that choose; apart from the study's own, but for ``split = "test"``.
        endpoint: what is best at the chosen point.
        split: what that is measured on. "test" is the procedure of older papers, and a study that
            uses it may compare figures, but gives no verdicts.
        validation_fraction: of the training part.
        settings: dotted keys that count more than the base's in these runs.
    """

    grids: Mapping[str, float]
    choices: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    endpoint: str
    split: Split = "validation"
    validation_fraction: float = 0.1
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A claim about one arm beside another, to be decided by their runs.

    Attributes:
        endpoint: see :mod:`fedsim.study.endpoints`.
        claim: what is said of the arm: better, worse, or equal to the reference.
        margin: what counts as a difference: of a difference, in its own units; of a ratio, as a
            share (0.1: beyond 1.1 times, or below 1 / 1.1).
        direction: which values are better.
        scale: whether the two are subtracted or divided.
    """

    arm: Values
    reference: Values
    endpoint: str
    claim: Claim
    margin: float
    direction: Literal["higher", "lower"]
    scale: Literal["difference", "ratio"]

    @property
    def changed(self) -> tuple[str, ...]:
        """The axes in which arm and reference differ."""
        there = dict(self.reference)
        return tuple(key for key, value in self.arm if there[key] != value)

    @property
    def labels(self) -> tuple[str, str, str]:
        """Arm and reference by what tells them apart, and what they share."""
        changed = self.changed
        arm, reference = (
            label_of(tuple((k, v) for k, v in side if k in changed))
            for side in (self.arm, self.reference)
        )
        return arm, reference, named(tuple((k, v) for k, v in self.arm if k not in changed))

    @property
    def text(self) -> str:
        """The hypothesis in words."""
        arm, reference, where = self.labels
        than = {"better": "is better than", "worse": "is worse than", "equal": "equals"}
        at = f", {where}" if where else ""
        return f"{arm} {than[self.claim]} {reference} in {self.endpoint}{at}"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What somebody else found for an arm, to stand beside what this study finds."""

    arm: Values
    endpoint: str
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, complete and checked; ``base`` holds dotted keys, the command line's among them."""

    name: str
    about: str = ""
    base: Mapping[str, Any]
    axes: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    targets: tuple[float, ...]
    tune: Tune | None = None
    hypotheses: tuple[Hypothesis, ...] = ()
    published: tuple[Published, ...] = ()
    budget_seconds: float = 0.0  # of one call, after which no run begins; 0: none
    skipped: tuple[Mapping[str, tuple[Any, ...]], ...] = ()  # combinations that are no arms

    @property
    def arms(self) -> list[Values]:
        """A value for each axis, in every combination but those that are skipped."""
        arms = (
            tuple(zip(self.axes, values, strict=True))
            for values in itertools.product(*self.axes.values())
        )
        return [arm for arm in arms if not self.skips(arm)]

    def skips(self, arm: Values) -> bool:
        """Say whether a combination of values is none of the study's arms."""
        mine = dict(arm)
        return any(all(mine[key] in some[key] for key in some) for some in self.skipped)

    def value(self, arm: Values, key: str) -> Any:
        """Return what a key is in an arm."""
        return {**self.base, **dict(arm)}.get(key, config.fields_by_key()[key].default)

    def cell(self, arm: Values, point: Values, seed: int, vocabulary: Vocabulary) -> Cell:
        """Return the run of an arm whose tuned values are known.

        Raises:
            ConfigError: its experiment cannot run as written.
        """
        flat = {**self.base, **dict(arm), **dict(point), "experiment.seed": seed}
        experiment = config.from_flat(flat, vocabulary=vocabulary)
        return Cell(arm=arm, point=point, seed=seed, experiment=experiment)

    def tuning_cell(self, arm: Values, point: Values, seed: int, vocabulary: Vocabulary) -> Cell:
        """Return a run that tries values for an arm; on the test split it is a result as well.

        Raises:
            ConfigError: its experiment cannot run as written.
        """
        assert self.tune is not None
        if self.tune.split == "test":
            return self.cell(arm, point, seed, vocabulary)
        flat: dict[str, Any] = {
            **self.base,
            "data.validation_fraction": self.tune.validation_fraction,
            **self.tune.settings,
            **dict(arm),
            **dict(point),
            "experiment.seed": seed,
        }
        experiment = config.from_flat(flat, vocabulary=vocabulary)
        return Cell(arm=arm, point=point, seed=seed, tuning=True, experiment=experiment)

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse a study of which an arm cannot run.

        Raises:
            ConfigError: with the problems of all arms, each once.
        """
        problems: dict[str, None] = {}
        for arm in self.arms:
            try:
                for cell in self.first_cells(arm, vocabulary):
                    problems.update(dict.fromkeys(stopping_problems(self, cell.experiment)))
            except ConfigError as error:
                problems.update(dict.fromkeys(error.problems))
        if problems:
            raise ConfigError(list(problems))

    def first_cells(self, arm: Values, vocabulary: Vocabulary) -> Iterator[Cell]:
        """Yield an arm's first run, and those that begin its tuning, one for each choice."""
        point: Values = ()
        if self.tune is not None:
            for chosen in itertools.product(*self.tune.choices.values()):
                choice = zip(self.tune.choices, chosen, strict=True)
                point = (*self.tune.grids.items(), *choice)
                yield self.tuning_cell(arm, point, self.tune.seeds[0], vocabulary)
        yield self.cell(arm, point, self.seeds[0], vocabulary)

    def document(self) -> dict[str, Any]:
        """Return the study as JSON values, from which :func:`study_of` makes it again."""
        return asdict(self)


def study_of(document: Mapping[str, Any]) -> Study:
    """Make a study from its JSON values."""
    tune, hypotheses = document["tune"], document["hypotheses"]
    return Study(
        **{name: document[name] for name in ("name", "about", "base")},
        axes={key: tuple(values) for key, values in document["axes"].items()},
        seeds=tuple(document["seeds"]),
        budget_seconds=document.get("budget_seconds", 0.0),
        targets=tuple(document["targets"]),
        tune=tune
        and Tune(
            **{
                **tune,
                "choices": {key: tuple(values) for key, values in tune["choices"].items()},
                "seeds": tuple(tune["seeds"]),
            }
        ),
        hypotheses=tuple(
            Hypothesis(**{**h, "arm": pairs(h["arm"]), "reference": pairs(h["reference"])})
            for h in hypotheses
        ),
        published=tuple(Published(**{**p, "arm": pairs(p["arm"])}) for p in document["published"]),
        skipped=tuple(
            {key: tuple(values) for key, values in some.items()}
            for some in document.get("skipped", ())
        ),
    )


def pairs(values: Any) -> Values:
    """Return what JSON made lists of as it was."""
    return tuple((key, value) for key, value in values)


def unlike_arms(study: Study, arms: Mapping[Values, Experiment]) -> list[str]:
    """Say which hypotheses are about arms that differ in more than their axis.

    Args:
        study: whose hypotheses are looked at.
        arms: an experiment of each, with everything decided.
    """
    problems: dict[str, None] = {}
    tuned = {*study.tune.grids, *study.tune.choices} if study.tune else set()
    for h in study.hypotheses:
        for line in config.differences(arms[h.reference], arms[h.arm]):
            key = line.partition(":")[0]
            if key not in {*h.changed, *tuned, "experiment.seed"}:
                arm, reference, _ = h.labels
                text = f"{arm} and {reference} would differ in {line} too; set {key} for both"
                problems[text] = None
    return list(problems)


def stopping_problems(study: Study, experiment: Experiment) -> Iterator[str]:
    """Yield the endpoints that runs which stop at a target cannot give."""
    from fedsim.study.endpoints import target_of

    stop = experiment.experiment.stop_at_accuracy
    names = [study.tune.endpoint] if study.tune else []
    names += [h.endpoint for h in study.hypotheses] + [p.endpoint for p in study.published]
    known = {target_of(name) for name in names}
    names += [f"targets: rounds_to_{t:g}" for t in study.targets if t not in known]
    for name in names if stop else []:
        target = target_of(name.removeprefix("targets: "))
        if target is None or target > stop:
            yield (
                f"{name}: experiment.stop_at_accuracy = {stop:g} ends runs before "
                f"that is known; use one such as rounds_to_{stop:g}, or set it to 0"
            )


def label_of(values: Values) -> str:
    """Values for people."""
    return ", ".join(str(value) for _, value in values) or "base"


def named(values: Values) -> str:
    """Values with the names of their keys, such as ``labels_per_client 2``."""
    names = [short(key) for key, _ in values]
    return ", ".join(
        f"{name if names.count(name) == 1 else key} {value}"
        for name, (key, value) in zip(names, values, strict=True)
    )


def short(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def folder_of(values: Values) -> str:
    """Name a directory after values."""
    return ",".join(f"{short(key)}={quote(str(value), '')}" for key, value in values)
