"""What measuring costs: how it is compared and told; never how long it took."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from fedsim import overhead
from fedsim.errors import ConfigError
from fedsim.measure.timings import Interval
from fedsim.overhead import BOUNDS, LEVELS, LevelCost, Timed, level_cost, measure_overhead
from fedsim.randomness import stream

CLI = Callable[..., Any]
SHORT = ("--rounds", "1", "--repeats", "5")


@pytest.fixture
def unlike_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run seem to end with another model."""
    counter, load = itertools.count(), overhead.load

    def load_unlike(path: str) -> Any:
        run = load(path)
        object.__setattr__(run.manifest, "model_sha256", f"{next(counter):064x}")
        return run

    monkeypatch.setattr(overhead, "load", load_unlike)


def timed(**seconds: list[float]) -> Timed:
    shares = {level: [0.5, 0.25, 1.0] for level in seconds}
    return Timed(seconds=defaultdict(list, seconds), shares=shares, digests={"a"})


def test_a_level_s_price_by_hand() -> None:
    found = timed(off=[1.0, 2.0, 4.0], light=[1.5, 2.5, 4.5], full=[2.0, 4.0, 8.0])
    off, light, full = (
        level_cost(level, found, BOUNDS.get(level), stream(0, "test")) for level in LEVELS
    )
    assert (off.price, off.measuring_share, off.bound, off.within) == (None, None, None, None)
    assert off.round_seconds.estimate == 2.0
    assert light.round_seconds.estimate == 2.5
    assert light.price is not None
    assert light.price.estimate == 0.25  # of 50%, 25% and 12.5%: compared repeat by repeat
    assert 0.125 <= light.price.low <= 0.25 <= light.price.high <= 0.5
    assert light.measuring_share == 0.5
    assert full.price == Interval(estimate=1.0, low=1.0, high=1.0)
    assert (light.bound, full.bound) == (0.03, 0.25)


@pytest.mark.parametrize(
    ("price", "bound", "within"),
    [(0.03, 0.03, True), (0.031, 0.03, False), (-0.01, 0.03, True), (9.0, None, None)],
)
def test_a_price_keeps_to_its_bound_by_its_estimate(
    price: float, bound: float | None, within: bool | None
) -> None:
    interval = Interval(estimate=price, low=-1.0, high=10.0)
    cost = LevelCost(
        level="light", round_seconds=interval, price=interval, measuring_share=0.0, bound=bound
    )
    assert cost.within is within
    assert cost.as_json()["within"] is within


def test_the_prices_as_a_table(cli: CLI, tiny: tuple[str, ...]) -> None:
    answer = cli("bench", "measure", *tiny, *SHORT)
    assert answer.code == 0
    lines = [line for line in answer.out.splitlines() if line.strip()]
    assert re.split(" {2,}", lines[0].strip()) == [
        *("level", "a round", "price", "clients' measuring", "bound", "within")
    ]
    rows = {line.split()[0]: re.split(" {2,}", line.strip()) for line in lines[2:5]}
    assert list(rows) == ["off", "light", "full"]
    interval = r"-?[\d.,]+{0} \[-?[\d.,]+{0}, -?[\d.,]+{0}\]"
    for level, (_, seconds, price, share, bound, within) in rows.items():
        assert re.fullmatch(interval.format(" [mu]?s"), seconds)
        assert (bound, within) == ("-", "-")  # which are laid down for the 2NN
        if level == "off":
            assert (price, share) == ("-", "-")
        else:
            assert re.fullmatch(interval.format("%"), price)
            assert re.fullmatch(r"[\d.]+%", share)
    assert "medians of 5 runs of 1 rounds" in answer.out
    assert lines[-1] == "the model's bits are the same at every level"
    first, *others = answer.err.splitlines()
    assert first == "run 1/15"
    for number, line in enumerate(others, 2):
        assert re.fullmatch(rf"run {number}/15, about (\d+ min )?[\d.]+ m?s left", line)
    assert len(others) == 14


def test_the_prices_as_json(cli: CLI, tiny: tuple[str, ...]) -> None:
    answer = cli("bench", "measure", *tiny, *SHORT, "--format", "json", "-q")
    assert (answer.code, answer.err) == (0, "")
    document = answer.json
    assert {name: document[name] for name in ("kind", "rounds", "repeats", "same_model")} == {
        **{"kind": "measured", "rounds": 1, "repeats": 5, "same_model": True}
    }
    assert [level["level"] for level in document["levels"]] == list(LEVELS)
    for level in document["levels"]:
        assert set(level) == {
            *("level", "round_seconds", "price", "measuring_share", "bound", "within")
        }
        assert level["round_seconds"]["low"] > 0
        assert level["bound"] is level["within"] is None
        assert (level["price"] is None) == (level["level"] == "off")


def test_the_bounds_are_for_the_2nn(
    cli: CLI, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert 784 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10 == 199_210
    monkeypatch.setattr("fedsim.cli.overhead.PARAMETERS_OF_2NN", parameters)
    monkeypatch.setattr("fedsim.overhead.BOUNDS", {"light": -100.0, "full": 1e9})
    answer = cli("bench", "measure", *tiny, *SHORT, "-q")
    words = [
        line.split()[-1]
        for line in answer.out.splitlines()
        if line.split()[:1] in [[name] for name in LEVELS]
    ]
    assert words == ["-", "no", "yes"]
    levels = cli("bench", "measure", *tiny, *SHORT, "-q", "--format", "json").json["levels"]
    assert [level["within"] for level in levels] == [None, False, True]
    assert [level["bound"] for level in levels] == [None, -100.0, 1e9]


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_measurement_that_changes_the_model_is_a_failure(
    cli: CLI, tiny: tuple[str, ...], unlike_models: None, output: str
) -> None:
    answer = cli("bench", "measure", *tiny, *SHORT, "-q", "--format", output)
    assert answer.code == 1
    assert answer.err.startswith("error: the model's bits differ between the levels: ")
    if output == "json":
        assert answer.json["same_model"] is False
    else:
        assert "the model's bits DIFFER at every level" in answer.out


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (("--rounds", "0"), ["rounds = 0: must be at least 1"]),
        (("--repeats", "1"), ["repeats = 1: must be at least 5"]),
        (
            ("--rounds", "-1", "--repeats", "0"),
            ["rounds = -1: must be at least 1", "repeats = 0: must be at least 5"],
        ),
    ],
)
def test_too_little_to_compare_is_refused(
    cli: CLI, tiny: tuple[str, ...], arguments: tuple[str, ...], lines: list[str]
) -> None:
    answer = cli("bench", "measure", *tiny, *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines() == [f"error: {line}" for line in lines]


def test_the_levels_take_turns_on_one_engine(
    make_experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, ran = [], []
    open_engine, time_run = overhead.open_engine, overhead.time_run

    def opening(experiment: Any) -> Any:
        opened.append(open_engine(experiment))
        return opened[-1]

    def running(experiment: Any, executor: Any, found: Timed) -> None:
        assert executor is opened[0]
        ran.append((experiment.measure.level, experiment.experiment.rounds))
        time_run(experiment, executor, found)

    monkeypatch.setattr(overhead, "open_engine", opening)
    monkeypatch.setattr(overhead, "time_run", running)
    experiment = make_experiment()
    told: list[tuple[int, int, bool]] = []
    found = measure_overhead(
        experiment,
        rounds=2,
        repeats=5,
        bounds={"full": 0.5},
        progress=lambda done, runs, left: told.append((done, runs, left is None)),
    )
    assert len(opened) == 1
    assert {rounds for _, rounds in ran} == {3}  # one more comes first
    levels = [level for level, _ in ran]
    assert [sorted(levels[i : i + 3]) for i in range(0, 15, 3)] == [sorted(LEVELS)] * 5
    assert told == [(done, 15, done == 0) for done in range(15)]
    assert [level.bound for level in found.levels] == [None, None, 0.5]
    with pytest.raises(ConfigError):
        measure_overhead(experiment, rounds=1, repeats=1, bounds={})
