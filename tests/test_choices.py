"""What ``auto`` becomes, and that it stays what it was."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsim import choices, parts
from fedsim.choices import choose, choose_engine
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.ledger.read import Run, load
from fedsim.simulation import open_engine, prepare, simulate

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def forgetful() -> None:
    choices._why_not_xla.cache_clear()


@pytest.fixture
def without_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)


def test_auto_is_xla_where_it_can(make_experiment: Make, told: list[str]) -> None:
    train = choose(make_experiment(), told.append).train
    assert (train.compiler, train.vectorize, told) == ("xla", "never", [])


def test_large_networks_are_trained_one_after_another(make_experiment: Make) -> None:
    many = {"data": {"clients": 50}, "server": {"clients_per_round": 40}}
    wide = make_experiment(**many, model={"width": 400, "depth": 2})
    assert choose(wide, print).train.vectorize == "never"


@pytest.mark.parametrize(
    "tables",
    [
        {"server": {"strategy": "scaffold", "clients_per_round": 40}},
        {"server": {"clients_per_round": 40}, "update": {"codec": "topk"}},
    ],
    ids=["state", "codec"],
)
def test_clients_that_are_asked_alone_are_not_trained_in_step(
    make_experiment: Make, tables: dict[str, dict[str, str]]
) -> None:
    experiment = make_experiment(data={"clients": 50}, **tables)
    assert choose(experiment, print).train.vectorize == "never"


def test_without_jax_it_is_torch_and_says_why(
    make_experiment: Make, told: list[str], without_jax: None
) -> None:
    train = choose(make_experiment(), told.append).train
    assert (train.compiler, train.vectorize) == ("torch", "never")
    assert len(told) == 1
    assert "JAX is not installed (pip install 'fedsim[xla]')" in told[0]


def test_xla_that_is_asked_for_and_not_there_is_an_error(
    make_experiment: Make, without_jax: None
) -> None:
    with pytest.raises(ConfigError, match=r"train.compiler = 'xla': JAX is not installed.*'torch'"):
        choose(make_experiment(train={"compiler": "xla"}), print)


def test_a_gpu_that_jax_lacks_is_left_to_torch(make_experiment: Make, told: list[str]) -> None:
    on_gpu = make_experiment(engine={"device": "cuda"})
    assert choose(on_gpu, told.append).train.compiler == "torch"
    assert "this JAX sees no GPU" in told[0]


@pytest.mark.parametrize(
    ("cohort", "width", "vectorize"),
    [
        (15, 8, "never"),
        (16, 8, "always"),  # of 32 lanes
        (7, 200, "never"),
        (8, 200, "always"),  # of 16
        (40, 400, "never"),  # too large to go in step at all
    ],
)
def test_clients_go_in_step_where_they_fill_half_of_the_lanes(
    make_experiment: Make, cohort: int, width: int, vectorize: str
) -> None:
    server, model = {"clients_per_round": cohort}, {"width": width, "depth": 2}
    experiment = make_experiment(server=server, model=model, data={"clients": 50})
    assert choose(experiment, print).train.vectorize == vectorize


def test_what_was_decided_is_written_down_and_kept(
    make_experiment: Make, run_inline: RunInline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(make_experiment())
    run = run_inline(first)
    assert run.config["train"]["compiler"] == "xla"
    assert run.config["train"]["vectorize"] == "never"
    assert run.manifest.engine["blocks"]["together"] is False
    again = make_experiment(run={"out": str(run.path), "resume": True})
    torch = dataclasses.replace(again.train, compiler="torch")
    assert choose(again, print).train == first.train
    assert choose(dataclasses.replace(again, train=torch), print).train.compiler == "torch"


def test_a_run_of_which_nobody_decided_goes_on_with_torch(
    make_experiment: Make, run_inline: RunInline
) -> None:
    """As one that Flower's own runtime began."""
    run = run_inline(make_experiment())
    assert run.config["train"]["compiler"] == "torch"
    again = make_experiment(run={"out": str(run.path), "resume": True})
    assert choose(again, print).train.compiler == "torch"


def test_a_model_is_the_same_by_either_compiler_but_for_rounding(
    make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    runs = [
        run_inline(make_experiment(train={"compiler": name}, run={"out": str(tmp_path / name)}))
        for name in ("torch", "xla")
    ]
    for name, array in runs[0].arrays().items():
        np.testing.assert_allclose(runs[1].arrays()[name], array, rtol=1e-4, atol=1e-5)
    assert runs[0].manifest.model_sha256 != runs[1].manifest.model_sha256


def test_small_work_stays_in_this_process_and_says_so(
    make_experiment: Make, told: list[str]
) -> None:
    small = choose(make_experiment(engine={"name": "auto"}), print)
    (chosen,) = choose_engine([small], told.append)
    assert chosen.engine.name == "inline"
    assert "clients train in this process" in told[0]


def test_much_work_goes_to_ray(
    make_experiment: Make, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "allowed_cores", lambda: {0, 1})
    much = {"engine": {"name": "auto"}, "experiment": {"rounds": 10**5}, "train": {"epochs": 500}}
    (chosen,) = choose_engine([choose(make_experiment(**much), print)], told.append)
    assert (chosen.engine.name, told) == ("ray", [])
    (short,) = choose_engine([choose(make_experiment(**much | {"train": {}}), print)], print)
    assert short.engine.name == "inline"  # Ray would take longer for a round than its workers save
    monkeypatch.setattr(choices, "allowed_cores", lambda: {0})
    (alone,) = choose_engine([choose(make_experiment(**much), print)], print)
    assert alone.engine.name == "inline"


@pytest.mark.parametrize("engine", [{"workers": 2}, {"address": "somewhere:6379"}])
def test_workers_that_are_asked_for_are_ray_s(
    make_experiment: Make, engine: dict[str, object]
) -> None:
    asked = choose(make_experiment(engine={"name": "auto", **engine}), print)
    assert choose_engine([asked], print)[0].engine.name == "ray"


def test_a_trainer_is_shared_by_arms_that_train_alike(make_experiment: Make) -> None:
    arms = [
        make_experiment(train={"learning_rate": 0.1}),
        make_experiment(train={"learning_rate": 0.2}, data={"partition": "dirichlet"}),
        make_experiment(train={"momentum": 0.9}),
    ]
    trainers = [parts.trainer(arm) for arm in arms]
    assert trainers[0] is trainers[1]
    assert trainers[0] is not trainers[2]


def test_a_million_registered_clients_cost_nothing(make_experiment: Make, tmp_path: Path) -> None:
    """Each holds one example; a round asks fifty."""
    clients = 1_000_000
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        x=draw.integers(0, 255, (clients + 100, 4), np.uint8),
        y=draw.integers(0, 3, clients + 100),
        client=np.arange(clients + 100) % clients,
    )
    experiment = make_experiment(
        data={
            "dataset": "file",
            "path": str(tmp_path / "data.npz"),
            "client": "client",
            "partition": "iid",
            "test_fraction": 90 / (clients + 100),
            "clients": clients,
        },
        server={"clients_per_round": 50},
        engine={"name": "inline"},
    )
    experiment = prepare(experiment)
    executor = open_engine(experiment)
    simulate(experiment, executor)
    executor.close()
    run = load(experiment.run.out)
    assert run.status == "completed"
    assert len(run.clients) == 3 * 50
    assert run.clients.client.max() > 900_000
    assert (run.clients.status == "ok").all()


def test_a_study_leaves_the_compiler_to_the_runs_that_it_has(
    make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    from fedsim.cli.study import as_begun
    from fedsim.study.design import Study

    axes = {"train.momentum": (0.0, 0.5)}
    study = Study(name="s", base={}, axes=axes, seeds=(0,), targets=())
    assert as_begun(study, tmp_path) == study
    first = study.cell(study.arms[0], (), 0, {})
    run_inline(make_experiment(run={"out": str(tmp_path / first.folder)}))  # by torch
    begun = as_begun(study, tmp_path)
    assert begun.base == {"train.compiler": "torch", "engine.name": "inline"}
    asked = Study(name="s", base={"train.compiler": "xla"}, axes=axes, seeds=(0,), targets=())
    assert as_begun(asked, tmp_path).base["train.compiler"] == "xla"


@pytest.mark.parametrize(
    ("strategy", "withstood", "remark"),
    [
        ("krum", 0, "server.byzantine_clients = 0: some 1.5 of server.clients_per_round = 6 are"),
        ("krum", 1, "server.byzantine_clients = 1: some 1.5 of server.clients_per_round = 6 are"),
        ("bulyan", 0, "more than bulyan is to withstand"),
        ("fedmedian", 0, None),  # needs no number
    ],
)
def test_a_defence_against_fewer_than_attack_is_remarked_on(
    make_experiment: Make, told: list[str], strategy: str, withstood: int, remark: str | None
) -> None:
    server = {"strategy": strategy, "byzantine_clients": withstood, "clients_per_round": 6}
    attack = {"kind": "sign_flip", "fraction": 0.25}
    prepare(make_experiment(server=server, adversary=attack), told.append)
    found = [line for line in told if "byzantine" in line]
    assert len(found) == (remark is not None)
    assert remark is None or remark in found[0]


def test_a_defence_that_is_large_enough_or_that_nobody_needs_is_not(
    make_experiment: Make, told: list[str]
) -> None:
    server = {"strategy": "krum", "byzantine_clients": 2, "clients_per_round": 8}
    attack = {"kind": "sign_flip", "fraction": 0.25}  # two of eight
    prepare(make_experiment(server=server, adversary=attack), told.append)
    prepare(make_experiment(server={"strategy": "krum"}), told.append)
    assert not [line for line in told if "byzantine" in line]


def test_what_a_run_takes_beside_its_clients_is_in_a_plan(make_experiment: Make) -> None:
    short, long = (
        choices.run_seconds(choose(make_experiment(experiment={"rounds": rounds}), print))
        for rounds in (1, 101)
    )
    assert short > choices.RUN_SECONDS
    assert long - short > 100 * choices.ROUND_SECONDS
