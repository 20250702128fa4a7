"""What is measured, as typed rows. Field names are the ledger's columns and carry their units.

Every figure says what it is, and a test holds ``docs/measures.md`` equal to what stands here:

- *counted*: computed exactly from sizes, steps or the model's own numbers. The same on every
  machine, as far as training gives the same bits there.
- *measured*: from this machine's clocks and counters, under the conditions beside it.
- *modelled*: computed from counted figures and a device profile.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal

ClientStatus = Literal["ok", "failed", "rejected", "timeout"]
RunStatus = Literal["running", "completed", "failed", "interrupted"]
Kind = Literal["counted", "measured", "modelled"]
Phase = Literal["before", "after", "global"]

# Who the ``client`` of a row about the global model is: no partition has this number.
SERVER = -1


def figure(kind: Kind, *, signed: bool = False) -> Any:
    """Declare a figure that may be missing. Unless it is ``signed`` it is finite and at least 0.

    A signed figure may be any number, also infinite or NaN where training diverged.
    """
    return field(default=None, metadata={"kind": kind, "signed": signed})


def figures(row: type) -> dict[str, Field[Any]]:
    """Return the figures of a row by name; its keys and texts are none."""
    return {f.name: f for f in fields(row) if "kind" in f.metadata}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientRow:
    """One client in one round. Figures are None where nobody asked for them or none came.

    ``status`` is ``ok`` (aggregated), ``failed`` (the client raised, or its worker died),
    ``rejected`` (its update was refused) or ``timeout`` (no reply in time); ``error`` says why.
    """

    round: int
    client: int

    # What it did.
    examples: int | None = figure("counted")
    steps: int | None = figure("counted")  # of the optimiser
    examples_processed: int | None = figure("counted")  # summed over the steps' batches
    loss_first_step: float | None = figure("counted", signed=True)  # of the first mini-batch
    loss_last_step: float | None = figure("counted", signed=True)  # of the last mini-batch
    loss_before: float | None = figure("counted", signed=True)  # on all of the client's data
    loss_after: float | None = figure("counted", signed=True)
    accuracy_after: float | None = figure("counted")

    # Arithmetic of the local training.
    train_flops: int | None = figure("counted")  # matrix products and convolutions
    bias_flops: int | None = figure("counted")
    optimizer_flops: int | None = figure("counted")
    activation_elements: int | None = figure("counted")
    compare_ops: int | None = figure("counted")  # these four: of the activations
    multiply_add_ops: int | None = figure("counted")
    division_ops: int | None = figure("counted")
    transcendental_ops: int | None = figure("counted")

    # Clocks: CPU of the training thread, and wall. The first pair is the local training alone.
    cpu_seconds: float | None = figure("measured")
    wall_seconds: float | None = figure("measured")
    data_cpu_seconds: float | None = figure("measured")
    data_wall_seconds: float | None = figure("measured")
    serialization_cpu_seconds: float | None = figure("measured")
    serialization_wall_seconds: float | None = figure("measured")
    evaluation_cpu_seconds: float | None = figure("measured")
    evaluation_wall_seconds: float | None = figure("measured")
    measuring_cpu_seconds: float | None = figure("measured")
    measuring_wall_seconds: float | None = figure("measured")

    # Conditions of the training's clocks.
    threads: int | None = figure("measured")
    cohort: int | None = figure("measured")  # clients trained together in one call
    waiting_seconds: float | None = figure("measured")  # ready to run, and no core free
    others_cpu_seconds: float | None = figure("measured")  # all other processes, meanwhile

    # Memory.
    saved_bytes: int | None = figure("counted")  # for backward, in one full step
    model_bytes: int | None = figure("counted")
    gradient_bytes: int | None = figure("counted")
    optimizer_bytes: int | None = figure("counted")
    peak_memory_bytes: int | None = figure("measured")  # of the process, above its baseline

    # In a deployed node alone: until the app began, and of the container around its process.
    startup_cpu_seconds: float | None = figure("measured")
    startup_wall_seconds: float | None = figure("measured")
    container_cpu_seconds: float | None = figure("measured")  # during the visit
    container_peak_memory_bytes: int | None = figure("measured")  # since the container began
    container_memory_limit_bytes: int | None = figure("measured")
    container_received_bytes: int | None = figure("measured")  # since the previous visit
    container_sent_bytes: int | None = figure("measured")

    # What went up (the update), and what came down (the model).
    dense_bytes: int | None = figure("counted")
    wire_bytes: int | None = figure("counted")
    compressed_bytes: int | None = figure("counted")
    downlink_dense_bytes: int | None = figure("counted")
    downlink_wire_bytes: int | None = figure("counted")
    zero_fraction: float | None = figure("counted")
    zero_fraction_without_blank: float | None = figure("counted")
    top_1_percent_energy: float | None = figure("counted")
    top_10_percent_energy: float | None = figure("counted")
    entropy_bits: float | None = figure("counted")
    codec_error: float | None = figure("counted")  # |sent - meant| / |meant|
    update_norm: float | None = figure("counted", signed=True)
    drift_cosine: float | None = figure("counted", signed=True)
    gradient_ratio_before: float | None = figure("counted", signed=True)
    gradient_ratio_after: float | None = figure("counted", signed=True)

    # Where updates are clipped, and where they are summed without the server seeing them.
    clip_scale: float | None = figure("counted")  # what the update was multiplied by
    secure_uplink_bytes: int | None = figure("counted")  # keys, shares and unmasking, not the sum
    secure_downlink_bytes: int | None = figure("counted")
    secure_cpu_seconds: float | None = figure("measured")  # of the client's cryptography

    # On the device of ``measure.device``.
    modelled_seconds: float | None = figure("modelled")
    modelled_joules: float | None = figure("modelled")

    status: ClientStatus = "ok"
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """One layer of one client's network in one round (``measure.level = "full"``).

    A layer is what has parameters, with the activation that follows it; ``phase`` is ``before``
    or ``after`` the local training, or ``global`` for the round's new model on the test data,
    whose ``client`` is ``SERVER``.
    """

    round: int
    client: int
    layer: str
    phase: Phase
    parameters: int | None = figure("counted")
    zero_fraction: float | None = figure("counted")  # of the activation's outputs
    dead_fraction: float | None = figure("counted")  # of its units
    saturated_fraction: float | None = figure("counted")  # of its outputs, if it is bounded
    preactivation_mean: float | None = figure("counted", signed=True)
    preactivation_std: float | None = figure("counted", signed=True)
    gradient_norm: float | None = figure("counted", signed=True)  # of the layer's parameters
    update_norm: float | None = figure("counted", signed=True)  # phase "after"


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRow:
    """One round of the federation.

    ``uplink_bytes`` and ``downlink_bytes`` are the serialised messages of all clients. Accuracy
    and loss are None in rounds that ``server.evaluate_every`` skips.
    """

    round: int
    test_accuracy: float | None = figure("counted")
    test_loss: float | None = figure("counted", signed=True)
    clients_trained: int
    clients_failed: int
    uplink_bytes: int | None = figure("counted")
    downlink_bytes: int | None = figure("counted")
    uplink_dense_bytes: int | None = figure("counted")
    downlink_dense_bytes: int | None = figure("counted")
    train_flops: int | None = figure("counted")  # summed over the clients
    cpu_seconds: float | None = figure("measured")  # local training, summed over the clients
    wall_seconds: float | None = figure("measured")  # dispatch, aggregation, evaluation too
    package_joules: float | None = figure("measured")  # of the whole processor, by RAPL
    worker_idle_fraction: float | None = figure("measured")  # while clients were asked in blocks

    # What is promised, and what was attacked.
    clipping_norm: float | None = figure("counted")  # of this round's updates
    clipped_fraction: float | None = figure("counted")  # of the updates
    noise_std: float | None = figure("counted")  # of a coordinate of the mean update
    signal_to_noise: float | None = figure("counted")  # |mean update| / (noise_std sqrt(size))
    epsilon: float | None = figure("counted")  # spent so far
    secure_wall_seconds: float | None = figure("measured")  # of secure aggregation, at the server
    attack_success_fraction: float | None = figure("counted")  # of ``adversary.kind``

    # The arrays that came down, one copy (``measure.level = "full"``).
    model_compressed_bytes: int | None = figure("counted")
    model_zero_fraction: float | None = figure("counted")
    model_top_1_percent_energy: float | None = figure("counted")
    model_top_10_percent_energy: float | None = figure("counted")
    model_entropy_bits: float | None = figure("counted")


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
    epsilon: float | None = None  # counted: spent in the end, see ``guarantee``
    guarantee: str | None = None  # what is promised about people's data, with all that it rests on
    # Figures that were asked for and stay blank, and why.
    blanks: dict[str, str] = field(default_factory=dict)
