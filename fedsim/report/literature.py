"""What others published of activations under differential privacy, beside a study's verdicts."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.report.study import StudyData
from fedsim.report.verdicts import effect, interval
from fedsim.study.verdicts import Decision, Verdict


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published comparison with ReLU at an epsilon of 1, in points of accuracy.

    ``points`` is what was found; None where the publication speaks of a direction alone. The
    activation may have any parameters.
    """

    activation: str
    dataset: str
    points: float | None
    source: str


CLAIMS = (
    Claim(activation="tanh", dataset="mnist", points=97.06 - 95.11, source="DPSUR, 95.11 to 97.06"),
    Claim(
        activation="tanh",
        dataset="fashion_mnist",
        points=83.63 - 80.25,
        source="DPSUR, 80.25 to 83.63",
    ),
    *(
        Claim(
            activation="tempered_sigmoid",
            dataset=dataset,
            points=None,
            source="Papernot et al. 2021",
        )
        for dataset in ("mnist", "fashion_mnist")
    ),
)
AGREES: dict[Decision, str] = {
    "supported": "agrees with",
    "refuted": "CONTRADICTS",
    "inconclusive": "neither agrees with nor contradicts",
}


def beside_the_literature(title: str, data: StudyData) -> list[str]:
    """Say of each published claim what this study's paired runs say of the same pair.

    Args:
        title: names the study.
        data: of which the hypotheses on an activation against ReLU at the published epsilon count.
    """
    study = data.study
    dataset = str(study.base.get("data.dataset", "digits"))
    said: list[str] = []
    for claim in CLAIMS:
        if claim.dataset != dataset:
            continue
        for verdict in data.verdicts:
            arm, reference = dict(verdict.hypothesis.arm), dict(verdict.hypothesis.reference)
            pair = tuple(
                str(side.get("model.activation")).partition("(")[0] for side in (arm, reference)
            )
            # What was published is of DP-SGD, which protects examples.
            published = (arm.get("privacy.level"), arm.get("privacy.target_epsilon"))
            if pair == (claim.activation, "relu") and published == ("example", 1.0):
                said.append(compared(title, claim, verdict))
    return said


def compared(title: str, claim: Claim, verdict: Verdict) -> str:
    """Say what was published and what was found, in a sentence."""
    published = "ahead of" if claim.points is None else f"{claim.points:+.2f} points from"
    found = (
        verdict.reason
        if verdict.estimate is None
        else f"{effect(verdict)} {interval(verdict)} over {len(verdict.pairs)} seeds"
    )
    return (
        f"{title}, epsilon 1: {claim.activation} is {published} relu under DP-SGD "
        f"({claim.source}). "
        f"Here: {found}, which {AGREES[verdict.verdict]} it."
    )
