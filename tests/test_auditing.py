"""The audit of fedsim's own mechanisms, as they are and with faults planted in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim import auditing
from fedsim.auditing import audit_experiment
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.federation import bounded
from fedsim.privacy.audit import AuditReport
from fedsim.privacy.clipping import UNIT, AdaptiveClipping, add_noise
from fedsim.privacy.noise import NoiseSource
from fedsim.spending import spending_of
from fedsim.training import digest
from fedsim.training.private import noised_mean

Make = Callable[..., Experiment]
Cli = Callable[..., Any]

PROMISES: dict[str, dict[str, Any]] = {
    "user": {"level": "user", "noise_multiplier": 2.0},
    "adaptive": {"level": "user", "noise_multiplier": 0.3, "clipping": "adaptive"},
    "example": {"level": "example", "noise_multiplier": 2.0},
}


@pytest.fixture
def promising(make_experiment: Make) -> Callable[..., Experiment]:
    """Return a function from the name of a promise to an experiment that makes it."""

    def make(name: str, *, seed: int = 0, **changes: Any) -> Experiment:
        table = {"clipping_norm": 0.5, "delta": 1e-5, "reproducible_noise": True}
        return make_experiment(
            experiment={"seed": seed, "rounds": 5},
            privacy={**table, **PROMISES[name], **changes},
        )

    return make


def audited(experiment: Experiment, seed: int = 0) -> AuditReport:
    return audit_experiment(experiment, canaries=40, seed=seed)


@pytest.mark.parametrize("name", PROMISES)
@pytest.mark.parametrize("seeds", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_fedsim_keeps_what_it_promises(promising: Make, name: str, seeds: int) -> None:
    """With noise that each seed fixes, so that the answer does not change from day to day."""
    reports = [audited(promising(name, seed=seed), seed) for seed in range(seeds)]
    assert sum(bool(r.refuted) for r in reports) <= stats.binom.isf(1e-3, seeds, 0.001)
    beyond = sum(report.epsilon_lower > report.claims.epsilon for report in reports)
    assert beyond <= stats.binom.isf(1e-3, seeds, 0.05)
    names = {check.name for check in reports[0].checks}
    assert {"noise", "sensitivity", "Poisson sampling", "sampling probability"} <= names
    assert ("equal weights" in names) == (name != "example")
    assert ("adaptive clipping" in names) == (name == "adaptive")


def half_the_noise(arrays: Any, stddev: float, source: NoiseSource) -> Any:
    return add_noise(arrays, stddev / 2, source)


def no_noise(arrays: Any, stddev: float, source: NoiseSource) -> Any:
    return arrays


def no_clipping(norms: np.ndarray, clipping_norm: float) -> np.ndarray:
    return np.full(len(norms), UNIT)


def weights_by_examples(start: Any, result: Any, *, weigh: Any) -> Any:
    return digest(start, result, weigh=lambda norms: weigh(norms) * result.examples)


def fixed_size(source: NoiseSource, *, clients: int, probability: float) -> list[int]:
    order = np.argsort(source.uniform(clients))
    return sorted(order[: round(clients * probability)].tolist())


@pytest.mark.parametrize(
    ("place", "fault", "name"),
    [
        ((bounded, "add_noise"), no_noise, "noise"),
        ((bounded, "add_noise"), half_the_noise, "noise"),
        ((auditing, "clip_weights"), no_clipping, "sensitivity"),
        ((auditing, "digest"), weights_by_examples, "equal weights"),
        ((auditing, "draw_clients"), fixed_size, "Poisson sampling"),
    ],
)
def test_a_fault_in_the_federation_is_caught(
    promising: Make,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[Any, str],
    fault: Any,
    name: str,
) -> None:
    monkeypatch.setattr(*place, fault)
    assert name in {check.name for check in audited(promising("user")).refuted}


def test_a_quantile_that_is_followed_the_wrong_way_is_caught(
    promising: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = AdaptiveClipping.updated

    def wrong_way(self: AdaptiveClipping, **seen: Any) -> AdaptiveClipping:
        after = sound(self, **seen)
        return replace(after, clipping_norm=self.clipping_norm**2 / after.clipping_norm)

    monkeypatch.setattr(AdaptiveClipping, "updated", wrong_way)
    assert [c.name for c in audited(promising("adaptive")).refuted] == ["adaptive clipping"]


def less_noise(factor: float) -> Any:
    def noised(sums: Any, expected: int, *, deviation: float, source: Any) -> Any:
        return noised_mean(sums, expected, deviation=factor * deviation, source=source)

    return noised


def unclipped(model: Any, shape: Any) -> Any:
    def summed(model: Any, x: torch.Tensor, y: torch.Tensor, norm: float) -> Any:
        gradient = (x / 2).sum(0)
        return [torch.stack([-gradient, gradient])], x.new_zeros(len(x))

    return summed


def fixed_batches(examples: int, *, expected: int, steps: int, source: Any) -> Iterator[Any]:
    for _ in range(steps):
        yield torch.from_numpy(np.argsort(source.uniform(examples))[:expected])


@pytest.mark.parametrize(
    ("part", "fault", "name"),
    [
        ("noised_mean", less_noise(0.0), "noise"),
        ("noised_mean", less_noise(0.5), "noise"),
        ("sum_for", unclipped, "sensitivity"),
        ("poisson_batches", fixed_batches, "Poisson sampling"),
    ],
)
def test_a_fault_in_dp_sgd_is_caught(
    promising: Make, monkeypatch: pytest.MonkeyPatch, part: str, fault: Any, name: str
) -> None:
    monkeypatch.setattr(auditing, part, fault)
    assert [check.name for check in audited(promising("example")).refuted] == [name]


def test_a_contribution_is_released_as_it_was(promising: Make) -> None:
    """Noise aside, both mechanisms give back a sum of clipped contributions."""
    given = np.array([[3.0, 0, 4, 0], [0, 0.1, 0, 0]])
    wanted = np.array([0.3, 0.1, 0.4, 0])
    for name in ("user", "example"):
        experiment = promising(name)
        claims = auditing.claims_of(experiment, spending(experiment))
        made = auditing.MAKERS[experiment.privacy.level](experiment, claims, 1e-9)(0.5)
        assert made.release(given, np.array([1, 7])) == pytest.approx(wanted, abs=1e-6)


def spending(experiment: Experiment) -> Any:
    found = spending_of(experiment, clients=8, sizes=np.full(8, 180), choose=lambda _: [0, 1, 2, 3])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"level": "local"}, r"privacy\.level = 'local': there is nothing to audit"),
        ({"noise_by": "clients"}, r"privacy\.noise_by = 'clients'"),
        ({"noise_cohort": 100}, r"privacy\.noise_cohort = 100"),
    ],
)
def test_what_is_no_mechanism_of_an_audit_is_refused(
    promising: Make, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        audited(promising("user", **changes))


def test_without_a_promise_there_is_nothing_to_audit(make_experiment: Make) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.level = 'none'"):
        audited(make_experiment())


FEW = ("--canaries", 20, "-s", "experiment.rounds=2", "-s", "privacy.reproducible_noise=true")


def test_the_command_prints_both_bounds(cli: Cli) -> None:
    answer = cli("privacy", "audit", *FEW)
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0].startswith("level user: clipping norm 1, noise of 1 clipping norms, 2 releases")
    assert lines[1].startswith("epsilon is at least ")
    assert lines[-1] == "nothing contradicts the guarantee, which is no proof of it"


def test_the_command_s_json(cli: Cli) -> None:
    found = cli("privacy", "audit", "--level", "example", *FEW, "--format", "json").json
    assert found["claims"]["level"] == "example"
    assert found["epsilon_lower"] <= found["epsilon_upper"] == found["claims"]["epsilon"]
    assert found["contradicted"] is False


def test_the_command_fails_where_the_promise_does(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "add_noise", no_noise)
    answer = cli("privacy", "audit", *FEW)
    assert answer.code == 1
    assert "the promise is contradicted by: noise" in answer.err
    assert "noise: CONTRADICTED" in answer.out


def test_the_command_says_what_it_cannot_audit(cli: Cli) -> None:
    answer = cli("privacy", "audit", "--level", "none")
    assert answer.code == 2
    assert "privacy.level = 'none'" in answer.err
