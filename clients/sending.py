"""How a client's update leaves: as it is, or through a codec that may remember what it left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import Context

from fedsim import codecs, flower
from fedsim.config import UpdateTable
from fedsim.measure.payload import relative_error


def outgoing(
    context: Context,
    settings: UpdateTable,
    before: flower.Arrays,
    after: flower.Arrays,
    *,
    rng: Callable[[], np.random.Generator],
    measure_error: bool,
) -> tuple[flower.Arrays | bytes, float | None]:
    """Return what is sent, and how far it is from what was meant, where that is known.

    A codec that loses something is given the update, after - before; ``none`` is given the model
    itself, so that a lossless coder behind it changes no bit of the result. With error feedback
    what was not sent is kept in the client's state and added to its next update (Stich et al.
    2018, "Sparsified SGD with memory", algorithm 1).

    Raises:
        CodecError: the update holds NaN or infinity, or numbers that the codec cannot hold.
    """
    if settings.codec == "none" and settings.coder == "none":
        return after, None
    feedback = settings.codec == "topk" and settings.error_feedback
    meant = after if settings.codec == "none" else difference(after, before)
    if feedback and flower.RESIDUAL in context.state:
        left = flower.decode_arrays(context.state.array_records[flower.RESIDUAL])
        meant = {name: value + left[name] for name, value in meant.items()}
    payload = codecs.encode(
        meant,
        codec=settings.codec,
        coder=settings.coder,
        zstd_level=settings.zstd_level,
        topk_fraction=settings.topk_fraction,
        rng=rng(),
    )
    if not (feedback or measure_error):
        return payload, None
    sent = codecs.decode(payload, before)
    if feedback:
        context.state[flower.RESIDUAL] = flower.encode_arrays(difference(meant, sent))
    return payload, relative_error(meant, sent) if measure_error else None


def difference(one: flower.Arrays, other: flower.Arrays) -> dict[str, np.ndarray]:
    """Return one - other, array by array, in their dtypes."""
    return {name: np.subtract(value, other[name]) for name, value in one.items()}
