"""Secure aggregation through Flower's messages: sums that are right, and nothing beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedsim.config import Experiment
from fedsim.engine import SimulationGrid
from fedsim.errors import ConfigError, RunFailed
from fedsim.federation.rounds import RoundFailed
from fedsim.flower import METRICS, SECURE
from fedsim.ledger.read import Run, load
from fedsim.privacy.secagg import FixedPoint
from fedsim.records import ClientRow, figures

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]
# From what was sent, its stage and its client, and the reply, to what arrives in its place.
Tamper = Callable[[Message, int, int, Message], Message | None]

ALL = 5
TABLES: dict[str, dict[str, Any]] = {
    "experiment": {"rounds": 1},
    "data": {"clients": ALL},
    "server": {"clients_per_round": ALL},
    "privacy": {"secure_aggregation": True},
}
STAGES = ("advertise keys", "share keys", "masked input", "unmask")
SAID = {
    *("dense_bytes", "wire_bytes", "downlink_dense_bytes", "downlink_wire_bytes"),
    *("secure_uplink_bytes", "secure_downlink_bytes", "secure_cpu_seconds"),
}


def merged(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {**TABLES.get(name, {}), **changes.get(name, {})} for name in TABLES | changes}


def stage_of(message: Message) -> int:
    return int(message.content.config_records[SECURE]["kind"]) // 2  # type: ignore[arg-type]


@pytest.fixture
def tampered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tamper], None]:
    """Put somebody between the clients and the server who may swallow or change replies."""
    genuine = SimulationGrid.send_and_receive

    def tamper_with(tamper: Tamper) -> None:
        def send_and_receive(
            self: SimulationGrid, messages: Iterable[Message], *, timeout: float | None = None
        ) -> list[Message]:
            sent = list(messages)
            came = list(genuine(self, sent, timeout=timeout))
            by_id = {message.metadata.message_id: message for message in sent}
            arriving = []
            for reply in came:
                request = by_id[reply.metadata.reply_to_message_id]
                client = request.metadata.dst_node_id - 1
                arriving.append(tamper(request, stage_of(request), client, reply))
            return [reply for reply in arriving if reply is not None]

        monkeypatch.setattr(SimulationGrid, "send_and_receive", send_and_receive)

    return tamper_with


def swallow(stage: int, clients: Sequence[int]) -> Tamper:
    return lambda sent, at, client, reply: (
        None if (at, client in clients) == (stage, True) else reply
    )


def fail(stage: int, clients: Sequence[int]) -> Tamper:
    def tamper(sent: Message, at: int, client: int, reply: Message) -> Message:
        if at == stage and client in clients:
            return Message(Error(code=0, reason="OSError: the disk is full"), reply_to=sent)
        return reply

    return tamper


def rewrite(stage: int, client: int, change: Callable[[dict[str, Any]], object]) -> Tamper:
    """Return what changes the record of one client's reply in one stage."""

    def tamper(sent: Message, at: int, who: int, reply: Message) -> Message:
        if (at, who) == (stage, client):
            record = dict(reply.content.config_records[SECURE])
            change(record)
            reply.content[SECURE] = ConfigRecord(record)
        return reply

    return tamper


def plain_run(make: Make, run: RunInline, out: Path, *absent: int, **changes: Any) -> Run:
    """Run the same without masks; some clients are left out."""
    left_out = ",".join(map(str, absent))
    server = {"weighting": "equal", "left_out": left_out, **changes.pop("server", {})}
    off = {"secure_aggregation": False}
    return run(make(**merged(server=server, privacy=off, run={"out": str(out)}, **changes)))


def furthest(one: Run, two: Run) -> float:
    """Return the largest difference of any parameter."""
    a, b = one.arrays(), two.arrays()
    return max(float(np.abs(a[n].astype(np.float64) - b[n]).max()) for n in a)


def resolution(clients: int) -> float:
    """Return how far a mean of secure updates may be from the plain one, after a round.

    Each update is cut to whole steps of 2^-f, which moves the mean by less than one; then each of
    the two models, with parameters below 2, is rounded to float32 once, by half of 2^-23.
    """
    f = FixedPoint.fitting(value_range=8.0, clients=clients).fraction_bits
    return 2.0**-f + 2.0**-23


def test_the_model_is_that_of_the_plain_mean_to_the_resolution(
    make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    secure = run_inline(make_experiment(**TABLES))
    plain = plain_run(make_experiment, run_inline, tmp_path / "plain")
    assert furthest(secure, plain) <= resolution(ALL)
    assert secure.status == "completed"


def test_rounds_later_it_is_still_close(
    make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    three = {"rounds": 3}
    secure = run_inline(make_experiment(**merged(experiment=three)))
    plain = plain_run(make_experiment, run_inline, tmp_path / "plain", experiment=three)
    assert furthest(secure, plain) < 1e-5
    assert secure.rounds.test_accuracy.tolist() == plain.rounds.test_accuracy.tolist()


def test_the_ledger_says_nothing_of_what_a_client_trained_on(
    make_experiment: Make, run_inline: RunInline
) -> None:
    run = run_inline(make_experiment(**TABLES))
    filled = {name for name in figures(ClientRow) if run.clients[name].notna().any()}
    assert filled == SAID
    assert run.clients[sorted(SAID)].notna().all(axis=None)
    # Clients with different data look alike.
    constant = sorted(SAID - {"secure_cpu_seconds"})
    assert (run.clients[constant].nunique() <= 2).all()  # an id or a length may take a digit more
    row = run.rounds.iloc[0]
    assert row.secure_wall_seconds > 0
    assert run.rounds[["train_flops", "cpu_seconds"]].isna().all(axis=None)
    assert (row.clients_trained, row.clients_failed) == (ALL, 0)


def test_a_reply_holds_masked_words_and_nothing_that_depends_on_the_data(
    make_experiment: Make,
    run_inline: RunInline,
    tampered: Callable[[Tamper], None],
    tmp_path: Path,
) -> None:
    """Of two identical runs a client's words have nothing in common; all else is the same."""
    seen: list[tuple[int, int, dict[str, Any], set[str]]] = []

    def listen(sent: Message, stage: int, client: int, reply: Message) -> Message:
        content = reply.content
        assert set(content) == {SECURE, METRICS}
        metrics = set(content.metric_records[METRICS])
        seen.append((stage, client, dict(content.config_records[SECURE]), metrics))
        return reply

    tampered(listen)
    for name, seed in (("one", 0), ("two", 0), ("other data", 1)):
        out = {"out": str(tmp_path / name)}
        run_inline(make_experiment(**merged(run=out, experiment={"seed": seed})))
    assert len(seen) == 3 * 4 * ALL
    assert all(metrics <= {"secure_cpu_seconds"} for *_, metrics in seen)
    runs = [[entry for entry in seen if entry[0] == 2][k * ALL : (k + 1) * ALL] for k in range(3)]
    for (_, client, one, _), (_, same, two, _), (_, _, other, _) in zip(*runs, strict=True):
        assert client == same
        assert set(one) == {"version", "kind", "run", "round", "client", "word_bits", "words"}
        for name in ("version", "kind", "round", "client", "word_bits"):
            assert one[name] == two[name] == other[name]
        assert len(one["words"]) == len(two["words"]) == len(other["words"])
        words = [np.frombuffer(r["words"], np.uint8) for r in (one, two)]
        assert np.mean(words[0] == words[1]) < 0.02  # 1/256 by chance
        bits = np.unpackbits(words[0] ^ words[1])
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)


@pytest.mark.parametrize("way", [swallow, fail])
@pytest.mark.parametrize("stage", range(4))
def test_a_client_that_drops_out_is_recovered_from(
    stage: int,
    way: Callable[[int, Sequence[int]], Tamper],
    make_experiment: Make,
    run_inline: RunInline,
    tampered: Callable[[Tamper], None],
    tmp_path: Path,
) -> None:
    gone = [1] if stage < 3 else []  # whose masked input came is in the sum
    plain = plain_run(make_experiment, run_inline, tmp_path / "plain", *gone)
    tampered(way(stage, [1]))
    run = run_inline(make_experiment(**TABLES))
    assert furthest(run, plain) <= resolution(ALL)
    expected = ["ok"] * ALL
    if stage < 3:
        expected[1] = "timeout" if way is swallow else "failed"
    assert run.clients.status.tolist() == expected
    told = "no reply within" if way is swallow else "the disk is full"
    assert told in run.clients.error[1]
    assert run.clients.error.notna().sum() == 1


@pytest.mark.parametrize("stage", range(4))
def test_too_many_that_drop_out_end_the_round_cleanly(
    stage: int,
    make_experiment: Make,
    run_inline: RunInline,
    tampered: Callable[[Tamper], None],
) -> None:
    experiment = make_experiment(**TABLES)
    tampered(fail(stage, [0, 1, 2]))
    named = rf"round 1: .*aborted at stage {stage} \({STAGES[stage]}\)"
    with pytest.raises(RoundFailed, match=named):
        run_inline(experiment)
    run = load(experiment.run.out)
    assert (run.status, run.last_round) == ("failed", 0)
    assert run.clients.client.tolist() == list(range(ALL))
    assert run.clients.status.tolist() == ["failed"] * ALL
    assert run.clients.error[:3].str.contains("the disk is full").all()
    assert run.clients.error[3:].str.contains("aborted at stage").all()


def test_a_round_that_ended_is_repeated_with_fresh_keys(
    make_experiment: Make,
    run_inline: RunInline,
    monkeypatch: pytest.MonkeyPatch,
    tampered: Callable[[Tamper], None],
    tmp_path: Path,
) -> None:
    runs: list[bytes] = []

    def breaks(sent: Message, stage: int, client: int, reply: Message) -> Message | None:
        record = sent.content.config_records[SECURE]
        runs.append(record["run"])  # type: ignore[arg-type]
        return None if record["round"] == 2 and stage == 2 else reply

    two = {"rounds": 2}
    experiment = make_experiment(**merged(experiment=two))
    with monkeypatch.context() as patch:
        genuine = SimulationGrid.send_and_receive
        tampered(breaks)
        with pytest.raises(RoundFailed, match=r"round 2: .*masked input"):
            run_inline(experiment)
        patch.setattr(SimulationGrid, "send_and_receive", genuine)
        before = set(runs)
        listened = len(runs)
        tampered(lambda s, at, c, r: runs.append(s.content.config_records[SECURE]["run"]) or r)
        again = {"out": experiment.run.out, "resume": True}
        run = run_inline(make_experiment(**merged(experiment=two, run=again)))
    assert len(before) == 1
    assert before.isdisjoint(runs[listened:])
    assert (run.status, run.last_round) == ("completed", 2)
    plain = plain_run(make_experiment, run_inline, tmp_path / "plain", experiment=two)
    assert furthest(run, plain) < 1e-5


def refused(run: Run, client: int, text: str) -> None:
    """Hold that one client was refused for this reason, and all others were summed."""
    status = ["ok"] * ALL
    status[client] = "rejected"
    assert run.clients.status.tolist() == status
    assert text in run.clients.error[client]


@pytest.mark.parametrize("stage", range(3))
def test_a_replayed_reply_is_refused(
    stage: int,
    make_experiment: Make,
    run_inline: RunInline,
    tampered: Callable[[Tamper], None],
) -> None:
    old: dict[int, dict[str, Any]] = {}

    def replay(sent: Message, at: int, client: int, reply: Message) -> Message:
        if (at, client) == (stage, 2):
            record = dict(reply.content.config_records[SECURE])
            reply.content[SECURE] = ConfigRecord(old.setdefault(stage, record))
        return reply

    tampered(replay)
    run = run_inline(make_experiment(**merged(experiment={"rounds": 2})))
    first, second = run.clients[:ALL], run.clients[ALL:].reset_index()
    assert (first.status == "ok").all()
    assert second.status.tolist() == ["ok", "ok", "rejected", "ok", "ok"]
    assert "replayed" in second.error[2]


@pytest.mark.parametrize("stage", range(3))
def test_a_reply_in_another_client_s_name_is_refused(
    stage: int,
    make_experiment: Make,
    run_inline: RunInline,
    tampered: Callable[[Tamper], None],
) -> None:
    tampered(rewrite(stage, 3, lambda record: record.update(client=0)))
    refused(run_inline(make_experiment(**TABLES)), 3, "in the name of client 0")


DAMAGE: dict[str, tuple[int, Callable[[dict[str, Any]], object], str]] = {
    "no key": (0, lambda r: r.pop("mask_key"), "mask_key"),
    "a short key": (0, lambda r: r.update(share_key=b"short"), "share_key"),
    "another's shape": (0, lambda r: r.update(kind=3), "kind"),
    "a later version": (0, lambda r: r.update(version=99), "version"),
    "one box less": (1, lambda r: r.update(others=r["others"][1:]), "boxes"),
    "a box for a stranger": (1, lambda r: r.update(others=[*r["others"][:-1], 77]), "77"),
    "text for words": (2, lambda r: r.update(words="0123"), "words"),
    "one word less": (2, lambda r: r.update(words=r["words"][:-4]), "words"),
    "half a word": (2, lambda r: r.update(words=r["words"][:-2]), "words"),
    "one field more": (2, lambda r: r.update(examples=7), "examples"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_reply_is_refused_and_harms_nobody(
    kind: str,
    make_experiment: Make,
    run_inline: RunInline,
    tampered: Callable[[Tamper], None],
) -> None:
    stage, change, text = DAMAGE[kind]
    tampered(rewrite(stage, 3, change))
    refused(run_inline(make_experiment(**TABLES)), 3, text)


def test_a_reply_without_its_record_is_refused(
    make_experiment: Make, run_inline: RunInline, tampered: Callable[[Tamper], None]
) -> None:
    def empty(sent: Message, stage: int, client: int, reply: Message) -> Message:
        gone = (stage, client) == (1, 3)
        return Message(RecordDict(), reply_to=sent) if gone else reply

    tampered(empty)
    refused(run_inline(make_experiment(**TABLES)), 3, SECURE)


def last_word(more: int) -> Callable[[dict[str, Any]], object]:
    """Return what makes a masked input count as so many clients more."""

    def change(record: dict[str, Any]) -> None:
        words = np.frombuffer(record["words"], "<u4").copy()
        words[-1:] += np.array([more]).astype(np.uint32)
        record["words"] = words.tobytes()

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: r.update(words=bytes(len(r["words"]))), "something other than an encoded"),
        (last_word(100), "something other than an encoded vector"),
        (last_word(-1), "4 updates are counted in a sum of 5"),
    ],
)
def test_a_sum_that_cannot_be_one_of_updates_ends_the_round(
    change: Callable[[dict[str, Any]], object],
    text: str,
    make_experiment: Make,
    run_inline: RunInline,
    tampered: Callable[[Tamper], None],
) -> None:
    experiment = make_experiment(**TABLES)
    tampered(rewrite(2, 3, change))
    with pytest.raises(RoundFailed, match=text):
        run_inline(experiment)
    run = load(experiment.run.out)
    assert run.clients.status.tolist() == ["failed"] * ALL  # nobody knows whose it was


def test_a_diverged_update_is_kept_out_by_its_own_client(
    make_experiment: Make, run_inline: RunInline
) -> None:
    experiment = make_experiment(**merged(train={"learning_rate": 1e30}))
    with pytest.raises(RunFailed, match="masked input"):
        run_inline(experiment)
    assert load(experiment.run.out).clients.error.str.contains("lower train.learning_rate").all()


def test_too_few_who_have_data_are_not_asked(
    make_experiment: Make,
    run_inline: RunInline,
    tampered: Callable[[Tamper], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import server.app

    locate = server.app.locate_clients
    without = dict.fromkeys(range(3), "no data")
    monkeypatch.setattr(
        server.app, "locate_clients", lambda *a, **k: replace(locate(*a, **k), left_out=without)
    )
    tampered(lambda *_: pytest.fail("somebody was asked"))
    experiment = make_experiment(**merged())
    with pytest.raises(RoundFailed, match="round 1: none of 5 clients"):
        run_inline(experiment)
    errors = load(experiment.run.out).clients.error
    assert errors[:3].str.startswith("left out").all()
    assert errors[3:].str.startswith("not asked: secure aggregation hides").all()


NOISE = {
    "level": "user",
    "clipping_norm": 0.5,
    "noise_multiplier": 1.0,
    "delta": 0.01,
    "accountant": "rdp",
    "reproducible_noise": True,
}


def test_masks_change_nothing_about_noise_at_the_server(
    make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    privacy = {**NOISE, "secure_aggregation": True}
    secure = run_inline(make_experiment(**merged(privacy=privacy)))
    plain = run_inline(
        make_experiment(
            **merged(
                privacy={**NOISE, "secure_aggregation": False}, run={"out": str(tmp_path / "plain")}
            )
        )
    )
    assert (secure.clients.status == "ok").all()
    assert furthest(secure, plain) < 1e-6
    assert secure.rounds.noise_std.tolist() == plain.rounds.noise_std.tolist() == [0.1]
    assert secure.rounds.epsilon.tolist() == plain.rounds.epsilon.tolist()
    assert "only in sums" in (secure.manifest.guarantee or "")


def test_clients_share_the_noise_beneath_their_masks(
    make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    by_clients = {**NOISE, "secure_aggregation": True, "noise_by": "clients"}
    plenty = {"width": 128}
    secure = run_inline(make_experiment(**merged(privacy=by_clients, model=plenty)))
    tiny = {**NOISE, "secure_aggregation": True, "noise_multiplier": 0.01}
    quiet = run_inline(
        make_experiment(**merged(privacy=tiny, model=plenty, run={"out": str(tmp_path / "quiet")}))
    )
    assert secure.rounds.noise_std.tolist() == pytest.approx([0.1])
    one, two = secure.arrays(), quiet.arrays()
    noise = np.concatenate([(one[n] - two[n]).ravel() for n in one])
    assert noise.std() == pytest.approx(0.1, rel=0.05)  # 9,610 parameters: 0.7%
    assert "Clients add the noise" in (secure.manifest.guarantee or "")


def test_a_draw_that_is_too_small_to_hide_in_is_noise_alone(
    make_experiment: Make, run_inline: RunInline, monkeypatch: pytest.MonkeyPatch
) -> None:
    import server.promise

    cohorts = iter([[0, 1, 2], [1, 4], [0, 2, 3, 4]])
    monkeypatch.setattr(server.promise, "draw_clients", lambda *_, **__: next(cohorts))
    privacy = {**NOISE, "secure_aggregation": True}
    run = run_inline(make_experiment(**merged(privacy=privacy, experiment={"rounds": 3})))
    assert run.rounds.clients_trained.tolist() == [3, 0, 4]
    alone = run.clients[run.clients["round"] == 2]
    assert alone.error.str.startswith("not asked: secure aggregation hides").all()
    assert run.rounds.noise_std.tolist() == [0.1] * 3


def test_a_federation_whose_draws_may_be_too_small_is_refused(
    make_experiment: Make, run_inline: RunInline
) -> None:
    privacy = {**NOISE, "secure_aggregation": True}
    experiment = make_experiment(**merged(privacy=privacy, server={"clients_per_round": 3}))
    with pytest.raises(ConfigError, match=r"draws fewer than 3, .*; ask more clients a round"):
        run_inline(experiment)
    assert not Path(experiment.run.out).exists()


def test_secrets_of_clients_never_reach_the_run_directory(
    make_experiment: Make,
    run_inline: RunInline,
    monkeypatch: pytest.MonkeyPatch,
    tampered: Callable[[Tamper], None],
) -> None:
    """A client that is cut off in the midst keeps its secrets, in a state that is not stored."""
    secrets: set[bytes] = set()
    grids: list[SimulationGrid] = []
    collect = SimulationGrid._collect

    def watched(self: SimulationGrid, deadline: float) -> None:
        collect(self, deadline)
        grids.append(self)
        for state in self.client_states.values():
            kept = state.config_records[SECURE]
            secrets.update(kept[k] for k in ("mask_private", "share_private", "seed"))  # type: ignore[misc]

    monkeypatch.setattr(SimulationGrid, "_collect", watched)
    tampered(swallow(1, [4]))
    experiment = make_experiment(**merged(experiment={"rounds": 2}))
    run = run_inline(experiment)
    secrets.discard(b"")
    assert len(secrets) >= 3 * ALL
    stored = [p.read_bytes() for p in Path(experiment.run.out).rglob("*") if p.is_file()]
    assert stored
    assert not [secret for secret in secrets for content in stored if secret in content]
    left = {k: v for k, s in grids[-1].client_states.items() for k, v in s.config_records.items()}
    assert run.clients.status[4] == "timeout"
    assert set(left) == {SECURE}


@pytest.mark.ray
def test_ray_gives_the_sum_of_the_inline_engine(
    make_experiment: Make, run_inline: RunInline, tmp_path: Path
) -> None:
    from fedsim import simulation

    two = {"rounds": 2}
    inline = run_inline(make_experiment(**merged(experiment=two)))
    changes = {"run": {"out": str(tmp_path / "ray")}, "engine": {"name": "ray", "workers": 2}}
    experiment = make_experiment(**merged(experiment=two, **changes))
    executor = simulation.open_engine(experiment)
    try:
        simulation.simulate(experiment, executor)
    finally:
        executor.close()
    run = load(experiment.run.out)
    # Masks are whole numbers, and cancel: whatever they were, the sum is the same to the bit.
    assert run.manifest.model_sha256 == inline.manifest.model_sha256
