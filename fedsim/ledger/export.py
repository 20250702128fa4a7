"""Copies of a run's tables in formats that other programs read, every figure in full precision."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedsim.errors import LedgerError, nearest
from fedsim.ledger import files
from fedsim.ledger.read import load

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

Format = Literal["csv", "parquet", "jsonl"]


def export(run_dir: Path, out: Path, fmt: Format, *, overwrite: bool = False) -> list[Path]:
    """Write the tables ``rounds``, ``clients`` and ``layers`` of a run, a file each.

    Args:
        run_dir: the run.
        out: the directory for the files; made if missing.
        fmt: ``csv`` (missing figures empty), ``jsonl`` (an object a line, missing figures null,
            infinity written as 1e999, which JSON readers take for infinity) or ``parquet``.
        overwrite: replace files of an earlier export.

    Returns:
        The files written. Each is whole or absent, whatever happens.

    Raises:
        LedgerError: the run cannot be read, the format is unknown, a file exists already, or the
            files cannot be written.
    """
    if fmt not in ENCODERS:
        raise LedgerError(f"cannot export as {fmt!r}: {nearest(fmt, ENCODERS)}")
    targets = [out / f"{table}.{fmt}" for table in ("rounds", "clients", "layers")]
    for path in targets:
        if path.exists() and not overwrite:
            raise LedgerError(f"{path} exists; choose another directory, or --overwrite")
    run = load(run_dir)
    with files.explained(out):
        out.mkdir(parents=True, exist_ok=True)
    for path, table in zip(targets, (run.rounds, run.clients, run.layers), strict=True):
        files.write_atomically(path, ENCODERS[fmt](table))
    return targets


def _csv(table: pd.DataFrame) -> bytes:
    return str(table.to_csv(index=False, lineterminator="\n")).encode()


def _parquet(table: pd.DataFrame) -> bytes:
    return bytes(table.to_parquet(index=False, engine="pyarrow"))


def _jsonl(table: pd.DataFrame) -> bytes:
    # Not pandas' to_json, which rounds to 15 digits.
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return "".join(_json_object(row) + "\n" for row in rows).encode()


def _json_object(row: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{json.dumps(k)}: {_json(v)}" for k, v in row.items()) + "}"


def _json(value: object) -> str:
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # JSON has no infinity, but no largest number
    return json.dumps(value, ensure_ascii=False)


ENCODERS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
