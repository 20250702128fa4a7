"""A cold start: seconds from ``fedsim run`` to the first round's end, as a user waits."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.runners.common import BEGIN, END, main
from benchmarks.runners.on_fedsim import settings
from benchmarks.spec import Spec


def measure(spec: Spec) -> dict[str, Any]:
    """Run the command until it reports its first round, then to its end."""
    fedsim = Path(sys.executable).with_name("fedsim")
    chosen = [f"-s{key}={value}" for key, value in settings(spec).items()]
    with tempfile.TemporaryDirectory() as directory:
        command = [str(fedsim), "run", *chosen, "-s", f"run.out={directory}/run"]
        print(BEGIN, flush=True)
        started = time.perf_counter()
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert running.stdout is not None
        first, lines = None, []
        for line in running.stdout:
            lines.append(line)
            if first is None and line.lstrip().startswith("round 1/"):
                first = time.perf_counter() - started
        code = running.wait()
        whole = time.perf_counter() - started
        print(END, flush=True)
    if code or first is None:
        raise SystemExit("".join(lines))
    return {"cold_seconds": first, "whole_seconds": whole}


if __name__ == "__main__":
    main(measure)
