"""A federation's examples as folders: one for each client, and one for the server's test part.

docs/decisions/0018-data-at-nodes.md says what lies where, and why.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedsim.data.assignment import Partition
from fedsim.data.card import CARD, Card
from fedsim.data.dataset import Dataset, Features, Ints, raw_of
from fedsim.data.form import Form
from fedsim.data.labels import check_classes
from fedsim.data.rows import check_finite
from fedsim.data.source import reading
from fedsim.errors import DataError

EXAMPLES = "examples.safetensors"
SERVER, HANDED_OUT = "server", "card"
EXPERIMENT = "experiment.toml"
DIGITS = 3  # of a client's number in its folder's name, at least

Advance = Callable[[int, int], None]  # clients written, of how many


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a split came to: clients with a folder, examples and bytes of theirs, and the test's."""

    clients: int
    client_examples: int
    client_bytes: int
    server_examples: int
    server_bytes: int


def client_folder(client: int, clients: int) -> str:
    """Name a client's folder."""
    return f"client-{client:0{max(DIGITS, len(str(clients)))}}"


def write_split(
    data: Dataset, partition: Partition, out: Path, *, experiment: str, advance: Advance
) -> Written:
    """Write a folder for each client, with its examples alone, and the server's.

    Args:
        data: whole.
        partition: which client holds which training example.
        out: where the folders go; made if need be.
        experiment: the text of the experiment over these folders.
        advance: is told how many clients are written.

    Raises:
        DataError: ``out`` holds something already, or cannot be written. No part of a split stays.
    """
    form, clients, size, held = Form.of(data), len(partition), 0, 0
    with _new(out):
        for client in range(clients):
            indices = partition.indices(client)
            card = Card(role="client", dataset=data.name, form=form, clients=clients, client=client)
            folder = out / client_folder(client, clients)
            size += _write(folder, card, data.x_train[indices], data.y_train[indices])
            held += len(indices)
            advance(client + 1, clients)
        server_bytes = _write_server(data, out, clients)
        _put(out / EXPERIMENT, experiment.encode())
    return Written(
        clients=clients,
        client_examples=held,
        client_bytes=size,
        server_examples=len(data.y_test),
        server_bytes=server_bytes,
    )


def write_server(data: Dataset, out: Path, *, clients: int, experiment: str) -> Written:
    """Write the server's folder, and the card to be handed out to clients with their own files.

    Args:
        data: whole; its training examples are left where they are.
        out, experiment: as for :func:`write_split`.
        clients: how many the federation has.

    Raises:
        DataError: as in :func:`write_split`, or no client could bring a file of its own.
    """
    raw = raw_of(data)
    if raw.problem:
        raise DataError(f"data.path: no client can bring a file of its own: {raw.problem}")
    with _new(out):
        server_bytes = _write_server(data, out, clients)
        card = Card(role="card", dataset=data.name, form=Form.of(data), clients=clients, raw=raw)
        _put(out / HANDED_OUT / CARD, card.text().encode())
        _put(out / EXPERIMENT, experiment.encode())
    return Written(
        clients=0,
        client_examples=0,
        client_bytes=0,
        server_examples=len(data.y_test),
        server_bytes=server_bytes,
    )


def read_examples(folder: Path, card: Card) -> tuple[Features, Ints]:
    """Read the examples that a card describes: (n, \\*input_shape), and labels (n,).

    Raises:
        DataError: the file is missing, damaged, or not the card's.
    """
    path = folder / EXAMPLES
    remedy = "take the folder again from whoever made the split"
    with reading(path):
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise DataError(f"{path}: is not the file that {CARD} describes (SHA-256); {remedy}")
    try:
        arrays = load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: is no safetensors file ({error}); {remedy}") from error
    expected = {
        "x": (card.form.dtype, (card.examples, *card.form.input_shape)),
        "y": ("int64", (card.examples,)),
    }
    found = {name: (str(a.dtype), a.shape) for name, a in sorted(arrays.items())}
    if found != expected:
        raise DataError(f"{path}: holds {found}, and {CARD} says {expected}; {remedy}")
    labels = check_classes(arrays["y"], len(card.form.class_names), str(path))
    if card.form.dtype == "float32":
        check_finite(arrays["x"], str(path))
    return arrays["x"], labels


def _write_server(data: Dataset, out: Path, clients: int) -> int:
    card = Card(
        role="server", dataset=data.name, form=Form.of(data), clients=clients, raw=raw_of(data)
    )
    return _write(out / SERVER, card, data.x_test, data.y_test)


def _write(folder: Path, card: Card, x: Features, y: Ints) -> int:
    """Write examples and their card; return the bytes."""
    content = save({"x": np.ascontiguousarray(x), "y": np.ascontiguousarray(y)})
    known = {"examples": len(y), "sha256": hashlib.sha256(content).hexdigest()}
    text = Card(**{**vars(card), **known}).text().encode()
    _put(folder / EXAMPLES, content)
    _put(folder / CARD, text)
    return len(content) + len(text)


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a card's SHA-256 tells what a power cut made of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


@contextmanager
def _new(out: Path) -> Iterator[None]:
    """Take care of a folder for a new split: it is empty before, and again if writing fails."""
    with reading(out):
        there = out.exists()
        if there and not out.is_dir():
            raise DataError(f"--out {out}: is a file; name a folder that is empty or not there")
        if there and any(out.iterdir()):
            raise DataError(f"--out {out}: is not empty; name another folder, or empty it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        with suppress(OSError):
            for path in out.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not there:
                out.rmdir()
        if isinstance(error, OSError):
            raise DataError(f"{out}: cannot be written: {error.strerror or error}") from error
        raise
