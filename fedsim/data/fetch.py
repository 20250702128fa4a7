"""Fetching the published files of a dataset, for who has a network.

Their MD5 checksums are published beside them. Here they tell those very files from damaged or other
ones; against somebody who forges a file MD5 protects nobody, and nothing here is meant to.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import urlopen

from fedsim.data import cifar, idx
from fedsim.data.source import reading
from fedsim.errors import DataError, nearest

TIMEOUT_SECONDS = 30.0  # to connect, and between two pieces of a file
CHUNK_BYTES = 2**16

Advance = Callable[[str, int, int | None], None]
md5 = partial(hashlib.md5, usedforsecurity=False)


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where the files of a dataset are published, and how to know them.

    ``checksums`` maps a file's name at ``url`` to its MD5. ``members`` are what the reader wants of
    a dataset that is one tar archive: their names in it, and their sizes in bytes.
    """

    url: str
    checksums: Mapping[str, str]
    members: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that is there as published; ``received_bytes`` is 0 if it was there before."""

    path: Path
    received_bytes: int


def idx_files(*checksums: str) -> dict[str, str]:
    """Map the four IDX files, as they are published, to their checksums."""
    return {f"{name}.gz": checksum for name, checksum in zip(idx.FILES, checksums, strict=True)}


PUBLISHED: dict[str, Published] = {
    "mnist": Published(
        url="https://ossci-datasets.s3.amazonaws.com/mnist",
        checksums=idx_files(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion_mnist": Published(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        checksums=idx_files(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "cifar10": Published(
        url="https://www.cs.toronto.edu/~kriz",
        checksums={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        members={f"{cifar.UNPACKED}/{name}": 10_000 * cifar.RECORD_BYTES for name in cifar.FILES},
    ),
}


def unseen(name: str, received_bytes: int, total_bytes: int | None) -> None:
    """Show no progress."""


def fetch(
    name: str, directory: Path, *, mirror: str = "", advance: Advance = unseen
) -> Iterator[Fetched]:
    """Bring the files of a dataset into its folder, and yield each as soon as it is complete.

    A file that is there with the published checksum is not fetched again; any other of its name is
    replaced, once the published one is there. An archive is unpacked and kept.

    Args:
        name: a key of ``PUBLISHED``.
        directory: holds one folder for each dataset; made if need be.
        mirror: the URL under which the files lie; empty for where they were published.
        advance: called often, with a file's name, the bytes received of it, and its size, which is
            None if the server does not say.

    Raises:
        DataError: the name is unknown, a file cannot be fetched or written, or is not the published
            one. Files that are complete stay, and no partial one.
    """
    if name not in PUBLISHED:
        raise DataError(f"{name!r} is no dataset to be fetched; {nearest(name, PUBLISHED)}")
    if mirror and not mirror.startswith(("http://", "https://")):
        raise DataError(f"--from {mirror}: must begin with http:// or https://")
    published = PUBLISHED[name]
    url = (mirror or published.url).rstrip("/")
    for file, checksum in published.checksums.items():
        path = directory / name / file
        there = _checksum(path) == checksum
        received = 0 if there else _download(f"{url}/{file}", path, checksum, advance)
        if published.members:
            _unpack(path, published.members)
        yield Fetched(path=path, received_bytes=received)


def _checksum(path: Path) -> str:
    """Return the MD5 of a file; empty if there is none."""
    with reading(path):
        if not path.exists():
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, md5).hexdigest()


def _download(url: str, path: Path, checksum: str, advance: Advance) -> int:
    digest, received = md5(), 0
    with _replacing(path) as file:
        for chunk, total in _chunks(url, path.parent):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            advance(path.name, received, total)
        if digest.hexdigest() != checksum:
            found = f"its MD5 is {digest.hexdigest()}, that of the published file is {checksum}"
            raise _unfetched(url, path.parent, found)
    return received


def _chunks(url: str, folder: Path) -> Iterator[tuple[bytes, int | None]]:
    """Yield what the server sends, piece by piece, with the size that it promised."""
    received = 0
    try:
        with urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            total: int | None = response.length
            while chunk := response.read(CHUNK_BYTES):
                received += len(chunk)
                yield chunk, total
    except HTTPError as error:
        error.close()
        raise _unfetched(url, folder, str(error)) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        why = getattr(reason, "strerror", None) or str(reason)
        raise _unfetched(url, folder, why) from error
    if total is not None and received < total:
        raise _unfetched(url, folder, f"the connection ended after {received} of {total} bytes")


def _unfetched(url: str, folder: Path, why: str) -> DataError:
    remedy = f"try again, name a mirror with --from, or put the file into {folder} by hand"
    return DataError(f"{url}: {why}; {remedy}")


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` if the block succeeds, and else vanishes."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}; make room for it, or name "
            "another data directory with --data-dir or FEDSIM_DATA_DIR"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _unpack(archive: Path, members: Mapping[str, int]) -> None:
    """Write the members beside the archive, and nothing else that may be in it."""
    missing = dict(members)
    with reading(archive), tarfile.open(archive) as tar:
        for entry in tar:
            size = missing.pop(entry.name, None)
            if size is None:
                continue
            # A link is no regular file, so what is read lies in the archive.
            content = tar.extractfile(entry) if entry.isreg() and entry.size == size else None
            if content is None:
                raise DataError(f"{archive}: {entry.name} is no regular file of {size} bytes")
            data = content.read()
            with _replacing(archive.parent / entry.name) as file:  # one of the names asked for
                file.write(data)
    if missing:
        raise DataError(f"{archive}: lacks {', '.join(missing)}")
