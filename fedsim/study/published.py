"""This study's figures beside those that others published."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.ledger.read import Run, load
from fedsim.study.design import Published, Study, Values
from fedsim.study.endpoints import value_of


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What others published of an arm, and the mean over this study's complete seeds.

    ``ours`` is None where no run is complete; ``reached`` counts the seeds that got to a target.
    """

    published: Published
    ours: float | None
    seeds: int
    reached: int

    @property
    def ratio(self) -> float | None:
        """Ours over theirs."""
        return None if self.ours is None else self.ours / self.published.value

    def as_json(self) -> dict[str, Any]:
        """Return both as JSON values."""
        p = self.published
        return {
            "arm": dict(p.arm),
            "endpoint": p.endpoint,
            "published": p.value,
            "source": p.source,
            "ours": self.ours,
            "ratio": self.ratio,
            "seeds": self.seeds,
            "reached": self.reached,
        }


def beside(
    study: Study,
    runs: Mapping[tuple[Values, int], Path],
    read: Callable[[Path], Run] = load,
) -> list[Beside]:
    """Return every published figure with this study's own.

    Args:
        study: which names what was published.
        runs: where the complete runs lie, by arm and seed.
        read: opens one, see :func:`fedsim.study.verdicts.judge`.
    """
    found = []
    for p in study.published:
        paths = [runs[p.arm, seed] for seed in study.seeds if (p.arm, seed) in runs]
        values = [value_of(read(path), p.endpoint) for path in paths]
        known = [(v, reached) for v, reached in values if not math.isnan(v)]
        found.append(
            Beside(
                published=p,
                ours=math.fsum(v for v, _ in known) / len(known) if known else None,
                seeds=len(known),
                reached=sum(reached for _, reached in known),
            )
        )
    return found
