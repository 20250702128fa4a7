"""A federation's data in folders: what is written, what is read, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from fedsim import config, parts
from fedsim.cli import data as command
from fedsim.data import Dataset, Form, Partition, load_dataset
from fedsim.data.card import CARD, Card, read_card
from fedsim.data.folders import EXAMPLES, client_folder, write_server, write_split
from fedsim.data.form import Raw
from fedsim.errors import ConfigError, DataError
from fedsim.vocabulary import vocabulary

CLI = Callable[..., Any]
ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.toml"


def ignore(*_: object) -> None:
    """Show no progress."""


def dataset(examples: int, *, seed: int = 0) -> Dataset:
    """Examples of which no two are alike, of three classes, and four to test on."""
    x = np.random.default_rng(seed).normal(size=(examples + 4, 2, 3, 2)).astype(np.float32)
    y = np.arange(examples + 4) % 3
    return Dataset(
        name="made up",
        x_train=x[4:],
        y_train=y[4:],
        x_test=x[:4],
        y_test=y[:4],
        classes=3,
        class_names=("red", "green", "blue"),
        scale=0.5,
    )


def split(folder: Path, *, clients: int = 3, examples: int = 20) -> Path:
    """Write a split of a made-up dataset and return its folder."""
    dealt = Partition.of(np.arange(examples) % clients, clients)
    write_split(dataset(examples), dealt, folder / "parts", experiment="", advance=ignore)
    return folder / "parts"


def load(path: Path) -> Dataset:
    return load_dataset("split", path=str(path))


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(path)
    return str(caught.value)


# The command.


@pytest.mark.parametrize(
    "changes",
    [
        ("data.partition=dirichlet",),
        ("data.offset=-0.5", "data.validation_fraction=0.2", "data.min_examples=9"),
        ("measure.level=full", "server.strategy=scaffold", "train.batch_size=0"),
    ],
    ids=["dirichlet", "shifted", "scaffold"],
)
def test_a_split_gives_the_model_of_the_experiment_that_it_is_of(
    changes: tuple[str, ...], cli: CLI, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    asked = [*tiny, *(word for change in changes for word in ("-s", change))]
    own = cli("run", QUICKSTART, *asked, "--out", "own", "--format", "json").json
    answer = cli("data", "split", QUICKSTART, *asked, "--out", "parts")
    assert (answer.code, answer.err) == (0, "")
    again = cli("run", "parts/experiment.toml", "--out", "again", "--format", "json").json
    assert again["model_sha256"] == own["model_sha256"]
    for figure in ("test_loss", "uplink_bytes", "downlink_bytes", "train_flops", "local_accuracy"):
        assert again[figure] == own[figure]


def test_what_was_written_is_told(cli: CLI, tiny: tuple[str, ...], tmp_path: Path) -> None:
    answer = cli("data", "split", QUICKSTART, *tiny, "--out", "parts")
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / "parts").glob(f"{kind}*/*"))
        for kind in ("client", "server")
    ]
    lines = [re.sub(" +", " ", line) for line in answer.out.splitlines()]
    assert lines == [
        f"clients 5, 1438 examples, {sizes[0] / 1000:.3g} kB",
        f"server 359 examples, {sizes[1] / 1000:.3g} kB",
        f"folder {tmp_path / 'parts'}",
    ]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        *(f"client-00{client}" for client in range(5)),
        "experiment.toml",
        "server",
    ]


def test_the_experiment_over_the_folders_is_complete_and_otherwise_the_same(
    cli: CLI, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    changed = ("data.offset=-0.5", "train.clip_norm=1.0", "data.test_fraction=0.3", "run.out=there")
    asked = [*tiny, *(word for change in changed for word in ("-s", change))]
    cli("data", "split", QUICKSTART, *asked, "--out", "parts")
    path = tmp_path / "parts" / "experiment.toml"
    words = [word for word in asked if word != "-s"]
    before = config.read(QUICKSTART, words, vocabulary=vocabulary()).flat()
    after = config.read(path, vocabulary=vocabulary()).flat()
    assert {key: value for key, value in after.items() if before[key] != value} == {
        "data.dataset": "split",
        "data.path": str(tmp_path / "parts"),
        "data.partition": "natural",
        "data.offset": 0.0,
        "data.test_fraction": 0.2,
        "run.out": "",
    }
    written = config.flatten(tomllib.loads(path.read_text()))
    assert set(written) == {key for key in after if not key.startswith("run.")}


def test_a_folder_that_holds_something_is_left_alone(
    cli: CLI, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mine").write_text("old")
    (tmp_path / "file").write_text("old")
    for out, words in (("parts", "is not empty; name another"), ("file", "is a file; name a")):
        answer = cli("data", "split", QUICKSTART, *tiny, "--out", out)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(f"error: --out {tmp_path / out}: {words} ")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("data.clients=2000",), "needs 2000 training examples, and there are 1438"),
        (("data.clients=0",), 'data.clients = 0: needs data.partition = "natural"'),
        (("data.partition=natural",), 'data.partition = "natural": the dataset has no client ids'),
        (("data.dataset=mnist", "run.data_dir=nowhere"), "Fetch them: fedsim data fetch mnist"),
    ],
)
def test_what_cannot_be_split_is_refused_before_anything_is_written(
    changes: tuple[str, ...], words: str, cli: CLI, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    asked = [*tiny, *(word for change in changes for word in ("-s", change))]
    answer = cli("data", "split", QUICKSTART, *asked, "--out", "parts")
    assert answer.code == 2
    assert words in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_long_split_says_how_far_it_is(
    cli: CLI, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "LINE_SECONDS", 0.0)
    answer = cli("data", "split", QUICKSTART, *tiny, "--out", "parts")
    assert answer.err.splitlines() == [f"{n} of 5 clients written" for n in (1, 2, 3, 4)]
    assert cli("data", "split", QUICKSTART, *tiny, "--out", "again", "-q").err == ""


# What is written.


@pytest.mark.parametrize(("clients", "last"), [(7, "006"), (999, "998"), (1000, "0999")])
def test_folders_are_named_so_that_they_sort(clients: int, last: str) -> None:
    assert client_folder(clients - 1, clients) == f"client-{last}"


@given(
    owner=st.lists(st.integers(0, 4), min_size=5, max_size=30).map(
        lambda others: np.array([0, 1, 2, 3, 4, *others])
    ),
    pixels=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_what_is_split_is_there_again_client_by_client(
    owner: np.ndarray[Any, Any], pixels: bool
) -> None:
    data, dealt = dataset(len(owner)), Partition.of(owner, 5)
    if pixels:
        x = (np.abs(data.x_train) * 100).astype(np.uint8)
        data = Dataset(**{**vars(data), "x_train": x, "x_test": x[:4]})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_split(data, dealt, out, experiment="", advance=ignore)
        whole, server = load(out), load(out / "server")
        again = Partition.of(np.asarray(whole.clients), 5)
        for client in range(5):
            x, y = data.x_train[dealt.indices(client)], data.y_train[dealt.indices(client)]
            alone = load(out / client_folder(client, 5))
            assert (alone.part, alone.client) == ("client", client)
            held = again.indices(client)
            for found, labels in (
                (whole.x_train[held], whole.y_train[held]),
                (alone.x_train, alone.y_train),
            ):
                assert (found.dtype, found.tobytes()) == (x.dtype, x.tobytes())
                assert (labels.dtype, labels.tolist()) == (np.int64, y.tolist())
            assert len(alone.x_test) == 0
        for part in (whole, server):
            assert part.x_test.tobytes() == data.x_test.tobytes()
            assert part.y_test.tolist() == data.y_test.tolist()
            assert Form.of(part) == Form.of(data)
        assert (server.part, server.x_train.shape) == ("server", (0, 2, 3, 2))
        assert whole.client_names == tuple(client_folder(client, 5) for client in range(5))


def test_no_folder_holds_an_example_of_another(tmp_path: Path) -> None:
    out, data = split(tmp_path, clients=4, examples=40), dataset(40)
    rows = [row.tobytes() for row in data.x_train]
    tests = [row.tobytes() for row in data.x_test]
    for client in range(4):
        folder = out / client_folder(client, 4)
        content = b"".join(path.read_bytes() for path in folder.rglob("*"))
        assert [i for i, row in enumerate(rows) if row in content] == list(range(client, 40, 4))
        assert not [row for row in tests if row in content]
        card = json.loads((folder / CARD).read_text())
        assert (card["client"], card["clients"], card["examples"]) == (client, 4, 10)
        assert "own_file" not in card  # the means of all clients' columns would be there
    others = [out / "server", out / "experiment.toml"]
    content = b"".join(
        p.read_bytes() for top in others for p in [top, *top.rglob("*")] if p.is_file()
    )
    assert not [row for row in rows if row in content]


def test_a_split_that_does_not_get_done_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "parts"
    dealt = Partition.of(np.arange(20) % 3, 3)

    def interrupt(done: int, clients: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_split(dataset(20), dealt, out, experiment="", advance=interrupt)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_split(dataset(20), dealt, out, experiment="", advance=interrupt)
    assert list(out.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"parts: cannot be written: No space left on device"):
        split(tmp_path)
    assert not (tmp_path / "parts").exists()


# What is read is what was written.


def card_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((path / CARD).read_text())
    return values


def edit(path: Path, **changes: Any) -> None:
    values = card_of(path) | changes
    (path / CARD).write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def put_examples(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    """Replace a folder's examples, and what its card says of the file itself."""
    content = save({**load_file(path / EXAMPLES), **arrays})
    (path / EXAMPLES).write_bytes(content)
    edit(
        path,
        sha256=hashlib.sha256(content).hexdigest(),
        examples=len(load_file(path / EXAMPLES)["y"]),
    )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no server": (lambda p: shutil.rmtree(p / "server"), "holds neither dataset.json nor server"),
    "no client": (
        lambda p: shutil.rmtree(p / "client-001"),
        "client-001/dataset.json: no such file",
    ),
    "no card": (lambda p: (p / "client-001" / CARD).unlink(), "client-001/dataset.json: no such"),
    "no examples": (
        lambda p: (p / "client-001" / EXAMPLES).unlink(),
        "client-001/examples.safetensors: no such file",
    ),
    "a client too many": (
        lambda p: shutil.copytree(p / "client-001", p / "client-003"),
        "client-003: the split has 3 clients, client-000 to client-002; remove",
    ),
    "a client twice": (
        lambda p: shutil.copytree(p / "client-001", p / "client-002", dirs_exist_ok=True),
        "client-002/dataset.json: is of client 1 of 3, not of client 2 of 3; make the split anew",
    ),
    "a flipped bit": (
        lambda p: flip(p / "client-001" / EXAMPLES),
        "client-001/examples.safetensors: is not the file that dataset.json describes (SHA-256)",
    ),
    "a flipped bit of the test": (
        lambda p: flip(p / "server" / EXAMPLES),
        "server/examples.safetensors: is not the file that dataset.json describes (SHA-256)",
    ),
    "another form": (
        lambda p: edit(p / "client-001", scale=1.0),
        "client-001/dataset.json: scale is 1.0, not 0.5, as the server's; make the split anew",
    ),
    "other classes": (
        lambda p: edit(p / "client-001", class_names=["red", "blue", "green"]),
        "class_names is ['red', 'blue', 'green'], not ['red', 'green', 'blue'], as the server's",
    ),
    "no example": (
        lambda p: edit(p / "client-001", examples=0),
        "client-001/dataset.json: the client holds no examples",
    ),
    "more than there can be": (
        lambda p: edit(p / "client-001", examples=2**62),
        "client-001/examples.safetensors: is smaller than dataset.json says",
    ),
    "another shape": (
        lambda p: put_examples(p / "client-001", x=np.zeros((7, 12), np.float32)),
        "client-001/examples.safetensors: holds {'x': ('float32', (7, 12))",
    ),
    "another type": (
        lambda p: put_examples(p / "client-001", x=np.zeros((7, 2, 3, 2))),
        "and dataset.json says {'x': ('float32', (7, 2, 3, 2))",
    ),
    "more arrays": (
        lambda p: put_examples(p / "client-001", z=np.zeros(1)),
        "'z': ('float64', (1,))}, and dataset.json says",
    ),
    "no such label": (
        lambda p: put_examples(p / "client-001", y=np.full(7, 3)),
        "client-001/examples.safetensors: label 3 of example 0 is not in 0..2",
    ),
    "not a number": (
        lambda p: put_examples(p / "server", x=np.full((4, 2, 3, 2), np.nan, np.float32)),
        "server/examples.safetensors: holds NaN, infinity",
    ),
    "no JSON": (
        lambda p: (p / "server" / CARD).write_text("{"),
        "server/dataset.json: is no JSON (",
    ),
    "no number": (
        lambda p: (p / "server" / CARD).write_text('{"scale": NaN}'),
        "server/dataset.json: is no JSON (NaN is no number); take the file again",
    ),
    "no object": (
        lambda p: (p / "server" / CARD).write_text("[]"),
        "server/dataset.json: holds no JSON object",
    ),
    "not UTF-8": (
        lambda p: (p / "server" / CARD).write_bytes(b"\xff\xff"),
        "server/dataset.json: is no JSON (",
    ),
    "a later version": (
        lambda p: edit(p / "server", format_version=2),
        "server/dataset.json: format_version is 2; must be 1",
    ),
    "a client's card at the server": (
        lambda p: shutil.copytree(p / "client-001", p / "server", dirs_exist_ok=True),
        "server/dataset.json: is a client's; make the split anew",
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_split_that_is_not_whole_is_refused(kind: str, tmp_path: Path) -> None:
    out = split(tmp_path)
    damage, words = BREAKS[kind]
    load(out)
    damage(out)
    text = refusal(out)
    assert words in text
    assert str(tmp_path) in text


def test_a_file_that_is_no_safetensors_is_no_pickle_either(tmp_path: Path) -> None:
    out = split(tmp_path)
    content = pickle.dumps({"x": 1})
    (out / "client-001" / EXAMPLES).write_bytes(content)
    edit(out / "client-001", sha256=hashlib.sha256(content).hexdigest())
    assert "client-001/examples.safetensors: is no safetensors file" in refusal(out)


FORM = Form(input_shape=(2,), dtype="float32", scale=1.0, class_names=("no", "yes"))
RAW = Raw(
    dtype="float32",
    scale=1.0,
    columns=("age", "dose"),
    label="ill",
    shift=(1.0, 2.0),
    spread=(0.1, 3.0),
)
CARDS = {
    "client": Card(
        role="client", dataset="d", form=FORM, clients=9, client=3, examples=5, sha256="a"
    ),
    "server": Card(
        role="server", dataset="d", form=FORM, clients=9, examples=5, sha256="a", raw=RAW
    ),
    "card": Card(role="card", dataset="é", form=FORM, clients=9, raw=RAW),
}


@pytest.mark.parametrize("role", CARDS)
def test_a_card_is_read_as_it_was_written(role: str, tmp_path: Path) -> None:
    (tmp_path / CARD).write_bytes(CARDS[role].text().encode())
    assert read_card(tmp_path) == CARDS[role]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    role=st.sampled_from(sorted(CARDS)),
    inner=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 30), JSON | st.just(...)), min_size=1, max_size=2),
)
@settings(max_examples=200, deadline=None)
def test_whatever_stands_in_a_card_it_is_read_or_refused(
    role: str, inner: bool, changes: list[tuple[int, Any]]
) -> None:
    """The card's values are replaced, or left out (``...``), one or two at a time."""
    values = json.loads(CARDS[role].text())
    target = values["own_file"] if inner and "own_file" in values else values
    for place, value in changes:
        name = sorted(target)[place % len(target)]
        target[name] = value
        if value is ...:
            del target[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / CARD).write_text(json.dumps(values))
        try:
            card = read_card(path)
        except DataError:  # and nothing else
            return
        (path / CARD).write_bytes(card.text().encode())
        assert read_card(path) == card


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("server", "holds the server's examples alone; a simulation needs"),
        ("client-001", "holds the client's examples alone; a simulation needs"),
    ],
)
def test_a_part_of_a_split_is_not_simulated(
    folder: str, words: str, cli: CLI, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    cli("data", "split", QUICKSTART, *tiny, "--out", "parts")
    answer = cli("run", "parts/experiment.toml", "-s", f"data.path=parts/{folder}", "--out", "a")
    assert answer.code == 2
    assert words in answer.err
    assert not (tmp_path / "a").exists()


def test_nothing_is_held_out_of_a_part(tmp_path: Path) -> None:
    out = split(tmp_path)
    assert len(load_dataset("split", path=str(out), validation_fraction=0.3).y_test) == 6
    for part in ("server", "client-000"):
        with pytest.raises(DataError, match=f"{part} holds the .* examples alone; set it to 0"):
            load_dataset("split", path=str(out / part), validation_fraction=0.3)


def test_the_server_needs_no_examples_but_a_count(tmp_path: Path) -> None:
    out = split(tmp_path)

    def at(folder: str, clients: int) -> config.Experiment:
        flat = {
            "data.dataset": "split",
            "data.partition": "natural",
            "data.path": str(out / folder),
        }
        return config.from_flat(
            flat | {"data.clients": clients, "server.clients_per_round": 1},
            vocabulary=vocabulary(),
        )

    assert parts.clients(at("server", 7)) == 7
    assert parts.initial_model(at("server", 7)) is not None
    with pytest.raises(DataError, match="holds the server's examples alone"):
        parts.clients(at("server", 0))
    with pytest.raises(DataError, match="holds a client's examples; the server needs the folder"):
        parts.clients(at("client-001", 7))


# A client's own file.


HOSPITALS = pd.DataFrame(
    {
        "age": [61.5, 40.0, 33.25, 71.0, 58.0, 29.0, 45.0, 50.0, 66.0, 39.0],
        "dose": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        "ill": ["no", "yes"] * 5,
    }
)


def hand_out(folder: Path, table: pd.DataFrame = HOSPITALS, **options: Any) -> tuple[Dataset, Path]:
    """Return the coordinator's dataset, and a folder with the card that it hands out."""
    table.to_csv(folder / "all.csv", index=False)
    data = load_dataset("file", path=str(folder / "all.csv"), label="ill", **options)
    write_server(data, folder / "out", clients=3, experiment="")
    node = folder / "node"
    shutil.copytree(folder / "out" / "card", node)
    return data, node


def write_own(path: Path, table: pd.DataFrame) -> None:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        np.savez(path, x=table[["age", "dose"]], ill=table["ill"].to_numpy(str))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
@pytest.mark.parametrize(
    "options",
    [{}, {"standardize": True}, {"standardize": True, "offset": 0.25, "validation_fraction": 0.4}],
    ids=["plain", "standardised", "shifted"],
)
def test_a_clients_own_file_becomes_what_the_whole_table_would_have(
    suffix: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """The coordinator's rows, given by a client, are the coordinator's features bit for bit."""
    data, node = hand_out(tmp_path, **options)
    mine = HOSPITALS.iloc[::-1][["ill", "dose", "age"]].assign(ward="b")
    write_own(node / f"examples{suffix}", mine)
    own = load(node)
    assert (own.part, own.client) == ("client", None)
    assert Form.of(own) == Form.of(data) == Form.of(load(tmp_path / "out" / "server"))
    labels = {tuple(x): y for x, y in zip(own.x_train.tolist(), own.y_train.tolist(), strict=True)}
    assert len(labels) == 10
    held = {tuple(x) for x in np.concatenate([data.x_train, data.x_test]).tolist()}
    assert held <= set(labels)
    for x, y in zip(data.x_train.tolist(), data.y_train.tolist(), strict=True):
        assert labels[tuple(x)] == y
    assert load(node / f"examples{suffix}").x_train.tobytes() == own.x_train.tobytes()


def test_the_card_of_the_server_does_too_and_the_file_may_have_any_name(tmp_path: Path) -> None:
    data, node = hand_out(tmp_path)
    shutil.copy(tmp_path / "out" / "server" / CARD, node / CARD)
    write_own(node / "patients of 2026.csv", HOSPITALS)
    own = load(node / "patients of 2026.csv")
    assert own.y_train.tolist() == [0, 1] * 5
    assert Form.of(own) == Form.of(data)


def test_pixels_of_a_clients_own_are_scaled_and_shifted_alike(tmp_path: Path) -> None:
    data = load_dataset("digits", offset=-0.5)
    write_server(data, tmp_path / "out", clients=3, experiment="")
    plain, node = load_dataset("digits"), tmp_path / "out" / "card"
    np.savez(node / "examples.npz", x=plain.x_train[:9, 0], y=plain.y_train[:9])
    own = load(node)
    assert own.x_train.tobytes() == data.x_train[:9].tobytes()
    assert own.y_train.tolist() == data.y_train[:9].tolist()


OWN_BREAKS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "an unknown label": (
        lambda t: t.assign(ill=["no", "yes"] * 4 + ["SECRET", "no"]),
        "1 of 10 labels are none of the card's classes, no, yes; first row 9",
    ),
    "a label that is no class": (
        lambda t: t.assign(ill=[0.123456] * 10),
        "labels are whole numbers, text or booleans, none of them missing",
    ),
    "a missing label": (
        lambda t: t.assign(ill=["no", None] * 5),
        "column 'ill': 5 of 10 rows have no value, first row 2 after the column names",
    ),
    "a missing value": (
        lambda t: t.assign(dose=[1.0, None] * 5),
        "column 'dose': 5 of 10 rows have no value, first row 2 after the column names",
    ),
    "a missing column": (
        lambda t: t.rename(columns={"dose": "SECRET"}),
        "has no column called 'dose'; the card asks for one",
    ),
    "a missing label column": (
        lambda t: t.drop(columns="ill"),
        "has no column called 'ill'; the card asks for one",
    ),
    "text": (
        lambda t: t.assign(dose=["SECRET"] * 10),
        "column 'dose': does not hold numbers alone",
    ),
    "infinity": (lambda t: t.assign(age=[np.inf] * 10), "holds NaN, infinity, or numbers beyond"),
    "no rows": (lambda t: t.iloc[:0], "holds column names but no rows"),
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("kind", OWN_BREAKS)
def test_a_table_of_a_clients_own_that_does_not_fit_is_refused_without_its_values(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    _, node = hand_out(tmp_path)
    change, words = OWN_BREAKS[kind]
    write_own(node / f"examples{suffix}", change(HOSPITALS))
    text = refusal(node)
    assert words in text
    assert str(node / f"examples{suffix}") in text
    assert not re.search("SECRET|0.123456", text)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    _, node = hand_out(tmp_path)
    (node / "examples.csv").write_text("age,dose,dose,ill\n1,2,3,no\n")
    assert "examples.csv: has two columns called 'dose'; the card asks for one" in refusal(node)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((3, 3)), "ill": np.array(["no"] * 3)}, "x has the shape (3, 3); the card"),
        ({"x": np.zeros((0, 2)), "ill": np.array([], str)}, "x has the shape (0, 2); the card"),
        ({"x": np.zeros((3, 2)), "ill": np.array(["no"] * 2)}, "ill has shape (2,) for 3 examples"),
        ({"x": np.zeros((3, 2), np.uint8), "ill": np.array(["no"] * 3)}, "x is uint8; the card"),
        ({"x": np.array([["a", "b"]]), "ill": np.array(["no"])}, "x is <U1; the card asks for"),
        ({"x": np.full((3, 2), np.nan), "ill": np.array(["no"] * 3)}, "holds NaN, infinity"),
        ({"x": np.zeros((3, 2))}, "is no readable .npz file, or lacks"),
        (
            {"x": np.array([[object()] * 2]), "ill": np.array(["no"])},
            "is no readable .npz file, or lacks",
        ),
    ],
)
def test_arrays_of_a_clients_own_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray[Any, Any]], words: str, tmp_path: Path
) -> None:
    _, node = hand_out(tmp_path)
    if arrays["x"].dtype == object:
        arrays["x"] = np.array([[{}] * 2])
    np.savez(node / "examples.npz", **arrays)  # type: ignore[arg-type]
    text = refusal(node)
    assert words in text
    assert str(node / "examples.npz") in text


def test_a_folder_holds_one_file_of_examples(tmp_path: Path) -> None:
    _, node = hand_out(tmp_path)
    assert "holds a card but no examples: one of examples.safetensors, examples.csv" in refusal(
        node
    )
    write_own(node / "examples.csv", HOSPITALS)
    write_own(node / "examples.parquet", HOSPITALS)
    assert "holds examples.csv, examples.parquet; leave one of them there" in refusal(node)
    (node / "patients.txt").write_text("")
    assert "is no .csv, .parquet, .npz file" in refusal(node / "patients.txt")
    shutil.copy(tmp_path / "out" / "server" / EXAMPLES, node / EXAMPLES)
    for suffix in ("csv", "parquet"):
        (node / f"examples.{suffix}").unlink()
    assert "the card beside it describes no such file" in refusal(node)


def test_examples_that_were_dealt_are_not_replaced_by_others(tmp_path: Path) -> None:
    client = split(tmp_path) / "client-001"
    (client / EXAMPLES).unlink()
    write_own(client / "examples.csv", HOSPITALS)
    assert "the card beside it is of examples that were dealt; put the card" in refusal(client)


@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        (HOSPITALS.assign(sex=["f", "m"] * 5), {}, "column 'sex' holds text or booleans"),
        (HOSPITALS, {"missing": "impute"}, 'data.missing = "impute" fills gaps from rows'),
    ],
    ids=["text", "imputed"],
)
def test_a_table_that_no_card_describes_is_dealt_but_not_asked_of_clients(
    table: pd.DataFrame, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no client can bring a file of its own") as caught:
        hand_out(tmp_path, table, **options)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()
    data = load_dataset("file", path=str(tmp_path / "all.csv"), label="ill", **options)
    dealt = Partition.of(np.arange(len(data.y_train)) % 2, 2)
    write_split(data, dealt, tmp_path / "out", experiment="", advance=ignore)
    assert Form.of(load(tmp_path / "out")) == Form.of(data)
    node = tmp_path / "out" / "server"
    (node / EXAMPLES).unlink()
    write_own(node / "examples.csv", table)
    assert words in refusal(node)


def test_the_servers_part_alone(cli: CLI, tiny: tuple[str, ...], tmp_path: Path) -> None:
    answer = cli("data", "split", QUICKSTART, *tiny, "--out", "shared", "--server-only")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[0].startswith("server   359 examples, ")
    shared = tmp_path / "shared"
    assert sorted(
        str(path.relative_to(shared)) for path in shared.rglob("*") if path.is_file()
    ) == [
        "card/dataset.json",
        "experiment.toml",
        "server/dataset.json",
        "server/examples.safetensors",
    ]
    experiment = config.read(shared / "experiment.toml", vocabulary=vocabulary())
    assert experiment.data.path == str(shared / "server")
    assert parts.clients(experiment) == 5
    natural = ("-s", "data.partition=natural", "-s", "data.clients=0")
    refused = cli("data", "split", QUICKSTART, *tiny, *natural, "--out", "b", "--server-only")
    assert refused.code == 2
    assert "data.clients = 0: with --server-only nobody counts them; give it" in refused.err
    assert not (tmp_path / "b").exists()


def test_an_experiment_that_could_not_run_over_the_folders_is_not_split(
    cli: CLI, tmp_path: Path
) -> None:
    table = HOSPITALS.assign(hospital=["a", "b"] * 5)
    table.to_csv(tmp_path / "all.csv", index=False)
    file = ("-s", "data.dataset=file", "-s", "data.path=all.csv", "-s", "data.label=ill")
    natural = ("-s", "data.client=hospital", "-s", "data.partition=natural", "-s", "data.clients=0")
    asked = ("data", "split", QUICKSTART, *file, *natural, "--out", "parts")
    answer = cli(*asked, "-s", "server.clients_per_round=3")
    assert answer.code == ConfigError.exit_code
    assert "server.clients_per_round = 3: more than data.clients = 2" in answer.err
    assert not (tmp_path / "parts").exists()
    assert cli(*asked, "-s", "server.clients_per_round=2").code == 0
    experiment = config.read(tmp_path / "parts" / "experiment.toml", vocabulary=vocabulary())
    assert experiment.data.clients == 2
