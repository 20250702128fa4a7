"""Clocks around a piece of work, and the conditions under which it ran."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import EngineError
from fedsim.measure import clocks, timing
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


def test_work_of_other_threads_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread has a clock of its own here, and the process the sum of them."""
    worked: Counter[int] = Counter()

    def work(seconds: int) -> None:
        worked[threading.get_ident()] += seconds

    monkeypatch.setattr(time, "thread_time", lambda: float(worked[threading.get_ident()]))
    monkeypatch.setattr(time, "process_time", lambda: float(worked.total()))
    with spent() as seconds:
        helper = threading.Thread(target=work, args=(5,))
        helper.start()
        helper.join()
        work(2)
    assert seconds.cpu_seconds == 2.0


@pytest.mark.parametrize("clock", [spent, training_clocks])
def test_a_block_that_raises_is_measured_too(clock) -> None:
    with pytest.raises(TypeError), clock() as seconds:
        busy() + "seconds"  # type: ignore[operator]
    assert seconds.cpu_seconds > 0
    assert seconds.wall_seconds > 0


@pytest.mark.parametrize("clock", [spent, training_clocks])
@pytest.mark.parametrize(
    ("readings", "seconds"),
    [
        *(([2.0, 2.5], 0.5), ([2.0, 2.0], 0.0)),
        *(([2.0, 1.5], None), ([2.0, math.nan], None), ([math.nan, 2.0], None)),
        *(([2.0, math.inf], None), ([-math.inf, 2.0], None)),
    ],
)
def test_durations_of_clocks_that_run_stand_or_step_back(
    clock, readings: list[float], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that steps has no figure to give; one that is coarse honestly gives 0."""
    set_clock(monkeypatch, perf_counter=readings, thread_time=[10 * r for r in readings])
    with clock() as taken:
        pass
    assert taken.wall_seconds == seconds
    assert taken.cpu_seconds == (None if seconds is None else 10 * seconds)


@given(st.floats(), st.floats())
def test_a_duration_is_finite_and_at_least_zero_or_there_is_none(
    before: float, after: float
) -> None:
    sound = before <= after and math.isfinite(after - before)
    assert elapsed(before, after) == (after - before if sound else None)


@pytest.mark.parametrize("clock", [spent, training_clocks])
def test_there_are_no_figures_until_the_block_has_ended(clock) -> None:
    with clock() as seconds:
        assert set(vars(seconds).values()) == {None}


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
    # Where either clock steps back, nobody knows.
    assert condition(tmp_path, after, before, 0.5).others_cpu_seconds is None
    assert condition(tmp_path, before, after, -2.0).others_cpu_seconds is None


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


def test_a_wait_that_steps_back_is_none(tmp_path: Path) -> None:
    proc = write_proc(tmp_path, stat=f"cpu  1 1 1 1 1 1 1 1\n{CORES}", schedstat="5 7 1\n")
    with training_clocks(proc) as training:
        write_proc(tmp_path, stat=None, schedstat="9 6 3\n")
    assert training.waiting_seconds is None
    assert training.others_cpu_seconds == 0.0


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


# Timings wait for the CPU clock to show enough work, but not for ever.


def set_timing_clocks(monkeypatch: pytest.MonkeyPatch, *, cpu_per_second: float) -> None:
    """Let 5 s of wall time pass with every look at the monotonic clock."""
    now = [1000.0]

    def monotonic() -> float:
        now[0] += 5.0
        return now[0]

    fake = {"monotonic": monotonic, "thread_time": lambda: cpu_per_second * now[0]}
    monkeypatch.setattr(timing, "time", SimpleNamespace(**{**vars(time), **fake}))


@pytest.mark.parametrize("seconds", [0.0, 60.0])
@pytest.mark.parametrize("cpu_per_second", [0.0, -1.0])
def test_a_cpu_clock_that_stands_still_is_an_error(
    seconds: float, cpu_per_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_timing_clocks(monkeypatch, cpu_per_second=cpu_per_second)
    done: list[int] = []
    layer, x = nn.ReLU(), torch.ones(3, requires_grad=True)
    arm = timing.Arm(
        model=layer, layers=(layer,), shapes=((3,),), evaluations=((layer, x),), elements=3
    )
    with pytest.raises(EngineError, match="CPU clock stands still"):
        timing.time_steps(lambda: done.append(1), seconds=seconds)
    assert len(done) < 20
    with pytest.raises(EngineError, match="CPU clock stands still"):
        timing.time_elements(arm, seconds=seconds)


def test_a_visit_that_is_late_already_is_timed_nevertheless() -> None:
    total, steps = timing.time_steps(busy, seconds=-1000.0)
    assert total >= timing.LEAST_SECONDS
    assert steps >= 1
