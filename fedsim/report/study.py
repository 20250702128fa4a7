"""The report of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim import units
from fedsim.ledger.read import Run
from fedsim.report.arms import Arm
from fedsim.report.curves import arm_curve
from fedsim.report.details import bills, health, layer_health, partition
from fedsim.report.hostile import hostile_section
from fedsim.report.page import Page, Section
from fedsim.report.pictures import accuracy_by_cost, accuracy_by_round, forest, windows
from fedsim.report.privacy import study_section
from fedsim.report.sections import failures_section, manifest_section, method_section
from fedsim.report.tables import arms_table, over_seeds, published_rows
from fedsim.report.verdicts import because, effect, interval, margin, sentence
from fedsim.study.design import Study, Values, label_of, named
from fedsim.study.published import beside
from fedsim.study.tuning import Curve
from fedsim.study.verdicts import Verdict

MOST_ANSWERS = 12
STATISTICS = (
    "Arms are paired by seed: one seed fixes who holds what, who takes part and the initial draw, "
    "for all arms. Effects are means of paired differences, or of log-ratios for costs; intervals "
    "are BCa bootstraps with 10,000 resamples at an expanded level, which covers at 95% with few "
    "seeds.",
    "A hypothesis is supported if its interval lies beyond the margin on the claimed side, refuted "
    "if it lies beyond it on the other side or the two are equivalent (two one-sided tests at 5%) "
    "where a difference was claimed; all p-values are corrected together (Holm). A run that did "
    "not reach its target counts with all that it spent (restricted mean).",
)


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """What the report of a study is made of.

    Attributes:
        study: what was asked.
        runs: where the complete results lie, by arm and seed.
        read: opens one.
        arms: their figures over seeds.
        verdicts: on the study's hypotheses.
        curves: what tuning found, by arm.
        failures: results that failed and why, a line each.
        tuning_failures: the same of runs that only served to choose.
        partitions: by setting, examples by client and label of the first seed; empty where the
            data is not at hand.
    """

    study: Study
    runs: Mapping[tuple[Values, int], Path]
    read: Callable[[Path], Run]
    arms: Sequence[Arm]
    verdicts: Sequence[Verdict]
    curves: Mapping[Values, Curve]
    failures: Sequence[str]
    tuning_failures: Sequence[str]
    partitions: Mapping[str, npt.NDArray[np.int64]]


def study_page(data: StudyData) -> Page:
    """Return the report of a study."""
    study = data.study
    loaded = {key: data.read(path) for key, path in data.runs.items()}
    runs = list(loaded.values())
    by_arm = {
        arm: [loaded[arm, s] for s in study.seeds if (arm, s) in loaded] for arm in study.arms
    }
    compared = compared_axes(study)

    panels = {
        title: {name: c for name, arm in arms.items() if (c := arm_curve(by_arm[arm]))}
        for title, arms in grouped(study, compared).items()
    }
    panels = {title: curves for title, curves in panels.items() if curves}
    accuracy = accuracy_by_round(panels, study.targets) if panels else None
    promise, hostile = study_section(study, by_arm), hostile_section(study, by_arm)
    differences = forest(data.verdicts) if any(v.low is not None for v in data.verdicts) else None
    sections = [
        verdicts_section(data.verdicts),
        published_section(study, data),
        *(section for section in (promise, hostile) if section),
        Section(
            name="curves", title="Accuracy by round", picture=accuracy if differences else None
        ),
        Section(
            name="price",
            title="What accuracy costs",
            picture=accuracy_by_cost(panels, study.targets) if panels else None,
        ),
        arms_section(data.arms, study),
        *tuning_sections(study, data.curves, compared),
        health_section(study, compared, by_arm),
        Section(
            name="visits",
            title="The clients' bills",
            picture=bills(visits(study, compared, by_arm)),
            missing="" if runs else "No run is complete.",
        ),
        partition_section(data.partitions),
        failures_section(
            labelled(loaded),
            data.failures,
            data.tuning_failures,
            missing=len(study.arms) * len(study.seeds) - len(loaded),
        ),
        *([method_section(runs, STATISTICS)] if runs else []),
        *([manifest_section(runs, study.document())] if runs else []),
    ]
    return Page(
        title=f"{study.name}: fedsim",
        question=study.about or study.name,
        notice=notice_of(study, len(data.runs)),
        answers=tuple((v.verdict, sentence(v)) for v in first_verdicts(data.verdicts)),
        more=summary_of(data.verdicts),
        picture=differences or accuracy,
        sections=[section for section in sections if has_content(section)],
    )


def labelled(runs: Mapping[tuple[Values, int], Run]) -> dict[str, Run]:
    """Name each run by its arm and seed."""
    return {f"{label_of(arm)}, seed {seed}": run for (arm, seed), run in runs.items()}


def has_content(section: Section) -> bool:
    """Say whether there is anything in a section."""
    return bool(section.text or section.picture or section.table[1] or section.missing)


def notice_of(study: Study, complete: int) -> str:
    """Say that runs are missing."""
    cells = len(study.arms) * len(study.seeds)
    if complete == cells:
        return ""
    return f"Of {cells} results {cells - complete} are missing: nothing here is final."


def first_verdicts(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return what to say first: of many verdicts, those on the first endpoint."""
    if len(verdicts) > MOST_ANSWERS:
        first = verdicts[0].hypothesis.endpoint
        verdicts = [v for v in verdicts if v.hypothesis.endpoint == first]
    return list(verdicts[:MOST_ANSWERS])


def summary_of(verdicts: Sequence[Verdict]) -> str:
    """Count the verdicts."""
    if not verdicts:
        return "This study has no hypothesis, so it gives figures and no verdict."
    words = ("supported", "refuted", "inconclusive")
    found: list[str] = [v.verdict for v in verdicts]
    counts = ", ".join(f"{found.count(word)} {word}" for word in words)
    return f"{len(verdicts)} hypotheses: {counts}."


def compared_axes(study: Study) -> tuple[str, ...]:
    """Return the axes that tell the arms of one picture apart; the others have a panel each."""
    changed = dict.fromkeys(key for h in study.hypotheses for key in h.changed)
    return tuple(changed) or tuple(study.axes)[-1:]


def grouped(study: Study, compared: Sequence[str]) -> dict[str, dict[str, Values]]:
    """Return the arms by what is not compared, then by what is."""
    found: dict[str, dict[str, Values]] = {}
    for arm in study.arms:
        title = named(tuple((k, v) for k, v in arm if k not in compared))
        name = ", ".join(str(v) for k, v in arm if k in compared) or "base"
        found.setdefault(title, {})[name] = arm
    return found


def visits(
    study: Study, compared: Sequence[str], by_arm: Mapping[Values, Sequence[Run]]
) -> dict[str, list[Run]]:
    """Return the runs of each compared value, whatever the other axes were."""
    found: dict[str, list[Run]] = {}
    for arms in grouped(study, compared).values():
        for name, arm in arms.items():
            found.setdefault(name, []).extend(by_arm[arm])
    return {name: runs for name, runs in found.items() if runs}


def verdicts_section(verdicts: Sequence[Verdict]) -> Section:
    """Every verdict, with why."""
    rows: list[tuple[str, ...]] = [
        (
            *(v.hypothesis.text, v.verdict, effect(v), interval(v), margin(v.hypothesis)),
            *(str(len(v.pairs)), units.shown(v.p_holm), v.kind, because(v)),
        )
        for v in verdicts
    ]
    head = ("hypothesis", "verdict", "effect", "95% interval", "margin", "seeds", "p (Holm)")
    return Section(name="verdicts", title="Verdicts", table=((*head, "kind", "because"), rows))


def published_section(study: Study, data: StudyData) -> Section:
    """What others published, beside what was found here."""
    text: tuple[str, ...] = ()
    if study.published and study.tune and study.tune.split == "test":
        text = (
            "Values were chosen by the test split's own curve, as in the publication: these "
            "figures may stand beside its own, and decide nothing.",
        )
    table = published_rows(beside(study, data.runs, data.read))
    return Section(name="published", title="Beside what is published", text=text, table=table)


def arms_section(arms: Sequence[Arm], study: Study) -> Section:
    """The figures of every arm: mean and deviation over the seeds."""
    table = arms_table(", ".join(a.rpartition(".")[2] for a in study.axes), arms, study.targets)
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    head = tuple(str(column.header) for column in table.columns)
    rows: list[tuple[str, ...]] = list(zip(*cells, strict=True))
    text = f"{over_seeds(len(study.seeds)).capitalize()}."
    return Section(name="arms", title="The arms in figures", text=(text,), table=(head, rows))


def tuning_sections(
    study: Study, curves: Mapping[Values, Curve], compared: Sequence[str]
) -> list[Section]:
    """What was tuned, a picture for each grid, and what was chosen."""
    tune = study.tune
    if tune is None:
        return []
    chosen = {arm: curve for arm, curve in curves.items() if curve.best}
    text = (
        f"For each arm by itself, by {tune.endpoint} on the {tune.split} split over "
        f"{len(tune.seeds)} seed(s). Grids have a ratio of 10^(1/3), and grew until the best value "
        "was inside them.",
        *(f"{label_of(arm)}: {c.problem}." for arm, c in curves.items() if c.problem),
    )
    rows = [(label_of(arm), named(curve.best or ())) for arm, curve in chosen.items()]
    table = (("arm", "chosen"), rows)
    panels = {
        title: {name: curves[arm] for name, arm in arms.items() if arm in chosen}
        for title, arms in grouped(study, compared).items()
    }
    panels = {title: arms for title, arms in panels.items() if arms}
    pictures = [windows(panels, key, tune) for key in tune.grids if panels]
    first = pictures[0] if pictures else None
    sections = [
        Section(name="windows", title="Tuning", text=text, picture=first, table=table),
        *(Section(name=p.name, title=p.title, picture=p) for p in pictures[1:]),
    ]
    return sections


def health_section(
    study: Study, compared: Sequence[str], by_arm: Mapping[Values, Sequence[Run]]
) -> Section:
    """Zero, dead and saturated outputs by layer."""
    picture = health(
        {
            title: {name: layer_health(by_arm[arm]) for name, arm in arms.items()}
            for title, arms in grouped(study, compared).items()
        }
    )
    missing = "" if picture else 'Nobody looked: measure.level = "full", or full_every, would.'
    return Section(name="layers", title="Activation health", picture=picture, missing=missing)


def partition_section(partitions: Mapping[str, Any]) -> Section:
    """Who holds what."""
    if not partitions:
        missing = "The data is not at hand, so that nobody can say who holds which label."
        return Section(name="shares", title="The partition", missing=missing)
    return Section(name="shares", title="The partition", picture=partition(partitions))
