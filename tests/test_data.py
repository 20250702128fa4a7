"""Datasets: what every reader returns, the formats of images, and what corrupt files say."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data import DATASETS, Dataset, Partition, data_directory, load_dataset, make_partition
from fedsim.data.folders import write_split
from fedsim.data.split import hold_out
from fedsim.errors import DataError
from fedsim.randomness import stream

PIXELS = stream(0, "pixels").integers(0, 256, (40, 3, 32, 32)).astype(np.uint8)
TEN = np.arange(10, dtype=np.uint8)


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    """An IDX file of unsigned bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


MNIST_FILES = {
    "train-images-idx3-ubyte": idx_bytes(PIXELS[:20, 0, :6, :5]),
    "train-labels-idx1-ubyte": idx_bytes(np.tile(TEN, 2)),
    "t10k-images-idx3-ubyte": idx_bytes(PIXELS[20:30, 0, :6, :5]),
    "t10k-labels-idx1-ubyte": idx_bytes(TEN),
}


def cifar_bytes(first: int) -> bytes:
    """A CIFAR-10 file of the 5 images from ``first`` on, labelled 0, 1, 2, 3, 9."""
    pixels = PIXELS[first : first + 5].reshape(5, -1)
    labels = np.array([0, 1, 2, 3, 9], np.uint8)
    return np.concatenate([labels[:, np.newaxis], pixels], axis=1).tobytes()


CIFAR_FILES = {f"data_batch_{k}.bin": cifar_bytes(5 * (k - 1)) for k in range(1, 6)}
CIFAR_FILES["test_batch.bin"] = cifar_bytes(30)


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_mnist(directory: Path) -> dict[str, Any]:
    write(directory / "mnist", MNIST_FILES)
    return {}


def write_fashion_mnist(directory: Path) -> dict[str, Any]:
    packed = {f"{name}.gz": gzip.compress(content) for name, content in MNIST_FILES.items()}
    write(directory / "fashion_mnist", packed)
    return {}


def write_cifar10(directory: Path) -> dict[str, Any]:
    write(directory / "cifar10" / "cifar-10-batches-bin", CIFAR_FILES)
    return {}


def write_file(directory: Path) -> dict[str, Any]:
    path = directory / "table.npz"
    np.savez(path, x=np.tile([0, 0.5, 1], (20, 1)), y=np.arange(20) % 4)
    return {"path": str(path)}


def write_parts(directory: Path) -> dict[str, Any]:
    data = load_dataset("file", **write_file(directory))
    dealt = Partition.of(np.arange(len(data.y_train)) % 3, 3)
    if not (directory / "parts").exists():
        write_split(data, dealt, directory / "parts", experiment="", advance=lambda *_: None)
    return {"path": str(directory / "parts")}


# One row for each dataset: what writes a small one, and the shapes that are read from it.
ROWS: dict[str, tuple[Callable[[Path], dict[str, Any]], tuple[int, ...], tuple[int, int], int]] = {
    "digits": (lambda directory: {}, (1, 8, 8), (1438, 359), 10),
    "mnist": (write_mnist, (1, 6, 5), (20, 10), 10),
    "fashion_mnist": (write_fashion_mnist, (1, 6, 5), (20, 10), 10),
    "cifar10": (write_cifar10, (3, 32, 32), (25, 5), 10),
    "file": (write_file, (3,), (16, 4), 4),
    "split": (write_parts, (3,), (16, 4), 4),
}


def load_small(name: str, directory: Path) -> Dataset:
    return load_dataset(name, directory=str(directory), **ROWS[name][0](directory))


def test_table_has_every_dataset() -> None:
    assert set(ROWS) == set(DATASETS)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_reader_returns_the_same_kind_of_dataset(name: str, tmp_path: Path) -> None:
    _, input_shape, (n, m), classes = ROWS[name]
    dataset = load_small(name, tmp_path)
    assert dataset.name == name
    assert dataset.input_shape == input_shape
    assert dataset.x_train.shape == (n, *input_shape)
    assert dataset.x_test.shape == (m, *input_shape)
    assert dataset.x_train.dtype == dataset.x_test.dtype
    assert dataset.x_train.dtype in (np.uint8, np.float32)
    assert dataset.classes == classes == len(dataset.class_names) == len(set(dataset.class_names))
    for labels, count in ((dataset.y_train, n), (dataset.y_test, m)):
        assert labels.shape == (count,)
        assert labels.dtype == np.int64
        assert set(labels.tolist()) <= set(range(classes))
    features, labels = dataset.test()
    assert features.dtype == np.float32
    assert features.min() >= 0
    assert 0.9 < features.max() <= 1
    assert np.array_equal(labels, dataset.y_test)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_reading_twice_gives_equal_arrays(name: str, tmp_path: Path) -> None:
    first, again = load_small(name, tmp_path), load_small(name, tmp_path)
    for field in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(first, field), getattr(again, field))


def test_train_gathers_and_scales_the_asked_for_examples(tmp_path: Path) -> None:
    dataset = load_small("cifar10", tmp_path)
    features, labels = dataset.train(np.array([7, 0, 7]))
    expected = PIXELS[[7, 0, 7]].astype(np.float32) / 255
    np.testing.assert_allclose(features, expected, rtol=1e-6)
    assert labels.tolist() == [2, 0, 2]
    features[:] = 5
    assert dataset.train(np.array([7]))[0].max() <= 1
    assert dataset.x_train.dtype == np.uint8


def test_images_and_labels_are_read_in_order(tmp_path: Path) -> None:
    for name in ("mnist", "fashion_mnist"):
        dataset = load_small(name, tmp_path)
        assert np.array_equal(dataset.x_train[:, 0], PIXELS[:20, 0, :6, :5])
        assert np.array_equal(dataset.x_test[:, 0], PIXELS[20:30, 0, :6, :5])
        assert dataset.y_train.tolist() == [*range(10), *range(10)]
    cifar = load_small("cifar10", tmp_path)
    assert np.array_equal(cifar.x_train, PIXELS[:25])
    assert np.array_equal(cifar.x_test, PIXELS[30:35])
    assert cifar.y_test.tolist() == [0, 1, 2, 3, 9]


def test_digits_are_ink_from_0_to_16() -> None:
    dataset = load_dataset("digits", test_fraction=0.3)
    assert dataset.x_train.dtype == np.uint8
    assert dataset.x_train.max() == 16
    assert dataset.scale == 1 / 16
    assert len(dataset.y_test) == 539  # 0.3 x 1,797


def test_cifar10_may_lie_in_the_dataset_folder_itself(tmp_path: Path) -> None:
    write(tmp_path / "cifar10", CIFAR_FILES)
    assert len(load_dataset("cifar10", directory=str(tmp_path)).y_train) == 25


# --- the test part of datasets that have none


@given(labels=st.lists(st.integers(0, 4), min_size=4, max_size=80), fraction=st.floats(0.05, 0.95))
def test_hold_out_is_stratified_and_leaves_every_class_in_training(
    labels: list[int], fraction: float
) -> None:
    values = np.array(labels)
    sizes = np.bincount(values, minlength=5)
    if round(fraction * len(labels)) == 0 or sizes.max() == 1:
        with pytest.raises(DataError, match=r"data\.test_fraction"):
            hold_out(values, fraction, "x")
        return
    try:
        train, test = hold_out(values, fraction, "x")
    except DataError:
        # The one test example was due to a class of one example.
        assert (np.floor(fraction * sizes)[sizes > 1] == 0).all()
        return
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    assert set(values[train]) == set(labels)
    held = np.bincount(values[test], minlength=5)
    assert (np.abs(held - fraction * sizes) <= 1 + 1e-9).all()
    again = hold_out(values, fraction, "x")
    assert np.array_equal(again[1], test)


def test_hold_out_does_not_take_the_first_or_last_examples() -> None:
    _, test = hold_out(np.zeros(1000, np.int64), 0.2, "x")
    assert len(test) == 200
    assert np.ptp(test) > 900
    assert abs(test.mean() - 499.5) < 50


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_hold_out_needs_a_fraction(fraction: float) -> None:
    with pytest.raises(DataError, match=r"data\.test_fraction = "):
        load_dataset("digits", test_fraction=fraction)


# --- where data lies


def test_data_directory_is_explicit_then_environment_then_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDSIM_DATA_DIR", "/from/environment")
    assert data_directory("/explicit") == Path("/explicit")
    assert data_directory() == Path("/from/environment")
    monkeypatch.setenv("FEDSIM_DATA_DIR", "~/data")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data_directory() == Path("/home/someone/data")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "/home/someone/.cache/fedsim"),
        ("linux", {"XDG_CACHE_HOME": "/cache"}, "/cache/fedsim"),
        ("darwin", {"XDG_CACHE_HOME": "/cache"}, "/home/someone/Library/Caches/fedsim"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/fedsim"),
        ("win32", {}, "/home/someone/AppData/Local/fedsim"),
    ],
)
def test_default_directory_is_in_the_platforms_cache(
    platform: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FEDSIM_DATA_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/someone", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert data_directory() == Path(expected)


# --- bad data


def message(name: str, directory: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(name, directory=str(directory))
    return str(caught.value)


def test_an_unknown_dataset_suggests_the_nearest() -> None:
    assert "'mnits': unknown dataset; did you mean 'mnist'?" in message("mnits", Path())


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_files_are_named_with_the_ways_to_set_the_directory(
    name: str, tmp_path: Path
) -> None:
    text = message(name, tmp_path)
    files = MNIST_FILES if name == "mnist" else CIFAR_FILES
    fetch = f"fedsim data fetch {name} --data-dir {tmp_path}"
    for words in (str(tmp_path / name), fetch, "run.data_dir", "FEDSIM_DATA_DIR", *files):
        assert words in text
    first, *others = files
    write(tmp_path / name, dict.fromkeys(others, b""))
    assert first in message(name, tmp_path)
    assert others[0] not in message(name, tmp_path)


def test_a_file_is_no_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "mnist").write_bytes(b"")
    assert "is a file, where a folder" in message("mnist", tmp_path)


@pytest.mark.parametrize("method", ["is_file", "read_bytes"])
def test_what_may_not_be_read_is_named(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *args: Any) -> Any:
        raise PermissionError(13, os.strerror(13), str(path))

    write_mnist(tmp_path)
    monkeypatch.setattr(Path, method, refuse)
    text = message("mnist", tmp_path)
    assert str(tmp_path / "mnist") in text
    assert "Permission denied" in text


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (IMAGES, b"", "is empty"),
        (IMAGES, MNIST_FILES[LABELS], "starts with 0x00000801, not 0x00000803"),
        (LABELS, MNIST_FILES[IMAGES], "starts with 0x00000803, not 0x00000801"),
        (IMAGES, MNIST_FILES[IMAGES][:-1], "holds 599 bytes after its header, which promises 600"),
        (IMAGES, MNIST_FILES[IMAGES] + b"x", "holds 601 bytes"),
        (LABELS, MNIST_FILES[LABELS][:6], "holds no examples"),
        (IMAGES, idx_bytes(PIXELS[:0, 0]), "holds no examples"),
        (LABELS, idx_bytes(TEN), "10 labels for the 20 images"),
        (LABELS, idx_bytes(np.tile(TEN + 1, 2)), "label 10 of example 9 is not in 0..9"),
        (LABELS, idx_bytes(np.full(20, 3, np.uint8)), "all 20 examples have label '3'"),
        ("t10k-images-idx3-ubyte", idx_bytes(PIXELS[:10, 0]), "images of 32x32, but 6x5"),
    ],
)
def test_corrupt_idx_files_say_what_is_wrong(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    write(tmp_path / "mnist", MNIST_FILES | {name: content})
    text = message("mnist", tmp_path)
    assert str(tmp_path / "mnist" / name) in text
    assert words in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(MNIST_FILES[IMAGES])[:-20], "truncated or corrupt"),
        (gzip.compress(MNIST_FILES[IMAGES])[:12] + b"\xff" * 400, "truncated or corrupt"),
        (MNIST_FILES[IMAGES], "truncated or corrupt"),
        (b"", "is empty"),
        (gzip.compress(b""), "is empty"),
    ],
    ids=("cut off", "overwritten", "no gzip", "of no bytes", "gzip of no bytes"),
)
def test_corrupt_gzip_files_say_what_is_wrong(content: bytes, words: str, tmp_path: Path) -> None:
    plain = {name: data for name, data in MNIST_FILES.items() if name != IMAGES}
    write(tmp_path / "mnist", plain | {f"{IMAGES}.gz": content})
    text = message("mnist", tmp_path)
    assert f"{IMAGES}.gz" in text
    assert words in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (CIFAR_FILES["test_batch.bin"][:-1], "15364 bytes is no multiple of the 3073"),
        (b"\x0a" + CIFAR_FILES["test_batch.bin"][1:], "label 10 of example 0 is not in 0..9"),
    ],
)
def test_corrupt_cifar_files_say_what_is_wrong(content: bytes, words: str, tmp_path: Path) -> None:
    write(tmp_path / "cifar10", CIFAR_FILES | {"data_batch_3.bin": content})
    text = message("cifar10", tmp_path)
    assert str(tmp_path / "cifar10" / "data_batch_3.bin") in text
    assert words in text


def test_a_single_class_in_all_batches_is_refused(tmp_path: Path) -> None:
    records = np.zeros((2, 3073), np.uint8).tobytes()
    write(tmp_path / "cifar10", dict.fromkeys(CIFAR_FILES, records))
    assert "all 10 examples have label 'airplane'" in message("cifar10", tmp_path)


# --- the real thing, where it is at hand


def data_dir() -> Path:
    """The folder of real datasets; skips the test where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEDSIM_DATA_DIR") or beside)
    if not folder.is_dir():
        pytest.skip("no real data: set FEDSIM_DATA_DIR")
    return folder


@pytest.mark.data
def test_real_mnist_and_its_federated_split() -> None:
    dataset = load_dataset("mnist", directory=str(data_dir()))
    assert dataset.x_train.shape == (60_000, 1, 28, 28)
    totals = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(dataset.y_train).tolist() == totals
    assert np.bincount(dataset.y_test)[[0, 9]].tolist() == [980, 1009]
    # The mean and the standard deviation that everybody normalises MNIST by.
    assert dataset.x_train.mean() * dataset.scale == pytest.approx(0.1307, abs=1e-4)
    assert dataset.x_train.std() * dataset.scale == pytest.approx(0.3081, abs=1e-4)
    dealt = make_partition(
        "shards",
        dataset.y_train,
        clients=100,
        rng=stream(0, "partition"),
        alpha=0.3,
        shards_per_client=2,
        labels_per_client=2,
        size_sigma=1.0,
        min_examples=1,
        natural=None,
    )
    assert set(dealt.sizes.tolist()) == {600}
    # "Most clients will only have examples of two digits", McMahan et al. 2017.
    held = [len(set(dataset.y_train[dealt.indices(client)].tolist())) for client in range(100)]
    assert np.median(held) == 2
    assert max(held) <= 4


@pytest.mark.data
def test_real_fashion_mnist() -> None:
    dataset = load_dataset("fashion_mnist", directory=str(data_dir()))
    assert np.bincount(dataset.y_train).tolist() == [6000] * 10
    assert np.bincount(dataset.y_test).tolist() == [1000] * 10
    assert dataset.x_train.mean() * dataset.scale == pytest.approx(0.2860, abs=1e-4)


@pytest.mark.data
def test_real_heart_disease_by_hospital(tmp_path: Path) -> None:
    names = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,num,hospital"
    hospitals = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
    lines = [names]
    for hospital in hospitals:
        text = (data_dir() / "heart_disease" / f"processed.{hospital}.data").read_text()
        lines += [f"{line},{hospital}" for line in text.split()]
    path = tmp_path / "heart.csv"
    path.write_text("\n".join(lines))
    options: dict[str, Any] = {"path": str(path), "label": "num", "client": "hospital"}
    with pytest.raises(DataError, match=r"'ca' \(611\)"):
        load_dataset("file", **options)
    dataset = load_dataset("file", **options, missing="impute", standardize=True)
    assert dataset.client_names == tuple(hospitals)
    assert dataset.clients is not None
    assert len(dataset.y_train) + len(dataset.y_test) == sum(hospitals.values())
    assert dataset.class_names == ("0", "1", "2", "3", "4")
    assert dataset.input_shape == (13,)
    np.testing.assert_allclose(dataset.x_train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(dataset.x_train.std(axis=0), 1, atol=1e-5)
