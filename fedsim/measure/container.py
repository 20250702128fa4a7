"""The bill of a container: what a deployed client's visit cost beside its process's own clocks.

A node that serves each message with a short-lived process, spawned or forked, names in the
environment variable ``FEDSIM_NODE_DIR`` a directory of its own, which those processes can write.
Without the variable nothing is read, and no reply holds a byte more.

What the system does not tell is None, never an error. Files are those of proc(5), and of control
groups as Documentation/admin-guide/cgroup-v2.rst and cgroup-v1 of Linux describe them.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path, PurePosixPath

from fedsim.measure.clocks import elapsed

NODE_DIR = "FEDSIM_NODE_DIR"
COUNTERS = "interfaces.json"  # in that directory: the counters at the previous visit
UNLIMITED = 2**62  # version 1 writes the largest number of pages for no limit

SERVED: set[int] = set()  # processes that have served a message; a fork is a process of its own

Figures = dict[str, int | float | None]
Interfaces = dict[str, tuple[int, int]]  # bytes received and sent so far, by interface


class Stay:
    """A client's visit in a container, from the start of the app to its reply."""

    def __init__(self, node: Path, *, proc: Path, cgroup: Path) -> None:
        """Begin: read what the process took until now, and the container's CPU time.

        Args:
            node: the node's own directory.
            proc: where the proc file system is mounted.
            cgroup: where the control groups are.
        """
        self._startup = startup(proc)
        self._node, self._proc, self._cgroup = node, proc, cgroup
        self._cpu = cpu_seconds(proc, cgroup)

    def figures(self) -> Figures:
        """End: return the figures by the ledger's column."""
        before, after = self._cpu, cpu_seconds(self._proc, self._cgroup)
        memory = group_of("memory", self._proc, self._cgroup)
        limit = number_in(memory, "memory.max", "memory.limit_in_bytes")
        received, sent = carried(self._node, self._proc)
        return {
            **self._startup,
            "container_cpu_seconds": None
            if before is None or after is None
            else elapsed(before, after),
            "container_peak_memory_bytes": number_in(
                memory, "memory.peak", "memory.max_usage_in_bytes"
            ),
            "container_memory_limit_bytes": None if limit is None or limit >= UNLIMITED else limit,
            "container_received_bytes": received,
            "container_sent_bytes": sent,
        }


def enter(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> Stay | None:
    """Begin the bill of a visit; None but in a deployed node."""
    node = os.environ.get(NODE_DIR)
    return Stay(Path(node), proc=Path(proc), cgroup=Path(cgroup)) if node else None


def startup(proc: Path) -> Figures:
    """Return what this process took until now, from its start or from when it was forked.

    Nothing once it has served a message: what came since was no start-up.
    """
    cpu, process = time.process_time(), os.getpid()
    if process in SERVED:
        return {}
    SERVED.add(process)
    began = began_seconds(proc / "self/stat")
    wall = None if began is None else elapsed(began, time.clock_gettime(time.CLOCK_BOOTTIME))
    return {"startup_cpu_seconds": cpu, "startup_wall_seconds": wall}


def began_seconds(stat: Path) -> float | None:
    """Return when a process began, in seconds since the machine did, to a tick of 10 ms."""
    # The name of the program is in brackets, and may hold anything.
    fields = text_of(stat).rpartition(")")[2].split()
    try:
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (IndexError, ValueError):
        return None


def group_of(controller: str, proc: Path, cgroup: Path) -> Path | None:
    """Return the container's control group, or None where there is only the machine's.

    With a namespace of its own, or a mount that the runtime made of its group alone, it is what
    is mounted. Where the top of the machine's hierarchy is mounted instead, this process's place
    in that is told apart from it; the top itself is no container.

    Args:
        controller: of version 1, ``cpuacct`` or ``memory``. On a hybrid machine its hierarchy
            counts, as runtimes put containers there and not into that of version 2.
        proc, cgroup: as for :class:`Stay`.
    """
    if (cgroup / "cgroup.controllers").is_file():
        mount, name, at_top = cgroup, "", not (cgroup / "cgroup.events").is_file()
    else:
        mounts = [m for m in cgroup.glob(f"*{controller}*") if controller in m.name.split(",")]
        if not mounts:
            return None
        mount, name, at_top = mounts[0], controller, (mounts[0] / "release_agent").is_file()
    if not at_top:
        return mount
    place = PurePosixPath(places(proc).get(name, "/"))
    parts = place.parts[1:] if place.is_absolute() else ()
    return None if not parts or ".." in parts else mount.joinpath(*parts)


def places(proc: Path) -> dict[str, str]:
    """Return this process's control groups by controller; that of version 2 has no name."""
    found: dict[str, str] = {}
    for line in text_of(proc / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found |= dict.fromkeys(controllers.split(","), path)
    return found


def cpu_seconds(proc: Path, cgroup: Path) -> float | None:
    """Return the CPU time that the container's processes have spent so far."""
    group = group_of("cpuacct", proc, cgroup)
    if group is None:
        return None
    for line in text_of(group / "cpu.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == "usage_usec" and value.isdecimal():
            return int(value) / 1e6
    nanoseconds = number_in(group, "cpuacct.usage")
    return None if nanoseconds is None else nanoseconds / 1e9


def carried(node: Path, proc: Path) -> tuple[int | None, int | None]:
    """Return bytes received and sent since the previous visit, and note them for the next.

    The first visit counts from the container's start. None where a counter stepped back, where an
    interface went, and where the counters cannot be kept, as the next visit would count them again.
    """
    now, container = interfaces(proc), container_of(proc)
    if not now:
        return None, None
    before = remembered(node / COUNTERS, container)
    kept = remember(node / COUNTERS, container, now)
    if before is None or not kept or before.keys() - now.keys():
        return None, None
    received, sent = (
        [counters[way] - before.get(name, (0, 0))[way] for name, counters in now.items()]
        for way in (0, 1)
    )
    return rise(received), rise(sent)


def rise(steps: list[int]) -> int | None:
    """Return the sum of steps, none of which may go back."""
    return None if min(steps) < 0 else sum(steps)


def interfaces(proc: Path) -> Interfaces:
    """Return what each network interface carried so far, the loopback left out."""
    found: Interfaces = {}
    for line in text_of(proc / "net/dev").splitlines():
        name, counted, counters = line.rpartition(":")
        if not counted:
            continue  # the two lines of the head
        fields = counters.split()
        try:
            found[name.strip()] = int(fields[0]), int(fields[8])
        except (IndexError, ValueError):
            return {}
    found.pop("lo", None)
    return found


def container_of(proc: Path) -> str:
    """Tell this container from one that began earlier in its place: the machine's and its start."""
    boot = text_of(proc / "sys/kernel/random/boot_id").strip()
    return f"{boot} {began_seconds(proc / '1/stat')}"


def remembered(path: Path, container: str) -> Interfaces | None:
    """Return the counters at this container's previous visit; None where nobody can tell."""
    try:
        stored = json.loads(path.read_bytes())
        if stored["container"] != container:
            return {}
        return {name: (int(r), int(s)) for name, (r, s) in stored["interfaces"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def remember(path: Path, container: str, now: Interfaces) -> bool:
    """Note the counters, all or nothing, and say whether that was possible."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps({"container": container, "interfaces": now}))
        os.replace(part, path)
    except OSError:
        return False
    return True


def number_in(group: Path | None, *names: str) -> int | None:
    """Return the number in the first of a group's files that holds one."""
    if group is None:
        return None
    texts = (text_of(group / name).strip() for name in names)
    return next((int(text) for text in texts if text.isdecimal()), None)


def text_of(path: Path) -> str:
    """Return a file's text; none where it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
