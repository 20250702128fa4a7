"""What one attack came to, as a row of raw figures, and the file of such rows.

Needs no torch: a report reads these. Figures are counted unless their name ends in ``_seconds``,
which are measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.errors import PrivacyError

ROWS = "rows.jsonl"


@dataclass(frozen=True, kw_only=True)
class LeakageRow:
    """What leaked in one attack with one seed; None where a figure does not apply.

    Attributes:
        attack: its name in ``fedsim.privacy.attacks.measure.ATTACKS``.
        weights: ``honest``, as the model starts, ``trap``, or ``trap x10`` for rows scaled by 10.
        depth: hidden layers of an mlp, convolution blocks of a cnn.
        batch: examples the client holds.
        local_steps: steps that it takes on all of them at once; 0: it sends the gradient.
        level: ``none``, or what is clipped and noised: ``user`` the update, ``example`` each
            example's gradient.
        noise_multiplier: standard deviation of the noise, in clipping norms.
        recovered_at_1e_3, recovered_at_0_1: share of the examples with a reconstruction within
            that relative error (Euclidean norm).
        relative_error: median over the examples, of the best reconstruction.
        psnr_db, ssim: means over the examples; SSIM of images alone.
        auc, tpr_at_1_percent_fpr: of membership.
        labels_recovered: share of the labels, with their multiplicity.
        cpu_seconds: of the attack, without the client's work.
    """

    attack: str
    weights: str
    dataset: str
    model: str
    width: int
    depth: int
    activation: str
    batch: int
    local_steps: int
    learning_rate: float
    level: str
    clipping_norm: float
    noise_multiplier: float
    seed: int
    recovered_at_1e_3: float | None = None
    recovered_at_0_1: float | None = None
    relative_error: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    auc: float | None = None
    tpr_at_1_percent_fpr: float | None = None
    labels_recovered: float | None = None
    cpu_seconds: float

    @property
    def arm(self) -> tuple[Any, ...]:
        """What rows have in common that differ in nothing but their seed."""
        return tuple(getattr(self, name) for name in ARM)

    @property
    def title(self) -> str:
        """The attack, the activation and what was sent, for people."""
        steps = self.local_steps
        sent = f"update of {steps} step{'s' * (steps > 1)}" if steps else "gradient"
        weights = "" if self.weights == "honest" else f" ({self.weights})"
        level = "" if self.level == "none" else f", level {self.level}"
        return f"{self.attack}{weights}, {self.activation}, {sent} on {self.batch}{level}"


FIGURES = (
    *("recovered_at_1e_3", "recovered_at_0_1", "relative_error", "psnr_db", "ssim"),
    *("auc", "tpr_at_1_percent_fpr", "labels_recovered", "cpu_seconds"),
)
ARM = tuple(
    field.name for field in dataclasses.fields(LeakageRow) if field.name not in (*FIGURES, "seed")
)


def by_arm(rows: Iterable[LeakageRow]) -> list[list[LeakageRow]]:
    """Return the rows of each arm, in the order in which arms and rows came."""
    found: dict[tuple[Any, ...], list[LeakageRow]] = {}
    for row in rows:
        found.setdefault(row.arm, []).append(row)
    return list(found.values())


def rows_bytes(rows: Iterable[LeakageRow]) -> bytes:
    """Return rows as JSON lines; an infinite error is null, which JSON has no number for."""
    return "".join(json.dumps(as_json(row), allow_nan=False) + "\n" for row in rows).encode()


def as_json(row: LeakageRow) -> dict[str, Any]:
    """Return a row as JSON can hold it."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(row).items()
    }


def read_rows(data: bytes, *, place: str = ROWS) -> list[LeakageRow]:
    """Return the rows of a file of JSON lines.

    Args:
        data: the file's bytes.
        place: what the error calls it.

    Raises:
        PrivacyError: a line is not such a row.
    """
    rows = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            rows.append(row_of(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise PrivacyError(
                f"{place}:{number}: not a row of an attack ({error}); measure again"
            ) from error
    return rows


def row_of(values: Mapping[str, Any]) -> LeakageRow:
    """Return the row of its values by name; a figure that is not there is None."""
    return LeakageRow(**values)
