"""The experiment of McMahan et al. 2017 in small: the 2NN on real MNIST, dealt both ways."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedsim import config
from fedsim.vocabulary import vocabulary

pytestmark = pytest.mark.data

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEDSIM_DATA_DIR") or ROOT.parent / "shared" / "data")


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="no real data: set FEDSIM_DATA_DIR")
@pytest.mark.parametrize(
    ("partition", "least_accuracy"), [("iid", 0.88), ("shards", 0.4)], ids=["iid", "shards"]
)
def test_the_2nn_learns_mnist(partition, least_accuracy, run_inline, tmp_path):
    settings = [
        *("experiment.rounds=3", f"data.partition={partition}", "engine.name=inline"),
        *(f"run.data_dir={DATA}", f"run.out={tmp_path / 'run'}"),
    ]
    experiment = config.read(ROOT / "configs" / "mnist.toml", settings, vocabulary=vocabulary())
    run = run_inline(experiment)
    assert run.rounds.test_accuracy.iloc[-1] > least_accuracy
    assert set(run.clients.examples) == {600}
    assert set(run.clients.steps) == {60}
    assert set(run.clients.dense_bytes) == {4 * 199_210}
    assert list(run.rounds.uplink_dense_bytes) == [10 * 4 * 199_210] * 3
