"""Reports as files: what is in them, what they leave out, and what they refuse."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CLI = Callable[..., Any]
BASE = """
[experiment]
rounds = 3
[data]
clients = 5
partition = "shards"
[model]
width = 8
[server]
clients_per_round = 2
[measure]
level = "full"
[engine]
name = "inline"
"""
STUDY = """
about = "Is <tanh> better than ReLU & co?"
base = "base.toml"
seeds = 3
targets = [0.1, 0.9999]

[axes]
"data.shards_per_client" = [1, 2]
"model.activation" = ["relu", "tanh"]

[tune]
seeds = 1

[tune.grid]
"train.learning_rate" = [0.1, 1e30]

[[hypothesis]]
arm = "tanh"
reference = "relu"
endpoint = ["best_accuracy", "rounds_to_0.1", "rounds_to_0.9999"]
claim = "better"

[[published]]
source = "somebody 2017"
endpoint = "rounds_to_0.1"
values = [{ shards_per_client = 1, activation = "relu", value = 2 }]
"""


class Outline(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src", "xlink:href"):
                self.links.append(str(value))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished study in ``s``, its file beside it."""
    path = tmp_path_factory.mktemp("study")
    (path / "base.toml").write_text(BASE)
    (path / "shards.toml").write_text(STUDY)
    fedsim(path, "study", "shards.toml", "--out", "s", "-q")
    return path


def fedsim(directory: Path, *arguments: str) -> str:
    """Run the command in a directory, in a process of its own; return what it prints."""
    command = [Path(sys.executable).with_name("fedsim"), *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report(finished: Path) -> Path:
    """The study's report; its figures lie beside it in ``f``."""
    out = fedsim(finished, "report", "s", "--out", "report.html", "--figures", "f")
    assert out.splitlines()[0] == "report.html"
    return finished / "report.html"


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy of the study's directory that a test may spoil."""
    return Path(shutil.copytree(finished / "s", tmp_path / "s"))


def test_a_report_is_one_file_that_asks_nobody_for_anything(report: Path) -> None:
    text = report.read_text()
    page = Outline(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "img" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_a_report_opens_with_question_verdicts_and_a_picture(report: Path) -> None:
    text = report.read_text()
    assert "<h1>Is &lt;tanh&gt; better than ReLU &amp; co?</h1>" in text
    head = text[: text.index("<nav")]
    assert head.count('<li class="') == 6
    assert "6 hypotheses: " in head
    assert 'id="differences-figure"' in head
    assert "no run of either arm reached 99.99%" in text


def test_a_report_holds_all_that_it_promises(report: Path) -> None:
    page = Outline(report.read_text())
    text = " ".join(" ".join(page.text).split())
    for name in ("accuracy", "cost", "differences", "health", "bills", "partition"):
        assert f"{name}-figure" in page.ids, name
    for title in (
        *("Verdicts", "Beside what is published", "The arms in figures", "What failed"),
        *("How it was measured", "What ran, and on what", "somebody 2017"),
    ):
        assert title in text, title
    for kind in ("counted", "measured", "modelled"):
        assert kind in text
    assert "Tuning runs that failed, at the ends of their grids: tuning/" in text
    assert "nothing here is final" not in text
    assert "(0.1: beyond" not in text


def test_the_same_ledgers_give_the_same_bytes(cli: CLI, study: Path, report: Path) -> None:
    answer = cli("report", study)
    assert (answer.code, answer.out.strip()) == (0, str(study / "report.html"))
    assert (study / "report.html").read_bytes() == report.read_bytes()


def test_no_colour_of_a_placeholder_is_left(report: Path) -> None:
    from fedsim.report.drawing import THEMED

    text = report.read_text()
    assert not [colour for colour in THEMED.colours.values() if colour in text]
    assert "var(--series-0)" in text
    files = list((report.parent / "f").iterdir())
    assert files
    assert not [file.name for file in files if "var(--" in file.read_text()]


def test_each_figure_is_a_file_for_a_paper(cli: CLI, study: Path, report: Path) -> None:
    assert cli("report", study, "--figures", "f", "--format", "png").code == 0
    for kind, folder, opens in (("svg", report.parent, b"<?xml"), ("png", Path(), b"\x89PNG")):
        files = sorted((folder / "f").iterdir())
        names = ("accuracy", "bills", "cost", "differences", "health", "partition")
        assert [file.name for file in files] == [f"{name}.{kind}" for name in names]
        assert all(file.read_bytes().startswith(opens) for file in files)


def test_a_report_as_markdown_has_its_figures_beside_it(cli: CLI, study: Path) -> None:
    answer = cli("report", study, "--markdown", "docs/finding.md")
    assert answer.code == 0
    text = Path("docs/finding.md").read_text()
    assert text.startswith("# Is <tanh> better than ReLU & co?\n")
    images = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(images) >= 6
    assert all((Path("docs") / image).is_file() for image in images)
    assert str(study) not in text  # it says nothing of this machine's paths
    assert "| hypothesis | verdict |" in text


def test_a_study_that_goes_on_says_so_first(cli: CLI, study: Path) -> None:
    shutil.rmtree(next(study.glob("shards*relu*/*/seed-1")))
    assert cli("report", study).code == 0
    text = (study / "report.html").read_text()
    assert "Of 12 results 1 are missing: nothing here is final." in text
    assert "1 of 3 seeds are missing or failed" in text


def test_a_report_of_a_run(cli: CLI, tiny: tuple[str, ...]) -> None:
    cli("run", *tiny, "-s", "measure.level=full", "--out", "r")
    assert cli("report", "r").code == 0
    page = Outline(Path("r/report.html").read_text())
    for name in ("accuracy", "cost", "health", "bills", "partition"):
        assert f"{name}-figure" in page.ids, name
    assert "test accuracy after 2 rounds" in " ".join(page.text)


def test_a_run_without_health_says_why_there_is_none(cli: CLI, tiny: tuple[str, ...]) -> None:
    cli("run", *tiny, "--out", "r")
    cli("report", "r")
    assert "Nobody looked: measure.level" in Path("r/report.html").read_text()


def test_data_that_is_not_at_hand_leaves_the_partition_out(cli: CLI, study: Path) -> None:
    document = (study / "study.json").read_text()
    (study / "study.json").write_text(document.replace('"data.clients": 5', '"data.clients": 9999'))
    # The runs are of five clients, so that this is another study's directory now.
    answer = cli("report", study)
    assert answer.code == 2
    assert "is of another study" in answer.err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "study.json").write_text("{"), "study.json is damaged"),
        (lambda path: (path / "study.json").write_text("{}"), "study.json is damaged"),
        (lambda path: (path / "study.json").unlink(), "holds no study: it has no study.json"),
        (
            lambda path: (path / "study.json").write_text('{"format_version": 99}'),
            "format 99, and this fedsim reads 1",
        ),
        (
            lambda path: next(path.rglob("ledger.sqlite")).write_bytes(b"nothing"),
            "ledger.sqlite",
        ),
    ],
)
def test_what_is_damaged_is_named(
    cli: CLI, study: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(study)
    answer = cli("report", study)
    assert answer.code == 1
    assert message in answer.err
    assert not (study / "report.html").exists()


def test_a_directory_that_is_not_there_is_named(cli: CLI) -> None:
    answer = cli("report", "gone")
    assert answer.code == 1
    assert answer.err == "error: gone: no such directory; name one that holds a run or a study\n"


def test_a_run_without_a_round_has_nothing_to_report(cli: CLI, tiny: tuple[str, ...]) -> None:
    answer = cli("run", *tiny, "-s", "train.learning_rate=1e30", "--out", "r")
    assert answer.code == 1
    answer = cli("report", "r")
    assert answer.code == 1
    assert "no round was evaluated yet (failed after 0 rounds)" in answer.err


def test_a_study_of_which_every_run_failed_is_reported_as_that(cli: CLI, tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "bad.toml").write_text(
        'base = "base.toml"\nseeds = 2\n[set]\n"train.learning_rate" = 1e30\n'
        '[axes]\n"model.activation" = ["relu", "leaky_relu"]\n'
        '[[hypothesis]]\narm = "relu"\nreference = "leaky_relu"\n'
        'endpoint = "best_accuracy"\nclaim = "better"\n'
    )
    assert cli("study", "bad.toml", "--out", "s", "-q").code == 1
    answer = cli("report", "s")
    assert answer.code == 0, answer.err
    text = Path("s/report.html").read_text()
    assert "Of 4 results 4 are missing" in text
    assert "round 1: none of 2 clients gave a usable update" in text


def test_open_hands_the_page_to_a_browser(
    cli: CLI, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    cli("run", *tiny, "--out", "r")
    assert cli("report", "r", "--open").code == 0
    assert opened == [Path("r/report.html").absolute().as_uri()]
