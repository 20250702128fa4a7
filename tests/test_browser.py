"""Reports in a real browser: Chromium without a screen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.ledger.manifest import new_manifest
from fedsim.ledger.store import Entry, Ledger
from fedsim.records import ClientRow, LayerRow, RoundRow
from fedsim.report.page import html_of
from fedsim.study.design import Study

pytestmark = pytest.mark.browser

ARMS = ("relu", "leaky_relu", "tanh", "gelu", "sigmoid")
SETTINGS = (1, 2)
SEEDS = 20
ROUNDS = 100
MOST_BYTES = 5_000_000


def make_run(directory: Path, activation: str, labels: int, seed: int) -> None:
    """Write a ledger as a run would: a hundred rounds of ten clients, and the health of layers."""
    rng = np.random.default_rng([ARMS.index(activation), labels, seed])
    config = {
        "experiment": {"seed": seed, "rounds": ROUNDS},
        "data": {"labels_per_client": labels, "partition": "labels", "clients": 50},
        "model": {"activation": activation},
    }
    manifest = new_manifest("paper", config_hash="x", engine={"name": "ray"}, rounds_planned=ROUNDS)
    with Ledger.create(directory, manifest=manifest, config=config) as ledger:
        entries = [entry(r, activation, labels, seed, rng) for r in range(1, ROUNDS + 1)]
        ledger.append_all(entries)
        ledger.finish("completed")


def entry(r: int, activation: str, labels: int, seed: int, rng: np.random.Generator) -> Entry:
    """Return a round of ten clients; the last one with the health of two layers."""
    pace = 0.02 * (1 + ARMS.index(activation)) / labels
    accuracy = float(0.9 * (1 - np.exp(-pace * r)) + 0.01 * rng.standard_normal())
    clients = [
        ClientRow(
            round=r,
            client=client,
            train_flops=10**8,
            wire_bytes=800_000 + seed,
            saved_bytes=64_000,
            cpu_seconds=0.005 * float(rng.lognormal(0, 0.1)),
            threads=1,
            cohort=1,
        )
        for client in range(10)
    ]
    layers = [
        LayerRow(
            round=r, client=0, layer=layer, phase="after", zero_fraction=0.5, dead_fraction=0.02
        )
        for layer in ("dense1", "dense2")
        if r == ROUNDS
    ]
    row = RoundRow(
        round=r,
        test_accuracy=min(max(accuracy, 0.0), 1.0),
        test_loss=1.0,
        clients_trained=10,
        clients_failed=0,
        uplink_bytes=8_000_000,
        downlink_bytes=8_000_000,
        cpu_seconds=0.05,
        wall_seconds=0.03,
        train_flops=10**9,
    )
    last = {"w": np.zeros(1, np.float32)}
    return Entry(round=row, clients=clients, layers=layers, arrays=last, state={}, client_states={})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study of 200 runs."""
    from fedsim.cli.report import study_data
    from fedsim.report.study import study_page
    from fedsim.study.claims import read_hypotheses
    from fedsim.study.stored import write_study

    directory = tmp_path_factory.mktemp("paper") / "paper"
    axes: dict[str, Any] = {"data.labels_per_client": SETTINGS, "model.activation": ARMS}
    claim = {
        "arm": "relu",
        "reference": list(ARMS[1:]),
        "endpoint": ["rounds_to_0.7", "best_accuracy"],
        "claim": "better",
    }
    problems: list[str] = []
    study = Study(
        name="paper",
        about="Does ReLU need fewer rounds than the others, with one label a client and with two?",
        base={"data.partition": "labels", "experiment.rounds": ROUNDS},
        axes=axes,
        seeds=tuple(range(SEEDS)),
        targets=(0.7,),
        hypotheses=read_hypotheses([claim], axes, problems),
    )
    assert problems == []
    write_study(directory, study)
    for arm in study.arms:
        for seed in study.seeds:
            cell = study.cell(arm, (), seed, {})
            labels, activation = (value for _, value in arm)
            make_run(directory / cell.folder, activation, labels, seed)
    path = directory / "report.html"
    path.write_text(html_of(study_page(study_data(directory, None))))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
    assert chromium, "Chromium is not installed: apt-get install chromium"
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(quiet))
        yield started
        started.close()


def open_page(browser: Any, path: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """Open a page in a window of some width; return it with whatever went wrong."""
    wrong: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: wrong.append(request.url) if "http" in request.url else None)
    tab.goto(path.as_uri())
    return tab, wrong


def test_two_hundred_runs_fit_into_five_megabytes(page: Path) -> None:
    assert len(list(page.parent.rglob("ledger.sqlite"))) == 200
    assert page.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_a_report_renders_and_is_sane_for_keyboard_and_screen_reader(
    browser: Any, page: Path, width: int, scheme: str
) -> None:
    from axe_core_python.sync_playwright import Axe

    tab, wrong = open_page(browser, page, width, scheme)
    assert wrong == []
    assert "Does ReLU need fewer rounds" in tab.inner_text("h1")
    # Nothing sticks out to the side, and one picture of each pair shows.
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    shown = tab.evaluate(
        "[...document.querySelectorAll('figure svg')].filter(e => e.clientWidth).length"
    )
    assert shown == tab.evaluate("document.querySelectorAll('figure').length") >= 6
    smallest = tab.evaluate(
        "Math.min(...[...document.querySelectorAll('figure svg text')]"
        ".map(e => e.getBoundingClientRect().height).filter(Boolean))"
    )
    assert smallest >= 7  # pixels of a line of text: small print, and legible
    found = Axe().run(tab)
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found["violations"]] == []
    tab.close()


def test_the_theme_follows_the_reader_s(browser: Any, page: Path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        tab, _ = open_page(browser, page, 1280, scheme)
        style = "getComputedStyle(document.body)"
        colours[scheme] = tab.evaluate(f"[{style}.backgroundColor, {style}.color]")
        tab.close()
    assert colours["light"][0] == "rgb(255, 255, 255)"
    assert sum(map(int, colours["dark"][0][4:-1].split(","))) < 120


def test_the_numbers_behind_a_picture_are_reached_by_keyboard(browser: Any, page: Path) -> None:
    tab, _ = open_page(browser, page, 1280, "light")
    details = tab.locator("figure details").first
    table = details.locator("table")
    assert not table.is_visible()
    details.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert table.is_visible()
    tab.close()
