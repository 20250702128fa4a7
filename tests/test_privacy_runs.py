"""Whole runs under a promise: what they write and say, and that no engine changes a bit of them."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from fedsim import parts, simulation
from fedsim.config import Experiment
from fedsim.errors import RunFailed
from fedsim.federation.sampling import draw_clients
from fedsim.ledger.read import Run, load
from fedsim.measure.payload import difference
from fedsim.privacy.clipping import UNIT, add_noise, update_norm
from fedsim.privacy.noise import source_of
from fedsim.training import read_arrays
from server.promise import chooser

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]
CLI = Callable[..., Any]
FEDSIM = str(Path(sys.executable).parent / "fedsim")

NOISE: dict[str, Any] = {
    "level": "user",
    "clipping_norm": 0.5,
    "noise_multiplier": 0.3,
    "delta": 0.01,
    "accountant": "rdp",
    "reproducible_noise": True,
}
LEVELS: dict[str, dict[str, Any]] = {
    "user": NOISE,
    "adaptive": NOISE | {"clipping": "adaptive"},
    "noise by clients": NOISE | {"noise_by": "clients", "secure_aggregation": True},
    "larger cohort": NOISE | {"noise_cohort": 40},
    "local": NOISE | {"level": "local"},
    "example": NOISE | {"level": "example", "noise_multiplier": 1.0, "delta": 1e-4},
}
CLIPPED = {"clipping_norm", "clipped_fraction"}
NOISED = {"noise_std", "epsilon"}
COLUMNS: dict[str, set[str]] = {
    "user": CLIPPED | NOISED | {"signal_to_noise"},
    "adaptive": CLIPPED | NOISED | {"signal_to_noise"},
    "noise by clients": NOISED,
    "larger cohort": CLIPPED | NOISED | {"signal_to_noise"},
    "local": NOISED,
    "example": {"epsilon"},
}
EVERY = CLIPPED | NOISED | {"signal_to_noise"}


def settings(privacy: dict[str, Any], rounds: int = 3) -> list[str]:
    """Return the small federation of these tests as options of ``fedsim run``."""
    keys = {
        "experiment.rounds": rounds,
        "data.clients": 8,
        "server.clients_per_round": 4,
        "model.width": 8,
        "train.batch_size": 32,
        "engine.name": "inline",
        **{f"privacy.{key}": value for key, value in privacy.items()},
    }
    said = {k: str(v).lower() if isinstance(v, bool) else v for k, v in keys.items()}
    return [part for key, value in said.items() for part in ("-s", f"{key}={value}")]


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_writes_its_columns_and_its_guarantee(
    level: str, make_experiment: Make, run_inline: RunInline
) -> None:
    # Behind masks no round may draw too few to hide among.
    server = {"clients_per_round": 8 if level == "noise by clients" else 4}
    run = run_inline(make_experiment(privacy=LEVELS[level], server=server))
    assert (run.status, run.last_round) == ("completed", 3)
    filled = {name for name in EVERY if run.rounds[name].notna().any()}
    assert filled == COLUMNS[level]
    assert run.rounds[sorted(filled)].notna().all(axis=None)
    assert run.rounds.epsilon.is_monotonic_increasing
    clipped = "clipping_norm" in filled
    assert run.clients.clip_scale.notna().all() == clipped
    if clipped:
        assert run.clients.clip_scale.between(0, 1).all()
        share = (run.clients.clip_scale < 1).groupby(run.clients["round"]).mean()
        assert run.rounds.clipped_fraction.tolist() == share.tolist()
    said = run.manifest.guarantee or ""
    assert "delta = 0.01" in said or "delta = 0.0001" in said
    assert "whoever knows the seed" in said


def test_the_command_says_what_it_promises(cli: CLI, tmp_path: Path) -> None:
    options = settings(NOISE)
    answer = cli("run", *options, "--out", "told", "-q")
    assert answer.code == 0
    stored = json.loads((tmp_path / "told" / "manifest.json").read_text())["guarantee"]
    assert stored.startswith("(epsilon = ")
    assert stored in " ".join(answer.out.split())
    summary = cli("run", *options, "--out", "json", "-q", "--format", "json").json
    assert summary["guarantee"] == stored
    assert summary["epsilon"] == load(tmp_path / "json").rounds.epsilon.iloc[-1]


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_noise_from_the_seed_is_the_same_on_any_engine(
    workers: int, make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    engine = {"name": "ray", "workers": workers}
    with closing(simulation.open_engine(make_experiment(engine=engine))) as executor:
        for level in ("user", "adaptive", "local", "example"):
            privacy, out = LEVELS[level], {"out": str(tmp_path / f"ray-{level}")}
            inline = run_inline(
                make_experiment(privacy=privacy, run={"out": str(tmp_path / f"inline-{level}")})
            )
            simulation.simulate(make_experiment(privacy=privacy, engine=engine, run=out), executor)
            assert load(out["out"]).manifest.model_sha256 == inline.manifest.model_sha256


@pytest.mark.parametrize("level", ["user", "adaptive", "example"])
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_single_messages_give_the_bits_of_blocks(
    level: str, strategy: str, make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    """Also a clip's weight, which is made of the same norm, wherever that is taken."""
    tables = {"privacy": LEVELS[level], "server": {"strategy": strategy}}
    blocks = run_inline(make_experiment(**tables))
    singles = run_inline(
        make_experiment(**tables, update={"packed": True}, run={"out": str(tmp_path / "single")})
    )
    assert blocks.manifest.model_sha256 == singles.manifest.model_sha256
    for column in ("clip_scale", "update_norm", "steps"):
        assert blocks.clients[column].equals(singles.clients[column])
    for column in ("clipped_fraction", "signal_to_noise", "clipping_norm"):
        assert blocks.rounds[column].equals(singles.rounds[column])


@pytest.mark.parametrize("level", ["user", "noise by clients", "local", "example"])
def test_noise_that_nobody_knows_differs_from_run_to_run(
    level: str, make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    secret = LEVELS[level] | {"reproducible_noise": False}
    everybody = {"clients_per_round": 8}  # so that it is not the draw
    runs = [
        run_inline(
            make_experiment(privacy=secret, server=everybody, run={"out": str(tmp_path / name)})
        )
        for name in ("one", "two")
    ]
    assert runs[0].manifest.model_sha256 != runs[1].manifest.model_sha256
    assert "seed" not in (runs[0].manifest.guarantee or "")


def test_draws_that_nobody_knows_differ_from_run_to_run(make_experiment: Make) -> None:
    experiment = make_experiment(privacy=NOISE | {"reproducible_noise": False})
    cohorts = [[chooser(experiment, 8)(round) for round in range(1, 21)] for _ in range(2)]
    assert cohorts[0] != cohorts[1]


def listened(app: ClientApp, heard: dict[int, dict[str, np.ndarray]]) -> ClientApp:
    """Return an app of single messages, whose models are written down by client."""
    wrapped = ClientApp()

    @wrapped.train()
    def train(message: Message, context: Context) -> Message:
        reply = app(message, context)
        arrays = reply.content.array_records["arrays"]
        client = int(context.node_config["partition-id"])
        heard[client] = {name: array.numpy() for name, array in arrays.items()}
        return reply

    return wrapped


def test_a_round_of_two_clients_by_hand(
    make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    """w + (sum_i min(1, C / |D_i|) D_i + N(0, (z C)^2)) / 2, with one of the two cut."""
    tables: dict[str, Any] = {
        "experiment": {"rounds": 1},
        "data": {"clients": 2, "partition": "quantity", "size_sigma": 2.0},
        "server": {"clients_per_round": 2},
    }
    norm, z = 0.6, 0.3
    privacy = NOISE | {"clipping_norm": norm, "noise_multiplier": z, "delta": 0.1}
    experiment = make_experiment(**tables, privacy=privacy)
    heard: dict[int, dict[str, np.ndarray]] = {}
    run = run_inline(experiment, listened(client_app, heard))
    before = read_arrays(parts.initial_model(experiment))
    updates = [difference(heard[client], before) for client in (0, 1)]
    lengths = [update_norm(update) for update in updates]
    assert min(lengths) < norm < max(lengths)
    scales = [min(1.0, norm / length) for length in lengths]
    noise = add_noise(
        {name: np.zeros_like(array) for name, array in before.items()},
        z * norm,
        source_of(0, "noise", round=1),
    )
    for name, array in before.items():
        mean = sum(s * u[name].astype(float) for s, u in zip(scales, updates, strict=True))
        expected = array + (mean + noise[name]) / 2
        np.testing.assert_allclose(run.arrays()[name], expected, rtol=0, atol=1e-6)
    assert run.clients.clip_scale.tolist() == [np.floor(s * UNIT) / UNIT for s in scales]
    assert run.rounds.noise_std.tolist() == [z * norm / 2]
    assert run.rounds.clipped_fraction.tolist() == [0.5]


def test_cohorts_are_binomial(make_experiment: Make) -> None:
    """Eight clients, each with probability one half: 4 of them on average, and a variance of 2."""
    choose = chooser(make_experiment(privacy=NOISE), 8)
    cohorts = [choose(round) for round in range(1, 2001)]
    sizes = np.array([len(cohort) for cohort in cohorts])
    assert abs(sizes.mean() - 4) < 5 * np.sqrt(2 / 2000)
    assert abs(sizes.var() - 2) < 5 * 2 * np.sqrt(2 / 2000)
    taken = np.bincount([client for cohort in cohorts for client in cohort], minlength=8)
    assert (abs(taken - 1000) < 5 * np.sqrt(500)).all()
    assert all(cohort == sorted(set(cohort)) for cohort in cohorts)
    assert {len(choose(round)) for round in range(1, 2001)} >= {0, 8}


def drawn(seed: int, round: int, probability: float) -> list[int]:
    source = source_of(seed, "sampling", round=round)
    return draw_clients(source, clients=8, probability=probability)


def test_a_round_that_nobody_is_drawn_for_is_noise_alone(
    make_experiment: Make, run_inline: RunInline
) -> None:
    seed = next(s for s in range(100) if not drawn(s, 1, 1 / 8) and drawn(s, 2, 1 / 8))
    experiment = make_experiment(
        privacy=NOISE, experiment={"rounds": 2, "seed": seed}, server={"clients_per_round": 1}
    )
    run = run_inline(experiment)
    assert run.rounds.clients_trained.tolist() == [0, len(drawn(seed, 2, 1 / 8))]
    assert run.rounds.clients_failed.tolist() == [0, 0]
    assert run.clients["round"].tolist() == [2] * len(run.clients)
    assert run.rounds.noise_std.tolist() == [0.3 * 0.5] * 2
    assert run.rounds.signal_to_noise[0] == 0.0
    assert run.rounds.clipped_fraction.isna().tolist() == [True, False]
    assert run.rounds.test_accuracy.notna().all()
    assert run.rounds.epsilon.is_monotonic_increasing  # it is spent all the same


def test_the_model_of_an_empty_round_is_the_last_one_with_noise(
    make_experiment: Make, run_inline: RunInline
) -> None:
    seed = next(s for s in range(100) if not drawn(s, 1, 1 / 8))
    experiment = make_experiment(
        privacy=NOISE, experiment={"rounds": 1, "seed": seed}, server={"clients_per_round": 1}
    )
    run = run_inline(experiment)
    before = read_arrays(parts.initial_model(experiment))
    expected = add_noise(before, 0.3 * 0.5, source_of(seed, "noise", round=1))
    for name, array in run.arrays().items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6)


def test_who_is_left_out_is_told_of_and_changes_no_noise(
    make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    whole = run_inline(make_experiment(privacy=NOISE))
    run = run_inline(
        make_experiment(
            privacy=NOISE, server={"left_out": "0,1,2"}, run={"out": str(tmp_path / "without")}
        )
    )
    assert run.clients.client.tolist() == whole.clients.client.tolist()  # drawn as before
    absent = run.clients.client < 3
    assert absent.any()
    assert (run.clients.status[absent] == "failed").all()
    assert run.clients.error[absent].str.startswith("left out").all()
    assert run.clients.clip_scale.notna().equals(~absent)
    assert run.rounds.noise_std.tolist() == whole.rounds.noise_std.tolist()
    assert run.rounds.epsilon.tolist() == whole.rounds.epsilon.tolist()


def broken(app: ClientApp, change: Callable[[Message, Message], None]) -> ClientApp:
    """Return an app of single messages whose good replies are changed, or that raises."""
    wrapped = ClientApp()

    @wrapped.train()
    def train(message: Message, context: Context) -> Message:
        reply = app(message, context)
        change(message, reply)
        return reply

    return wrapped


def test_updates_of_zero_are_no_error(
    make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    def stay(message: Message, reply: Message) -> None:
        came = message.content.array_records["arrays"]
        reply.content["arrays"] = ArrayRecord(dict(came))

    run = run_inline(make_experiment(privacy=NOISE), broken(client_app, stay))
    assert (run.status, run.last_round) == ("completed", 3)
    assert (run.clients.clip_scale == 1).all()
    assert run.rounds.clipped_fraction.tolist() == [0.0] * 3
    assert (run.rounds.signal_to_noise < 1e-6).all()


def diverging(message: Message, reply: Message) -> None:
    """Send what is not finite."""
    arrays = {name: a.numpy() for name, a in reply.content.array_records["arrays"].items()}
    spoilt = {name: Array(np.full_like(a, np.nan)) for name, a in arrays.items()}
    reply.content["arrays"] = ArrayRecord(spoilt)


@pytest.mark.parametrize("in_blocks", [True, False])
def test_updates_that_are_all_rejected_end_no_run_that_protects_users(
    in_blocks: bool, make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    """That they are is of people's data: whether the run goes on must not tell of one of them."""
    rate = {"train": {"learning_rate": 1e30}} if in_blocks else {}
    app = client_app if in_blocks else broken(client_app, diverging)
    run = run_inline(make_experiment(privacy=NOISE, **rate), app)
    assert (run.status, run.last_round) == ("completed", 3)
    assert (run.clients.status == "rejected").all()
    assert run.rounds.clients_trained.tolist() == [0] * 3
    assert run.rounds.signal_to_noise.tolist() == [0.0] * 3
    for level in ("local", "example"):
        experiment = make_experiment(
            privacy=LEVELS[level], run={"out": f"{run.path}-{level}"}, **rate
        )
        with pytest.raises(RunFailed, match=r"clients gave a usable update"):
            run_inline(experiment, broken(client_app, diverging))


@pytest.mark.parametrize("level", sorted(set(LEVELS) - {"noise by clients"}))
def test_a_round_whose_clients_all_drop_out_fails(
    level: str, make_experiment: Make, run_inline: RunInline, client_app: ClientApp
) -> None:
    def fail(message: Message, reply: Message) -> None:
        raise OSError("the disk is full")

    experiment = make_experiment(privacy=LEVELS[level])
    with pytest.raises(RunFailed, match=r"round 1: none of \d clients gave a usable update"):
        run_inline(experiment, broken(client_app, fail))
    run = load(experiment.run.out)
    assert (run.clients.status == "failed").all()
    assert run.status == "failed"
    assert run.rounds.empty


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_strategy_with_a_memory_is_given_the_same_noised_mean(
    strategy: str, make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    plain = run_inline(make_experiment(privacy=NOISE))
    run = run_inline(
        make_experiment(
            privacy=NOISE, server={"strategy": strategy}, run={"out": str(tmp_path / strategy)}
        )
    )
    assert run.status == "completed"
    assert run.manifest.model_sha256 != plain.manifest.model_sha256
    first = ["clipping_norm", "clipped_fraction", "noise_std", "signal_to_noise", "epsilon"]
    assert run.rounds[first].iloc[0].equals(plain.rounds[first].iloc[0])
    assert np.isfinite(run.rounds.test_loss).all()


@pytest.mark.parametrize(
    ("level", "strategy"),
    [("user", "fedadam"), ("adaptive", "fedavg"), ("adaptive", "fedavgm"), ("local", "fedavg")],
)
def test_a_run_that_breaks_off_goes_on_with_the_same_bits(
    level: str,
    strategy: str,
    make_experiment: Make,
    run_inline: RunInline,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With the norm that adaptive clipping had come to, and the noise of the rounds to come."""
    import server.app

    tables: dict[str, Any] = {
        "privacy": LEVELS[level],
        "server": {"strategy": strategy},
        "experiment": {"rounds": 4},
    }
    straight = run_inline(make_experiment(**tables, run={"out": str(tmp_path / "straight")}))

    def interrupt(row: Any, rounds: int) -> None:
        if row.round == 2:
            raise KeyboardInterrupt

    experiment = make_experiment(**tables)
    with monkeypatch.context() as patch:
        patch.setattr(server.app, "report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_inline(experiment)
    assert load(experiment.run.out).last_round == 2
    run = run_inline(make_experiment(**tables, run={"out": experiment.run.out, "resume": True}))
    assert run.manifest.model_sha256 == straight.manifest.model_sha256
    for column in COLUMNS[level] - {"epsilon"}:
        assert run.rounds[column].tolist() == straight.rounds[column].tolist()
    # With other noise what was done again would count again, see test_spending.py.
    assert run.rounds.epsilon.tolist() == straight.rounds.epsilon.tolist()
    assert run.manifest.guarantee == straight.manifest.guarantee
    if level == "adaptive":
        assert run.rounds.clipping_norm.nunique() == 4


def rounds_in(out: Path) -> int:
    """Count the committed rounds, also while they are written."""
    try:
        with sqlite3.connect(f"file:{out / 'ledger.sqlite'}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM rounds").fetchone()[0])
    except sqlite3.Error:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("level", ["user", "adaptive"])
def test_a_kill_changes_no_bit_of_a_run_with_noise_from_the_seed(
    level: str, tmp_path: Path
) -> None:
    options = [*settings(LEVELS[level], rounds=200), "-q", "--format", "json"]
    alone = subprocess.run(
        [FEDSIM, "run", *options, "--out", str(tmp_path / "alone")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert alone.returncode == 0, alone.stderr
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [FEDSIM, "run", *options, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and rounds_in(out) < 3:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert 3 <= load(out).last_round < 200
    done = subprocess.run(
        [FEDSIM, "run", "--resume", str(out), "-q", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, two = json.loads(alone.stdout), json.loads(done.stdout)
    assert one["model_sha256"] == two["model_sha256"]
    assert one["guarantee"] == two["guarantee"]
