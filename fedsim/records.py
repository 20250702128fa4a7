"""What is measured, as typed rows. Field names are the ledger's columns and carry their units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ClientStatus = Literal["ok", "failed", "rejected", "timeout"]
RunStatus = Literal["running", "completed", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientRow:
    """One client in one round. Figures are None where the client did not deliver them.

    ``status`` is ``ok`` (aggregated), ``failed`` (the client raised, or its worker died),
    ``rejected`` (its update was refused) or ``timeout`` (no reply in time); ``error`` says why.
    """

    round: int
    client: int
    examples: int | None = None  # counted
    steps: int | None = None  # counted: optimiser steps taken
    loss_first_step: float | None = None  # mean cross-entropy of the first mini-batch
    loss_last_step: float | None = None  # mean cross-entropy of the last mini-batch
    cpu_seconds: float | None = None  # measured: thread CPU time of local training alone
    wall_seconds: float | None = None  # measured: wall time of local training alone
    dense_bytes: int | None = None  # counted: arrays sent to the server x bytes per element
    update_norm: float | None = None  # Euclidean norm of (local - global) parameters
    status: ClientStatus = "ok"
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """One parameter tensor of one client's update in one round (``measure.level = "full"``)."""

    round: int
    client: int
    layer: str
    parameters: int  # counted
    update_norm: float  # Euclidean norm of this tensor's part of the update


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRow:
    """One round of the federation.

    ``uplink_bytes`` and ``downlink_bytes`` are counted dense payloads: elements x bytes each,
    without framing. Accuracy and loss are None in rounds that ``server.evaluate_every`` skips.
    """

    round: int
    test_accuracy: float | None
    test_loss: float | None
    clients_trained: int
    clients_failed: int
    uplink_bytes: int
    downlink_bytes: int
    cpu_seconds: float  # measured: sum over the clients' local training
    wall_seconds: float  # measured: the whole round, with dispatch, aggregation and evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a run is, where it stands and what it ran on. Times are UTC in ISO 8601.

    ``pid`` and ``host`` are of the process that wrote last; the rest of the environment is of the
    process that began. A run resumed elsewhere says so in ``changed``, so that its timings are
    not pooled with others by mistake.
    """

    format_version: int  # of the run directory
    name: str
    status: RunStatus
    created: str
    updated: str
    finished: str | None = None
    error: str | None = None
    rounds_planned: int | None = None
    wall_seconds: float | None = None  # measured: all sessions of the run together
    model_sha256: str | None = None  # of the final parameters, see ledger.checkpoints.model_digest
    config_hash: str
    engine: dict[str, object]
    threads: int | None = None  # that the numeric library was given
    pid: int
    host: str
    command: str
    python: str
    platform: str
    processor: str
    cores: int  # that the process may use
    versions: dict[str, str | None]  # by distribution; None: not installed
    commit: str | None  # of the fedsim checkout, with "-dirty" where files were changed
    library_paths: dict[str, str | None]  # where each library is imported from
    resumed: tuple[str, ...] = ()  # when
    # By time of resumption: what was no longer as at first, by field.
    changed: dict[str, dict[str, object]] = field(default_factory=dict)
