from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsim.errors import LedgerError, RunExists
from fedsim.ledger import checkpoints, files, formats, manifest, schema
from fedsim.ledger.database import reading
from fedsim.ledger.lock import RunLock, is_held
from fedsim.ledger.read import list_runs, load
from fedsim.ledger.store import Ledger
from fedsim.records import SERVER, ClientRow, LayerRow, Manifest, Phase, RoundRow

CONFIG = {"experiment": {"name": "tiny", "rounds": 3}, "data": {"name": "digits", "alpha": 0.1}}
MANIFEST = Manifest(
    format_version=formats.FORMAT_VERSION,
    name="tiny",
    status="running",
    created="2026-01-02T03:04:05+00:00",
    updated="2026-01-02T03:04:05+00:00",
    rounds_planned=3,
    config_hash="c0ffee",
    engine={"name": "inline", "workers": 1},
    pid=1,
    host="here",
    command="fedsim run",
    python="3.11.0",
    platform="Linux",
    processor="abacus",
    cores=1,
    versions={"fedsim": "0.1.0"},
    commit=None,
    library_paths={},
)


def begun(directory: Path, **changes: Any) -> Ledger:
    return Ledger.create(
        directory, manifest=dataclasses.replace(MANIFEST, **changes), config=CONFIG
    )


def round_row(number: int, **figures: Any) -> RoundRow:
    usual: dict[str, Any] = {
        "test_accuracy": number / 10,
        "test_loss": 1 / number,
        "clients_trained": 2,
        "clients_failed": 0,
        "uplink_bytes": 2**53 + 1,
        "downlink_bytes": 8,
        "train_flops": 2**63 - 1,
        "cpu_seconds": 0.1 + 0.2,
        "wall_seconds": 1 / 3,
    }
    return RoundRow(round=number, **(usual | figures))


def client_rows(number: int) -> list[ClientRow]:
    good = ClientRow(
        round=number,
        client=0,
        examples=60,
        steps=2**53 + 1,
        loss_first_step=2.3,
        loss_last_step=5e-324,
        cpu_seconds=0.1,
        wall_seconds=0.2,
        dense_bytes=16,
        update_norm=1.7976931348623157e308,
    )
    return [good, ClientRow(round=number, client=1, status="failed", error='no "luck"; é\n')]


def layer_rows(number: int) -> list[LayerRow]:
    seen: list[tuple[int, Phase]] = [(SERVER, "global"), (0, "after"), (0, "before")]
    return [
        LayerRow(round=number, client=client, layer="out", phase=phase, dead_fraction=0.5)
        for client, phase in seen
    ]


def model(number: int) -> dict[str, np.ndarray]:
    """A model whose names are not in the order in which safetensors sorts them."""
    return {
        "out.weight": np.full((2, 2), number / 3, np.float32),
        "steps": np.array(number),
        "a.bias": np.full(3, -number / 7, np.float64),
    }


def store(ledger: Ledger, number: int, **given: Any) -> None:
    usual: dict[str, Any] = {
        "arrays": model(number),
        "state": {"momentum": np.full(2, number, np.float32)},
        "client_states": {number % 2: {"control": np.full(2, float(number))}},
    }
    ledger.append(round_row(number), client_rows(number), layer_rows(number), **(usual | given))


def finished(directory: Path, rounds: int = 1) -> Path:
    with begun(directory) as ledger:
        for number in range(1, rounds + 1):
            store(ledger, number)
        ledger.finish("completed")
    return directory


def same(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> bool:
    """Bit for bit, in the same order, of the same types and shapes."""
    return list(left) == list(right) and all(
        left[k].dtype == right[k].dtype
        and left[k].shape == right[k].shape
        and left[k].tobytes() == right[k].tobytes()
        for k in left
    )


class Interrupting(dict[int, Any]):
    """Client states that do something while they are being stored, in mid-transaction."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self.act = act

    def items(self) -> Any:
        self.act()
        return super().items()


# ------------------------------------------------------------------------------ what comes back


def test_what_was_appended_comes_back_exactly(tmp_path: Path) -> None:
    with begun(tmp_path / "run") as ledger:
        for number in (1, 2, 3):
            store(ledger, number)
        assert ledger.rounds() == [round_row(n) for n in (1, 2, 3)]
    run = load(tmp_path / "run")
    assert run.config == CONFIG
    for frame, rows in (
        (run.rounds, [round_row(n) for n in (1, 2, 3)]),
        (run.clients, [row for n in (1, 2, 3) for row in client_rows(n)]),
        (run.layers, [row for n in (1, 2, 3) for row in layer_rows(n)]),
    ):
        read = frame.astype(object).where(frame.notna(), None).to_dict("records")
        assert read == [dataclasses.asdict(row) for row in rows]
    assert same(run.arrays(), model(3))


def test_tables_are_in_the_order_of_their_keys(tmp_path: Path) -> None:
    clients, layers = client_rows(1)[::-1], layer_rows(1)[::-1]
    with begun(tmp_path) as ledger:
        ledger.append(round_row(1), clients, layers, arrays={}, state={}, client_states={})
    run = load(tmp_path)
    assert run.clients["client"].tolist() == [0, 1]
    keys = [(row.client, row.phase) for row in layer_rows(1)]
    assert list(zip(run.layers["client"], run.layers["phase"], strict=True)) == keys


def test_columns_have_the_types_of_the_rows(tmp_path: Path) -> None:
    run = load(finished(tmp_path))
    assert str(run.rounds.dtypes["clients_failed"]) == "int64"
    assert str(run.rounds.dtypes["uplink_bytes"]) == "Int64"
    assert str(run.clients.dtypes["steps"]) == "Int64"
    assert str(run.clients.dtypes["update_norm"]) == "float64"
    assert str(run.clients.dtypes["error"]) == "string"
    assert str(run.layers.dtypes["phase"]) == "string"


FIGURE: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(0, 2**63 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(st.characters(codec="utf-8", exclude_characters="\0")),
}


def rows_of(table: schema.Table[Any]) -> st.SearchStrategy[Any]:
    """Any row that a table may hold."""
    columns = {
        column.name: st.none() | FIGURE[column.kind] if column.optional else FIGURE[column.kind]
        for column in table.columns
    }
    return st.fixed_dictionaries(columns).map(lambda values: table.row(**values))


@pytest.mark.parametrize("table", [schema.ROUNDS, schema.CLIENTS, schema.LAYERS])
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_row_comes_back_as_it_was(table: schema.Table[Any], data: st.DataObject) -> None:
    row = data.draw(rows_of(table))
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute(table.create)
        table.store(db, [row])
        assert table.rows(db.execute(table.select(), (row.round,))) == [row]


def test_a_run_without_rounds_reads_as_empty_tables(tmp_path: Path) -> None:
    begun(tmp_path).close()
    run = load(tmp_path)
    assert list(run.clients.columns) == [f.name for f in dataclasses.fields(ClientRow)]
    assert (len(run.rounds), len(run.clients), run.arrays()) == (0, 0, {})
    with Ledger.resume(tmp_path) as ledger:
        assert ledger.checkpoint() is None
        assert ledger.last_round == 0


def test_a_checkpoint_holds_the_state_after_the_last_round(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        for number in (1, 2, 3):
            store(ledger, number)
    with Ledger.resume(tmp_path) as ledger:
        found = ledger.checkpoint()
    assert found is not None
    assert found.round == 3
    assert same(found.arrays, model(3))
    assert same(found.state, {"momentum": np.full(2, 3, np.float32)})
    assert list(found.client_states) == [0, 1]  # client 0 trained in round 2, client 1 in 3
    assert same(found.client_states[0], {"control": np.array([2.0, 2.0])})
    assert same(found.client_states[1], {"control": np.array([3.0, 3.0])})
    found.arrays["steps"] += 1  # writable, for strategies that update in place


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        for number in (1, 2, 3, 4):
            store(ledger, number)
    kept = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert kept == ["checkpoint-000003.safetensors", "checkpoint-000004.safetensors"]


def test_an_old_checkpoint_that_cannot_be_removed_costs_no_round(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        (tmp_path / "checkpoint-000000.safetensors").mkdir()  # not a file to unlink
        store(ledger, 1)
        assert ledger.last_round == 1


def test_nan_is_missing_and_infinity_stays(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        ledger.append(
            round_row(1, test_loss=math.inf, test_accuracy=math.nan, cpu_seconds=math.nan),
            [],
            [LayerRow(round=1, client=0, layer="w", phase="after", update_norm=math.nan)],
            arrays={},
            state={},
            client_states={},
        )
        (row,) = ledger.rounds()
    assert (row.test_loss, row.test_accuracy, row.cpu_seconds) == (math.inf, None, None)
    run = load(tmp_path)
    assert run.rounds["test_loss"].tolist() == [math.inf]
    assert run.layers["update_norm"].isna().tolist() == [True]


def test_numpy_scalars_are_accepted(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        ledger.append(
            round_row(np.int64(1), test_loss=np.float32(0.5), uplink_bytes=np.uint32(7)),  # type: ignore[arg-type]
            [],
            [],
            arrays={},
            state={},
            client_states={np.int64(4): {"c": np.ones(1)}},  # type: ignore[dict-item]
        )
        assert ledger.rounds() == [round_row(1, test_loss=0.5, uplink_bytes=7)]
        found = ledger.checkpoint()
    assert found is not None
    assert list(found.client_states) == [4]


DTYPES = st.sampled_from(("<f4", ">f4", "<f8", "<f2", "<i8", ">i4", "|u1", "|b1"))
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.text(max_size=5), DTYPES.flatmap(lambda d: hnp.arrays(d, SHAPES))),
    st.booleans(),
)
def test_packing_is_lossless(arrays: dict[str, np.ndarray], transposed: bool) -> None:
    given = {k: a.T if transposed else a for k, a in arrays.items()}
    native = {k: a.astype(a.dtype.newbyteorder("=")) for k, a in given.items()}
    assert same(checkpoints.unpack(checkpoints.pack(given)), native)


@pytest.mark.parametrize("where", ["arrays", "state", "client_states"])
def test_arrays_that_are_no_numbers_are_refused(tmp_path: Path, where: str) -> None:
    words: Any = {"words": np.array(["x"])}
    with begun(tmp_path) as ledger:
        with pytest.raises(LedgerError, match=r"round 1 was not stored: .*words.*numbers or bool"):
            store(ledger, 1, **{where: {5: words} if where == "client_states" else words})
        assert ledger.rounds() == []
        store(ledger, 1)


def test_the_digest_is_of_the_bytes_in_the_order_of_the_names() -> None:
    first, second = np.array([[1, 2], [3, 4]], "<i2"), np.array([1.5], "<f4")
    expected = hashlib.sha256(bytes([1, 0, 2, 0, 3, 0, 4, 0, 0, 0, 0xC0, 0x3F])).hexdigest()
    assert checkpoints.model_digest({"b": second, "a": first}) == expected
    unlike = {"a": np.asfortranarray(first.astype(">i2")), "b": second.astype(">f4")}
    assert checkpoints.model_digest(unlike) == expected


# ------------------------------------------------------------------------------------------ files


def test_a_file_is_replaced_at_once_and_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def fsync(handle: int) -> None:
        about = os.fstat(handle)
        synced.append("directory" if stat.S_ISDIR(about.st_mode) else about.st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        files.write_atomically(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert synced == [len(b"new"), "directory"]  # the bytes, then the renaming
    assert list(tmp_path.iterdir()) == [path]


def test_detailed_codes_of_sqlite_are_understood(tmp_path: Path) -> None:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY_SNAPSHOT
    with pytest.raises(LedgerError, match="in use by another"), files.explained(tmp_path):
        raise error


# ------------------------------------------------------------------------------- beginning a run


def test_a_directory_with_a_run_is_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(RunExists, match=r"already holds a run.*--resume.*--out"):
        begun(tmp_path)
    assert load(tmp_path).status == "completed"


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(RunExists, match=r"not empty, it holds 'thesis.tex'"):
        begun(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_the_way_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"file(: Not a directory| is a file|/run)"):
        begun(tmp_path / "file" / below)


def test_odd_characters_in_a_path_are_only_characters(tmp_path: Path) -> None:
    directory = finished(tmp_path / "50% of a?b#c 'd'")
    assert load(directory).last_round == 1


def test_a_failed_beginning_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch, files.MANIFEST)
        with pytest.raises(LedgerError, match=r"manifest.json: the disk is full"):
            begun(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [files.LOCK]
    begun(tmp_path).close()


def test_rounds_go_forward_and_rows_belong_to_them(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        store(ledger, 1)
        with pytest.raises(LedgerError, match="round 1 cannot follow round 1"):
            store(ledger, 1)
        with pytest.raises(LedgerError, match=r"rounds \[3\] cannot be stored as round 2"):
            ledger.append(round_row(2), client_rows(3), [], arrays={}, state={}, client_states={})
        assert ledger.rounds() == [round_row(1)]


# ------------------------------------------------------------------------ how it goes, how it ends


def test_a_run_at_work_is_running_and_has_one_writer(tmp_path: Path) -> None:
    with begun(tmp_path):
        assert load(tmp_path).status == "running"
        with pytest.raises(LedgerError, match="being written by another process"):
            Ledger.resume(tmp_path)
    assert load(tmp_path).status == "killed"  # closed without a word
    Ledger.resume(tmp_path).close()


def test_two_beginnings_in_one_directory_leave_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the empty directory and the lock, another run comes and goes."""

    def late_lock(path: Path) -> RunLock:
        monkeypatch.undo()
        finished(tmp_path)
        return RunLock(path)

    monkeypatch.setattr("fedsim.ledger.directory.RunLock", late_lock)
    with pytest.raises(RunExists):
        begun(tmp_path)
    assert load(tmp_path).status == "completed"


def test_readers_see_whole_rounds_only(tmp_path: Path) -> None:
    seen = []

    def look() -> None:
        run = load(tmp_path)
        seen.append((len(run.rounds), len(run.clients), same(run.arrays(), model(1))))

    with begun(tmp_path) as ledger:
        store(ledger, 1)
        store(ledger, 2, client_states=Interrupting(look))
    assert seen == [(1, 2, True)]


def test_a_loaded_run_does_not_change_under_its_reader(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        store(ledger, 1)
        run = load(tmp_path)
        store(ledger, 2)
        assert (len(run.rounds), len(run.clients), len(run.layers)) == (1, 2, 3)
        assert len(load(tmp_path).rounds) == 2


def test_a_reader_does_not_hold_up_the_writer(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger, reading(tmp_path) as db:
        store(ledger, 1)
        assert ledger.last_round == 1
        assert db.execute("SELECT count(*) FROM rounds").fetchone() == (0,)


def test_a_finished_run_is_plain_files(tmp_path: Path) -> None:
    finished(tmp_path, rounds=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000001.safetensors",
        "config.toml",
        "ledger.sqlite",
        "manifest.json",
        "run.lock",
    ]
    # The header's word for a ledger that needs no write-ahead log beside it, even to be read.
    assert (tmp_path / files.LEDGER).read_bytes()[18:20] == b"\x01\x01"


def test_a_reader_at_the_end_costs_no_round(tmp_path: Path) -> None:
    ledger = begun(tmp_path)
    store(ledger, 1)
    with closing(sqlite3.connect(tmp_path / files.LEDGER, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM rounds").fetchall()
        ledger.close()
        ledger.close()
    assert load(tmp_path).last_round == 1


def test_the_manifest_says_how_it_ended(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        store(ledger, 1)
        ledger.finish("failed", error="no client answered")
    found = load(tmp_path).manifest
    assert (found.status, found.error) == ("failed", "no client answered")
    assert found.finished == found.updated != MANIFEST.updated
    assert found.model_sha256 is None
    with Ledger.resume(tmp_path) as ledger:
        assert load(tmp_path).status == "running"
        store(ledger, 2)
        ledger.finish("completed", threads=4)
    found = load(tmp_path).manifest
    assert (found.status, found.error, found.threads) == ("completed", None, 4)
    assert found.model_sha256 == checkpoints.model_digest(model(2))
    assert found == ledger.manifest


def test_figures_that_stay_blank_are_noted_with_the_reason(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        ledger.note_blanks({"package_joules": "no RAPL here"})
        ledger.note_blanks({"waiting_seconds": "not Linux", "package_joules": "no permission"})
        noted = {"package_joules": "no permission", "waiting_seconds": "not Linux"}
        assert load(tmp_path).manifest == ledger.manifest
        assert ledger.manifest.blanks == noted
        ledger.finish("completed")
    with Ledger.resume(tmp_path) as ledger:
        ledger.note_blanks({"peak_memory_bytes": "no /proc"})
    assert load(tmp_path).manifest.blanks == noted | {"peak_memory_bytes": "no /proc"}


def test_the_manifest_is_written_only_for_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with begun(tmp_path) as ledger:
        ledger.note_blanks({"package_joules": "no RAPL here"})
        with monkeypatch.context() as patch:
            fill_disk(patch, files.MANIFEST)
            ledger.note_blanks({})
            ledger.note_blanks({"package_joules": "no RAPL here"})
            with pytest.raises(LedgerError, match=r"manifest.json: the disk is full"):
                ledger.note_blanks({"waiting_seconds": "not Linux"})
        ledger.note_blanks({"waiting_seconds": "not Linux"})  # not taken for done
    assert list(load(tmp_path).manifest.blanks) == ["package_joules", "waiting_seconds"]


def test_a_resumed_run_is_not_finished_and_promises_nothing_yet(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        ledger.promise("one round", 1.0)
        ledger.finish("interrupted")
    assert load(tmp_path).manifest.epsilon == 1.0
    with Ledger.resume(tmp_path):
        found = load(tmp_path).manifest
    assert (found.status, found.finished, found.model_sha256) == ("running", None, None)
    assert (found.guarantee, found.epsilon) == (None, None)
    assert found.resumed == (found.updated,)


def test_a_run_that_ends_while_it_is_looked_at_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = begun(tmp_path)

    def held_no_more(path: Path) -> bool:
        ledger.finish("completed")
        ledger.close()
        return is_held(path)

    monkeypatch.setattr("fedsim.ledger.read.is_held", held_no_more)
    assert load(tmp_path).status == "completed"


def test_a_run_without_its_lock_file_is_not_alive(tmp_path: Path) -> None:
    begun(tmp_path).close()
    (tmp_path / files.LOCK).unlink()
    assert load(tmp_path).status == "killed"


def test_a_look_at_the_lock_does_not_turn_a_writer_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / files.LOCK).open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        RunLock(tmp_path / files.LOCK).release()


def test_wall_seconds_add_up_over_sessions(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        store(ledger, 1)
        ledger.finish("interrupted", wall_seconds=100.0)
    with Ledger.resume(tmp_path) as ledger:
        ledger.finish("interrupted")
    seconds = load(tmp_path).manifest.wall_seconds
    assert seconds is not None
    assert seconds >= 100.0


def test_a_killed_session_counts_by_its_rounds(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        ledger.append(
            round_row(1, wall_seconds=50.0), [], [], arrays={}, state={}, client_states={}
        )
    with Ledger.resume(tmp_path) as ledger:
        assert ledger.manifest.wall_seconds == 50.0


def test_a_run_resumed_elsewhere_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.create(tmp_path, manifest=described(), config=CONFIG):
        pass
    with Ledger.resume(tmp_path) as ledger:
        assert ledger.manifest.changed == {}
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with Ledger.resume(tmp_path) as ledger:
        pass
    found = load(tmp_path).manifest
    assert found.changed == {found.resumed[1]: {"host": "elsewhere"}}
    assert found.host == "elsewhere"


def described() -> Manifest:
    return manifest.new_manifest("tiny", config_hash="c0ffee", engine={"name": "ray"})


def test_a_manifest_describes_this_process() -> None:
    here = described()
    assert here.pid == os.getpid()
    assert here.cores >= 1
    assert here.versions["numpy"] == np.__version__
    assert dataclasses.asdict(here)["library_paths"]["fedsim"] == str(
        Path(manifest.__file__).parents[1]
    )
    assert here.processor
    assert here.created.endswith("+00:00")


def test_a_checkout_has_a_commit_and_says_if_files_were_changed(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ("git", "-C", str(tmp_path), *who, *words)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    assert manifest._commit(tmp_path) is None  # nothing committed yet
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    commit = git("rev-parse", "HEAD").strip()
    assert manifest._commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert manifest._commit(tmp_path) == f"{commit}-dirty"
    (tmp_path / "site-packages").mkdir()  # of an environment inside somebody's checkout
    assert manifest._commit(tmp_path / "site-packages") is None


def test_the_ledger_needs_no_heavy_library(tmp_path: Path) -> None:
    program = """
import sys
from fedsim.ledger import export, manifest, read, store
manifest.new_manifest("x", config_hash="", engine={})
print({"torch", "flwr", "ray", "pandas", "pyarrow"} & set(sys.modules))
"""
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# --------------------------------------------------------------------------------- things go wrong

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_ledger as t

ledger = t.begun(Path(sys.argv[1]))
t.store(ledger, 1)
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
t.store(ledger, 2, client_states=t.Interrupting(die))
"""


def test_a_process_killed_between_checkpoint_and_commit_loses_that_round_only(
    tmp_path: Path,
) -> None:
    here = str(Path(__file__).parent)
    done = subprocess.run((sys.executable, "-c", KILLED, str(tmp_path), here))
    assert done.returncode == -signal.SIGKILL
    (tmp_path / ".manifest.json.123.part").write_text("half of a")
    assert (tmp_path / "checkpoint-000002.safetensors").exists()
    run = load(tmp_path)
    assert (run.status, run.last_round, len(run.clients)) == ("killed", 1, 2)
    assert same(run.arrays(), model(1))

    with Ledger.resume(tmp_path) as ledger:
        left = {path.name for path in tmp_path.iterdir()}
        assert not left & {"checkpoint-000002.safetensors", ".manifest.json.123.part"}
        found = ledger.checkpoint()
        assert found is not None
        assert found.round == 1
        assert same(found.arrays, model(1))
        store(ledger, 2)
        assert ledger.last_round == 2


def test_clients_of_a_failed_round_are_kept_until_it_is_repeated(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        store(ledger, 1)
        ledger.append_failed_round(client_rows(2))
        ledger.finish("failed", error="no client answered")
    run = load(tmp_path)
    assert run.rounds["round"].tolist() == [1]
    assert run.clients["round"].tolist() == [1, 1, 2, 2]
    with Ledger.resume(tmp_path) as ledger:
        assert load(tmp_path).clients["round"].tolist() == [1, 1]
        store(ledger, 2)


def fill_disk(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full for files whose name begins so."""
    replace = os.replace

    def replace_if_room(part: Path, path: Path) -> None:
        if path.name.startswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(part, path)

    patch.setattr(os, "replace", replace_if_room)


def intact_after_round_1(directory: Path) -> None:
    with Ledger.resume(directory) as ledger:
        found = ledger.checkpoint()
        assert found is not None
        assert (found.round, ledger.rounds()) == (1, [round_row(1)])
        assert same(found.arrays, model(1))
        assert list(found.client_states) == [1]
        store(ledger, 2)


def test_no_room_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with begun(tmp_path) as ledger:
        store(ledger, 1)
        with monkeypatch.context() as patch:
            fill_disk(patch, "checkpoint")
            with pytest.raises(
                LedgerError,
                match=r"round 2 was not stored: .*checkpoint-000002.*the disk is full.*--resume",
            ):
                store(ledger, 2)
        assert not list(tmp_path.glob(files.PARTS))
    intact_after_round_1(tmp_path)


def test_no_room_for_a_round(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        store(ledger, 1)
        ledger._db.execute("PRAGMA max_page_count = 1")  # as many as there are, and no more
        large = {2: {"control": np.zeros(10_000)}}
        with pytest.raises(
            LedgerError, match=r"round 2 was not stored: .*ledger.sqlite: the disk is full"
        ):
            store(ledger, 2, client_states=large)
        assert not (tmp_path / "checkpoint-000002.safetensors").exists()
        ledger.finish("failed", error="disk full")
    intact_after_round_1(tmp_path)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 KiB, where this process may mount one."""
    options = ("-t", "tmpfs", "-o", "size=600k", "tmpfs", str(tmp_path))
    try:
        subprocess.run(("mount", *options), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process may not mount a disk")
    yield tmp_path
    subprocess.run(("umount", str(tmp_path)), check=True)


def test_a_full_disk_costs_the_last_round_only(tiny_disk: Path) -> None:
    def go_on(ledger: Ledger, until: int) -> None:
        for number in range(ledger.last_round + 1, until + 1):
            states = {number: {"control": np.full(1000, number)}}
            store(ledger, number, arrays={"w": np.full(5000, number)}, client_states=states)

    with begun(tiny_disk / "run") as ledger:
        with pytest.raises(LedgerError, match="the disk is full"):
            go_on(ledger, until=100)
        last = ledger.last_round
        ledger.finish("failed", error="the disk is full")
    run = load(tiny_disk / "run")
    assert (run.status, run.last_round, len(run.rounds)) == ("failed", last, last)
    assert same(run.arrays(), {"w": np.full(5000, last)})

    subprocess.run(("mount", "-o", "remount,size=4m", str(tiny_disk)), check=True)
    with Ledger.resume(tiny_disk / "run") as ledger:
        found = ledger.checkpoint()
        assert found is not None
        assert list(found.client_states) == list(range(1, last + 1))
        go_on(ledger, until=last + 1)
        assert ledger.last_round == last + 1


# ------------------------------------------------------------------------------ damaged directories


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def fill_with_garbage(path: Path) -> None:
    path.write_bytes(b"garbage " * 1000)


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE meta (key, value)")


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'format_version'")
        db.execute("UPDATE meta SET value = '7.0.0' WHERE key = 'fedsim'")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_in_half, r"ledger.sqlite is damaged .*restore it from a copy"),
        (fill_with_garbage, r"ledger.sqlite is damaged .*not a database"),
        (make_empty, r"ledger.sqlite is a database, but not a ledger"),
        (make_foreign, r"ledger.sqlite is a database, but not a ledger"),
        (make_newer, r"format 99, and this fedsim reads up to 5; it was written by fedsim 7.0.0"),
    ],
)
def test_a_damaged_ledger_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    damage(finished(tmp_path / "run", rounds=2) / files.LEDGER)
    with pytest.raises(LedgerError, match=message):
        load(tmp_path / "run")
    with pytest.raises(LedgerError, match=message):
        Ledger.resume(tmp_path / "run")
    assert not is_held(tmp_path / "run" / files.LOCK)
    (line,) = list_runs(tmp_path)
    assert (line.status, line.name) == ("damaged", "run")
    assert line.problem


def test_damage_inside_a_ledger_is_found_before_it_is_resumed(tmp_path: Path) -> None:
    path = finished(tmp_path, rounds=2) / files.LEDGER
    data = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'layers'").fetchone()
    data[(page - 1) * 4096 + 1] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(LedgerError, match=r"ledger.sqlite is damaged"):
        Ledger.resume(tmp_path)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"holds no run to resume, .*--out"):
        Ledger.resume(tmp_path)
    with pytest.raises(LedgerError, match=r"holds no run: it has no ledger.sqlite"):
        load(tmp_path / "missing")
    assert not list(tmp_path.iterdir())


def alter(**values: Any) -> str:
    return json.dumps(dataclasses.asdict(MANIFEST) | values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"manifest.json is missing; the rounds in ledger.sqlite are untouched"),
        ('{"name": "ti', r"manifest.json is damaged .*restore manifest.json from a copy"),
        ("[]", r"manifest.json is damaged"),
        (alter(flavour="odd"), r"manifest.json is damaged .*flavour"),
        (alter(format_version=99, versions={"fedsim": "7.0.0"}), r"format 99.*fedsim 7.0.0"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = finished(tmp_path) / files.MANIFEST
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(LedgerError, match=message):
        load(tmp_path)
    with pytest.raises(LedgerError, match=message):
        Ledger.resume(tmp_path)
    with pytest.raises(RunExists):
        begun(tmp_path)


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    (finished(tmp_path) / files.CONFIG).write_text("[experiment")
    with pytest.raises(LedgerError, match=r"config.toml is damaged"):
        _ = load(tmp_path).config


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # which safetensors would not notice
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"checkpoint-000002.safetensors is damaged \(its SHA-256"),
        (cut_in_half, r"checkpoint-000002.safetensors is damaged"),
        (Path.unlink, r"checkpoint-000002.safetensors: No such file"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    damage(finished(tmp_path, rounds=2) / "checkpoint-000002.safetensors")
    with pytest.raises(LedgerError, match=message):
        Ledger.resume(tmp_path)
    with pytest.raises(LedgerError, match=message):
        load(tmp_path).arrays()
    assert load(tmp_path).status == "completed"  # as if nobody had tried


# -------------------------------------------------------------------------------------- many runs


def test_runs_are_found_and_summed_up(tmp_path: Path) -> None:
    finished(tmp_path / "a" / "done", rounds=2)
    with begun(tmp_path / "b", name="slow") as alive:
        store(alive, 1)
        alive.append(
            round_row(2, test_accuracy=None), [], [], arrays={}, state={}, client_states={}
        )
        begun(tmp_path / "c").close()
        finished(tmp_path / ".hidden")
        finished(tmp_path / "a" / "done" / "inside")
        finished(tmp_path / "1" / "2" / "3" / "4")
        finished(tmp_path / "1" / "2" / "3" / "no" / "deeper")
        lines = list_runs(tmp_path)
    assert [(str(line.path.relative_to(tmp_path)), line.status) for line in lines] == [
        ("1/2/3/4", "completed"),
        ("a/done", "completed"),
        ("b", "running"),
        ("c", "killed"),
    ]
    slow = lines[2]
    assert (slow.name, slow.rounds, slow.rounds_planned, slow.test_accuracy) == ("slow", 2, 3, 0.1)
    assert slow.started == MANIFEST.created
    assert lines[3].test_accuracy is None


def test_a_run_is_found_in_its_own_directory(tmp_path: Path) -> None:
    (line,) = list_runs(finished(tmp_path / "run"))
    assert line.path == tmp_path / "run"
    with pytest.raises(LedgerError, match="is no directory"):
        list_runs(tmp_path / "missing")


def test_a_run_introduces_itself(tmp_path: Path) -> None:
    assert repr(load(finished(tmp_path))) == f"<Run 'tiny': completed, 1 of 3 rounds, {tmp_path}>"


# ------------------------------------------------------------------------------------ old versions

CHECKPOINT_HEADER = (
    b'{"__metadata__":{"round":"1","format_version":"%d",'
    b'"order":"[\\"model/out.weight\\", \\"strategy/step\\"]"},'
    b'"strategy/step":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
    b'"model/out.weight":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}    '
)
CHECKPOINT_ARRAYS = bytes.fromhex("0100000000000000 0000803f 000000c0 0000003f 00008040")
MANIFEST_V1 = """{"format_version": 1, "name": "old", "status": "failed",
"created": "2026-01-02T03:04:05+00:00", "updated": "2026-01-02T03:05:06+00:00",
"finished": "2026-01-02T03:05:06+00:00", "error": "no client answered", "rounds_planned": 2,
"wall_seconds": 61.5, "model_sha256": null, "config_hash": "c0ffee",
"engine": {"name": "inline"}, "threads": 1, "pid": 7, "host": "h", "command": "fedsim run",
"python": "3.11.7", "platform": "Linux", "processor": "abacus", "cores": 2,
"versions": {"fedsim": "0.1.0", "torch": null}, "commit": null,
"library_paths": {"fedsim": "lib", "torch": null}, "resumed": [], "changed": {}}"""
MANIFEST_V2 = MANIFEST_V1.replace('"format_version": 1', '"format_version": 2').replace(
    '"changed": {}', '"changed": {}, "blanks": {"package_joules": "no RAPL here"}'
)
MANIFEST_V3 = MANIFEST_V2.replace('"format_version": 2', '"format_version": 3')
MANIFEST_V4 = MANIFEST_V3.replace('"format_version": 3', '"format_version": 4')
MANIFEST_V5 = MANIFEST_V4.replace(
    '"format_version": 4', '"guarantee": null, "epsilon": null, "format_version": 5'
)
MANIFESTS = {
    **{1: MANIFEST_V1, 2: MANIFEST_V2, 3: MANIFEST_V3, 4: MANIFEST_V4},
    5: MANIFEST_V5,
}
TABLES = (schema.ROUNDS, schema.CLIENTS, schema.LAYERS)


def old_run(directory: Path, version: int) -> Path:
    """Make a run as a fedsim of that format left it."""
    script = (Path(__file__).parent / f"ledger_v{version}.sql").read_text()
    with closing(sqlite3.connect(directory / files.LEDGER)) as db, db:
        db.executescript(script)
    (directory / files.MANIFEST).write_text(MANIFESTS[version])
    (directory / files.CONFIG).write_text('[experiment]\nname = "old"\n')
    header = CHECKPOINT_HEADER % version
    (directory / "checkpoint-000001.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + CHECKPOINT_ARRAYS
    )
    return directory


def test_every_format_is_tested() -> None:
    assert list(formats.FORMAT_HISTORY) == list(MANIFESTS)


@pytest.mark.parametrize("version", MANIFESTS)
def test_a_run_of_any_format_still_reads(tmp_path: Path, version: int) -> None:
    run = load(old_run(tmp_path, version))
    assert (run.status, run.manifest.error, run.config) == (
        "failed",
        "no client answered",
        {"experiment": {"name": "old"}},
    )
    assert run.rounds["test_accuracy"].tolist() == [0.8125]
    assert run.clients["status"].tolist() == ["ok", "ok", "failed"]
    assert run.clients["loss_last_step"].tolist()[1] == math.inf
    assert same(run.arrays(), {"out.weight": np.array([1, -2, 0.5, 4], np.float32)})


@pytest.mark.parametrize("version", MANIFESTS)
def test_tables_are_alike_whatever_the_format(tmp_path: Path, version: int) -> None:
    run = load(old_run(tmp_path, version))
    for table, frame in zip(TABLES, (run.rounds, run.clients, run.layers), strict=True):
        assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
            column.name: column.pandas for column in table.columns
        }


# Columns whose meaning or name changed; all others of an old ledger read as they are stored.
FORMER_NAMES = {
    (1, "rounds"): {"uplink_dense_bytes": "uplink_bytes", "downlink_dense_bytes": "downlink_bytes"}
}


@pytest.mark.parametrize("version", MANIFESTS)
def test_what_an_old_ledger_holds_is_where_it_belongs_and_the_rest_is_missing(
    tmp_path: Path, version: int
) -> None:
    run = load(old_run(tmp_path, version))
    for table, frame in zip(TABLES, (run.rounds, run.clients, run.layers), strict=True):
        with closing(sqlite3.connect(tmp_path / files.LEDGER)) as db:
            found = db.execute(f"SELECT * FROM {table.name} ORDER BY rowid")
            names = [name for name, *_ in found.description]
            stored = dict(zip(names, zip(*found.fetchall(), strict=True), strict=True))
        former = FORMER_NAMES.get((version, table.name), {})
        now = {name: stored.pop(old) for name, old in former.items()} | stored
        read = frame.astype(object).where(frame.notna(), None)
        assert set(now) <= set(frame.columns)
        for name in frame.columns:
            assert tuple(read[name]) == now.get(name, (None,) * len(frame)), name


def test_format_1_counted_dense_bytes_and_tensors(tmp_path: Path) -> None:
    run = load(old_run(tmp_path, 1))
    assert run.rounds["uplink_dense_bytes"].tolist() == [32]
    assert run.rounds["downlink_dense_bytes"].tolist() == [32]
    assert run.rounds[["uplink_bytes", "downlink_bytes"]].isna().all(axis=None)
    assert run.layers["layer"].tolist() == ["out.weight", "out.weight"]
    assert run.layers["phase"].isna().all()
    assert run.layers["parameters"].tolist() == [4, 4]
    assert run.layers["update_norm"].tolist() == [0.0625, 0.03125]
    assert run.manifest.blanks == {}


def test_a_run_of_an_older_format_is_not_gone_on_with(tmp_path: Path) -> None:
    old_run(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    message = r"ledger format 1, begun by fedsim 0\.1\.0; .*reads it.*begin the run anew.*finish it"
    with pytest.raises(LedgerError, match=message):
        Ledger.resume(tmp_path)
    assert not is_held(tmp_path / files.LOCK)
    (tmp_path / files.LOCK).unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_of_the_current_format_still_resumes(tmp_path: Path) -> None:
    with Ledger.resume(old_run(tmp_path, formats.FORMAT_VERSION)) as ledger:
        found = ledger.checkpoint()
        assert found is not None
        assert same(found.state, {"step": np.array(1)})
        assert same(found.client_states[1], {"control": np.array([0.25, -1.0])})
        store(ledger, 2)


def test_a_changed_format_has_a_new_version(tmp_path: Path) -> None:
    """Fails when the rows of fedsim.records change: then see FORMAT_HISTORY in ledger.formats."""

    def layout(path: Path) -> dict[str, Any]:
        with closing(sqlite3.connect(path)) as db:
            tables = db.execute("SELECT name, strict FROM pragma_table_list WHERE schema = 'main'")
            return {
                f"{name}, strict={strict}": db.execute(
                    "SELECT * FROM pragma_table_info(?)", (name,)
                ).fetchall()
                for name, strict in tables.fetchall()
            }

    old_run(tmp_path, formats.FORMAT_VERSION)
    begun(tmp_path / "new").close()
    assert layout(tmp_path / "new" / files.LEDGER) == layout(tmp_path / files.LEDGER)
    newest = json.loads(MANIFESTS[formats.FORMAT_VERSION])
    assert set(dataclasses.asdict(MANIFEST)) == set(newest)
