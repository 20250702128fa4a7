"""Clocks around a piece of work, and the conditions under which it ran."""

from __future__ import annotations

import math
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.measure import clocks
from fedsim.measure.clocks import FIRST_LINE_BYTES, Training, elapsed, spent, training_clocks

CORES = "cpu0 50 0 50 900 0 0 0 0 0 0\ncpu1 50 0 50 900 0 0 0 0 0 0\n"


def busy() -> int:
    return sum(range(500_000))


def set_clock(monkeypatch: pytest.MonkeyPatch, **readings: list[float]) -> None:
    """Let clocks give these readings, one a call, to the module under test alone."""
    fake = {name: iter(values).__next__ for name, values in readings.items()}
    monkeypatch.setattr(clocks, "time", SimpleNamespace(**{**vars(time), **fake}))


def write_proc(proc: Path, *, stat: str | None, schedstat: str | None) -> str:
    """Write the two files that are read, or leave them out."""
    (proc / "thread-self").mkdir(parents=True, exist_ok=True)
    for path, text in ((proc / "stat", stat), (proc / "thread-self" / "schedstat", schedstat)):
        if text is not None:
            path.write_text(text)
    return str(proc)


def condition(tmp_path: Path, before: str, after: str, own_seconds: float = 0.0) -> Training:
    """Measure a block in which /proc/stat goes from one first line to another.

    ``own_seconds`` is the CPU time of this process meanwhile.
    """
    proc = write_proc(tmp_path, stat=f"{before}\n{CORES}", schedstat="5 7 1\n")
    with pytest.MonkeyPatch.context() as patched:
        set_clock(patched, process_time=[3.0, 3.0 + own_seconds])
        patched.setattr(os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
        with training_clocks(proc) as training:
            write_proc(tmp_path, stat=f"{after}\n{CORES}", schedstat="9 2000000007 3\n")
    return training


def test_work_takes_more_cpu_time_than_sleep() -> None:
    with spent() as working:
        busy()
    with spent() as sleeping:
        time.sleep(0.01)
    assert working.cpu_seconds > sleeping.cpu_seconds
    assert sleeping.wall_seconds > sleeping.cpu_seconds


def test_work_of_other_threads_is_not_counted() -> None:
    with spent() as own:
        busy()
    with spent() as helped:
        helper = threading.Thread(target=busy)
        helper.start()
        helper.join()
    assert helped.cpu_seconds < own.cpu_seconds


@pytest.mark.parametrize("clock", [spent, training_clocks])
def test_a_block_that_raises_is_measured_too(clock) -> None:
    with pytest.raises(TypeError), clock() as seconds:
        busy() + "seconds"  # type: ignore[operator]
    assert seconds.cpu_seconds > 0
    assert seconds.wall_seconds > 0


@pytest.mark.parametrize("clock", [spent, training_clocks])
@pytest.mark.parametrize(
    ("readings", "seconds"),
    [([2.0, 2.5], 0.5), ([2.0, 2.0], 0.0), ([2.0, 1.5], 0.0), ([2.0, math.nan], 0.0)],
)
def test_durations_of_clocks_that_run_stand_or_step_back(
    clock, readings: list[float], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, perf_counter=readings, thread_time=[10 * r for r in readings])
    with clock() as taken:
        pass
    assert taken.wall_seconds == seconds
    assert taken.cpu_seconds == 10 * seconds


@given(st.floats(), st.floats())
def test_no_duration_is_negative_or_no_number(before: float, after: float) -> None:
    assert elapsed(before, after) >= 0
    if before <= after and math.isfinite(after - before):
        assert elapsed(before, after) == after - before


def test_figures_are_the_ledgers_columns() -> None:
    """The bill takes them over by name."""
    with training_clocks() as training:
        pass
    columns = ("cpu_seconds", "wall_seconds", "waiting_seconds", "others_cpu_seconds")
    assert tuple(vars(training)) == columns
    with spent() as seconds:
        pass
    assert tuple(vars(seconds)) == columns[:2]


@pytest.mark.parametrize("field", range(10))
def test_busy_time_is_all_but_idle_waiting_for_disks_and_guests(field: int, tmp_path: Path) -> None:
    """The guests' time, the last two, is within user and nice already."""
    before = ["1"] * 10
    after = ["151" if i == field else "1" for i in range(10)]
    found = condition(tmp_path, f"cpu  {' '.join(before)}", f"cpu  {' '.join(after)}")
    assert found.others_cpu_seconds == (0.0 if field in (3, 4, 8, 9) else pytest.approx(1.5))


def test_others_are_the_machine_without_this_process(tmp_path: Path) -> None:
    before, after = "cpu  500 0 500 9000 9 0 0 0 0 0", "cpu  700 0 600 9100 9 0 0 0 0 0"
    assert condition(tmp_path, before, after, 1.0).others_cpu_seconds == pytest.approx(2.0)
    assert condition(tmp_path, before, after, 3.0).others_cpu_seconds == pytest.approx(0.0)
    # Ticks are coarse: this process may seem to have done more than the machine.
    assert condition(tmp_path, before, after, 3.5).others_cpu_seconds == 0.0
    assert condition(tmp_path, after, before, 0.5).others_cpu_seconds == 0.0
    # A process clock that steps back does not add to the others.
    assert condition(tmp_path, before, after, -2.0).others_cpu_seconds == pytest.approx(3.0)


def test_waiting_is_the_second_field_in_nanoseconds(tmp_path: Path) -> None:
    line = "cpu  500 0 500 9000 9 0 0 0 0 0"
    assert condition(tmp_path, line, line).waiting_seconds == pytest.approx(2.0)


@pytest.mark.parametrize("schedstat", [None, "", "0 0 0\n", "12", "a b c\n"])
@pytest.mark.parametrize(
    "stat", [None, "", "intr 5 6\n", "cpu", "cpu 0 0 0 0 0 0 0 0\n", "cpu a b c d e f g h\n"]
)
def test_what_the_system_does_not_tell_stays_blank(
    stat: str | None, schedstat: str | None, tmp_path: Path
) -> None:
    proc = write_proc(tmp_path, stat=stat, schedstat=schedstat)
    with training_clocks(proc) as training:
        busy()
    assert training.waiting_seconds is None
    assert training.others_cpu_seconds is None
    assert training.cpu_seconds > 0
    assert training.wall_seconds > 0


def test_a_file_that_goes_away_leaves_a_blank(tmp_path: Path) -> None:
    proc = write_proc(tmp_path, stat="cpu  1 1 1 1 1 1 1 1\n", schedstat="5 7 1\n")
    with training_clocks(proc) as training:
        (tmp_path / "stat").unlink()
        (tmp_path / "thread-self" / "schedstat").unlink()
    assert training == Training(
        cpu_seconds=training.cpu_seconds, wall_seconds=training.wall_seconds
    )


def test_many_cores_and_long_uptimes_fit(tmp_path: Path) -> None:
    """Only the start of /proc/stat is read; the longest first line is within it."""
    first = "cpu  " + " ".join(["9" * 20] * 10)
    assert len(first) < FIRST_LINE_BYTES
    (tmp_path / "stat").write_text(first + "\n" + CORES * 500)
    assert clocks.busy_seconds(str(tmp_path)) == int("9" * 20) * 6 / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not os.path.exists("/proc/thread-self/schedstat"), reason="needs Linux")
def test_this_machine_tells_its_conditions() -> None:
    with training_clocks() as training:
        busy()
    assert training.waiting_seconds is not None
    assert training.others_cpu_seconds is not None


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux")
def test_no_file_stays_open() -> None:
    before = open_files()
    for _ in range(20):
        with training_clocks():
            pass
    assert open_files() == before
