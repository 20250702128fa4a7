"""How much is measured: what each level fills, and that none changes the result."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from fedsim.config import Experiment
from fedsim.ledger.read import Run
from fedsim.records import ClientRow, figures

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]

ALWAYS = {"examples", "steps", "loss_first_step", "loss_last_step", "cpu_seconds", "wall_seconds"}
FULL = {
    *("loss_before", "loss_after", "accuracy_after", "compressed_bytes", "drift_cosine"),
    *("zero_fraction_without_blank", "top_1_percent_energy", "top_10_percent_energy"),
    *("entropy_bits", "gradient_ratio_before", "gradient_ratio_after"),
}
CONTAINERS = {name for name in figures(ClientRow) if name.startswith(("startup_", "container_"))}
PRIVACY = {name for name in figures(ClientRow) if name.startswith(("clip_", "secure_"))}
ON_DEMAND = {"codec_error", "modelled_seconds", "modelled_joules", *CONTAINERS, *PRIVACY}


def filled(run: Run) -> set[str]:
    return {name for name in figures(ClientRow) if run.clients[name].notna().all()}


@pytest.fixture
def at_level(make_experiment: Make, run_inline: RunInline, tmp_path: Path) -> Callable[..., Run]:
    numbers = count()

    def run(level: str, **tables: dict[str, object]) -> Run:
        measure = {"level": level, **tables.pop("measure", {})}
        out = {"out": str(tmp_path / f"run-{next(numbers)}")}
        return run_inline(make_experiment(measure=measure, run=out, **tables))

    return run


def test_each_level_fills_its_columns(at_level: Callable[..., Run]) -> None:
    everything = set(figures(ClientRow))
    assert filled(at_level("off")) == ALWAYS
    assert filled(at_level("light")) == everything - FULL - ON_DEMAND
    assert filled(at_level("full")) == everything - ON_DEMAND


def test_layers_and_the_model_s_figures_are_full_alone(at_level: Callable[..., Run]) -> None:
    light, full = at_level("light"), at_level("full")
    columns = [name for name in full.rounds if name.startswith("model_")]
    assert light.layers.empty
    assert light.rounds[columns].isna().all(axis=None)
    assert full.rounds[columns].notna().all(axis=None)
    phases = full.layers.groupby("phase").client.agg(["min", "size"])
    assert phases["size"].to_dict() == {"before": 24, "after": 24, "global": 6}
    assert (phases.loc["global", "min"], phases.loc["before", "min"] >= 0) == (-1, True)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "qfedavg"])
def test_measuring_never_changes_the_result(at_level: Callable[..., Run], strategy: str) -> None:
    server = {"strategy": strategy}
    runs = [at_level(level, server=server) for level in ("off", "light", "full")]
    assert len({run.manifest.model_sha256 for run in runs}) == 1
    for column in ("test_accuracy", "test_loss"):
        assert runs[0].rounds[column].equals(runs[1].rounds[column])
        assert runs[0].rounds[column].equals(runs[2].rounds[column])


def test_full_every_takes_full_in_every_so_many_rounds(at_level: Callable[..., Run]) -> None:
    run = at_level("light", measure={"full_every": 2}, experiment={"rounds": 5})
    full = run.clients.groupby("round").loss_before.agg(lambda column: column.notna().all())
    assert full.to_dict() == {1: False, 2: True, 3: False, 4: True, 5: False}
    assert set(run.layers["round"]) == {2, 4}


def test_sums_of_the_round_are_its_clients(at_level: Callable[..., Run]) -> None:
    run = at_level("light")
    sums = run.clients.groupby("round").sum(numeric_only=True)
    for column, of in {
        "uplink_bytes": "wire_bytes",
        "downlink_bytes": "downlink_wire_bytes",
        "uplink_dense_bytes": "dense_bytes",
        "train_flops": "train_flops",
    }.items():
        assert run.rounds[column].to_list() == sums[of].to_list()
    assert (run.clients.wire_bytes > run.clients.dense_bytes).all()


def test_counted_figures_do_not_depend_on_the_run(at_level: Callable[..., Run]) -> None:
    one, two = at_level("light"), at_level("full")
    counted = [n for n, f in figures(ClientRow).items() if f.metadata["kind"] == "counted"]
    # Messages differ: the level itself and what it adds are in them.
    same = set(counted) - FULL - ON_DEMAND - {"wire_bytes", "downlink_wire_bytes"}
    assert one.clients[sorted(same)].equals(two.clients[sorted(same)])


def test_the_2nn_s_flops_by_hand(at_level: Callable[..., Run]) -> None:
    """Eight clients of 180 digits: 64-8-10, whose first layer has no input gradient."""
    run = at_level("light", experiment={"rounds": 1})
    for row in run.clients.itertuples():
        n = row.examples
        assert row.examples_processed == n
        assert row.train_flops == n * (2 * 2 * 64 * 8 + 3 * 2 * 8 * 10)
        assert row.bias_flops == n * 2 * (8 + 10)
        assert row.activation_elements == n * 8
        assert (row.compare_ops, row.transcendental_ops) == (n * 16, 0)
        assert row.model_bytes == 4 * (64 * 8 + 8 + 80 + 10) == row.dense_bytes


def test_a_device_s_figures_are_modelled(at_level: Callable[..., Run]) -> None:
    phone = at_level("light", measure={"device": "phone"})
    assert (phone.clients.modelled_seconds > 0).all()
    assert (phone.clients.modelled_joules > 0).all()


def test_energy_that_cannot_be_measured_is_blank_with_a_reason(
    at_level: Callable[..., Run],
) -> None:
    run = at_level("light", measure={"energy": "rapl"})
    if run.rounds.package_joules.isna().all():
        assert run.manifest.blanks["package_joules"]
    else:
        assert "package_joules" not in run.manifest.blanks
        assert (run.rounds.package_joules > 0).all()


def test_bytes_on_the_wire_are_the_same_in_every_run(at_level: Callable[..., Run]) -> None:
    """Clocks and peaks of memory differ; what they take in a message does not."""
    one, two = at_level("full"), at_level("full")
    for column in ("wire_bytes", "downlink_wire_bytes"):
        assert one.clients[column].equals(two.clients[column])
    assert not one.clients.wall_seconds.equals(two.clients.wall_seconds)
