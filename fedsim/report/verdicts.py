"""Verdicts in words: effects in units that a person can use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from fedsim import units
from fedsim.report.tables import plain_table
from fedsim.study.design import Hypothesis
from fedsim.study.endpoints import ACCURACIES
from fedsim.study.verdicts import Verdict

# What a cost until a target is a number of.
COUNTED_IN = {
    "rounds": "rounds",
    "cpu_seconds": "CPU seconds",
    "wall_seconds": "seconds",
    "train_flops": "operations",
    "uplink_bytes": "bytes up",
    "downlink_bytes": "bytes down",
    "bytes": "bytes",
}


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """A line for each hypothesis."""
    table = plain_table(
        *("hypothesis", "effect", "95% interval", "margin", "seeds", "verdict", "because"),
        right=("effect", "95% interval", "margin", "seeds"),
    )
    for verdict in verdicts:
        h = verdict.hypothesis
        table.add_row(
            *(h.text, effect(verdict), interval(verdict), margin(h), str(len(verdict.pairs))),
            *(verdict.verdict, because(verdict)),
        )
    return table


def unit_of(h: Hypothesis) -> Callable[[float], str]:
    """Return how an effect is printed."""
    if h.scale == "ratio":
        return units.times
    return units.points if h.endpoint in ACCURACIES else units.number


def effect(verdict: Verdict) -> str:
    """Print the estimate."""
    return units.shown(verdict.estimate, unit_of(verdict.hypothesis))


def interval(verdict: Verdict) -> str:
    """Print the interval; its unit stands once."""
    if verdict.low is None or verdict.high is None:
        return units.MISSING
    low, high = (unit_of(verdict.hypothesis)(v) for v in (verdict.low, verdict.high))
    return f"[{low.removesuffix(' points')}, {high.removesuffix(' points')}]"


def margin(h: Hypothesis) -> str:
    """Print a margin."""
    if h.scale == "ratio":
        return f"{100 * h.margin:g}%"
    return unit_of(h)(h.margin).removeprefix("+")


def because(verdict: Verdict) -> str:
    """Say what decided, or why nothing did, and how many runs never reached their target."""
    arm, reference = verdict.censored
    if not arm and not reference:
        return verdict.reason
    return f"{verdict.reason} (not reached: {arm} and {reference} of {len(verdict.pairs)})"


def sentence(verdict: Verdict) -> str:
    """Say a verdict in one sentence: what, by how much, how sure."""
    h = verdict.hypothesis
    arm, reference, where = h.labels
    at = f" ({where})" if where else ""
    if verdict.estimate is None:
        return f"{arm} and {reference}{at}: {verdict.reason}."
    cost, to, target = h.endpoint.rpartition("_to_")
    if h.scale == "ratio":
        what = f"the {COUNTED_IN[cost]}" if to else h.endpoint
        end = f" to {100 * float(target):g}%" if to else ""
        size = f"{arm} takes {units.number(verdict.estimate)} times {what} of {reference}{end}"
    else:
        size = f"{arm} is {effect(verdict)} from {reference} in {h.endpoint}"
    why = f": {verdict.reason.partition(':')[0]}" if verdict.verdict == "refuted" else ""
    lost = sum(verdict.censored)
    bound = f" {lost} runs did not get there, and count with all they spent." if lost else ""
    return f"{size}{at}, {interval(verdict)}{why}.{bound}"
