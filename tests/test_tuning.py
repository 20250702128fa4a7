from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.study.design import Tune, Values
from fedsim.study.tuning import (
    MOST_STEPS,
    Curve,
    Tried,
    first_places,
    grid_value,
    point_at,
    search,
    summed_up,
)

RATE = "train.learning_rate"
EPOCHS = "train.epochs"
DECAY = "train.weight_decay"
ARM: Values = (("model.activation", "relu"),)
Score = Callable[[dict[str, float]], float]


def plan(
    grids: Mapping[str, float] | None = None, choices: Mapping[str, tuple[int, ...]] | None = None
) -> Tune:
    return Tune(
        grids={RATE: 0.1} if grids is None else grids,
        choices=choices or {},
        seeds=(7, 8),
        endpoint="area_under_curve",
        settings={},
    )


def tried(point: Values, badness: float, accuracy: float = 0.5) -> Tried:
    failed = 0 if math.isfinite(badness) else 2
    return Tried(point=point, badness=badness, accuracy=accuracy, runs=2, failed=failed)


def at(*values: float) -> Values:
    """A point of the rate, and of the decay if there are two values."""
    return tuple(zip((RATE, DECAY), values, strict=False))


def decades(value: float, best: float) -> float:
    """How far a value is from the best one."""
    return math.log10(value) - math.log10(best)


def explore(
    tune: Tune, score: Score, known: Mapping[Values, Tried] | None = None
) -> tuple[Curve, list[list[Values]]]:
    """Search to the end; return the curve, and what was asked for each time."""
    found = dict(known or {})
    asked: list[list[Values]] = []
    while True:
        curve, missing = search(tune, ARM, found.get)
        assert len(asked) < 50
        if not missing:
            return curve, asked
        assert curve.best is None
        assert not curve.problem
        asked.append(missing)
        for point in missing:
            found[point] = tried(point, score(dict(point)))


def quadratic(best: float) -> Score:
    """The further from the best rate, the worse."""
    return lambda point: decades(point[RATE], best) ** 2


def rates(points: list[Values]) -> list[float]:
    return [dict(point)[RATE] for point in points]


# The grid.


def test_a_grid_has_three_points_a_decade() -> None:
    assert [grid_value(0.1, n) for n in range(-3, 5)] == [
        *(0.01, 0.0215, 0.0464, 0.1, 0.215, 0.464, 1.0, 2.15)
    ]


def test_a_grid_that_begins_between_the_powers_keeps_its_own_start() -> None:
    assert [grid_value(0.05, n) for n in range(-3, 4)] == [
        *(0.005, 0.0108, 0.0232, 0.05, 0.108, 0.232, 0.5)
    ]


@given(st.integers(-15, 12), st.integers(-9, 9))
def test_grids_that_begin_at_unlike_powers_share_their_values(start: int, steps: int) -> None:
    here = grid_value(1.0, start)
    assert grid_value(here, 0) == here
    assert grid_value(here, steps) == grid_value(1.0, start + steps)


@given(st.floats(1e-5, 1e3), st.integers(-9, 9))
def test_neighbours_are_a_third_of_a_decade_apart(start: float, steps: int) -> None:
    ratio = grid_value(start, steps + 1) / grid_value(start, steps)
    assert ratio == pytest.approx(10 ** (1 / 3), rel=0.011)


def test_the_search_begins_with_three_steps_of_each_grid_and_every_choice() -> None:
    tune = plan({RATE: 0.1, DECAY: 0.01}, {EPOCHS: (1, 5)})
    places = first_places(tune)
    assert len(set(places)) == len(places) == 3 * 3 * 2
    assert point_at(tune, (-1, 1, 0)) == ((RATE, 0.0464), (DECAY, 0.0215), (EPOCHS, 1))
    assert {point_at(tune, place) for place in places} == {
        ((RATE, rate), (DECAY, decay), (EPOCHS, epochs))
        for rate in (0.0464, 0.1, 0.215)
        for decay in (0.00464, 0.01, 0.0215)
        for epochs in (1, 5)
    }


# The search.


def test_a_best_point_between_the_first_three_is_found_at_once() -> None:
    curve, asked = explore(plan(), quadratic(0.1))
    assert [rates(points) for points in asked] == [[0.0464, 0.1, 0.215]]
    assert (curve.arm, curve.best, curve.problem) == (ARM, at(0.1), "")
    assert rates([t.point for t in curve.tried]) == [0.0464, 0.1, 0.215]


@pytest.mark.parametrize(
    ("best", "further"),
    [(1.0, [0.464, 1.0, 2.15]), (0.01, [0.0215, 0.01, 0.00464])],
)
def test_a_grid_grows_until_its_best_point_is_inside(best: float, further: list[float]) -> None:
    curve, asked = explore(plan(), quadratic(best))
    assert [rates(points) for points in asked] == [[0.0464, 0.1, 0.215], *([v] for v in further)]
    assert curve.best == at(best)
    assert rates([t.point for t in curve.tried]) == sorted([0.0464, 0.1, 0.215, *further])


@given(st.floats(-3.6, 1.6))
def test_the_best_point_is_the_nearest_of_the_grid_and_has_neighbours(exponent: float) -> None:
    best = 10**exponent
    curve, asked = explore(plan(), quadratic(best))
    points = [point for points in asked for point in points]
    assert len(points) == len(set(points)) == len(curve.tried)
    grid = [grid_value(0.1, n) for n in range(-MOST_STEPS, MOST_STEPS + 1)]
    nearest = min(grid, key=lambda value: abs(decades(value, best)))
    assert curve.best == at(nearest)
    line = rates([t.point for t in curve.tried])
    assert line == sorted(line)
    assert line[0] < nearest < line[-1]


@settings(deadline=None)
@given(st.floats(-3, 1), st.data())
def test_a_search_that_is_taken_up_again_goes_the_same_way(
    exponent: float, data: st.DataObject
) -> None:
    tune = plan({RATE: 0.1, DECAY: 0.1}, {EPOCHS: (1, 5)})

    def score(point: dict[str, float]) -> float:
        return quadratic(10**exponent)(point) + decades(point[DECAY], 0.01) ** 2 - point[EPOCHS]

    curve, asked = explore(tune, score)
    order = [point for points in asked for point in points]
    kept = data.draw(st.integers(0, len(order)))
    known = {point: tried(point, score(dict(point))) for point in order[:kept]}
    again, rest = explore(tune, score, known)
    assert again == curve
    assert [point for points in rest for point in points] == order[kept:]


def test_nothing_new_is_asked_for_while_one_of_the_points_is_out() -> None:
    known = {point: tried(point, 0.0) for point in (at(0.0464), at(0.215))}
    curve, missing = search(plan(), ARM, known.get)
    assert missing == [at(0.1)]
    assert [t.point for t in curve.tried] == [at(0.0464), at(0.215)]
    assert (curve.best, curve.problem) == (None, "")


def test_two_grids_and_a_choice_are_searched_together() -> None:
    tune = plan({RATE: 0.1, DECAY: 0.1}, {EPOCHS: (1, 5, 20)})

    def score(point: dict[str, float]) -> float:
        distance = decades(point[RATE], 0.464) ** 2 + decades(point[DECAY], 0.01) ** 2
        return distance + (0 if point[EPOCHS] == 5 else 3)

    curve, asked = explore(tune, score)
    assert len(asked[0]) == 27
    assert curve.best == ((RATE, 0.464), (DECAY, 0.01), (EPOCHS, 5))
    there = {t.point for t in curve.tried}
    for rate, decay in ((0.215, 0.01), (1.0, 0.01), (0.464, 0.00464), (0.464, 0.0215)):
        assert ((RATE, rate), (DECAY, decay), (EPOCHS, 5)) in there
    further = [point for points in asked[1:] for point in points]
    assert {dict(point)[EPOCHS] for point in further} == {5}  # the others were worse at once
    assert len(there) == 27 + len(further)


def test_choices_alone_are_all_tried_and_nothing_is_extended() -> None:
    tune = plan({}, {EPOCHS: (1, 5, 20)})
    curve, asked = explore(tune, lambda point: -point[EPOCHS])
    assert asked == [[((EPOCHS, 1),), ((EPOCHS, 5),), ((EPOCHS, 20),)]]
    assert (curve.best, curve.problem) == (((EPOCHS, 20),), "")


@pytest.mark.parametrize(("best", "end"), [(1e9, "100"), (1e-9, "0.0001")])
def test_a_grid_ends_after_three_decades(best: float, end: str) -> None:
    curve, asked = explore(plan(), quadratic(best))
    assert curve.best is None
    assert curve.problem == f"the best point is at the end of the grid, {RATE} = {end}"
    assert len(curve.tried) == 3 + MOST_STEPS - 1
    assert all(len(points) == 1 for points in asked[1:])


def test_only_the_grid_that_ends_is_named() -> None:
    def score(point: dict[str, float]) -> float:
        return decades(point[RATE], 0.1) ** 2 + decades(point[DECAY], 1e-9) ** 2

    curve, _ = explore(plan({RATE: 0.1, DECAY: 0.1}), score)
    assert curve.problem == f"the best point is at the end of the grid, {DECAY} = 0.0001"


def test_where_every_run_fails_nothing_is_best() -> None:
    curve, _ = explore(plan(), lambda point: math.inf)
    assert (curve.best, curve.problem) == (None, "no tuning run gave a figure")


def test_a_point_where_a_run_failed_is_worse_than_any_other() -> None:
    curve, _ = explore(plan(), lambda point: math.inf if point[RATE] > 0.1 else -point[RATE])
    assert curve.best == at(0.1)


def test_equally_bad_points_are_told_apart_by_their_accuracy() -> None:
    accuracies = {0.0464: 0.3, 0.1: 0.4, 0.215: 0.6, 0.464: 0.5}
    known = {at(rate): tried(at(rate), 40.0, accuracy) for rate, accuracy in accuracies.items()}
    curve, missing = search(plan(), ARM, known.get)
    assert missing == []
    assert curve.best == at(0.215)
    worse = {**known, at(0.215): tried(at(0.215), 41.0, 0.9)}
    assert search(plan(), ARM, worse.get)[0].best == at(0.1)  # accuracy is for ties alone


# What a point came to.


def test_a_point_is_the_mean_of_its_runs() -> None:
    assert summed_up(at(0.1), [(1.0, 0.5), (2.0, 0.75)], 0) == Tried(
        point=at(0.1), badness=1.5, accuracy=0.625, runs=2, failed=0
    )


def test_a_point_of_which_a_run_failed_is_infinitely_bad() -> None:
    found = summed_up(at(0.1), [(1.0, 0.5), (2.0, 0.75)], 1)
    assert (found.badness, found.runs, found.failed) == (math.inf, 3, 1)
    assert found.accuracy == 0.625  # of those that ended
    nothing = summed_up(at(0.1), [], 3)
    assert (nothing.badness, nothing.accuracy, nothing.runs, nothing.failed) == (math.inf, 0, 3, 3)


def test_a_run_without_the_figure_is_infinitely_bad_but_did_not_fail() -> None:
    found = summed_up(at(0.1), [(1.0, 0.5), (math.inf, 0.75)], 0)
    assert (found.badness, found.accuracy, found.failed) == (math.inf, 0.625, 0)


# The curve.


def curve_of(accuracies: Mapping[float, float], best: float | None) -> Curve:
    found = tuple(tried(at(rate), -accuracy, accuracy) for rate, accuracy in accuracies.items())
    return Curve(arm=ARM, tried=found, best=None if best is None else at(best))


@pytest.mark.parametrize(
    ("accuracies", "window"),
    [
        ({0.01: 0.5, 0.1: 0.9, 1.0: 0.6}, (0.1, 0.1)),
        ({0.01: 0.895, 0.1: 0.9, 1.0: 0.6}, (0.01, 0.1)),
        ({0.01: 0.895, 0.1: 0.9, 1.0: 0.892}, (0.01, 1.0)),  # to both ends of the grid
        ({0.001: 0.899, 0.01: 0.8, 0.1: 0.9, 1.0: 0.889}, (0.1, 0.1)),  # unbroken, and no further
    ],
)
def test_a_window_is_what_is_within_a_point_of_the_best(
    accuracies: dict[float, float], window: tuple[float, float]
) -> None:
    assert curve_of(accuracies, 0.1).window(RATE) == window


def test_a_window_is_around_the_most_accurate_point_even_where_another_is_best() -> None:
    curve = curve_of({0.01: 0.5, 0.1: 0.8, 0.215: 0.9, 1.0: 0.895}, 0.1)
    assert curve.window(RATE) == (0.215, 1.0)


def test_a_window_takes_the_best_of_what_else_is_tuned() -> None:
    found = tuple(
        tried(at(rate, decay), -accuracy, accuracy)
        for rate, decay, accuracy in (
            *((0.0464, 0.1, 0.90), (0.1, 0.1, 0.90), (0.215, 0.1, 0.5)),
            *((0.0464, 1.0, 0.50), (0.1, 1.0, 0.91), (0.215, 1.0, 0.905)),
        )
    )
    curve = Curve(arm=ARM, tried=found, best=at(0.1, 1.0))
    assert curve.line(RATE) == [(0.0464, -0.5), (0.1, -0.91), (0.215, -0.905)]
    assert (curve.window(RATE), curve.window(DECAY)) == ((0.1, 0.215), (0.1, 1.0))


def test_without_a_best_point_there_is_no_window() -> None:
    curve = curve_of({0.01: 0.5, 0.1: 0.9}, None)
    assert curve.window(RATE) is None
    assert curve.as_json()["windows"] == {}


def test_a_curve_is_json_even_where_runs_failed() -> None:
    tune = plan({RATE: 0.1}, {EPOCHS: (1, 5)})
    curve, _ = explore(
        tune,
        lambda point: (
            math.inf if point[RATE] > 0.2 else quadratic(0.1)(point) + 0.25 * point[EPOCHS]
        ),
    )
    document = json.loads(json.dumps(curve.as_json(), allow_nan=False))
    assert document["arm"] == dict(ARM)
    assert document["best"] == {RATE: 0.1, EPOCHS: 1}
    assert document["problem"] is None
    assert document["windows"] == {RATE: [0.1, 0.1]}
    assert [(t["point"], t["failed"]) for t in document["tried"]] == [
        ({RATE: rate, EPOCHS: epochs}, 2 * (rate > 0.2))
        for rate in (0.0464, 0.1, 0.215)
        for epochs in (1, 5)
    ]
    assert [t["badness"] for t in document["tried"]][-3:] == [1.25, None, None]


def test_a_curve_without_a_best_point_is_json_too() -> None:
    curve, _ = explore(plan(), lambda point: math.inf)
    document = json.loads(json.dumps(curve.as_json(), allow_nan=False))
    assert (document["best"], document["windows"]) == (None, {})
    assert document["problem"] == "no tuning run gave a figure"
    assert {t["badness"] for t in document["tried"]} == {None}


def test_a_best_value_at_the_end_of_its_key_s_range_is_not_inside() -> None:
    momentum = "train.momentum"  # below 1
    curve, _ = explore(plan({momentum: 0.464}), lambda point: -point[momentum])
    tried = [dict(t.point)[momentum] for t in curve.tried]
    assert max(tried) == 0.464  # 1 may not be set
    assert curve.best is None
    assert curve.problem == "the best point is at the end of the grid, train.momentum = 0.464"


def test_a_window_of_a_cost_is_within_a_tenth_of_the_best() -> None:
    tune = dataclasses.replace(plan({RATE: 0.1}), endpoint="rounds_to_0.9")
    rounds = {0.0464: 109.0, 0.1: 100.0, 0.215: 111.0}
    curve, _ = search(
        tune, ARM, lambda point: tried(point, math.log(rounds[dict(point)[RATE]]), 0.9)
    )
    assert curve.window(RATE) == (0.0464, 0.1)
