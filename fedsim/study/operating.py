"""How often the verdicts are wrong: the whole procedure on studies whose truth is known.

Each scenario draws paired values with a known mean, thousands of times, and puts them through the
very code that judges a study: :func:`fedsim.study.statistics.weigh`, Holm's correction, and the
decision. ``fedsim study --calibrate`` runs them; ``docs/statistics.md`` holds the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedsim.randomness import stream
from fedsim.study.statistics import (
    ALPHA,
    LEVEL,
    POWER,
    Evidence,
    holm,
    intervals,
    power,
    seeds_needed,
    weigh,
)

Floats = npt.NDArray[np.float64]
Check = Literal["at most", "at least", "within"]

FAMILY = 6  # hypotheses of a study in the scenarios about false differences
COVERAGE_TOLERANCE = 0.02
POWER_TOLERANCE = 0.03  # the promise is made by a formula, of t-tests alone


def normal(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Draw normal noise."""
    return rng.standard_normal(size)


def heavy(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Draw Student's t with 5 degrees of freedom, scaled to deviation 1."""
    return np.asarray(rng.standard_t(5, size) / math.sqrt(5 / 3))


def skewed(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Draw log-normal noise (sigma 0.5, skewness 1.75), scaled to mean 0 and deviation 1."""
    s2 = 0.25
    raw = rng.lognormal(0.0, math.sqrt(s2), size)
    return np.asarray((raw - math.exp(s2 / 2)) / math.sqrt((math.exp(s2) - 1) * math.exp(s2)))


SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "normal": normal,
    "heavy tails": heavy,
    "skewed": skewed,
}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often something happened in a scenario, and what was promised.

    ``low`` and ``high`` are the 95% interval (Wilson) of the share over the repetitions.
    ``vouched`` says that fedsim stands for the promise; of other lines the figures are told.
    """

    scenario: str
    shape: str
    seeds: int
    hits: int
    repetitions: int
    low: float
    high: float
    check: Check
    promised: float
    tolerance: float = 0.0
    vouched: bool = False

    @property
    def share(self) -> float:
        """How often it happened."""
        return self.hits / self.repetitions

    @property
    def holds(self) -> bool:
        """Whether the promise holds, as far as the repetitions can tell."""
        if self.check == "at most":
            return self.share <= self.promised + self.tolerance
        if self.check == "at least":
            return self.share >= self.promised - self.tolerance
        return abs(self.share - self.promised) <= self.tolerance

    def as_json(self) -> dict[str, Any]:
        """Return the rate as JSON values."""
        return {**asdict(self), "share": self.share, "holds": self.holds}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Studies to be drawn: ``count`` takes their values, shape (hypotheses, seeds), to 0 or 1."""

    name: str
    shape: str
    seeds: int
    hypotheses: int
    mean: float
    count: Callable[[Floats], bool]
    check: Check
    promised: float
    tolerance: float = 0.0
    plain: bool = False  # of what fedsim does not use, to compare with

    @property
    def vouched(self) -> bool:
        """Whether the promise is fedsim's: for noise that is normal, as the tests assume."""
        return self.shape == "normal" and not self.plain

    def run(self, repetitions: int) -> Rate:
        """Draw so many studies."""
        from scipy import stats

        rng = stream(0, f"calibration/{self.name}/{self.shape}/{self.seeds}")
        draw = SHAPES[self.shape]
        hits = sum(
            self.count(self.mean + draw(rng, (self.hypotheses, self.seeds)))
            for _ in range(repetitions)
        )
        share = stats.binomtest(hits, repetitions).proportion_ci(method="wilson")
        return Rate(
            scenario=self.name,
            shape=self.shape,
            seeds=self.seeds,
            hits=hits,
            repetitions=repetitions,
            low=float(share.low),
            high=float(share.high),
            check=self.check,
            promised=self.promised,
            tolerance=self.tolerance,
            vouched=self.vouched,
        )


def scenarios() -> Iterator[Scenario]:
    """Yield what is promised, each as studies with noise of deviation 1.

    Margins are given in deviations of the noise: 0.1 is a study that is far too small, 1 an
    ordinary one.
    """
    for shape in SHAPES:
        for margin in (0.1, 1.0):
            yield Scenario(
                name=f"A/A, {FAMILY} hypotheses, margin {margin:g}: any difference found",
                shape=shape,
                seeds=12,
                hypotheses=FAMILY,
                mean=0.0,
                count=partial(differs, margin=margin),
                check="at most",
                promised=ALPHA,
            )
        yield Scenario(
            name="effect of just the margin: any decision",
            shape=shape,
            seeds=12,
            hypotheses=1,
            mean=1.0,
            count=partial(decides, margin=1.0),
            check="at most",
            promised=ALPHA + ALPHA / 2,  # equivalent (5%), or beyond (2.5%)
            tolerance=COVERAGE_TOLERANCE,
        )
        yield planted("planted difference, margin 0.5", shape, mean=1.5, margin=0.5)
        yield planted("planted equivalence, margin 1", shape, mean=0.1, margin=1.0)
        for seeds in (12, 20):
            for expand in (True, False):
                kind = "expanded BCa" if expand else "plain BCa"
                yield Scenario(
                    name=f"95% interval covers, {kind}",
                    shape=shape,
                    seeds=seeds,
                    hypotheses=1,
                    mean=0.0,
                    count=partial(covers, expand=expand),
                    check="within",
                    promised=LEVEL,
                    tolerance=COVERAGE_TOLERANCE,
                    plain=not expand,
                )


def planted(name: str, shape: str, *, mean: float, margin: float) -> Scenario:
    """Return studies of the size that promises to find an effect in four of five cases."""
    design = Evidence(
        n=2,
        estimate=mean,
        deviation=1.0,
        low=math.nan,
        high=math.nan,
        narrow=(math.nan, math.nan),
        p={},
        margin=margin,
    )
    seeds = seeds_needed(design) or 0
    region = "above" if mean > margin else "within"
    return Scenario(
        name=f"{name}: found (promised {power(design, seeds):.2f})",
        shape=shape,
        seeds=seeds,
        hypotheses=1,
        mean=mean,
        count=partial(finds, margin=margin, region=region),
        check="at least",
        promised=POWER,
        tolerance=POWER_TOLERANCE,
    )


def found(values: Floats, margin: float) -> set[str]:
    """Return what a study of some hypotheses decides, as :mod:`fedsim.study.verdicts` does."""
    evidence = [weigh(row, margin) for row in values]
    adjusted = holm([e.decisive_p for e in evidence])
    return {e.region for e, p in zip(evidence, adjusted, strict=True) if p <= ALPHA}


def decides(values: Floats, margin: float) -> bool:
    """Say whether a study decides anything."""
    return bool(found(values, margin))


def finds(values: Floats, margin: float, region: str) -> bool:
    """Say whether a study finds an effect where it is."""
    return region in found(values, margin)


def differs(values: Floats, margin: float) -> bool:
    """Say whether a study finds any difference."""
    return bool({"above", "below"} & found(values, margin))


def covers(values: Floats, *, expand: bool) -> bool:
    """Say whether the interval of a study's only hypothesis holds the truth, which is 0."""
    ((low, high),) = intervals(values[0], (LEVEL,), expand=expand)
    return low <= 0.0 <= high
