"""What a round of secure aggregation takes, in seconds, bytes and memory.

    python -m benchmarks.secagg [--clients 100] [--parameters 199210] [--drop 0.05] [--json FILE]

One process and one thread plays the server and all clients, one after another, from encoded vectors
to the decoded sum, which is checked. Seconds are wall time; those of the clients are of all of them
together, who in a deployment work side by side. Bytes are the content of messages. A share
``--drop`` of the clients vanishes right before it sends its masked vector, the costliest moment.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.privacy.secagg import STAGES, Assumptions, FixedPoint, aggregate
from fedsim.privacy.secagg.graph import degree
from fedsim.privacy.secagg.protocol import Seconds


def measure(*, clients: int, parameters: int, drop: float, largest_weight: int) -> dict[str, Any]:
    """Play one round and return its figures, after checking its sum."""
    coding = FixedPoint.fitting(value_range=8.0, clients=clients, largest_weight=largest_weight)
    rng = np.random.default_rng(0)
    before = peak_bytes()
    vectors = {
        one: coding.encode(rng.normal(0, 1, parameters), largest_weight)[0]
        for one in range(clients)
    }
    dropped = range(0, clients, math.ceil(1 / drop)) if drop else ()
    seconds, begun, cpu = Seconds(), time.perf_counter(), time.process_time()
    result = aggregate(vectors, drop_at=dict.fromkeys(dropped, 2), seconds=seconds)
    total_seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    sums, weight = coding.decode(result.words)
    exact = sum(coding.decode(vectors[one])[0] for one in result.clients)
    if not np.array_equal(sums, exact) or weight != largest_weight * len(result.clients):
        raise SystemExit("error: the sum is wrong")
    chosen = degree(clients, Assumptions())
    return {
        "clients": clients,
        "parameters": parameters,
        "in_the_sum": len(result.clients),
        "neighbours": chosen.neighbours,
        "threshold": chosen.threshold,
        "parameter_bytes": coding.parameter_bytes,
        "fraction_bits": coding.fraction_bits,
        "total_seconds": total_seconds,
        "cpu_seconds": cpu_seconds,
        "client_seconds": dict(zip(STAGES, seconds.clients, strict=True)),
        "server_seconds": dict(zip((*STAGES, "recover and sum"), seconds.server, strict=True)),
        "uplink_bytes_per_client": sum(result.uplink_bytes) / clients,
        "downlink_bytes_per_client": sum(result.downlink_bytes) / clients,
        "plain_bytes_per_client": 4 * parameters,
        "memory_bytes_before": before,
        "peak_memory_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """Return the most memory that this process has had resident."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def line(row: dict[str, Any]) -> str:
    """Return the figures as a person reads them."""
    clients, server = (sum(row[f"{side}_seconds"].values()) for side in ("client", "server"))
    return (
        f"{row['clients']} clients x {row['parameters']:,} parameters, "
        f"{row['neighbours']} neighbours, threshold {row['threshold']}, "
        f"{row['in_the_sum']} in the sum: {row['total_seconds']:.2f} s "
        f"({row['cpu_seconds']:.2f} s CPU; clients {clients:.2f} s together, "
        f"server {server:.2f} s); "
        f"a client sends {row['uplink_bytes_per_client'] / 1000:,.0f} kB "
        f"(float32: {row['plain_bytes_per_client'] / 1000:,.0f} kB) and receives "
        f"{row['downlink_bytes_per_client'] / 1000:.1f} kB beside the model; "
        f"peak memory {row['peak_memory_bytes'] / 2**20:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=199_210)
    parser.add_argument("--drop", type=float, default=0.05, help="share that vanishes")
    parser.add_argument("--largest-weight", type=int, default=1, help="1: equal weights, 4 bytes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    row = measure(
        clients=given.clients,
        parameters=given.parameters,
        drop=given.drop,
        largest_weight=given.largest_weight,
    )
    print(json.dumps(row, indent=1))
    print(line(row))
    if given.json:
        given.json.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
