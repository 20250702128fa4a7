"""Updates and models through codecs, from the client's state to the server's model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedsim import codecs, flower
from fedsim.config import Experiment
from fedsim.engine.apps import assume_identity
from fedsim.errors import ConfigError
from fedsim.federation.billing import crossed, pulled
from fedsim.federation.replies import Rejected
from fedsim.federation.transport import moved
from fedsim.ledger.read import Run
from fedsim.measure.payload import difference

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]
Out = Callable[[str], dict[str, str]]
CODECS = ("float16", "int8", "topk", "drive")


@pytest.fixture
def out(tmp_path: Path) -> Out:
    return lambda name: {"out": str(tmp_path / name)}


@pytest.mark.parametrize("coder", ["zstd", "entropy"])
def test_a_lossless_coder_changes_no_bit(
    make_experiment: Make, run_inline: RunInline, out: Out, coder: str
) -> None:
    plain = run_inline(make_experiment(run=out("plain")))
    coded = run_inline(make_experiment(update={"coder": coder}, run=out("coded")))
    assert coded.manifest.model_sha256 == plain.manifest.model_sha256
    assert coded.rounds.uplink_bytes.sum() < plain.rounds.uplink_bytes.sum()


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_sends_less_and_still_learns(
    make_experiment: Make, run_inline: RunInline, out: Out, codec: str
) -> None:
    model = {"width": 64}
    plain = run_inline(make_experiment(model=model, run=out("plain")))
    coded = run_inline(
        make_experiment(
            model=model,
            update={"codec": codec, "coder": "zstd"},
            run=out(codec),
            measure={"level": "full"},
        )
    )
    assert (coded.clients.status == "ok").all()
    saved = coded.rounds.uplink_bytes.sum() / plain.rounds.uplink_bytes.sum()
    assert saved < {"float16": 0.75, "int8": 0.6, "topk": 0.5, "drive": 0.45}[codec]
    assert (coded.clients.dense_bytes == plain.clients.dense_bytes).all()
    assert coded.clients.codec_error.between(1e-6, 1).all()
    assert coded.rounds.test_loss.iloc[-1] < coded.rounds.test_loss.iloc[0]


@pytest.mark.parametrize("codec", CODECS)
def test_the_server_s_model_is_what_was_sent(
    make_experiment: Make, client_app: ClientApp, run_inline: RunInline, codec: str
) -> None:
    """One client, one round: the new model is the old one plus the decoded update."""
    sent: list[tuple[bytes, RecordDict]] = []
    app = ClientApp()

    @app.query(flower.PARTITION)
    def query(message: Message, context: object) -> Message:
        return client_app(message, context)

    @app.train()
    def train(message: Message, context: object) -> Message:
        content = message.content
        reply = client_app(message, context)
        sent.append((flower.decode_payload(reply.content.array_records[flower.CODED]), content))
        return reply

    experiment = make_experiment(
        experiment={"rounds": 1},
        server={"clients_per_round": 1},
        update={"codec": codec},
    )
    run = run_inline(experiment, app)
    ((payload, content),) = sent
    before = flower.decode_arrays(content.array_records[flower.ARRAYS])
    update = codecs.decode(payload, before)
    for name, array in run.arrays().items():
        np.testing.assert_array_equal(array, before[name] + update[name])


def test_what_topk_left_out_is_added_next_time(
    make_experiment: Make, run_inline: RunInline, out: Out
) -> None:
    one = {"clients": 2}
    with_memory, without = (
        run_inline(
            make_experiment(
                experiment={"rounds": 6},
                data=one,
                server={"clients_per_round": 2},
                update={"codec": "topk", "topk_fraction": 0.02, "error_feedback": feedback},
                run=out(f"feedback-{feedback}"),
            )
        )
        for feedback in (True, False)
    )
    first = with_memory.clients["round"] == 1
    assert with_memory.clients.loss_last_step[first].equals(without.clients.loss_last_step[first])
    assert with_memory.manifest.model_sha256 != without.manifest.model_sha256
    assert with_memory.rounds.test_loss.iloc[-1] < without.rounds.test_loss.iloc[-1]


@pytest.mark.parametrize("codec", ["none", "topk"])
@pytest.mark.parametrize("downlink", ["float16", "int8"])
def test_a_coded_downlink_keeps_the_server_s_precision(
    make_experiment: Make, run_inline: RunInline, out: Out, downlink: str, codec: str
) -> None:
    plain = run_inline(make_experiment(run=out("plain")))
    coded = run_inline(
        make_experiment(update={"downlink": downlink, "codec": codec}, run=out("coded"))
    )
    half = coded.rounds.downlink_bytes.sum() / plain.rounds.downlink_bytes.sum()
    assert half < {"float16": 0.75, "int8": 0.65}[downlink]
    assert (coded.rounds.downlink_dense_bytes == plain.rounds.downlink_dense_bytes).all()
    # Were the model itself rounded every round, its values would be float16's.
    weights = coded.arrays()["dense1.weight"]
    assert (weights != weights.astype(np.float16)).mean() > 0.5
    assert coded.rounds.test_loss.iloc[-1] == pytest.approx(
        plain.rounds.test_loss.iloc[-1], rel=0.1
    )


@pytest.mark.parametrize("spoil", ["cut", "flip", "other", "missing"])
def test_a_damaged_payload_is_rejected_and_recorded(
    make_experiment: Make, client_app: ClientApp, run_inline: RunInline, spoil: str
) -> None:
    app = ClientApp()

    @app.query(flower.PARTITION)
    def query(message: Message, context: object) -> Message:
        return client_app(message, context)

    @app.train()
    def train(message: Message, context: object) -> Message:
        reply = client_app(message, context)
        if context.node_config["partition-id"] % 2:
            return reply
        payload = flower.decode_payload(reply.content.array_records[flower.CODED])
        middle = len(payload) // 2
        damaged = {
            "cut": payload[:-1],
            "flip": payload[:middle] + bytes([payload[middle] ^ 4]) + payload[middle + 1 :],
            "other": codecs.encode(
                {"w": np.ones(3, np.float32)},
                codec="float16",
                coder="none",
                zstd_level=3,
                topk_fraction=1.0,
                rng=np.random.default_rng(0),
            ),
            "missing": b"",
        }[spoil]
        reply.content[flower.CODED] = flower.encode_payload(damaged) if damaged else ArrayRecord()
        return reply

    run = run_inline(
        make_experiment(server={"clients_per_round": 8}, update={"codec": "int8"}), app
    )
    odd = run.clients.client % 2 == 1
    assert (run.clients.status[odd] == "ok").all()
    assert (run.clients.status[~odd] == "rejected").all()
    assert run.clients.error[~odd].str.startswith("coded: ").all()
    assert run.status == "completed"


def test_training_that_diverges_is_not_encoded_and_billed_all_the_same(
    make_experiment: Make, run_inline: RunInline
) -> None:
    from fedsim.errors import RunFailed
    from fedsim.ledger.read import load

    experiment = make_experiment(train={"learning_rate": 1e30}, update={"codec": "topk"})
    with pytest.raises(RunFailed, match=r"rejected: coded: .*lower train\.learning_rate"):
        run_inline(experiment)
    clients = load(experiment.run.out).clients
    assert (clients.status == "rejected").all()
    assert clients[["steps", "cpu_seconds", "train_flops", "wire_bytes"]].notna().all(axis=None)
    assert clients.dense_bytes.isna().all()


def test_arrays_that_are_no_floats_travel_as_they_are() -> None:
    before = {"w": np.ones(2, np.float32), "flag": np.array([True, False]), "n": np.array([3])}
    after = {"w": np.zeros(2, np.float32), "flag": np.array([False, False]), "n": np.array([5])}
    update = difference(after, before)
    assert update["w"].tolist() == [-1, -1]
    for name in ("flag", "n"):
        np.testing.assert_array_equal(update[name], after[name])
    restored = moved(before, update)
    for name, array in after.items():
        np.testing.assert_array_equal(restored[name], array)
        assert restored[name].dtype == array.dtype


def test_an_update_that_overflows_the_model_is_rejected_alone() -> None:
    """Else one client's finite update would make the round's model infinite."""
    model = {"w": np.full(2, 3e38, np.float32)}
    with pytest.raises(Rejected, match="w overflows where the update is added to the model"):
        moved(model, model)


def test_a_lossless_coder_shortens_the_model_s_way_down_too(
    make_experiment: Make, run_inline: RunInline, out: Out
) -> None:
    plain = run_inline(make_experiment(run=out("plain")))
    coded = run_inline(make_experiment(update={"coder": "zstd"}, run=out("coded")))
    assert coded.rounds.downlink_bytes.sum() < plain.rounds.downlink_bytes.sum()
    assert coded.manifest.model_sha256 == plain.manifest.model_sha256


@pytest.mark.parametrize(
    ("code", "crosses"),
    [
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, True),
        (ErrorCode.LOAD_CLIENT_APP_EXCEPTION, True),
        (ErrorCode.CLIENT_APP_CRASHED, True),
        (ErrorCode.UNKNOWN, False),
        (ErrorCode.MESSAGE_UNAVAILABLE, False),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, False),
        (ErrorCode.NODE_UNAVAILABLE, False),
    ],
)
def test_an_error_is_billed_where_it_came_over_the_wire(code: int, crosses: bool) -> None:
    assume_identity(1)
    request = Message(RecordDict(), 1, "train")
    reply = Message(Error(code=code, reason="why"), reply_to=request)
    assert crossed(reply) == crosses
    assert pulled(reply) == (code != ErrorCode.NODE_UNAVAILABLE)


@pytest.mark.parametrize(
    "update", [{"codec": "int8"}, {"coder": "zstd"}, {"downlink": "float16"}], ids=str
)
def test_scaffold_needs_exact_models(make_experiment: Make, update: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="control variates"):
        make_experiment(server={"strategy": "scaffold"}, update=update)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6.0).reshape(2, 3),
        np.array(3),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
        np.ones((3, 4, 5), ">f4"),
    ],
)
def test_arrays_are_serialised_as_flower_does(values: np.ndarray) -> None:
    flowers, ours = Array(values), flower.encode_array(values)
    assert vars(ours) == vars(flowers)
    assert flower.decode_array(ours).tobytes() == values.tobytes()
    turned = np.asarray(values.T, order="C")
    assert flower.encode_array(turned).numpy().tolist() == values.T.tolist()


def test_objects_are_not_serialised() -> None:
    with pytest.raises(ValueError, match="objects"):
        flower.encode_array(np.array([None]))
