"""Whole rounds through the real apps: what goes wrong at clients, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Context, Message
from flwr.clientapp import ClientApp

from fedsim import parts
from fedsim.config import Experiment
from fedsim.engine import InlineExecutor, SimulationGrid
from fedsim.errors import RunFailed
from fedsim.federation import sampling
from fedsim.federation.asking import Part
from fedsim.federation.evaluation import examine
from fedsim.federation.rounds import RoundFailed, RoundOutcome, federated_rounds
from fedsim.federation.sampling import Whereabouts
from fedsim.federation.strategy import make_aggregator
from fedsim.federation.transport import Transport
from fedsim.ledger.read import Run, load
from fedsim.settings import UpdateTable
from fedsim.training import load_arrays, read_arrays
from server.asker import asker

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]
Fault = Callable[[Message], None]
MODEL_BYTES = (64 * 8 + 8 + 8 * 10 + 10) * 4


def spoiled(app: ClientApp, fault: Fault, *, clients: Iterable[int], first: int = 1) -> ClientApp:
    """Return an app in which some clients' answers are spoiled, from one round on.

    ``fault`` changes the good answer in place, or raises.
    """
    wrong = ClientApp()
    bad = set(clients)

    @wrong.train()
    def train(message: Message, context: Context) -> Message:
        reply = app(message, context)
        round = int(message.content.config_records["config"]["server-round"])
        if context.node_config["partition-id"] in bad and round >= first:
            fault(reply)
        return reply

    return wrong


def raise_error(reply: Message) -> None:
    raise OSError("the disk is full")


def fill(value: float) -> Fault:
    """Return what puts a value into the middle of the first array."""

    def fault(reply: Message) -> None:
        record = reply.content.array_records["arrays"]
        array = record["dense1.weight"].numpy()
        array[4, 7] = value
        record["dense1.weight"] = Array(array)

    return fault


def transpose(reply: Message) -> None:
    record = reply.content.array_records["arrays"]
    record["output.weight"] = Array(record["output.weight"].numpy().T)


def rename(reply: Message) -> None:
    record = reply.content.array_records["arrays"]
    record["classifier.weight"] = record.pop("output.weight")


def garble(reply: Message) -> None:
    record = reply.content.array_records["arrays"]
    good = record["dense1.bias"]
    record["dense1.bias"] = Array(good.dtype, good.shape, good.stype, good.data[:-3])


def claim_nothing(reply: Message) -> None:
    reply.content.metric_records["metrics"]["num-examples"] = 0


def add_metric(reply: Message) -> None:
    reply.content.metric_records["metrics"]["temperature"] = 36.6


FAULTS: dict[str, tuple[Fault, str, str]] = {
    "exception": (raise_error, "failed", "OSError: the disk is full"),
    "nan": (fill(np.nan), "rejected", "arrays: dense1.weight holds NaN"),
    "infinity": (fill(np.inf), "rejected", "arrays: dense1.weight holds infinity"),
    "shape": (transpose, "rejected", "arrays: output.weight has shape (8, 10), not (10, 8)"),
    "names": (rename, "rejected", "arrays: wrong names; missing ['output.weight']"),
    "bytes": (garble, "rejected", "arrays: cannot be decoded"),
    "no examples": (claim_nothing, "rejected", "metric num-examples = 0"),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def digest(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("kind", FAULTS)
def test_one_bad_client_is_written_down_and_left_out(
    kind: str, make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    fault, status, text = FAULTS[kind]
    everybody = {"clients_per_round": 8}
    run = run_inline(
        make_experiment(server=everybody), spoiled(client_app, fault, clients=[3], first=2)
    )
    assert run.status == "completed"
    assert run.rounds.clients_trained.tolist() == [8, 7, 7]
    assert run.rounds.clients_failed.tolist() == [0, 1, 1]
    bad = run.clients[run.clients.status != "ok"]
    assert list(zip(bad["round"], bad.client, bad.status, strict=True)) == [
        (2, 3, status),
        (3, 3, status),
    ]
    assert bad.error.str.startswith(text).all()
    assert run.clients.error.isna().sum() == 22
    assert np.isfinite(run.rounds.test_loss).all()


@pytest.mark.parametrize("kind", FAULTS)
def test_figures_count_what_was_done(
    kind: str, make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    """Bytes and seconds of an update that was refused were spent all the same."""
    fault, _, _ = FAULTS[kind]
    run = run_inline(
        make_experiment(server={"clients_per_round": 8}, experiment={"rounds": 1}),
        spoiled(client_app, fault, clients=[3]),
    )
    # What a rejected update holds is not known; its message is counted all the same.
    replied = 7 if kind == "exception" else 8
    row = run.rounds.iloc[0]
    assert row.downlink_dense_bytes == 8 * MODEL_BYTES
    assert row.uplink_dense_bytes == 7 * MODEL_BYTES
    assert row.downlink_bytes == run.clients.downlink_wire_bytes.sum() > 8 * MODEL_BYTES
    assert row.uplink_bytes == run.clients.wire_bytes.sum() > 7 * MODEL_BYTES
    assert run.clients.steps.count() == (7 if kind == "no examples" else replied)
    assert run.clients.dense_bytes.count() == 7
    assert row.cpu_seconds == pytest.approx(run.clients.cpu_seconds.sum(), rel=1e-12)
    assert row.wall_seconds >= run.clients.wall_seconds.sum()


def outcomes(
    experiment: Experiment, app: ClientApp, choose: Callable[[int], list[int]]
) -> list[RoundOutcome]:
    """Run the rounds alone, with cohorts of our choice."""
    grid = SimulationGrid(InlineExecutor(app), nodes=8, run_config=experiment.flat())
    model = parts.initial_model(experiment)
    arrays = read_arrays(model)
    x, y = (torch.from_numpy(part) for part in parts.dataset(experiment).test())
    aggregator = make_aggregator(experiment, arrays, clients=8)
    at = Whereabouts(node_of=grid.node_of)
    transport = Transport(update=UpdateTable(), seed=0)

    def cut(clients: Sequence[int]) -> list[Part]:
        return [Part(places=np.arange(len(clients)))]

    return list(
        federated_rounds(
            aggregator,
            arrays,
            first=1,
            last=experiment.experiment.rounds,
            choose=choose,
            ask=asker(experiment, grid, at, aggregator=aggregator, transport=transport, cut=cut),
            cut=cut,
            at=at,
            learning_rate=lambda round: 0.1,
            level=lambda round: "light",
            transport=transport,
            evaluate=lambda arrays, level: examine(
                load_arrays(model, arrays), x, y, level=level, activation="relu", seed=0
            ),
            evaluate_every=1,
        )
    )


STRATEGIES = ("fedavg", "fedavgm", "fedadam", "fedmedian", "krum", "bulyan", "qfedavg", "scaffold")
ABSENT = [(kind, "fedavg") for kind in FAULTS] + [("nan", name) for name in STRATEGIES[1:]]


@pytest.mark.parametrize(("kind", "strategy"), ABSENT)
def test_a_bad_client_changes_no_bit_of_the_model(
    kind: str, strategy: str, make_experiment: Make, client_app: ClientApp
) -> None:
    experiment = make_experiment(server={"strategy": strategy}, experiment={"rounds": 2})
    app = spoiled(client_app, FAULTS[kind][0], clients=[3])
    bad = outcomes(experiment, app, lambda round: [0, 1, 3, 5, 7])
    absent = outcomes(experiment, client_app, lambda round: [0, 1, 5, 7])
    assert [digest(one.arrays) for one in bad] == [digest(one.arrays) for one in absent]
    assert [one.row.clients_failed for one in bad] == [1, 1]


def test_an_extra_metric_changes_nothing(make_experiment: Make, client_app: ClientApp) -> None:
    experiment = make_experiment()
    app = spoiled(client_app, add_metric, clients=[3])
    more = outcomes(experiment, app, lambda round: [0, 3, 5])
    plain = outcomes(experiment, client_app, lambda round: [0, 3, 5])
    assert [digest(one.arrays) for one in more] == [digest(one.arrays) for one in plain]
    notes = [[row.error for row in one.clients] for one in more]
    assert notes == [[None, "ignored metrics: temperature", None]] * 3
    assert all(row.status == "ok" for one in more for row in one.clients)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "scaffold"])
def test_a_round_without_any_update_fails_and_is_repeated(
    strategy: str,
    make_experiment: Make,
    run_inline: RunInline,
    client_app: ClientApp,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tables = {"server": {"strategy": strategy}, "experiment": {"rounds": 4}}
    experiment = make_experiment(**tables)
    broken = spoiled(client_app, raise_error, clients=range(8), first=3)
    with pytest.raises(RoundFailed, match="round 3: none of 4 clients gave a usable update"):
        run_inline(experiment, broken)
    failed = load(experiment.run.out)
    assert (failed.status, failed.last_round) == ("failed", 2)
    assert "4 x failed: OSError: the disk is full" in (failed.manifest.error or "")
    last = failed.clients[failed.clients["round"] == 3]
    assert last.status.tolist() == ["failed"] * 4

    resumed = run_inline(make_experiment(**tables, run={"out": experiment.run.out, "resume": True}))
    elsewhere = str(tmp_path_factory.mktemp("straight") / "run")
    straight = run_inline(make_experiment(**tables, run={"out": elsewhere}))
    assert (resumed.status, resumed.last_round) == ("completed", 4)
    assert resumed.manifest.model_sha256 == straight.manifest.model_sha256
    assert resumed.rounds.test_loss.tolist() == straight.rounds.test_loss.tolist()
    assert resumed.clients.status.tolist() == ["ok"] * 16


def test_the_commonest_reason_is_the_one_that_is_told(
    make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    app = spoiled(client_app, raise_error, clients=[2])
    app = spoiled(app, claim_nothing, clients=[0, 1, 3, 4, 5, 6, 7])
    text = "round 1: none of 8 clients gave a usable update; 7 x rejected: metric num-examples = 0"
    with pytest.raises(RunFailed, match=text):
        run_inline(make_experiment(server={"clients_per_round": 8}), app)


def test_clients_that_take_too_long(make_experiment: Make, run_inline: RunInline) -> None:
    experiment = make_experiment(server={"round_timeout_seconds": 1e-9})
    with pytest.raises(RunFailed, match="4 x timeout: no reply within 1e-09 s"):
        run_inline(experiment)
    assert load(experiment.run.out).clients.status.tolist() == ["timeout"] * 4


def test_too_few_updates_for_krum(
    make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    server = {"strategy": "krum", "clients_per_round": 8, "byzantine_clients": 2}
    experiment = make_experiment(server=server)
    app = spoiled(client_app, raise_error, clients=[0, 1], first=2)
    with pytest.raises(RunFailed, match=r"round 2: krum needs 7 updates .* 6 could be used"):
        run_inline(experiment, app)
    run = load(experiment.run.out)
    assert (run.status, run.last_round) == ("failed", 1)
    assert run.clients[run.clients["round"] == 2].status.tolist() == ["failed"] * 2 + ["ok"] * 6


DIVERGING: list[tuple[dict[str, dict[str, Any]], str]] = [
    (
        {"train": {"learning_rate": 1e30}},
        r"none of 4 clients gave a usable update; 4 x rejected: arrays: \S+ holds NaN "
        r"\(if training diverged, lower train.learning_rate\)",
    ),
    (
        {"server": {"strategy": "fedavgm", "learning_rate": 1e36}},
        "the test loss is nan; training diverged: lower train.learning_rate or server",
    ),
    (
        {"server": {"strategy": "fedavgm", "learning_rate": 1e100}},
        "the aggregated model is not finite in dense1.weight.*; training diverged: lower",
    ),
    (
        {"server": {"strategy": "scaffold", "learning_rate": 1e300}},
        "the aggregated model is not finite in dense1.weight.*; training diverged: lower",
    ),
]


@pytest.mark.parametrize(("tables", "text"), DIVERGING)
def test_a_diverging_run_fails_and_leaves_no_nan(
    tables: dict[str, dict[str, Any]], text: str, make_experiment: Make, run_inline: RunInline
) -> None:
    experiment = make_experiment(**tables)
    with pytest.raises(RoundFailed, match=text):
        run_inline(experiment)
    run = load(experiment.run.out)
    assert run.status == "failed"
    assert run.rounds.notna().all(axis=None)
    assert all(np.isfinite(array).all() for array in run.arrays().values())
    assert run.clients["round"].max() == run.last_round + 1  # those who show why


def test_the_model_is_tested_now_and_then_and_at_the_end(
    make_experiment: Make, run_inline: RunInline
) -> None:
    run = run_inline(make_experiment(experiment={"rounds": 5}, server={"evaluate_every": 2}))
    assert run.rounds.test_accuracy.notna().tolist() == [False, True, False, True, True]
    assert run.rounds.test_loss.notna().tolist() == [False, True, False, True, True]


def test_everybody_may_take_part(make_experiment: Make, run_inline: RunInline) -> None:
    run = run_inline(make_experiment(server={"clients_per_round": 8}))
    assert run.clients.client.tolist() == list(range(8)) * 3


def test_cohorts_are_those_of_the_seed(make_experiment: Make, run_inline: RunInline) -> None:
    run = run_inline(make_experiment(experiment={"seed": 6}))
    for round in (1, 2, 3):
        chosen = run.clients[run.clients["round"] == round].client.tolist()
        assert chosen == sampling.choose_clients(6, round, clients=8, cohort=4)


def test_a_schedule_reaches_the_clients(
    make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    rates = []

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        rates.append(message.content.config_records["config"]["learning-rate"])
        return client_app(message, context)

    run_inline(make_experiment(train={"schedule": "linear", "learning_rate": 0.3}), app)
    assert rates == pytest.approx([0.3] * 4 + [0.2] * 4 + [0.1] * 4, rel=1e-12)


def test_layers_are_measured_where_asked(make_experiment: Make, run_inline: RunInline) -> None:
    run = run_inline(make_experiment(measure={"level": "full"}, experiment={"rounds": 1}))
    after = run.layers[run.layers.phase == "after"]
    assert len(after) == 4 * 2
    total = (after.update_norm**2).groupby(after.client).sum() ** 0.5
    assert total.tolist() == pytest.approx(run.clients.update_norm.tolist(), rel=1e-12)


def test_metrics_are_left_alone(make_experiment: Make, run_inline: RunInline) -> None:
    """Every client's figures are in the ledger as the client gave them."""
    run = run_inline(make_experiment(experiment={"rounds": 1}))
    partition = parts.partition(make_experiment())
    sizes = [len(partition.indices(client)) for client in run.clients.client]
    assert run.clients.examples.tolist() == sizes
    assert run.clients.steps.tolist() == [-(-size // 32) for size in sizes]
    assert (run.clients.update_norm > 0).all()
    assert (run.clients.loss_first_step > 0).all()
