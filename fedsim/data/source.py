"""Where data comes from: what a reader is asked for, and files that say what is wrong with them."""

from __future__ import annotations

import gzip
import os
import shlex
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a reader is asked for; each field is the key ``data.<field>`` of an experiment.

    ``directory`` alone is resolved already: see :func:`data_directory`.
    """

    dataset: str
    directory: Path
    path: str = ""
    test_path: str = ""
    label: str = ""
    client: str = ""
    test_fraction: float = 0.2
    missing: str = "refuse"
    standardize: bool = False


def data_directory(explicit: str = "") -> Path:
    """Return the directory that holds one folder for each dataset; it need not exist.

    Args:
        explicit: the directory asked for; empty for the environment variable
            ``FEDSIM_DATA_DIR`` and, where that is unset, ``fedsim`` in the user's cache.
    """
    chosen = explicit or os.environ.get("FEDSIM_DATA_DIR", "")
    return Path(chosen).expanduser() if chosen else _user_cache() / "fedsim"


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache")


def find_files(source: Source, folder: Path, names: Sequence[str], *, hint: str = "") -> list[Path]:
    """Return the path of each file in ``folder``, plain or, failing that, with ``.gz`` appended.

    Args:
        source: asks for a dataset that can be fetched.
        folder: where its files lie in the data directory.
        names: file names that all have to be there.
        hint: a sentence for the error that says where the files come from.

    Raises:
        DataError: the folder or a file is missing or unreadable; names every missing file.
    """
    with reading(folder):
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder}: is a file, where a folder of data files is expected")
        found = [
            next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
            for name in names
        ]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        directory = shlex.quote(str(source.directory))
        raise DataError(
            f"{folder}: missing {', '.join(missing)} (each plain or .gz). {hint}"
            f"Fetch them: fedsim data fetch {source.dataset} --data-dir {directory}; or put them "
            "there, or name another data directory with run.data_dir, --data-dir or FEDSIM_DATA_DIR"
        )
    return [path for path in found if path is not None]


def read_bytes(path: Path) -> bytes:
    """Return a file's content, decompressed if its name ends in ``.gz``.

    Raises:
        DataError: it cannot be read, is truncated, or is empty.
    """
    with reading(path):
        content = path.read_bytes()
        if path.suffix == ".gz" and content:
            content = gzip.decompress(content)
    if not content:
        raise DataError(f"{path}: is empty; fetch the file again")
    return content


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a DataError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise DataError(f"{path}: truncated or corrupt ({error}); fetch the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
