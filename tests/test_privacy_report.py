"""What reports say of promises, leakage, and the one table; from made-up ledgers and rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import config
from fedsim.errors import ConfigError
from fedsim.ledger.manifest import new_manifest
from fedsim.ledger.read import load
from fedsim.ledger.store import Ledger
from fedsim.privacy.attacks.gallery import PICTURES, Reconstructions, gallery_bytes
from fedsim.privacy.attacks.rows import ROWS, LeakageRow, rows_bytes
from fedsim.records import ClientRow, RoundRow
from fedsim.report.arms import summarise_study
from fedsim.report.drawing import LIGHT
from fedsim.report.leakage import leakages
from fedsim.report.leaks import attacks_page, leakage_by_batch, leakage_sections
from fedsim.report.markdown import markdown_of
from fedsim.report.onetable import cost_text, leakage_beside_the_literature, table_page
from fedsim.report.page import html_of
from fedsim.report.privacy import (
    Promised,
    accuracy_by_epsilon,
    conditions_of,
    interval_of,
    promise_table,
    promises_of,
    run_sections,
)
from fedsim.report.study import StudyData, study_page
from fedsim.study.design import Hypothesis, Study, Values
from fedsim.study.file import read_study
from fedsim.study.verdicts import judge
from fedsim.vocabulary import vocabulary

CLI = Callable[..., Any]
CONFIGS = Path(__file__).parents[1] / "configs" / "privacy"
GUARANTEE = "(epsilon = 2, delta = 1e-5)-differential privacy for users <b>& friends</b>"


def write_run(
    path: Path,
    accuracies: Sequence[float],
    *,
    guarantee: str = "",
    epsilon: float = math.inf,
    client: Mapping[str, Any] = {},
    rounds: Callable[[int], Mapping[str, Any]] = lambda round: {},
) -> Path:
    """Write a run of one client."""
    manifest = new_manifest("made", config_hash="0", engine={}, rounds_planned=len(accuracies))
    with Ledger.create(path, manifest=manifest, config={"experiment": {"name": "made"}}) as ledger:
        if guarantee:
            ledger.promise(guarantee, epsilon)
        for round, accuracy in enumerate(accuracies, 1):
            ledger.append(
                RoundRow(
                    round=round,
                    test_accuracy=accuracy,
                    clients_trained=1,
                    clients_failed=0,
                    uplink_bytes=100,
                    downlink_bytes=100,
                    train_flops=1000,
                    cpu_seconds=0.5,
                    wall_seconds=1.0,
                    **rounds(round),
                ),
                [ClientRow(round=round, client=0, cpu_seconds=0.5, **client)],
                (),
                arrays={"w": np.full(2, round, np.float32)},
                state={},
                client_states={},
            )
        ledger.finish("completed")
    return path


# A run.


def test_a_run_without_a_promise_says_nothing_of_privacy(tmp_path: Path) -> None:
    assert run_sections(load(write_run(tmp_path / "run", [0.5]))) == []


def test_a_run_shows_its_guarantee_and_what_each_round_came_to(tmp_path: Path) -> None:
    def spent(round: int) -> dict[str, float | None]:
        return {
            "epsilon": 0.5 * round if round != 2 else None,
            "clipped_fraction": 0.25,
            "signal_to_noise": 1.5,
        }

    path = write_run(tmp_path / "run", [0.5, 0.6, 0.7], guarantee=GUARANTEE, rounds=spent)
    (section,) = run_sections(load(path))
    assert section.text == (GUARANTEE,)
    assert section.picture is not None
    head, rows = section.picture.table
    assert list(head) == [
        *("round", "epsilon, spent so far", "updates that were clipped"),
        "signal to noise of the mean update",
    ]
    assert rows == [
        ("1", "0.5", "25.0%", "1.5"),
        ("2", "-", "25.0%", "1.5"),
        ("3", "1.5", "25.0%", "1.5"),
    ]


def test_a_run_behind_masks_shows_what_they_cost(tmp_path: Path) -> None:
    bill = {
        "secure_uplink_bytes": 1000,
        "secure_downlink_bytes": 3000,
        "secure_cpu_seconds": 0.25,
    }
    path = write_run(
        tmp_path / "run", [0.5, 0.6], client=bill, rounds=lambda _: {"secure_wall_seconds": 2.0}
    )
    (section,) = run_sections(load(path))
    assert section.table[1] == [
        ("keys, shares, unmasking: sent", "counted", "1 kB", "2 kB"),
        ("the same: received", "counted", "3 kB", "6 kB"),
        ("the client's cryptography, CPU", "measured", "250 ms", "500 ms"),
        ("a round's protocol at the server, wall", "measured", "2 s", "4 s"),
    ]


def test_a_run_s_page_holds_its_promise_with_hostile_text_escaped(cli: CLI, tmp_path: Path) -> None:
    path = write_run(
        tmp_path / "run", [0.5], guarantee=GUARANTEE, rounds=lambda round: {"epsilon": 2.0}
    )
    assert cli("report", path).code == 0
    page = (path / "report.html").read_text()
    assert "The promise of privacy" in page
    assert "<b>" not in page
    assert "&lt;b&gt;&amp; friends&lt;/b&gt;" in page


# A study.

LEVEL, EPSILON, ACTIVATION = "privacy.level", "privacy.target_epsilon", "model.activation"
AXES = {
    LEVEL: ("none", "example"),
    EPSILON: (0.0, 1.0, 8.0),
    ACTIVATION: ("relu", "tanh"),
}
SKIPPED = ({LEVEL: ("none",), EPSILON: (1.0, 8.0)}, {LEVEL: ("example",), EPSILON: (0.0,)})


def made_data(directory: Path, *, better: float, seeds: int = 4, missing: int = 0) -> StudyData:
    """Return a study in which tanh is so much better than ReLU under a promise.

    Args:
        better: in accuracy.
        missing: results that are not there.
    """

    def arm(level: str, epsilon: float, activation: str) -> Values:
        return ((LEVEL, level), (EPSILON, epsilon), (ACTIVATION, activation))

    study = Study(
        name="made",
        base={"data.dataset": "mnist"},
        axes=AXES,
        skipped=SKIPPED,
        seeds=tuple(range(seeds)),
        targets=(0.9,),
        hypotheses=tuple(
            Hypothesis(
                arm=arm("example", epsilon, "tanh"),
                reference=arm("example", epsilon, "relu"),
                endpoint="test_accuracy",
                claim="better",
                margin=0.005,
                direction="higher",
                scale="difference",
            )
            for epsilon in (1.0, 8.0)
        ),
    )
    runs = {}
    for seed in study.seeds:
        for one in study.arms:
            values = dict(one)
            private = values[LEVEL] == "example"
            accuracy = 0.9 - 0.05 * private / (values[EPSILON] or 1) + 0.001 * seed
            accuracy += better * (private and values[ACTIVATION] == "tanh")
            runs[one, seed] = write_run(
                directory / f"{values[LEVEL]}-{values[EPSILON]}-{values[ACTIVATION]}-{seed}",
                [0.5, accuracy],
                guarantee=f"epsilon {values[EPSILON]}" if private else "",
                rounds=lambda _, private=private, spent=values[EPSILON]: (
                    {"epsilon": 0.99 * spent} if private else {}
                ),
            )
    for key in list(runs)[:missing]:
        del runs[key]
    read = cache(load)
    return StudyData(
        study=study,
        runs=runs,
        read=read,
        arms=summarise_study(study, runs, directory, read),
        verdicts=judge(study.hypotheses, study.seeds, runs, read),
        curves={},
        failures=[],
        tuning_failures=[],
        partitions={},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    """A study in which tanh is three points better than ReLU under a promise."""
    return made_data(tmp_path_factory.mktemp("made"), better=0.03)


def promised(data: StudyData) -> list[Promised]:
    """Return what the arms of a study promised."""
    study = data.study
    by_arm = {
        arm: [data.read(data.runs[arm, s]) for s in study.seeds if (arm, s) in data.runs]
        for arm in study.arms
    }
    return promises_of(study, by_arm)


def test_what_was_spent_and_not_what_was_asked_for_is_told(data: StudyData) -> None:
    found = promised(data)
    assert [(p.level, p.name, p.epsilon) for p in found] == [
        ("none", "relu", None),
        ("none", "tanh", None),
        ("example", "relu", 0.99),
        ("example", "tanh", 0.99),
        ("example", "relu", 7.92),
        ("example", "tanh", 7.92),
    ]
    assert found[0].estimate == pytest.approx(0.9 + 0.0015)


def test_a_line_an_activation_and_a_column_a_promise(data: StudyData) -> None:
    head, rows = promise_table(promised(data))
    assert list(head) == ["arm", "no promise", "example: epsilon 0.99", "example: epsilon 7.92"]
    assert [row[0] for row in rows] == ["relu", "tanh"]
    assert [re.sub(r" .*", "", cell) for cell in rows[1][1:]] == ["90.2%", "88.2%", "92.5%"]
    assert all(re.search(r" \[\d+\.\d, \d+\.\d\]$", cell) for cell in rows[0][1:])


def test_an_epsilon_that_holds_for_nobody_here_has_a_star(data: StudyData) -> None:
    base = {**data.study.base, "privacy.reproducible_noise": True}
    page = table_page([replace(data, study=replace(data.study, base=base))], [], [])
    section = next(s for s in page.sections if s.name == "table")
    assert list(section.table[0])[1:4] == [
        *("no promise", "example: epsilon 0.99*", "example: epsilon 7.92*")
    ]
    assert section.text[-1].startswith(
        "An epsilon with a star does not hold for whoever knows the run's seed"
    )
    assert conditions_of(data.study, data.study.arms[-1]) == ()
    users = {**base, LEVEL: "user", "privacy.noise_cohort": 1000, "server.clients_per_round": 10}
    cohort, seed = conditions_of(replace(data.study, base=users, axes={}), ())
    assert "cohorts of 1,000" in cohort
    assert "this one with its 10" in cohort
    assert "seed" in seed


def test_the_interval_of_a_share_is_a_share() -> None:
    low, high = interval_of([0.99, 1.0, 0.6])
    assert (low < 0.8, high) == (True, 1.0)
    assert interval_of([0.5]) == (0.5, 0.5)


def test_a_study_s_page_shows_accuracy_against_epsilon(data: StudyData) -> None:
    page = study_page(data)
    section = next(s for s in page.sections if s.name == "privacy")
    assert section.text == ("epsilon 1.0", "epsilon 8.0")
    assert section.picture is not None
    assert len(section.picture.table[1]) == 6
    assert "What privacy costs" in html_of(page)


def test_a_study_that_promises_nothing_has_no_such_part(data: StudyData) -> None:
    study = replace(data.study, axes={**AXES, LEVEL: ("none",)}, hypotheses=())
    runs = {key: path for key, path in data.runs.items() if dict(key[0])[LEVEL] == "none"}
    page = study_page(replace(data, study=study, runs=runs, verdicts=[]))
    assert [s for s in page.sections if s.name == "privacy"] == []


def test_an_epsilon_that_no_run_says_is_no_point_of_the_picture() -> None:
    silent = Promised(level="user", name="relu", asked="1", epsilon=None, accuracies=(0.5,))
    spent = replace(silent, name="tanh", epsilon=1.0)
    picture = accuracy_by_epsilon({"": [silent, spent]})
    assert [row[2] for row in picture.table[1]] == ["no promise", "1"]


# Attacks.


def row(activation: str, batch: int, seed: int, share: float, **others: Any) -> LeakageRow:
    """Return what an attack came to."""
    values: dict[str, Any] = {
        "attack": "analytic",
        "weights": "honest",
        "dataset": "mnist",
        "model": "mlp",
        "width": 500,
        "depth": 1,
        "local_steps": 0,
        "learning_rate": 0.1,
        "level": "none",
        "clipping_norm": 0.0,
        "noise_multiplier": 0.0,
        "recovered_at_1e_3": share,
        "cpu_seconds": 0.1,
    }
    return LeakageRow(activation=activation, batch=batch, seed=seed, **{**values, **others})


def rows_of(shares: Mapping[str, float]) -> list[LeakageRow]:
    """Return rows at two sizes of batch, with three seeds."""
    return [
        row(name, batch, seed, 1.0 if batch == 1 else share)
        for name, share in shares.items()
        for batch in (1, 8)
        for seed in range(3)
    ]


def images(name: str) -> Reconstructions:
    """Return two images and what became of them."""
    pixels = np.linspace(0, 1, 2 * 16, dtype=np.float32).reshape(2, 1, 4, 4)
    found = pixels.copy()
    found[1] = np.nan
    return Reconstructions(name=name, originals=pixels, reconstructions=found, low=0.0, high=1.0)


def test_leakage_is_shown_by_the_size_of_the_batch() -> None:
    picture = leakage_by_batch(leakages(rows_of({"relu": 0.9, "tanh": 0.0})))
    assert picture is not None
    assert picture.title == "Leakage by batch size"
    assert picture.table[1] == [
        ("analytic, mnist", "relu", "1", "recovered at 1e-3", "100.0%"),
        ("analytic, mnist", "relu", "8", "recovered at 1e-3", "90.0%"),
        ("analytic, mnist", "tanh", "1", "recovered at 1e-3", "100.0%"),
        ("analytic, mnist", "tanh", "8", "recovered at 1e-3", "0.0%"),
    ]


@pytest.mark.parametrize("seeds", [1, 3])
def test_leakage_of_a_single_size_of_batch_is_shown_by_activation(seeds: int) -> None:
    shares = {"relu": 0.9, "tanh": 0.0}
    rows = [row(name, 8, seed, shares[name]) for name in shares for seed in range(seeds)]
    picture = leakage_by_batch(leakages(rows))
    assert picture is not None
    assert picture.title == "Leakage by activation"
    (axis,) = picture.draw(LIGHT, False).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["relu", "tanh"]
    assert axis.get_xlabel() == "recovered at 1e-3, of 8 examples that the client holds"
    shown = {float(line.get_ydata()[0]): line.get_xdata()[0] for line in axis.lines[1::2]}
    assert shown == {0.0: pytest.approx(0.9), 1.0: 0.0}


def test_nobody_attacked_is_no_section() -> None:
    assert leakage_sections([], []) == []
    assert leakage_by_batch([]) is None


def test_a_directory_of_attacks_has_a_page(cli: CLI, tmp_path: Path) -> None:
    (tmp_path / ROWS).write_bytes(rows_bytes(rows_of({"<script>": 0.9})))
    (tmp_path / PICTURES).write_bytes(gallery_bytes([images("<script>, batch 8")]))
    answer = cli("report", tmp_path)
    assert answer.code == 0, answer.err
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert page.count("<svg") == 4
    assert [s.name for s in attacks_page(tmp_path).sections] == ["leakage", "images-0"]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"relu": 0.9, "tanh": 0.0}, "confirmed"),
        ({"relu": 0.5, "tanh": 0.9}, "contradicted (tanh: as much, or more)"),
        ({"relu": 0.5, "tanh": 0.5, "gelu": 0.0}, "not decided (tanh: as much, or more)"),
    ],
)
def test_who_leaks_more_than_relu_contradicts_the_literature(
    shares: dict[str, float], said: str
) -> None:
    (line,) = leakage_beside_the_literature(leakages(rows_of(shares)))
    assert said in line


# The one table.


def test_the_one_table_holds_accuracy_leakage_and_cost(data: StudyData) -> None:
    page = table_page([data], rows_of({"relu": 0.9, "tanh": 0.0}), [images("analytic, relu")])
    section = next(s for s in page.sections if s.name == "table")
    head, rows = section.table
    assert section.title == "mnist, level example"
    assert list(head) == [
        *("activation", "no promise", "example: epsilon 0.99", "example: epsilon 7.92"),
        *("analytic, batch 8: recovered at 1e-3", "training (counted)"),
        *("client CPU (measured)", "bytes, both ways (counted)"),
    ]
    assert [(r[0], *r[4:]) for r in rows] == [
        ("relu", "90.0%", "2 kFLOP", "1 s", "400 B"),
        ("tanh", "0.0%", "2 kFLOP", "1 s", "400 B"),
    ]
    text = markdown_of(page, "folder", "command")
    assert "which agrees with it" in text
    assert "ReLU leaks most under analytic extraction, as the literature has it: confirmed" in text
    assert page.notice == ""


def test_leakage_under_the_table_s_own_promise_stands_beside_that_of_clear_updates(
    data: StudyData,
) -> None:
    protected = {"clipping_norm": 1.0, "noise_multiplier": 0.591936}
    rows = [
        row("relu", 8, 0, 0.0, level="user", **protected),
        row("relu", 8, 0, 0.1, level="example", **protected),
        *rows_of({"relu": 0.9}),
        row("relu", 8, 0, 0.5, width=64),
    ]
    page = table_page([data], rows, [])
    head, lines = next(s for s in page.sections if s.name == "table").table
    shown = dict(zip(head[4:-3], lines[0][4:-3], strict=True))
    assert shown == {
        "analytic, mlp of 1 x 500, batch 8: recovered at 1e-3": "90.0%",
        "analytic, mlp of 1 x 64, batch 8: recovered at 1e-3": "50.0%",
        "analytic, level example, z 0.592, mlp of 1 x 500, batch 8: recovered at 1e-3": "10.0%",
    }
    picture = leakage_by_batch(leakages(rows))
    assert picture is not None
    assert {line[0] for line in picture.table[1]} == {"analytic, mnist, mlp of 1 x 500"}


def test_a_verdict_against_the_literature_is_named(tmp_path: Path) -> None:
    page = table_page([made_data(tmp_path, better=-0.03)], [], [])
    section = next(s for s in page.sections if s.name == "literature")
    (line,) = section.text
    assert "tanh is +1.95 points from relu under DP-SGD (DPSUR, 95.11 to 97.06)" in line
    assert "CONTRADICTS" in line
    assert "leakage" not in {s.name for s in page.sections}


def test_what_is_missing_is_said_first(tmp_path: Path) -> None:
    page = table_page([made_data(tmp_path, better=0.03, seeds=2, missing=1)], [], [])
    assert page.notice.startswith("Of 12 results 1 are missing")


def test_a_cost_that_a_run_does_not_say_is_missing() -> None:
    assert cost_text([1.0, None], str) == "-"
    assert cost_text([2.0], str) == "2.0"
    assert cost_text([1.0, 2.0, 3.0], lambda v: f"{v:.1f}") == "2.0 [0.0, 4.5]"


def test_the_table_by_its_command(cli: CLI, tmp_path: Path) -> None:
    answer = cli("privacy", "table", tmp_path, "--attacks", tmp_path)
    assert (answer.code, "holds no rows of attacks" in answer.err) == (1, True)


# The files.


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda p: p.name)
def test_every_file_on_privacy_opens_with_what_it_shows_and_is_valid(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    names = vocabulary()
    if "base" in config.read_toml(path):
        study = read_study(path, [], vocabulary=names)
        assert study.arms
    else:
        config.read(path, [], vocabulary=names)


@pytest.mark.parametrize("name", ["user-mnist", "user-fashion", "example-mnist", "example-fashion"])
def test_the_studies_hold_seven_activations_at_no_promise_and_three_epsilons(name: str) -> None:
    study = read_study(CONFIGS / f"{name}.toml", [], vocabulary=vocabulary())
    promises = {tuple(v for k, v in arm if k != ACTIVATION) for arm in study.arms}
    level = name.partition("-")[0]
    assert promises == {("none", 0.0), (level, 1.0), (level, 2.0), (level, 8.0)}
    assert len(study.arms) == 4 * 7
    assert study.value(study.arms[-1], "privacy.reproducible_noise") is True


# Combinations that are skipped.


def skipping(tmp_path: Path, text: str) -> Study:
    """Read a study of two axes that skips something."""
    (tmp_path / "base.toml").write_text("[experiment]\nrounds = 2\n")
    path = tmp_path / "s.toml"
    path.write_text(
        'base = "base.toml"\nseeds = 1\n'
        '[axes]\n"data.clients" = [20, 30]\n"model.activation" = ["relu", "tanh"]\n' + text
    )
    return read_study(path, [], vocabulary=vocabulary())


def test_a_combination_that_is_skipped_is_no_arm_and_nothing_is_claimed_of_it(
    tmp_path: Path,
) -> None:
    study = skipping(
        tmp_path,
        '[[skip]]\n"data.clients" = 20\n"model.activation" = ["tanh"]\n'
        '[[hypothesis]]\narm = "tanh"\nreference = "relu"\nendpoint = "test_accuracy"\n'
        'claim = "better"\n',
    )
    assert [tuple(v for _, v in arm) for arm in study.arms] == [
        (20, "relu"),
        (30, "relu"),
        (30, "tanh"),
    ]
    assert [dict(h.arm)["data.clients"] for h in study.hypotheses] == [30]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("skip = 3", "skip 1: must be a table of axes and values"),
        ('[[skip]]\n"data.alpha" = 1', "skip 1.data.alpha: is no axis"),
        ('[[skip]]\n"data.clients" = 25', "skip 1.data.clients = 25: the axis has 20, 30"),
        ('[[skip]]\n"data.clients" = [20, 30]', "skip: leaves no combination of the axes"),
        (
            '[[skip]]\n"model.activation" = "tanh"\n[[published]]\nendpoint = "test_accuracy"\n'
            'source = "x"\nvalues = [{ clients = 20, activation = "tanh", value = 0.5 }]',
            "published: 20, tanh is skipped",
        ),
    ],
)
def test_what_cannot_be_skipped_is_told(tmp_path: Path, text: str, problem: str) -> None:
    if text.startswith("skip"):
        (tmp_path / "base.toml").write_text("")
        (tmp_path / "s.toml").write_text(f'base = "base.toml"\n{text}\n')
        with pytest.raises(ConfigError, match=re.escape(problem)):
            read_study(tmp_path / "s.toml", [], vocabulary=vocabulary())
        return
    with pytest.raises(ConfigError, match=re.escape(problem)):
        skipping(tmp_path, text)
