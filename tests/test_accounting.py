"""Epsilon against published cases, Opacus and the closed form; the sentence; the calculators."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim.errors import PrivacyError
from fedsim.privacy import accounting
from fedsim.privacy.accountants import INTERVAL, VALUES, loss_interval
from fedsim.privacy.accounting import (
    Guarantee,
    check_delta,
    epsilon,
    epsilon_of_parts,
    guarantee,
    noise_multiplier_for,
    rounded_up,
    statement,
    upwards,
)

# What was published: sampling probability, noise multiplier, steps, delta, epsilon.
PUBLISHED = {
    # Opacus' MNIST example: 15 epochs of 250 steps.
    "opacus": (0.004, 1.3, 3750, 1e-5, 1.16),
    # Abadi et al. (2016), section 4: the moments accountant.
    "abadi": (0.01, 4.0, 10_000, 1e-5, 1.26),
    # TensorFlow Privacy's tutorial: 60 epochs of 60,000 images by 256.
    "tensorflow": (256 / 60_000, 1.1, 14_062, 1e-5, 3.01),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_the_published_cases(case: str) -> None:
    """They were published under the older conversion, min_a rdp(a) + log(1/delta) / (a - 1).

    Of the same divergences it gives what was published; the conversion of today gives less
    (Canonne et al., 2020), and fedsim's is that of Opacus; PLD is below both.
    """
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis import rdp as reference

    q, z, steps, delta, published = PUBLISHED[case]
    orders = RDPAccountant.DEFAULT_ALPHAS
    divergences = reference.compute_rdp(q=q, noise_multiplier=z, steps=steps, orders=orders)
    old = min(
        d - math.log(delta) / (a - 1) for a, d in zip(orders, divergences, strict=True) if a > 1
    )
    assert old == pytest.approx(published, rel=0.01)
    accountant = RDPAccountant()
    accountant.history = [(z, q, steps)]
    parts = [(q, z, steps)]
    rdp = epsilon_of_parts(parts, delta, "rdp")
    assert rdp == pytest.approx(accountant.get_epsilon(delta), rel=0.01)
    assert 0.85 * rdp < epsilon_of_parts(parts, delta, "pld") < rdp < published


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Return the epsilon of the Gaussian mechanism (Balle and Wang, 2018, theorem 8)."""
    z = noise_multiplier

    def excess(epsilon: float) -> float:
        gained, lost = norm.logcdf(0.5 / z - epsilon * z), norm.logcdf(-0.5 / z - epsilon * z)
        return float(gained + math.log1p(-math.exp(epsilon + lost - gained)) - math.log(delta))

    return float(brentq(excess, 0.0, 1000.0, xtol=1e-12))


@pytest.mark.parametrize("delta", [1e-5, 1e-8, 1e-12])
@pytest.mark.parametrize(("noise_multiplier", "steps"), [(1.0, 1), (10.0, 100), (8.0, 3000)])
def test_without_sampling_it_is_the_closed_form(
    noise_multiplier: float, steps: int, delta: float
) -> None:
    exact = gaussian_epsilon(noise_multiplier / math.sqrt(steps), delta)
    parts = [(1.0, noise_multiplier, steps)]
    assert exact <= epsilon_of_parts(parts, delta, "pld") <= exact * 1.00001
    assert exact <= epsilon_of_parts(parts, delta, "rdp") <= exact * 1.2


@pytest.mark.parametrize(
    ("steps", "deltas"),
    [(100, (1e-6, 1e-12)), (10_000, (1e-6, 1e-10)), (100_000, (1e-6, 1e-8))],
)
def test_composition_stays_an_upper_bound(steps: int, deltas: tuple[float, ...]) -> None:
    """Fourier transforms round: delta is off by 1e-16 a step, which the account has to allow for.

    A sampling probability of all but 1 is composed, and as private as one of 1.
    """
    for delta in deltas:
        exact = gaussian_epsilon(1.0, delta)
        found = epsilon_of_parts([(1 - 1e-9, math.sqrt(steps), steps)], delta)
        assert exact * 0.999999 < found < exact * 1.06
    with pytest.raises(PrivacyError, match=rf"after {steps:,} steps .* the accountant rdp"):
        epsilon_of_parts([(0.5, 1.0, steps)], 1e-16 * steps)


@pytest.mark.parametrize(
    ("part", "delta", "most"),
    [
        ((1e-4, 1.0, 100_000), 1e-6, 0.16),  # 0.155 at a tenth of the interval
        ((1e-3, 50.0, 10), 1e-5, 1e-4),
        ((0.9, 1e4, 1_000_000), 1e-5, 0.31),
    ],
)
def test_rare_participation_and_much_noise_are_not_lost_in_the_grid(
    part: tuple[float, float, int], delta: float, most: float
) -> None:
    assert loss_interval([part]) < INTERVAL
    assert 0 < epsilon_of_parts([part], delta) < most
    assert epsilon_of_parts([part], delta) < epsilon_of_parts([part], delta, "rdp")


def test_little_noise_takes_no_more_memory() -> None:
    """At the library's own interval there were 10^8 losses to tell apart."""
    losses = 0.1 * 10 / 0.01**2 / 2
    assert losses / VALUES < loss_interval([(0.1, 0.01, 10)]) < 16 * losses / VALUES
    found = epsilon_of_parts([(1 - 1e-9, 0.1, 10)], 1e-5)
    assert found == pytest.approx(gaussian_epsilon(0.1 / math.sqrt(10), 1e-5), rel=1e-4)


def test_parts_compose() -> None:
    """Equal parts are one; parts of Gaussians are the Gaussian of the sum of their 1/z^2."""
    parts = [(0.2, 2.0, 10), (1.0, 5.0, 0), (0.2, 2.0, 20)]
    for accountant in accounting.ACCOUNTANTS:
        assert epsilon_of_parts(parts, 1e-5, accountant) == epsilon(
            sampling_probability=0.2, noise_multiplier=2.0, steps=30, delta=1e-5,
            accountant=accountant,
        )  # fmt: skip
        mixed = epsilon_of_parts([(1.0, 6.0, 2), (1.0, 3.0, 1)], 1e-5, accountant)
        one = epsilon_of_parts([(1.0, (2 / 36 + 1 / 9) ** -0.5, 1)], 1e-5, accountant)
        assert mixed == pytest.approx(one, rel=1e-6)
        both = [(0.2, 2.0, 10), (1.0, 6.0, 2)]
        each = [epsilon_of_parts([part], 1e-5, accountant) for part in both]
        together = epsilon_of_parts(both, 1e-5, accountant)
        assert max(each) < together < sum(each)
        assert together == epsilon_of_parts(both[::-1], 1e-5, accountant)


def test_no_steps_cost_nothing_and_no_noise_everything() -> None:
    for accountant in accounting.ACCOUNTANTS:
        assert epsilon_of_parts([], 1e-5, accountant) == 0
        assert epsilon_of_parts([(0.5, 0.0, 0)], 1e-5, accountant) == 0
        assert epsilon_of_parts([(0.5, 1.0, 3), (0.1, 0.0, 1)], 1e-5, accountant) == math.inf
        assert epsilon_of_parts([(1.0, 1e200, 10)], 1e-5, accountant) == 0


@given(
    q=st.floats(1e-3, 1.0),
    z=st.floats(0.6, 20.0),
    steps=st.integers(1, 2000),
    more=st.floats(1.05, 3.0),
)
@settings(max_examples=6, deadline=None)
def test_epsilon_grows_with_sampling_and_steps_and_falls_with_noise(
    q: float, z: float, steps: int, more: float
) -> None:
    def rdp(q: float, z: float, steps: int) -> float:
        return epsilon_of_parts([(q, z, steps)], 1e-6, "rdp")

    base = rdp(q, z, steps)
    slack = base * (1 + 1e-9)
    assert rdp(q, z * more, steps) <= slack
    assert rdp(q, z, int(steps * more)) * (1 + 1e-9) >= base
    assert rdp(min(1.0, q * more), z, steps) * (1 + 1e-9) >= base


@pytest.mark.parametrize(
    ("accountant", "target", "q", "steps"),
    [
        pytest.param("pld", 2.0, 0.05, 50, marks=pytest.mark.slow),
        *(("pld", 0.5, 1.0, 10), ("rdp", 1.0, 0.1, 30), ("rdp", 0.1, 1.0, 100)),
    ],
)
def test_the_noise_is_the_least_that_stays_within(
    accountant: str, target: float, q: float, steps: int
) -> None:
    z = noise_multiplier_for(
        target_epsilon=target, sampling_probability=q, steps=steps, delta=1e-5,
        accountant=accountant,
    )  # fmt: skip
    assert epsilon_of_parts([(q, z, steps)], 1e-5, accountant) <= target
    assert epsilon_of_parts([(q, z * (1 - 2e-4), steps)], 1e-5, accountant) > target
    assert z == float(f"{z:.6g}")  # can be written into a file


def test_noise_that_cannot_be_found_is_refused() -> None:
    def solve(target: float, steps: int = 10) -> float:
        return noise_multiplier_for(
            target_epsilon=target, sampling_probability=1.0, steps=steps, delta=1e-6,
            accountant="rdp",
        )  # fmt: skip

    with pytest.raises(PrivacyError, match=r"1e-07: no noise multiplier up to 2\^19 reaches it"):
        solve(1e-7)
    with pytest.raises(PrivacyError, match=r"guarantees nothing, .* choose 10 or less"):
        solve(1e9)
    with pytest.raises(PrivacyError, match="steps = 0: nothing is published"):
        solve(1.0, steps=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampling_probability": 0.0}, "sampling_probability = 0.0: it has to be above 0 and at"),
        ({"sampling_probability": 1.1}, "sampling_probability = 1.1"),
        ({"sampling_probability": math.nan}, "sampling_probability = nan"),
        ({"noise_multiplier": -1.0}, "noise_multiplier = -1.0: it has to be finite, 0 or more"),
        ({"noise_multiplier": math.inf}, "noise_multiplier = inf"),
        ({"noise_multiplier": math.nan}, "noise_multiplier = nan"),
        ({"steps": -1}, "steps = -1: it has to be a whole number"),
        ({"steps": 1.5}, "steps = 1.5"),
        ({"delta": 0.0}, "delta = 0.0: it has to be above 0 and below 1"),
        ({"delta": 1.0}, "delta = 1.0"),
        ({"delta": math.nan}, "delta = nan"),
        ({"accountant": "pdl"}, "accountant = 'pdl': did you mean 'pld'?"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_choose(wrong: dict[str, Any], message: str) -> None:
    sound: dict[str, Any] = {
        **{"sampling_probability": 0.1, "noise_multiplier": 1.0},
        **{"steps": 10, "delta": 1e-5, "accountant": "rdp"},
    }
    with pytest.raises(PrivacyError) as refused:
        epsilon(**(sound | wrong))
    assert message in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_to_aim_at_is_positive(target: float) -> None:
    with pytest.raises(PrivacyError, match=r"target_epsilon = .*: it has to be finite and"):
        noise_multiplier_for(target_epsilon=target, sampling_probability=0.1, steps=3, delta=1e-5)


def test_delta_is_below_one_over_the_population() -> None:
    check_delta(1e-5, 99_999)
    check_delta(0.99)
    with pytest.raises(PrivacyError, match=r"delta = 0\.02: .* 1/N = 0\.02 for N = 50, .* 0\.002"):
        check_delta(0.02, 50)
    with pytest.raises(PrivacyError, match="population = 0"):
        check_delta(0.02, 0)
    with pytest.raises(PrivacyError, match="delta = 1"):
        check_delta(1.0, 1)


SOUND = Guarantee(
    epsilon=1.2301,
    delta=1e-5,
    level="user",
    adjacency="add or remove one user",
    sampling_probability=0.1,
    noise_multiplier=1.1,
    steps=30,
    unit="rounds",
    accountant="pld",
    other_epsilon=1.31,
    caveats=("Clients add the noise", "It is of the models that the server releases."),
)


def test_the_sentence_says_all() -> None:
    assert statement(SOUND) == (
        "(epsilon = 1.24, delta = 1e-5)-differential privacy for users (add or remove one user), "
        "by Poisson sampling with probability 0.1, Gaussian noise of 1.1 clipping norms, "
        "30 rounds; accountant: PLD (RDP gives 1.31). Clients add the noise. It is of the models "
        "that the server releases."
    )
    alone = replace(
        SOUND, level="example", sampling_probability=1.0, steps=1, accountant="rdp",
        other_epsilon=None, caveats=(),
    )  # fmt: skip
    assert "for examples (" in statement(alone)
    assert statement(alone).endswith(
        "without sampling (probability 1), Gaussian noise of 1.1 clipping norms, 1 round; "
        "accountant: RDP (PLD gives no bound)."
    )


def test_without_noise_the_sentence_says_that_there_is_no_guarantee() -> None:
    none = guarantee(
        level="user", sampling_probability=0.1, noise_multiplier=0.0, steps=30, delta=1e-5
    )
    assert none.epsilon == none.other_epsilon == math.inf
    said = statement(none)
    assert said.startswith("no guarantee (epsilon is infinite at delta = 1e-5) for users")
    assert "no noise" in said
    assert "differential privacy" not in said


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.23, "1.23"), (1.2301, "1.24"), (1e-5, "1e-5"), (0.0, "0"), (1234.5, "1,240"),
     (9.996, "10"), (math.inf, "infinity")],
)  # fmt: skip
def test_bounds_are_shown_rounded_up(value: float, shown: str) -> None:
    assert upwards(value) == shown


@given(st.floats(1e-300, 1e300), st.integers(1, 12))
def test_rounding_up_never_promises_more(value: float, digits: int) -> None:
    assert value <= rounded_up(value, digits) <= value * (1 + 10.0 ** (1 - digits)) * (1 + 1e-15)


def test_both_accountants_and_both_adjacencies() -> None:
    kinds = {"delta": 1e-5, "noise_multiplier": 2.0, "steps": 1, "sampling_probability": 1.0}
    user = guarantee(level="user", **kinds)  # type: ignore[arg-type]
    other = guarantee(level="user", accountant="rdp", **kinds)  # type: ignore[arg-type]
    assert (user.epsilon, user.other_epsilon) == (other.other_epsilon, other.epsilon)
    # To replace an update moves it by twice the clipping norm.
    local = guarantee(level="local", **kinds)  # type: ignore[arg-type]
    assert local.epsilon == pytest.approx(gaussian_epsilon(1.0, 1e-5), rel=1e-6)
    assert local.noise_multiplier == 2.0
    with pytest.raises(PrivacyError, match="at level local: who receives a message knows"):
        guarantee(level="local", **(kinds | {"sampling_probability": 0.5}))  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="level = 'users': did you mean 'user'"):
        guarantee(level="users", **kinds)  # type: ignore[arg-type]


def test_a_delta_that_one_accountant_cannot_tell_is_the_other_s() -> None:
    found = guarantee(
        level="user", sampling_probability=0.5, noise_multiplier=30.0, steps=1000, delta=1e-13,
        accountant="rdp",
    )  # fmt: skip
    assert found.other_epsilon is None
    assert found.epsilon > 0


# The command.

CLI = Callable[..., Any]
ASKED = ("--sampling-probability", "0.1", "--steps", "30", "--delta", "1e-5")


def test_the_calculator_of_epsilon(cli: CLI) -> None:
    answer = cli("privacy", "epsilon", *ASKED, "--noise-multiplier", "1.1")
    assert answer.out.startswith(
        "(epsilon = 3.48, delta = 1e-5)-differential privacy for users (add or remove one user), "
        "by Poisson sampling with probability 0.1, Gaussian noise of 1.1 clipping norms, "
        "30 rounds; accountant: PLD (RDP gives 4.03). "
    )
    assert "N was not given" in answer.out
    answer = cli(
        "privacy", "epsilon", *ASKED, "--noise-multiplier", "1.1", "--accountant", "rdp",
        "--level", "example", "--population", "1000", "--format", "json",
    )  # fmt: skip
    found = json.loads(answer.out)
    assert found["epsilon"] == found["epsilon_rdp"] == pytest.approx(4.02529, rel=1e-4)
    assert found["other_epsilon"] == found["epsilon_pld"] == pytest.approx(3.47563, rel=1e-4)
    asked = {
        **{"sampling_probability": 0.1, "noise_multiplier": 1.1, "steps": 30, "delta": 1e-5},
        **{"accountant": "rdp", "level": "example", "population": 1000},
        **{"unit": "optimiser steps", "adjacency": "add or remove one example"},
    }
    assert found | asked == found
    assert found["statement"].startswith("(epsilon = 4.03, delta = 1e-5)-")


def test_the_calculator_of_noise(cli: CLI) -> None:
    asked = ("privacy", "noise", *ASKED, "--target-epsilon", "4", "--accountant", "rdp")
    answer = cli(*asked)
    first, rest = answer.out.split("\n", 1)
    assert first.startswith("noise multiplier: 1.1")
    assert f"Gaussian noise of {first.split(': ')[1]} clipping norms" in rest
    found = json.loads(cli(*asked, "--format", "json").out)
    assert found["target_epsilon"] == 4
    assert 3.99 < found["epsilon"] <= 4
    assert found["noise_multiplier"] == float(first.split(": ")[1])
    once = ("privacy", "noise", "--sampling-probability", "1", "--steps", "1", "--delta", "1e-5")
    user, local = (
        json.loads(cli(*once, "--target-epsilon", "4", "--level", level, "--format", "json").out)
        for level in ("user", "local")
    )
    assert local["noise_multiplier"] == 2 * user["noise_multiplier"]
    assert local["epsilon"] == user["epsilon"]


def test_the_calculators_promise_nothing_without_noise_and_refuse_what_cannot_be(cli: CLI) -> None:
    answer = cli("privacy", "epsilon", *ASKED, "--noise-multiplier", "0", "--format", "json")
    found = json.loads(answer.out)
    assert found["epsilon"] is found["epsilon_pld"] is None
    assert found["statement"].startswith("no guarantee")
    answer = cli("privacy", "epsilon", *ASKED, "--noise-multiplier", "1", "--population", "100000")
    assert answer.code == 2
    assert "error: delta = 1e-05: it has to be below 1/N" in answer.err
    answer = cli("privacy", "noise", *ASKED, "--target-epsilon", "0")
    assert answer.code == 2
    assert "error: target_epsilon = 0.0" in answer.err
    answer = cli("privacy", "noise", *ASKED, "--target-epsilon", "1", "--level", "local")
    assert answer.code == 2
    assert "sampling hides nothing" in answer.err
