"""Energy as the processor's own counters measure it (RAPL)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_MICROJOULE = 1e-6
ZONE = re.compile(r"intel-rapl:\d+")  # AMD's too; with a second number it is a part of a package


@dataclass
class Energy:
    """What the machine's processors used in a block, in joules.

    None until the block has ended, and where it could not be measured; ``reason`` then says why.
    """

    joules: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Counter:
    """A package's energy so far; after ``range_microjoules`` it begins again at 0."""

    microjoules: int
    range_microjoules: int


class _NoEnergy(Exception):
    """Why there is no figure; never leaves this module."""


@contextmanager
def package_energy(root: Path = POWERCAP) -> Iterator[Energy]:
    """Measure what all processor packages of this machine use during the block, in joules.

    It is the energy of everything that runs on them meanwhile, idle power included; memory,
    disks, graphics cards and the power supply's losses are left out, and other machines of a
    cluster. The counters move about every millisecond. One that passes the end of its range is
    seen to; a second time within the block cannot be (a range of 262 kJ lasts 43 minutes at
    100 W). Intel's and AMD's processors under Linux have them
    (Documentation/power/powercap/powercap.rst), virtual machines mostly not.

    Args:
        root: where the kernel shows the counters.
    """
    energy = Energy()
    before: dict[str, Counter] = {}
    try:
        before = read_counters(root)
    except _NoEnergy as why:
        energy.reason = str(why)
    try:
        yield energy
    finally:
        if energy.reason is None:
            try:
                energy.joules = used_joules(before, read_counters(root))
            except _NoEnergy as why:
                energy.reason = str(why)


@contextmanager
def not_measured() -> Iterator[Energy]:
    """Stand in for :func:`package_energy` where nobody asked for it: no figure, and no reason."""
    yield Energy()


def read_counters(root: Path) -> dict[str, Counter]:
    """Return the counter of every processor package by its name, each package once.

    The whole platform ("psys") and the parts of a package (cores, memory) have counters as well;
    they would count the same energy again.
    """
    counters: dict[str, Counter] = {}
    try:
        for zone in sorted(path for path in root.iterdir() if ZONE.fullmatch(path.name)):
            name = (zone / "name").read_text().strip()
            if name.startswith("package") and name not in counters:
                counters[name] = Counter(
                    microjoules=int((zone / "energy_uj").read_text()),
                    range_microjoules=int((zone / "max_energy_range_uj").read_text()),
                )
    except PermissionError as error:
        raise _NoEnergy(
            f"{error.filename}: only root may read it (since 2020, CVE-2020-8694); allow it "
            f"until the next start with: sudo chmod a+r {root}/intel-rapl:*/energy_uj"
        ) from error
    except FileNotFoundError as error:
        raise _NoEnergy(
            f"{error.filename}: there is none; the kernel shows no energy counters here, as in "
            "most virtual machines and containers"
        ) from error
    except (OSError, ValueError) as error:
        raise _NoEnergy(f"{root}: an energy counter cannot be read: {error}") from error
    if not counters:
        raise _NoEnergy(f"{root}: the kernel shows no energy counter of a processor package here")
    return counters


def used_joules(before: Mapping[str, Counter], after: Mapping[str, Counter]) -> float:
    """Return the energy between two readings, summed over the packages, in joules."""
    if before.keys() != after.keys():
        raise _NoEnergy("a processor package came or went during the measurement")
    microjoules = sum(used_microjoules(name, before[name], after[name]) for name in before)
    return microjoules * JOULES_PER_MICROJOULE


def used_microjoules(name: str, before: Counter, after: Counter) -> int:
    """Return the energy between two readings of one package's counter, in microjoules.

    A counter that went back has begun again at 0. That explains at most half of its range here:
    more than that is rather a counter that was reset or stepped back.
    """
    used = after.microjoules - before.microjoules
    if used < 0:
        used += before.range_microjoules
        if not 0 <= used <= before.range_microjoules / 2:
            raise _NoEnergy(
                f"{name}: its energy counter went back, from {before.microjoules} to "
                f"{after.microjoules} of {before.range_microjoules} microjoules"
            )
    if used == 0:
        raise _NoEnergy(
            f"{name}: its energy counter stood still: the block was shorter than the millisecond "
            "that it takes to move, or this is a virtual machine"
        )
    return used
