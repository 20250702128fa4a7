"""The pure parts of the benchmark suite; nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as suite
from benchmarks import data, flamegraph, machine, measure, processes, report, summary
from benchmarks.cases import BY_NAME, CASES, DOES_NOT, SYSTEMS, quick
from benchmarks.runners.common import BEGIN, END, RESULT, Rounds
from benchmarks.spec import Spec


def row(
    label: str, repeat: int, seconds: list[float], case: str = "2nn-b10", **other: Any
) -> dict[str, Any]:
    """Return a raw row, as the suite stores it."""
    memory = {"driver": {"rss": 2e6, "pss": 1e6}, "workers": [{"rss": 3e6, "pss": 3e6}]}
    return {
        **{"case": case, "label": label, "repeat": repeat, "counted": True, "disturbed": False},
        **{"spec": {"cohort": 100}, "round_seconds": seconds, "first_round_seconds": 5.0},
        **{"memory": {**memory, "helpers": []}, **other},
    }


ROWS = [
    row("fedsim", 1, [1.0, 2.0, 0.5]),
    row("flower", 1, [10.0]),
    row("fedsim", 2, [2.0]),
    row("flower", 2, [10.0]),
    row("fedsim", 3, [4.0]),
    row("flower", 3, [40.0]),
]


def test_speed_is_the_cohort_over_the_median_round() -> None:
    assert summary.clients_per_second(ROWS[0]) == 100.0


def test_ratios_are_taken_within_a_repeat() -> None:
    mine = summary.counted(ROWS, "2nn-b10", "fedsim")
    theirs = summary.counted(ROWS, "2nn-b10", "flower")
    assert summary.ratio(mine, theirs) == summary.Spread(10.0, 5.0, 10.0, 3)
    assert summary.ratio(mine, theirs[:1]) == summary.Spread(10.0, 10.0, 10.0, 1)
    assert summary.ratio(mine, []) is None


def test_a_run_that_does_not_count_is_left_out() -> None:
    rows = [*ROWS, {**row("fedsim", 1, [1e9]), "counted": False}]
    assert summary.counted(rows, "2nn-b10", "fedsim") == summary.counted(ROWS, "2nn-b10", "fedsim")


def test_the_price_of_a_level_compares_medians_over_all_its_runs() -> None:
    runs = [("off", [1.0, 1.0]), ("light", [1.1, 1.3]), ("light", [1.1]), ("off", [9.0])]
    told = {"levels": [{"level": level, "round_seconds": seconds} for level, seconds in runs]}
    assert summary.price(told) == pytest.approx(0.1)


def test_memory_figures() -> None:
    assert summary.driver_bytes(ROWS[0]) == 2e6
    assert summary.worker_bytes(ROWS[0]) == 3e6
    assert summary.total_pss(ROWS[0]) == 4e6


def test_a_table_says_what_was_reached() -> None:
    (table,) = report.tables(ROWS)
    fedsim, flower = table.lines
    assert fedsim[:6] == ("fedsim", "50 [25 - 100]", "3", "", "", "")
    assert flower[:6] == ("flower", "10 [2.5 - 10]", "3", "10x [5x - 10x]", "7x", "reached")
    slower = [{**r, "round_seconds": [10.0]} if r["label"] == "fedsim" else r for r in ROWS]
    assert report.tables(slower)[0].lines[1][5] == "not reached"
    assert "flower" in report.as_text(table)
    assert report.as_markdown(table).splitlines()[2].startswith("|  | clients/s | runs |")


def test_counted_runs_that_were_disturbed_have_a_star() -> None:
    rows = [{**r, "disturbed": r["label"] == "flower"} for r in ROWS]
    (table,) = report.tables(rows)
    assert [line[1].endswith("*") for line in table.lines] == [False, True]


def test_the_other_tables() -> None:
    (cold,) = report.tables(
        [row("ray", 1, [], "cold", cold_seconds=3.21, whole_seconds=0.5)],
    )
    assert cold.lines == (("engine ray", "3.2 s [3.2 s - 3.2 s]", "500 ms [500 ms - 500 ms]"),)
    runs = [{"level": "off", "round_seconds": [1.0]}, {"level": "light", "round_seconds": [1.02]}]
    (_, levels) = report.tables([row("fedsim", 1, [1.02], levels=runs), *ROWS[1:]])
    title = BY_NAME["2nn-b10"].title
    assert levels.lines == ((title, "2.0% [2.0% - 2.0%]", "3.0%", "yes"),)
    at = {"100": ROWS[0]["memory"], "1000": ROWS[0]["memory"]}
    (memory,) = report.tables([row("fedsim", 1, [], "memory", memory_at=at)])
    assert memory.lines[1] == ("after round 1000", "2 MB", "3 MB")


def test_the_generated_part_of_the_document_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text(f"before\n{report.BEGIN_MARK}\nold\n{report.END_MARK}\nafter\n")
    report.rewrite(path, "new")
    report.rewrite(path, "newer")
    expected = f"before\n{report.BEGIN_MARK}\n\nnewer\n\n{report.END_MARK}\nafter\n"
    assert path.read_text() == expected
    path.write_text("no marks")
    with pytest.raises(ValueError, match="no part between"):
        report.rewrite(path, "new")


def test_the_document_names_the_machine_and_what_each_system_does_not_do() -> None:
    text = report.document(machine.about(), ROWS)
    assert "torch" in text
    assert DOES_NOT["flower"] in text
    assert DOES_NOT["pfl"] not in text
    assert "|" in text


def test_the_project_s_document_has_the_marks() -> None:
    text = suite.DOCUMENT.read_text()
    assert text.index(report.BEGIN_MARK) < text.index(report.END_MARK)


def test_foreign_load_is_what_the_suite_did_not_use_itself() -> None:
    before = measure.Load(seconds=10.0, busy=1000, own=500)
    after = measure.Load(seconds=12.0, busy=1000 + 3 * processes.TICKS, own=500 + processes.TICKS)
    assert after.foreign_cores(before) == 1.0
    assert measure.Load(12.0, 1000, 600).foreign_cores(before) == 0.0
    assert before.foreign_cores(before) == 0.0


def test_the_least_disturbed_run_counts() -> None:
    rows = [{"foreign_cores": load} for load in (0.5, 0.2, 0.9)]
    assert [r["counted"] for r in measure.marked(rows, 0.1)] == [False, True, False]
    assert [r["disturbed"] for r in measure.marked(rows, 0.3)] == [True, False, True]
    assert measure.marked([{"foreign_cores": None}], 0.1)[0]["disturbed"] is False


def test_a_disturbed_run_is_repeated_a_few_times_at_most(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loads = iter((0.9, 0.0, 0.9, 0.8, 0.7))
    monkeypatch.setattr(measure, "run", lambda entry, data: {"foreign_cores": next(loads)})
    entry = CASES[0].entries[0]
    assert len(measure.undisturbed(entry, tmp_path, tolerated=0.1, retries=2)) == 2
    assert len(measure.undisturbed(entry, tmp_path, tolerated=0.1, retries=2)) == 3


def test_what_a_runner_prints_is_read() -> None:
    lines = ["noise\n", BEGIN, "x", BEGIN, END, END, RESULT + '{"round_seconds": [1.5]}\n']
    result, loads = measure.listen(lines)
    assert result == {"round_seconds": [1.5]}
    assert len(loads) == 2
    assert measure.listen(["nothing"]) == (None, [])


def test_rounds_are_timed_after_the_warm_up(capsys: pytest.CaptureFixture[str]) -> None:
    moments = iter((0.0, 5.0, 6.0, 8.0))
    rounds = Rounds(Spec(warm_up=1, rounds=2), clock=lambda: next(moments))
    rounds.start()
    for _ in range(3):
        rounds.end()
    result = rounds.result()
    assert (result["first_round_seconds"], result["round_seconds"]) == (5.0, [1.0, 2.0])
    assert result["memory"]["driver"]["rss"] > 0
    assert capsys.readouterr().out.split("\n") == [BEGIN, END, ""]


def test_the_kernel_s_files_are_read() -> None:
    stat = "42 (a (strange) name) S 7 1 1 0 -1 0 0 0 0 0 10 20 3 4 20 0 1 0"
    assert processes.parse_stat(stat) == processes.Process(pid=42, parent=7, ticks=37)
    assert processes.busy_ticks("cpu  10 20 30 400 50 1 2 3 0 0\ncpu0 ...") == 66
    found = {p: processes.Process(p, parent, 1) for p, parent in ((1, 0), (2, 1), (3, 2), (4, 9))}
    assert [p.pid for p in processes.tree(1, found)] == [1, 2, 3]
    assert processes.tree(5, found) == []


def test_specs_travel_as_json() -> None:
    spec = Spec(levels=("off", "light"), memory_at=(100,), path="data.npz")
    assert Spec.decode(spec.encode()) == spec
    assert Spec(examples=25, batch_size=10).steps == 3


@pytest.mark.parametrize("model", ["2nn", "small", "cnn", "tiny"])
def test_every_client_holds_its_examples(model: str, tmp_path: Path) -> None:
    spec = Spec(model=model, clients=3, examples=4)
    path = data.data_file(spec, tmp_path)
    x, y = data.load(dataclasses.replace(spec, path=str(path)))
    assert x.shape == (3, 4, *spec.shape)
    assert y.shape == (3, 4)
    assert x.dtype == np.float32
    assert 0 <= x.min() <= x.max() <= 1


def test_cases_are_what_the_runners_can_do() -> None:
    assert len(BY_NAME) == len(CASES)
    for case in CASES:
        assert case.table in report.TABLES
        labels = [entry.label for entry in case.entries]
        assert len(set(labels)) == len(labels)
        for entry in case.entries:
            runner = SYSTEMS[entry.system].runner
            assert Path(suite.__file__).with_name("runners").joinpath(f"{runner}.py").is_file()
            assert entry.spec.cohort <= entry.spec.clients
            # Every system cuts a client's examples into batches of one size.
            assert entry.spec.examples % entry.spec.batch_size == 0 or entry.system == "noop"


def test_cases_and_systems_can_be_chosen() -> None:
    (case,) = suite.choose(("2nn-b10",), ("fedsim", "pfl"))
    assert [entry.label for entry in case.entries] == ["fedsim", "pfl"]
    assert len(suite.choose(None, None)) == sum(case.default for case in CASES)
    (case,) = suite.choose(("cold", "2nn-b10"), ("fedsim",))
    assert case.name == "2nn-b10"
    with pytest.raises(SystemExit, match="unknown: nonsense"):
        suite.choose(("nonsense",), None)
    with pytest.raises(SystemExit, match="--only: unknown: fedavg; there are fedsim, "):
        suite.choose(("2nn-b10",), ("flower", "fedavg"))


def test_systems_take_turns_and_repeats_go_round() -> None:
    cases = [BY_NAME["noop-sums"], BY_NAME["memory"]]
    runs = [(repeat, entry.label) for repeat, _, entry in suite.plan(cases, 2)]
    once = ["fedsim", "flower", "fedsim"]
    assert runs == [(repeat, label) for repeat in (1, 2) for label in once]
    left_to_the_cases = [(case.name, entry.label) for _, case, entry in suite.plan(cases, None)]
    assert left_to_the_cases.count(("noop-sums", "fedsim")) == 5
    assert left_to_the_cases.count(("noop-sums", "flower")) == 3
    assert left_to_the_cases.count(("memory", "fedsim")) == 1
    assert all(entry.spec.rounds == 1 for case in CASES for entry in quick(case).entries)


def test_time_left_is_told_once_every_run_is_known() -> None:
    runs = list(suite.plan([BY_NAME["noop-sums"]], 1))
    assert suite.seconds_left(runs, {("noop-sums", "fedsim"): 60.0}) == ""
    took = {("noop-sums", "fedsim"): 60.0, ("noop-sums", "flower"): 120.0}
    assert suite.seconds_left(runs, took) == ", 3.0 min left"


def test_raw_rows_are_stored_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "results" / "machine.json"
    rows = [row("fedsim", 1, [1 / 3])]
    suite.save(path, {"cores": 2}, rows)
    assert json.loads(path.read_text())["rows"] == rows
    assert machine.file_name("AMD EPYC 9B45 (x)", 2) == "amd-epyc-9b45-x-2-cores"


def test_flame_graphs_tell_kernels_from_the_rest() -> None:
    raw = (
        "main (a.py:1);step (b.py:2);at::mm<float> (libtorch.so);mkl_blas_sgemm (lib.so) 6\n"
        "main (a.py:1);step (b.py:2) 3\n"
        "main (a.py:1);call (b.py:9);tsl::BlockUntilReady (x.so);syscall (libc.so.6) 1\n"
    )
    stacks = flamegraph.parse(raw)
    assert flamegraph.kernel_share(stacks) == 0.7
    drawing = flamegraph.draw(stacks, "before & after")
    assert "before &amp; after; 10 samples" in drawing
    assert "at::mm (libtorch.so): 60.0%" in drawing
    assert flamegraph.kernel_share({}) == 0.0
    script = " 7f1 ynn::dot (x.so)\n 7f2 [unknown] (/tmp/perf-12.map)\n 7f3 PyEval (python)\n\n"
    assert flamegraph.perf_kernel_share(script) == pytest.approx(2 / 3)


def test_the_command_passes_its_options_on() -> None:
    program = "import sys; from fedsim.cli.main import main; sys.argv[0] = 'fedsim'; main()"
    command = [sys.executable, "-c", program, "bench", "peers"]
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True, timeout=60)
    assert listed.returncode == 0
    assert "2nn-b10" in listed.stdout
    wrong = subprocess.run([*command, "--cases", "3nn"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 1
    assert "unknown: 3nn" in wrong.stderr


def test_an_installed_package_has_no_suite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Any
) -> None:
    monkeypatch.setattr("fedsim.cli.peers.ROOT", tmp_path)
    answer = cli("bench", "peers")
    assert answer.code == 2
    assert f"{tmp_path} holds no benchmarks" in answer.err
