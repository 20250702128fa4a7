"""The bill of a container: what a deployed client's visit cost beside its process's own clocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict

from fedsim import flower
from fedsim.engine.apps import assume_identity
from fedsim.federation.billing import GIVEN_BY_CONTAINERS, why_blank
from fedsim.federation.singles import reply_bytes
from fedsim.federation.wire import message_bytes
from fedsim.ledger.read import Run
from fedsim.measure import container
from fedsim.measure.energy import Energy
from fedsim.records import ClientRow, figures
from fedsim.report.containers import containers_section
from fedsim.report.markdown import markdown_of
from fedsim.report.page import html_of
from fedsim.report.run import run_page
from fedsim.report.summary import run_lines, run_summary
from fedsim.table import ClientTable

COLUMNS = [name for name in figures(ClientRow) if name.startswith(("startup_", "container_"))]
SINGLE = {"codec": "int8"}  # clients with a codec have messages of their own
DEV = "Inter-|   Receive          |  Transmit\n face |bytes    packets |bytes    packets\n"


class Machine:
    """Files as a machine would show them, in a directory of the test's own."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroup, self.node = root / "proc", root / "cgroup", root / "node"
        self.node.mkdir(parents=True)
        self.write("proc/self/stat", stat(0))
        self.write("proc/self/cgroup", "0::/\n")
        self.begins("1")

    def write(self, path: str, text: object) -> None:
        file = self.proc.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def begins(self, ticks: str) -> None:
        self.write("proc/1/stat", stat(ticks))

    def carries(self, **interfaces: tuple[int, int]) -> None:
        """Set the counters of bytes received and sent."""
        lines = [
            f"{name:>6}: {received} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0\n"
            for name, (received, sent) in {"lo": (999, 999), **interfaces}.items()
        ]
        self.write("proc/net/dev", DEV + "".join(lines))

    def enter(self) -> container.Stay:
        return container.Stay(self.node, proc=self.proc, cgroup=self.cgroup)

    def figures(self) -> dict[str, Any]:
        return self.enter().figures()

    def crossed(self) -> tuple[int | None, int | None]:
        found = self.figures()
        return found["container_received_bytes"], found["container_sent_bytes"]


def stat(ticks: object) -> str:
    """Return a line of proc_pid_stat(5) of a process with an awkward name."""
    return f"7 (a) b ( c) S {' '.join(['0'] * 18)} {ticks} 0 0"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(container, "SERVED", set())
    return Machine(tmp_path / "machine")


# ---------------------------------------------------------------------------------- control groups


def version_2(machine: Machine, group: str = "", *, top: bool = False) -> str:
    """Mount control groups of version 2; return where the files of the container's are."""
    machine.write("cgroup/cgroup.controllers", "cpu memory")
    if not top:
        machine.write("cgroup/cgroup.events", "populated 1")
    return f"cgroup{group}"


def cpu_spent(machine: Machine, path: str, *values: str) -> float | None:
    """Return the CPU seconds of a stay in which a file went from one text to another."""
    before, after = values
    machine.write(path, before)
    stay = machine.enter()
    machine.write(path, after)
    return stay.figures()["container_cpu_seconds"]  # type: ignore[return-value]


def test_version_2_in_a_namespace_of_its_own(machine: Machine) -> None:
    group = version_2(machine)
    # What moved to a group within the container is in the container.
    machine.write("proc/self/cgroup", "0::/init")
    machine.write(f"{group}/init/cpu.stat", "usage_usec 5")
    machine.write(f"{group}/memory.peak", 2**53 - 1)
    machine.write(f"{group}/memory.max", 2**30)
    texts = [f"usage_usec {n}\nuser_usec 1\nsystem_usec 2" for n in (1_500_000, 4_000_000)]
    assert cpu_spent(machine, f"{group}/cpu.stat", *texts) == 2.5
    found = machine.figures()
    assert found["container_peak_memory_bytes"] == 2**53 - 1
    assert found["container_memory_limit_bytes"] == 2**30


def test_version_2_on_the_machine_s_hierarchy_is_told_by_the_process_s_place(
    machine: Machine,
) -> None:
    group = version_2(machine, "/system.slice/docker-1:2.scope", top=True)
    machine.write("proc/self/cgroup", "0::/system.slice/docker-1:2.scope")
    machine.write("cgroup/cpu.stat", "usage_usec 9")
    machine.write(f"{group}/memory.peak", 77)
    texts = ("usage_usec 0", "usage_usec 250000")
    assert cpu_spent(machine, f"{group}/cpu.stat", *texts) == 0.25
    assert machine.figures()["container_peak_memory_bytes"] == 77


@pytest.mark.parametrize("place", ["0::/", "0::/../other", "", "nonsense"])
def test_the_machine_is_no_container(machine: Machine, place: str) -> None:
    version_2(machine, top=True)
    machine.write("proc/self/cgroup", place)
    machine.write("cgroup/memory.peak", 77)
    machine.write("other/memory.peak", 77)
    assert cpu_spent(machine, "cgroup/cpu.stat", "usage_usec 1", "usage_usec 2") is None
    assert machine.figures()["container_peak_memory_bytes"] is None


@pytest.mark.parametrize("hierarchy", ["cpuacct", "cpu,cpuacct"])
def test_version_1_as_a_runtime_mounts_it(machine: Machine, hierarchy: str) -> None:
    """The mount is the container's group alone, and the place is one of the machine outside."""
    machine.write("proc/self/cgroup", "4:memory:/docker/c0\n3:cpu,cpuacct:/docker/c0\n0::/")
    machine.write(f"cgroup/{hierarchy}/cpu.stat", "nr_periods 0")
    machine.write("cgroup/memory/memory.max_usage_in_bytes", 4096)
    machine.write("cgroup/memory/memory.limit_in_bytes", 8192)
    path = f"cgroup/{hierarchy}/cpuacct.usage"
    assert cpu_spent(machine, path, "1000000000", "1500000000") == 0.5
    found = machine.figures()
    assert found["container_peak_memory_bytes"] == 4096
    assert found["container_memory_limit_bytes"] == 8192


def test_a_hybrid_machine_keeps_containers_in_version_1(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "4:memory:/docker/c0\n3:cpuacct:/docker/c0\n0::/init.scope")
    machine.write("cgroup/unified/cgroup.controllers", "")
    machine.write("cgroup/unified/cpu.stat", "usage_usec 1")
    machine.write("cgroup/unified/init.scope/memory.peak", 1)
    for controller in ("cpuacct", "memory"):
        machine.write(f"cgroup/{controller}/release_agent", "")  # the top of the hierarchy
    machine.write("cgroup/cpuacct/cpuacct.usage", "7")
    machine.write("cgroup/memory/memory.max_usage_in_bytes", 7)
    machine.write("cgroup/memory/docker/c0/memory.max_usage_in_bytes", 4096)
    path = "cgroup/cpuacct/docker/c0/cpuacct.usage"
    assert cpu_spent(machine, path, "0", "2000000000") == 2.0
    assert machine.figures()["container_peak_memory_bytes"] == 4096


@pytest.mark.parametrize(
    ("file", "limit"),
    [("memory.max", "max"), ("memory.limit_in_bytes", 9223372036854771712)],
)
def test_no_limit_is_blank(machine: Machine, file: str, limit: object) -> None:
    version_2(machine)
    machine.write(f"cgroup/{file}", limit)
    assert machine.figures()["container_memory_limit_bytes"] is None


def test_a_counter_that_steps_back_gives_no_cpu_seconds(machine: Machine) -> None:
    version_2(machine)
    texts = ("usage_usec 10", "usage_usec 9")
    assert cpu_spent(machine, "cgroup/cpu.stat", *texts) is None


@pytest.mark.parametrize("text", ["", "usage_usec", "usage_usec -1", "usage_usec x", "\xff"])
def test_files_that_say_nothing_give_nothing(machine: Machine, text: str) -> None:
    version_2(machine)
    machine.write("cgroup/memory.peak", text)
    machine.write("cgroup/memory.max", text)
    machine.write("proc/net/dev", f"\n\n{text}")
    machine.write("proc/self/stat", text)
    assert cpu_spent(machine, "cgroup/cpu.stat", text, text) is None
    container.SERVED.clear()
    found = machine.figures()
    assert {name for name, value in found.items() if value is not None} == {"startup_cpu_seconds"}


def test_nothing_there_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "SERVED", {os.getpid()})
    stay = container.Stay(tmp_path / "a", proc=tmp_path / "b", cgroup=tmp_path / "c")
    assert set(stay.figures().values()) == {None}


# -------------------------------------------------------------------------------------- interfaces


def test_the_first_visit_counts_from_the_start_and_the_others_from_the_previous(
    machine: Machine,
) -> None:
    machine.carries(eth0=(1000, 50), eth1=(1, 2))
    assert machine.crossed() == (1001, 52)
    machine.carries(eth0=(1500, 50), eth1=(1, 3))
    assert machine.crossed() == (500, 1)
    machine.carries(eth0=(1500, 50), eth1=(1, 3), eth2=(7, 8))  # one that came later
    assert machine.crossed() == (7, 8)
    assert [path.name for path in machine.node.iterdir()] == [container.COUNTERS]


def test_a_counter_that_steps_back_gives_no_bytes_until_the_next_visit(machine: Machine) -> None:
    machine.carries(eth0=(1000, 50), eth1=(0, 0))
    machine.crossed()
    machine.carries(eth0=(900, 60), eth1=(500, 0))  # which the sum would hide
    assert machine.crossed() == (None, 10)
    machine.carries(eth0=(901, 62), eth1=(500, 0))
    assert machine.crossed() == (1, 2)


def test_an_interface_that_went_took_its_bytes_along(machine: Machine) -> None:
    machine.carries(eth0=(1000, 50), eth1=(5, 5))
    machine.crossed()
    machine.carries(eth0=(1010, 60))
    assert machine.crossed() == (None, None)
    assert machine.crossed() == (0, 0)


def test_a_container_that_began_anew_counts_from_its_start(machine: Machine) -> None:
    machine.carries(eth0=(1000, 50))
    machine.crossed()
    machine.begins("99")
    machine.carries(eth0=(1200, 70))
    assert machine.crossed() == (1200, 70)


def test_the_loopback_alone_is_no_network(machine: Machine) -> None:
    machine.carries()
    assert machine.crossed() == (None, None)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", '{"container": "%s", "interfaces": 5}'])
def test_a_damaged_note_gives_nothing_and_is_replaced(machine: Machine, text: str) -> None:
    machine.carries(eth0=(10, 20))
    machine.crossed()
    path = machine.node / container.COUNTERS
    path.write_text(text.replace("%s", json.loads(path.read_text())["container"]))
    assert machine.crossed() == (None, None)
    assert machine.crossed() == (0, 0)


def test_what_cannot_be_noted_is_not_told(machine: Machine) -> None:
    """The next visit would count it once more."""
    machine.carries(eth0=(10, 20))
    machine.node.rmdir()
    assert machine.crossed() == (None, None)


def test_a_note_is_whole_or_absent(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.carries(eth0=(10, 20))
    machine.crossed()
    before = (machine.node / container.COUNTERS).read_bytes()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    machine.carries(eth0=(15, 25))
    assert machine.crossed() == (None, None)
    assert (machine.node / container.COUNTERS).read_bytes() == before


# ---------------------------------------------------------------------------------------- start-up

FORKED = """
import json, os, time
from pathlib import Path
from fedsim.measure.container import startup
while time.process_time() < 0.4:
    pass
began = time.monotonic()
if os.fork() == 0:
    once = startup(Path("/proc"))
    print(json.dumps([once, startup(Path("/proc")), time.monotonic() - began]), flush=True)
    os._exit(0)
os.wait()
print(json.dumps(startup(Path("/proc"))), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs proc(5)")
def test_clocks_count_from_the_start_of_a_process_or_from_its_fork() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, check=True)
    (forked, again, age), spawned = map(json.loads, done.stdout.splitlines())
    assert again == {}  # one that has served a message has started up
    assert spawned["startup_cpu_seconds"] >= 0.4
    assert spawned["startup_wall_seconds"] >= 0.39  # which is to a tick of 10 ms
    assert forked["startup_cpu_seconds"] < 0.4
    assert 0 <= forked["startup_wall_seconds"] <= age + 0.02


def test_a_process_that_began_in_the_future_has_no_wall_seconds(machine: Machine) -> None:
    machine.write("proc/self/stat", stat(2**50))
    assert container.startup(machine.proc)["startup_wall_seconds"] is None


# ------------------------------------------------------------------------- from client to report


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    node = tmp_path / "node"
    node.mkdir()
    monkeypatch.setenv(container.NODE_DIR, str(node))
    monkeypatch.setattr(container, "SERVED", set())
    return node


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Return what clients reply, as it comes."""
    seen: list[Message] = []
    encode = flower.encode_reply

    def spied(*arguments: Any, **named: Any) -> Message:
        seen.append(encode(*arguments, **named))
        return seen[-1]

    monkeypatch.setattr(flower, "encode_reply", spied)
    return seen


def told(replies: list[Message]) -> set[str]:
    return {name for reply in replies for name in reply.content[flower.METRICS]} & set(COLUMNS)


def test_a_node_s_clients_have_its_figures_in_their_rows(
    deployed: Path,
    make_experiment: Callable[..., Any],
    run_inline: Callable[..., Run],
    replies: list[Message],
) -> None:
    run = run_inline(make_experiment(update=SINGLE))
    assert len(replies) == len(run.clients) == 12
    metrics = [reply.content[flower.METRICS] for reply in replies]
    assert all(isinstance(m[name], float) for m in metrics for name in COLUMNS if name in m)
    clients = run.clients
    if sys.platform != "linux":
        return
    # One process serves them all here, so that it started up once.
    assert clients.startup_cpu_seconds.notna().sum() == 1
    assert clients.startup_wall_seconds.notna().sum() == 1
    here = container.interfaces(Path("/proc"))
    group = container.group_of("memory", Path("/proc"), Path("/sys/fs/cgroup"))
    peak = container.number_in(group, "memory.peak", "memory.max_usage_in_bytes")
    spent = container.cpu_seconds(Path("/proc"), Path("/sys/fs/cgroup"))
    for name, given in (
        ("container_received_bytes", here),
        ("container_sent_bytes", here),
        ("container_peak_memory_bytes", peak),
        ("container_cpu_seconds", spent),
    ):
        blank = not given and given != 0
        assert clients[name].isna().all() == blank, name
        assert (name in run.manifest.blanks) == blank, name
    assert (deployed / container.COUNTERS).is_file() == bool(here)


def test_without_a_node_nothing_is_read_and_nothing_sent(
    make_experiment: Callable[..., Any],
    run_inline: Callable[..., Run],
    replies: list[Message],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("a file was read")

    plain = make_experiment(update=SINGLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(container.NODE_DIR, raising=False)
        patch.setattr(container, "text_of", refuse)
        simulated = run_inline(plain)
    assert told(replies) == set()
    assert simulated.clients[COLUMNS].isna().all(axis=None)
    assert not set(COLUMNS) & set(simulated.manifest.blanks)  # nobody asked
    assert containers_section(simulated) is None
    assert "container" not in markdown_of(run_page(simulated.path, None), "", "").casefold()

    monkeypatch.setenv(container.NODE_DIR, str(tmp_path))
    monkeypatch.setattr(container, "SERVED", set())
    monkeypatch.setattr(container, "interfaces", lambda _: {"eth0": (1, 1)})
    replies.clear()
    there = run_inline(replace(plain, run=replace(plain.run, out=str(tmp_path / "there"))))
    assert told(replies) >= {"startup_cpu_seconds", "container_sent_bytes"}
    # Training is the same to the bit, and only a node's messages are longer, by what they tell.
    assert there.manifest.model_sha256 == simulated.manifest.model_sha256
    assert (there.clients.wire_bytes > simulated.clients.wire_bytes).all()
    assert there.clients.downlink_wire_bytes.equals(simulated.clients.downlink_wire_bytes)


def test_level_off_tells_nothing(
    deployed: Path,
    make_experiment: Callable[..., Any],
    run_inline: Callable[..., Run],
    replies: list[Message],
) -> None:
    run_inline(make_experiment(update=SINGLE, measure={"level": "off"}))
    assert len(replies) == 12
    assert told(replies) == set()


def test_the_formula_of_a_reply_s_bytes_holds_for_a_node_s_figures() -> None:
    assume_identity(1)
    model = {"w": np.arange(6, dtype=np.float32)}
    row = {"examples": 40, "steps": 4, "startup_cpu_seconds": 2.5, "container_sent_bytes": 2**40}
    request = Message(RecordDict(), 2, MessageType.TRAIN, group_id="3")
    request.metadata.__dict__["_message_id"] = "1-7"
    reply = flower.encode_reply(flower.encode_sent(model, None), row, {}, to=request)
    table = ClientTable(round=3, client=[0], **{name: [value] for name, value in row.items()})
    (found,) = reply_bytes(
        table,
        tuple(row),
        (("w", (6,), "<f4"),),
        np.array([2]),
        np.array([7]),
        layers={},
    )
    assert found == message_bytes(reply)


def test_only_what_a_container_should_have_given_is_a_blank_with_a_reason() -> None:
    given = dict.fromkeys(("cpu_seconds", "wall_seconds", "waiting_seconds"), 1.0)
    given |= {"others_cpu_seconds": 1.0, "peak_memory_bytes": 1, "train_flops": 1}
    plain = ClientRow(round=1, client=0, **given)
    whole = replace(plain, client=1, **dict.fromkeys(GIVEN_BY_CONTAINERS, 1))  # without a limit
    lacking = replace(whole, client=2, container_cpu_seconds=None)
    failed = replace(lacking, client=3, status="failed", container_sent_bytes=None)
    assert why_blank([plain, whole, failed], Energy()) == {}
    (name,) = found = why_blank([plain, whole, lacking], Energy())
    assert name == "container_cpu_seconds"
    assert "control group" in found[name]


def test_reports_show_it_beside_the_process_and_say_that_it_is_the_container_s(
    deployed: Path,
    make_experiment: Callable[..., Any],
    run_inline: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counters = iter(range(1, 100))
    monkeypatch.setattr(container, "cpu_seconds", lambda *_: 60.0 * next(counters))
    monkeypatch.setattr(container, "number_in", lambda _, name, *more: 3_000_000)
    sent = iter(range(5_000, 600_000, 5_000))
    monkeypatch.setattr(container, "interfaces", lambda _: {"eth0": (7, next(sent))})
    run = run_inline(make_experiment(update=SINGLE))
    section = containers_section(run)
    assert section is not None
    head, rows = section.table
    assert [row[0] for row in rows] == [str(c) for c in sorted(run.clients.client.unique())]
    assert sum(int(row[1]) for row in rows) == 12
    by_title = [dict(zip(head, row, strict=True)) for row in rows]
    for line in by_title:
        assert line["CPU: measured (container)"] == "60 s"
        assert line["peak memory: measured (container)"] == "3 MB"
        assert line["sent: measured (container)"] == "5 kB"
        assert line["update, as a message: counted"].endswith("kB")
        assert line["training CPU, process: measured"] not in ("-", "60 s")
    assert sum(line["start-up CPU: measured (container)"] != "-" for line in by_title) == 1

    page = run_page(run.path, None)
    for text in (html_of(page), markdown_of(page, "figures", "fedsim report")):
        assert "sent: measured (container)" in text
        assert "60 s" in text
        assert "by the counters of a client's container" in text.replace("&#39;", "'")
    (line,) = [line for line in run_lines(run_summary(run.path)) if "containers" in line]
    assert line == (
        "  containers      CPU 12 min 00 s, highest peak of memory 3 MB, received 7 B, sent 60 kB "
        "(measured (container), all visits)"
    )
