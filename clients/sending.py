"""How a client's update leaves: as it is, or through a codec that may remember what it left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import Context

from fedsim import codecs, flower
from fedsim.errors import CodecError
from fedsim.measure.payload import difference, relative_error
from fedsim.settings import UpdateTable


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """What is sent: the model, or a payload, or why there is none; and what a codec was given."""

    sent: flower.Arrays | bytes | str
    meant: flower.Arrays | None = None

    def error(self, like: flower.Arrays) -> float | None:
        """Return |sent - meant| / |meant| of what went through a codec."""
        if self.meant is None or not isinstance(self.sent, bytes):
            return None
        return relative_error(self.meant, codecs.decode(self.sent, like))


def encode_update(
    context: Context,
    settings: UpdateTable,
    before: flower.Arrays,
    after: flower.Arrays,
    *,
    rng: Callable[[], np.random.Generator],
) -> Outgoing:
    """Make a client's update ready to be sent.

    A codec that loses something is given the update, after - before; ``none`` is given the model
    itself, so that a lossless coder behind it changes no bit of the result. With error feedback
    what was not sent is kept in the client's state and added to its next update (Stich et al.
    2018, "Sparsified SGD with memory", algorithm 1).
    """
    if not settings.codes_up:
        return Outgoing(sent=after)
    feedback = settings.codec == "topk" and settings.error_feedback
    meant = dict(after) if settings.codec == "none" else difference(after, before)
    if feedback and flower.RESIDUAL in context.state:
        left = flower.decode_arrays(context.state.array_records[flower.RESIDUAL])
        meant |= {name: meant[name] + value for name, value in left.items()}
    try:
        payload = codecs.encode(
            meant,
            codec=settings.codec,
            coder=settings.coder,
            zstd_level=settings.zstd_level,
            topk_fraction=settings.topk_fraction,
            rng=rng(),
        )
    except CodecError as error:  # the client's bill goes out all the same
        return Outgoing(sent=str(error))
    if feedback:
        left = difference(meant, codecs.decode(payload, before))
        floats = {name: value for name, value in left.items() if value.dtype.kind == "f"}
        context.state[flower.RESIDUAL] = flower.encode_arrays(floats)
    return Outgoing(sent=payload, meant=None if settings.codec == "none" else meant)
