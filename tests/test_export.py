from __future__ import annotations

import csv
import dataclasses
import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedsim.errors import LedgerError
from fedsim.ledger import manifest
from fedsim.ledger.export import Format, export
from fedsim.ledger.store import Ledger
from fedsim.records import ClientRow, LayerRow, RoundRow

AWKWARD = (0.1 + 0.2, 5e-324, 1.7976931348623157e308, -1 / 3, math.inf)
LARGE = 2**53 + 1  # not a float64
ERROR = 'said "no", and\n1e999, Infinity; naïve'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    about = manifest.new_manifest("tiny", config_hash="", engine={})
    with Ledger.create(tmp_path / "run", manifest=about, config={}) as ledger:
        for number, figure in enumerate(AWKWARD, start=1):
            ledger.append(
                RoundRow(
                    round=number,
                    test_accuracy=None,
                    test_loss=figure,
                    clients_trained=2,
                    clients_failed=1,
                    uplink_bytes=LARGE,
                    downlink_bytes=0,
                    cpu_seconds=figure,
                    wall_seconds=0.0,
                ),
                [
                    ClientRow(round=number, client=0, dense_bytes=LARGE, update_norm=figure),
                    ClientRow(round=number, client=1, status="failed", error=ERROR),
                ],
                [LayerRow(round=number, client=0, layer="w", phase="after", update_norm=figure)],
                arrays={},
                state={},
                client_states={},
            )
        ledger.finish("completed")
    return tmp_path / "run"


def test_csv_keeps_every_digit_and_leaves_missing_figures_empty(run: Path, tmp_path: Path) -> None:
    rounds, clients, layers = export(run, tmp_path / "out", "csv")
    assert [p.name for p in (rounds, clients, layers)] == [
        "rounds.csv",
        "clients.csv",
        "layers.csv",
    ]
    with rounds.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["test_loss"]) for line in lines] == list(AWKWARD)
    assert lines[0]["test_accuracy"] == ""
    assert lines[0]["uplink_bytes"] == str(LARGE)
    with clients.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["dense_bytes"] == str(LARGE)
    assert (lines[1]["dense_bytes"], lines[1]["error"]) == ("", ERROR)


def test_jsonl_keeps_every_digit_and_writes_missing_figures_as_null(
    run: Path, tmp_path: Path
) -> None:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    _, clients, _ = export(run, tmp_path / "out", "jsonl")
    lines = clients.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [row["update_norm"] for row in rows[::2]] == list(AWKWARD)
    assert rows[0]["dense_bytes"] == LARGE
    assert rows[0]["error"] is None
    assert (rows[1]["dense_bytes"], rows[1]["error"]) == (None, ERROR)


def test_parquet_keeps_every_digit_and_type(run: Path, tmp_path: Path) -> None:
    rounds, clients, layers = (pd.read_parquet(p) for p in export(run, tmp_path, "parquet"))
    assert rounds["test_loss"].tolist() == list(AWKWARD)
    assert str(rounds.dtypes["clients_failed"]) == "int64"
    assert str(rounds.dtypes["uplink_bytes"]) == "Int64"
    assert str(clients.dtypes["dense_bytes"]) == "Int64"
    assert clients["dense_bytes"].isna().tolist()[:2] == [False, True]
    assert clients["dense_bytes"].tolist()[0] == LARGE
    assert clients["error"].tolist()[1] == ERROR
    assert clients["error"].isna().tolist()[0]
    assert layers["update_norm"].tolist() == list(AWKWARD)


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet"])
def test_every_column_is_exported(run: Path, tmp_path: Path, fmt: Format) -> None:
    read: dict[str, Callable[[Path], pd.DataFrame]] = {
        "csv": pd.read_csv,
        "jsonl": lambda path: pd.DataFrame(map(json.loads, path.read_text().splitlines())),
        "parquet": pd.read_parquet,
    }
    for path, row in zip(export(run, tmp_path, fmt), (RoundRow, ClientRow, LayerRow), strict=True):
        assert list(read[fmt](path).columns) == [field.name for field in dataclasses.fields(row)]


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet"])
def test_existing_files_are_not_overwritten_unasked(run: Path, tmp_path: Path, fmt: Format) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / f"layers.{fmt}").write_text("mine")
    with pytest.raises(LedgerError, match=rf"layers.{fmt} exists; .*--overwrite"):
        export(run, out, fmt)
    assert [path.name for path in out.iterdir()] == [f"layers.{fmt}"]
    assert len(export(run, out, fmt, overwrite=True)) == 3
    assert (out / f"layers.{fmt}").read_bytes() != b"mine"


def test_an_unknown_format_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"'parket': did you mean 'parquet'\?"):
        export(run, tmp_path / "out", "parket")  # type: ignore[arg-type]


def test_a_file_in_the_way_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(LedgerError, match="out: File exists"):
        export(run, tmp_path / "out", "csv")


def test_a_full_disk_leaves_the_earlier_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (earlier, *_) = export(run, tmp_path / "out", "csv")
    before = earlier.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError, match=r"rounds.csv: the disk is full"):
        export(run, tmp_path / "out", "csv", overwrite=True)
    assert earlier.read_bytes() == before
    assert len(list((tmp_path / "out").iterdir())) == 3
