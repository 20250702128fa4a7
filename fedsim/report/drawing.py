"""Figures as SVG for a page, which follow its light or dark theme, and as files for a paper.

On a page every colour is a CSS variable: matplotlib draws with colours that stand for them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.ledger.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (light, dark) of each variable of a page; the series are in the order of the arms.
THEMES = {
    "ink": ("#1b1f24", "#e6edf3"),
    "muted": ("#57606a", "#9da7b3"),
    "rule": ("#d0d7de", "#3a424c"),
    "zone": ("#e6ebf1", "#262c36"),
    "series-0": ("#1f5fbf", "#7fb0ff"),
    "series-1": ("#b8530a", "#ffab5e"),
    "series-2": ("#1a7f4b", "#67d39a"),
    "series-3": ("#7a3fb0", "#c9a0ff"),
    "series-4": ("#b3261e", "#ff8f88"),
    "series-5": ("#0b7285", "#66d9e8"),
    "series-6": ("#6b5b00", "#d9c24a"),
    "series-7": ("#a61e6d", "#ff8fd0"),
}
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))
MARKERS = "osD^vPX*"
WIDE_INCHES, NARROW_INCHES = 8.2, 4.0


@dataclass(frozen=True)
class Pen:
    """The colours that a figure is drawn with, by variable."""

    colours: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        """Return a colour."""
        return self.colours[name]

    def series(self, number: int) -> dict[str, Any]:
        """Return colour and dashes of a series, unlike those of any other but every 24th."""
        count = len(self.colours) - 4
        return {
            "color": self[f"series-{number % count}"],
            "linestyle": DASHES[number // count % len(DASHES)],
        }

    def style(self) -> Any:
        """Return matplotlib's settings."""
        return {
            "svg.fonttype": "none",
            "svg.hashsalt": "fedsim",
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.edgecolor": self["rule"],
            "axes.labelcolor": self["muted"],
            "axes.titlecolor": self["ink"],
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": self["rule"],
            "grid.linewidth": 0.5,
            "xtick.color": self["rule"],
            "ytick.color": self["rule"],
            "xtick.labelcolor": self["muted"],
            "ytick.labelcolor": self["muted"],
            "text.color": self["ink"],
            "legend.frameon": False,
            "legend.labelcolor": self["ink"],
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
        }


# No figure has these colours by itself, so that they can be found again in its SVG.
THEMED = Pen({name: f"#0f0e{16 + i:02x}" for i, name in enumerate(THEMES)})
LIGHT = Pen({name: light for name, (light, _) in THEMES.items()})

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # head and rows


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of a report.

    Attributes:
        name: names its file and its place on the page.
        title: what it shows, a line.
        caption: how to read it, and what its figures are.
        kinds: counted, measured, modelled: what it is made of.
        draw: draws it, ``narrow`` or not.
        table: the same as numbers, for those who would rather read or cannot see.
    """

    name: str
    title: str
    caption: str
    kinds: tuple[str, ...]
    draw: Callable[[Pen, bool], Figure]
    table: Table = field(default=((), []))


def marker(number: int) -> str:
    """Return the marker of a series."""
    return MARKERS[number % len(MARKERS)]


def new_figure(
    narrow: bool, *, rows: int, columns: int, row_inches: float, **options: Any
) -> tuple[Figure, list[Any]]:
    """Return a figure with panels in rows and columns (one below another where it is narrow)."""
    from matplotlib.figure import Figure

    width = NARROW_INCHES if narrow else WIDE_INCHES
    if narrow:
        rows, columns = rows * columns, 1
    figure = Figure(figsize=(width, rows * row_inches), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def saved(picture: Picture, pen: Pen, *, narrow: bool = False, **options: Any) -> bytes:
    """Draw a figure and return it as a file's bytes."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(pen.style()):
        picture.draw(pen, narrow).savefig(buffer, **options)
    return buffer.getvalue()


def page_svg(picture: Picture, *, narrow: bool) -> str:
    """Return a figure to stand in a page: themed, with ids of its own and a name to be read out."""
    options = {"format": "svg", "metadata": {"Date": None}}
    text = saved(picture, THEMED, narrow=narrow, **options).decode()
    text = text[text.index("<svg") :]
    prefix = f"{picture.name}-{'narrow' if narrow else 'wide'}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font:[^;\"]*?(\d+(?:\.\d+)?px)[^;\"]*", r"font-size: \1", text)
    named = f'<svg role="img" aria-label="{escaped(picture.title)}"'
    text = text.replace("<svg", named, 1)
    for name, colour in THEMED.colours.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", text)


def write_file(picture: Picture, path: Path) -> None:
    """Write a figure as a file of its own, .svg or .png, in the light theme.

    Raises:
        LedgerError: it cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    data = saved(picture, LIGHT, format=kind, dpi=200, facecolor="white", metadata=metadata)
    write_atomically(path, data)


def escaped(text: str) -> str:
    """Return text for an attribute."""
    from markupsafe import escape

    return str(escape(text))


def columns_for(panels: int, most: int = 3) -> tuple[int, int]:
    """Return rows and columns for so many panels."""
    columns = min(panels, most)
    return -(-panels // columns), columns


def hide_unused(axes: Sequence[Any], used: int) -> None:
    """Leave panels empty that nothing is drawn in."""
    for axis in axes[used:]:
        axis.set_visible(False)
