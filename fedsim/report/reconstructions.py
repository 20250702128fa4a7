"""Originals and what attacks made of them, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.privacy.attacks.gallery import MOST, Reconstructions
from fedsim.report.drawing import NARROW_INCHES, WIDE_INCHES, Pen, Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORIGINAL = "original"
LABEL_INCHES = 1.9  # beside the images, or above them where it is narrow
ROW_INCHES, TITLE_INCHES = 0.78, 0.2

# A line of images: what it is called, the images, black and white.
Line = tuple[str, Any, float, float]


def reconstructions_picture(
    shown: Sequence[Reconstructions], *, name: str = "reconstructions"
) -> Picture:
    """Draw the first images of each arm below their originals.

    Arms that follow each other and attacked the same images share the line of originals. An image
    that was not found is left empty.

    Args:
        shown: at least one arm.
        name: of the picture's file and place.
    """
    lines = lines_of(shown)

    def draw(pen: Pen, narrow: bool) -> Figure:
        from matplotlib.figure import Figure

        columns = max(len(images) for _, images, _, _ in lines)
        inches = ROW_INCHES + (TITLE_INCHES if narrow else 0)
        width = NARROW_INCHES if narrow else WIDE_INCHES
        figure = Figure(figsize=(width, inches * len(lines)), layout="constrained")
        axes = figure.subplots(len(lines), columns, squeeze=False)
        for row, (label, images, low, high) in zip(axes, lines, strict=True):
            for axis in row:
                axis.set_axis_off()
            for axis, image in zip(row, images, strict=False):
                draw_image(axis, image, low, high)
            colour = pen["muted"] if label == ORIGINAL else pen["ink"]
            if narrow:
                row[0].set_title(label, color=colour, fontsize=7)
            else:
                row[0].text(
                    -0.2,
                    0.5,
                    label,
                    color=colour,
                    ha="right",
                    va="center",
                    transform=row[0].transAxes,
                )
        return figure

    return Picture(
        name=name,
        title="Originals, and what attacks made of them",
        caption=f"The first {MOST} images of a batch at most; below each original what the attack "
        "that stands beside it made of it, or nothing where it found nothing.",
        kinds=("counted",),
        draw=draw,
        table=(("arm", "images"), [(arm.name, str(len(arm.originals[:MOST]))) for arm in shown]),
    )


def lines_of(shown: Sequence[Reconstructions]) -> list[Line]:
    """Return the lines of images: each arm's, below originals that are not there already."""
    lines: list[Line] = []
    last: Reconstructions | None = None
    for arm in shown:
        if last is None or not np.array_equal(last.originals[:MOST], arm.originals[:MOST]):
            lines.append((ORIGINAL, arm.originals[:MOST], arm.low, arm.high))
        lines.append((arm.name, arm.reconstructions[:MOST], arm.low, arm.high))
        last = arm
    return lines


def draw_image(axis: Any, image: Any, low: float, high: float) -> None:
    """Draw one image, (channels, height, width): three channels as colours, else the first."""
    if not np.isfinite(image).all():
        return
    clipped = np.clip((image - low) / (high - low), 0, 1)
    pixels = clipped.transpose(1, 2, 0) if len(image) == 3 else clipped[0]
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
