"""Users' own files: NumPy archives, CSV and Parquet tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data import Dataset, load_dataset
from fedsim.data.columns import MAX_CATEGORIES
from fedsim.errors import DataError


def load(path: Path, **options: Any) -> Dataset:
    return load_dataset("file", path=str(path), **options)


def message(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    return str(caught.value)


def everything(dataset: Dataset) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Features and labels of both parts, in the order of the first feature."""
    features = np.concatenate([dataset.x_train, dataset.x_test])
    labels = np.concatenate([dataset.y_train, dataset.y_test])
    order = np.argsort(features[:, 0])
    return features[order], labels[order].tolist()


@pytest.mark.parametrize(
    ("name", "words"),
    [("", 'data.path = ""'), ("a.csvv", "did you mean '.csv'?"), ("a", "unknown extension ''")],
)
def test_the_extension_names_the_format(name: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("file", path=name)
    assert words in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "is empty"), (b"PK\x03\x04 \xff\xfe\n1", "")],
)
def test_files_that_are_not_what_they_seem(
    suffix: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    if content is not None:
        path.write_bytes(content)
    text = message(path, label="y")
    assert str(path) in text
    assert words in text


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([900, -3, 7, 900], ("-3", "7", "900")),
        (["b", "c", "a", "b"], ("a", "b", "c")),
        ([True, False, True, False], ("False", "True")),
        ([2.0, 10.0, 2.0, 10.0], ("2", "10")),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_labels_are_numbered_in_sorted_order(
    labels: list[Any], names: tuple[str, ...], suffix: str, tmp_path: Path
) -> None:
    import pandas as pd

    path = tmp_path / f"a{suffix}"
    table = pd.DataFrame({"a": np.arange(16.0), "y": labels * 4})
    if suffix == ".npz":
        np.savez(path, x=table[["a"]].to_numpy(), y=np.array(labels * 4))
    elif suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    dataset = load(path, label="y")
    assert dataset.class_names == names
    kind = type(labels[0]) if type(labels[0]) is not float else lambda value: int(float(value))
    expected = [names.index(str(kind(label))) for label in labels]
    assert everything(dataset)[1] == expected * 4


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_clients_are_those_of_the_remaining_examples(suffix: str, tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / f"a{suffix}"
    x, y = np.arange(40.0), np.arange(40) % 2
    client = np.array([f"site {k}" for k in (30, 4, 12, 4)] * 10)
    if suffix == ".npz":
        np.savez(path, x=x[:, np.newaxis], y=y, site=client)
    elif suffix == ".csv":
        pd.DataFrame({"x": x, "site": client, "y": y}).to_csv(path, index=False)
    else:
        pd.DataFrame({"x": x, "site": client, "y": y}).to_parquet(path)
    dataset = load(path, label="y", client="site", test_fraction=0.25)
    assert dataset.input_shape == (1,)
    assert dataset.client_names == ("site 12", "site 30", "site 4")
    assert dataset.clients is not None
    assert dataset.clients.dtype == np.int64
    names = [dataset.client_names[code] for code in dataset.clients]
    assert names == client[dataset.x_train[:, 0].astype(int)].tolist()
    assert len(names) == 30


# --- NumPy archives


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


X, Y = np.arange(60.0).reshape(20, 3), np.arange(20) % 2


@pytest.mark.parametrize(
    ("x", "input_shape", "scale"),
    [
        (np.ones((20, 3), np.float64), (3,), 1.0),
        (np.ones((20, 3), np.uint8), (3,), 1 / 255),
        (np.ones((20, 4, 5), np.uint8), (1, 4, 5), 1 / 255),
        (np.ones((20, 2, 4, 5), np.uint8), (2, 4, 5), 1 / 255),
        (np.ones((20, 2, 4, 5), np.float32), (2, 4, 5), 1.0),
        (np.ones((20, 3), np.int64), (3,), 1.0),
        (np.ones((20, 3), bool), (3,), 1.0),
    ],
)
def test_npz_features_keep_uint8_and_become_float32_otherwise(
    x: np.ndarray[Any, Any], input_shape: tuple[int, ...], scale: float, tmp_path: Path
) -> None:
    dataset = load(save(tmp_path / "a.npz", x=x, y=Y))
    assert dataset.input_shape == input_shape
    assert dataset.scale == scale
    assert dataset.x_train.dtype == (np.uint8 if x.dtype == np.uint8 else np.float32)
    np.testing.assert_allclose(dataset.test()[0], scale, rtol=1e-6)


def test_npz_may_bring_its_own_test_part(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.npz", x=X, kind=np.array(["b", "a"] * 10), x_test=X[:1], kind_test=["b"]
    )
    dataset = load(path, label="kind")
    assert np.array_equal(dataset.x_train, X)
    assert np.array_equal(dataset.x_test, X[:1])
    assert dataset.y_test.tolist() == [1]


def test_npz_tables_can_be_standardized(tmp_path: Path) -> None:
    dataset = load(save(tmp_path / "a.npz", x=X.astype(np.uint8), y=Y), standardize=True)
    assert dataset.scale == 1.0
    np.testing.assert_allclose(dataset.x_train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(dataset.x_train.std(axis=0), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"images": X, "y": Y}, {}, "has no array 'x'"),
        ({"x": X, "labels": Y}, {"label": "label"}, "no array 'label'; did you mean 'labels'?"),
        ({"x": X, "y": Y}, {"client": "site"}, "has no array 'site'"),
        ({"x": X, "y": Y, "x_test": X}, {}, "has no array 'y_test'"),
        ({"x": X, "y": Y, "y_test": Y}, {}, "has no array 'x_test'"),
        ({"x": X.astype(object), "y": Y}, {}, "no pickle"),
        ({"x": X, "y": Y.astype(object)}, {}, "no pickle"),
        ({"x": X, "y": Y[:7]}, {}, "y has shape (7,), but x holds 20 examples"),
        ({"x": X, "y": Y[:, np.newaxis]}, {}, "y has shape (20, 1)"),
        ({"x": X, "y": Y, "site": Y[:7]}, {"client": "site"}, "site has shape (7,)"),
        ({"x": X[0], "y": Y}, {}, "x is float64 of shape (3,)"),
        ({"x": X.astype(str), "y": Y}, {}, "save numbers of shape"),
        ({"x": X[:0], "y": Y[:0]}, {}, "holds no examples"),
        ({"x": np.where(X == 7, np.nan, X), "y": Y}, {}, "x: holds NaN"),
        ({"x": np.where(X == 7, np.inf, X), "y": Y}, {"standardize": True}, "x: holds NaN"),
        ({"x": X, "y": Y, "x_test": X * np.nan, "y_test": Y}, {}, "x_test: holds NaN"),
        ({"x": np.where(X == 7, 1e300, X), "y": Y}, {}, "beyond float32"),
        ({"x": X, "y": Y * 0}, {}, "all 20 examples have label '0'"),
        ({"x": X, "y": Y / 2}, {}, "labels: holds 0.5"),
        ({"x": X, "y": np.where(Y == 0, np.nan, 1)}, {}, "labels: holds nan"),
        ({"x": X, "y": Y * 1j}, {}, "values of type complex128"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, {}, "'2' does not occur in the training"),
        ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, {}, "save both alike"),
        ({"x": X, "y": Y, "x_test": X.astype(np.uint8), "y_test": Y}, {}, "save both alike"),
        ({"x": X.reshape(20, 1, 3), "y": Y}, {"standardize": True}, "data.standardize = true"),
        ({"x": X, "y": Y}, {"test_path": "b.npz"}, "x_test and y_test"),
        ({"x": X[:2], "y": Y[:2]}, {}, "leaves no test example"),
    ],
)
def test_bad_archives_say_what_is_wrong(
    arrays: dict[str, Any], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    text = message(save(tmp_path / "a.npz", **arrays), **options)
    assert words in text
    assert "a.npz" in text


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    assert str(path) in message(path)


# --- tables


def table(tmp_path: Path, text: str, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def rows(*cells: str, repeat: int = 4) -> str:
    """A table of columns a, b and y, whose rows are repeated."""
    return "a,b,y\n" + "".join(f"{row}\n" for row in cells * repeat)


def test_columns_of_a_table_become_features(tmp_path: Path) -> None:
    train = table(tmp_path, "y,a,b,c\nyes,1,red,True\nno,2.5,blue,False\nyes,-3,red,True\n")
    test = table(tmp_path, "c,b,y,a\nFalse,green,no,4\nTrue,red,yes,5\n", "b.csv")
    dataset = load(train, test_path=str(test), label="y")
    # a; b = blue, red; c = False, True
    assert dataset.x_train.tolist() == [[1, 0, 1, 0, 1], [2.5, 1, 0, 1, 0], [-3, 0, 1, 0, 1]]
    assert dataset.x_test.tolist() == [[4, 0, 0, 1, 0], [5, 0, 1, 0, 1]]
    assert dataset.y_train.tolist() == [1, 0, 1]
    assert dataset.y_test.tolist() == [0, 1]
    assert dataset.x_train.dtype == np.float32
    assert dataset.clients is None


def test_parquet_reads_like_csv(tmp_path: Path) -> None:
    import pandas as pd

    csv = table(tmp_path, rows("1,red,0", "?,blue,1", "3,?,0", "4,blue,1", "5,blue,0"))
    frame = pd.DataFrame(
        {
            "a": pd.array([1, None, 3, 4, 5] * 4, dtype="Int64"),
            "b": pd.Categorical(["red", "blue", None, "blue", "blue"] * 4),
            "y": [0, 1, 0, 1, 0] * 4,
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    options: dict[str, Any] = {"label": "y", "missing": "impute", "standardize": True}
    expected, dataset = load(csv, **options), load(tmp_path / "a.parquet", **options)
    assert np.array_equal(dataset.x_train, expected.x_train)
    assert np.array_equal(dataset.x_test, expected.x_test)
    assert np.array_equal(dataset.y_train, expected.y_train)


@pytest.mark.parametrize("gap", ["", "?", "NA", "NaN", " ?"])
def test_missing_cells_are_refused_or_imputed_from_the_training_part(
    gap: str, tmp_path: Path
) -> None:
    train = table(tmp_path, f"a,b,y\n1,u,0\n2,v,1\n9,v,0\n{gap},{gap},1\n")
    test = table(tmp_path, f"a,b,y\n100,u,0\n{gap},{gap},1\n", "b.csv")
    options: dict[str, Any] = {"test_path": str(test), "label": "y"}
    text = message(train, **options)
    for words in ("a.csv and", "b.csv", "'a' (2), 'b' (2)", 'data.missing = "impute"'):
        assert words in text
    dataset = load(train, **options, missing="impute")
    assert dataset.x_train.tolist() == [[1, 1, 0], [2, 0, 1], [9, 0, 1], [2, 0, 1]]
    assert dataset.x_test.tolist() == [[100, 1, 0], [2, 0, 1]]


def test_held_out_rows_do_not_enter_imputation_or_standardization(tmp_path: Path) -> None:
    path = table(tmp_path, rows("1,0,0", "2,0,1", "4,0,0", "8,0,1", "?,0,0"))
    dataset = load(path, label="y", missing="impute", standardize=True)
    plain = load(path, label="y", missing="impute")
    mean, deviation = plain.x_train[:, 0].mean(), plain.x_train[:, 0].std()
    assert mean != np.concatenate([plain.x_train, plain.x_test])[:, 0].mean()
    expected = (plain.x_test[:, 0] - mean) / deviation
    np.testing.assert_allclose(dataset.x_test[:, 0], expected, rtol=1e-5)


def test_standardizing_centres_constants_and_leaves_categories(tmp_path: Path) -> None:
    # The mean of many 0.1 is not 0.1, so a constant's computed deviation is not 0.
    path = table(tmp_path, rows("0.1,u,0", "0.1,v,1", repeat=50))
    test = table(tmp_path, "a,b,y\n0.6,u,0\n", "b.csv")
    dataset = load(path, test_path=str(test), label="y", standardize=True)
    assert set(dataset.x_train[:, 0].tolist()) == {0.0}
    assert set(dataset.x_train[:, 1:].ravel().tolist()) == {0.0, 1.0}
    assert dataset.x_test.tolist() == [[0.5, 1, 0]]


def test_standardizing_survives_a_deviation_that_underflows(tmp_path: Path) -> None:
    path = table(tmp_path, rows("0,u,0", "1e-200,v,1", repeat=10))
    assert set(load(path, label="y", standardize=True).x_train[:, 0].tolist()) == {0.0}


def test_standardizing_keeps_the_precision_of_large_numbers(tmp_path: Path) -> None:
    path = table(tmp_path, rows("1700000000,0,0", "1700000001,0,1", repeat=10))
    dataset = load(path, label="y", standardize=True)
    assert sorted(set(dataset.x_train[:, 0].tolist())) == [-1.0, 1.0]


def test_a_test_table_need_not_have_clients(tmp_path: Path) -> None:
    train = table(tmp_path, "a,site,y\n1,p,0\n2,q,1\n")
    bare = table(tmp_path, "a,y\n3,0\n", "bare.csv")
    full = table(tmp_path, "a,site,y\n3,z,0\n", "full.csv")
    for test in (bare, full):
        dataset = load(train, test_path=str(test), label="y", client="site")
        assert dataset.client_names == ("p", "q")
        assert dataset.x_test.tolist() == [[3]]


GOOD = rows("1,u,0", "2,v,1")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,b,y\n", {}, "holds column names but no rows"),
        ("a,a,y\n1,2,0\n", {}, "two columns are called 'a'"),
        (",a,y\n0,1,0\n1,2,1\n", {}, "a column has no name"),
        ("a,y\n1,0,5\n2,1,5\n", {}, "Expected 2 fields in line 2, saw 3"),
        ("a,y\n1,0\n2,1,5\n", {}, "a.csv: is no readable .csv file"),
        (GOOD, {"label": ""}, "data.label = '': no such column"),
        (GOOD, {"label": "Y1"}, "data.label = 'Y1': no such column"),
        (GOOD, {"client": "bb"}, "data.client = 'bb': no such column"),
        (GOOD.replace("y", "target"), {"label": "targt"}, "did you mean 'target'?"),
        (GOOD.replace("2,v,1", "2,v,?"), {}, "column 'y': 4 of 8 rows have no value, first row 2"),
        (GOOD.replace("2,v,1", "2,?,1"), {"client": "b"}, "column 'b': 4 of 8 rows"),
        (GOOD.replace("2,v,1", "2,v,0"), {}, "all 8 examples have label '0'"),
        (GOOD.replace("2,v,1", "2,v,0.5"), {}, "labels: holds 0.5"),
        (GOOD.replace("2,v,1", "inf,v,1"), {}, "column 'a': holds NaN, infinity"),
        (GOOD.replace("2,v,1", "inf,v,1"), {"standardize": True}, "column 'a': holds NaN"),
        (GOOD.replace("2,v,1", "1e300,v,1"), {}, "beyond float32"),
        (rows("?,1,0", "?,2,1"), {"missing": "impute"}, "no training example has a value"),
        ("y\n0\n1\n", {}, "has no column besides 'y'"),
        (GOOD, {"test_path": "b.parquet"}, "must have the format of data.path"),
    ],
)
def test_bad_tables_say_what_is_wrong(
    text: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    answer = message(table(tmp_path, text), **({"label": "y"} | options))
    assert words in answer
    assert "a.csv" in answer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,y\n1,0\n", "its columns are not those of"),
        ("a,b,c,y\n1,u,3,0\n", "'c'"),
        ("a,b,y\nmany,u,0\n", "column 'a': is not numbers"),
        ("a,b,y\n1,5,0\n", "column 'b': is not categories"),
        ("a,b,y\n1,u,7\n", "'7' does not occur in the training part"),
    ],
)
def test_test_tables_must_fit_the_training_table(text: str, words: str, tmp_path: Path) -> None:
    test = table(tmp_path, text, "b.csv")
    answer = message(table(tmp_path, GOOD), test_path=str(test), label="y")
    assert words in answer
    assert "b.csv" in answer


def test_an_empty_test_column_is_imputed_whatever_its_kind(tmp_path: Path) -> None:
    test = table(tmp_path, "a,b,y\n?,?,0\n", "b.csv")
    train = table(tmp_path, GOOD)
    dataset = load(train, test_path=str(test), label="y", missing="impute")
    assert dataset.x_test.tolist() == [[1.5, 1, 0]]


def test_tables_are_in_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    text = GOOD.replace("a,", "a\u00e9,").replace("v", "\u00fc")
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.csv").write_text(text, encoding=encoding)
        assert "did you mean 'a\u00e9'" in message(tmp_path / "a.csv", label="ae")
        assert load(tmp_path / "a.csv", label="y").input_shape == (3,)
    (tmp_path / "a.csv").write_text(text, encoding="latin-1")
    assert "is no readable .csv file" in message(tmp_path / "a.csv", label="y")


def test_prose_is_no_category(tmp_path: Path) -> None:
    lines = [f"{k},name {k},{k % 2}" for k in range(2 * MAX_CATEGORIES)]
    answer = message(table(tmp_path, "a,b,y\n" + "\n".join(lines)), label="y")
    assert f"column 'b': {int(1.6 * MAX_CATEGORIES)} different texts" in answer


def test_columns_of_other_types_are_refused(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"when": pd.date_range("2020-01-01", periods=8), "y": [0, 1] * 4})
    frame.to_parquet(tmp_path / "a.parquet")
    assert "column 'when': holds datetime64" in message(tmp_path / "a.parquet", label="y")
