from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.ledger.manifest import new_manifest, read_manifest, write_manifest
from fedsim.ledger.store import Ledger
from fedsim.records import RoundRow
from fedsim.study.design import Claim, Hypothesis, Published, Study, Values
from fedsim.study.published import Beside, beside
from fedsim.study.statistics import ALPHA, seeds_needed, weigh
from fedsim.study.verdicts import Decision, Pair, Verdict, decide, judge

RELU: Values = (("model.activation", "relu"),)
TANH: Values = (("model.activation", "tanh"),)
# Twelve values, a little skewed, of mean 0 and deviation 0.87.
NOISE = [-1.3, -0.9, -0.8, -0.5, -0.4, -0.1, 0.1, 0.2, 0.4, 0.7, 1.0, 1.6]
Runs = dict[tuple[Values, int], Path]


def says(
    claim: Claim = "better", endpoint: str = "test_accuracy", *, margin: float = 0.01
) -> Hypothesis:
    """A claim about tanh beside relu."""
    ratio = "_to_" in endpoint or endpoint.endswith(("_bytes", "_seconds"))
    return Hypothesis(
        arm=TANH,
        reference=RELU,
        endpoint=endpoint,
        claim=claim,
        margin=margin,
        direction="lower" if ratio else "higher",
        scale="ratio" if ratio else "difference",
    )


def differing(mean: float, spread: float = 0.01) -> list[Pair]:
    """Pairs whose differences have this mean, about 0.5."""
    return [
        Pair(seed=seed, arm=0.5 + mean + spread * noise, reference=0.5)
        for seed, noise in enumerate(NOISE)
    ]


def times(factor: float, spread: float = 0.01) -> list[Pair]:
    """Pairs whose ratios have this geometric mean; the references differ a lot."""
    return [
        Pair(seed=n, arm=(10 + n) * factor * math.exp(spread * noise), reference=10 + n)
        for n, noise in enumerate(NOISE)
    ]


def one(h: Hypothesis, pairs: list[Pair], why: str = "") -> Verdict:
    (verdict,) = decide([(h, pairs, why)])
    return verdict


# From pairs.


@pytest.mark.parametrize(
    ("claim", "mean", "decision", "reason"),
    [
        ("better", 0.05, "supported", "better by more than the margin"),
        ("better", -0.05, "refuted", "worse by more than the margin"),
        ("better", 0.001, "refuted", "equivalent: the 90% interval lies within the margin"),
        ("worse", -0.05, "supported", "worse by more than the margin"),
        ("worse", 0.05, "refuted", "better by more than the margin"),
        ("worse", -0.001, "refuted", "equivalent: the 90% interval lies within the margin"),
        ("equal", 0.001, "supported", "equivalent: the 90% interval lies within the margin"),
        ("equal", 0.05, "refuted", "better by more than the margin"),
        ("equal", -0.05, "refuted", "worse by more than the margin"),
    ],
)
def test_a_claim_is_supported_or_refuted(
    claim: Claim, mean: float, decision: Decision, reason: str
) -> None:
    verdict = one(says(claim), differing(mean))
    assert (verdict.verdict, verdict.reason) == (decision, reason)
    assert verdict.estimate == pytest.approx(mean)
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low < mean < verdict.high
    assert verdict.p_holm is not None
    assert verdict.p_holm <= ALPHA
    assert (verdict.seeds_needed, len(verdict.pairs)) == (None, 12)


def test_less_is_better_where_the_claim_says_so() -> None:
    less = dataclasses.replace(says(), direction="lower")
    assert one(less, differing(-0.05)).verdict == "supported"
    assert one(less, differing(-0.05)).reason == "better by more than the margin"
    assert one(less, differing(0.05)).verdict == "refuted"
    assert one(less, differing(0.05)).reason == "worse by more than the margin"


@pytest.mark.parametrize("claim", ["better", "worse", "equal"])
@pytest.mark.parametrize("mean", [0.008, -0.008, 0.013])
def test_an_effect_about_the_margin_decides_nothing_and_says_what_would(
    claim: Claim, mean: float
) -> None:
    verdict = one(says(claim), differing(mean))
    assert verdict.verdict == "inconclusive"
    assert verdict.seeds_needed is not None
    assert verdict.seeds_needed > 12
    assert verdict.reason == (
        f"the interval reaches across the margin; about {verdict.seeds_needed} seeds would decide"
    )
    assert verdict.estimate == pytest.approx(mean)
    assert verdict.p_holm is not None
    assert verdict.p_holm > ALPHA


def test_an_effect_of_just_the_margin_would_never_be_decided() -> None:
    verdict = one(says(margin=0.01), differing(0.01 + 1e-7))
    assert (verdict.verdict, verdict.seeds_needed) == ("inconclusive", None)
    assert verdict.reason == (
        "the interval reaches across the margin; the effect may be just the margin, which no "
        "number of seeds decides"
    )


@pytest.mark.parametrize(
    ("claim", "factor", "decision"),
    [
        ("better", 0.8, "supported"),
        ("better", 1.25, "refuted"),
        ("better", 1.01, "refuted"),
        ("worse", 1.25, "supported"),
        ("equal", 0.99, "supported"),
        # Beyond 1.1 times, or below 1 / 1.1, is a difference, and nothing nearer.
        ("better", 1 / 1.12, "supported"),
        ("worse", 1.12, "supported"),
        ("equal", 1 / 1.08, "supported"),
        ("equal", 1.08, "supported"),
    ],
)
def test_of_a_ratio_the_estimate_is_a_geometric_mean(
    claim: Claim, factor: float, decision: Decision
) -> None:
    verdict = one(says(claim, "rounds_to_0.9", margin=0.1), times(factor))
    assert verdict.verdict == decision
    assert verdict.estimate == pytest.approx(factor)
    assert verdict.low is not None
    assert verdict.high is not None
    assert 0.99 * factor < verdict.low < factor < verdict.high < 1.01 * factor


@pytest.mark.parametrize(("factor", "decision"), [(1.103, "refuted"), (1.097, "supported")])
def test_a_margin_of_a_tenth_is_just_1_1_times(factor: float, decision: Decision) -> None:
    h = says("equal", "rounds_to_0.9", margin=0.1)
    assert one(h, times(factor, 0.001)).verdict == decision
    assert one(h, times(1 / factor, 0.001)).verdict == decision


def test_a_ratio_turned_around_gives_the_opposite_verdict() -> None:
    there = one(says("better", "rounds_to_0.9", margin=0.1), times(1 / 1.3, 0.1))
    turned = [Pair(seed=p.seed, arm=p.reference, reference=p.arm) for p in times(1 / 1.3, 0.1)]
    back = one(says("worse", "rounds_to_0.9", margin=0.1), turned)
    assert there.verdict == back.verdict == "supported"
    assert there.estimate is not None
    assert back.estimate == pytest.approx(1 / there.estimate)
    assert back.p_holm == pytest.approx(there.p_holm)


@pytest.mark.parametrize("side", ["arm", "reference"])
def test_a_value_of_zero_has_no_ratio(side: str) -> None:
    pairs = times(0.8)
    pairs[3] = dataclasses.replace(pairs[3], **{side: 0.0})  # type: ignore[arg-type]
    verdict = one(says("better", "uplink_bytes"), pairs)
    assert verdict.verdict == "inconclusive"
    assert verdict.reason == "a value is not above 0, so that there is no ratio"
    assert (verdict.estimate, verdict.low, verdict.high, verdict.p_holm) == (None,) * 4
    assert verdict.pairs == tuple(pairs)


def test_zeros_have_a_difference() -> None:
    pairs = [Pair(seed=seed, arm=0.0, reference=0.0) for seed in range(4)]
    assert one(says("equal"), pairs).verdict == "supported"


@pytest.mark.parametrize(
    ("claim", "endpoint", "estimate"),
    [("equal", "test_accuracy", 0.0), ("better", "rounds_to_0.9", 1.0)],
)
def test_identical_pairs_are_equivalent(claim: Claim, endpoint: str, estimate: float) -> None:
    pairs = [Pair(seed=seed, arm=5.0 + seed, reference=5.0 + seed) for seed in range(4)]
    verdict = one(says(claim, endpoint), pairs)
    assert verdict.verdict == ("supported" if claim == "equal" else "refuted")
    assert (verdict.estimate, verdict.low, verdict.high) == (estimate,) * 3
    assert verdict.p_holm == 0


def test_the_same_ratio_in_every_seed_is_certain() -> None:
    pairs = [Pair(seed=seed, arm=10.0, reference=20.0) for seed in range(4)]
    verdict = one(says("better", "uplink_bytes"), pairs)
    assert (verdict.verdict, verdict.estimate) == ("supported", 0.5)


def test_three_equal_pairs_are_too_few_to_be_certain() -> None:
    pairs = [Pair(seed=seed, arm=10.0, reference=20.0) for seed in range(3)]
    verdict = one(says("better", "uplink_bytes"), pairs)
    assert (verdict.verdict, verdict.estimate) == ("inconclusive", 0.5)
    assert verdict.reason == "3 equal values are too few to know how much they would differ"


def test_runs_that_end_at_the_same_horizon_are_not_equal_for_that() -> None:
    lost = {"arm_reached": False, "reference_reached": False}
    pairs = [Pair(seed=seed, arm=400.0, reference=400.0, **lost) for seed in range(11)]
    pairs.append(Pair(seed=11, arm=390.0, reference=400.0, reference_reached=False))
    verdict = one(says("equal", "rounds_to_0.9"), pairs)
    assert verdict.verdict == "inconclusive"
    assert verdict.reason.startswith("23 runs did not reach the target")


def test_pairs_that_cannot_be_decided_keep_their_estimate_and_the_reason() -> None:
    verdict = one(says(), differing(0.05), "2 of 14 seeds are missing or failed")
    assert (verdict.verdict, verdict.reason) == (
        *("inconclusive", "2 of 14 seeds are missing or failed"),
    )
    assert verdict.estimate == pytest.approx(0.05)
    assert verdict.low is not None
    assert (verdict.p_holm, verdict.seeds_needed) == (None, None)


def test_without_pairs_there_is_nothing_but_the_reason() -> None:
    verdict = one(says(), [], "nothing ran")
    assert (verdict.verdict, verdict.reason, verdict.estimate) == (
        *("inconclusive", "nothing ran"),
        None,
    )
    assert decide([]) == []


# Among several hypotheses.


def test_what_is_decided_alone_may_not_be_among_many() -> None:
    h, pairs = says(margin=0.01), differing(0.0165)
    alone = one(h, pairs)
    assert alone.verdict == "supported"
    assert alone.p_holm is not None
    assert 0.01 < alone.p_holm <= ALPHA
    undecided = [(says(), differing(0.008), "")] * 5
    among, *_ = decide([(h, pairs, ""), *undecided])
    assert among.verdict == "inconclusive"
    assert among.p_holm == pytest.approx(6 * alone.p_holm)
    evidence = weigh([p.arm - p.reference for p in pairs], 0.01)
    assert among.seeds_needed is not None
    assert among.seeds_needed == seeds_needed(evidence, ALPHA / 6)
    assert among.seeds_needed > 12
    assert among.reason == (
        f"decided alone, but not among all hypotheses (Holm: p = {among.p_holm:.2g}); about "
        f"{among.seeds_needed} seeds would decide"
    )
    assert (among.estimate, among.low, among.high) == (alone.estimate, alone.low, alone.high)


def test_what_is_clear_is_decided_among_many_too() -> None:
    verdicts = decide([(says(), differing(0.05), ""), *[(says(), differing(0.008), "")] * 5])
    assert [v.verdict for v in verdicts] == ["supported", *["inconclusive"] * 5]
    assert all(v.p_holm == 1 or "Holm" not in v.reason for v in verdicts[1:])


def test_hypotheses_that_cannot_be_decided_cost_the_others_nothing() -> None:
    h, pairs = says(margin=0.01), differing(0.0165)
    alone = one(h, pairs)
    zeros = [Pair(seed=0, arm=0.0, reference=1.0), Pair(seed=1, arm=1.0, reference=1.0)]
    others = [
        (says(), differing(0.008), "a seed is missing"),
        (says(endpoint="cpu_seconds"), [], "unlike machines"),
        (says(endpoint="uplink_bytes"), zeros, ""),
    ]
    *rest, last = decide([*others, (h, pairs, "")])
    assert last == alone
    assert [v.p_holm for v in rest] == [None] * 3
    assert [v.verdict for v in rest] == ["inconclusive"] * 3


def test_verdicts_come_in_the_order_of_the_hypotheses() -> None:
    means = [0.05, -0.05, 0.001]
    found = decide([(says(), differing(mean), "") for mean in means])
    assert [v.estimate for v in found] == pytest.approx(means)
    assert [v.verdict for v in found] == ["supported", "refuted", "refuted"]


# As JSON.


def test_a_verdict_as_json() -> None:
    pairs = times(0.8)
    pairs[0] = dataclasses.replace(pairs[0], arm_reached=False)
    pairs[1] = dataclasses.replace(pairs[1], reference_reached=False)
    pairs[2] = dataclasses.replace(pairs[2], reference_reached=False)
    verdict = one(says("better", "cpu_seconds_to_0.9", margin=0.05), pairs)
    document = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert document == {
        "hypothesis": "tanh is better than relu in cpu_seconds_to_0.9",
        "arm": {"model.activation": "tanh"},
        "reference": {"model.activation": "relu"},
        "endpoint": "cpu_seconds_to_0.9",
        "claim": "better",
        "direction": "lower",
        "scale": "ratio",
        "estimate": pytest.approx(0.8),
        "low": verdict.low,
        "high": verdict.high,
        "margin": 0.05,
        "seeds": 12,
        "verdict": "supported",
        "reason": "better by more than the margin",
        "p_holm": verdict.p_holm,
        "seeds_needed": None,
        "censored": [1, 2],
        "pairs": [{"seed": p.seed, "arm": p.arm, "reference": p.reference} for p in pairs],
    }
    assert verdict.kind == "measured"
    assert one(says(), differing(0.05)).kind == "counted"


def test_an_open_verdict_as_json() -> None:
    for verdict in (one(says(), [], "why"), one(says(), differing(0.05)[:1], "one seed")):
        document = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
        assert (document["low"], document["high"], document["p_holm"]) == (None, None, None)
        assert document["seeds"] == len(verdict.pairs)


# From runs.


def write_run(path: Path, accuracies: Sequence[float | None], **figures: Any) -> Path:
    """Write a run with some test accuracies; ``figures`` are of every round."""
    manifest = new_manifest("tiny", config_hash="0", engine={}, rounds_planned=len(accuracies))
    with Ledger.create(path, manifest=manifest, config={"experiment": {"name": "tiny"}}) as ledger:
        for number, accuracy in enumerate(accuracies, 1):
            row: dict[str, Any] = {
                "test_accuracy": accuracy,
                "clients_trained": 2,
                "clients_failed": 0,
                "uplink_bytes": 100,
                "downlink_bytes": 200,
                "train_flops": 1000,
                "cpu_seconds": 0.5,
                "wall_seconds": 1.0,
            }
            ledger.append(
                RoundRow(round=number, **{**row, **figures}),
                [],
                [],
                arrays={"w": np.zeros(1, np.float32)},
                state={},
                client_states={},
            )
        ledger.finish("completed")
    return path


def runs_of(
    root: Path,
    tanh: Mapping[int, Sequence[float | None]],
    relu: Mapping[int, Sequence[float | None]],
    **figures: Any,
) -> Runs:
    """Write the runs of both arms, by seed; ``figures`` are tanh's."""
    found: Runs = {}
    for seed, accuracies in tanh.items():
        found[TANH, seed] = write_run(root / f"tanh-{seed}", accuracies, **figures)
    for seed, accuracies in relu.items():
        found[RELU, seed] = write_run(root / f"relu-{seed}", accuracies)
    return found


BETTER = {1: [0.5, 0.81], 2: [0.6, 0.83], 3: [0.5, 0.82], 4: [0.5, 0.8], 5: [0.5, 0.82]}
WORSE = {1: [0.4, 0.61], 2: [0.4, 0.60], 3: [0.4, 0.62], 4: [0.4, 0.6], 5: [0.4, 0.61]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Five runs of both arms, which nobody changes; tanh takes a fifth of the time."""
    return runs_of(tmp_path_factory.mktemp("runs"), BETTER, WORSE, cpu_seconds=0.1)


@pytest.fixture
def runs(written: Runs) -> Runs:
    """The same, for a test that leaves some out."""
    return dict(written)


def test_runs_decide_by_their_pairs(runs: Runs) -> None:
    (verdict,) = judge([says()], (1, 2, 3, 4, 5), runs)
    assert verdict.pairs == tuple(
        Pair(seed=seed, arm=BETTER[seed][-1], reference=WORSE[seed][-1]) for seed in BETTER
    )
    assert verdict.estimate == pytest.approx(0.208)
    assert (verdict.verdict, verdict.censored) == ("supported", (0, 0))


@pytest.mark.parametrize("arm", [TANH, RELU])
def test_as_long_as_a_seed_is_missing_nothing_is_decided(runs: Runs, arm: Values) -> None:
    del runs[arm, 2]
    (verdict,) = judge([says()], (1, 2, 3, 4, 5), runs)
    assert (verdict.verdict, verdict.reason) == (
        *("inconclusive", "1 of 5 seeds are missing or failed"),
    )
    assert [p.seed for p in verdict.pairs] == [1, 3, 4, 5]
    assert verdict.estimate == pytest.approx(0.2025)
    assert verdict.p_holm is None


def test_seeds_that_the_study_did_not_ask_for_do_not_count(runs: Runs, tmp_path: Path) -> None:
    runs |= runs_of(tmp_path, {9: [0.1]}, {9: [0.9]})
    (verdict,) = judge([says()], (1, 2, 3, 4, 5), runs)
    assert (verdict.verdict, len(verdict.pairs)) == ("supported", 5)


def test_one_seed_gives_an_estimate_and_no_verdict(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {1: [0.8]}, {1: [0.6]})
    (verdict,) = judge([says()], (1,), runs)
    assert verdict.verdict == "inconclusive"
    assert verdict.reason.startswith("one seed has no interval, so there is no verdict")
    assert verdict.estimate == pytest.approx(0.2)
    assert (verdict.low, verdict.high, verdict.p_holm) == (None, None, None)
    json.dumps(verdict.as_json(), allow_nan=False)


def test_nothing_ran_yet() -> None:
    (verdict,) = judge([says()], (1, 2), {})
    assert (verdict.verdict, verdict.reason, verdict.pairs, verdict.estimate) == (
        *("inconclusive", "2 of 2 seeds are missing or failed"),
        *((), None),
    )


def test_runs_without_the_figure_are_told(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {1: [0.8], 2: [None], 3: [0.8]}, {1: [0.6], 2: [0.6], 3: [0.6]})
    (verdict,) = judge([says()], (1, 2, 3), runs)
    assert verdict.reason == "1 of 3 seeds have no test_accuracy"
    assert [p.seed for p in verdict.pairs] == [1, 3]
    assert verdict.verdict == "inconclusive"


def test_a_run_that_never_reached_the_target_counts_with_all_that_it_spent(
    tmp_path: Path,
) -> None:
    reached, never = [0.3, 0.9, 0.9, 0.9], [0.3, 0.4, 0.5, 0.5]
    tanh = dict.fromkeys(range(5), reached)
    relu = {seed: never if seed == 2 else [0.3, 0.5, 0.7, 0.9] for seed in range(5)}
    runs = runs_of(tmp_path, tanh, relu)
    rounds, spent = judge(
        [says(endpoint="rounds_to_0.8"), says(endpoint="bytes_to_0.8")], range(5), runs
    )
    pair = rounds.pairs[2]
    assert (pair.seed, pair.reference) == (2, 4)
    assert pair.arm == pytest.approx(1 + 5 / 6)
    assert (pair.arm_reached, pair.reference_reached) == (True, False)
    assert rounds.pairs[0].reference == pytest.approx(3.5)
    assert rounds.censored == spent.censored == (0, 1)
    assert rounds.verdict == spent.verdict == "supported"
    logarithms = [math.log((11 / 6) / (4 if seed == 2 else 3.5)) for seed in range(5)]
    assert rounds.estimate == pytest.approx(math.exp(sum(logarithms) / 5))
    assert spent.pairs[2].reference == 4 * 300


def test_where_no_run_reached_the_target_there_is_nothing_to_decide(runs: Runs) -> None:
    never, some = judge(
        [says(endpoint="rounds_to_0.95"), says(endpoint="rounds_to_0.7")], (1, 2, 3, 4, 5), runs
    )
    assert (never.verdict, never.reason) == ("inconclusive", "no run of either arm reached 95%")
    assert (never.censored, never.estimate, never.p_holm) == ((5, 5), None, None)
    assert some.censored == (0, 5)  # one side is enough
    assert some.p_holm is not None


def elsewhere(path: Path) -> None:
    """Say of a run that it was timed on another processor."""
    write_manifest(path, dataclasses.replace(read_manifest(path), processor="abacus"))


def test_timings_of_unlike_machines_are_not_compared_while_counts_are(
    runs: Runs, tmp_path: Path
) -> None:
    endpoints = ("cpu_seconds", "cpu_seconds_to_0.6", "wall_seconds", "rounds_to_0.6")
    claims = [says(endpoint=endpoint) for endpoint in endpoints]
    before = judge(claims, (1, 2, 3, 4, 5), runs)
    assert before[0].estimate == pytest.approx(0.2)
    assert before[0].verdict == "supported"
    here = read_manifest(runs[RELU, 3]).processor
    runs[RELU, 3] = write_run(tmp_path / "elsewhere", WORSE[3])
    elsewhere(runs[RELU, 3])
    *timed, counted = judge(claims, (1, 2, 3, 4, 5), runs)
    for verdict in timed:
        assert verdict.verdict == "inconclusive"
        assert verdict.reason == (
            f"timings of unlike machines do not compare: processor: {here}, abacus"
        )
        assert (verdict.estimate, verdict.low, verdict.p_holm) == (None, None, None)
        assert verdict.pairs == ()
    assert counted.verdict == "supported"
    assert counted.estimate == before[-1].estimate


def test_a_machine_that_timed_other_arms_alone_is_in_nobodys_way(
    runs: Runs, tmp_path: Path
) -> None:
    gelu = (("model.activation", "gelu"),)
    runs[gelu, 1] = write_run(tmp_path / "gelu-1", BETTER[1])
    elsewhere(runs[gelu, 1])
    (verdict,) = judge([says(endpoint="cpu_seconds")], (1, 2, 3, 4, 5), runs)
    assert verdict.verdict == "supported"


# Beside what was published.


def study(*published: Published) -> Study:
    return Study(
        name="small",
        base={},
        axes={"model.activation": ("relu", "tanh")},
        seeds=(1, 2, 3),
        targets=(0.9,),
        published=published,
    )


def claimed(arm: Values, value: float, endpoint: str = "rounds_to_0.6") -> Published:
    return Published(arm=arm, endpoint=endpoint, value=value, source="somebody 2017")


def test_published_figures_stand_beside_the_mean_of_the_seeds(tmp_path: Path) -> None:
    asked = study(claimed(TANH, 4.0), claimed(RELU, 0.5, "test_accuracy"))
    runs = runs_of(tmp_path, {1: [0.3, 0.6], 2: [0.3, 0.4, 0.4], 3: [0.3, 0.5, 0.6]}, {2: [0.6]})
    first, second = beside(asked, runs)
    assert first.published == asked.published[0]
    assert first.ours == pytest.approx((2 + 3 + 3) / 3)
    assert (first.seeds, first.reached) == (3, 2)
    assert first.ratio == pytest.approx(2 / 3)
    assert second == Beside(published=asked.published[1], ours=0.6, seeds=1, reached=1)
    assert json.loads(json.dumps(second.as_json(), allow_nan=False)) == {
        "arm": {"model.activation": "relu"},
        "endpoint": "test_accuracy",
        "published": 0.5,
        "source": "somebody 2017",
        "ours": 0.6,
        "ratio": pytest.approx(1.2),
        "seeds": 1,
        "reached": 1,
    }


def test_a_published_figure_without_runs_stands_alone(tmp_path: Path) -> None:
    (found,) = beside(study(claimed(TANH, 4.0)), runs_of(tmp_path, {}, {1: [0.9]}))
    assert (found.ours, found.ratio, found.seeds, found.reached) == (None, None, 0, 0)


def test_runs_without_the_figure_are_left_out_of_the_mean(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {1: [None], 2: [0.6], 9: [0.1]}, {})  # 9 is no seed of the study
    (found,) = beside(study(claimed(TANH, 0.3, "test_accuracy")), runs)
    assert (found.ours, found.seeds, found.reached) == (0.6, 1, 1)
