from __future__ import annotations

import csv
import inspect
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, tzinfo
from pathlib import Path
from subprocess import PIPE
from typing import Any, NoReturn

import click
import pytest
import typer

import fedsim
from fedsim.cli.command import Command
from fedsim.cli.folding import folded
from fedsim.cli.main import app
from fedsim.config import Experiment

ROOT = Path(__file__).parents[1]
FEDSIM = Path(sys.executable).with_name("fedsim")
GROUP = typer.main.get_command(app)
CLI = Callable[..., Any]


def commands(group: click.Command, words: str = "") -> dict[str, click.Command]:
    """Return every command by the words that call it."""
    if not isinstance(group, click.Group):
        return {words.strip(): group}
    return {
        name: command
        for word, inner in group.commands.items()
        for name, command in commands(inner, f"{words} {word}").items()
    }


COMMANDS = commands(GROUP)


def contents(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def manifest(run: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return figures


# One run.


def test_a_run_prints_one_json_object_and_reports_every_round_on_standard_error(
    cli: CLI, tiny: list[str], tmp_path: Path
) -> None:
    answer = cli("run", *tiny, "--out", "a", "--format", "json")
    assert answer.code == 0
    summary = answer.json
    assert summary["run"] == str(tmp_path / "a")
    assert summary["status"] == "completed"
    assert (summary["rounds"], summary["clients_trained"], summary["clients_failed"]) == (2, 4, 0)
    assert 0.0 <= summary["test_accuracy"] <= 1.0
    assert summary["test_loss"] > 0.0
    assert summary["wall_seconds"] > 0.0
    assert summary["cpu_seconds"] > 0.0
    parameters = 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    dense = 4 * 4 * parameters
    assert summary["uplink_dense_bytes"] == summary["downlink_dense_bytes"] == dense
    assert summary["uplink_bytes"] > dense
    assert summary["downlink_bytes"] > dense
    assert summary["best_accuracy"] >= summary["test_accuracy"]
    assert summary["train_flops"] > 0
    for name in ("local_accuracy", "package_joules", "modelled_seconds", "modelled_joules"):
        assert summary[name] is None  # nobody asked
    assert summary["kinds"]["uplink_bytes"] == "counted"
    assert summary["kinds"]["wall_seconds"] == "measured"
    assert summary["kinds"]["modelled_joules"] == "modelled"
    figures = {k for k, v in summary.items() if type(v) in (int, float)}
    assert figures <= set(summary["kinds"])
    assert summary["calibration"] is None
    assert re.fullmatch("[0-9a-f]{64}", summary["model_sha256"])
    first, *lines = answer.err.splitlines()
    assert first == "quickstart: starting the inline engine"
    assert [line.split("  ")[0] for line in lines] == ["round 1/2", "round 2/2"]
    for line in lines:
        assert re.fullmatch(
            r"round ./2  loss [\d.]+  accuracy [\d.]+%  \d+ clients/s  [\d.]+ m?s left", line
        )


def test_between_tests_the_last_one_is_told_with_its_round(cli: CLI, tiny: list[str]) -> None:
    answer = cli("run", *tiny, "-s", "experiment.rounds=5", "-s", "server.evaluate_every=3")
    told = re.findall(r"accuracy \S+((?: \(of round \d\))?)  ", answer.err)
    assert told == ["", "", "", " (of round 3)", ""]  # the last round is tested in any case


def test_a_quiet_run_says_nothing_but_its_result(cli: CLI, tiny: list[str]) -> None:
    answer = cli("run", *tiny, "--out", "a", "-q")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0] == "quickstart: completed after 2 rounds"
    assert [line[:18].strip() for line in lines[1:]] == [
        "test accuracy",
        "test loss",
        "client updates",
        "uplink",
        "downlink",
        "training",
        "client CPU",
        "wall time",
        "model sha256",
        "run",
    ]


def test_equal_runs_give_equal_models_and_other_seeds_others(cli: CLI, tiny: list[str]) -> None:
    digests = [
        cli("run", *tiny, "-s", f"experiment.seed={seed}", "--out", out, "--format", "json").json[
            "model_sha256"
        ]
        for seed, out in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_run_without_a_directory_gets_a_new_one_under_runs(
    cli: CLI, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 11, 23, 12)

    monkeypatch.setattr("fedsim.runs.datetime", Noon)
    made = [Path(cli("run", *tiny, "--format", "json").json["run"]) for _ in range(3)]
    assert [str(path.relative_to(tmp_path)) for path in made] == [
        "runs/quickstart-20261123-120000",
        "runs/quickstart-20261123-120000-2",
        "runs/quickstart-20261123-120000-3",
    ]
    monkeypatch.setenv("FEDSIM_RUNS_DIR", str(tmp_path / "elsewhere"))
    other = Path(cli("run", *tiny, "-s", "experiment.name=x", "--format", "json").json["run"])
    assert other.parent == tmp_path / "elsewhere"
    assert other.name.startswith("x-")


def test_a_file_gives_the_run_and_the_command_line_overrides_it(
    cli: CLI, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.toml").write_text('[experiment]\nname = "mine"\nrounds = 9\n')
    summary = cli("run", "a.toml", *tiny, "-s", "run.out=here", "--format", "json").json
    assert (summary["name"], summary["rounds"]) == ("mine", 2)
    assert summary["run"] == str(tmp_path / "here")
    assert cli("run", "a.toml", *tiny, "-s", "run.out=here", "--out", "there").code == 0
    assert (tmp_path / "there" / "ledger.sqlite").is_file()


@pytest.mark.parametrize("output", ["text", "json"])
def test_an_experiment_that_cannot_be_is_refused_before_anything_is_made(
    cli: CLI, tmp_path: Path, output: str
) -> None:
    wrong = ("nope.x=1", "data.clients=abc", "model.activation=rellu", "server.tau=0", "oops")
    answer = cli("run", *(part for text in wrong for part in ("-s", text)), "--format", output)
    assert (answer.code, answer.out) == (2, "")
    lines = answer.err.splitlines()
    assert [line.split(" ")[1] for line in lines] == [
        "-s",
        "nope.x",
        "data.clients",
        "model.activation",
        "server.tau",
    ]
    assert all(line.startswith("error: ") for line in lines)
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.dataset=file data.path=gone.csv data.label=y", "gone.csv"),
        ("data.dataset=mnist", "mnist"),
        ("data.clients=5000 server.clients_per_round=2", "data.clients"),
        ("model.name=cnn model.depth=9", "depth"),
        ("model.activation=leaky_relu(0.1", "model.activation"),
    ],
)
def test_what_only_the_data_shows_is_refused_before_anything_is_made(
    cli: CLI, tiny: list[str], tmp_path: Path, settings: str, message: str
) -> None:
    overrides = [part for text in settings.split() for part in ("-s", text)]
    answer = cli("run", *tiny, *overrides, "--data-dir", tmp_path / "none")
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert "starting" not in answer.err
    assert contents(tmp_path) == []


def test_a_directory_that_holds_a_run_is_not_written_to_again(
    cli: CLI, tiny: list[str], tmp_path: Path
) -> None:
    first = cli("run", *tiny, "--out", "a", "--format", "json").json
    before = manifest(tmp_path / "a")
    answer = cli("run", *tiny, "-s", "experiment.seed=1", "--out", "a", "--format", "json")
    assert (answer.code, answer.out) == (2, "")  # above all not the figures of the other run
    assert f"error: {tmp_path / 'a'} already holds a run" in answer.err
    assert manifest(tmp_path / "a") == before
    assert first["model_sha256"] == before["model_sha256"]


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_run_that_fails_says_why_and_is_kept(
    cli: CLI, tiny: list[str], tmp_path: Path, output: str
) -> None:
    diverging = (*tiny, "-s", "train.learning_rate=1e30")
    answer = cli("run", *diverging, "--out", "a", "--format", output)
    assert answer.code == 1
    last = answer.err.splitlines()[-1]
    assert last.startswith("error: round 1: none of 2 clients gave a usable update; 2 x rejected: ")
    if output == "json":
        assert answer.json["status"] == "failed"
        assert answer.json["error"] == last.removeprefix("error: ")
        assert (answer.json["rounds"], answer.json["clients_failed"]) == (0, 2)
        assert answer.json["test_accuracy"] is answer.json["model_sha256"] is None
    else:
        assert answer.out == ""
    assert manifest(tmp_path / "a")["status"] == "failed"


# Going on.


def test_a_run_is_gone_on_with_where_it_lies(cli: CLI, tiny: list[str], tmp_path: Path) -> None:
    digest = cli("run", *tiny, "--out", "a", "--format", "json").json["model_sha256"]
    for arguments in (
        ("--resume", "a"),
        ("--resume", "a", "-s", "engine.workers=1"),  # says how, not what
        (*tiny, "-s", "run.out=a", "-s", "run.resume=true"),
    ):
        answer = cli("run", *arguments, "--format", "json", "-q")
        assert (answer.code, answer.err) == (0, "")
        assert answer.json["model_sha256"] == digest
    assert len(manifest(tmp_path / "a")["resumed"]) == 3
    assert contents(tmp_path) == ["a"]


def test_a_run_is_gone_on_with_as_the_same_experiment_alone(
    cli: CLI, tiny: list[str], tmp_path: Path
) -> None:
    cli("run", *tiny, "--out", "a")
    before = manifest(tmp_path / "a")
    changes = ("-s", "train.learning_rate=0.2", "-s", "model.activation=tanh")
    answer = cli("run", "--resume", "a", *changes, "-q", "--format", "json")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines() == [
        f"error: {tmp_path / 'a'} is a run of another experiment and cannot be resumed as "
        "this one:",
        "error:   model.activation: 'relu' -> 'tanh'",
        "error:   train.learning_rate: 0.1 -> 0.2",
    ]
    assert manifest(tmp_path / "a") == before


def test_a_resumed_run_stays_where_it_is(cli: CLI, tiny: list[str], tmp_path: Path) -> None:
    cli("run", *tiny, "--out", "a")
    answer = cli("run", "--resume", "a", "--out", "b")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "error: --out b: a resumed run stays in a; leave it out\n"
    assert contents(tmp_path) == ["a"]


def test_only_a_run_can_be_gone_on_with(cli: CLI, tmp_path: Path) -> None:
    answer = cli("run", "--resume", "a")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "error: a holds no run: it has no config.toml\n"
    (tmp_path / "config.toml").write_text("[data]\nclients = -1\n")
    answer = cli("run", "--resume", ".")
    assert answer.code == 1
    assert "config.toml is damaged: data.clients = -1: must be at least 0" in answer.err


LONGER = ("-s", "experiment.rounds=600", "-s", "data.clients=10")


def ended_by(number: signal.Signals, arguments: list[str]) -> tuple[int, str, str]:
    """Run the command as a process that gets a signal after its third round."""
    command = [sys.executable, "-m", "fedsim", "run", *arguments]
    process = subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 3/"):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_run_that_a_signal_ends_goes_on_with_the_same_bits(
    cli: CLI, tiny: list[str], tmp_path: Path
) -> None:
    runs = {signal.SIGINT: tmp_path / "a", signal.SIGTERM: tmp_path / "b"}
    with ThreadPoolExecutor() as both:
        ends = both.map(
            lambda number: ended_by(number, [*tiny, *LONGER, "--out", str(runs[number])]), runs
        )
    whole = cli("run", *tiny, *LONGER, "--out", "whole", "--format", "json", "-q").json
    for run, (code, out, err) in zip(runs.values(), ends, strict=True):
        assert (code, out) == (130, "")
        assert err.splitlines()[-1] == f"interrupted; go on with: fedsim run --resume {run}"
        assert "Traceback" not in err
        assert manifest(run)["status"] == "interrupted"

        resumed = cli("run", "--resume", run, "--format", "json")
        assert resumed.code == 0
        first = int(re.findall(r"round (\d+)/600", resumed.err)[0])
        assert 3 < first < 600, "it begins after the last round that was stored"
        for figure in ("model_sha256", "rounds", "test_accuracy", "test_loss", "clients_trained"):
            assert resumed.json[figure] == whole[figure]


def test_what_was_interrupted_before_it_began_is_not_said_to_go_on(
    cli: CLI, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(experiment: Experiment) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.simulation.open_engine", interrupt)
    answer = cli("run", *tiny, "--out", "a")
    assert (answer.code, answer.out) == (130, "")
    assert answer.err == "quickstart: starting the inline engine\n"
    assert contents(tmp_path) == []


# Progress.


def test_a_terminal_shows_a_bar(cli: CLI, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pseudo-terminal stands in for standard error; it is read while the run writes."""
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                shown.append(part)
        except OSError:  # how Linux says that the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w") as terminal:
        patch.setattr(sys, "stderr", terminal)
        answer = cli("run", *tiny, "--out", "a", "--format", "json")
    reader.join(timeout=60)
    os.close(ours)
    text = b"".join(shown).decode()
    assert answer.json["status"] == "completed"
    assert "━" in text
    assert "2/2" in text
    assert "clients/s" in text
    assert "round 1/2" not in text


def test_long_sentences_are_folded_between_words_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = "  privacy         (epsilon = 2.28, delta = 1e-5)-differential privacy for users, by"
    monkeypatch.setenv("COLUMNS", "50")
    assert folded(line, indent=18) == line  # in a file or a pipe
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert folded(line, indent=18).splitlines() == [
        "  privacy         (epsilon = 2.28, delta =",
        "                  1e-5)-differential privacy for",
        "                  users, by",
    ]
    path = f"  run             {'/long' * 20}"
    assert folded(path, indent=18).split() == path.split()  # which can be copied
    monkeypatch.setenv("COLUMNS", "30")
    assert folded(line, indent=18) == line  # the terminal folds what has no room


# Listing and exporting.


def test_runs_are_listed_for_people_and_programs(
    cli: CLI, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("run", *tiny, "--out", "runs/a")
    cli("run", *tiny, "-s", "train.learning_rate=1e30", "--out", "runs/deep/b")
    rows = cli("ls", "--format", "json").json
    assert [(row["path"], row["status"], row["rounds"]) for row in rows] == [
        ("runs/a", "completed", 2),
        ("runs/deep/b", "failed", 0),
    ]
    assert set(rows[0]) == {
        *("path", "name", "status", "rounds", "rounds_planned"),
        *("test_accuracy", "started", "problem"),
    }
    lines = cli("ls").out.splitlines()
    assert re.search(r"runs/a +quickstart +completed +2/2 +[\d.]+% ", lines[3])
    assert re.search(r"runs/deep/b +quickstart +failed +0/2 +- ", lines[4])
    monkeypatch.setenv("FEDSIM_RUNS_DIR", str(tmp_path / "runs" / "deep"))
    assert [row["status"] for row in cli("ls", "--format", "json").json] == ["failed"]


def test_no_runs_are_an_empty_list_and_no_directory_is_an_error(cli: CLI, tmp_path: Path) -> None:
    assert cli("ls", tmp_path, "--format", "json").json == []
    answer = cli("ls", tmp_path)
    assert (answer.code, answer.err) == (0, "")
    assert "status" in answer.out
    for arguments in (("ls",), ("ls", "runs")):
        answer = cli(*arguments)
        assert (answer.code, answer.out) == (1, "")
        assert answer.err == "error: runs is no directory; name one that holds runs\n"


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_a_run_is_exported(cli: CLI, tiny: list[str], tmp_path: Path, form: str) -> None:
    accuracy = cli("run", *tiny, "--out", "a", "--format", "json").json["test_accuracy"]
    answer = cli("export", "a", "--to", form, "--out", "tables")
    files = [Path("tables") / f"{name}.{form}" for name in ("rounds", "clients", "layers")]
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.split() == [str(path) for path in files]
    if form == "csv":
        last = list(csv.DictReader(files[0].read_text().splitlines()))[-1]
    elif form == "jsonl":
        last = json.loads(files[0].read_text().splitlines()[-1])
    else:
        import pandas as pd

        last = pd.read_parquet(files[0]).iloc[-1]
    assert float(last["test_accuracy"]) == accuracy
    again = cli("export", "a", "--to", form, "--out", "tables")
    assert (again.code, again.out) == (1, "")
    assert "--overwrite" in again.err
    assert cli("export", "a", "--to", form, "--out", "tables", "--overwrite").code == 0
    assert cli("export", "a", "--to", form).out.split()[0] == f"a/export/rounds.{form}"


def test_what_is_no_run_cannot_be_exported(cli: CLI) -> None:
    answer = cli("export", "nowhere")
    assert (answer.code, answer.out) == (1, "")
    assert "nowhere" in answer.err


# Usage and help.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), "No such command 'nope'"),
        (("run", "--nope"), "No such option"),
        (("run", "--format", "xml"), "'xml' is not one of"),
        (("run", "a.toml", "b.toml"), "unexpected extra argument"),
        (("export", "a", "--to", "xls"), "'xls' is not one of"),
        (("study",), "Missing argument 'FILE'"),
        (("-s",), "No such option"),
    ],
)
def test_a_command_that_is_not_understood_is_answered_with_usage(
    cli: CLI, arguments: tuple[str, ...], message: str
) -> None:
    answer = cli(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("Usage: fedsim ")
    assert message in answer.err


def test_the_version_is_printed(cli: CLI) -> None:
    answer = cli("--version")
    assert (answer.code, answer.out, answer.err) == (0, f"fedsim {fedsim.__version__}\n", "")


def test_the_overview_names_every_command_in_a_line(cli: CLI) -> None:
    answer = cli("--help")
    assert answer.code == 0
    assert isinstance(GROUP, click.Group)
    for name, command in GROUP.commands.items():
        first = inspect.cleandoc(command.help or "").splitlines()[0]
        assert re.search(rf"^  {name} +{re.escape(first)}$", answer.out, re.MULTILINE)
    assert cli().err == answer.out  # and so it does without arguments, as an error


def examples(name: str) -> list[str]:
    return re.findall(r"^    (fedsim .*)$", inspect.cleandoc(COMMANDS[name].help or ""), re.M)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_explained_with_examples_as_they_are_typed(
    cli: CLI, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(COMMANDS[name], Command)
    for width in (80, 40):
        monkeypatch.setenv("COLUMNS", str(width))
        answer = cli(*name.split(), "--help")
        assert (answer.code, answer.err) == (0, "")
        assert "Examples:\n" in answer.out
        assert [line[6:] for line in answer.out.splitlines() if "    fedsim " in line] == examples(
            name
        )
    assert examples(name)
    assert answer.out == cli(*name.split(), "-h").out


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_can_be_run(name: str) -> None:
    for example in examples(name):
        assert example.startswith(f"fedsim {name}")
        arguments = shlex.split(example.removeprefix(f"fedsim {name}"))
        COMMANDS[name].make_context(name, arguments.copy())  # raises what usage errors raise
        assert [a for a in arguments if a.startswith("configs/") and not (ROOT / a).is_file()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_and_option_says_what_it_means(cli: CLI, name: str) -> None:
    lines = cli(*name.split(), "--help").out.partition("Examples:")[2].splitlines()
    context = click.Context(COMMANDS[name])
    for parameter in COMMANDS[name].get_params(context):
        written = (
            parameter.opts[0]
            if isinstance(parameter, click.Option)
            else parameter.make_metavar(context)
        )
        (line,) = (line for line in lines if re.match(rf"  (-\w, )?{re.escape(written)}[ ,]", line))
        assert re.search(r"  .*\S  +\S", line), f"{name} {written}"


def test_help_comes_without_anything_heavy() -> None:
    script = """
import sys
from fedsim.cli.main import main
for arguments in sys.stdin.read().splitlines():
    sys.argv = ["fedsim", *arguments.split()]
    try:
        main()
    except SystemExit:
        pass
print({name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""
    calls = ["--help", "--version", "nope", "run --nope", *(f"{name} --help" for name in COMMANDS)]
    process = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(calls),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = process.stderr.splitlines()[-1]
    assert "'fedsim'" in loaded
    assert re.findall("'(torch|ray|flwr|pandas|numpy|pyarrow|sklearn|jax|rich)'", loaded) == []


@pytest.mark.parametrize("program", [[str(FEDSIM)], [sys.executable, "-m", "fedsim"]])
def test_the_program_leaves_with_the_exit_code(program: list[str], tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    assert run("--version") == (0, f"fedsim {fedsim.__version__}\n", "")
    assert run("ls") == (1, "", "error: runs is no directory; name one that holds runs\n")
    code, out, err = run("nope")
    assert (code, out) == (2, "")
    assert "No such command" in err
    assert contents(tmp_path) == []


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_reader_that_has_gone_is_left_in_peace(tmp_path: Path, output: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [str(FEDSIM), "ls", str(tmp_path), "--format", output]
    with os.fdopen(theirs, "w") as out:
        done = subprocess.run(command, stdout=out, stderr=PIPE)
    assert (done.returncode, done.stderr) == (1, b"")
