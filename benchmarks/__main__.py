"""fedsim against Flower, pfl-research and plain loops, on this machine.

    python -m benchmarks                              # everything, five repeats
    python -m benchmarks --cases 2nn-b10,small-100    # some cases
    python -m benchmarks --only fedsim,flower --quick

Every measurement is a process of its own; within a repeat the systems of a case follow each other.
A run that other processes disturbed is repeated. The raw rows go to a JSON file, the tables to the
terminal, and with --document to docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import environment, machine, measure, report
from benchmarks.cases import BY_NAME, CASES, Case, Entry, quick
from benchmarks.data import data_file

DOCUMENT = environment.ROOT / "docs" / "performance.md"
PLOT = environment.ROOT / "docs" / "performance.svg"
RESULTS = environment.ROOT / "benchmarks" / "results"
FORMAT = 1


def main() -> None:
    """Measure what the command line asks for."""
    options = parse(sys.argv[1:])
    chosen = choose(options.cases, options.only)
    if options.quick:
        chosen = [quick(case) for case in chosen]
    if options.list:
        return print("\n".join(map(listed, CASES)))
    repeats = 1 if options.quick else options.repeats
    environment.prepare()
    where = machine.about()
    out = options.out or RESULTS / f"{machine.file_name(where['processor'], where['cores'])}.json"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fedsim-bench-") as directory:
        for row in measured(chosen, repeats, Path(directory), options):
            rows.append(row)
            if out.name != "-":
                save(out, where, rows)
    for table in report.tables(rows):
        print(report.as_text(table), end="\n\n")
    if options.document:
        publish(where, rows, out)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = lambda text: tuple(part.strip() for part in text.split(","))  # noqa: E731
    parser.add_argument("--cases", type=names, metavar="NAME,...", help="these cases alone")
    parser.add_argument("--only", type=names, metavar="LABEL,...", help="these systems alone")
    parser.add_argument(
        "--repeats",
        type=int,
        help="of every case (default: 5, and 1 to 3 of some)",
    )
    parser.add_argument("--quick", action="store_true", help="one repeat of one round each")
    parser.add_argument("--out", type=Path, help='the JSON file; "-" for none')
    parser.add_argument("--document", action="store_true", help="rewrite docs/performance.md")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument(
        "--tolerate",
        type=float,
        default=measure.TOLERATED_CORES,
        metavar="CORES",
        help="foreign load that leaves a run undisturbed (default %(default)s)",
    )
    parser.add_argument(
        "--retries", type=int, default=measure.RETRIES, help="of a run that others disturbed"
    )
    return parser.parse_args(arguments)


def choose(cases: tuple[str, ...] | None, only: tuple[str, ...] | None) -> list[Case]:
    """Return the cases that are asked for, with the systems that are asked for."""
    if unknown := [name for name in cases or () if name not in BY_NAME]:
        raise SystemExit(
            f"error: --cases: unknown: {list_of(unknown)}; there are {list_of(BY_NAME)}"
        )
    chosen = [BY_NAME[name] for name in cases] if cases else [c for c in CASES if c.default]
    if only:
        labels = dict.fromkeys(entry.label for case in chosen for entry in case.entries)
        if unknown := [label for label in only if label not in labels]:
            raise SystemExit(
                f"error: --only: unknown: {list_of(unknown)}; there are {list_of(labels)}"
            )
        kept = [(case, tuple(e for e in case.entries if e.label in only)) for case in chosen]
        chosen = [Case(**{**vars(case), "entries": entries}) for case, entries in kept if entries]
    return chosen


def list_of(names: Iterable[str]) -> str:
    """Return names as a person reads them."""
    return ", ".join(names)


def listed(case: Case) -> str:
    """Return a case with its systems, as ``--list`` shows it."""
    return f"{case.name:16} {case.title}\n{'':16} {list_of(e.label for e in case.entries)}"


def plan(cases: Sequence[Case], repeats: int | None) -> Iterator[tuple[int, Case, Entry]]:
    """Yield what is run, in turn: whole repeats, case by case, every system of a case.

    ``repeats`` is the same for all; None leaves it to the cases.
    """
    for repeat in range(1, (repeats or 5) + 1):
        for case in cases:
            for entry in case.entries:
                if repeats or repeat <= min(case.most_repeats, entry.most_repeats):
                    yield repeat, case, entry


def measured(
    cases: Sequence[Case], repeats: int | None, directory: Path, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Run everything; yield rows as they come, and say what is going on."""
    runs = list(plan(cases, repeats))
    took: dict[tuple[str, str], float] = {}
    started = time.monotonic()
    for place, (repeat, case, entry) in enumerate(runs):
        left = seconds_left(runs[place:], took)
        gone = time.monotonic() - started
        print(
            f"[{place + 1}/{len(runs)}] repeat {repeat}, {case.name}: {entry.label}; "
            f"{gone / 60:.1f} min gone{left}",
            file=sys.stderr,
            flush=True,
        )
        data = data_file(entry.spec, directory)
        before = time.monotonic()
        retries = 0 if options.quick else options.retries
        try:
            found = measure.undisturbed(entry, data, tolerated=options.tolerate, retries=retries)
        except measure.RunnerFailed as failure:
            print(f"{case.name}: {failure}", file=sys.stderr, flush=True)
            continue
        took[case.name, entry.label] = time.monotonic() - before
        for row in found:
            spec = asdict(entry.spec)
            yield {"case": case.name, "label": entry.label, "repeat": repeat, "spec": spec, **row}


def seconds_left(
    runs: Sequence[tuple[int, Case, Entry]], took: dict[tuple[str, str], float]
) -> str:
    """Say how long the rest takes, once every run of it was seen before."""
    known = [took.get((case.name, entry.label)) for _, case, entry in runs]
    if any(value is None for value in known):
        return ""
    return f", {sum(value or 0.0 for value in known) / 60:.1f} min left"


def save(path: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the raw rows, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(
        f'{{"format": {FORMAT},\n"about": {json.dumps(about)},\n"rows": [\n{lines}\n]}}\n'
    )


def publish(about: dict[str, Any], rows: list[dict[str, Any]], results: Path) -> None:
    """Write the tables into the document and draw the picture."""
    report.rewrite(DOCUMENT, report.document(about, rows))
    plot = [environment.python("bench"), "-m", "benchmarks.plot", str(results), str(PLOT)]
    subprocess.run(plot, cwd=environment.ROOT, check=True)


if __name__ == "__main__":
    main()
