from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.config import Experiment
from fedsim.errors import ConfigError, RunFailed
from fedsim.ledger.read import load
from fedsim.models.activations import ACTIVATIONS
from fedsim.study.design import Cell, Study, study_of
from fedsim.study.execute import CellResult, StudyRuns, run_cells
from fedsim.study.figures import COSTS
from fedsim.study.file import read_study
from fedsim.vocabulary import vocabulary

CLI = Callable[..., Any]
NAMES = vocabulary()
BASE = """
[experiment]
rounds = 2
seed = 4
[data]
clients = 5
[model]
width = 8
[server]
clients_per_round = 2
[engine]
name = "inline"
"""
AXIS = '"model.activation" = ["relu", "tanh"]'


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a study file beside its base."""
    (tmp_path / "base.toml").write_text(BASE)

    def write(*lines: str, axes: str = AXIS) -> Path:
        path = tmp_path / "small.toml"
        path.write_text("\n".join(['base = "base.toml"', *lines, "[axes]", axes]))
        return path

    return write


def read(path: Path, *overrides: str) -> Study:
    return read_study(path, overrides, vocabulary=NAMES)


def cells_in(study: Study) -> list[Cell]:
    """Return the cells of a study that tunes nothing."""
    return [study.cell(arm, (), seed, NAMES) for seed in study.seeds for arm in study.arms]


# The file.


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["base: must name an experiment file"]),
        ("base = 3", ["base: must name an experiment file"]),
        ('base = "base.toml"\naxis = 3', ["axis: unknown key; did you mean 'axes'?"]),
        ('base = "base.toml"\naxes = 3', ["axes: must be a table of keys and lists"]),
        (
            'base = "base.toml"\n[axes]\n"model.activaton" = ["relu"]',
            ["axes.model.activaton: unknown key; did you mean 'model.activation'?"],
        ),
        (
            'base = "base.toml"\n[axes]\n"measure.x" = [1]',
            [
                "axes.measure.x: unknown key; valid: measure.level, measure.full_every, "
                "measure.device, measure.energy, measure.calibrate"
            ],
        ),
        (
            'base = "base.toml"\n[axes]\n"model.width" = 5',
            ["axes.model.width = 5: must be a list of values"],
        ),
        (
            'base = "base.toml"\n[axes]\n"model.width" = []',
            ["axes.model.width = []: must be a list of values"],
        ),
        (
            'base = "base.toml"\n[axes]\n"model.width" = [5, 6, 5]',
            ["axes.model.width = [5, 6, 5]: names a value twice"],
        ),
        (
            'base = "base.toml"\n[axes]\n"experiment.seed" = [1, 2]',
            ["axes.experiment.seed: seeds are no axis; use seeds = [...]"],
        ),
        (
            'base = "base.toml"\n[axes]\n"engine.workers" = [1, 2]',
            ["axes.engine.workers: changes no result, so it is no axis; use -s engine.workers=..."],
        ),
        ('base = "base.toml"\nset = 3', ["set: must be a table of keys and values"]),
        (
            'base = "base.toml"\n[set]\n"model.widht" = 5\n[axes]\n"model.depth" = [1]',
            ["set.model.widht: unknown key; did you mean 'model.width'?"],
        ),
        (
            'base = "base.toml"\n[set]\n"model.width" = 5\n[axes]\n"model.width" = [4, 5]',
            ["set.model.width: is an axis of this study too; keep one of them"],
        ),
        *(
            (
                f'base = "base.toml"\nseeds = {seeds}',
                [f"seeds = {shown}: must be a number of at least 1, or a list of seeds"],
            )
            for seeds, shown in (
                ("0", "0"),
                ("true", "True"),
                ("1.5", "1.5"),
                ("[]", "[]"),
                ("[-1]", "[-1]"),
                ("[1, true]", "[1, True]"),
                ('"three"', "'three'"),
            )
        ),
        *(
            (
                f'base = "base.toml"\ntargets = {targets}',
                [f"targets = {shown}: must be test accuracies, above 0 and at most 1"],
            )
            for targets, shown in (
                ("0", "0"),
                ("[0.5, 1.5]", "[0.5, 1.5]"),
                ("[nan]", "[nan]"),
                ('["0.9"]', "['0.9']"),
                ("true", "True"),
            )
        ),
        (
            "seeds = 0\ntargets = 2\nfoo = 1\n",
            [
                "foo: unknown key; valid: about, axes, base, budget_seconds, hypothesis, "
                "published, seeds, set, skip, targets, tune",
                "seeds = 0: must be a number of at least 1, or a list of seeds",
                "targets = 2: must be test accuracies, above 0 and at most 1",
                "base: must name an experiment file",
            ],
        ),
    ],
)
def test_a_file_that_is_wrong_is_told_every_problem(
    tmp_path: Path, text: str, lines: list[str]
) -> None:
    (tmp_path / "base.toml").write_text(BASE)
    path = tmp_path / "small.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert caught.value.problems == tuple(f"{path}: {line}" for line in lines)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    with pytest.raises(ConfigError, match=r"small\.toml: no such file"):
        read(path)
    path.write_text('base = "gone.toml"')
    with pytest.raises(ConfigError, match=r"gone\.toml: no such file"):
        read(path)
    (tmp_path / "gone.toml").write_text("[")
    with pytest.raises(ConfigError, match=r"gone\.toml: not valid TOML"):
        read(path)


def test_an_override_of_an_axis_would_mislabel_the_arms(write: Callable[..., Path]) -> None:
    path = write()
    with pytest.raises(ConfigError) as caught:
        read(path, "model.activation=gelu")
    assert caught.value.problems == (
        f"{path}: -s model.activation=gelu: is an axis of this study; change [axes] instead",
    )


def test_the_problems_of_all_cells_are_told_at_once_and_each_once(
    write: Callable[..., Path],
) -> None:
    path = write(axes='"model.activation" = ["rellu", "tahn", "gelu"]\n"model.depth" = [1, 2]')
    with pytest.raises(ConfigError) as caught:
        read(path, "data.clients=1")
    assert caught.value.problems == (
        "model.activation = 'rellu': unknown; did you mean 'relu'?",
        "server.clients_per_round = 2: more than data.clients = 1",
        "model.activation = 'tahn': unknown; did you mean 'tanh'?",
    )


# The cells.


def test_the_cells_are_the_product_of_the_axes_seed_by_seed(write: Callable[..., Path]) -> None:
    study = read(write("seeds = [9, 3, 9]", axes=f'{AXIS}\n"train.learning_rate" = [0.1, 1]'))
    assert study.name == "small"
    assert tuple(study.axes) == ("model.activation", "train.learning_rate")
    assert study.seeds == (3, 9)
    arms = list(itertools.product(["relu", "tanh"], [0.1, 1]))
    cells = cells_in(study)
    assert [(cell.seed, *(value for _, value in cell.arm)) for cell in cells] == [
        (seed, *arm) for seed in (3, 9) for arm in arms
    ]
    for cell in cells:
        activation, rate = (value for _, value in cell.arm)
        e = cell.experiment
        assert (e.model.activation, e.train.learning_rate) == (activation, rate)
        assert e.experiment.seed == cell.seed
        assert e.data.clients == 5
    assert cells[1].label == "relu, 1"
    assert cells[1].folder == Path("activation=relu,learning_rate=1", "seed-3")


@pytest.mark.parametrize(
    ("line", "override", "expected"),
    [
        ("seeds = 2", (), (4, 5)),  # from the base's on
        ("seeds = 2", ("experiment.seed=7",), (7, 8)),
        ("seeds = [1]", (), (1,)),
        ("", (), tuple(range(4, 16))),
    ],
)
def test_seeds_are_a_number_or_a_list(
    write: Callable[..., Path], line: str, override: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    study = read(write(line), *override)
    assert study.seeds == expected
    assert [cell.experiment.experiment.seed for cell in cells_in(study)] == [
        seed for seed in expected for _ in ("relu", "tanh")
    ]


def test_a_study_without_axes_is_its_base_over_seeds(write: Callable[..., Path]) -> None:
    study = read(write("targets = 0.8", axes=""))
    assert [cell.label for cell in cells_in(study)] == ["base"] * 12
    assert cells_in(study)[0].folder == Path("base", "seed-4")
    assert study.targets == (0.8,)
    assert read(write(axes="")).targets == (0.9,)


def test_what_a_study_sets_counts_more_than_its_base_and_less_than_the_command_line(
    write: Callable[..., Path],
) -> None:
    path = write(
        "[set]", '"model.width" = 9', '"experiment.seed" = 11', "[set.train]", "epochs = 3"
    )
    for overrides, width in (((), 9), (("model.width=10",), 10)):
        for cell in cells_in(read(path, *overrides)):
            e = cell.experiment
            assert (e.model.width, e.train.epochs, e.data.clients) == (width, 3, 5)
        assert read(path, *overrides).seeds == tuple(range(11, 23))
    with pytest.raises(ConfigError) as caught:
        read(write("[set]", '"model.width" = -1'))
    assert caught.value.problems == ("model.width = -1: must be at least 0",)


def test_axes_may_be_nested_tables(write: Callable[..., Path]) -> None:
    assert read(write(axes="[axes.model]\nwidth = [4, 5]")).axes == {"model.width": (4, 5)}


values = st.lists(st.one_of(st.text(), st.integers(), st.floats(), st.booleans()), max_size=3)


@given(values, values)
def test_unlike_arms_have_unlike_folders_one_level_down(one: list[Any], other: list[Any]) -> None:
    def folder(values: list[Any]) -> Path:
        keys = ("data.path", "data.label", "train.decay")
        arm = tuple(zip(keys, values, strict=False))
        return Cell(arm=arm, seed=0, experiment=Experiment()).folder

    assert len(folder(one).parts) == 2
    assert folder(one).parts[0] not in (".", "..")
    assert (folder(one) == folder(other)) == (list(map(str, one)) == list(map(str, other)))


# Running them.


class Bench:
    """Runs nothing, and says that it did."""

    places = 1

    def __init__(self, fails: tuple[str, int] = ("", 0), error: Exception | None = None) -> None:
        self.fails, self.error = fails, error
        self.asked: list[Experiment] = []

    def begin(self, experiment: Experiment, tell: Callable[[str], None]) -> None:
        self.asked.append(experiment)
        mine = (experiment.model.activation, experiment.experiment.seed)
        if self.error or mine == self.fails:
            raise self.error or RunFailed("no client answered")
        tell("")

    def wait(self) -> None:
        raise AssertionError("nothing is under way")


def run_all(study: Study, directory: Path, bench: Bench) -> list[CellResult]:
    """Run a study's cells; return what became of each, in the order in which they ended."""
    ended: list[CellResult] = []
    run_cells(
        StudyRuns(study=study, directory=directory, vocabulary=NAMES),
        bench,
        lambda cell, result: ended.append(result) if result else None,
    )
    return ended


def labels(results: list[CellResult]) -> list[tuple[str, int]]:
    return [(result.cell.label, result.cell.seed) for result in results]


def test_a_cell_that_fails_is_recorded_while_the_others_go_on(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    study = read(write("seeds = 2"))
    bench = Bench(fails=("tanh", 4))
    results = run_all(study, tmp_path / "out", bench)
    asked = bench.asked
    assert labels(results) == [("relu", 4), ("tanh", 4), ("relu", 5), ("tanh", 5)]
    assert [result.error for result in results] == [None, "no client answered", None, None]
    assert [Path(e.run.out) for e in asked] == [result.directory for result in results]
    assert not any(e.run.resume for e in asked)


def test_a_programming_error_is_not_taken_for_a_run_that_failed(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        run_all(read(write()), tmp_path / "out", Bench(error=ZeroDivisionError()))


# The command.


def cells_of(line: str) -> list[str]:
    return re.split(" {2,}", line.strip())


def test_a_study_ends_with_its_arms_side_by_side(
    cli: CLI, write: Callable[..., Path], tmp_path: Path
) -> None:
    answer = cli("study", write("seeds = 2", "targets = [0.1, 0.9999]"))
    assert answer.code == 0
    lines = answer.out.rstrip().splitlines()[1:]
    head, _, relu, tanh = lines[:4]
    names = ("activation", "test accuracy", "rounds to 10%", "rounds to 99.99%", "client CPU")
    assert cells_of(head) == [*names, "uplink"]
    for line, name in ((relu, "relu"), (tanh, "tanh")):
        assert line.split()[0] == name
        assert line.count("% +- ") == 1
        assert "0 of 2 seeds" in line  # 99.99 % is not reached
        assert "1.0" in line.split()
    *_, done, where = lines
    assert done.startswith("4 of 4 runs complete, ")
    assert where == "runs: runs/small; to look at them: fedsim report runs/small"
    first, *progress = answer.err.splitlines()
    assert first == "small: 4 runs, starting the inline engine"
    runs = enumerate(itertools.product((4, 5), ("relu", "tanh")), 1)
    for line, (n, (seed, label)) in zip(progress, runs, strict=True):
        assert line.startswith(f"[{n}/4] {label}, seed {seed}: ")
        assert "% after 2 rounds; " in line
        assert line.endswith("none to go") == (n == 4)
    assert sorted(
        p.relative_to(tmp_path / "runs").as_posix() for p in tmp_path.rglob("seed-*")
    ) == [f"small/activation={label}/seed-{seed}" for label in ("relu", "tanh") for seed in (4, 5)]


def the_bill(out: str) -> list[str]:
    """Return the lines of the bill: its head, its kinds, its arms, and what is said of it."""
    lines = out.partition("\nthe bill\n")[2].splitlines()
    return [line for line in lines if line.strip() and "──" not in line]


def test_the_bill_holds_what_was_asked_for(cli: CLI, write: Callable[..., Path]) -> None:
    path = write("seeds = 1", "targets = [0.05, 0.9999]")
    off = the_bill(cli("study", path, "--out", "off", "-s", "measure.level=off").out)
    assert cells_of(off[0])[0] == "activation"
    assert "CPU to 5%" in off[0]
    light = the_bill(cli("study", path, "--out", "light").out)
    assert cells_of(light[0]) == ["activation", "saved/step", "bytes to 5%", "CPU to 5%"]
    assert light[1].split() == ["counted", "counted", "measured"]
    full = the_bill(cli("study", path, "--out", "full", "-s", "measure.level=full").out)
    assert cells_of(full[0]) == [
        *("activation", "saved/step", "zero", "dead", "compressed", "bytes to 5%", "CPU to 5%")
    ]
    relu, tanh = cells_of(full[2]), cells_of(full[3])
    assert (relu[0], tanh[0]) == ("relu", "tanh")
    assert relu[1] == tanh[1]  # both save their result
    assert relu[2] != "0.0%"
    assert tanh[2:4] == ["0.0%", "0.0%"]
    parameters = 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert f"dense update: {4 * parameters:,} bytes for every arm (counted)" in full
    assert not [line for line in full if line.startswith("warning")]


def test_an_arm_whose_updates_are_larger_is_named(cli: CLI, write: Callable[..., Path]) -> None:
    axes = '"model.activation" = ["relu", "prelu", "gelu"]'
    bill = the_bill(cli("study", write("seeds = 1", axes=axes)).out)
    parameters = 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert (
        f"dense update: {4 * (parameters + 2):,} bytes for prelu, "
        f"{4 * parameters:,} bytes for the others (counted)"
    ) in bill


def interval(estimate: float) -> dict[str, float]:
    return {"estimate": estimate, "low": 0.5 * estimate, "high": 2 * estimate}


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    """A directory for a study, in which the activations' timings lie already."""
    timings = {
        "forward_ns": interval(1.5),
        "backward_ns": interval(2.0),
        "times_relu": None,
        "step_seconds": interval(1e-3),
        "share_of_step": interval(0.25),
        "share_by_difference": interval(0.25),
    }
    document = {
        **{"format": 1, "kind": "measured", "unstable": ["blocks are short", "others work"]},
        **{"batch_size": 10, "shapes": [[10, 8]], "blocks": 20, "seconds": 25.0},
        "machine": {
            **{"processor": "Z80", "cores": 1, "platform": "CP/M", "torch": "2", "threads": 1},
            "pinned": None,
        },
        "control": timings,
        "activations": {"relu": timings},
    }
    directory = tmp_path / "calibrated"
    directory.mkdir()
    (directory / "calibration.json").write_text(json.dumps(document))
    return directory


def test_the_bill_shows_the_timings_that_lie_in_the_study_s_directory(
    cli: CLI, write: Callable[..., Path], calibrated: Path
) -> None:
    path = write("seeds = 1", "targets = []")
    bill = the_bill(cli("study", path, "--out", calibrated).out)
    assert cells_of(bill[0]) == ["activation", "step share", "ns/element", "saved/step"]
    assert bill[1].split() == ["measured", "measured", "counted"]
    assert cells_of(bill[2])[:3] == ["relu", "25.0%", "3.5"]
    assert cells_of(bill[3])[:3] == ["tanh", "-", "-"]
    assert "warning: the timings may not repeat: blocks are short; others work" in bill
    document = cli("study", path, "--out", calibrated, "--format", "json").json
    relu, tanh = document["arms"]
    assert relu["calibration"]["forward_ns"] == {"kind": "measured", **interval(1.5)}
    assert tanh["calibration"] is None
    assert document["calibration_unstable"] == ["blocks are short", "others work"]
    run = load(document["cells"][0]["run"]).manifest
    assert document["calibration_elsewhere"] == [
        f"processor: Z80 -> {run.processor}",
        f"platform: CP/M -> {run.platform}",
    ]


def test_a_damaged_calibration_is_told_before_the_tables(
    cli: CLI, write: Callable[..., Path], calibrated: Path
) -> None:
    (calibrated / "calibration.json").write_text("{}")
    answer = cli("study", write("seeds = 1"), "--out", calibrated, "-q")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"error: {calibrated / 'calibration.json'} is no calibration")


def test_a_study_as_one_json_document(cli: CLI, write: Callable[..., Path]) -> None:
    path = write("seeds = [0, 1]", "targets = [0.1, 0.9999]")
    answer = cli("study", path, "--out", "s", "--format", "json", "-q")
    assert (answer.code, answer.err) == (0, "")
    document = answer.json
    assert set(document) == {
        *("study", "about", "out", "cells", "failed", "failed_tuning", "kinds", "arms"),
        *("verdicts", "published", "tuning"),
        *("calibration_unstable", "calibration_elsewhere"),
    }
    assert document["kinds"]["cpu_seconds"] == "measured"
    assert set(document["kinds"]) < set(document["cells"][0])
    assert (document["study"], document["out"], document["failed"]) == ("small", "s", [])
    assert document["calibration_unstable"] is document["calibration_elsewhere"] is None
    assert [(c["arm"], c["seed"]) for c in document["cells"]] == [
        ({"model.activation": label}, seed) for seed in (0, 1) for label in ("relu", "tanh")
    ]
    for cell in document["cells"]:
        assert cell["model_sha256"] == load(cell["run"]).manifest.model_sha256
        assert cell["status"] == "completed"
    assert [arm["arm"] for arm in document["arms"]] == ["relu", "tanh"]
    for arm in document["arms"]:
        ours = [c for c in document["cells"] if c["arm"] == {"model.activation": arm["arm"]}]
        accuracies = [c["test_accuracy"] for c in ours]
        assert arm["test_accuracy"]["values"] == accuracies
        assert arm["test_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert arm["uplink_bytes"]["values"] == [c["uplink_bytes"] for c in ours]
        assert arm["train_flops"]["values"] == [c["train_flops"] for c in ours]
        assert arm["rounds_to_0.1"]["values"] == [1.0, 1.0]
        for cost, kind in COSTS.items():
            assert arm[f"{cost}_to_0.1"]["kind"] == kind
            assert arm[f"{cost}_to_0.1"]["mean"] > 0
            nobody = {"mean": None, "deviation": None, "values": [None, None]}
            assert arm[f"{cost}_to_0.9999"] == {"kind": kind, **nobody}


def test_seeds_that_are_added_run_alone(cli: CLI, write: Callable[..., Path]) -> None:
    first = cli("study", write("seeds = 1"), "--format", "json").json
    again = cli("study", write("seeds = 1"))
    assert again.code == 0
    assert again.err == ""  # no engine was started, no round was run
    assert "2 of 2 runs complete, 2 of them were there already, " in again.out
    more = cli("study", write("seeds = 3"), "--format", "json")
    assert [line.partition(": ")[0] for line in more.err.splitlines()[1:]] == [
        f"[{n}/4] {label}, seed {seed}"
        for n, (seed, label) in enumerate(itertools.product((5, 6), ("relu", "tanh")), 1)
    ]
    assert more.json["cells"][:2] == first["cells"]
    assert len(more.json["cells"]) == 6


class Interrupt(logging.Handler):
    """Presses Ctrl-C after so many rounds."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.left = rounds

    def emit(self, record: logging.LogRecord) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_a_study_that_was_interrupted_goes_on_where_it_stood(
    cli: CLI, write: Callable[..., Path]
) -> None:
    path = write("seeds = 1")
    whole = cli("study", path, "--out", "whole", "--format", "json").json
    logger, interrupt = logging.getLogger("flwr.fedsim"), Interrupt(rounds=3)
    logger.addHandler(interrupt)
    logger.setLevel(logging.INFO)
    try:
        answer = cli("study", path, "--out", "s")
    finally:
        logger.removeHandler(interrupt)
    assert (answer.code, answer.out) == (130, "")
    runs = cli("ls", "s", "--format", "json").json
    assert [(run["status"], run["rounds"]) for run in runs] == [
        ("completed", 2),
        ("interrupted", 1),
    ]
    answer = cli("study", path, "--out", "s", "--format", "json")
    assert answer.code == 0
    assert [line.partition(": ")[0] for line in answer.err.splitlines()[1:]] == [
        "[1/1] tanh, seed 4"
    ]
    assert [cell["model_sha256"] for cell in answer.json["cells"]] == [
        cell["model_sha256"] for cell in whole["cells"]
    ]


def test_a_run_that_fails_is_told_and_tried_again(cli: CLI, write: Callable[..., Path]) -> None:
    path = write("seeds = 1", axes='"train.learning_rate" = [0.1, 1e30, 0.2]')
    for _ in range(2):
        answer = cli("study", path, "--format", "json")
        assert answer.code == 1
        assert [cell["arm"]["train.learning_rate"] for cell in answer.json["cells"]] == [0.1, 0.2]
        (failed,) = answer.json["failed"]
        assert failed["arm"] == {"train.learning_rate": 1e30}
        assert failed["seed"] == 4
        assert failed["error"].startswith("round 1: none of 2 clients gave a usable update")
        assert answer.err.splitlines()[-1] == (
            f"error: learning_rate=1e%2B30/seed-4: {failed['error']}"
        )
        arms = {arm["arm"]: arm["test_accuracy"]["values"] for arm in answer.json["arms"]}
        assert (len(arms["0.1"]), arms["1e+30"], len(arms["0.2"])) == (1, [None], 1)
    assert load(failed["run"]).manifest.resumed
    text = cli("study", path).out
    assert cells_of(text.splitlines()[4]) == ["1e+30", *["failed"] * 4]
    assert "2 of 3 runs complete, 2 of them were there already" in text


def test_an_arm_of_which_a_seed_failed_has_no_mean_of_the_others(
    cli: CLI, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedsim.simulation

    simulate = fedsim.simulation.simulate

    def fail_once(experiment: Experiment, executor: Any) -> None:
        if (experiment.model.activation, experiment.experiment.seed) == ("tanh", 5):
            raise RunFailed("no client answered")
        simulate(experiment, executor)

    monkeypatch.setattr("fedsim.simulation.simulate", fail_once)
    path = write("seeds = 2", "targets = 0.05")
    answer = cli("study", path)
    assert answer.code == 1
    relu, tanh = answer.out.splitlines()[3:5]
    assert "% +- " in relu
    assert cells_of(tanh) == ["tanh", *["1 of 2 seeds"] * 4]
    document = cli("study", path, "--format", "json").json
    accuracy = document["arms"][1]["test_accuracy"]
    assert (accuracy["mean"], accuracy["values"][1]) == (None, None)
    assert accuracy["values"][0] > 0


def test_a_directory_of_another_study_is_refused_before_anything_runs(
    cli: CLI, write: Callable[..., Path], tmp_path: Path
) -> None:
    cli("study", write("seeds = 1"), "--out", "s")
    answer = cli("study", write("seeds = 2"), "--out", "s", "-s", "experiment.rounds=3")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines() == [
        "error: s/activation=relu/seed-4 is of another study; choose another --out, "
        "or restore the settings:",
        "error:   experiment.rounds: 2 -> 3",
    ]
    assert sorted(path.name for path in (tmp_path / "s").rglob("seed-*")) == ["seed-4"] * 2


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ('"model.activation" = ["rellu"]', "model.activation = 'rellu'"),
        ('"data.clients" = [5, 5000]', "data.clients"),  # which only the data shows
    ],
)
def test_no_cell_runs_while_one_of_them_cannot(
    cli: CLI, write: Callable[..., Path], tmp_path: Path, axes: str, message: str
) -> None:
    answer = cli("study", write(axes=axes))
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert not (tmp_path / "runs").exists()


def test_the_shipped_study_is_valid() -> None:
    study = read(Path(__file__).parents[1] / "configs" / "activations.toml")
    assert len(cells_in(study)) == 15
    assert study_of(json.loads(json.dumps(study.document()))) == study


def test_the_study_of_the_panel_is_on_known_activations_but_the_control() -> None:
    study = read(Path(__file__).parents[1] / "configs" / "mnist-activations.toml")
    assert {cell.label for cell in cells_in(study)} <= set(ACTIVATIONS) - {"identity"}
    assert (len(study.arms), study.targets) == (17, (0.95, 0.97))
    for cell in cells_in(study):
        e = cell.experiment
        assert (e.data.dataset, e.model.name, e.experiment.rounds) == ("mnist", "mlp", 40)
        assert (e.measure.level, e.measure.full_every, e.measure.calibrate) == ("light", 10, True)


def test_experiments_and_studies_are_not_mixed_up(cli, tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("experiment.rounds = 1\n")
    (tmp_path / "study.toml").write_text('base = "base.toml"\n')
    one = cli("run", "study.toml")
    assert (one.code, one.err) == (
        2,
        "error: study.toml: has a base, so it is a study; use: fedsim study study.toml\n",
    )
    other = cli("study", "base.toml")
    assert (other.code, other.err) == (
        2,
        "error: base.toml: is an experiment; use: fedsim run base.toml\n",
    )


def test_an_unknown_device_names_its_key(cli, tiny: tuple[str, ...]) -> None:
    answer = cli("run", *tiny, "-s", "measure.device=fone")
    assert answer.code == 2
    assert answer.err.startswith("error: measure.device = 'fone': ")
    assert "phone" in answer.err
