"""The one table: what each activation keeps under a promise, leaks without one, and costs.

It is made of finished studies, each over ``privacy.level``, epsilon and the activation, and of the
rows that attacks left. Nothing in it is typed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim import units
from fedsim.ledger.read import Run
from fedsim.measure.timings import Interval
from fedsim.privacy.attacks.gallery import Reconstructions
from fedsim.privacy.attacks.rows import LeakageRow
from fedsim.report.drawing import Table
from fedsim.report.leakage import COLUMNS, Leakage, figure_text, leakages
from fedsim.report.leaks import attack_name, headline, leakage_sections, model_of
from fedsim.report.literature import beside_the_literature
from fedsim.report.page import Page, Section
from fedsim.report.privacy import (
    NOTHING,
    Promised,
    accuracy_by_epsilon,
    conditions_said,
    head_of,
    promises_of,
    shown_accuracy,
)
from fedsim.report.sections import failures_section, manifest_section, method_section
from fedsim.report.study import STATISTICS, StudyData, labelled, verdicts_section
from fedsim.report.tables import with_interval
from fedsim.report.verdicts import sentence
from fedsim.study.design import Study, Values
from fedsim.study.figures import spent_until
from fedsim.study.statistics import LEVEL, intervals
from fedsim.study.verdicts import Verdict

ACTIVATION = "model.activation"
COMPARED_BATCH = 8  # of an attack that was measured at several, the nearest to it is in the table
# What a run costs: title, cost (as in fedsim.study.figures.COSTS), how it is printed.
COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("training (counted)", "train_flops", units.flops),
    ("client CPU (measured)", "cpu_seconds", units.seconds),
    ("bytes, both ways (counted)", "bytes", units.size),
)
READING = (
    "Accuracies are of the test part after the last round, with the 95% interval of the mean "
    "over seeds. Costs are of a whole run, all clients together, at the smallest epsilon. "
    "Epsilon does not count that rates were tuned on the same people.",
    "Leakage is of a single client's clear update from the model as it starts, by whoever sees "
    "it; where its column names a level, of the update as it is under that promise, clipped and "
    "noised by z clipping norms: at level user by whoever knows everybody else's update and the "
    "sum, since a server that clips and adds noise itself sees clear ones.",
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One study of the table, with its runs by arm."""

    data: StudyData
    by_arm: Mapping[Values, Sequence[Run]]

    @property
    def study(self) -> Study:
        """What was asked."""
        return self.data.study

    @property
    def dataset(self) -> str:
        """What was learned."""
        return str(self.study.base.get("data.dataset", "digits"))

    @property
    def level(self) -> str:
        """Whom the study promises something."""
        levels = {str(self.study.value(arm, "privacy.level")) for arm in self.study.arms}
        return ", ".join(sorted(levels - {NOTHING})) or NOTHING

    @property
    def title(self) -> str:
        """Name the study's table."""
        return f"{self.dataset}, level {self.level}"

    @property
    def promises(self) -> list[Promised]:
        """What each arm promised and was worth."""
        return promises_of(self.study, self.by_arm)


def part_of(data: StudyData) -> Part:
    """Open the runs of a study."""
    loaded = {key: data.read(path) for key, path in data.runs.items()}
    study = data.study
    runs = {arm: [loaded[arm, s] for s in study.seeds if (arm, s) in loaded] for arm in study.arms}
    return Part(data=data, by_arm=runs)


def table_page(
    studies: Sequence[StudyData],
    rows: Sequence[LeakageRow],
    shown: Sequence[Reconstructions],
) -> Page:
    """Return the page that holds the one table, and what it rests on.

    Args:
        studies: each over ``model.activation``, and promises of one level.
        rows: what attacks found; any data set's.
        shown: images of theirs.
    """
    parts = [part_of(data) for data in studies]
    found = leakages(rows)
    panels = {part.title: part.promises for part in parts if part.promises}
    verdicts = [v for part in parts for v in part.data.verdicts]
    runs = [run for part in parts for of_arm in part.by_arm.values() for run in of_arm]
    said = [line for part in parts for line in beside_the_literature(part.title, part.data)]
    said += leakage_beside_the_literature(found)
    sections = [
        *(part_section(part, found) for part in parts),
        Section(
            name="epsilon",
            title="Accuracy against epsilon",
            picture=accuracy_by_epsilon(panels) if panels else None,
        ),
        Section(name="literature", title="Beside the literature", text=tuple(said)),
        *leakage_sections(rows, shown),
        guarantees_section(runs),
        verdicts_section(verdicts),
        failures_section(
            {f"{p.title}: {k}": r for p in parts for k, r in named_runs(p).items()},
            [f"{p.title}: {line}" for p in parts for line in p.data.failures],
            [f"{p.title}: {line}" for p in parts for line in p.data.tuning_failures],
            missing=sum(len(p.study.arms) * len(p.study.seeds) - len(p.data.runs) for p in parts),
        ),
        *([method_section(runs, STATISTICS)] if runs else []),
        *([manifest_section(runs, {p.title: p.study.document() for p in parts})] if runs else []),
    ]
    return Page(
        title="Privacy by activation: fedsim",
        question="What does each activation keep under a promise of privacy, leak, and cost?",
        notice=notice_of(parts),
        answers=tuple((v.verdict, f"{p.title}: {sentence(v)}") for p in parts for v in firsts(p)),
        picture=None,
        sections=[s for s in sections if s.text or s.picture or s.table[1] or s.missing],
    )


def named_runs(part: Part) -> dict[str, Run]:
    """Name a study's runs."""
    return labelled({key: part.data.read(path) for key, path in part.data.runs.items()})


def notice_of(parts: Sequence[Part]) -> str:
    """Say what is missing, and on which seeds the rest stands."""
    cells = sum(len(p.study.arms) * len(p.study.seeds) for p in parts)
    complete = sum(len(p.data.runs) for p in parts)
    if complete == cells:
        return ""
    there = "; ".join(
        f"{p.title}: {len(p.data.runs)} of {len(p.study.arms) * len(p.study.seeds)} runs"
        for p in parts
    )
    return f"Of {cells} results {cells - complete} are missing, and nothing is final ({there})."


def firsts(part: Part) -> list[Verdict]:
    """Return the verdicts on tanh under a promise, the pair that is published."""
    return [
        v
        for v in part.data.verdicts
        if dict(v.hypothesis.arm).get(ACTIVATION) == "tanh"
        and dict(v.hypothesis.arm).get("privacy.level") != NOTHING
    ]


def part_section(part: Part, found: Sequence[Leakage]) -> Section:
    """Return one study's part of the table: a line an activation."""
    promises = part.promises
    kinds = list(dict.fromkeys((p.level, p.asked) for p in promises))
    kinds.sort(key=lambda kind: kind[0] != NOTHING)
    accuracy = {(p.name, p.level, p.asked): shown_accuracy(p) for p in promises}
    attacks = compared_attacks(part.dataset, part.level, found)
    bills = costs_of(part)
    head = (
        "activation",
        *(head_of(level, asked, promises) for level, asked in kinds),
        *attacks,
        *(title for title, _, _ in COSTS),
    )
    rows = [
        (
            name,
            *(accuracy.get((name, *kind), units.MISSING) for kind in kinds),
            *(leaks.get(name, units.MISSING) for leaks in attacks.values()),
            *bills.get(name, (units.MISSING,) * len(COSTS)),
        )
        for name in dict.fromkeys(p.name for p in promises)
    ]
    table: Table = (head, rows)
    missing = "" if rows else "No run is complete."
    return Section(
        name="table",
        title=part.title,
        text=(*READING, *conditions_said(promises)),
        table=table,
        missing=missing,
    )


def compared_attacks(
    dataset: str, level: str, found: Sequence[Leakage]
) -> dict[str, dict[str, str]]:
    """Return what leaked of a data set: by attack and its figure, then by activation.

    Args:
        dataset: of the study.
        level: of its promise: attacks on clear updates are shown, and those on updates that were
            protected so.
        found: any data set's.
    """
    mine = [
        arm
        for arm in found
        if (arm.arm["dataset"], arm.arm["local_steps"]) == (dataset, 0)
        and arm.arm["level"] in (NOTHING, level)
        and headline(arm.arm["attack"], arm.figures)
    ]
    models = {model_of(arm) for arm in mine}
    nearest: dict[str, int] = {}
    for arm in mine:
        name, batch = attack_name(arm), int(arm.arm["batch"])
        best = nearest.setdefault(name, batch)
        nearest[name] = min(best, batch, key=lambda size: abs(size - COMPARED_BATCH))
    columns: dict[str, dict[str, str]] = {}
    for arm in sorted(mine, key=lambda arm: arm.arm["level"] != NOTHING):
        if arm.arm["batch"] != nearest[attack_name(arm)]:
            continue
        figure = headline(arm.arm["attack"], arm.figures)
        parts = [
            attack_name(arm).replace(f", {dataset}", "", 1),
            *([model_of(arm)] if len(models) > 1 else []),
            f"batch {arm.arm['batch']}: {COLUMNS[figure][0]}",
        ]
        text = figure_text(figure, arm.figures[figure])
        columns.setdefault(", ".join(parts), {})[arm.arm["activation"]] = text
    return columns


def costs_of(part: Part) -> dict[str, tuple[str, ...]]:
    """Return what a run costs by activation, at the smallest epsilon that was asked for."""
    private = [
        arm for arm in part.study.arms if part.study.value(arm, "privacy.level") != NOTHING
    ] or part.study.arms
    found: dict[str, tuple[str, ...]] = {}
    for arm in private:
        runs = part.by_arm[arm]
        name = ", ".join(str(v) for k, v in arm if not k.startswith("privacy."))
        if runs and name not in found:
            found[name] = tuple(
                cost_text([spent_on(run, cost) for run in runs], unit) for _, cost, unit in COSTS
            )
    return found


def spent_on(run: Run, cost: str) -> float | None:
    """Return what a whole run spent; None where a round does not say."""
    spent = float(spent_until(run.rounds, cost)[-1])
    return None if np.isnan(spent) else spent


def cost_text(values: Sequence[float | None], unit: Callable[[float], str]) -> str:
    """Print a cost with its interval over the seeds."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return units.MISSING
    mean = float(np.mean(known))
    if len(known) < 2:
        return unit(mean)
    ((low, high),) = intervals(np.asarray(known, np.float64), (LEVEL,))
    figure = Interval(estimate=mean, low=max(0.0, low), high=high)
    return unit(mean) if unit(figure.low) == unit(high) else with_interval(figure, unit)


def guarantees_section(runs: Sequence[Run]) -> Section:
    """Every guarantee that a run of the table gave, in full."""
    said = dict.fromkeys(run.manifest.guarantee for run in runs if run.manifest.guarantee)
    return Section(name="guarantees", title="What was promised", text=tuple(map(str, said)))


def leakage_beside_the_literature(found: Sequence[Leakage]) -> list[str]:
    """Say whether ReLU leaks most under analytic extraction, as others found."""
    said = []
    for dataset in dict.fromkeys(arm.arm["dataset"] for arm in found):
        by_batch: dict[int, dict[str, Interval]] = {}
        for arm in found:
            key = (arm.arm["attack"], arm.arm["dataset"], arm.arm["level"], arm.arm["local_steps"])
            if key == ("analytic", dataset, "none", 0):
                figure = arm.figures["recovered_at_1e_3"]
                by_batch.setdefault(arm.arm["batch"], {})[arm.arm["activation"]] = figure
        for batch, shares in sorted(by_batch.items()):
            if batch == COMPARED_BATCH and "relu" in shares:
                said.append(relu_leaks(dataset, batch, shares))
    return said


def relu_leaks(dataset: str, batch: int, shares: Mapping[str, Interval]) -> str:
    """Compare what comes back exactly through ReLU with what does through the others."""
    relu = shares["relu"]
    known = all(math.isfinite(end) for s in shares.values() for end in (s.low, s.high))
    more = [name for name, s in shares.items() if name != "relu" and s.low > relu.high]
    as_much = [
        name for name, s in shares.items() if name not in ("relu", *more) and s.high >= relu.low
    ]
    verdict = "contradicted" if more else "confirmed" if known and not as_much else "not decided"
    others = ", ".join(more or as_much)
    beyond = f" ({others}: as much, or more)" if others else ""
    text = figure_text("recovered_at_1e_3", relu)
    return (
        f"{dataset}: ReLU leaks most under analytic extraction, as the literature has it: "
        f"{verdict}{beyond}. Of a batch of {batch} through 'relu' came back exactly: {text}."
    )
