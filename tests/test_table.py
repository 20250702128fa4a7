"""Clients' rows as columns, and the thread that writes them beside the rounds."""

from __future__ import annotations

import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.errors import LedgerError
from fedsim.ledger.manifest import new_manifest
from fedsim.ledger.read import load
from fedsim.ledger.store import Entry, Ledger
from fedsim.ledger.writer import ROUNDS_BEHIND, LedgerWriter
from fedsim.records import ClientRow, RoundRow
from fedsim.table import NAMES, ClientTable, column


def table(round: int = 1) -> ClientTable:
    return ClientTable(
        round=round,
        client=np.array([3, 5, 8]),
        examples=np.array([10, 20, 2**62]),
        steps=[1, None, 3],
        update_norm=np.array([0.5, np.nan, np.inf]),
        cpu_seconds=0.25,
        status=["ok", "failed", "ok"],
        error=[None, "why", None],
    )


def rows(round: int = 1) -> list[ClientRow]:
    return [
        ClientRow(round=round, client=3, examples=10, steps=1, update_norm=0.5, cpu_seconds=0.25),
        ClientRow(
            round=round, client=5, examples=20, cpu_seconds=0.25, status="failed", error="why"
        ),
        ClientRow(
            round=round,
            client=8,
            examples=2**62,
            steps=3,
            update_norm=np.inf,
            cpu_seconds=0.25,
        ),
    ]


def test_a_table_is_the_sequence_of_its_rows() -> None:
    assert list(table()) == rows()
    assert table()[1] == rows()[1]
    assert len(table()) == 3
    assert [type(row.examples) for row in table()] == [int] * 3
    for name in NAMES:
        assert column(table(), name) == column(rows(), name)


def test_columns_are_those_of_a_row_and_equally_long() -> None:
    assert tuple(field.name for field in fields(ClientRow)) == NAMES
    with pytest.raises(ValueError, match="temperature"):
        ClientTable(round=1, client=[1], temperature=[36.6])
    with pytest.raises(ValueError, match="steps: 2 values for 1 clients"):
        ClientTable(round=1, client=[1], steps=[1, 2])


def test_columns_are_replaced_in_a_table_of_its_own() -> None:
    old = table()
    new = old.with_columns({"steps": np.array([7, 8, 9])})
    assert column(new, "steps") == [7, 8, 9]
    assert list(old) == rows()


def entry(number: int, **given: Any) -> Entry:
    usual: dict[str, Any] = {
        "round": RoundRow(round=number, clients_trained=2, clients_failed=1),
        "clients": table(number),
        "layers": (),
        "arrays": {"w": np.full(3, number, np.float32)},
        "state": {},
        "client_states": {},
    }
    return Entry(**(usual | given))


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    manifest = new_manifest("test", config_hash="c0ffee", engine={})
    with Ledger.create(tmp_path / "run", manifest=manifest, config={}) as made:
        yield made


def test_the_ledger_stores_a_table_as_it_stores_rows(ledger: Ledger) -> None:
    ledger.append_all([entry(1), entry(2, clients=rows(2))])
    stored = load(ledger.directory).clients
    first, second = (stored[stored["round"] == n].drop(columns="round") for n in (1, 2))
    assert first.reset_index(drop=True).equals(second.reset_index(drop=True))
    assert stored.examples.to_list() == [10, 20, 2**62] * 2


def test_rounds_that_piled_up_are_one_transaction_with_the_last_one_s_model(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[int]] = []
    go_on = threading.Event()
    store = ledger.append_all

    def slow(entries: Any) -> None:
        taken.append([e.number for e in entries])
        go_on.wait(10)
        store(entries)

    monkeypatch.setattr(ledger, "append_all", slow)
    with LedgerWriter(ledger) as writer:
        writer.append(entry(1), {})
        while not taken:
            pass
        for number in range(2, 6):
            writer.append(entry(number), {"update_norm": "nobody moved"} if number == 3 else {})
        go_on.set()
        writer.flush()
        assert ledger.last_round == 5
    assert taken == [[1], [2, 3, 4, 5]]
    assert ledger.manifest.blanks == {"update_norm": "nobody moved"}
    checkpoint = ledger.checkpoint()
    assert checkpoint is not None
    assert (checkpoint.round, checkpoint.arrays["w"][0]) == (5, 5.0)
    assert len(load(ledger.directory).clients) == 15


def test_rounds_wait_where_too_many_are_behind(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(ledger, "append_all", lambda entries: go_on.wait(10))
    done: list[int] = []

    def hand_over() -> None:
        for number in range(1, ROUNDS_BEHIND + 5):
            writer.append(entry(number), {})
            done.append(number)

    with LedgerWriter(ledger) as writer:
        thread = threading.Thread(target=hand_over)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert len(done) == ROUNDS_BEHIND
        go_on.set()
        thread.join(10)
    assert len(done) == ROUNDS_BEHIND + 4


def write(ledger: Ledger, rounds: int, then: BaseException | None = None) -> None:
    with LedgerWriter(ledger) as writer:
        for number in range(1, rounds + 1):
            writer.append(entry(number), {})
        if then is not None:
            raise then


def test_a_round_that_cannot_be_stored_is_an_error_at_the_next(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(entries: Any) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(ledger, "append_all", full)
    for rounds in (1, 100):  # it is told at the end of the block at the latest
        with pytest.raises(LedgerError, match="disk is full"):
            write(ledger, rounds)


def test_what_was_handed_over_is_stored_also_after_an_exception(ledger: Ledger) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(ledger, 3, KeyboardInterrupt())
    assert ledger.last_round == 3
    assert not [t for t in threading.enumerate() if t.name == "ledger"]
