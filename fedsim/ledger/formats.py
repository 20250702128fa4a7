"""The formats that ledgers have had, and where an older one keeps the columns of today."""

from __future__ import annotations

# A change of fedsim.records' rows or of ledger.schema's tables is a new version: a line here, what
# the old one has below, and a tests/ledger_v<N>.sql of the new one.
FORMAT_HISTORY = {
    1: "rounds, clients, layers; the clients' last states; the checkpoints kept on disk",
    2: "every client's bill; layers before and after training; bytes of serialised messages",
    3: "clients in blocks: how idle the workers were; models are summed in blocks",
    4: "the bill of a client's container",
    5: "clipping, noise, epsilon; the cost of secure aggregation; the success of an attack",
}
FORMAT_VERSION = max(FORMAT_HISTORY)

# What the tables of older formats hold, under today's names. In format 1 a row of layers was one
# tensor of the update, so that it has no phase.
_HELD = {
    1: {
        "rounds": "round test_accuracy test_loss clients_trained clients_failed "
        "uplink_dense_bytes downlink_dense_bytes cpu_seconds wall_seconds",
        "clients": "round client examples steps loss_first_step loss_last_step cpu_seconds "
        "wall_seconds dense_bytes update_norm status error",
        "layers": "round client layer parameters update_norm",
    },
}
# What had another name. In format 1 a round's bytes were those of the dense arrays alone.
_FORMER_NAMES = {
    (1, "rounds", "uplink_dense_bytes"): "uplink_bytes",
    (1, "rounds", "downlink_dense_bytes"): "downlink_bytes",
}


# What a format lacks of today's, where that is little.
_CONTAINER = {
    *("startup_cpu_seconds", "startup_wall_seconds", "container_cpu_seconds"),
    *("container_peak_memory_bytes", "container_memory_limit_bytes"),
    *("container_received_bytes", "container_sent_bytes"),
}
_PRIVACY = {
    "rounds": {
        *("clipping_norm", "clipped_fraction", "noise_std", "signal_to_noise", "epsilon"),
        *("secure_wall_seconds", "attack_success_fraction"),
    },
    "clients": {
        *("clip_scale", "secure_uplink_bytes", "secure_downlink_bytes", "secure_cpu_seconds"),
    },
}
_LACKED = {
    (2, "rounds"): {"worker_idle_fraction", *_PRIVACY["rounds"]},
    **{(version, "clients"): {*_CONTAINER, *_PRIVACY["clients"]} for version in (2, 3)},
    **{(version, "rounds"): _PRIVACY["rounds"] for version in (3, 4)},
    (4, "clients"): _PRIVACY["clients"],
}


def stored_name(version: int, table: str, column: str) -> str | None:
    """Return what a column of today is called in a ledger's format; None where it is missing."""
    if column in _LACKED.get((version, table), ()):
        return None
    if version in _HELD and column not in _HELD[version][table].split():
        return None
    return _FORMER_NAMES.get((version, table, column), column)
