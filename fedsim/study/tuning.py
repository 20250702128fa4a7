"""Choosing values for each arm by itself: a grid that grows until the best point is inside it.

A grid of ratio 10^(1/3) (McMahan et al. 2017, section 3, use it too) begins with three points and
is extended on the side of its best one until that has a neighbour on either side. The whole curve
is kept: how wide its good part is, is a result of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsim.config import fields_by_key
from fedsim.study.design import Tune, Values
from fedsim.study.endpoints import endpoint_of
from fedsim.values import range_problem

STEPS_PER_DECADE = 3
MOST_STEPS = 9  # three decades either way; who is not inside by then has no optimum there
ROUNDED = 0.01  # of a step, at the most, that three digits are away from their power
GOOD_POINTS = 0.01  # of accuracy below the best: still in the good window ...
GOOD_SHARE = 0.1  # ... and of a cost above the best

Place = tuple[int, ...]  # steps from the start of each grid, then the number of each choice


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What the tuning runs gave at one point, over the tuning seeds.

    ``badness`` is what the endpoint came to, the less the better: the mean, or of a cost the mean
    of its logarithm; infinite where a run failed. ``accuracy`` is the mean of the best accuracies,
    which decides between points that are equally bad, such as where no run reached a target.
    """

    point: Values
    badness: float
    accuracy: float
    runs: int
    failed: int

    @property
    def order(self) -> tuple[float, float]:
        """What points are sorted by, the best first."""
        return self.badness, -self.accuracy


@dataclass(frozen=True, kw_only=True)
class Curve:
    """All points that were tried for an arm.

    ``best`` is None as long as that is not known; ``problem`` says why it will never be. ``grids``
    are the keys with numbers that grow; badness within ``tolerance`` of the best is good as well.
    """

    arm: Values
    tried: tuple[Tried, ...]
    grids: tuple[str, ...] = ()
    tolerance: float = GOOD_POINTS
    best: Values | None = None
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the curve as JSON values; what is infinite, where a run failed, is None."""
        return {
            "arm": dict(self.arm),
            "best": None if self.best is None else dict(self.best),
            "problem": self.problem or None,
            "windows": {key: self.window(key) for key in self.grids if self.best},
            "tried": [
                {
                    "point": dict(t.point),
                    "badness": t.badness if math.isfinite(t.badness) else None,
                    "accuracy": t.accuracy,
                    "runs": t.runs,
                    "failed": t.failed,
                }
                for t in self.tried
            ],
        }

    def line(self, key: str) -> list[tuple[float, float]]:
        """Return a grid's values and how bad each is, other values being the best ones.

        Values with which a run failed are left out.
        """
        others = [(k, v) for k, v in self.best or () if k != key]
        return sorted(
            (dict(t.point)[key], t.badness)
            for t in self.tried
            if not t.failed and [(k, v) for k, v in t.point if k != key] == others
        )

    def window(self, key: str) -> tuple[float, float] | None:
        """Return the range of a grid's values that are about as good as the best one.

        It is the unbroken range around the best point; None where none was chosen.
        """
        if self.best is None:
            return None
        line = self.line(key)
        best = min(range(len(line)), key=lambda i: line[i][1])
        limit = line[best][1] + self.tolerance
        low = high = best
        while low > 0 and line[low - 1][1] <= limit:
            low -= 1
        while high + 1 < len(line) and line[high + 1][1] <= limit:
            high += 1
        return line[low][0], line[high][0]


def grid_value(start: float, steps: int) -> float:
    """Return a value of the grid, to three significant digits: 0.1, 0.215, 0.464, 1.

    A start that is such a rounded power of ten itself stands for the power, so that grids with
    unlike starts share their values.
    """
    exact = math.log10(start) * STEPS_PER_DECADE
    power = round(exact) if abs(round(exact) - exact) < ROUNDED else exact
    return float(f"{10 ** ((power + steps) / STEPS_PER_DECADE):.3g}")


def point_at(tune: Tune, place: Place) -> Values:
    """Return the values at a place."""
    grids = list(tune.grids.items())
    values = [(key, grid_value(start, n)) for (key, start), n in zip(grids, place, strict=False)]
    chosen = zip(tune.choices.items(), place[len(grids) :], strict=True)
    return tuple(values) + tuple((key, options[n]) for (key, options), n in chosen)


def first_places(tune: Tune) -> list[Place]:
    """Return where the search begins: three steps of each grid, and every choice."""
    steps = [(-1, 0, 1)] * len(tune.grids)
    places = itertools.product(*steps, *(range(len(v)) for v in tune.choices.values()))
    return [place for place in places if is_allowed(tune, place)]


def neighbours(tune: Tune, place: Place) -> Iterator[Place]:
    """Yield the places one step away along each grid."""
    for axis in range(len(tune.grids)):
        for step in (-1, 1):
            moved = (*place[:axis], place[axis] + step, *place[axis + 1 :])
            if abs(moved[axis]) <= MOST_STEPS and is_allowed(tune, moved):
                yield moved


def is_allowed(tune: Tune, place: Place) -> bool:
    """Say whether every value of a grid may be set: where a key's range ends, so does its grid."""
    known, point = fields_by_key(), dict(point_at(tune, place))
    return not any(range_problem(key, point[key], known[key]) for key in tune.grids)


def search(
    tune: Tune, arm: Values, tried: Callable[[Values], Tried | None]
) -> tuple[Curve, list[Values]]:
    """Return the curve so far, and the points that are to be tried next; none: it is decided.

    What is next depends on what was found alone, not on when: a search that is taken up again
    goes the same way.

    Args:
        tune: the plan.
        arm: what is tuned.
        tried: from a point to what it gave, or None as long as that is not known.
    """
    found: dict[Place, Tried] = {}
    wanted = first_places(tune)
    while wanted:
        known = {place: result for place in wanted if (result := tried(point_at(tune, place)))}
        found |= known
        curve = Curve(
            arm=arm, tried=ordered(found), grids=tuple(tune.grids), tolerance=tolerance_of(tune)
        )
        if missing := [point_at(tune, place) for place in wanted if place not in known]:
            return curve, missing
        best = min(found, key=lambda place: (found[place].order, place))
        wanted = [place for place in neighbours(tune, best) if place not in found]
    return settled(tune, curve, best), []


def settled(tune: Tune, curve: Curve, best: Place) -> Curve:
    """Return the curve with its best point, or with why there is none."""
    point = point_at(tune, best)
    inside = list(neighbours(tune, best))
    edge = [
        f"{key} = {dict(point)[key]:g}"
        for axis, key in enumerate(tune.grids)
        if sum(place[axis] != best[axis] for place in inside) < 2
    ]
    if all(math.isinf(t.badness) for t in curve.tried):
        problem = "no tuning run gave a figure"
    elif edge:
        problem = f"the best point is at the end of the grid, {', '.join(edge)}"
    else:
        problem = ""
    return replace(curve, best=None if problem else point, problem=problem)


def tolerance_of(tune: Tune) -> float:
    """Return how much worse than the best a point may be, and still be good."""
    endpoint = endpoint_of(tune.endpoint)
    ratio = endpoint is not None and endpoint.scale == "ratio"
    return math.log1p(GOOD_SHARE) if ratio else GOOD_POINTS


def ordered(found: Mapping[Place, Tried]) -> tuple[Tried, ...]:
    """Return what was tried in the order of the grid."""
    return tuple(found[place] for place in sorted(found))


def summed_up(point: Values, values: Sequence[tuple[float, float]], failed: int) -> Tried:
    """Return what the runs at a point came to, from each one's badness and best accuracy."""
    badness = [b for b, _ in values] + [math.inf] * failed
    finite = all(map(math.isfinite, badness)) and badness
    return Tried(
        point=point,
        badness=math.fsum(badness) / len(badness) if finite else math.inf,
        accuracy=math.fsum(a for _, a in values) / len(values) if values else 0.0,
        runs=len(badness),
        failed=failed,
    )
