"""From the runs of a study to a verdict on each of its hypotheses.

Nothing but the runs decides: an estimate, its interval and the margin that the study file gave
before. ``docs/statistics.md`` says how, and how often that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedsim.ledger.read import Run, load
from fedsim.measure.machines import unlike_machines
from fedsim.records import Kind
from fedsim.study.design import Hypothesis, Values
from fedsim.study.endpoints import Endpoint, endpoint_of, value_of
from fedsim.study.statistics import ALPHA, FEWEST_EQUAL, Evidence, Region, holm, seeds_needed, weigh

Decision = Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both arms' values of an endpoint for one seed; a value that was censored is a lower bound."""

    seed: int
    arm: float
    reference: float
    arm_reached: bool = True
    reference_reached: bool = True


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the runs say of a hypothesis.

    ``estimate``, ``low`` and ``high`` are of arm minus reference, or arm over reference; None where
    there are no pairs, or (the interval) fewer than two.

    Attributes:
        p_holm: against every other region than the one found, corrected for all hypotheses.
        reason: why it is inconclusive, or what decided.
        seeds_needed: with how many seeds this would probably be decided.
        pairs: the values that went into it, by seed.
    """

    hypothesis: Hypothesis
    verdict: Decision
    reason: str
    pairs: tuple[Pair, ...] = ()
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    p_holm: float | None = None
    seeds_needed: int | None = None

    @property
    def kind(self) -> Kind:
        """Whether the endpoint is counted, measured or modelled."""
        endpoint = endpoint_of(self.hypothesis.endpoint)
        return endpoint.kind if endpoint else "counted"

    @property
    def censored(self) -> tuple[int, int]:
        """In how many seeds arm and reference did not reach their target."""
        return (
            sum(not pair.arm_reached for pair in self.pairs),
            sum(not pair.reference_reached for pair in self.pairs),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        h = self.hypothesis
        return {
            "hypothesis": h.text,
            "arm": dict(h.arm),
            "reference": dict(h.reference),
            "endpoint": h.endpoint,
            "claim": h.claim,
            "direction": h.direction,
            "scale": h.scale,
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "margin": h.margin,
            "seeds": len(self.pairs),
            "verdict": self.verdict,
            "reason": self.reason,
            "p_holm": self.p_holm,
            "seeds_needed": self.seeds_needed,
            "censored": list(self.censored),
            "pairs": [{"seed": p.seed, "arm": p.arm, "reference": p.reference} for p in self.pairs],
        }


def judge(
    hypotheses: Sequence[Hypothesis],
    seeds: Sequence[int],
    runs: Mapping[tuple[Values, int], Path],
    read: Callable[[Path], Run] = load,
) -> list[Verdict]:
    """Return a verdict on each hypothesis, corrected for all of them (Holm).

    Args:
        hypotheses: of one study.
        seeds: that the study asked for; as long as one is missing nothing is decided.
        runs: where the complete runs lie, by arm and seed.
        read: opens one; what keeps those that it has opened spares reading them again.
    """
    loaded = {key: read(path) for key, path in runs.items()}
    values: dict[tuple[Values, int, str], tuple[float, bool]] = {}

    def value(arm: Values, seed: int, name: str) -> tuple[float, bool]:
        key = (arm, seed, name)
        if key not in values:
            values[key] = value_of(loaded[arm, seed], name)
        return values[key]

    found: list[tuple[Hypothesis, list[Pair], str]] = []
    for h in hypotheses:
        both = [s for s in seeds if (h.arm, s) in loaded and (h.reference, s) in loaded]
        pairs = []
        for seed in both:
            (a, a_reached), (r, r_reached) = (
                value(side, seed, h.endpoint) for side in (h.arm, h.reference)
            )
            pairs.append(
                Pair(
                    seed=seed,
                    arm=a,
                    reference=r,
                    arm_reached=a_reached,
                    reference_reached=r_reached,
                )
            )
        usable = [p for p in pairs if math.isfinite(p.arm) and math.isfinite(p.reference)]
        sides = [loaded[side, seed] for side in (h.arm, h.reference) for seed in both]
        if unlike := unlike_timings(h, sides):
            found.append((h, [], unlike))  # not even an estimate: it would compare machines
        else:
            found.append((h, usable, why_not(h, seeds, pairs)))
    return decide(found)


def decide(found: Sequence[tuple[Hypothesis, list[Pair], str]]) -> list[Verdict]:
    """Return the verdicts of hypotheses with their pairs, and why some cannot be decided."""
    weighed = [weigh_pairs(h, pairs) for h, pairs, _ in found]
    decidable = [i for i, (_, _, why) in enumerate(found) if not why and weighed[i] is not None]
    adjusted = dict(zip(decidable, holm([p_of(weighed[i]) for i in decidable]), strict=True))
    return [
        verdict_of(h, pairs, why, weighed[i], adjusted.get(i), len(decidable))
        for i, (h, pairs, why) in enumerate(found)
    ]


def p_of(evidence: Evidence | None) -> float:
    """Return the p-value with which a hypothesis enters the family."""
    return 1.0 if evidence is None else evidence.decisive_p


def weigh_pairs(h: Hypothesis, pairs: Sequence[Pair]) -> Evidence | None:
    """Return what the pairs say; None without any, or where a ratio is not defined."""
    if not pairs:
        return None
    if h.scale == "difference":
        return weigh([p.arm - p.reference for p in pairs], h.margin)
    if any(p.arm <= 0 or p.reference <= 0 for p in pairs):
        return None
    return weigh([math.log(p.arm / p.reference) for p in pairs], math.log1p(h.margin))


def verdict_of(
    h: Hypothesis,
    pairs: Sequence[Pair],
    why: str,
    evidence: Evidence | None,
    p_holm: float | None,
    family: int,
) -> Verdict:
    """Return the verdict on one hypothesis."""
    plain = Verdict(
        hypothesis=h,
        verdict="inconclusive",
        reason=why or "a value is not above 0, so that there is no ratio",
        pairs=tuple(pairs),
    )
    nobody = bool(pairs) and not any(p.arm_reached or p.reference_reached for p in pairs)
    if evidence is None or nobody:
        return plain  # two bounds make no estimate
    back = math.exp if h.scale == "ratio" else float
    known = not math.isnan(evidence.low)
    plain = replace(
        plain,
        estimate=back(evidence.estimate),
        low=back(evidence.low) if known else None,
        high=back(evidence.high) if known else None,
        p_holm=p_holm,
    )
    if why:
        return plain
    assert p_holm is not None
    region = evidence.region if p_holm <= ALPHA else None
    if region is None:
        needed = seeds_needed(evidence, ALPHA / family)
        return replace(plain, reason=why_open(evidence, p_holm, needed), seeds_needed=needed)
    censored = sum(plain.censored)
    if region == "within" and censored:
        # Runs that end at the same horizon look alike, whatever they would have come to.
        reason = (
            f"{censored} runs did not reach the target: nobody can tell that the arms are equal"
        )
        return replace(plain, reason=reason)
    return replace(plain, verdict=decision(h, region), reason=what_decided(h, region))


def decision(h: Hypothesis, region: Region) -> Decision:
    """Say what it means for a claim that the effect is in a region."""
    better: Region = "above" if h.direction == "higher" else "below"
    worse: Region = "below" if better == "above" else "above"
    claimed: Region = {"better": better, "worse": worse, "equal": "within"}[h.claim]
    return "supported" if region == claimed else "refuted"


def what_decided(h: Hypothesis, region: Region) -> str:
    """Say where the interval lies."""
    if region == "within":
        return "equivalent: the 90% interval lies within the margin"
    better = (region == "above") == (h.direction == "higher")
    return f"{'better' if better else 'worse'} by more than the margin"


def why_open(evidence: Evidence, p_holm: float, needed: int | None) -> str:
    """Say why seeds that are all there do not decide, and how many would."""
    if evidence.low == evidence.high and evidence.n < FEWEST_EQUAL:
        return f"{evidence.n} equal values are too few to know how much they would differ"
    if evidence.interval_agrees:
        why = f"decided alone, but not among all hypotheses (Holm: p = {p_holm:.2g})"
    else:
        why = "the interval reaches across the margin"
    if needed is None:
        return f"{why}; the effect may be just the margin, which no number of seeds decides"
    return f"{why}; about {needed} seeds would decide"


def unlike_timings(h: Hypothesis, runs: Sequence[Run]) -> str:
    """Say why timings of some runs do not compare; "" where they do, or nothing was timed."""
    endpoint = endpoint_of(h.endpoint)
    if endpoint is None or endpoint.kind != "measured":
        return ""
    unlike = unlike_machines([run.manifest for run in runs])
    return f"timings of unlike machines do not compare: {'; '.join(unlike)}" if unlike else ""


def why_not(h: Hypothesis, seeds: Sequence[int], pairs: Sequence[Pair]) -> str:
    """Say why nothing can be decided whatever the values are; "" where it can."""
    endpoint = endpoint_of(h.endpoint) or Endpoint(name=h.endpoint)
    usable = [p for p in pairs if math.isfinite(p.arm) and math.isfinite(p.reference)]
    if len(seeds) < 2:
        return "one seed has no interval, so there is no verdict; give the study more"
    if len(pairs) < len(seeds):
        return f"{len(seeds) - len(pairs)} of {len(seeds)} seeds are missing or failed"
    if len(usable) < len(pairs):
        return f"{len(pairs) - len(usable)} of {len(pairs)} seeds have no {h.endpoint}"
    if not any(p.arm_reached or p.reference_reached for p in pairs):
        return f"no run of either arm reached {100 * (endpoint.target or 0):g}%"
    return ""
