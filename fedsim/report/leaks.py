"""Leakage in a report: what attacks got by batch size, the figures, and the images side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.ledger.files import read_bytes
from fedsim.measure.timings import Interval
from fedsim.privacy.attacks.gallery import PICTURES, Reconstructions, read_gallery
from fedsim.privacy.attacks.rows import ARM, ROWS, LeakageRow, read_rows
from fedsim.report.drawing import Pen, Picture, Table, columns_for, marker, new_figure
from fedsim.report.leakage import COLUMNS, Leakage, figure_text, leakages
from fedsim.report.page import Page, Section
from fedsim.report.pictures import finish, order_of
from fedsim.report.reconstructions import reconstructions_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The figure by which an attack is summed up: the first of these that it has.
HEADLINES = ("labels_recovered", "recovered_at_1e_3", "auc")
MATCHED = "ssim"  # of attacks that search for images, whose matches are near and never exact
MATCHING = ("dlg", "cosine")


# By activation: the sizes of the batch, each with the figure.
Arms = dict[str, list[tuple[int, Interval]]]


def read_attacks(directory: Path) -> tuple[list[LeakageRow], list[Reconstructions]]:
    """Return what attacks left in a directory, and in those right below it.

    Raises:
        LedgerError: a file cannot be read.
        PrivacyError: a file is no such file.
    """
    rows: list[LeakageRow] = []
    shown: list[Reconstructions] = []
    for folder in (directory, *sorted(p for p in directory.iterdir() if p.is_dir())):
        if (path := folder / ROWS).is_file():
            rows += read_rows(read_bytes(path), place=str(path))
        if (path := folder / PICTURES).is_file():
            shown += of_one_batch(read_gallery(read_bytes(path), place=str(path)))
    return rows, shown


def of_one_batch(shown: Sequence[Reconstructions]) -> list[Reconstructions]:
    """Return the arms with as many images as can be shown, of the first such size of batch."""
    most = max((len(arm.originals) for arm in shown), default=0)
    full = [arm for arm in shown if len(arm.originals) == most]
    sent = {arm.name: arm.name.rpartition(", ")[2] for arm in full}
    return [arm for arm in full if sent[arm.name] == sent[full[0].name]]


def of_the_same_images(shown: Sequence[Reconstructions]) -> list[list[Reconstructions]]:
    """Return arms that follow each other and attacked the same images together."""
    groups: list[list[Reconstructions]] = []
    for arm in shown:
        if groups and np.array_equal(groups[-1][-1].originals, arm.originals):
            groups[-1].append(arm)
        else:
            groups.append([arm])
    return groups


def headline(attack: str, figures: Mapping[str, Interval]) -> str:
    """Return the name of the figure that sums an attack up; "" where it has none of them."""
    names = (MATCHED, *HEADLINES) if attack in MATCHING else HEADLINES
    return next((name for name in names if name in figures), "")


def attack_name(arm: Leakage) -> str:
    """Name an attack with its weights, its data and what protects from it."""
    weights = arm.arm["weights"]
    level = arm.arm["level"]
    parts = [
        f"{arm.arm['attack']}{'' if weights == 'honest' else f' ({weights})'}",
        str(arm.arm["dataset"]),
        *([f"{arm.arm['local_steps']} local steps"] if arm.arm["local_steps"] else []),
        *([f"level {level}, z {arm.arm['noise_multiplier']:.3g}"] if level != "none" else []),
    ]
    return ", ".join(parts)


def model_of(arm: Leakage) -> str:
    """Name the network that was attacked."""
    return f"{arm.arm['model']} of {arm.arm['depth']} x {arm.arm['width']}"


def leakage_sections(rows: Sequence[LeakageRow], shown: Sequence[Reconstructions]) -> list[Section]:
    """Return leakage by batch size, in figures, and in images; nothing where nobody attacked."""
    found = leakages(rows)
    sections = []
    if found:
        sections.append(
            Section(
                name="leakage",
                title="What leaks from an update",
                text=(
                    "Attacks by whoever sees a single client's update: what no promise at the "
                    "server protects from, unless updates are summed behind masks or noised at "
                    "the client.",
                ),
                picture=leakage_by_batch(found),
                table=leakage_figures(found),
            )
        )
    for number, group in enumerate(of_the_same_images(shown)):
        picture = reconstructions_picture(group, name=f"reconstructions-{number}")
        title = f"Originals and reconstructions: {group[0].name.partition(',')[0]}"
        sections.append(Section(name=f"images-{number}", title=title, picture=picture))
    return sections


def leakage_by_batch(found: Sequence[Leakage]) -> Picture | None:
    """A panel for each attack, a line for each activation; None where nothing was measured."""
    panels: dict[str, Arms] = {}
    titles: dict[str, str] = {}
    models = {model_of(arm) for arm in found}
    for arm in found:
        if name := headline(arm.arm["attack"], arm.figures):
            title = ", ".join([attack_name(arm), *([model_of(arm)] if len(models) > 1 else [])])
            titles[title] = COLUMNS[name][0]
            points = panels.setdefault(title, {}).setdefault(arm.arm["activation"], [])
            points.append((arm.arm["batch"], arm.figures[name]))
    if not panels:
        return None
    several = {title: arms for title, arms in panels.items() if sizes_of(arms) > 1}
    panels = several or panels  # a single size is a line of the table
    order = order_of(panels)

    def draw(pen: Pen, narrow: bool) -> Figure:
        rows, columns = columns_for(len(panels), most=2)
        figure, axes = new_figure(narrow, rows=rows, columns=columns, row_inches=2.7)
        for axis, (title, arms) in zip(axes, panels.items(), strict=False):
            axis.set_title(title)
            draw_arms = draw_lines if several else draw_points
            draw_arms(axis, arms, titles[title], order, pen)
        finish(figure, axes, len(panels), narrow, order if several else {}, pen)
        return figure

    numbers = [
        (title, name, str(batch), titles[title], figure_text(figure_of(titles[title]), figure))
        for title, arms in panels.items()
        for name, points in arms.items()
        for batch, figure in sorted(points, key=lambda point: point[0])
    ]
    shown = "bands" if several else "bars"
    return Picture(
        name="leakage",
        title=f"Leakage by {'batch size' if several else 'activation'}",
        caption=f"Means over the seeds; {shown} are 95% intervals. A share of 1 means that every "
        "example, or its label, came back.",
        kinds=("counted",),
        draw=draw,
        table=(("attack", "activation", "batch", "figure", "mean [95% interval]"), numbers),
    )


def draw_lines(axis: Any, arms: Arms, title: str, order: Mapping[str, int], pen: Pen) -> None:
    """Draw a figure by the size of the batch, a line for each activation."""
    batches = sorted({batch for points in arms.values() for batch, _ in points})
    for name, points in arms.items():
        style = pen.series(order[name])
        x, figures = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        y = [f.estimate for f in figures]
        axis.plot(x, y, marker=marker(order[name]), ms=3, lw=1.2, **style)
        low, high = [f.low for f in figures], [f.high for f in figures]
        axis.fill_between(x, low, high, color=style["color"], alpha=0.12, lw=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.set_xlabel("examples that the client holds")
    axis.set_ylabel(title)


def draw_points(axis: Any, arms: Arms, title: str, order: Mapping[str, int], pen: Pen) -> None:
    """Draw a figure of the one size of batch that there is, a row for each activation."""
    rows = [(name, batch, figure) for name in arms for batch, figure in arms[name]]
    for row, (name, _, figure) in enumerate(rows):
        color = pen.series(order[name])["color"]
        axis.plot([figure.low, figure.high], [row, row], color=color, lw=1.6)
        axis.plot([figure.estimate], [row], marker=marker(order[name]), ms=5, color=color)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    _, batch, _ = rows[0]
    axis.set_xlabel(f"{title}, of {batch} example{'s' if batch != 1 else ''} that the client holds")


def sizes_of(arms: Mapping[str, Sequence[tuple[int, Interval]]]) -> int:
    """Return at how many sizes of batch an attack was measured."""
    return len({batch for points in arms.values() for batch, _ in points})


def figure_of(title: str) -> str:
    """Return the name of the figure that is called so."""
    return next(name for name, column in COLUMNS.items() if column[0] == title)


def leakage_figures(found: Iterable[Leakage]) -> Table:
    """A line for each arm, with the columns in which arms differ and the figures that apply."""
    arms = list(found)
    keys = [
        name
        for name in ARM
        if name in ("attack", "activation") or len({arm.arm[name] for arm in arms}) > 1
    ]
    names = [name for name in COLUMNS if any(name in arm.figures for arm in arms)]
    head = (*(key.replace("_", " ") for key in keys), *(COLUMNS[name][0] for name in names))
    rows = [
        (
            *(str(arm.arm[key]) for key in keys),
            *(figure_text(name, arm.figures.get(name)) for name in names),
        )
        for arm in arms
    ]
    return head, rows


def attacks_page(directory: Path) -> Page:
    """Return the report of a directory in which attacks left their rows."""
    rows, shown = read_attacks(directory)
    sections = leakage_sections(rows, shown)
    datasets = ", ".join(dict.fromkeys(row.dataset for row in rows))
    return Page(
        title=f"{directory.name}: fedsim",
        question=f"What leaks from an update, by activation: {datasets}",
        sections=sections,
    )
