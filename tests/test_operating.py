from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.calibration import DOCUMENT, RESULTS, markdown
from fedsim.randomness import stream
from fedsim.study.operating import SHAPES, Rate, covers, differs, found, planted, scenarios

CLI = Callable[..., Any]


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_has_mean_0_and_deviation_1(shape: str) -> None:
    drawn = SHAPES[shape](stream(0, "test"), (400, 500))
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.std() == pytest.approx(1, abs=0.02)


def test_what_is_drawn_depends_on_the_scenario_alone() -> None:
    first, again = (next(scenarios()).run(20) for _ in range(2))
    assert first == again


def test_a_study_of_one_arm_twice_finds_no_difference_but_a_planted_one() -> None:
    noise = stream(1, "test").standard_normal((6, 12))
    assert not differs(noise, 1.0)
    assert differs(noise + 3.0, 1.0)
    assert found(noise[:1] * 0.1, 1.0) == {"within"}
    assert covers(noise[:1], expand=True)
    assert not covers(noise[:1] + 3.0, expand=True)


def test_a_planted_effect_is_studied_with_the_seeds_that_promise_to_find_it() -> None:
    scenario = planted("x", "normal", mean=1.5, margin=0.5)
    assert scenario.seeds == 10  # a one-sided t-test at 2.5% of an effect of one deviation
    rate = scenario.run(60)
    assert 0.6 < rate.share < 0.95


RATE = Rate(
    scenario="s",
    shape="normal",
    seeds=12,
    hits=50,
    repetitions=1000,
    low=0.038,
    high=0.065,
    check="at most",
    promised=0.05,
)


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"promised": 0.049}, False),
        ({"promised": 0.049, "tolerance": 0.01}, True),
        ({"check": "at least", "promised": 0.05}, True),
        ({"check": "at least", "promised": 0.06}, False),
        ({"check": "at least", "promised": 0.06, "tolerance": 0.02}, True),
        ({"check": "within", "promised": 0.06, "tolerance": 0.01}, True),
        ({"check": "within", "promised": 0.08, "tolerance": 0.02}, False),
    ],
)
def test_a_promise_holds_or_it_does_not(changes: dict[str, Any], holds: bool) -> None:
    assert dataclasses.replace(RATE, **changes).holds == holds


def test_the_published_figures_hold_and_stand_in_the_document() -> None:
    names = {field.name for field in dataclasses.fields(Rate)}
    rows = json.loads(RESULTS.read_text())
    rates = [Rate(**{k: v for k, v in row.items() if k in names}) for row in rows]
    assert [(r.scenario, r.shape, r.seeds) for r in rates] == [
        (s.name, s.shape, s.seeds) for s in scenarios()
    ]
    assert all(rate.repetitions >= 2000 for rate in rates)
    assert [rate.scenario for rate in rates if rate.vouched and not rate.holds] == []
    assert sum(rate.vouched for rate in rates) == 7
    assert markdown(rates) in DOCUMENT.read_text()


def test_the_command_says_what_it_found(
    cli: CLI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import fedsim.study.operating as operating

    some = [s for s in scenarios() if s.shape == "normal"][:2]
    monkeypatch.setattr("fedsim.cli.operating.REPETITIONS", 30)
    monkeypatch.setattr(operating, "scenarios", lambda: iter(some))
    answer = cli("study", "--calibrate", "--format", "json")
    assert answer.code == 0
    assert [row["repetitions"] for row in answer.json] == [30, 30]
    assert len(answer.err.splitlines()) == 2
    text = cli("study", "--calibrate", "-q")
    assert (text.code, text.err) == (0, "")
    assert "A/A, 6 hypotheses" in text.out
    never = dataclasses.replace(some[0], check="at least", promised=1.0)
    monkeypatch.setattr(operating, "scenarios", lambda: iter([never]))
    broken = cli("study", "--calibrate", "-q")
    assert broken.code == 1
    assert broken.err.startswith("error: A/A, 6 hypotheses")
