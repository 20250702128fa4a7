"""How often fedsim's verdicts are wrong, by simulation; writes docs/statistics.md.

python -m benchmarks.calibration [--repetitions 2000] [--document]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.report import rewrite
from fedsim.cli.operating import HEAD, rows_of
from fedsim.study.operating import Rate, Scenario, scenarios

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "statistics.json"
DOCUMENT = ROOT / "docs" / "statistics.md"


def main() -> None:
    """Run every scenario, in two processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2_000)
    parser.add_argument("--document", action="store_true", help="write docs/statistics.md")
    given = parser.parse_args()
    rates = run_all(given.repetitions)
    print(markdown(rates))
    if given.document:
        RESULTS.write_text(json.dumps([rate.as_json() for rate in rates], indent=1) + "\n")
        rewrite(DOCUMENT, markdown(rates))


def run_all(repetitions: int) -> list[Rate]:
    """Return the rate of each scenario, whose draws depend on its name alone."""
    todo = list(scenarios())
    with ProcessPoolExecutor(2) as pool:
        found = pool.map(run_one, todo, [repetitions] * len(todo))
        rates = []
        for rate in found:
            rates.append(rate)
            print(f"{len(rates)} of {len(todo)}: {rate.scenario}", file=sys.stderr, flush=True)
    return rates


def run_one(scenario: Scenario, repetitions: int) -> Rate:
    """Run a scenario."""
    return scenario.run(repetitions)


def markdown(rates: Sequence[Rate]) -> str:
    """Return the table."""
    lines = [HEAD, ("---",) * len(HEAD), *rows_of(rates)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{rates[0].repetitions:,} studies a line."


if __name__ == "__main__":
    main()
