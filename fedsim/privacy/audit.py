"""An audit of a private mechanism in one run: a lower bound on epsilon, and checks of its parts.

Canaries are contributions that nobody makes, as long as clipping allows and at right angles to
each other, which is the worst case. Each is in or out by a fair coin. The mechanism runs once, and
whoever sees its releases guesses for the canaries of the highest and of the lowest scores; how
many, is fixed beforehand. What they are right about bounds epsilon from below
(:mod:`fedsim.privacy.audit_bound`), which stands beside what an accountant grants from above. A
bound above that refutes the mechanism; one below it is no proof.

A white-box audit at the example's level sees every step's noised gradient, at the user's level
every round's noised sum. Both are the same to this page: see :class:`Mechanism`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedsim.privacy.audit_bound import epsilon_lower_bound
from fedsim.privacy.audit_checks import Check, checks, orthonormal
from fedsim.privacy.audit_claims import Claims, Floats, Make, Mechanism
from fedsim.randomness import stream

# Shares of the canaries that are guessed: half of them as in, half as out. Never all, as coins do
# not fall evenly. What the confidence lacks is divided by how many shares there are (Bonferroni),
# so that the best may be reported.
SHARES = (0.1, 0.4, 0.8)

# Of all checks together: a sound mechanism is contradicted by chance once in a thousand audits.
CHECK_LEVEL = 0.001

ROOM = 2  # dimensions of a contribution for every canary


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How many canaries were guessed, how many rightly, and what that says of epsilon.

    ``epsilon_most`` is what it would have said, had all guesses been right.
    """

    guesses: int
    correct: int
    epsilon_lower: float
    epsilon_most: float


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit found.

    Attributes:
        claims: what the mechanism was held to.
        canaries: each in or out by a fair coin.
        confidence: of the largest lower bound.
        guesses: for each share that was fixed beforehand.
        checks: of the mechanism's parts.
        level: of all checks together.
    """

    claims: Claims
    canaries: int
    confidence: float
    guesses: tuple[Guesses, ...]
    checks: tuple[Check, ...]
    level: float

    @property
    def best(self) -> Guesses:
        """The guesses of the largest lower bound."""
        return max(self.guesses, key=lambda g: g.epsilon_lower)

    @property
    def epsilon_lower(self) -> float:
        """The epsilon that the mechanism has at least, with the confidence."""
        return self.best.epsilon_lower

    @property
    def epsilon_most(self) -> float:
        """The largest bound that so many canaries can give: below a larger epsilon it is blind."""
        return max(g.epsilon_most for g in self.guesses)

    @property
    def check_level(self) -> float:
        """The p-value below which a single check contradicts its claim (Bonferroni)."""
        return self.level / max(1, len(self.checks))

    @property
    def refuted(self) -> tuple[Check, ...]:
        """The checks that contradict a claim."""
        return tuple(c for c in self.checks if c.p_value < self.check_level)

    @property
    def contradicted(self) -> bool:
        """Whether anything that is claimed cannot be true."""
        return bool(self.refuted) or self.epsilon_lower > self.claims.epsilon

    def sentences(self) -> Iterator[str]:
        """Yield what was found, a line each, the verdict last."""
        claims, best = self.claims, self.best
        yield (
            f"epsilon is at least {self.epsilon_lower:.4g} ({self.confidence:.0%} confidence: "
            f"{best.correct} of {best.guesses} guesses right; {self.canaries} canaries can show "
            f"{self.epsilon_most:.3g}) and at most {claims.epsilon:.4g} ({claims.accountant}), at "
            f"delta = {claims.delta:g}"
        )
        for check in self.checks:
            verdict = "CONTRADICTED" if check in self.refuted else "holds"
            yield f"{check.name}: {verdict}: {check.sentence}; p = {check.p_value:.3g}"
        if self.checks:
            yield (
                f"a check contradicts below p = {self.check_level:.1g}: in one of "
                f"{1 / self.level:,.0f} audits of a sound mechanism at most"
            )
        if self.epsilon_lower > claims.epsilon:
            yield "the guarantee is CONTRADICTED: the lower bound is above the upper one"
        elif self.refuted:
            yield "the mechanism is CONTRADICTED: it does not do what its epsilon is computed from"
        else:
            yield "nothing contradicts the guarantee, which is no proof of it"

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            **asdict(self),
            "epsilon_lower": self.epsilon_lower,
            "epsilon_most": self.epsilon_most,
            "epsilon_upper": self.claims.epsilon,
            "refuted": [check.name for check in self.refuted],
            "contradicted": self.contradicted,
        }


def audit(
    make: Make,
    claims: Claims,
    *,
    canaries: int,
    seed: int,
    confidence: float = 0.95,
    dimension: int = 0,
) -> AuditReport:
    """Audit a mechanism against what is claimed of it.

    Args:
        make: makes the mechanism, from its first clipping norm.
        claims: what it is held to.
        canaries: at least 1; more allow a larger bound: at delta = 0, 100 at most 2.95, 500 at
            most 4.58.
        seed: of the canaries and the coins; the mechanism's draws are its own.
        confidence: of the bound, in (0, 1).
        dimension: of contributions; 0: enough for canaries at right angles.

    Raises:
        ValueError: there are no canaries, or the confidence is none.
    """
    if canaries < 1:
        raise ValueError(f"canaries = {canaries}: an audit needs at least one")
    rng = stream(seed, "audit")
    dimension = dimension or ROOM * canaries
    directions = claims.clipping_norm * orthonormal(canaries, dimension, rng)
    included = rng.random(canaries) < 0.5
    scores = run(make(claims.clipping_norm), directions, included, rounds=claims.rounds)
    return AuditReport(
        claims=claims,
        canaries=canaries,
        confidence=confidence,
        guesses=tuple(guess(scores, included, delta=claims.delta, confidence=confidence)),
        checks=tuple(checks(make, claims, dimension=dimension, rng=rng)),
        level=CHECK_LEVEL,
    )


def run(mechanism: Mechanism, canaries: Floats, included: np.ndarray, *, rounds: int) -> Floats:
    """Run a mechanism once on the canaries that are in, and return every canary's score.

    That is the sum of its inner products with the releases, each in units of its clipping norm.

    Args:
        canaries: (m, d).
        included: (m,), bool.
        rounds: how many releases.
    """
    members, seen = canaries[included], np.zeros(canaries.shape[1])
    for _ in range(rounds):
        chosen, norm = mechanism.sample(len(members)), mechanism.clipping_norm
        examples = np.ones(len(chosen), np.int64)
        seen += mechanism.release(members[chosen], examples) / norm
    return np.asarray(canaries @ seen)


def guess(
    scores: Floats, included: np.ndarray, *, delta: float, confidence: float
) -> Iterator[Guesses]:
    """Yield, for each share, what guessing the highest as in and the lowest as out comes to.

    Args:
        scores: (m,).
        included: (m,), bool: the truth.
        delta, confidence: see :func:`epsilon_lower_bound`; the confidence is of all shares at once.
    """
    order, canaries = np.argsort(scores, kind="stable"), len(scores)
    for share in SHARES:
        half = max(1, round(share * canaries / 2))
        low, high = order[: min(half, canaries - half)], order[canaries - half :]
        guesses, correct = len(low) + len(high), int(included[high].sum() + (~included[low]).sum())
        found, most = (
            epsilon_lower_bound(
                canaries=canaries,
                guesses=guesses,
                correct=right,
                delta=delta,
                confidence=1 - (1 - confidence) / len(SHARES),
            )
            for right in (correct, guesses)
        )
        yield Guesses(guesses=guesses, correct=correct, epsilon_lower=found, epsilon_most=most)
