"""Arrays as bytes: what a run needs to go on after its last round, in safetensors format."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedsim.errors import LedgerError
from fedsim.ledger import files
from fedsim.ledger.formats import FORMAT_VERSION

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """All that the next round needs: the state after ``round``, every array bit for bit.

    ``arrays`` is the global model, ``state`` the strategy's own arrays, ``client_states`` the last
    state of each client that has one. Names come in the order in which they were given.
    """

    round: int
    arrays: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    client_states: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)


def model_digest(arrays: Arrays) -> str:
    """Return the SHA-256 of a model's parameters, in hexadecimal.

    It is taken over the arrays' bytes (little-endian, C order) one after another, in the order of
    their sorted names. Names, shapes and types are not part of it.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(_plain(arrays[name]).tobytes())
    return digest.hexdigest()


def pack(arrays: Arrays, about: Mapping[str, str] | None = None) -> bytes:
    """Serialise named arrays, with the order of the names and the text metadata ``about``.

    safetensors sorts what it stores, and the order of a model's arrays is the order in which
    floating-point sums run over them: without it, a resumed run would differ in the last bit.

    Raises:
        LedgerError: an array is not of numbers or booleans.
    """
    try:
        return save(
            {name: _plain(array) for name, array in arrays.items()},
            metadata={**(about or {}), "order": json.dumps(list(arrays))},
        )
    except SafetensorError as error:
        raise LedgerError(
            f"cannot store {', '.join(arrays)}: {error}; give arrays of numbers or booleans"
        ) from error


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """Return what ``pack`` was given; the arrays are writable and of their own.

    Raises:
        LedgerError: the bytes are not whole, or not from ``pack``.
    """
    try:
        arrays = load(data)
        # A safetensors file opens with the length of its JSON header, in eight bytes.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return {name: arrays[name] for name in json.loads(header["__metadata__"]["order"])}
    except (SafetensorError, KeyError) as error:
        raise LedgerError(f"stored arrays are damaged: {error}") from error


def write(directory: Path, round: int, arrays: Arrays, state: Arrays) -> tuple[str, str]:
    """Write the model and the strategy's state after a round; return file name and SHA-256."""
    named = {f"model/{name}": array for name, array in arrays.items()}
    named |= {f"strategy/{name}": array for name, array in state.items()}
    data = pack(named, {"round": str(round), "format_version": str(FORMAT_VERSION)})
    name = files.checkpoint_name(round)
    files.write_atomically(directory / name, data)
    return name, hashlib.sha256(data).hexdigest()


def read_last(directory: Path, db: sqlite3.Connection) -> Checkpoint | None:
    """Read what the ledger names as the newest checkpoint, without the clients' states.

    Raises:
        LedgerError: the file is missing, or is not the one that was written.
    """
    with files.explained(directory / files.LEDGER):
        newest = "SELECT round, file, sha256 FROM checkpoints ORDER BY round DESC LIMIT 1"
        found = db.execute(newest).fetchone()
    if found is None:
        return None
    number, name, sha256 = found
    data = files.read_bytes(directory / name)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise files.damaged(directory / name, "its SHA-256 is not the one in the ledger")
    stored = unpack(data)
    return Checkpoint(
        round=number, arrays=_within("model/", stored), state=_within("strategy/", stored)
    )


def read_client_states(directory: Path, db: sqlite3.Connection) -> dict[int, dict[str, np.ndarray]]:
    """Read the last state of every client that has one, by client."""
    with files.explained(directory / files.LEDGER):
        stored = db.execute("SELECT client, state FROM client_states ORDER BY client")
        return {client: unpack(data) for client, data in stored}


def _within(prefix: str, stored: Arrays) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): array for k, array in stored.items() if k.startswith(prefix)}


def _plain(array: np.ndarray) -> np.ndarray:
    """Return little-endian, contiguous values: safetensors reads an array's memory as it lies."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
