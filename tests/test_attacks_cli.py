"""``fedsim privacy attack``: its table, its files and its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.privacy.attacks.gallery import read_gallery
from fedsim.privacy.attacks.measure import ATTACKS
from fedsim.privacy.attacks.rows import read_rows
from fedsim.report.drawing import page_svg
from fedsim.report.leakage import leakages
from fedsim.report.reconstructions import lines_of, reconstructions_picture

Cli = Callable[..., Any]
ATTACK = ("privacy", "attack")


def test_rows_images_and_pictures(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "leakage"
    answer = cli(
        *ATTACK,
        "analytic",
        "--activation",
        "relu,tempered_sigmoid(1, 2, 0.5)",
        "--batch",
        "1,4",
        *("--seeds", 2, "--width", 64, "--out", out, "--pictures"),
    )
    assert answer.code == 0
    assert "recovered at 1e-3" in answer.out
    assert "tempered_sigmoid(1, 2, 0.5)" in answer.out
    assert "[8/8] analytic, tempered_sigmoid(1, 2, 0.5), gradient on 4, seed 1" in answer.err
    names = ["pictures.npz", "reconstructions.png", "reconstructions.svg", "rows.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == names
    rows = read_rows((out / "rows.jsonl").read_bytes())
    assert [(row.batch, row.seed) for row in rows] == [(b, s) for b in (1, 1, 4, 4) for s in (0, 1)]
    shown = read_gallery((out / "pictures.npz").read_bytes())
    assert [len(arm.originals) for arm in shown] == [1, 1, 4, 4]
    assert [line[0] for line in lines_of(shown)] == [
        "original",
        shown[0].name,
        shown[1].name,
        "original",
        shown[2].name,
        shown[3].name,
    ]
    for narrow in (False, True):
        assert page_svg(reconstructions_picture(shown), narrow=narrow).count("<image") == 15


def test_json_has_arms_and_raw_rows(cli: Cli) -> None:
    found = cli(
        *ATTACK, "labels", "--seeds", 3, "--local-steps", "0,2", "--width", 8, "--format", "json"
    ).json
    assert len(found["rows"]) == 6
    assert [(arm["local_steps"], arm["seeds"]) for arm in found["arms"]] == [(0, 3), (2, 3)]
    labels = found["arms"][0]["figures"]["labels_recovered"]
    values = [row["labels_recovered"] for row in found["rows"][:3]]
    assert labels["mean"] == pytest.approx(sum(values) / 3)
    assert 0 <= labels["low"] <= labels["mean"] <= labels["high"] <= 1


def test_one_seed_has_no_interval(cli: Cli) -> None:
    found = cli(*ATTACK, "dlg", "--seeds", 1, "--iterations", 2, "--width", 8, "--format", "json")
    figure = found.json["arms"][0]["figures"]["psnr_db"]
    assert figure["low"] is figure["high"] is None
    assert found.json["rows"][0]["batch"] == 1


def test_membership_has_two_rows_a_seed(cli: Cli) -> None:
    answer = cli(
        *ATTACK,
        "membership",
        "--seeds",
        2,
        "--width",
        8,
        "--members",
        10,
        "--shadows",
        6,
        *("--epochs", 1),
    )
    assert "loss_threshold" in answer.out
    assert "lira" in answer.out
    assert "[2/2] lira" in answer.err


def test_no_rows_are_no_arms() -> None:
    assert leakages([]) == []


def test_the_help_names_every_attack(cli: Cli) -> None:
    words = cli(*ATTACK, "--help").out.replace(",", " ").split()
    assert set(ATTACKS) <= set(words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), "attack 'nope': unknown; valid: analytic"),
        (("analytic", "--batch", "eight"), "--batch 'eight': must be whole numbers between commas"),
        (("analytic", "--batch", "0"), "batch = 0: a client holds at least 1 example"),
        (("analytic", "--activation", "relu,reluu"), "did you mean 'relu'"),
        (("analytic", "--pictures"), "--pictures: needs a directory to draw in"),
        (("analytic", "--dataset", "nope"), "unknown dataset"),
        (("membership", "--batch", "4"), "membership trains models; use --members"),
        (("labels", "--level", "user"), "level 'user' needs a norm"),
    ],
)
def test_refusals_before_any_work(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    answer = cli(*ATTACK, *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert answer.out == ""


def test_a_directory_that_holds_something_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    answer = cli(*ATTACK, "labels", "--out", tmp_path)
    assert answer.code == 2
    assert "name another directory with --out" in answer.err
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == '["kept"]'
