"""What an experiment costs: the ledger's counted columns, and ``fedsim cost``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from fedsim import parts
from fedsim.config import Experiment, read
from fedsim.costs import MEMORY, counted, experiment_cost, itemised
from fedsim.measure.devices import load_profile, modelled, profile_names, profile_path
from fedsim.randomness import stream
from fedsim.records import ClientRow, figures
from fedsim.training.local import batches

CLI = Callable[..., Any]
Make = Callable[..., Experiment]

# The small experiment of conftest.py: 64 pixels, one hidden layer of 8, 10 digits, 8 clients.
WEIGHTS = (64 * 8, 8 * 10)
PARAMETERS = sum(WEIGHTS) + 8 + 10
FLOPS = 4 * WEIGHTS[0] + 6 * WEIGHTS[1]  # of an example: forward, weights, and inputs but x


def test_the_columns_of_a_client_s_row(make_experiment: Make) -> None:
    e = make_experiment(model={"activation": "gelu"}, train={"momentum": 0.9})
    assert counted(e, examples=70, steps=7) == {
        "examples_processed": 172,  # 32 + 32 + 6, twice, and 32
        "train_flops": 172 * FLOPS,
        "bias_flops": 172 * 2 * 18,
        "activation_elements": 172 * 8,
        "compare_ops": 0,
        "multiply_add_ops": 172 * 8 * (4 + 8),
        "division_ops": 0,
        "transcendental_ops": 172 * 8 * (1 + 2),
        "optimizer_flops": 7 * 4 * PARAMETERS,
        "saved_bytes": 4 + 32 * (4 * (64 + 8 + 8 + 10) + 8),
        "model_bytes": 4 * PARAMETERS,
        "gradient_bytes": 4 * PARAMETERS,
        "optimizer_bytes": 4 * PARAMETERS,
    }


def test_every_column_is_a_counted_figure_of_the_ledger(make_experiment: Make) -> None:
    kinds = {name: field.metadata["kind"] for name, field in figures(ClientRow).items()}
    columns = counted(make_experiment(), examples=1, steps=1)
    assert {kinds.get(column) for column in columns} == {"counted"}
    assert all(type(figure) is int for figure in columns.values())


@pytest.mark.parametrize("activation", ["relu", "hardswish", "mish"])
def test_operations_go_to_the_columns_of_their_kind(make_experiment: Make, activation: str) -> None:
    by_hand = {"relu": (2, 0, 0, 0), "hardswish": (4, 4, 2, 0), "mish": (0, 6, 1, 7)}[activation]
    found = counted(make_experiment(model={"activation": activation}), examples=1, steps=1)
    kinds = ("compare_ops", "multiply_add_ops", "division_ops", "transcendental_ops")
    assert tuple(found[kind] for kind in kinds) == tuple(8 * each for each in by_hand)


@pytest.mark.parametrize(
    ("tables", "kept", "flops"),
    [
        ({}, 0, 2),
        ({"train": {"momentum": 0.5}}, 1, 4),
        ({"train": {"weight_decay": 0.1}}, 0, 4),
        ({"train": {"clip_norm": 1.0}}, 0, 5),
        ({"train": {"proximal_mu": 0.1}}, 1, 5),
        ({"server": {"strategy": "scaffold"}}, 1, 3),
        ({"train": {"proximal_mu": 0.1, "momentum": 0.9, "clip_norm": 1.0}}, 2, 10),
    ],
)
def test_what_the_optimizer_keeps_and_computes(
    make_experiment: Make, tables: dict[str, Any], kept: int, flops: int
) -> None:
    found = counted(make_experiment(**tables), examples=10, steps=3)
    assert found["optimizer_bytes"] == kept * 4 * PARAMETERS
    assert found["optimizer_flops"] == 3 * flops * PARAMETERS


@pytest.mark.parametrize(
    ("batch_size", "examples", "largest"), [(32, 70, 32), (32, 32, 32), (32, 5, 5), (0, 70, 70)]
)
def test_saved_bytes_are_of_the_largest_step(
    make_experiment: Make, batch_size: int, examples: int, largest: int
) -> None:
    e = make_experiment(train={"batch_size": batch_size})
    found = counted(e, examples=examples, steps=4)
    order = batches(examples, batch_size=batch_size, epochs=1, steps=4, rng=stream(0, "test"))
    sizes = [len(batch) for batch in order]
    assert max(sizes) == largest
    assert found["examples_processed"] == sum(sizes)
    assert found["saved_bytes"] == experiment_cost(e).saved.of(largest)


def test_experiments_that_cost_the_same_are_counted_once(make_experiment: Make) -> None:
    e = make_experiment()
    assert experiment_cost(e) is experiment_cost(make_experiment(run={"out": "elsewhere"}))
    assert experiment_cost(e) is experiment_cost(make_experiment(experiment={"seed": 3}))
    assert experiment_cost(e) is not experiment_cost(make_experiment(train={"momentum": 0.9}))
    assert experiment_cost(e) is not experiment_cost(make_experiment(model={"activation": "elu"}))


def test_counting_touches_neither_the_scratch_model_nor_the_generators(
    make_experiment: Make,
) -> None:
    e = make_experiment(model={"width": 9})
    scratch = parts.scratch_model(e)
    before = [p.detach().clone() for p in scratch.parameters()]
    state = torch.get_rng_state()
    counted(e, examples=4, steps=1)
    itemised(e, cap_bytes=10**6)
    assert parts.scratch_model(e) is scratch
    assert all(torch.equal(a, b) for a, b in zip(before, scratch.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


# The command.

SMALL = (
    *("-s", "data.clients=8", "-s", "model.width=8", "-s", "model.depth=1"),
    *("-s", "server.clients_per_round=4", "-s", "train.batch_size=32"),
)


def test_the_costs_as_json(cli: CLI, make_experiment: Make) -> None:
    answer = cli("cost", *SMALL, "-s", "model.activation=tanh", "--format", "json")
    assert (answer.code, answer.err) == (0, "")
    found = answer.json
    assert (found["kind"], found["parameters"]) == ("counted", PARAMETERS)
    step, client = found["step"], found["client_round"]
    assert step["examples"] == 32
    assert step["optimizer_flops"] == 2 * PARAMETERS
    layers = {layer["layer"]: layer for layer in step["layers"]}
    assert list(layers) == ["flatten", "dense1", "activation1", "output", "loss"]
    assert layers["dense1"]["forward_flops"] == layers["dense1"]["backward_flops"]
    assert layers["output"]["forward_flops"] == 32 * 2 * WEIGHTS[1]
    assert layers["output"]["backward_flops"] == 32 * 4 * WEIGHTS[1]
    assert layers["output"]["bias_flops"] == 32 * 2 * 10
    assert layers["activation1"]["activation_elements"] == 32 * 8
    assert layers["activation1"]["forward_ops"]["transcendental"] == 32 * 8
    assert layers["activation1"]["backward_ops"]["transcendental"] == 0
    assert layers["activation1"]["backward_ops"]["multiply_add"] == 32 * 8 * 2
    assert layers["activation1"]["saved_bytes"] == 32 * 4 * 8
    # 1,438 digits to train on, dealt to eight: 179.75, and six steps of an epoch.
    assert (client["training_examples"], client["clients"]) == (1438, 8)
    assert (client["examples"], client["steps"]) == (180, 6)
    e = make_experiment(model={"activation": "tanh"})
    columns = counted(e, examples=180, steps=6)
    memory = {column: columns.pop(column) for column in MEMORY}
    assert {column: client[column] for column in columns} == columns
    assert found["memory"] == {**memory, "total_bytes": sum(memory.values())}
    assert sum(layer["saved_bytes"] for layer in step["layers"]) == memory["saved_bytes"]
    assert "largest_batch" not in found


def test_the_largest_batch_that_fits(cli: CLI, make_experiment: Make) -> None:
    answer = cli("cost", *SMALL, "--memory-mib", 1, "--format", "json")
    cost, found = experiment_cost(make_experiment()), answer.json["largest_batch"]
    assert found["cap_bytes"] == 2**20
    fits = cost.fixed_bytes + cost.saved.of(found["examples"])
    one_more = cost.fixed_bytes + cost.saved.of(found["examples"] + 1)
    assert fits <= 2**20 < one_more


@pytest.mark.parametrize(
    ("settings", "examples", "steps", "batch"),
    [
        (["train.batch_size=0"], 180, 1, 180),
        (["train.batch_size=500", "train.epochs=3"], 180, 3, 180),
        (["train.steps=17"], 180, 17, 32),
        (["data.clients=1438"], 1, 1, 1),
    ],
)
def test_the_mean_client(
    cli: CLI, settings: list[str], examples: int, steps: int, batch: int
) -> None:
    options = [word for text in settings for word in ("-s", text)]
    found = cli("cost", *SMALL, *options, "--format", "json").json
    assert found["client_round"]["examples"] == examples
    assert found["client_round"]["steps"] == steps
    assert found["step"]["examples"] == batch


def test_the_costs_as_text(cli: CLI, make_experiment: Make) -> None:
    answer = cli("cost", *SMALL, "-s", "model.activation=gelu", "--memory-mib", 64)
    assert (answer.code, answer.err) == (0, "")
    rows = [line.split() for line in answer.out.splitlines() if line.strip()]
    assert " ".join(rows[0]) == f"mlp on digits, activation gelu: {PARAMETERS} parameters"
    assert ["dense1", "32,768", "32,768", "512", "8,192"] in rows
    assert ["activation1", "0", "0", "0", "1,024"] in rows
    assert ["total", "37,888", "43,008", "1,152", "11,780"] in rows
    assert ["activation1", "256", "0", "3,072", "0", "768"] in rows
    assert ["train", "FLOPs", f"{180 * FLOPS:,}"] in rows
    assert ["saved", "for", "backward", "11,780"] in rows
    assert not any(row[0] == "flatten" for row in rows)  # it costs nothing
    assert "the mean client in one round: 180 examples (1,438 / 8 clients), 6 steps" in answer.out
    assert answer.out.count("(counted") == 5
    assert "that client-round on other devices, messages dense (modelled)" in answer.out
    assert {"phone", "raspberry-pi"} <= {row[0] for row in rows}
    fits = experiment_cost(make_experiment(model={"activation": "gelu"})).largest_batch(2**26)
    assert f"within 64 MiB: at most {fits:,} examples a step (counted)" in answer.out
    assert "without the\nallocator's overhead" in answer.out


def test_a_cap_that_nothing_fits_in(cli: CLI) -> None:
    answer = cli("cost", "-s", "model.width=2000", "--memory-mib", 1)
    assert answer.code == 0
    assert "within 1 MiB: not even one example fits (counted)" in answer.out


def test_the_costs_of_a_run_are_those_of_its_experiment(
    cli: CLI, tiny: list[str], tmp_path: Path
) -> None:
    settings = [*tiny, "-s", "model.activation=tanh", "-s", "model.depth=3"]
    experiment = read(None, settings[1::2], vocabulary={})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(tomli_w.dumps(experiment.tables()))
    of_run = cli("cost", "run", "--format", "json").json
    assert of_run == cli("cost", *settings, "--format", "json").json
    assert (of_run["activation"], len(of_run["step"]["layers"])) == ("tanh", 9)
    (tmp_path / "a.toml").write_text('[model]\nactivation = "tanh"\ndepth = 3\n')
    assert of_run == cli("cost", "a.toml", *tiny, "--format", "json").json
    wider = cli("cost", "run", "-s", "model.width=16", "--format", "json").json
    assert wider["parameters"] > of_run["parameters"]


@pytest.mark.parametrize(("strategy", "copies"), [("fedavg", 1), ("scaffold", 2)])
def test_what_a_visit_takes_elsewhere_is_modelled_from_its_counts(
    make_experiment: Make, strategy: str, copies: int
) -> None:
    e = make_experiment(server={"strategy": strategy}, model={"activation": "gelu"})
    found = itemised(e)
    visits = {visit["device"]: visit for visit in found["modelled"]}
    assert tuple(visits) == profile_names()
    client, message = found["client_round"], copies * 4 * PARAMETERS
    arithmetic = ("train_flops", "bias_flops", "optimizer_flops", "compare_ops")
    others = ("multiply_add_ops", "division_ops", "transcendental_ops")
    work = {column: client[column] for column in (*arithmetic, *others)}
    for name, visit in visits.items():
        expected = modelled(
            load_profile(name), **work, uplink_bytes=message, downlink_bytes=message
        )
        assert (visit["seconds"], visit["joules"]) == (expected.seconds, expected.joules)
        assert visit["elementwise"] == vars(expected.elementwise)
        assert visit["message_bytes"] == message


def test_the_device_of_the_experiment_is_among_them(
    cli: CLI, tmp_path: Path, make_experiment: Make
) -> None:
    (tmp_path / "mine.toml").write_text(profile_path("phone").read_text(encoding="utf-8"))
    found = cli("cost", *SMALL, "-s", "measure.device=mine.toml", "--format", "json").json
    devices = {visit.pop("device"): visit for visit in found["modelled"]}
    assert devices["mine.toml"] == devices["phone"]
    assert len(devices) == len(profile_names()) + 1
    once = cli("cost", *SMALL, "-s", "measure.device=phone", "--format", "json").json
    assert len(once["modelled"]) == len(profile_names())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory-mib", "0"], "0 is not in the range x>=1"),
        (["--memory-mib", "-3"], "-3 is not in the range x>=1"),
        (["--memory-mib", "much"], "'much' is not a valid int"),
        (["nope.toml"], "nope.toml: no such file"),
        (["-s", "model.activation=relo"], "did you mean 'relu'?"),
        (["-s", "model.name=cnn", "-s", "model.depth=9"], "lower it to 3"),
        (["-s", "measure.device=fone"], "did you mean 'phone'?"),
        (["-s", "data.dataset=mnist", "--data-dir", "empty"], "fedsim data fetch mnist"),
        # What no run could do either: 5,000 clients share 1,438 digits.
        (["-s", "data.clients=5000"], "data.clients = 5000"),
    ],
)
def test_bad_input_is_refused(cli: CLI, arguments: list[str], message: str) -> None:
    answer = cli("cost", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err.replace("\n", " ")


def test_a_directory_without_a_run(cli: CLI, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = cli("cost", "empty")
    assert answer.code == 1
    assert "empty holds no run" in answer.err
