from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim.privacy.audit import SHARES, AuditReport, audit, guess, run
from fedsim.privacy.audit_bound import epsilon_lower_bound, p_value
from fedsim.privacy.audit_checks import Check, orthonormal
from fedsim.privacy.audit_claims import Claims, Floats, Ints, Make, Mechanism

# The bound.


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "expected"),
    [
        (100, 100, 100, 0.0, 3.493),
        (500, 500, 500, 0.0, 5.114),
        (1000, 100, 75, 1e-4, 0.67298),  # the paper's appendix D prints 0.673
        (100_000, 1510, 1439, 1e-5, 2.67585),  # its figure 11 prints 2.675
        (100, 100, 50, 0.0, 0.0),  # as good as coins
        (100, 0, 0, 0.0, 0.0),
        (1000, 10, 10, 0.01, 0.0),  # delta alone explains it
    ],
)
def test_the_bound_of_published_cases(
    canaries: int, guesses: int, correct: int, delta: float, expected: float
) -> None:
    bound = epsilon_lower_bound(canaries=canaries, guesses=guesses, correct=correct, delta=delta)
    assert bound == pytest.approx(expected, abs=5e-4)


def test_all_correct_without_delta_by_hand() -> None:
    """P[all of r are right] = q^r = 0.05, so that epsilon = log(q / (1 - q))."""
    q = 0.05 ** (1 / 100)
    bound = epsilon_lower_bound(canaries=100, guesses=100, correct=100, delta=0)
    assert bound == pytest.approx(math.log(q / (1 - q)), rel=1e-9)


def test_the_p_value_of_two_guesses_by_hand() -> None:
    """Epsilon 0, W ~ Binomial(2, 1/2), v = 2: P[W >= 2] = 1/4; the terms 1/2 / 1 and 3/4 / 2."""
    found = p_value(canaries=4, guesses=2, correct=2, epsilon=0, delta=0.01)
    assert found == pytest.approx(0.25 + 2 * 4 * 0.01 * max(0.5, 0.375))


@given(
    st.integers(1, 60),
    st.integers(0, 60),
    st.integers(0, 60),
    st.floats(0, 6),
    st.floats(0, 1e-3),
)
def test_the_p_value_grows_with_delta_and_falls_with_what_is_right(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> None:
    guesses = min(guesses, canaries)
    correct = min(correct, guesses)
    p = p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
    plain = p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=0)
    assert 0 <= plain <= p <= 1
    if correct:
        fewer = p_value(
            canaries=canaries, guesses=guesses, correct=correct - 1, epsilon=epsilon, delta=0
        )
        assert plain <= fewer


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"canaries": 0, "guesses": 0, "correct": 0}, "canaries = 0"),
        ({"guesses": 101}, "guesses = 101: must be from 0 to the 100 canaries"),
        ({"correct": 51}, "correct = 51: must be from 0 to the 50 guesses"),
        ({"delta": 1.0}, r"delta = 1\.0"),
        ({"confidence": 1.0}, r"confidence = 1\.0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(changes: dict[str, float], text: str) -> None:
    numbers = {"canaries": 100, "guesses": 50, "correct": 40, "delta": 0.0, **changes}
    with pytest.raises(ValueError, match=text):
        epsilon_lower_bound(**numbers)  # type: ignore[arg-type]


def test_the_confidence_holds_where_the_bound_is_sharp() -> None:
    """Randomised response gives each guess the largest chance that epsilon allows."""
    epsilon = 1.0
    right = np.random.default_rng(1).binomial(200, 1 / (1 + math.exp(-epsilon)), 2000)
    bounds = {
        int(v): epsilon_lower_bound(canaries=200, guesses=200, correct=int(v), delta=0)
        for v in np.unique(right)
    }
    beyond = np.mean([bounds[v] > epsilon for v in right.tolist()])
    assert 0.02 < beyond < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


# The mechanism: one that is sound, and the same with faults.


class Plain:
    """The Gaussian mechanism of people sampled at random, written down as simply as can be."""

    def __init__(self, norm: float, claims: Claims, rng: np.random.Generator) -> None:
        self.clipping_norm, self.claims, self.rng = norm, claims, rng

    def sample(self, people: int) -> Ints:
        return np.flatnonzero(self.rng.random(people) < self.claims.sampling_probability)

    def clip(self, contributions: Floats) -> Floats:
        norms = np.linalg.norm(contributions, axis=1, keepdims=True)
        clipped: Floats = contributions * np.minimum(1, self.clipping_norm / (norms + 1e-300))
        return clipped

    def weights(self, examples: Ints) -> Floats:
        return np.ones(len(examples))

    def noise(self, size: int) -> Floats:
        deviation = self.claims.noise_multiplier * self.clipping_norm
        return self.rng.normal(0, deviation, size)

    def step(self, unclipped: float) -> float:
        return -0.2 * (unclipped - (self.claims.target_quantile or 0.5))

    def release(self, contributions: Floats, examples: Ints) -> Floats:
        total = self.weights(examples) @ self.clip(contributions)
        released: Floats = total + self.noise(contributions.shape[1])
        if self.claims.target_quantile is not None:
            inside = np.linalg.norm(contributions, axis=1) <= self.clipping_norm
            count = inside.sum() + self.rng.normal(0, self.claims.cohort / 20)
            self.clipping_norm *= math.exp(self.step(count / self.claims.cohort))
        return released


class NoNoise(Plain):
    def noise(self, size: int) -> Floats:
        return np.zeros(size)


class HalfNoise(Plain):
    def noise(self, size: int) -> Floats:
        return super().noise(size) / 2


class NoiseOnlyWithPeople(Plain):
    def release(self, contributions: Floats, examples: Ints) -> Floats:
        if len(contributions):
            return super().release(contributions, examples)
        return np.zeros(contributions.shape[1])


class NoClipping(Plain):
    def clip(self, contributions: Floats) -> Floats:
        return contributions


class WrongWay(Plain):
    def step(self, unclipped: float) -> float:
        return -super().step(unclipped)


class Stuck(Plain):
    def step(self, unclipped: float) -> float:
        return 0.0


class ByExamples(Plain):
    def weights(self, examples: Ints) -> Floats:
        return examples / examples.mean() if len(examples) else super().weights(examples)


class FixedSize(Plain):
    def sample(self, people: int) -> Ints:
        size = round(self.claims.sampling_probability * people)
        return self.rng.choice(people, size, replace=False)


class TooMany(Plain):
    def sample(self, people: int) -> Ints:
        return np.flatnonzero(self.rng.random(people) < 1.1 * self.claims.sampling_probability)


def gaussian_epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Epsilon of so many Gaussian releases of everybody, exact (Balle and Wang 2018, theorem 8)."""
    mu = math.sqrt(rounds) / noise_multiplier

    def excess(epsilon: float) -> float:
        a, b = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        return float(stats.norm.cdf(a) - math.exp(epsilon) * stats.norm.cdf(b)) - delta

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


CLAIMS = Claims(
    level="user",
    clipping_norm=0.5,
    noise_multiplier=2.0,
    sampling_probability=0.5,
    rounds=10,
    cohort=20,
    delta=1e-5,
    # Of releases of everybody; less is true of samples, and not needed here.
    epsilon=gaussian_epsilon(2.0, 10, 1e-5),
    accountant="Gaussian, everybody in every round",
)
EVERYBODY = dataclasses.replace(CLAIMS, sampling_probability=1.0)
ADAPTIVE = dataclasses.replace(CLAIMS, target_quantile=0.5)


def maker(kind: type[Plain], claims: Claims, seed: int = 0) -> Make:
    rng = np.random.default_rng(seed)
    return lambda norm: kind(norm, claims, rng)


def audited(
    kind: type[Plain], claims: Claims = CLAIMS, *, canaries: int = 60, seed: int = 0
) -> AuditReport:
    return audit(maker(kind, claims, seed), claims, canaries=canaries, seed=seed)


@pytest.mark.parametrize(
    ("kind", "claims", "names"),
    [
        (NoNoise, CLAIMS, {"noise"}),
        (HalfNoise, CLAIMS, {"noise"}),
        (NoiseOnlyWithPeople, CLAIMS, {"noise"}),
        (NoClipping, CLAIMS, {"sensitivity"}),
        (WrongWay, ADAPTIVE, {"adaptive clipping"}),
        (Stuck, ADAPTIVE, {"adaptive clipping"}),
        (ByExamples, CLAIMS, {"equal weights"}),
        (FixedSize, CLAIMS, {"Poisson sampling"}),
        (TooMany, CLAIMS, {"sampling probability"}),
    ],
)
def test_a_planted_fault_is_caught(kind: type[Plain], claims: Claims, names: set[str]) -> None:
    report = audited(kind, claims)
    assert report.contradicted
    assert names <= {check.name for check in report.refuted}
    assert all(check.p_value < 1e-5 for check in report.refuted if check.name in names)


@pytest.mark.parametrize("kind", [NoNoise, NoClipping])
def test_the_bound_alone_refutes_what_is_not_private_at_all(kind: type[Plain]) -> None:
    claims = dataclasses.replace(EVERYBODY, noise_multiplier=20.0, epsilon=0.8)
    make = maker(kind, claims)
    if kind is NoClipping:  # somebody sends more than they may
        loud = Loud(make(claims.clipping_norm))
        report = audit(lambda _: loud, claims, canaries=500, seed=0)
    else:
        report = audit(make, claims, canaries=500, seed=0)
    assert report.epsilon_lower > 2 > claims.epsilon
    assert "the guarantee is CONTRADICTED" in [*report.sentences()][-1]


class Loud:
    """People who contribute a hundred times of what the canaries are."""

    def __init__(self, behind: Mechanism) -> None:
        self.behind = behind

    @property
    def clipping_norm(self) -> float:
        return self.behind.clipping_norm

    def sample(self, people: int) -> Ints:
        return self.behind.sample(people)

    def release(self, contributions: Floats, examples: Ints) -> Floats:
        return self.behind.release(100 * contributions, examples)


def test_the_bound_of_the_sound_mechanism_stays_below_epsilon() -> None:
    """In 95% of 300 runs at least."""
    beyond = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        canaries = EVERYBODY.clipping_norm * orthonormal(60, 120, rng)
        included = rng.random(60) < 0.5
        mechanism = Plain(EVERYBODY.clipping_norm, EVERYBODY, rng)
        scores = run(mechanism, canaries, included, rounds=EVERYBODY.rounds)
        found = guess(scores, included, delta=EVERYBODY.delta, confidence=0.95)
        beyond += max(g.epsilon_lower for g in found) > EVERYBODY.epsilon
    assert beyond <= stats.binom.isf(1e-3, 300, 0.05)


def test_the_sound_mechanism_is_not_contradicted() -> None:
    """Over 200 seeds: bounds beyond epsilon in 5% of them at most, refuted checks in 0.1%."""
    reports = [audited(Plain, ADAPTIVE, canaries=20, seed=seed) for seed in range(200)]
    beyond = sum(r.epsilon_lower > ADAPTIVE.epsilon for r in reports)
    refuted = sum(bool(r.refuted) for r in reports)
    assert beyond <= stats.binom.isf(1e-3, 200, 0.05)
    assert refuted <= stats.binom.isf(1e-3, 200, 0.001)
    # Nor are they tests that never find anything: where a p-value is exact, it is uniform.
    named: dict[str, list[float]] = {}
    for report in reports:
        for check in report.checks:
            named.setdefault(check.name, []).append(check.p_value)
    assert len(named) == 6
    for name in ("noise", "equal weights", "Poisson sampling"):
        assert stats.kstest(named[name], "uniform").pvalue > 1e-3, name
    assert all(np.mean(np.array(p) < 0.05) < 0.11 for p in named.values())


def test_little_noise_gives_a_bound_that_is_near_the_epsilon() -> None:
    """Else the seeds above would say nothing: epsilon 6.9 here, of which a run can show 3.2."""
    claims = dataclasses.replace(
        EVERYBODY, noise_multiplier=0.7, rounds=1, epsilon=gaussian_epsilon(0.7, 1, 1e-5)
    )
    report = audit(maker(Plain, claims), claims, canaries=500, seed=0)
    assert 0.1 * claims.epsilon < report.epsilon_lower < claims.epsilon


def test_the_shares_are_fixed_beforehand_and_share_the_confidence() -> None:
    included = np.arange(100) < 45
    scores = np.where(included, 1.0, 0.0)
    found = [*guess(scores, included, delta=0.0, confidence=0.95)]
    assert [g.guesses for g in found] == [round(100 * share) for share in SHARES] == [10, 40, 80]
    assert [g.correct for g in found] == [10, 40, 80]
    assert found[0].epsilon_lower == epsilon_lower_bound(
        canaries=100, guesses=10, correct=10, delta=0.0, confidence=1 - 0.05 / 3
    )


@pytest.mark.parametrize("canaries", [1, 2, 3])
def test_few_canaries_are_an_audit_too(canaries: int) -> None:
    report = audit(maker(Plain, CLAIMS), CLAIMS, canaries=canaries, seed=0)
    assert report.epsilon_lower < 1


def test_an_example_has_no_weight_to_claim() -> None:
    claims = dataclasses.replace(CLAIMS, level="example")
    assert "equal weights" not in {check.name for check in audited(Plain, claims).checks}


def test_the_report_as_text_and_as_json() -> None:
    report = AuditReport(
        claims=CLAIMS,
        canaries=10,
        confidence=0.95,
        guesses=tuple(guess(np.arange(10.0), np.arange(10) > 4, delta=0.0, confidence=0.95)),
        checks=(
            Check(name="noise", p_value=0.5, sentence="as claimed"),
            Check(name="sensitivity", p_value=1e-9, sentence="too far"),
        ),
        level=0.001,
    )
    lines = [*report.sentences()]
    first = "epsilon is at least 0.403 (95% confidence: 8 of 8 guesses right; 10 canaries can show"
    assert lines[0].startswith(f"{first} 0.403) and at most ")
    assert lines[1:3] == [
        "noise: holds: as claimed; p = 0.5",
        "sensitivity: CONTRADICTED: too far; p = 1e-09",
    ]
    assert lines[3].startswith("a check contradicts below p = 0.0005: in one of 1,000 ")
    assert lines[4].startswith("the mechanism is CONTRADICTED")
    found = json.loads(json.dumps(report.as_json()))
    assert (found["refuted"], found["contradicted"]) == (["sensitivity"], True)
    assert found["epsilon_upper"] == CLAIMS.epsilon


@pytest.mark.parametrize(
    "changes",
    [
        {"clipping_norm": 0.0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
        {"sampling_probability": 0.0},
        {"sampling_probability": 1.1},
        {"rounds": 0},
        {"cohort": 0},
    ],
)
def test_claims_that_no_audit_can_be_about_are_refused(changes: dict[str, float]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        dataclasses.replace(CLAIMS, **changes)  # type: ignore[arg-type]


def test_an_audit_without_canaries_is_refused() -> None:
    with pytest.raises(ValueError, match="canaries = 0"):
        audit(maker(Plain, CLAIMS), CLAIMS, canaries=0, seed=0)
