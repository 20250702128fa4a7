"""A study in its directory: what it asked, so that it can be analysed without its file."""

from __future__ import annotations

import json
from pathlib import Path

from fedsim.errors import ConfigError, LedgerError
from fedsim.ledger.files import read_bytes, write_atomically
from fedsim.study.design import Study, study_of

STUDY = "study.json"
FORMAT_VERSION = 1


def write_study(directory: Path, study: Study) -> None:
    """Write a study down in its directory, which is made where it is missing.

    Raises:
        LedgerError: it cannot be written.
    """
    document = {"format_version": FORMAT_VERSION, **study.document()}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / STUDY, json.dumps(document, indent=1).encode())


def read_stored(directory: Path) -> Study:
    """Return the study of a directory.

    Raises:
        LedgerError: there is none, it is damaged, or a newer fedsim wrote it.
    """
    path = directory / STUDY
    if not path.is_file():
        raise LedgerError(f"{directory} holds no study: it has no {STUDY}")
    try:
        document = json.loads(read_bytes(path))
        version = document.pop("format_version")
        if version == FORMAT_VERSION:
            return study_of(document)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise LedgerError(
            f"{path} is damaged: {error!r}; fedsim study FILE --out {directory} writes it anew"
        ) from error
    raise LedgerError(
        f"{path}: format {version}, and this fedsim reads {FORMAT_VERSION}; install the fedsim "
        "that wrote it, or a newer one"
    )
