"""Draws clients per second, a panel a case, from a file of results; runs where matplotlib is.

python -m benchmarks.plot benchmarks/results/NAME.json docs/performance.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks import summary

CASES = ("2nn-b10", "2nn-b50", "small-100", "small-1000", "cnn-100", "noop-replies")


def main() -> None:
    """Draw."""
    results, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows = json.loads(results.read_text())["rows"]
    cases = [case for case in summary.measured_cases(rows) if case.name in CASES]
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fedsim", "font.size": 9})
    columns = 2
    lines = -(-len(cases) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(9, 2.3 * lines), squeeze=False)
    for axis, case in zip(axes.flat, cases, strict=False):
        panel(axis, case, rows)
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


def panel(axis: plt.Axes, case: summary.Case, rows: list[summary.Row]) -> None:
    """Draw one case: a bar a system, its spread as a line."""
    found = [
        (entry.label, speed)
        for entry in case.entries
        if (mine := summary.counted(rows, case.name, entry.label))
        and (speed := summary.spread(mine, summary.clients_per_second))
    ]
    labels = [label for label, _ in found][::-1]
    middles = [speed.middle for _, speed in found][::-1]
    below = [speed.middle - speed.low for _, speed in found][::-1]
    above = [speed.high - speed.middle for _, speed in found][::-1]
    colours = ["#08519c" if label == "fedsim" else "#bdbdbd" for label in labels]
    axis.barh(labels, middles, xerr=[below, above], color=colours, height=0.7)
    axis.bar_label(axis.containers[-1], [f" {value:,.0f}" for value in middles], fontsize=8)
    axis.set_xlim(0, 1.2 * max(middles))
    axis.set_title(case.title, fontsize=8)
    axis.set_xlabel("clients per second", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
