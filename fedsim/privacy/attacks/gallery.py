"""Originals and reconstructions of each arm, kept for pictures. Needs no torch."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.errors import PrivacyError

Floats = npt.NDArray[np.float32]

PICTURES = "pictures.npz"
MOST = 8  # images of an arm that are kept


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstructions:
    """What one attack made of one batch.

    Attributes:
        name: says which arm this is.
        originals: (n, channels, height, width).
        reconstructions: of the same shape, each beside its original; NaN where there is none.
        low, high: the range of the data, black and white.
    """

    name: str
    originals: Floats
    reconstructions: Floats
    low: float
    high: float


def gallery_bytes(shown: Sequence[Reconstructions]) -> bytes:
    """Return an .npz file of the first ``MOST`` images of each arm, without pickles.

    It holds ``names``, (arms,); ``ranges``, (arms, 2); ``originals_0``, ``reconstructions_0``, ...
    """
    arrays: dict[str, Any] = {
        "names": np.array([arm.name for arm in shown], dtype=str),
        "ranges": np.array([(arm.low, arm.high) for arm in shown]).reshape(-1, 2),
    }
    for number, arm in enumerate(shown):
        arrays[f"originals_{number}"] = arm.originals[:MOST].astype(np.float32)
        arrays[f"reconstructions_{number}"] = arm.reconstructions[:MOST].astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def read_gallery(data: bytes, *, place: str = PICTURES) -> list[Reconstructions]:
    """Return what :func:`gallery_bytes` kept.

    Raises:
        PrivacyError: it is no such file.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return [
                Reconstructions(
                    name=str(name),
                    originals=file[f"originals_{number}"],
                    reconstructions=file[f"reconstructions_{number}"],
                    low=float(low),
                    high=float(high),
                )
                for number, (name, (low, high)) in enumerate(
                    zip(file["names"], file["ranges"], strict=True)
                )
            ]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise PrivacyError(f"{place}: holds no reconstructions ({error}); measure again") from error
