"""Cohorts in blocks against clients that are asked one by one: the same bits, bytes and rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim import flower
from fedsim.config import Experiment
from fedsim.ledger.read import Run
from fedsim.records import ClientRow, LayerRow, RoundRow, figures

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]


def alone(app: ClientApp) -> ClientApp:
    """Return the app without its handler of blocks: every client answers for itself."""
    single = ClientApp()

    @single.train()
    def train(message: Message, context: Context) -> Message:
        return app(message, context)

    return single


def spoiled(app: ClientApp, spoil: Callable[[Message], None]) -> ClientApp:
    """Return the app with a fault in every block's reply."""
    wrong = ClientApp()

    @wrong.train(flower.COHORT)
    def train(message: Message, context: Context) -> Message:
        reply = app(message, context)
        spoil(reply)
        return reply

    return wrong


def counted(row: type, table: pd.DataFrame) -> pd.DataFrame:
    """Return what does not come from a clock, and who it is of."""
    kinds = {name: figure.metadata["kind"] for name, figure in figures(row).items()}
    return table[[name for name in table if kinds.get(name) != "measured"]]


@pytest.fixture
def run_both(
    make_experiment: Make, run_inline: RunInline, client_app: ClientApp, tmp_path: Path
) -> Callable[..., tuple[Run, Run]]:
    def run(**tables: dict[str, object]) -> tuple[Run, Run]:
        many = {"clients": 24, "partition": "dirichlet", "alpha": 0.3}
        tables = {
            "data": many,
            "train": {"block_clients": 4},
            **tables,
            "server": {"clients_per_round": 11, **tables["server"]},
        }
        runs = []
        for name, app in {"blocks": client_app, "single": alone(client_app)}.items():
            out = {"out": str(tmp_path / name)}
            runs.append(run_inline(make_experiment(run=out, **tables), app))
        return runs[0], runs[1]

    return run


@pytest.mark.parametrize("level", ["off", "light", "full"])
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedmedian", "qfedavg"])
def test_blocks_change_no_bit_no_byte_and_no_count(
    run_both: Callable[..., tuple[Run, Run]], strategy: str, level: str
) -> None:
    blocks, single = run_both(
        server={"strategy": strategy},
        measure={"level": level, "device": "" if level == "off" else "phone"},
    )
    assert blocks.manifest.model_sha256 == single.manifest.model_sha256
    for row, name in ((ClientRow, "clients"), (LayerRow, "layers"), (RoundRow, "rounds")):
        ours, theirs = (counted(row, getattr(run, name)) for run in (blocks, single))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-13, atol=0)
    if level != "off":
        assert (blocks.clients.cohort > 1).any()
        assert (single.clients.cohort == 1).all()


def test_the_clocks_of_a_block_are_shared_out_by_steps(
    run_both: Callable[..., tuple[Run, Run]],
) -> None:
    blocks, _ = run_both(server={})
    of_a_round = blocks.clients[blocks.clients["round"] == 2]
    shares = of_a_round.cpu_seconds / of_a_round.steps
    groups = shares.round(12).nunique()
    assert 1 <= groups < len(of_a_round)
    assert (of_a_round.cpu_seconds > 0).all()


def test_clients_whose_training_diverges_are_left_out_of_the_sum(
    make_experiment: Make, run_inline: RunInline, client_app: ClientApp, tmp_path: Path
) -> None:
    """Two clients hold features that overflow; both ways they alone are refused."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((240, 12)).astype(np.float32)
    client = np.repeat(np.arange(12), 20)
    x[np.isin(client, (3, 7))] = 3e38
    np.savez(tmp_path / "data.npz", x=x, y=draw.integers(0, 3, 240), client=client)
    data = {
        "dataset": "file",
        "path": str(tmp_path / "data.npz"),
        "client": "client",
        "partition": "natural",
        "clients": 12,
        "test_fraction": 0.01,
    }
    runs = []
    for name, app in {"blocks": client_app, "single": alone(client_app)}.items():
        tables = {"server": {"clients_per_round": 12, "evaluate_every": 5}}
        tables |= {"data": data, "run": {"out": str(tmp_path / name)}}
        runs.append(run_inline(make_experiment(experiment={"rounds": 1}, **tables), app))
    pd.testing.assert_frame_equal(*(run.clients[["client", "status", "error"]] for run in runs))
    status = runs[0].clients.set_index("client").status
    assert list(status.index[status == "rejected"]) == [3, 7]
    assert "holds NaN" in runs[0].clients.error[3]
    for name, array in runs[0].arrays().items():
        assert array.tobytes() == runs[1].arrays()[name].tobytes()


FAULTS: dict[str, Callable[[Message], None]] = {
    "other clients": lambda r: r.content[flower.COLUMNS].update({"partition-ids": [0, 1]}),
    "no arrays": lambda r: r.content.pop(flower.SUM),
    "no figures": lambda r: r.content.pop(flower.FIGURES),
    "another name": lambda r: r.content[flower.SUM].update(
        {"extra": r.content[flower.SUM]["output.bias"]}
    ),
    "another type": lambda r: r.content[flower.SUM].update(
        flower.encode_arrays({"output.bias": np.zeros(10, np.float32)})
    ),
    "another shape": lambda r: r.content[flower.SUM].update(
        flower.encode_arrays({"output.bias": np.zeros(11)})
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_reply_of_a_block_is_rejected_and_recorded(
    make_experiment: Make, run_inline: RunInline, client_app: ClientApp, fault: str
) -> None:
    first: list[str] = []

    def spoil(reply: Message) -> None:
        if not first:
            first.append(fault)
            FAULTS[fault](reply)

    data, server = {"clients": 12}, {"clients_per_round": 12}
    run = run_inline(
        make_experiment(
            data=data, server=server, train={"block_clients": 4}, experiment={"rounds": 1}
        ),
        spoiled(client_app, spoil),
    )
    rejected = run.clients[run.clients.status == "rejected"]
    assert 0 < len(rejected) < 12
    assert rejected.error.str.startswith("a block's reply: ").all()
    assert run.status == "completed"


def test_an_exception_in_a_block_harms_its_client_alone(
    make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    wrong = ClientApp()

    @wrong.train(flower.COHORT)
    def train(message: Message, context: Context) -> Message:
        if 4 in flower.asked_clients(message):
            raise OSError("the disk is full")
        return client_app(message, context)

    server = {"clients_per_round": 8}
    run = run_inline(make_experiment(server=server, experiment={"rounds": 1}), wrong)
    status = run.clients.set_index("client").status
    assert status.to_dict() == {c: "failed" if c == 4 else "ok" for c in range(8)}
    assert "OSError: the disk is full" in run.clients.error[4]
