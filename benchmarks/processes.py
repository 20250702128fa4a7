"""What the kernel says of processes: their tree, their processor time, their memory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
RAY_HELPERS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass(frozen=True)
class Process:
    """One process as /proc/PID/stat has it; its ticks include those of children it waited for."""

    pid: int
    parent: int
    ticks: int


def all_processes() -> dict[int, Process]:
    """Return every process that can be read."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue  # it has ended
            process = parse_stat(text)
            found[process.pid] = process
    return found


def parse_stat(text: str) -> Process:
    """Read /proc/PID/stat; the command in parentheses may itself hold spaces and parentheses."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Process(int(head.split(" ", 1)[0]), int(fields[1]), sum(map(int, fields[11:15])))


def tree(root: int, processes: dict[int, Process]) -> list[Process]:
    """Return a process and all its descendants."""
    children: dict[int, list[Process]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process)
    found, waiting = [], [processes[root]] if root in processes else []
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting += children.get(process.pid, [])
    return found


def busy_ticks(text: str) -> int:
    """Return what all cores together were busy, from /proc/stat: all but idle and waiting."""
    fields = [int(value) for value in text.split("\n", 1)[0].split()[1:9]]
    idle, waiting = fields[3], fields[4]
    return sum(fields) - idle - waiting


def memory() -> dict[str, Any]:
    """Return RSS, PSS and peak RSS in bytes of this process, its workers and other helpers.

    Under torchrun the other processes are siblings.
    """
    mine = os.getpid()
    root = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else mine
    report: dict[str, Any] = {"driver": memory_of(mine), "workers": [], "helpers": []}
    for process in tree(root, all_processes()):
        if process.pid != mine and (used := memory_of(process.pid)):
            report["workers" if is_worker(process.pid) else "helpers"].append(used)
    return report


def memory_of(pid: int) -> dict[str, int]:
    """Return one process's memory in bytes; empty if it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    sizes = {"rss": field(rollup, "Rss:"), "pss": field(rollup, "Pss:")}
    return {**sizes, "peak_rss": field(status, "VmHWM:")}


def field(text: str, name: str) -> int:
    """Return a size of /proc, in bytes."""
    line = next((line for line in text.splitlines() if line.startswith(name)), "0 0")
    return int(line.split()[1]) * 1024


def command_line(pid: int) -> str:
    """Return what a process calls itself; Ray's change it, and it is empty for a moment then."""
    for _ in range(5):
        try:
            if text := Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                return text
        except OSError:
            break
        time.sleep(0.002)
    return ""


def is_worker(pid: int) -> bool:
    """Say whether a process runs clients: a Ray actor, or one that a plain loop spawned."""
    command = command_line(pid)
    if command.startswith("ray::"):
        return not command.startswith(RAY_HELPERS)
    return "multiprocessing.spawn" in command
